package msglog

import (
	"bytes"
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"wscast/daemon/frame"
)

// TestMain fails when a test leaves a goroutine, a log's descriptor or a log's mapping behind. With publisherEnv set the
// program is the child of TestKilled.
func TestMain(m *testing.M) {
	if os.Getenv(publisherEnv) != "" {
		publish()
	}
	lockPatience = 50 * time.Millisecond
	code := m.Run()
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, "goroutines left:", err)
			code = 1
		}
		if left := descriptors() + mappings(); left > 0 {
			fmt.Fprintln(os.Stderr, "descriptors and mappings of logs left:", left)
			code = 1
		}
	}
	os.Exit(code)
}

// logName is the file of every log of these tests that has one.
const logName = "log of a test"

// descriptors counts those of logs that are open.
func descriptors() (n int) {
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		panic(err)
	}
	for _, fd := range fds {
		if target, _ := os.Readlink("/proc/self/fd/" + fd.Name()); strings.Contains(target, "/memfd:wscast-log") || strings.Contains(target, logName) {
			n++
		}
	}
	return n
}

// mappings counts those of logs, of which a log has two.
func mappings() (n int) {
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		panic(err)
	}
	return strings.Count(string(maps), "/memfd:wscast-log") + strings.Count(string(maps), logName)
}

const deadline = 30 * time.Second // for an event that comes at once unless something is broken

// create makes a log for one test.
func create(t testing.TB, o Options) *Log {
	t.Helper()
	l, err := Create(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			return // goroutines of the test may still be at work in the memory
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// small is the smallest log: 1 MiB of frames, 4096 entries.
func small(t testing.TB) *Log {
	t.Helper()
	return create(t, Options{Size: MinSize, Channels: 8})
}

// duplicate is what a process inherits: another descriptor of the same memory.
func duplicate(t testing.TB, f *os.File) *os.File {
	t.Helper()
	raw, err := f.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var fd int
	if cerr := raw.Control(func(old uintptr) { fd, err = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0) }); cerr != nil || err != nil {
		t.Fatal(cerr, err)
	}
	return os.NewFile(uintptr(fd), f.Name())
}

func appendTo(t testing.TB, l *Log, channel, message []byte) (clients int) {
	t.Helper()
	clients, err := l.Append(channel, message, frame.Binary)
	if err != nil {
		t.Fatal(err)
	}
	return clients
}

// reader is one that nobody wakes: its test knows when to look.
func reader(t testing.TB, l *Log) *Reader {
	t.Helper()
	r, err := l.NewReader(func() {})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func join(t testing.TB, r *Reader, channel string) (*Channel, uint64) {
	t.Helper()
	ch, cursor, err := r.Join([]byte(channel))
	if err != nil {
		t.Fatal(err)
	}
	return ch, cursor
}

// client is what a loop has of one: a cursor and a stream that takes as much as it is told to.
type client struct {
	r      *Reader
	ch     *Channel
	cursor uint64
	skip   int
	run    Run
	stream []byte
}

func newClient(t testing.TB, r *Reader, channel string) *client {
	t.Helper()
	ch, cursor := join(t, r, channel)
	return &client{r: r, ch: ch, cursor: cursor}
}

// send offers the client one run, of which it takes at most room bytes. It returns how much it took.
func (c *client) send(t testing.TB, limit, slices, room int) int {
	t.Helper()
	if !c.r.Run(&c.run, c.ch, c.cursor, c.skip, limit, slices) {
		t.Fatalf("channel %s: what comes after message %d is not in the log", c.ch.name, c.cursor)
	}
	n := 0
	for _, b := range c.run.Slices {
		b = b[:min(len(b), room-n)]
		c.stream = append(c.stream, b...)
		n += len(b)
	}
	c.cursor, c.skip, _ = c.r.Advance(c.ch, c.cursor, c.skip, n)
	return n
}

// sendAll sends the client everything.
func (c *client) sendAll(t testing.TB) {
	t.Helper()
	for c.send(t, 64<<10, 16, 1<<30) > 0 {
	}
}

// received takes the first whole frame out of the stream.
func (c *client) received() (op frame.Opcode, payload []byte, ok bool) {
	for _, header := range []int{2, 4, 10} {
		if len(c.stream) < header {
			return 0, nil, false
		}
		size := header
		switch b := c.stream[1]; {
		case b < 126 && header == 2:
			size += int(b)
		case b == 126 && header == 4:
			size += int(c.stream[2])<<8 + int(c.stream[3])
		case b == 127 && header == 10:
			size += int(c.stream[6])<<24 + int(c.stream[7])<<16 + int(c.stream[8])<<8 + int(c.stream[9])
		default:
			continue
		}
		if len(c.stream) < size {
			return 0, nil, false
		}
		op, payload, ok = frame.Payload(c.stream[:size])
		c.stream = c.stream[size:]
		return op, payload, ok
	}
	return 0, nil, false
}

// expect sends the client everything, which must be these messages.
func (c *client) expect(t testing.TB, messages ...string) {
	t.Helper()
	c.sendAll(t)
	for i, want := range messages {
		if _, got, ok := c.received(); !ok || string(got) != want {
			t.Fatalf("channel %s: message %d of %d is %.80q, %v; want %.80q", c.ch.name, i+1, len(messages), got, ok, want)
		}
	}
	if len(c.stream) > 0 {
		t.Fatalf("channel %s: %d bytes more than expected: %.80q", c.ch.name, len(c.stream), c.stream)
	}
}

// content is the payload with a number: its size and bytes follow from the number, so that every byte can be checked.
func content(buf []byte, n uint64, most int) []byte {
	x := n*0x9e3779b97f4a7c15 + 1
	next := func() uint64 { // xorshift
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		return x
	}
	size := int(next()>>8) & (1<<62 - 1) % (most + 1)
	if next()%4 > 0 {
		size %= 200
	}
	buf = buf[:0]
	for len(buf) < size {
		v := next()
		for range min(8, size-len(buf)) {
			buf = append(buf, byte(v))
			v >>= 8
		}
	}
	return buf
}

// event waits for something that is about to happen.
func event(t testing.TB, what string, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(deadline):
		t.Fatal("this did not happen: ", what)
	}
}

// await waits for a state that nobody tells of.
func await(t testing.TB, what string, reached func() bool) {
	t.Helper()
	for end := time.Now().Add(deadline); !reached(); runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatal("this did not happen: ", what)
		}
	}
}

func framed(op frame.Opcode, message []byte) []byte {
	return append(frame.AppendHeader(nil, op, len(message)), message...)
}

func sameBytes(t testing.TB, what string, got, want []byte) {
	t.Helper()
	if !bytes.Equal(got, want) {
		t.Fatalf("%s: %d bytes %.60x, want %d bytes %.60x", what, len(got), got, len(want), want)
	}
}
