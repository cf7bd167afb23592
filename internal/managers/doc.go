// Package managers tests upgrades under process managers: a real one of each
// runs the files of contrib as they are, and the same scenarios.
package managers
