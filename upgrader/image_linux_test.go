package upgrader

import (
	"os"
	"strconv"
	"syscall"
	"testing"
)

// TestNameThatIsANumber is believed to be a descriptor of the executable only if
// it is one, and nobody else says what it is.
func TestNameThatIsANumber(t *testing.T) {
	comm, err := os.ReadFile(selfComm)
	must(t, err)
	open := func(path string) int { // no os.File has it: it is closed by its number
		n, err := syscall.Open(path, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
		must(t, err)
		return n
	}
	executable, other := open(selfPath), open(os.DevNull)
	defer syscall.Close(other)
	nobody := func(int) bool { return false }
	tests := []struct {
		name  string
		comm  string
		taken func(n int) bool
		want  bool
	}{
		{"a name", "12a", nobody, false},
		{"a descriptor that is not open", strconv.Itoa(1 << 20), nobody, false},
		{"standard output", "1", nobody, false},
		{"negative", "-5", nobody, false},
		{"of another file", strconv.Itoa(other), nobody, false},
		{"a file that was handed over", strconv.Itoa(executable), func(n int) bool { return n == executable }, false},
		{"the executable", strconv.Itoa(executable), nobody, true},
	}
	for _, tt := range tests {
		must(t, os.WriteFile(selfComm, []byte(tt.comm), 0))
		if got := wasExecutedByDescriptor("/srv/server", tt.taken); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
		name, want := tt.comm+"\n", "server\n"
		if tt.want {
			name = want
		}
		if got, err := os.ReadFile(selfComm); err != nil || string(got) != name {
			t.Errorf("%s: it is called %q, %v; want %q", tt.name, got, err, name)
		}
		must(t, os.WriteFile(selfComm, comm, 0))
		if _, err := os.Stat(descriptorPath(executable)); (err == nil) == tt.want {
			t.Errorf("%s: of the descriptor: %v", tt.name, err)
		}
		if _, err := os.Stat(descriptorPath(other)); err != nil {
			t.Errorf("%s: of another descriptor: %v", tt.name, err)
		}
	}
}
