package supervise

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// parentOf returns 0 for a process that does not exist. One that has ended and
// is not reaped exists.
func parentOf(pid int) int {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	// The name, in parentheses, may have anything in it.
	_, fields, _ := strings.Cut(string(stat[strings.LastIndexByte(string(stat), ')')+1:]), " ")
	parts := strings.Fields(fields)
	if len(parts) < 2 {
		return 0
	}
	parent, _ := strconv.Atoi(parts[1])
	return parent
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
