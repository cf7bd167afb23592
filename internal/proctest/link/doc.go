// Package link gives a test a network with a round trip, which loopback hides:
// two network namespaces, and between them a path on which every packet takes
// its time. Nothing of it has a name outside the test's process, so nothing of
// it can be left behind.
package link
