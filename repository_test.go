package wscast

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// The rules of the repository. What is not in a table here is not allowed; who changes a table gives the reason in the
// commit.

// imports is which packages of this repository each of them may import. Everything points towards ipc and frame, which
// import nothing. bench and test stand aside: they use the built programs.
var imports = map[string][]string{
	".":                    {},
	"cmd/wscastd":          {"daemon"},
	"cmd/wscast":           {"ipc", "token"},
	"daemon":               {"daemon/loop", "daemon/survive", "daemon/msglog", "daemon/frame", "daemon/encode", "ipc", "token", "web", "daemon/failpoint"},
	"daemon/loop":          {"daemon/msglog", "daemon/frame", "daemon/encode", "daemon/survive", "daemon/failpoint"},
	"daemon/survive":       {"daemon/failpoint"},
	"daemon/survive/shelf": {},
	"daemon/encode":        {"daemon/frame"},
	"daemon/msglog":        {"daemon/frame", "daemon/failpoint"},
	"daemon/frame":         {},
	"daemon/failpoint":     {},
	"ipc":                  {},
	"token":                {},
	"web":                  {},
	"bench":                {"bench/plot"},
	"bench/plot":           {},
	"bench/hub":            {},
}

// homes is where each dependency may be used, a directory or a file, so that it can be replaced in one place. Tests may use
// all of them.
var homes = map[string][]string{
	"github.com/coreos/go-systemd/v22": {"daemon"},
	"github.com/BurntSushi/toml":       {"daemon/config.go"},
	"github.com/golang-jwt/jwt/v5":     {"token"},
	"github.com/gorilla/websocket":     {"daemon/handshake.go", "daemon/upgrade.go", "daemon/auth.go", "cmd/wscast", "bench"},
	"golang.org/x/sys":                 {"daemon", "ipc", "cmd/wscast", "bench"},
}

// unsafeFiles are those that see memory which the garbage collector does not own, or pass addresses to the kernel, and why.
var unsafeFiles = map[string]string{
	"daemon/loop/system.go":       "system calls without a word to the scheduler, which takes as long as the call",
	"daemon/survive/system.go":    "the same, for what each connection costs",
	"daemon/msglog/layout.go":     "structures in a mapped file, which outlives the process",
	"daemon/survive/table.go":     "the same",
	"daemon/survive/extension.go": "the same: a record that is something else",
	"ipc/rawio.go":                "reads and writes for Go's poller, without its buffers",
	"bench/load.go":               "a client of many connections, which is to cost less than what it measures",
}

// drawers are names of files and packages in which anything could be.
var drawers = []string{"util", "utils", "helper", "helpers", "common", "misc", "types", "base", "shared"}

// goFile is a parsed Go file.
type goFile struct {
	name string // from the root, with slashes
	*ast.File
}

func (f *goFile) dir() string  { return path.Dir(f.name) }
func (f *goFile) isTest() bool { return strings.HasSuffix(f.name, "_test.go") }

func (f *goFile) imports() (paths []string) {
	for _, i := range f.Imports {
		p, _ := strconv.Unquote(i.Path.Value) // the parser has
		paths = append(paths, p)
	}
	return paths
}

// goFiles are the Go files of this module.
func goFiles(t *testing.T) (files []*goFile) {
	t.Helper()
	err := filepath.WalkDir(".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() {
			_, module := os.Stat(filepath.Join(name, "go.mod"))
			hidden := strings.HasPrefix(entry.Name(), ".") || strings.HasPrefix(entry.Name(), "_")
			if name != "." && (module == nil || hidden || entry.Name() == "testdata") {
				return filepath.SkipDir // not of this module, as the go command has it
			}
			return nil
		}
		if strings.HasSuffix(name, ".go") {
			parsed, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ImportsOnly|parser.ParseComments)
			if err != nil {
				return err
			}
			files = append(files, &goFile{filepath.ToSlash(name), parsed})
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 20 {
		t.Fatalf("there are %d Go files: is this the root of the repository?", len(files))
	}
	return files
}

func TestImportDirection(t *testing.T) {
	for _, f := range goFiles(t) {
		allowed, known := imports[f.dir()]
		if !known {
			t.Errorf("%s: the package %s is in no row of imports", f.name, f.dir())
			continue
		}
		for _, p := range f.imports() {
			if ours, ok := strings.CutPrefix(p, "wscast/"); ok && !f.isTest() && !slices.Contains(allowed, ours) {
				t.Errorf("%s imports %s; %s may import %q", f.name, p, f.dir(), allowed)
			}
		}
	}
}

func TestDependenciesHaveOneHome(t *testing.T) {
	for _, f := range goFiles(t) {
		if f.isTest() {
			continue
		}
		for _, p := range f.imports() {
			if host, _, _ := strings.Cut(p, "/"); !strings.Contains(host, ".") {
				continue // the standard library, or ours
			}
			allowed := false
			for dependency, places := range homes {
				if !within(p, dependency) {
					continue
				}
				allowed = slices.ContainsFunc(places, func(place string) bool { return within(f.name, place) })
			}
			if !allowed {
				t.Errorf("%s imports %s, whose homes are %q", f.name, p, homes)
			}
		}
	}
}

// within tells whether a path is another one, or below it.
func within(name, place string) bool {
	return name == place || strings.HasPrefix(name, place+"/")
}

func TestUnsafeIsInFewFiles(t *testing.T) {
	for _, f := range goFiles(t) {
		imported, reason := slices.Contains(f.imports(), "unsafe"), unsafeFiles[f.name]
		if imported && !f.isTest() && reason == "" {
			t.Errorf("%s imports unsafe; it is for %q", f.name, slices.Sorted(maps.Keys(unsafeFiles)))
		}
		if reason != "" && !imported {
			t.Errorf("%s has a reason for unsafe, and does not import it", f.name)
		}
	}
}

func TestEveryPackageHasOneDoc(t *testing.T) {
	docs := make(map[string][]string)
	for _, f := range goFiles(t) {
		if f.isTest() {
			continue
		}
		docs[f.dir()] = append(docs[f.dir()], "")
		if f.Doc == nil {
			continue
		}
		docs[f.dir()] = append(docs[f.dir()], f.name)
		first := "Package " + f.Name.Name + " "
		if f.Name.Name == "main" {
			base := path.Base(f.dir())
			first = strings.ToUpper(base[:1]) + base[1:] + " "
		}
		if text := f.Doc.Text(); !strings.HasPrefix(text, first) && !strings.HasPrefix(text, "The "+path.Base(f.dir())+" ") {
			t.Errorf("%s: the documentation begins with %.30q, not with %q", f.name, text, first)
		}
	}
	for dir, files := range docs {
		if files = slices.DeleteFunc(files, func(name string) bool { return name == "" }); len(files) != 1 {
			t.Errorf("the documentation of package %s is in %q, not in one file", dir, files)
		}
	}
}

func TestFilesAreNoJunkDrawers(t *testing.T) {
	for _, f := range goFiles(t) {
		name := strings.TrimSuffix(strings.TrimSuffix(path.Base(f.name), ".go"), "_test")
		if slices.Contains(drawers, name) || slices.Contains(drawers, path.Base(f.dir())) || slices.Contains(drawers, f.Name.Name) {
			t.Errorf("%s: a file and a package are named after the one thing in them", f.name)
		}
	}
}
