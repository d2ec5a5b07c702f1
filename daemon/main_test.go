package daemon

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// TestMain fails when a test leaves a goroutine or a descriptor behind. In a process that a test has started for it, it is
// that test's service instead.
func TestMain(m *testing.M) {
	if os.Getenv(inheritor) != "" {
		os.Exit(inherit())
	}
	before := descriptors()
	code := m.Run()
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, "goroutines left:", err)
			code = 1
		}
		for _, fd := range descriptors() {
			if !slices.Contains(before, fd) {
				fmt.Fprintln(os.Stderr, "descriptor left:", fd)
				code = 1
			}
		}
	}
	os.Exit(code)
}

// descriptors are the open ones, number and target, without those that the runtime opens once for itself: an epoll and an
// event descriptor at the first network operation, a pidfd at the first process.
func descriptors() (open []string) {
	entries, _ := os.ReadDir("/proc/self/fd")
	for _, e := range entries {
		target, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err == nil && (target != "anon_inode:[eventpoll]" || e.Name() != runtimeEpoll) && target != "anon_inode:[eventfd]" && target != "anon_inode:[pidfd]" {
			open = append(open, e.Name()+" "+target)
		}
	}
	return open
}

// runtimeEpoll is the runtime's: the first one of the process.
var runtimeEpoll = func() string {
	r, w, err := os.Pipe() // uses the poller
	if err != nil {
		panic(err)
	}
	r.Close()
	w.Close()
	entries, _ := os.ReadDir("/proc/self/fd")
	for _, e := range entries {
		if target, _ := os.Readlink("/proc/self/fd/" + e.Name()); target == "anon_inode:[eventpoll]" {
			return e.Name()
		}
	}
	panic("the runtime has no epoll descriptor")
}()

// patience is how long a test waits for what comes at once unless something is broken.
const patience = 20 * time.Second

// manager is a service manager: what a daemon tells it arrives on said, one message an entry.
type manager struct {
	said chan string
	seen []string
}

// newManager listens on NOTIFY_SOCKET until the test ends.
func newManager(t testing.TB) *manager {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	m := &manager{said: make(chan string, 1000)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, 4096)
		for {
			n, err := conn.Read(b)
			if err != nil {
				return
			}
			// It keeps no descriptors: they are closed as they come, which is also the answer to BARRIER=1.
			if said := string(b[:n]); !strings.HasPrefix(said, "FDSTORE") && said != "BARRIER=1" {
				m.said <- said
			}
		}
	}()
	t.Cleanup(func() { conn.Close(); <-done })
	t.Setenv("NOTIFY_SOCKET", path)
	return m
}

// expect returns the next message that has the line; the ones before it may be what systemd is told at any time, no
// others.
func (m *manager) expect(t testing.TB, line string) string {
	t.Helper()
	for {
		select {
		case said := <-m.said:
			m.seen = append(m.seen, said)
			if slices.Contains(strings.Split(said, "\n"), line) {
				return said
			}
			if !strings.HasPrefix(said, "STATUS=") && said != "WATCHDOG=1" {
				t.Fatalf("expected %s, the daemon said %q", line, said)
			}
		case <-time.After(patience):
			t.Fatalf("expected %s, the daemon has said %q", line, m.seen)
		}
	}
}

// drain returns what has been said and not expected.
func (m *manager) drain() (said []string) {
	for {
		select {
		case text := <-m.said:
			said = append(said, text)
		default:
			return said
		}
	}
}

// within waits for what a function does.
func within(t testing.TB, what string, do func() error) {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- do() }()
	select {
	case err := <-done:
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	case <-time.After(patience):
		t.Fatal(errors.New(what + ": nothing happens"))
	}
}
