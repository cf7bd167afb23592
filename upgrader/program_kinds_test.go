//go:build linux

package upgrader

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
)

// openKinds opens a socket of every kind and a file, logs how they look, and
// answers on each with this process's generation.
func openKinds(u *Upgrader, wg *sync.WaitGroup, dir string, log *slog.Logger) (closers []interface{ Close() error }, err error) {
	look := []any{"pid", os.Getpid(), "generation", u.Generation()}
	for _, k := range [][3]string{
		{"tcp", "tcp", "127.0.0.1:0"}, {"unix", "unix", filepath.Join(dir, "unix.sock")}, {"unixpacket", "unixpacket", filepath.Join(dir, "packet.sock")},
	} {
		ln, err := u.Listen(context.Background(), k[0], k[1], k[2])
		if err != nil {
			return nil, err
		}
		closers = append(closers, ln)
		look = append(look, k[0], inspect(ln.(syscall.Conn), ln.Addr().String()))
		wg.Go(func() { answer(u, ln, log) })
	}
	for _, k := range [][3]string{{"udp", "udp", "127.0.0.1:0"}, {"unixgram", "unixgram", filepath.Join(dir, "gram.sock")}} {
		pc, err := u.ListenPacket(context.Background(), k[0], k[1], k[2])
		if err != nil {
			return nil, err
		}
		closers = append(closers, pc)
		look = append(look, k[0], inspect(pc.(syscall.Conn), pc.LocalAddr().String()))
		if k[0] == "udp" {
			log.Info("listening", "pid", os.Getpid(), "name", "udp", "addr", pc.LocalAddr().String())
		}
		go answerPackets(u, pc)
	}
	f, err := u.File("file")
	if errors.Is(err, fs.ErrNotExist) {
		if f, err = os.OpenFile(filepath.Join(dir, "file"), os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o644); err == nil {
			err = u.AddFile("file", f)
		}
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	look = append(look, "file", inspect(f, "file"))
	log.Info("kinds", look...)
	return closers, nil
}

// inspect tells address, status flags and options of a descriptor.
func inspect(c syscall.Conn, address string) string {
	rc, err := c.SyscallConn()
	if err != nil {
		return err.Error()
	}
	var out string
	_ = rc.Control(func(fd uintptr) {
		flags, _, _ := syscall.Syscall(syscall.SYS_FCNTL, fd, syscall.F_GETFL, 0)
		cloexec, _, _ := syscall.Syscall(syscall.SYS_FCNTL, fd, syscall.F_GETFD, 0)
		reuse, _ := syscall.GetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_REUSEADDR)
		var st syscall.Stat_t
		_ = syscall.Fstat(int(fd), &st)
		out = fmt.Sprintf("%s nonblock=%v cloexec=%d reuseaddr=%d inode=%d", address, flags&syscall.O_NONBLOCK != 0, cloexec, reuse, st.Ino)
	})
	if !strings.Contains(out, "nonblock=true") && !strings.HasSuffix(address, "file") {
		return "" // which no test accepts
	}
	return out
}

func answer(u *Upgrader, ln net.Listener, log *slog.Logger) {
	for {
		c, err := ln.Accept()
		if err != nil {
			log.Info("accept ended", "pid", os.Getpid(), "err", err.Error())
			return
		}
		go func() {
			defer c.Close()
			b := make([]byte, 64)
			if _, err := c.Read(b); err == nil {
				fmt.Fprint(c, u.Generation())
			}
		}()
	}
}

func answerPackets(u *Upgrader, pc net.PacketConn) {
	b := make([]byte, 64)
	for {
		_, from, err := pc.ReadFrom(b)
		if err != nil {
			return
		}
		_, _ = pc.WriteTo([]byte(fmt.Sprint(u.Generation())), from)
	}
}

// openMany opens n listeners and n files, and counts those that are the same
// as in the generation before.
func openMany(u *Upgrader, dir string, n int, log *slog.Logger) error {
	listeners, files, same := 0, 0, 0
	for i := range n {
		name := fmt.Sprintf("many %d", i)
		if u.holds(name) {
			same++
		}
		if _, err := u.Listen(context.Background(), name, "unix", fmt.Sprintf("@%s/%d", dir, i)); err != nil {
			return err
		}
		listeners++
		name = fmt.Sprintf("file %d", i)
		f, err := u.File(name)
		if errors.Is(err, fs.ErrNotExist) {
			if f, err = os.Open(os.DevNull); err == nil {
				err = u.AddFile(name, f)
			}
		} else {
			same++
		}
		if err != nil {
			return err
		}
		files++
		_ = f.Close()
	}
	log.Info("many", "pid", os.Getpid(), "generation", u.Generation(), "listeners", listeners, "files", files, "same", same)
	return nil
}

// holds reports that a socket was inherited under this name.
func (u *Upgrader) holds(name string) bool {
	u.sockets.mu.Lock()
	defer u.sockets.mu.Unlock()
	s := u.sockets.named[name]
	return s != nil && s.inherited
}

const envLook = "UPGRADER_TEST_LOOK"

// lookAround is the subprocess: it reports what it can see of the handover.
func lookAround() {
	var fds, vars []string
	entries, _ := os.ReadDir("/proc/self/fd")
	for _, e := range entries {
		to, err := os.Readlink("/proc/self/fd/" + e.Name())
		// The runtime opens some of its own.
		if err == nil && (strings.HasPrefix(to, "socket:") || strings.HasPrefix(to, os.Getenv(envLook))) {
			fds = append(fds, to)
		}
	}
	for _, kv := range os.Environ() {
		if strings.HasPrefix(kv, "UPGRADER_") && !strings.HasPrefix(kv, "UPGRADER_TEST") {
			vars = append(vars, kv)
		}
	}
	generation := 0
	if u, err := New(Options{}); err == nil {
		generation = u.Generation()
	}
	_ = json.NewEncoder(os.Stdout).Encode(map[string]any{"fds": strings.Join(fds, " "), "env": strings.Join(vars, " "), "generation": generation})
}

// spawn runs the subprocess and logs what it saw.
func spawn(dir, point string, generation int, log *slog.Logger) {
	self, err := os.Executable()
	if err != nil {
		log.Error("spawn", "err", err.Error())
		return
	}
	cmd := exec.Command(self)
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, envProgram+"=") {
			cmd.Env = append(cmd.Env, kv)
		}
	}
	cmd.Env = append(cmd.Env, envLook+"="+dir)
	out, err := cmd.Output()
	var saw struct {
		FDs        string `json:"fds"`
		Env        string `json:"env"`
		Generation int    `json:"generation"`
	}
	if err := errors.Join(err, json.Unmarshal(out, &saw)); err != nil {
		log.Error("spawn", "err", err.Error())
		return
	}
	log.Info("subprocess", "pid", os.Getpid(), "generation", generation, "point", point,
		"fds", saw.FDs, "env", saw.Env, "grandchild", saw.Generation)
}

// hoard takes all descriptors that are left, and gives them back.
type hoard struct {
	mu    sync.Mutex
	files []*os.File
}

var hoarded hoard

func (h *hoard) fill() {
	h.mu.Lock()
	defer h.mu.Unlock()
	// Lower the limit first, so that it takes no 20,000 descriptors.
	var lim syscall.Rlimit
	_ = syscall.Getrlimit(syscall.RLIMIT_NOFILE, &lim)
	lim.Cur = min(lim.Cur, 256)
	_ = syscall.Setrlimit(syscall.RLIMIT_NOFILE, &lim)
	for {
		f, err := os.Open(os.DevNull)
		if err != nil {
			return
		}
		h.files = append(h.files, f)
	}
}

// spare lends one descriptor while f runs.
func (h *hoard) spare(f func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.files) == 0 {
		f()
		return
	}
	last := len(h.files) - 1
	_ = h.files[last].Close()
	h.files = h.files[:last]
	f()
	if again, err := os.Open(os.DevNull); err == nil {
		h.files = append(h.files, again)
	}
}

func (h *hoard) free() {
	h.mu.Lock()
	defer h.mu.Unlock()
	closeAll(h.files)
	h.files = nil
}
