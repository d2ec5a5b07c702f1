package packages

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"wscast/test/harness"
)

// buildPatience is for a build without a cache.
const buildPatience = 5 * time.Minute

// The versions that are built: that of the Makefile, and one that is higher than it will ever be.
const (
	first = ""
	later = "99.0"
)

// addition is what the configuration files of the later version have more.
const addition = "# Of a later version.\n"

// builds has the packages of this run.
type builds struct {
	mu       sync.Mutex
	dir      string
	sources  string            // a copy of the repository, which somebody may be working on meanwhile
	packages map[string]string // by kind and version
}

var built = builds{packages: map[string]string{}}

func (b *builds) remove() {
	if b.dir != "" {
		os.RemoveAll(b.dir)
	}
}

// build returns the path of a package, "deb" or "rpm", of a version.
func build(t *testing.T, kind, version string) string {
	t.Helper()
	built.mu.Lock()
	defer built.mu.Unlock()
	key := kind + version
	if built.packages[key] == "" {
		if built.dir == "" {
			var err error
			if built.dir, err = os.MkdirTemp("", "wscast-packages-"); err != nil {
				t.Fatal(err)
			}
			built.sources = filepath.Join(built.dir, "sources")
			copyTree(t, harness.Repository(t), built.sources)
		}
		built.packages[key] = makePackage(t, filepath.Join(built.dir, key), kind, version)
	}
	return built.packages[key]
}

// makePackage makes a package in a copy of the sources, with more in its environment.
func makePackage(t *testing.T, dir, kind, version string, environment ...string) string {
	t.Helper()
	harness.Find(t, "dpkg-buildpackage", "dpkg-dev")
	harness.Find(t, "dh", "debhelper")
	harness.Find(t, "rpmbuild", "rpm")
	copyTree(t, built.sources, dir)
	args := []string{"make", "-s", "-C", dir, kind}
	if version != first {
		args = append(args, "VERSION="+version)
		for _, name := range []string{"etc/wscast.toml", "etc/nginx/wscast.conf", "etc/nginx/wscast-http.conf"} {
			appendTo(t, filepath.Join(dir, name), addition)
		}
	}
	// Under make test, make would take over the variables of that one's command line.
	out := run(t, append([]string{"MAKEFLAGS=", "MFLAGS=", "MAKELEVEL="}, environment...), args...)
	name := strings.TrimSpace(out)
	if !strings.HasSuffix(name, "."+kind) {
		t.Fatalf("make %s prints %q, expected the path of one package", kind, out)
	}
	return filepath.Join(dir, name)
}

func copyTree(t *testing.T, from, to string) {
	t.Helper()
	if err := os.MkdirAll(to, 0o755); err != nil {
		t.Fatal(err)
	}
	run(t, nil, "sh", "-c", `tar -C "$1" --exclude=./.git --exclude=./bin --exclude=node_modules -cf - . | tar -C "$2" -xf -`, "copy", from, to)
}

func appendTo(t *testing.T, name, text string) {
	t.Helper()
	f, err := os.OpenFile(name, os.O_APPEND|os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteString(text)
		if closed := f.Close(); err == nil {
			err = closed
		}
	}
	if err != nil {
		t.Fatal(err)
	}
}

// run runs a program that may take long, with more in its environment, and returns its standard output.
func run(t *testing.T, environment []string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), buildPatience)
	defer cancel()
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env = append(os.Environ(), environment...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s: %v\n%s%s", strings.Join(args, " "), err, &out, &errs)
	}
	return out.String()
}

// Another directory, time, time zone, language and home make no difference.
func TestTwoBuildsHaveTheSameBytes(t *testing.T) {
	for _, kind := range []string{"deb", "rpm"} {
		t.Run(kind, func(t *testing.T) {
			one := build(t, kind, first)
			dir := filepath.Join(t.TempDir(), "a", "longer", "path")
			cache := strings.TrimSpace(run(t, nil, "go", "env", "GOCACHE"))
			modules := strings.TrimSpace(run(t, nil, "go", "env", "GOMODCACHE"))
			other := makePackage(t, dir, kind, first, "TZ=Pacific/Auckland", "LC_ALL=C.UTF-8", "HOME="+t.TempDir(), "GOCACHE="+cache, "GOMODCACHE="+modules)
			a, err := os.ReadFile(one)
			if err != nil {
				t.Fatal(err)
			}
			b, err := os.ReadFile(other)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(a, b) || filepath.Base(one) != filepath.Base(other) {
				t.Errorf("%s and %s differ: %s", one, other, differences(t, kind, one, other))
			}
		})
	}
}

// differences are the files that differ in two packages, for people to read.
func differences(t *testing.T, kind, one, other string) string {
	t.Helper()
	unpack := map[string]string{"deb": `dpkg-deb -R "$1" "$2"`, "rpm": `mkdir "$2" && cd "$2" && rpm2cpio "$1" | cpio -idm --quiet`}[kind]
	dir := t.TempDir()
	for i, file := range []string{one, other} {
		run(t, nil, "sh", "-c", unpack, "unpack", file, filepath.Join(dir, fmt.Sprint(i)))
	}
	return run(t, nil, "sh", "-c", `diff -rq "$1/0" "$1/1" || true`, "diff", dir)
}
