package upgrader

import (
	"fmt"
	"net"
	"syscall"
	"testing"
	"time"
)

func sockopt(t *testing.T, c syscall.Conn, level, name int) int {
	t.Helper()
	rc, err := c.SyscallConn()
	must(t, err)
	value := 0
	must(t, rc.Control(func(fd uintptr) { value, err = syscall.GetsockoptInt(int(fd), level, name) }))
	must(t, err)
	return value
}

// TestKeepAliveIsThatOfTheListenConfig in every generation: package net keeps
// it in the listener, not in the socket, so an inherited one has lost it.
func TestKeepAliveIsThatOfTheListenConfig(t *testing.T) {
	configs := map[string]*net.ListenConfig{
		"nil":     nil,
		"zero":    {},
		"period":  {KeepAlive: 77 * time.Second},
		"none":    {KeepAlive: -1},
		"all":     {KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 71 * time.Second, Interval: 7 * time.Second, Count: 3}},
		"partial": {KeepAlive: -1, KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 71 * time.Second}},
	}
	for name, lc := range configs {
		t.Run(name, func(t *testing.T) {
			bare := lc
			if bare == nil {
				bare = &net.ListenConfig{}
			}
			ln, err := bare.Listen(t.Context(), "tcp", "127.0.0.1:0")
			must(t, err)
			defer ln.Close()
			want := keepAliveOf(t, ln)
			u := newAlone(t, Options{ListenConfig: lc})
			l := listenAs(t, u, "main", "tcp", "127.0.0.1:0")
			must(t, u.Ready())
			if got := keepAliveOf(t, l); got != want {
				t.Errorf("generation 1: %s, want %s as package net does it", got, want)
			}
			heir := heirOf(t, u, Options{ListenConfig: lc})
			next := listenAs(t, heir, "main", "tcp", "127.0.0.1:0")
			take(t, u, heir)
			if got := keepAliveOf(t, next); got != want {
				t.Errorf("generation 2: %s, want %s as package net does it", got, want)
			}
		})
	}
}

// keepAliveOf describes a connection that ln accepts.
func keepAliveOf(t *testing.T, ln net.Listener) string {
	t.Helper()
	d, err := net.Dial("tcp", ln.Addr().String())
	must(t, err)
	defer d.Close()
	c, err := ln.Accept()
	must(t, err)
	defer c.Close()
	tc, ok := c.(*net.TCPConn)
	if !ok {
		t.Fatalf("Accept returns a %T, want a bare *net.TCPConn", c)
	}
	if sockopt(t, tc, syscall.SOL_SOCKET, syscall.SO_KEEPALIVE) == 0 {
		return "none"
	}
	return fmt.Sprintf("idle %d interval %d count %d",
		sockopt(t, tc, syscall.IPPROTO_TCP, syscall.TCP_KEEPIDLE),
		sockopt(t, tc, syscall.IPPROTO_TCP, syscall.TCP_KEEPINTVL),
		sockopt(t, tc, syscall.IPPROTO_TCP, syscall.TCP_KEEPCNT))
}

// TestSocketOptionsAreKept: they live in the socket, which is shared.
func TestSocketOptionsAreKept(t *testing.T) {
	set := func(level, name, value int) *net.ListenConfig {
		return &net.ListenConfig{Control: func(_, _ string, rc syscall.RawConn) error {
			var err error
			ctlErr := rc.Control(func(fd uintptr) { err = syscall.SetsockoptInt(int(fd), level, name, value) })
			if err == nil {
				err = ctlErr
			}
			return err
		}}
	}
	tests := map[string]struct {
		network     string
		level, name int
		value       int
	}{
		"TCP_DEFER_ACCEPT": {"tcp", syscall.IPPROTO_TCP, syscall.TCP_DEFER_ACCEPT, 7},
		"SO_RCVBUF":        {"udp", syscall.SOL_SOCKET, syscall.SO_RCVBUF, 65536},
		"SO_PRIORITY":      {"tcp", syscall.SOL_SOCKET, syscall.SO_PRIORITY, 3},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			u := newAlone(t, Options{ListenConfig: set(tt.level, tt.name, tt.value)})
			h, _ := hold(t, u, "main", tt.network, "127.0.0.1:0")
			want := sockopt(t, h, tt.level, tt.name)
			if want < tt.value {
				t.Fatalf("%d, want %d or more", want, tt.value)
			}
			for range 3 {
				heir := heirOf(t, u, Options{})
				next, _ := hold(t, heir, "main", tt.network, "127.0.0.1:0")
				take(t, u, heir)
				if got := sockopt(t, next, tt.level, tt.name); got != want {
					t.Errorf("generation %d: %d, want %d", heir.Generation(), got, want)
				}
				u = heir
			}
		})
	}
}
