package main

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"wscast/ipc"
)

// awaitSubscriber publishes "ready?" until the tool is among the receivers, then "go", and reads the tool's
// output up to that. prefix is what the tool puts before a message, end what comes after it.
func (d *daemon) awaitSubscriber(t *testing.T, p *process, channel, prefix, end string) *ipc.Client {
	t.Helper()
	client, err := ipc.Dial(d.socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	for receivers := 0; receivers == 0; {
		if receivers, err = client.Publish(channel, []byte("ready?")); err != nil {
			t.Fatal(err)
		}
		select {
		case r := <-p.done:
			t.Fatalf("the tool has ended: %+v", r)
		default:
		}
	}
	publish(t, client, channel, "go")
	line := p.line()
	for line == prefix+"ready?"+end {
		line = p.line()
	}
	if line != prefix+"go"+end {
		t.Fatalf("line %q, want %q", line, prefix+"go"+end)
	}
	return client
}

func publish(t *testing.T, client *ipc.Client, channel, message string) {
	t.Helper()
	if _, err := client.Publish(channel, []byte(message)); err != nil {
		t.Fatal(err)
	}
}

func expectLine(t *testing.T, p *process, want string) {
	t.Helper()
	if got := p.line(); got != want {
		t.Fatalf("line %q, want %q", got, want)
	}
}

func TestSubscribe(t *testing.T) {
	d := startDaemon(t)
	p := start(t, nil, "subscribe", "--socket", d.socket, "news")
	client := d.awaitSubscriber(t, p, "news", "", "\n")
	publish(t, client, "news", "hello")
	expectLine(t, p, "hello\n")
	publish(t, client, "other", "not for news")
	publish(t, client, "news", "with a newline\n")
	publish(t, client, "news", "")
	publish(t, client, "news", "\x00\x1b[2J\xff")
	expectLine(t, p, "with a newline\n")
	expectLine(t, p, "\n")
	expectLine(t, p, "\x00\x1b[2J\xff\n")
}

func TestSubscribeSeveral(t *testing.T) {
	d := startDaemon(t)
	p := start(t, []string{"WSCAST_SOCKET=" + d.socket}, "subscribe", "news", "system")
	client := d.awaitSubscriber(t, p, "system", "system\t", "\n")
	publish(t, client, "news", "one")
	expectLine(t, p, "news\tone\n")
	publish(t, client, "system", "two\n")
	expectLine(t, p, "system\ttwo\n")
}

func TestSubscribePattern(t *testing.T) {
	d := startDaemon(t)
	p := start(t, nil, "subscribe", "sensors:*", "--pattern", "--socket", d.socket)
	client := d.awaitSubscriber(t, p, "sensors:kitchen", "sensors:kitchen\t", "\n")
	publish(t, client, "sensor", "no")
	publish(t, client, "sensors:hall", "19.5")
	expectLine(t, p, "sensors:hall\t19.5\n")
}

func TestSubscribeEndsWithDaemon(t *testing.T) {
	d := startDaemon(t)
	p := start(t, nil, "subscribe", "--socket", d.socket, "news")
	d.awaitSubscriber(t, p, "news", "", "\n")
	d.server.Close()
	p.wait().expect(t, exitFailure, "", "wscastd closed the connection")
}

// `wscast subscribe news | head -n 1`
func TestReaderOfOutputGoes(t *testing.T) {
	d := startDaemon(t)
	p := start(t, nil, "subscribe", "--socket", d.socket, "news")
	client := d.awaitSubscriber(t, p, "news", "", "\n")
	p.pipe.Close()
	publish(t, client, "news", "for nobody")
	p.expectBrokenPipe()
}

// expectBrokenPipe waits for the quiet end that every Unix tool has when nobody reads it any more.
func (p *process) expectBrokenPipe() {
	p.t.Helper()
	r := <-p.done
	if s := p.ProcessState.Sys().(syscall.WaitStatus); !s.Signaled() || s.Signal() != syscall.SIGPIPE {
		p.t.Errorf("ended with %v, want SIGPIPE", p.ProcessState)
	}
	if r.stderr != "" {
		p.t.Errorf("standard error: %s", r.stderr)
	}
}

// The same where SIGPIPE is ignored, as in a systemd service.
func TestReaderOfOutputGoesWithoutSIGPIPE(t *testing.T) {
	d := startDaemon(t)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := startCommand(t, nil, exec.Command("sh", "-c", `trap '' PIPE; exec "$0" subscribe --socket "$1" news`, exe, d.socket))
	client := d.awaitSubscriber(t, p, "news", "", "\n")
	p.pipe.Close()
	publish(t, client, "news", "for nobody")
	p.expectBrokenPipe()
}

func TestSubscribeToTerminal(t *testing.T) {
	d := startDaemon(t)
	p, terminal := startOnTerminal(t, "subscribe", "--socket", d.socket, "news")
	p.stdout.Reset(terminal)
	client := d.awaitSubscriber(t, p, "news", "", "\r\n") // the terminal's own \r
	publish(t, client, "news", "\x1b]0;title\a Grüße\n")
	expectLine(t, p, `\x1b]0;title\x07 Grüße`+"\r\n")
}

// startOnTerminal runs the tool with its output on a new terminal, of which it returns the other side.
func startOnTerminal(t *testing.T, args ...string) (*process, *os.File) {
	t.Helper()
	terminal, name := openTerminal(t)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// The shell opens the terminal: that side is then open in the tool alone.
	cmd := exec.Command("sh", append([]string{"-c", `terminal=$1; shift; exec "$0" "$@" >"$terminal"`, exe, name}, args...)...)
	return startCommand(t, nil, cmd), terminal
}

// openTerminal makes a pseudo-terminal, pty(7): the returned file reads what is written to the named one.
func openTerminal(t *testing.T) (*os.File, string) {
	t.Helper()
	f, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	conn, err := f.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	number := 0
	conn.Control(func(fd uintptr) {
		if err = unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0); err == nil {
			number, err = unix.IoctlGetInt(int(fd), unix.TIOCGPTN)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return f, fmt.Sprintf("/dev/pts/%d", number)
}

func TestVisible(t *testing.T) {
	for text, want := range map[string]string{
		"plain":                  "plain",
		"tab\tand\nline":         "tab\tand\nline",
		"\r\x00\x1b\x7f":         `\x0d\x00\x1b\x7f`,
		"\u0085":                 `\xc2\x85`, // a control character of C1
		"half \xe2\x82":          `half \xe2\x82`,
		"family 👩\u200d👧 \ufffd": "family 👩\u200d👧 \ufffd",
	} {
		if got := string(appendVisible(nil, []byte(text))); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

func FuzzVisible(f *testing.F) {
	f.Add([]byte("text \x1b[31m\xff"))
	f.Add([]byte("\xc2\x9b31m"))
	f.Fuzz(func(t *testing.T, text []byte) {
		got := string(appendVisible(nil, text))
		for _, r := range got {
			if r < ' ' && r != '\n' && r != '\t' || r >= 0x7f && r < 0xa0 {
				t.Fatalf("%q lets %q through", text, r)
			}
		}
		if strings.ToValidUTF8(got, "") != got {
			t.Fatalf("%q makes %q, which is not UTF-8", text, got)
		}
	})
}
