package supervise

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// statOf returns what the kernel says of a process from its state on: proc(5). One
// that has ended and is not reaped exists.
func statOf(pid int) []string {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil
	}
	// The name, in parentheses, may have anything in it.
	return strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
}

// parentOf returns 0 for a process that does not exist.
func parentOf(pid int) int {
	fields := statOf(pid)
	if len(fields) < 2 {
		return 0
	}
	parent, _ := strconv.Atoi(fields[1])
	return parent
}

func isZombie(pid int) bool {
	fields := statOf(pid)
	return len(fields) > 0 && fields[0] == "Z"
}

// isDescendant says whether pid descends from this process.
func isDescendant(pid int) bool {
	self := os.Getpid()
	for seen := 0; pid > 0 && seen < 1<<16; seen++ {
		if pid = parentOf(pid); pid == self {
			return true
		}
	}
	return false
}

// descendants are all there are at this moment.
func descendants() (pids []int) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil && isDescendant(pid) {
			pids = append(pids, pid)
		}
	}
	return pids
}
