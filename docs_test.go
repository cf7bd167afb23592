package handover_test

import (
	"go/format"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// The documents make claims about the code. These tests check those that a
// machine can.

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// documents returns the text of every Markdown file by its path.
func documents(t *testing.T) map[string]string {
	t.Helper()
	docs := map[string]string{}
	for _, pattern := range []string{"*.md", "docs/*.md", "docs/*/*.md"} {
		paths, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range paths {
			docs[path] = read(t, path)
		}
	}
	return docs
}

// section returns the part of a document under a heading.
func section(t *testing.T, text, heading string) string {
	t.Helper()
	_, rest, found := strings.Cut(text, "\n## "+heading+"\n")
	if !found {
		t.Fatalf("no section %q", heading)
	}
	part, _, _ := strings.Cut(rest, "\n## ")
	return part
}

func TestQuickStartBuilds(t *testing.T) {
	_, rest, _ := strings.Cut(section(t, read(t, "README.md"), "Quick start"), "```go\n")
	program, _, found := strings.Cut(rest, "```\n")
	if !found {
		t.Fatal("no program")
	}
	if n := strings.Count(program, "\n"); n > 30 {
		t.Errorf("it has %d lines, want 30 at most", n)
	}
	formatted, err := format.Source([]byte(program))
	if err != nil {
		t.Fatal(err)
	}
	if string(formatted) != program {
		t.Errorf("want it as gofmt writes it:\n%s", formatted)
	}
	dir := t.TempDir()
	source := filepath.Join(dir, "main.go")
	if err := os.WriteFile(source, []byte(program), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"vet", source}, {"build", "-o", filepath.Join(dir, "app"), source}} {
		if out, err := exec.CommandContext(t.Context(), "go", args...).CombinedOutput(); err != nil {
			t.Errorf("go %s: %v\n%s", args[0], err, out)
		}
	}
}

// TestExampleOfTestingRuns: what the page tells users to write does pass.
func TestExampleOfTestingRuns(t *testing.T) {
	dir := t.TempDir()
	args := []string{"test", "-count=1"}
	for _, name := range []string{"main.go", "main_test.go"} {
		_, rest, _ := strings.Cut(read(t, "docs/testing.md"), "`"+name+"`:\n\n```go\n")
		source, _, found := strings.Cut(rest, "```\n")
		if !found {
			t.Fatalf("no %s", name)
		}
		if formatted, err := format.Source([]byte(source)); err != nil || string(formatted) != source {
			t.Errorf("%s: %v, want it as gofmt writes it:\n%s", name, err, formatted)
		}
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(source), 0o644); err != nil {
			t.Fatal(err)
		}
		args = append(args, path)
	}
	if out, err := exec.CommandContext(t.Context(), "go", args...).CombinedOutput(); err != nil {
		t.Errorf("go test: %v\n%s", err, out)
	}
}

var testName = regexp.MustCompile(`\b(?:Test|Fuzz|Benchmark|Example)[A-Z_]\w*`)

// TestNamedTestsExist: a document that names a test names one that is there.
func TestNamedTestsExist(t *testing.T) {
	there := map[string]bool{}
	declared := regexp.MustCompile(`(?m)^func (\w+)\(\w* ?\*?(?:testing\.[TBF])?\)`)
	err := filepath.WalkDir(".", func(path string, _ fs.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, "_test.go") {
			for _, m := range declared.FindAllStringSubmatch(read(t, path), -1) {
				there[m[1]] = true
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	program := regexp.MustCompile("(?s)```go\n.*?\n```")
	for path, text := range documents(t) {
		for _, name := range testName.FindAllString(program.ReplaceAllString(text, ""), -1) {
			if !there[name] {
				t.Errorf("%s names %s, which does not exist", path, name)
			}
		}
	}
}

func TestEachGuaranteeNamesATest(t *testing.T) {
	rows := 0
	for line := range strings.Lines(section(t, read(t, "README.md"), "Guarantees")) {
		if !regexp.MustCompile(`^\| \d+ \|`).MatchString(line) {
			continue
		}
		if rows++; !testName.MatchString(line) {
			t.Errorf("no test: %s", line)
		}
	}
	if rows == 0 {
		t.Error("no guarantees")
	}
}

// TestLinksLeadSomewhere: to a file that is there, and in it to a heading.
func TestLinksLeadSomewhere(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^):]*)\)`)
	for path, text := range documents(t) {
		for _, m := range link.FindAllStringSubmatch(text, -1) {
			file, anchor, _ := strings.Cut(m[1], "#")
			if file != "" {
				if _, err := os.Stat(filepath.Join(filepath.Dir(path), file)); err != nil {
					t.Errorf("%s: %v", path, err)
				}
				continue
			}
			heading := strings.ReplaceAll(anchor, "-", " ")
			if !regexp.MustCompile(`(?im)^#+ ` + regexp.QuoteMeta(heading) + `$`).MatchString(text) {
				t.Errorf("%s: no heading for #%s", path, anchor)
			}
		}
	}
}

// TestFilesOfUpgraderAreDescribed: the list in the design has each file once.
func TestFilesOfUpgraderAreDescribed(t *testing.T) {
	text := section(t, read(t, "docs/design.md"), "Packages and arrows")
	paths, err := filepath.Glob("upgrader/*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		name := filepath.Base(path)
		if regexp.MustCompile(`_(test|unix|other|linux)\.go$|^(doc|errors|upgrader)\.go$`).MatchString(name) {
			continue
		}
		if strings.Count(text, "`"+name+"`") != 1 {
			t.Errorf("want %s in the list", name)
		}
	}
	for _, m := range regexp.MustCompile("(?m)`(\\w+\\.go)`").FindAllStringSubmatch(text, -1) {
		if !slices.Contains(paths, filepath.Join("upgrader", m[1])) {
			t.Errorf("%s does not exist", m[1])
		}
	}
}

// TestLimitsAreDescribed: every limit of the source is in the design's table.
func TestLimitsAreDescribed(t *testing.T) {
	text := section(t, read(t, "docs/design.md"), "Limits")
	constant := regexp.MustCompile(`(?m)^(?:const )?\t?(\w+(?:Timeout|Wait|Look|Pause|Retries)|Default\w+) += \d*.*(?:time\.|\d)`)
	found := 0
	for _, pattern := range []string{"upgrader/*.go", "internal/wire/*.go"} {
		paths, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range paths {
			if strings.HasSuffix(path, "_test.go") {
				continue
			}
			for _, m := range constant.FindAllStringSubmatch(read(t, path), -1) {
				found++
				name := strings.TrimPrefix(m[1], "Default")
				if name != "MaxDraining" && !strings.Contains(text, "`"+name+"`") {
					t.Errorf("%s: %s is not in the table", path, name)
				}
			}
		}
	}
	if found < 15 {
		t.Errorf("only %d limits found", found)
	}
}

// TestExitCodesOfDeployAreDescribed: the README has those of deploy.sh -h.
func TestExitCodesOfDeployAreDescribed(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "sh", "scripts/deploy.sh", "-h").Output()
	if err != nil {
		t.Skipf("sh scripts/deploy.sh: %v", err)
	}
	_, usage, _ := strings.Cut(string(out), "Exit codes:\n")
	codes := regexp.MustCompile(`(?m)^  (\d)  (\w+ ?\w*)`).FindAllStringSubmatch(usage, -1)
	table := section(t, read(t, "README.md"), "Operate it")
	for _, m := range codes {
		if !strings.Contains(table, "| "+m[1]+" | "+m[2]) {
			t.Errorf("exit code %s is %q: not so in the README", m[1], m[2])
		}
	}
	if got := strings.Count(table, "\n| ") - 1; got != len(codes) || got == 0 {
		t.Errorf("the README has %d exit codes, deploy.sh %d", got, len(codes))
	}
}

// TestArrowsPointDownward: what imports what.
func TestArrowsPointDownward(t *testing.T) {
	const module = "github.com/go-handover/handover"
	list := func(args ...string) []string {
		t.Helper()
		out, err := exec.CommandContext(t.Context(), "go", append([]string{"list"}, args...)...).Output()
		if err != nil {
			t.Fatalf("go list: %v", err)
		}
		return strings.Fields(string(out))
	}
	allowed := map[string][]string{
		"httpgrace":     {},
		"internal/wire": {},
		"upgradertest": {
			"golang.org/x/sys/", "github.com/kardianos/osext", module + "/internal/", module + "/upgrader",
		},
		"internal/fd": {"golang.org/x/sys/"},
		"upgrader": {
			"golang.org/x/sys/", "github.com/kardianos/osext", module + "/internal/fd", module + "/internal/supervise", module + "/internal/wire",
		},
	}
	for pkg, may := range allowed {
		for _, dep := range list("-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}", "./"+pkg) {
			if dep != module+"/"+pkg && !slices.ContainsFunc(may, func(prefix string) bool { return strings.HasPrefix(dep, prefix) }) {
				t.Errorf("%s depends on %s", pkg, dep)
			}
		}
	}
	for _, line := range list("-f", `{{$p := .ImportPath}}{{range .Imports}}{{$p}}:{{.}}{{"\n"}}{{end}}`, "./...") {
		importer, imported, _ := strings.Cut(line, ":")
		if strings.HasPrefix(imported, "golang.org/x/sys/") && importer != module+"/internal/fd" {
			t.Errorf("%s imports %s", importer, imported)
		}
	}
}
