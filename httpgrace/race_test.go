//go:build race

package httpgrace

// What the race detector adds to what is allocated for a connection.
const raceBytes = 80
