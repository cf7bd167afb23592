// Package upgradertest tests a server that embeds package upgrader, with real
// processes: a test starts it, upgrades it, lets it crash, rolls it back and
// stops it, under clients that count what they lose.
//
//	func TestMain(m *testing.M) { upgradertest.Main(m, main) }
//
//	func TestUpgradeLosesNothing(t *testing.T) {
//		control := upgradertest.SocketPath(t)
//		s := upgradertest.Start(t, upgradertest.Spec{
//			Args:          []string{"-listen", "127.0.0.1:0", "-control", control},
//			ControlSocket: control,
//		})
//		load := upgradertest.LoadHTTP(t, "http://"+s.Addr("http"), upgradertest.HTTP{})
//		load.Wait(100)
//		if err := s.Upgrade(t.Context()); err != nil {
//			t.Fatal(err)
//		}
//		load.Wait(100)
//		load.Stop().MustBeClean(t)
//		s.Stop()
//	}
//
// What a test is told comes from the server's control socket, or from its
// pidfile if it has none. What the processes print is the test's, and is logged
// if the test fails. At the end of a test no process is left: those that have
// not ended by themselves are killed, and the test fails.
//
// Functions and methods that take or keep a testing.TB may end the test
// (FailNow), so they are for the test's own goroutine, unless they say
// otherwise. Each of their waits has a limit, Spec.Timeout or DefaultTimeout.
//
// Linux is complete. Elsewhere on Unix helper processes of a server are not
// found; on Windows, where nothing can be upgraded, Start skips the test.
package upgradertest
