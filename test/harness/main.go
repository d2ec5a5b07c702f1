package harness

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// Patience is how long anything that a test waits for may take before the test fails. It is far above what a loaded
// machine needs, since a test that fails for want of time says nothing about the program.
const Patience = 60 * time.Second

// Main runs the tests of a package and returns the exit code for os.Exit. The run fails as well when it leaves a
// goroutine or a file descriptor.
func Main(m *testing.M) int {
	before := openFiles()
	code := m.Run()
	built.remove()
	if code != 0 {
		return code
	}
	if err := goleak.Find(goleak.IgnoreAnyFunction("wscast/test/harness.(*keeper).run")); err != nil {
		fmt.Fprintf(os.Stderr, "harness: the tests leave %v\n", err)
		return 1
	}
	if left := newFiles(before, openFiles()); len(left) > 0 {
		fmt.Fprintf(os.Stderr, "harness: the tests leave open: %s\n", strings.Join(left, ", "))
		return 1
	}
	return code
}

// openFiles returns what the descriptors of this process refer to: number and target.
func openFiles() map[string]string {
	files := map[string]string{}
	entries, _ := os.ReadDir("/proc/self/fd")
	for _, e := range entries {
		if target, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil {
			files[e.Name()] = target
		}
	}
	return files
}

// newFiles returns what is in after and not in before. The runtime opens an epoll and an event descriptor at
// its first network operation and keeps them, and os a pidfd to find out whether it can.
func newFiles(before, after map[string]string) (left []string) {
	for fd, target := range after {
		if before[fd] == target || strings.HasPrefix(target, "anon_inode:[event") || target == "anon_inode:[pidfd]" {
			continue
		}
		left = append(left, fd+" "+target)
	}
	return left
}

// programs are the built wscastd and wscast of this run.
type programs struct {
	once sync.Once
	dir  string
	err  error
}

var built programs

// Program returns the path of a program of this repository, "wscastd" (with the race detector) or "wscast". They are built
// at the first call; go's cache makes that cheap for every package after the first.
func Program(t testing.TB, name string) string {
	t.Helper()
	built.once.Do(built.build)
	if built.err != nil {
		t.Fatal(built.err)
	}
	return filepath.Join(built.dir, name)
}

func (p *programs) build() {
	module, err := repository()
	if err != nil {
		p.err = err
		return
	}
	if p.dir, p.err = os.MkdirTemp("", "wscast-bin-"); p.err != nil {
		return
	}
	for _, args := range [][]string{{"-race", "./cmd/wscastd"}, {"./cmd/wscast"}} {
		args = append([]string{"build", "-C", module, "-o", p.dir + "/"}, args...)
		if out, err := exec.Command("go", args...).CombinedOutput(); err != nil {
			p.err = fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, out)
			return
		}
	}
}

func (p *programs) remove() {
	if p.dir != "" {
		os.RemoveAll(p.dir)
	}
}

// Find returns the path of a program that the test needs. A program that is not there fails the test with the Debian
// package that has it: a test that is skipped for a missing tool proves nothing.
func Find(t testing.TB, program, aptPackage string) string {
	t.Helper()
	if path, err := exec.LookPath(program); err == nil {
		return path
	}
	// Where Debian keeps programs of administration, which is not in every user's PATH.
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if path, err := exec.LookPath(filepath.Join(dir, program)); err == nil {
			return path
		}
	}
	t.Fatalf("%s is not installed: run test/install-deps, or apt-get install %s", program, aptPackage)
	return ""
}
