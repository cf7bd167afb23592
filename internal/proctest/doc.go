// Package proctest runs real server processes in tests: it builds them, reads
// what all their generations log, and lets no process survive its test.
package proctest
