package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"wscast/ipc"
)

func (d *daemon) expectMessages(t *testing.T, channel string, messages ...string) {
	t.Helper()
	got := d.await(t, len(messages))
	if len(got) != len(messages) {
		t.Fatalf("the log has %d messages, want %d", len(got), len(messages))
	}
	for i, want := range messages {
		if got[i].Channel != channel || string(got[i].Data) != want {
			t.Fatalf("message %d is %.80q on %s, want %.80q on %s", i, got[i].Data, got[i].Channel, want, channel)
		}
	}
}

func TestPublish(t *testing.T) {
	d := startDaemon(t)
	wscast(t, "not read", "publish", "--socket", d.socket, "default", "hello").expect(t, 0, "3\n")
	t.Setenv("WSCAST_SOCKET", d.socket)
	wscast(t, "not read", "publish", "default", "").expect(t, 0, "3\n")
	wscast(t, "not read", "publish", "default", "-5 °C").expect(t, 0, "3\n")
	wscast(t, "not read", "publish", "default", "--lines of text").expect(t, 0, "3\n")
	wscast(t, "not read", "publish", "--", "default", "--lines").expect(t, 0, "3\n")
	wscast(t, "not read", "publish", "-socket="+d.socket, "default", "-").expect(t, 0, "3\n")
	d.expectMessages(t, "default", "hello", "", "-5 °C", "--lines of text", "--lines", "-")
}

func TestPublishCountsReceivers(t *testing.T) {
	d := startDaemon(t)
	wscast(t, "", "publish", "--socket", d.socket, "nobody:here", "hello").expect(t, 0, "0\n")
}

func TestPublishStandardInput(t *testing.T) {
	d := startDaemon(t)
	t.Setenv("WSCAST_SOCKET", d.socket)
	binary := "\x00\xff\r\n line two\n\n"
	wscast(t, binary, "publish", "default").expect(t, 0, "3\n")
	wscast(t, "", "publish", "default").expect(t, 0, "3\n")
	d.expectMessages(t, "default", binary, "")
	wscastReading(t, iotest.ErrReader(errors.New("lost")), "publish", "default").
		expect(t, exitFailure, "", "wscast: cannot read standard input: lost\n")
}

func TestPublishWithID(t *testing.T) {
	d := startDaemon(t)
	t.Setenv("WSCAST_SOCKET", d.socket)
	for range 2 {
		wscast(t, "", "publish", "--id", "1", "default", "hello").expect(t, 0, "3\n")
		wscast(t, "from standard input", "publish", "-id=2", "default").expect(t, 0, "3\n")
	}
	for range 2 { // each with an id of its own
		wscast(t, "", "publish", "default", "hello").expect(t, 0, "3\n")
	}
	d.expectMessages(t, "default", "hello", "from standard input", "hello", "hello")

	for _, id := range []string{"", strings.Repeat("x", ipc.MaxID+1)} {
		wscast(t, "", "publish", "--id", id, "default", "hello").expect(t, exitUsage, "", "an id is 1 to 128 bytes")
	}
	wscast(t, "", "publish", "--id", "1", "--lines", "default").expect(t, exitUsage, "", "--id does not go with --lines")
}

// crashing stands before a daemon and is one that crashes before it has answered, the first few times.
func (d *daemon) crashing(t *testing.T, crashes int) (socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "crashing.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	var done sync.WaitGroup
	done.Go(func() {
		for n := 0; ; n++ {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			done.Go(func() {
				defer conn.Close()
				to, err := net.Dial("unix", d.socket)
				if err != nil {
					t.Error(err)
					return
				}
				defer to.Close()
				b := make([]byte, 64<<10)
				for k := 0; err == nil; {
					if k, err = conn.Read(b); err == nil {
						_, err = to.Write(b[:k])
					}
					if err == nil {
						k, err = to.Read(b)
					}
					if n < crashes {
						return
					}
					if err == nil {
						_, err = conn.Write(b[:k])
					}
				}
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		done.Wait()
	})
	return socket
}

// A message is published once, however often the daemon crashes before it answers.
func TestPublishOverCrashes(t *testing.T) {
	d := startDaemon(t)
	wscast(t, "", "publish", "--socket", d.crashing(t, 3), "default", "hello").expect(t, 0, "3\n")
	d.expectMessages(t, "default", "hello")

	patience := publishPatience
	publishPatience = 50 * time.Millisecond
	defer func() { publishPatience = patience }()
	r := wscast(t, "", "publish", "--socket", d.crashing(t, 1<<30), "default", "again")
	r.expect(t, exitFailure, "", "wscastd closed the connection", "50ms are over", "hint: it is not known", "publish it again with --id ")
	_, id, _ := strings.Cut(r.stderr, "--id ")
	id, _, _ = strings.Cut(id, " ")
	wscast(t, "", "publish", "--socket", d.socket, "--id", id, "default", "again").expect(t, 0, "3\n")
	d.expectMessages(t, "default", "hello", "again")
}

func TestPublishTooLong(t *testing.T) {
	d := startDaemon(t)
	t.Setenv("WSCAST_SOCKET", d.socket)
	d.server.SetMaxMessage(16)
	r := wscast(t, "", "publish", "default", strings.Repeat("x", 17))
	r.expect(t, exitFailure, "", "wscast: ", "16")
	d.expectMessages(t, "default")
}

// endless is an input without an end and without a newline.
type endless struct{}

func (endless) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}

func TestInputIsBounded(t *testing.T) {
	const limit = 100_000
	var stderr bytes.Buffer
	_, err := readMessage(streams{in: endless{}, err: &stderr}, limit)
	code := report(&stderr, err)
	result{code, "", stderr.String()}.
		expect(t, exitFailure, "", "standard input is longer than 100000 bytes", "hint: with --lines")
	longest := strings.Repeat("x", limit)
	message, err := readMessage(streams{in: strings.NewReader(longest), err: &stderr}, limit)
	if err != nil || string(message) != longest {
		t.Errorf("%d bytes, %v: want the longest message", len(message), err)
	}

	lines := lineReader{in: bufio.NewReader(strings.NewReader(longest + "\n")), limit: limit}
	if line, err := lines.next(); err != nil || string(line) != longest {
		t.Errorf("%d bytes, %v: want the longest line", len(line), err)
	}
	lines.in.Reset(strings.NewReader(longest + "x"))
	if _, err := lines.next(); err == nil {
		t.Error("a last line that is one byte too long is taken")
	}
	lines.in.Reset(endless{})
	if _, err := lines.next(); err == nil || !strings.Contains(err.Error(), "line 2 is longer than 100000 bytes") {
		t.Errorf("endless line: %v", err)
	}
}

func TestLines(t *testing.T) {
	d := startDaemon(t)
	t.Setenv("WSCAST_SOCKET", d.socket)
	long := strings.Repeat("long ", 40_000) // more than the reader's buffer
	wscast(t, "one\n\n two \r\n"+long+"\nlast", "publish", "--lines", "default").expect(t, 0, "")
	d.expectMessages(t, "default", "one", "", " two \r", long, "last")
}

func TestNoLines(t *testing.T) {
	d := startDaemon(t)
	wscast(t, "", "publish", "--lines", "--socket", d.socket, "default").expect(t, 0, "")
	d.expectMessages(t, "default")
}

func TestManyLines(t *testing.T) {
	d := startDaemon(t)
	var input strings.Builder
	var want []string
	for i := range 50_000 {
		want = append(want, fmt.Sprintf("line %d", i))
		fmt.Fprintln(&input, want[i])
	}
	wscast(t, input.String(), "publish", "--lines", "--socket", d.socket, "default").expect(t, 0, "")
	d.expectMessages(t, "default", want...)
}

func TestEachLineIsSentAtOnce(t *testing.T) {
	d := startDaemon(t)
	p := start(t, nil, "publish", "--lines", "--socket", d.socket, "default")
	for i := range 5 {
		p.send(fmt.Sprintf("line %d\n", i))
		d.await(t, i+1) // while the tool waits for the next line
	}
	p.stdin.Close()
	p.wait().expect(t, 0, "")
}

func TestRefusedLines(t *testing.T) {
	d := startDaemon(t)
	t.Setenv("WSCAST_SOCKET", d.socket)
	d.server.SetMaxMessage(8)
	wscast(t, "short\nmuch too long\nshort\n", "publish", "--lines", "default").
		expect(t, exitFailure, "", "wscast: line 2: ", "wscast: 1 of 3 lines were refused\n")
	d.expectMessages(t, "default", "short", "short")

	r := wscast(t, strings.Repeat("much too long\n", 1000), "publish", "--lines", "default")
	r.expect(t, exitFailure, "", "wscast: line 10: ", "wscast: 1000 of 1000 lines were refused\n")
	if n := strings.Count(r.stderr, "\n"); n != refusalsShown+2 {
		t.Errorf("%d lines on standard error:\n%s", n, r.stderr)
	}
}

// The next line may be an hour away: the loss is told when it happens.
func TestLinesWithoutDaemon(t *testing.T) {
	d := startDaemon(t)
	p := start(t, nil, "publish", "--lines", "--socket", d.socket, "default")
	p.send("one\n")
	d.await(t, 1)
	d.server.Close()
	p.send("two\n")
	p.wait().expect(t, exitFailure, "", "wscastd closed the connection", "hint: lines answered: 1; from line 2 on")
	d.expectMessages(t, "default", "one")
}

func TestShellQuote(t *testing.T) {
	for _, word := range []string{"", "plain", "two words", "it's", `$HOME "x" \`, "a\nb", "*", "~"} {
		out, err := exec.Command("sh", "-c", "printf %s "+shellQuote(word)).Output()
		if err != nil || string(out) != word {
			t.Errorf("%q: the shell reads %s as %q (%v)", word, shellQuote(word), out, err)
		}
	}
}

func TestTally(t *testing.T) {
	var stderr bytes.Buffer
	tally := lineTally{err: &stderr, lost: make(chan struct{})}
	gone := errors.New("gone")
	tally.answered(ipc.Answer{Index: 0})
	tally.answered(ipc.Answer{Index: 1, Err: &ipc.ReplyError{Text: "ERR no"}})
	tally.answered(ipc.Answer{Index: 2, Err: gone})
	tally.answered(ipc.Answer{Index: 3, Err: gone})
	<-tally.lost
	code := report(&stderr, tally.outcome(io.EOF))
	want := "wscast: line 2: no\nwscast: gone\nwscast: hint: lines answered: 2; from line 3 on it is not known what was published\n"
	if code != exitFailure || stderr.String() != want {
		t.Errorf("exit code %d, %q, want %q", code, stderr.String(), want)
	}
}

// One operation is one line, through the tool, the socket and the server, with its answer.
func BenchmarkLines(b *testing.B) {
	d := startDaemon(b)
	line := []byte(strings.Repeat("x", 127) + "\n")
	input := bytes.NewReader(bytes.Repeat(line, b.N))
	var output bytes.Buffer
	b.SetBytes(int64(len(line)))
	b.ResetTimer()
	code := run([]string{"publish", "--lines", "--socket", d.socket, "default"}, streams{in: input, out: &output, err: &output})
	if code != 0 || output.Len() > 0 || d.Head() != uint64(b.N) {
		b.Fatalf("exit code %d, %d of %d messages: %s", code, d.Head(), b.N, output.String())
	}
}

func FuzzLines(f *testing.F) {
	f.Add([]byte("one\ntwo\n"), 16)
	f.Add([]byte("\n\nlast"), 17)
	f.Add([]byte("longer than the buffer of the reader\nx\n"), 16)
	f.Add([]byte(""), 16)
	f.Fuzz(func(t *testing.T, input []byte, size int) {
		lines := lineReader{in: bufio.NewReaderSize(bytes.NewReader(input), max(16, size%4096)), limit: messageLimit}
		want := bytes.Split(input, []byte("\n"))
		if len(want[len(want)-1]) == 0 {
			want = want[:len(want)-1] // the input ends with a newline, or is empty
		}
		for i, w := range want {
			line, err := lines.next()
			if err != nil || !bytes.Equal(line, w) || lines.count != uint64(i+1) {
				t.Fatalf("line %d is %q (count %d, %v), want %q", i, line, lines.count, err, w)
			}
		}
		if line, err := lines.next(); err != io.EOF {
			t.Fatalf("%q (%v) after the end", line, err)
		}
	})
}
