package wscast

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// installed is every file that make install writes, with its mode. What packages have is this list.
var installed = []string{
	"644 /etc/wscast/wscast.toml",
	"644 PREFIX/lib/systemd/system/wscast-publish.socket",
	"644 PREFIX/lib/systemd/system/wscast.service",
	"644 PREFIX/lib/systemd/system/wscast.socket",
	"644 PREFIX/lib/sysusers.d/wscast.conf",
	"644 PREFIX/share/bash-completion/completions/wscast",
	"644 PREFIX/share/doc/wscast/CHANGELOG.md",
	"644 PREFIX/share/doc/wscast/README.md",
	"644 PREFIX/share/doc/wscast/protocol.txt",
	"644 PREFIX/share/fish/vendor_completions.d/wscast.fish",
	"644 PREFIX/share/man/man1/wscast.1",
	"644 PREFIX/share/man/man5/wscast.toml.5",
	"644 PREFIX/share/man/man7/wscast.7",
	"644 PREFIX/share/man/man8/wscastd.8",
	"644 PREFIX/share/wscast/nginx/wscast-http.conf",
	"644 PREFIX/share/wscast/nginx/wscast.conf",
	"644 PREFIX/share/wscast/web/wscast.d.ts",
	"644 PREFIX/share/wscast/web/wscast.js",
	"644 PREFIX/share/wscast/web/wscast.mjs",
	"644 PREFIX/share/zsh/site-functions/_wscast",
	"755 PREFIX/bin/wscast",
	"755 PREFIX/sbin/wscastd",
}

// patience is how long anything that is started here may take, a build without a cache included.
const patience = 3 * time.Minute

// makeInstall runs make install, with further variables as NAME=VALUE, into a directory of the test's, which it returns.
func makeInstall(t *testing.T, prefix string, variables ...string) (root string) {
	t.Helper()
	if _, err := exec.LookPath("make"); err != nil {
		t.Fatalf("%v: install the package make", err)
	}
	root = t.TempDir()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "make", append([]string{"-s", "install", "DESTDIR=" + root, "PREFIX=" + prefix}, variables...)...)
	// Under make test, make would take over the variables of that one's command line.
	cmd.Env = append(os.Environ(), "MAKEFLAGS=", "MFLAGS=", "MAKELEVEL=")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", cmd, err, out)
	}
	return root
}

func TestInstall(t *testing.T) {
	for _, prefix := range []string{"/usr", "/usr/local"} {
		t.Run(prefix, func(t *testing.T) {
			root := makeInstall(t, prefix)
			expectFiles(t, root, prefix, installed)
			unitFitsFiles(t, root, prefix)
			pagesFitFiles(t, root, prefix)
		})
	}
}

// Packages have nginx find its files by itself, and the same ones beside them for who has changed those.
func TestInstallForNginx(t *testing.T) {
	root := makeInstall(t, "/usr", "NGINXDIR=/etc/nginx")
	expectFiles(t, root, "/usr", append([]string{"644 /etc/nginx/conf.d/wscast.conf", "644 /etc/nginx/snippets/wscast.conf"}, installed...))
	for name, original := range map[string]string{"conf.d/wscast.conf": "wscast-http.conf", "snippets/wscast.conf": "wscast.conf"} {
		if read(t, root+"/etc/nginx/"+name) != read(t, root+"/usr/share/wscast/nginx/"+original) {
			t.Errorf("%s is not %s", name, original)
		}
	}
}

// expectFiles: these files are there, with their modes, and no others.
func expectFiles(t *testing.T, root, prefix string, files []string) {
	t.Helper()
	var got, want []string
	err := filepath.WalkDir(root, func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		info, err := entry.Info()
		if err == nil {
			got = append(got, fmt.Sprintf("%o %s", info.Mode(), strings.TrimPrefix(name, root)))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		want = append(want, strings.Replace(file, "PREFIX", prefix, 1))
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("make install PREFIX=%s writes\n%s\nwant\n%s", prefix, strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// unitFitsFiles: the unit starts the program that was installed, with the configuration that was.
func unitFitsFiles(t *testing.T, root, prefix string) {
	unit := read(t, root+prefix+"/lib/systemd/system/wscast.service")
	start := regexp.MustCompile(`(?m)^ExecStart=(\S+) --config (\S+)$`).FindStringSubmatch(unit)
	if start == nil {
		t.Fatalf("the unit has no ExecStart= with --config:\n%s", unit)
	}
	if start[1] != prefix+"/sbin/wscastd" || start[2] != "/etc/wscast/wscast.toml" {
		t.Errorf("the unit has %q", start[0])
	}
	if shipped := strings.Replace(read(t, "systemd/wscast.service"), "/usr/sbin/", prefix+"/sbin/", 1); unit != shipped {
		t.Errorf("make install has changed more of the unit than the path of the program:\n%s", unit)
	}
}

// pagesFitFiles: the man pages name files where they are.
func pagesFitFiles(t *testing.T, root, prefix string) {
	paths := regexp.MustCompile(`/usr/[\w./-]*\w|/etc/wscast/[\w.]*\w`)
	pages, err := filepath.Glob(root + prefix + "/share/man/man?/*")
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, page := range pages {
		for _, name := range paths.FindAllString(read(t, page), -1) {
			found++
			if _, err := os.Stat(root + name); err != nil {
				t.Errorf("%s names %s, which is not installed", strings.TrimPrefix(page, root), name)
			}
		}
	}
	if found == 0 {
		t.Errorf("the pages %q name no file", pages)
	}
}

// The packages are of the version that the programs are, and name the modules that are in them.
func TestPackagesFitSources(t *testing.T) {
	version := regexp.MustCompile(`(?m)^VERSION = (\S+)$`).FindStringSubmatch(read(t, "Makefile"))
	spec := read(t, "packaging/rpm/wscast.spec")
	for name, expression := range map[string]string{
		"packaging/debian/changelog":                `\Awscast \((\S+)-\d+\) `,
		"packaging/rpm/wscast.spec":                 `(?m)^Version: +(\S+)$`,
		"packaging/rpm/wscast.spec, its %changelog": `(?m)^%changelog\n\* .* - (\S+)-\d+$`,
	} {
		file, _, _ := strings.Cut(name, ",")
		if got := regexp.MustCompile(expression).FindStringSubmatch(read(t, file)); got == nil || got[1] != version[1] {
			t.Errorf("%s is of version %q, the Makefile of %q", name, got, version)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	list := exec.CommandContext(ctx, "go", "list", "-deps", "-f", "{{with .Module}}{{if .Version}}{{.Path}} {{.Version}}{{end}}{{end}}", "./cmd/...")
	out, err := list.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v\n%s", list, err, out)
	}
	modules := slices.Compact(slices.Sorted(strings.Lines(string(out))))
	var bundled []string
	for _, match := range regexp.MustCompile(`(?m)^Provides: +bundled\(golang\((\S+)\)\) = (\S+)$`).FindAllStringSubmatch(spec, -1) {
		bundled = append(bundled, match[1]+" v"+match[2]+"\n")
	}
	slices.Sort(bundled)
	if !slices.Equal(bundled, modules) {
		t.Errorf("the spec says that it bundles\n%swant\n%s", strings.Join(bundled, ""), strings.Join(modules, ""))
	}
}

func read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
