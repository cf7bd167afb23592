//go:build race

package exampletest

// The example is built as its test was.
var raceFlags = []string{"-race"}
