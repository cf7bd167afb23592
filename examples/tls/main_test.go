//go:build unix

package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/go-handover/handover/examples/internal/exampletest"
	"github.com/go-handover/handover/upgradertest"
)

func TestMain(m *testing.M) { upgradertest.Main(m, main) }

// start starts the server, and returns what trusts its certificate.
func start(t *testing.T, args ...string) (*upgradertest.Server, *tls.Config) {
	t.Helper()
	cert, key, trusted := certificate(t)
	control := upgradertest.SocketPath(t)
	s := upgradertest.Start(t, upgradertest.Spec{
		Args: append([]string{
			"-listen", "127.0.0.1:0", "-control", control, "-cert", cert, "-key", key, "-probation", "50ms",
		}, args...),
		ControlSocket: control,
	})
	return s, &tls.Config{RootCAs: trusted}
}

// certificate makes one for the loopback address.
func certificate(t *testing.T) (certFile, keyFile string, trusted *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	write := func(name, kind string, der []byte) string {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	trusted = x509.NewCertPool()
	trusted.AddCert(parsed)
	return write("cert.pem", "CERTIFICATE", der), write("key.pem", "PRIVATE KEY", keyDER), trusted
}

// resumes makes a request on a connection of its own, and reports whether its
// session is an earlier one, which client and server must agree on.
func resumes(t *testing.T, url string, config *tls.Config, generation int) bool {
	t.Helper()
	client := &http.Client{
		Transport: &http.Transport{TLSClientConfig: config, DisableKeepAlives: true},
		Timeout:   20 * time.Second,
	}
	resp, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	resumed := resp.TLS.DidResume
	if want := answer(generation, resumed); err != nil || string(got) != want {
		t.Fatalf("answer %q, %v; want %q", got, err, want)
	}
	return resumed
}

func TestClientsResumeAcrossUpgrades(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		version uint16
		resume  string
		want    bool
	}{
		{"TLS 1.3", tls.VersionTLS13, "-resume", true},
		{"TLS 1.2", tls.VersionTLS12, "-resume", true},
		{"TLS 1.3 without the keys", tls.VersionTLS13, "-resume=false", false},
		{"TLS 1.2 without the keys", tls.VersionTLS12, "-resume=false", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s, config := start(t, tt.resume)
			url := "https://" + s.Addr("https")
			config.MaxVersion, config.ClientSessionCache = tt.version, tls.NewLRUClientSessionCache(1)
			early := config.Clone() // comes back after the last upgrade only
			early.ClientSessionCache = tls.NewLRUClientSessionCache(1)
			for _, c := range []*tls.Config{config, early} {
				if resumes(t, url, c, 1) || !resumes(t, url, c, 1) {
					t.Error("before an upgrade: want one full handshake, and then a session that is resumed")
				}
			}
			for generation := 2; generation <= 4; generation++ {
				if err := s.Upgrade(t.Context()); err != nil {
					t.Fatal(err)
				}
				if got := resumes(t, url, config, generation); got != tt.want {
					t.Errorf("generation %d resumes: %t, want %t", generation, got, tt.want)
				}
			}
			if got := resumes(t, url, early, 4); got != tt.want {
				t.Errorf("generation 4 resumes a session of generation 1: %t, want %t", got, tt.want)
			}
			s.Stop()
		})
	}
}

func TestUpgradesLoseNothing(t *testing.T) {
	t.Parallel()
	s, config := start(t)
	url := "https://" + s.Addr("https")
	loads := map[string]*upgradertest.Load{
		"HTTP/1.1": upgradertest.LoadHTTP(t, url, upgradertest.HTTP{TLS: config}),
		"HTTP/2":   upgradertest.LoadHTTP(t, url, upgradertest.HTTP{TLS: config, HTTP2: true}),
	}
	for range exampletest.Upgrades {
		for _, load := range loads {
			load.Wait(20)
		}
		old := s.PID()
		if err := s.Upgrade(t.Context()); err != nil {
			t.Fatal(err)
		}
		s.WaitExit(old)
	}
	for name, load := range loads {
		load.Wait(20)
		r := load.Stop()
		t.Logf("%s: %s", name, r)
		r.MustBeClean(t)
	}
	s.Stop()
}
