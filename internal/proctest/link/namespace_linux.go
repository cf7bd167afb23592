package link

import (
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"syscall"
)

// Namespace is a network of its own. What is in it sees no device but its
// loopback and its end of the link.
type Namespace struct {
	// Addr is its address on the link.
	Addr netip.Addr

	calls  chan func() // closed to leave the namespace
	device *os.File
}

// enter makes a namespace. There is one until leave, and as long as there are
// processes in it.
func enter(addr netip.Addr) (*Namespace, error) {
	n := &Namespace{Addr: addr, calls: make(chan func())}
	made := make(chan error)
	go inhabit(n.calls, made)
	if err := <-made; err != nil {
		return nil, err
	}
	return n, nil
}

// inhabit runs calls on a thread that is in a new namespace. The thread is
// never unlocked, so it ends with its goroutine instead of running others in
// the wrong network.
func inhabit(calls <-chan func(), made chan<- error) {
	runtime.LockOSThread()
	if syscall.Gettid() == syscall.Getpid() {
		// The main thread outlives its goroutines. As long as this one
		// holds it, the next one gets another.
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			inhabit(calls, made)
		}()
		<-ended
		runtime.UnlockOSThread()
		return
	}
	if err := syscall.Unshare(syscall.CLONE_NEWNET); err != nil {
		made <- fmt.Errorf("unshare the network: %w", err)
		return
	}
	made <- nil
	for call := range calls {
		call()
	}
}

// Do calls f in the namespace: sockets that it opens and processes that it
// starts are there for life. It must return, and start no goroutine that does
// such things.
func (n *Namespace) Do(f func() error) error {
	result := make(chan error, 1)
	n.calls <- func() { result <- f() }
	return <-result
}

func (n *Namespace) leave() { close(n.calls) }
