package fd

// Attributes are what a file is and has, but for its names and its last access.
// Two that are equal are of one file that nobody has written to in between, as
// far as the clock of its file system can tell.
type Attributes struct {
	Dev, Ino uint64
	Mode     uint32 // kind and permissions
	UID, GID uint32
	Size     int64
	Modified int64 // the bytes, in ns
	Changed  int64 // anything, a name included; no program can set it
}
