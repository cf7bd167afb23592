// Package fd holds what this module does with bare descriptors.
//
// It is the only importer of golang.org/x/sys. Every function leaves
// O_NONBLOCK of a shared open file description as it is, unless it says
// otherwise: the flag belongs to the description, so clearing it in one
// process blocks Accept and Close in every other that shares the socket.
package fd
