package link

import (
	"errors"
	"fmt"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"
)

const delay = 5 * time.Millisecond

// path is a pump between two in-memory devices. Its end is that of in.
func path(t *testing.T) (in io.WriteCloser, out io.Reader, ended <-chan error) {
	t.Helper()
	in, from := net.Pipe()
	to, out := net.Pipe()
	result := make(chan error, 1)
	go func() {
		result <- pump(from, to, delay)
		to.Close()
	}()
	return in, out, result
}

func TestPacketsArriveWhenTheyAreDueInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in, out, ended := path(t)
		begun := time.Now()
		sent := []time.Duration{0, 0, time.Millisecond, 3 * time.Millisecond, delay, 17 * time.Millisecond}
		go func() {
			defer in.Close()
			for i, at := range sent {
				time.Sleep(at - time.Since(begun))
				fmt.Fprintf(in, "packet %d", i)
			}
		}()
		buf := make([]byte, 100)
		for i, at := range sent {
			n, err := out.Read(buf)
			if want := fmt.Sprintf("packet %d", i); err != nil || string(buf[:n]) != want {
				t.Fatalf("%q %v, want %q", buf[:n], err, want)
			}
			if took := time.Since(begun) - at; took != delay {
				t.Errorf("packet %d took %v", i, took)
			}
		}
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// A late packet is followed by those that are due, without another delay.
func TestDelayIsNotAddedUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in, out, ended := path(t)
		for range 3 {
			in.Write([]byte("packet"))
		}
		in.Close()
		time.Sleep(20 * delay) // the device takes nothing
		late := time.Now()
		for range 3 {
			if _, err := out.Read(make([]byte, 100)); err != nil {
				t.Fatal(err)
			}
		}
		if d := time.Since(late); d != 0 {
			t.Errorf("three late packets take another %v", d)
		}
		<-ended
	})
}

// A sender that outruns the path waits, and loses nothing.
func TestPathHasRoomForSoManyPackets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in, out, ended := path(t)
		const n = 2 * room
		sent := 0
		go func() {
			defer in.Close()
			for ; sent < n; sent++ {
				fmt.Fprint(in, sent)
			}
		}()
		time.Sleep(delay)
		synctest.Wait()
		// One more is in the hands of each of send and deliver.
		if sent != room+2 {
			t.Errorf("%d packets are under way, want %d", sent, room+2)
		}
		buf := make([]byte, 100)
		for i := range n {
			l, err := out.Read(buf)
			if err != nil || string(buf[:l]) != fmt.Sprint(i) {
				t.Fatalf("%q %v, want %d", buf[:l], err, i)
			}
		}
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

type broken struct{ err error }

func (b broken) Write([]byte) (int, error) { return 0, b.err }

// A device that takes nothing does not keep the pump from its end.
func TestErrorOfADeviceIsReported(t *testing.T) {
	for err, want := range map[error]bool{io.ErrShortWrite: true, net.ErrClosed: true, io.EOF: false} {
		synctest.Test(t, func(t *testing.T) {
			in, from := net.Pipe()
			go func() {
				defer in.Close()
				for range 2 * room {
					in.Write([]byte("packet"))
				}
			}()
			if got := pump(from, broken{err}, delay); errors.Is(got, err) != want {
				t.Errorf("%v, of a device that says %v", got, err)
			}
		})
	}
}
