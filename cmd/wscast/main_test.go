package main

import (
	"bufio"
	"bytes"
	"flag"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"wscast/ipc"
)

// asTool makes this test program be wscast, for the tests that need a process: signals, pipes, a terminal.
const asTool = "WSCAST_TEST_AS_TOOL"

// deadline is for what must happen at some time; it passes only when a test fails.
const deadline = 30 * time.Second

func TestMain(m *testing.M) {
	if os.Getenv(asTool) != "" {
		main()
	}
	os.Unsetenv("WSCAST_SOCKET")
	goleak.VerifyTestMain(m)
}

// result is what a finished run left.
type result struct {
	code           int
	stdout, stderr string
}

// wscast runs the tool in this process.
func wscast(t *testing.T, stdin string, args ...string) result {
	t.Helper()
	return wscastReading(t, strings.NewReader(stdin), args...)
}

func wscastReading(t *testing.T, stdin io.Reader, args ...string) result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	code := run(args, streams{in: stdin, out: &stdout, err: &stderr})
	return result{code, stdout.String(), stderr.String()}
}

// expect checks the exit code and standard output, and that standard error has each of the texts, or is
// empty if there are none.
func (r result) expect(t *testing.T, code int, stdout string, stderr ...string) {
	t.Helper()
	if r.code != code {
		t.Errorf("exit code %d, want %d", r.code, code)
	}
	if r.stdout != stdout {
		t.Errorf("standard output %q, want %q", r.stdout, stdout)
	}
	for _, text := range stderr {
		if !strings.Contains(r.stderr, text) {
			t.Errorf("standard error lacks %q", text)
		}
	}
	if len(stderr) == 0 && r.stderr != "" {
		t.Error("standard error is not empty")
	}
	for line := range strings.Lines(r.stderr) {
		if !strings.HasPrefix(line, "wscast: ") {
			t.Errorf("line on standard error without the name: %q", line)
		}
	}
	if t.Failed() {
		t.Fatalf("standard error: %s", r.stderr)
	}
}

// process is the tool running beside the test.
type process struct {
	*exec.Cmd
	t      *testing.T
	stdin  io.WriteCloser
	stdout *bufio.Reader
	pipe   io.Closer // the reading end of standard output
	stderr bytes.Buffer
	done   chan result
}

// start runs the tool as a process. env is added to the environment.
func start(t *testing.T, env []string, args ...string) *process {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return startCommand(t, env, exec.Command(exe, args...))
}

func startCommand(t *testing.T, env []string, cmd *exec.Cmd) *process {
	t.Helper()
	p := &process{Cmd: cmd, t: t, done: make(chan result, 1)}
	cmd.Env = append(append(os.Environ(), asTool+"=1"), env...)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	// Not StdoutPipe: Wait would close it under the reader.
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p.stdin, p.pipe, p.stdout = stdin, r, bufio.NewReader(r)
	cmd.Stdout, cmd.Stderr = w, &p.stderr
	err = cmd.Start()
	w.Close()
	if err != nil {
		r.Close()
		t.Fatal(err)
	}
	timer := time.AfterFunc(deadline, func() { cmd.Process.Kill() })
	exited := make(chan struct{})
	go func() {
		defer close(exited)
		cmd.Wait()
		timer.Stop()
		p.done <- result{code: cmd.ProcessState.ExitCode(), stderr: p.stderr.String()}
	}()
	t.Cleanup(func() {
		cmd.Process.Kill()
		<-exited
		stdin.Close()
		r.Close()
	})
	return p
}

// send writes to the tool's standard input.
func (p *process) send(text string) {
	p.t.Helper()
	if _, err := io.WriteString(p.stdin, text); err != nil {
		p.t.Fatal(err)
	}
}

// line reads the next line of standard output, with its newline.
func (p *process) line() string {
	p.t.Helper()
	line, err := p.stdout.ReadString('\n')
	if err != nil {
		p.t.Fatalf("no line on standard output: %v; got %q, standard error %q", err, line, (<-p.done).stderr)
	}
	return line
}

// wait reads the rest of standard output and waits for the end.
func (p *process) wait() result {
	p.t.Helper()
	rest, _ := io.ReadAll(p.stdout)
	r := <-p.done
	r.stdout = string(rest)
	return r
}

// memoryLog is the Broker of these tests: a log that never forgets, and numbers of clients by channel.
type memoryLog struct {
	clients map[string]int

	mu       sync.Mutex
	ids      map[string]bool
	info     []ipc.Section
	grown    *sync.Cond // or a tail closed
	messages []ipc.Message
}

func (l *memoryLog) Publish(channel, message, id []byte) (clients int, again bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if key := string(channel) + "\x00" + string(id); len(id) > 0 {
		if l.ids[key] {
			return l.clients[string(channel)], true, nil
		}
		l.ids[key] = true
	}
	l.messages = append(l.messages, ipc.Message{Channel: string(channel), Data: bytes.Clone(message), Seq: uint64(len(l.messages) + 1)})
	l.grown.Broadcast()
	return l.clients[string(channel)], false, nil
}

func (l *memoryLog) Flush() {}

func (l *memoryLog) Clients(channel string) int { return l.clients[channel] }
func (l *memoryLog) Channels() []string         { return nil }

func (l *memoryLog) Info() []ipc.Section {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.info
}

func (l *memoryLog) Head() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return uint64(len(l.messages))
}

func (l *memoryLog) Tail() ipc.Tail { return l.TailFrom(l.Head()) }

func (l *memoryLog) TailFrom(seq uint64) ipc.Tail { return &memoryTail{log: l, next: seq} }

// await waits until the log has n messages and returns them.
func (l *memoryLog) await(t *testing.T, n int) []ipc.Message {
	t.Helper()
	late := false
	timer := time.AfterFunc(deadline, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		late = true
		l.grown.Broadcast()
	})
	defer timer.Stop()
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.messages) < n && !late {
		l.grown.Wait()
	}
	if late {
		t.Fatalf("the log has %d messages, want %d", len(l.messages), n)
	}
	return l.messages
}

type memoryTail struct {
	log    *memoryLog
	next   uint64
	closed bool
}

func (r *memoryTail) Next(want func(string) bool) (ipc.Message, error) {
	r.log.mu.Lock()
	defer r.log.mu.Unlock()
	for {
		for r.next == uint64(len(r.log.messages)) && !r.closed {
			r.log.grown.Wait()
		}
		if r.closed {
			return ipc.Message{}, ipc.ErrClosed
		}
		if r.next > uint64(len(r.log.messages)) {
			return ipc.Message{}, ipc.ErrBehind
		}
		m := r.log.messages[r.next]
		r.next++
		if want(m.Channel) {
			return m, nil
		}
	}
}

func (r *memoryTail) Seen() uint64 { return r.next }

func (r *memoryTail) Close() {
	r.log.mu.Lock()
	defer r.log.mu.Unlock()
	r.closed = true
	r.log.grown.Broadcast()
}

// daemon is what stands for wscastd: the real server of the publish socket, on a log in memory.
type daemon struct {
	*memoryLog
	server *ipc.Server
	socket string
}

func startDaemon(t testing.TB) *daemon {
	t.Helper()
	log := &memoryLog{clients: map[string]int{"default": 3}, ids: make(map[string]bool)}
	log.grown = sync.NewCond(&log.mu)
	d := &daemon{
		memoryLog: log,
		server:    &ipc.Server{Broker: log, Version: "1.2.3"},
		socket:    filepath.Join(t.TempDir(), "publish.sock"),
	}
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: d.socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- d.server.Serve(listener) }()
	t.Cleanup(func() {
		d.server.Close()
		if err := <-served; err != nil {
			t.Error(err)
		}
		listener.Close()
	})
	return d
}

func TestCommandLine(t *testing.T) {
	for _, c := range []struct {
		args   string
		stderr []string
	}{
		{"frobnicate", []string{`unknown command "frobnicate"`, "hint: wscast help"}},
		{"--socket /tmp/x publish default hello", []string{"unknown flag --socket", "hint: the command comes first"}},
		{"publish", []string{"CHANNEL is missing", "hint: as in: wscast publish default hello"}},
		{"publish --lin default", []string{"-lin", "hint: wscast help publish"}},
		{"publish --socket", []string{"needs an argument", "hint: wscast help publish"}},
		{"publish two+words hello", []string{`"two+words" cannot be a channel`, "hint: a channel has 1 to 128 letters"}},
		{"publish --lines default hello", []string{"MESSAGE does not go with --lines"}},
		{"publish default it's me", []string{"2 arguments after CHANNEL", `hint: quote it: wscast publish default 'it'\''s me'`}},
		{"publish default --lines", []string{"flag --lines after an argument", "hint: flags go before CHANNEL"}},
		{"publish default hello --socket=/tmp/x", []string{"flag --socket=/tmp/x after an argument"}},
		{"publish default -h", []string{"flag -h after an argument"}},
		{"subscribe", []string{"CHANNEL is missing"}},
		{"subscribe a b*", []string{`"b*" cannot be a channel`}},
		{"listen", []string{"one URL is needed"}},
		{"listen ws://a ws://b", []string{"one URL is needed"}},
		{"listen ws://a --origin", []string{"needs an argument"}},
		{"status all", []string{`there is "all"`}},
		{"version all", []string{"takes no arguments"}},
		{"help frobnicate", []string{`unknown command "frobnicate"`}},
		{"help publish subscribe", []string{"help takes one command"}},
	} {
		t.Run(c.args, func(t *testing.T) {
			wscast(t, "", strings.Fields(c.args)...).expect(t, exitUsage, "", c.stderr...)
		})
	}
}

func TestNoCommand(t *testing.T) {
	r := wscast(t, "")
	if r.code != exitUsage || r.stdout != "" || r.stderr != overview() {
		t.Errorf("got %+v, want the overview on standard error and exit code %d", r, exitUsage)
	}
}

func TestHelp(t *testing.T) {
	for _, args := range [][]string{{"help"}, {"-h"}, {"--help"}} {
		wscast(t, "", args...).expect(t, 0, overview())
	}
	for _, c := range commands {
		if !strings.Contains(overview(), "\n  "+c.name+" ") {
			t.Errorf("the overview lacks %s", c.name)
		}
		text := c.usage()
		for _, args := range [][]string{{"help", c.name}, {c.name, "-h"}, {c.name, "--help"}} {
			wscast(t, "", args...).expect(t, 0, text)
		}
		if !strings.HasPrefix(text, "Usage: wscast "+c.name) {
			t.Errorf("help of %s begins with %.40q", c.name, text)
		}
		for line := range strings.Lines(text) {
			if len([]rune(line)) > 100 {
				t.Errorf("help of %s: line of %d characters: %s", c.name, len([]rune(line)), line)
			}
		}
		flags := c.flagSet()
		c.setup(flags)
		flags.VisitAll(func(f *flag.Flag) {
			if !strings.Contains(text, "\n  --"+f.Name+" ") {
				t.Errorf("help of %s lacks --%s", c.name, f.Name)
			}
		})
	}
}

func TestVersion(t *testing.T) {
	for _, arg := range []string{"version", "--version", "-version"} {
		r := wscast(t, "", arg)
		if r.code != 0 || r.stderr != "" || !strings.HasPrefix(r.stdout, "wscast "+version+" ") || strings.Count(r.stdout, "\n") != 1 {
			t.Errorf("%s: %+v", arg, r)
		}
	}
}

// A package sets these two names; a variable of another name would be ignored by the linker without a word.
func TestLinkerSetsVersionAndSocket(t *testing.T) {
	exe := filepath.Join(t.TempDir(), "wscast")
	socket := filepath.Join(t.TempDir(), "none.sock")
	build := exec.Command("go", "build", "-ldflags", "-X main.version=9.8.7 -X main.defaultSocket="+socket, "-o", exe, ".")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if out, err := exec.Command(exe, "version").CombinedOutput(); err != nil || !strings.HasPrefix(string(out), "wscast 9.8.7 ") {
		t.Errorf("version: %v: %s", err, out)
	}
	if out, err := exec.Command(exe, "status").CombinedOutput(); err == nil || !strings.Contains(string(out), socket) {
		t.Errorf("status: %v: %s", err, out)
	}
}

func TestNoDaemon(t *testing.T) {
	absent := filepath.Join(t.TempDir(), "publish.sock")
	// A socket file whose owner has died without removing it.
	stale := filepath.Join(t.TempDir(), "stale.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	for _, args := range [][]string{{"publish", "default", "hello"}, {"publish", "--lines", "default"}, {"subscribe", "default"}, {"status"}} {
		t.Setenv("WSCAST_SOCKET", absent)
		wscast(t, "", args...).expect(t, exitFailure, "",
			"wscast: cannot reach wscastd at "+absent+": no such file or directory\n", "wscast: hint: ", "WSCAST_SOCKET")
		t.Setenv("WSCAST_SOCKET", stale)
		wscast(t, "", args...).expect(t, exitFailure, "",
			"wscast: cannot reach wscastd at "+stale+": connection refused\n", "wscast: hint: ")
	}
}

func TestOutputFull(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	var stderr bytes.Buffer
	code := run([]string{"version"}, streams{in: strings.NewReader(""), out: full, err: &stderr})
	result{code, "", stderr.String()}.expect(t, exitFailure, "", "wscast: cannot write to standard output: no space left on device\n")
}
