package ipc

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// TestMain fails when a test leaves a goroutine or a socket behind.
func TestMain(m *testing.M) {
	inherited := sockets() // standard output may be one
	code := m.Run()
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, "goroutines left:", err)
			code = 1
		}
		if left := sockets(); left > inherited {
			fmt.Fprintln(os.Stderr, "sockets left:", left-inherited)
			code = 1
		}
	}
	os.Exit(code)
}

// sockets counts the open ones; the runtime has none of its own.
func sockets() (n int) {
	fds, _ := os.ReadDir("/proc/self/fd")
	for _, fd := range fds {
		if target, _ := os.Readlink("/proc/self/fd/" + fd.Name()); strings.HasPrefix(target, "socket:") {
			n++
		}
	}
	return n
}

const deadline = 20 * time.Second // for an event that comes at once unless something is broken

// daemon is a running Server with its log, on a socket of its own.
type daemon struct {
	*Server
	log    *testLog
	path   string
	change []func(*Server)
	l      *net.UnixListener
	served chan error
}

// start runs a Server until the test ends. change may set it up before it serves.
func start(t testing.TB, change ...func(*Server)) *daemon {
	t.Helper()
	d := &daemon{log: newTestLog(), path: filepath.Join(t.TempDir(), "publish.sock"), change: change}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: d.path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	d.l = l
	d.resume(t, nil)
	t.Cleanup(func() {
		d.Close()
		if err := <-d.served; err != nil {
			t.Errorf("Serve: %v", err)
		}
		if n := d.log.following(); n != 0 {
			t.Errorf("%d tails are left open", n)
		}
		l.Close()
	})
	return d
}

// begin makes a Server that does not serve yet.
func (d *daemon) begin() {
	d.served = make(chan error, 1)
	d.Server = &Server{Broker: d.log, Version: "1.2.3"}
	for _, f := range d.change {
		f(d.Server)
	}
}

// suspend stops the Server and checks that nothing of it is left.
func (d *daemon) suspend(t testing.TB) []Suspended {
	t.Helper()
	all := d.Suspend()
	if err := <-d.served; err != nil {
		t.Fatalf("Serve: %v", err)
	}
	if n := d.log.following(); n != 0 {
		t.Fatalf("%d tails are left open", n)
	}
	return all
}

// resume begins another Server on the same listener, which takes the connections over.
func (d *daemon) resume(t testing.TB, all []Suspended) {
	t.Helper()
	d.begin()
	for _, s := range all {
		if err := d.Resume(s.FD, s.State); err != nil {
			t.Errorf("Resume: %v", err)
		}
	}
	server, served := d.Server, d.served
	go func() {
		served <- server.Serve(d.l)
		close(served) // suspend has read the error, or the end of the test does
	}()
}

// restart is what the daemon does: one Server after the other.
func (d *daemon) restart(t testing.TB) {
	t.Helper()
	d.resume(t, d.suspend(t))
}

// session is a connection that says what it expects, byte for byte.
type session struct {
	t testing.TB
	*net.UnixConn
	r *bufio.Reader
}

func (d *daemon) connect(t testing.TB) *session {
	t.Helper()
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: d.path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(deadline))
	return &session{t, conn, bufio.NewReader(conn)}
}

func (s *session) send(text string) {
	s.t.Helper()
	if _, err := io.WriteString(s, text); err != nil {
		s.t.Fatalf("send %.80q: %v", text, err)
	}
}

func (s *session) expect(text string) {
	s.t.Helper()
	got := make([]byte, len(text))
	n, err := io.ReadFull(s.r, got)
	if err != nil || string(got) != text {
		s.t.Fatalf("got  %.300q (%v)\nwant %.300q", got[:n], err, text)
	}
}

// line reads one line, without its end.
func (s *session) line() string {
	s.t.Helper()
	line, err := s.r.ReadString('\n')
	if err != nil {
		s.t.Fatalf("after %q: %v", line, err)
	}
	return strings.TrimSuffix(line, "\r\n")
}

// expectError reads an error that begins with text.
func (s *session) expectError(text string) {
	s.t.Helper()
	if line := s.line(); !strings.HasPrefix(line, "-"+text) {
		s.t.Fatalf("got %q, want the error %q", line, text)
	}
}

// expectBulk reads a bulk string.
func (s *session) expectBulk() string {
	s.t.Helper()
	var n int
	if _, err := fmt.Sscanf(s.line(), "$%d", &n); err != nil || n < 0 {
		s.t.Fatalf("not a bulk string: %v", err)
	}
	b := make([]byte, n+2)
	if _, err := io.ReadFull(s.r, b); err != nil {
		s.t.Fatal(err)
	}
	return string(b[:n])
}

// expectClosed reads to the end, where nothing more may come.
func (s *session) expectClosed() {
	s.t.Helper()
	b, err := io.ReadAll(s.r)
	if errors.Is(err, syscall.ECONNRESET) { // closed with input left over
		err = nil
	}
	if err != nil || len(b) > 0 {
		s.t.Fatalf("got %.200q (%v), want the end of the connection", b, err)
	}
}

// array is a command as an array of bulk strings.
func array(args ...string) string { return string(appendCommand(nil, args[0], args[1:]...)) }

// events is a logger whose lines a test can wait for.
func events() (*slog.Logger, <-chan string) {
	lines := make(chan string, 100)
	return slog.New(eventHandler(lines)), lines
}

type eventHandler chan string

func (eventHandler) Enabled(context.Context, slog.Level) bool { return true }
func (h eventHandler) WithAttrs([]slog.Attr) slog.Handler     { return h }
func (h eventHandler) WithGroup(string) slog.Handler          { return h }
func (h eventHandler) Handle(_ context.Context, r slog.Record) error {
	text := r.Message
	r.Attrs(func(a slog.Attr) bool { text += " " + a.String(); return true })
	h <- text
	return nil
}

func await(t testing.TB, lines <-chan string, part string) string {
	t.Helper()
	limit := time.After(deadline)
	for {
		select {
		case line := <-lines:
			if strings.Contains(line, part) {
				return line
			}
		case <-limit:
			t.Fatalf("nothing was logged with %q in it", part)
		}
	}
}
