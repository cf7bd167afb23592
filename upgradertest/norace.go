//go:build !race

package upgradertest

var raceFlags []string
