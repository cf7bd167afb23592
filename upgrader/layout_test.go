package upgrader

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/go-handover/handover"

// pkg is what go list says of a package.
type pkg struct {
	ImportPath string
	Standard   bool
	Imports    []string
	Deps       []string
}

// listPackages returns all packages of the module and what they depend on,
// without tests, on one system.
func listPackages(t *testing.T, goos string) map[string]pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-deps", "-json=ImportPath,Standard,Imports,Deps", "./...")
	cmd.Dir = ".."
	cmd.Env = append(cmd.Environ(), "GOOS="+goos, "CGO_ENABLED=0")
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Skip("go list:", err)
	}
	packages := map[string]pkg{}
	decoder := json.NewDecoder(stdout)
	for {
		var p pkg
		err := decoder.Decode(&p)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		packages[p.ImportPath] = p
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("go list: %v\n%s", err, &stderr)
	}
	return packages
}

// rule says what a package of this module may import: nothing but the standard
// library, and what begins like one of these. An empty string is all.
type rule struct {
	pkg  string // this package, and those below it if it ends in a slash
	may  []string
	deep bool // also by way of others
}

var rules = []rule{
	{pkg: "internal/fd", may: []string{"golang.org/x/sys"}, deep: true},
	{pkg: "internal/wire", deep: true},
	{pkg: "internal/supervise", may: []string{module + "/internal/fd"}},
	{pkg: "internal/supervise", may: []string{module + "/internal/fd", "golang.org/x/sys"}, deep: true},
	{pkg: "upgrader", may: []string{module + "/internal/fd", module + "/internal/supervise", module + "/internal/wire", "github.com/kardianos/osext"}},
	{pkg: "upgrader", may: []string{module + "/internal/fd", module + "/internal/supervise", module + "/internal/wire", "github.com/kardianos/osext", "golang.org/x/sys"}, deep: true},
	{pkg: "internal/client", may: []string{module + "/internal/wire", module + "/upgrader"}},
	{pkg: "internal/client/", may: []string{module + "/internal/wire", module + "/upgrader"}},
	{pkg: "httpgrace", deep: true},
	{pkg: "internal/site", may: []string{module + "/httpgrace"}, deep: true},
	{pkg: "upgradertest", may: []string{module + "/internal/client", module + "/internal/proctest/", module + "/internal/wire", module + "/upgrader"}},
	{pkg: "internal/proctest", may: []string{module + "/internal/proctest/"}},
	{pkg: "internal/proctest/", may: []string{""}},
	{pkg: "internal/managers", may: []string{module + "/internal/proctest"}},
	{pkg: "internal/managers/", may: []string{""}},
	{pkg: "internal/bench", may: []string{""}},
	{pkg: "internal/bench/", may: []string{""}},
	{pkg: "cmd/", may: []string{""}},
}

// TestDependenciesPointDownwards: the arrows between our packages, and to those
// of others.
func TestDependenciesPointDownwards(t *testing.T) {
	for _, goos := range []string{"linux", "darwin", "windows"} {
		t.Run(goos, func(t *testing.T) {
			packages := listPackages(t, goos)
			if _, ok := packages[module+"/upgrader"]; !ok {
				t.Fatal("go list does not know this package")
			}
			for path, p := range packages {
				ours, found := strings.CutPrefix(path, module+"/")
				if !found {
					continue
				}
				ruled := false
				for _, r := range rules {
					if ours == r.pkg || strings.HasSuffix(r.pkg, "/") && strings.HasPrefix(ours, r.pkg) {
						ruled = true
						r.check(t, packages, p)
					}
				}
				if !ruled {
					t.Errorf("%s: there is no rule for it", ours)
				}
			}
		})
	}
}

func (r rule) check(t *testing.T, packages map[string]pkg, p pkg) {
	t.Helper()
	imports := p.Imports
	if r.deep {
		imports = p.Deps
	}
	for _, i := range imports {
		allowed := slices.ContainsFunc(r.may, func(prefix string) bool { return strings.HasPrefix(i, prefix) })
		if !packages[i].Standard && !allowed {
			t.Errorf("%s imports %s", p.ImportPath, i)
		}
	}
}

// TestOneImporterOfSys: what is done with bare descriptors has one place.
func TestOneImporterOfSys(t *testing.T) {
	for _, goos := range []string{"linux", "darwin", "freebsd", "windows"} {
		for path, p := range listPackages(t, goos) {
			sys := slices.ContainsFunc(p.Imports, func(i string) bool { return strings.HasPrefix(i, "golang.org/x/sys") })
			if sys && strings.HasPrefix(path, module) && path != module+"/internal/fd" {
				t.Errorf("on %s, %s imports golang.org/x/sys", goos, path)
			}
		}
	}
}

// TestNothingImportsACommand, and what only tests need is needed by tests only,
// of which upgradertest is for those of others.
func TestNothingImportsACommand(t *testing.T) {
	for path, p := range listPackages(t, "linux") {
		for _, i := range p.Imports {
			for _, leaf := range []string{"/cmd/", "/internal/proctest", "/internal/bench", "/internal/managers", "/upgradertest"} {
				forTests := leaf == "/internal/proctest" && path == module+"/upgradertest"
				if strings.HasPrefix(i, module+leaf) && !strings.HasPrefix(path, module+leaf) && !forTests {
					t.Errorf("%s imports %s", path, i)
				}
			}
		}
	}
}
