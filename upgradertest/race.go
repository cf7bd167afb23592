//go:build race

package upgradertest

// What a test with the race detector builds has it, too.
var raceFlags = []string{"-race"}
