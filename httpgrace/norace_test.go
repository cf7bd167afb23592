//go:build !race

package httpgrace

const raceBytes = 0
