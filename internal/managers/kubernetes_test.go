//go:build linux

package managers

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestKubernetesManifest: podman stands for the kubelet, as far as it knows the
// fields. The probes are asked by the test, where the kubelet would.
func TestKubernetesManifest(t *testing.T) {
	t.Parallel()
	installed(t, "podman", "podman", "runc", "catatonit")
	installed(t, "curl", "curl")
	h := newHome(t)
	e := newEngine(t)
	limits := filepath.Join(h.dir, "containers.conf")
	// More is not to be had on a machine that is a container itself.
	const conf = "[containers]\ndefault_ulimits = [\"nofile=20000:20000\", \"nproc=32768:32768\"]\n"
	if err := os.WriteFile(limits, []byte(conf), 0o644); err != nil {
		t.Fatal(err)
	}
	manifest := h.contrib("kubernetes/app.yaml")
	t.Cleanup(func() { h.podman(e, "pod", "rm", "--all", "--force", "--time", "10") })
	run(t, "env", slices.Concat([]string{"CONTAINERS_CONF=" + limits, "podman"}, e.args,
		[]string{"play", "kube", "--network", "none", manifest})...)

	const name = "app-pod-0-app"
	pid := func() string {
		return strings.TrimSpace(h.podman(e, "inspect", "--format", "{{.State.Pid}}", name))
	}
	first := pid()
	// inside asks the server for a path, and returns the status code.
	inside := func(path string) string {
		said, _ := try(t, "nsenter", "--net", "--target", first, // it fails as long as nobody listens
			"curl", "--silent", "--output", "/dev/null", "--write-out", "%{http_code}", "http://127.0.0.1:8080"+path)
		return said
	}
	until(t, "the readiness probe succeeds", func() bool { return inside("/healthz/ready") == "200" })
	before := inside("/healthz/live")
	h.podman(e, "exec", name, "/usr/local/bin/upgradectl", "-pidfile", "/run/app/app.pid", "upgrade")
	if after := inside("/healthz/live"); before != "200" || after != "200" {
		t.Errorf("the liveness probe gets %s before the upgrade and %s after it", before, after)
	}
	if got := inside("/healthz/ready"); got != "200" {
		t.Errorf("the readiness probe gets %s after the upgrade", got)
	}
	if got := pid(); got != first {
		t.Errorf("process 1 was %s, and is %s now", first, got)
	}
	h.podman(e, "stop", "--time", "30", name)
	if code := strings.TrimSpace(h.podman(e, "inspect", "--format", "{{.State.ExitCode}}", name)); code != "0" {
		t.Errorf("the container exits %s\n%s", code, h.podman(e, "logs", name))
	}
}
