//go:build linux

package bench

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"testing"
	"time"
)

// envProgram makes this test binary, executed again, another program.
const envProgram = "HANDOVER_BENCH_PROGRAM"

var programs = map[string]func(args []string) error{
	"hold":     hold,
	"starter":  starter,
	"bare":     bare,
	"upgrader": upgradable,
	"http":     serveHTTP,
}

func TestMain(m *testing.M) {
	name := os.Getenv(envProgram)
	if name == "" {
		os.Exit(m.Run())
	}
	if err := programs[name](os.Args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// child is a process that runs one of the programs, and its successors. They
// end when their standard input does, so none outlives the benchmark.
type child struct {
	name  string
	cmd   *exec.Cmd
	stdin *os.File
	out   *bufio.Reader
	ended chan struct{} // the first process has
}

func start(b *testing.B, name string, args ...string) *child {
	b.Helper()
	exe, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	return launch(b, name, exec.Command(exe, args...))
}

// launch starts a command that executes this test binary.
func launch(b *testing.B, name string, cmd *exec.Cmd) *child {
	b.Helper()
	cmd.Env = append(os.Environ(), envProgram+"="+name)
	// Files of our own: a successor has them too, and Wait would wait for it.
	stdin, w, err := os.Pipe()
	if err != nil {
		b.Fatal(err)
	}
	r, stdout, err := os.Pipe()
	if err != nil {
		b.Fatal(errors.Join(err, stdin.Close(), w.Close()))
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, stdout, os.Stderr
	err = cmd.Start()
	if err := errors.Join(err, stdin.Close(), stdout.Close()); err != nil {
		b.Fatal(errors.Join(err, w.Close(), r.Close()))
	}
	c := &child{name, cmd, w, bufio.NewReader(r), make(chan struct{})}
	go func() {
		defer close(c.ended)
		_ = cmd.Wait() // what went wrong is on standard error
	}()
	b.Cleanup(func() {
		c.end()
		_ = r.Close()
	})
	return c
}

// end returns when every process of the child has ended. It may be called again.
func (c *child) end() {
	_ = c.stdin.Close()
	<-c.ended
	_, _ = io.Copy(io.Discard, c.out)
}

// line waits for the next line that the child prints.
func (c *child) line(b *testing.B) string {
	b.Helper()
	s, err := c.out.ReadString('\n')
	if err != nil {
		b.Fatalf("%s: %v", c.name, err)
	}
	return s
}

// ask sends the child a line and waits for its answer.
func (c *child) ask(b *testing.B, line string) string {
	b.Helper()
	if _, err := io.WriteString(c.stdin, line+"\n"); err != nil {
		b.Fatalf("%s: %v", c.name, err)
	}
	return c.line(b)
}

// starter starts a command each time that it reads a line, and ends it at the
// next. Its answers are when it did the one, in nanoseconds, and that it has
// done the other.
//
// Like the process that is upgraded it is idle until then, and has few
// descriptors open. Whoever measures is a bad parent: a process that has just
// run starts another half a millisecond sooner.
func starter(args []string) error {
	in := bufio.NewReader(os.Stdin)
	next := func() bool {
		_, err := in.ReadString('\n')
		return err == nil
	}
	for next() {
		cmd := exec.Command(args[0], args[1:]...)
		begun := time.Now()
		if err := cmd.Start(); err != nil {
			return err
		}
		fmt.Println(begun.UnixNano())
		more := next()
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
		if !more {
			break
		}
		fmt.Println("ended")
	}
	return nil
}

// hold keeps connections open, each of which was used once.
func hold(args []string) error {
	address := args[0]
	n, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	for range n {
		c, err := net.Dial("tcp", address)
		if err != nil {
			return err
		}
		defer c.Close()
		if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: bench\r\n\r\n"); err != nil {
			return err
		}
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, resp.Body)
		if err := errors.Join(err, resp.Body.Close()); err != nil {
			return err
		}
	}
	fmt.Println("held")
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}
