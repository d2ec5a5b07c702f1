package loop

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"wscast/daemon/encode"
	"wscast/daemon/frame"
	"wscast/daemon/msglog"
	"wscast/daemon/survive"
)

// TestMain fails when a goroutine or a descriptor is left over.
func TestMain(m *testing.M) {
	// Go's own poller has descriptors from its first use on.
	r, w, err := os.Pipe()
	if err != nil {
		panic(err)
	}
	r.Close()
	w.Close()
	before := descriptors()
	code := m.Run()
	if err := goleak.Find(); code == 0 && err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	if after := descriptors(); code == 0 && !slices.Equal(before, after) {
		fmt.Fprintf(os.Stderr, "descriptors leaked:\nbefore %q\nafter  %q\n", before, after)
		code = 1
	}
	os.Exit(code)
}

// descriptors are the open descriptors of the process, but for those that reading them takes.
func descriptors() (open []string) {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		panic(err)
	}
	for _, e := range entries {
		if link, err := os.Readlink(filepath.Join("/proc/self/fd", e.Name())); err == nil {
			open = append(open, e.Name()+" "+link)
		}
	}
	return open
}

// patienceOfTests is how long a test waits for what has to come, and only then fails.
const patienceOfTests = 20 * time.Second

// door is the Handshaker of the tests: the path is the channel, what is below /no/ is refused.
type door struct {
	greeting []byte // frames behind the answer
	body     []byte // of a refusal by path
	publish  func(*Upstream) (int, Refusal)
	inside   chan func() // what to do when no/inside is asked for
	plains   atomic.Uint32
}

const upgraded = "HTTP/1.1 101 Switching Protocols\r\n\r\n"

func (d *door) Handshake(head []byte, _ Peer) Admission {
	path, _, ok := strings.Cut(strings.TrimPrefix(string(head), "GET /"), " ")
	if path == "no/inside" {
		(<-d.inside)()
	}
	if !ok || !bytes.HasSuffix(head, endOfHead) {
		return Admission{Answer: d.Refuse(http.StatusBadRequest, "no request")}
	}
	if strings.HasPrefix(path, "no/") {
		return Admission{Answer: append(d.Refuse(http.StatusNotFound, "no such place"), d.body...)}
	}
	a := Admission{Answer: append([]byte(upgraded), d.greeting...), Open: true}
	kind, channels, special := strings.Cut(path, "=") // "json=a,b", "events=a", "json-events=a,b"; with "!ID" behind it after that message
	if !special {
		a.Channels = []Start{{Channel: path}}
		return a
	}
	a.Encoding = map[string]encode.Encoding{"raw": encode.Raw, "json": encode.JSON, "events": encode.Events, "json-events": encode.JSONEvents,
		"raw-deflate": encode.Raw | encode.Deflate, "json-deflate": encode.JSON | encode.Deflate}[kind]
	channels, id, _ := strings.Cut(channels, "!")
	for channel := range strings.SplitSeq(channels, ",") {
		if channel != "" {
			start, err := StartAt(channel, id, "")
			if err != nil {
				return Admission{Answer: d.Refuse(http.StatusBadRequest, err.Error())}
			}
			a.Channels = append(a.Channels, start)
		}
	}
	return a
}

// Plain takes every other one of the paths that are words the short way.
func (d *door) Plain(head, room []byte) (answer, channel []byte) {
	path, _, ok := bytes.Cut(bytes.TrimPrefix(head, []byte("GET /")), []byte(" "))
	if !ok || bytes.ContainsAny(path, "=!/") || !bytes.HasSuffix(head, endOfHead) || d.plains.Add(1)%2 == 0 {
		return nil, nil
	}
	return append(append(room, upgraded...), d.greeting...), path
}

func (d *door) May(Grant, string) Refusal { return Refusal{} }

func (d *door) MayPublish(_ Grant, channel string) Refusal {
	if d.publish == nil || channel == "silent" {
		return Refusal{"not_allowed", "not here"}
	}
	return Refusal{}
}

func (d *door) Publish(u *Upstream) (int, Refusal) { return d.publish(u) }

func (d *door) Restore([]byte) (Grant, error) { return nil, errors.New("there are no grants") }

func (d *door) Refuse(status int, line string) []byte {
	return fmt.Appendf(nil, "HTTP/1.1 %d\r\n\r\n%s\n", status, line)
}

func request(channel string) string { return "GET /" + channel + " HTTP/1.1\r\n\r\n" }

// patient is a configuration in which nothing comes of itself.
var patient = Config{
	HandshakeTimeout: time.Hour, CloseTimeout: time.Hour, MaxMessage: MaxMessage, MaxSubscriptions: 10,
}

// brisk is one with the shortest ticks.
var brisk = Config{
	HandshakeTimeout: 50 * time.Millisecond, CloseTimeout: 50 * time.Millisecond, MaxMessage: MaxMessage,
}

// rig is a log and loops that serve it.
type rig struct {
	testing.TB
	store   *msglog.Log
	keep    survive.Keep
	loops   *Loops
	address string
	door    *door
	rings   int // of the log
	config  Config
	own     []*wire // that the rig has opened for itself
	stopped bool
}

// setting changes what start starts.
type setting func(*rig, *int, *msglog.Options, *system)

func with(c Config) setting {
	return func(r *rig, _ *int, _ *msglog.Options, _ *system) { r.config = c }
}
func loopsOf(n int) setting {
	return func(_ *rig, loops *int, _ *msglog.Options, _ *system) { *loops = n }
}
func sized(log int64) setting {
	return func(_ *rig, _ *int, o *msglog.Options, _ *system) { o.Size = log }
}
func entrance(d *door) setting {
	return func(r *rig, _ *int, _ *msglog.Options, _ *system) { r.door = d }
}
func splitOver(rings int) setting {
	return func(r *rig, _ *int, _ *msglog.Options, _ *system) { r.rings = rings }
}
func seam(change func(*system)) setting {
	return func(_ *rig, _ *int, _ *msglog.Options, sys *system) { change(sys) }
}

func start(t testing.TB, settings ...setting) *rig {
	t.Helper()
	r := &rig{TB: t, door: new(door), config: patient, rings: 1}
	loops, options, sys := 2, msglog.Options{Size: msglog.MinSize, Channels: 100}, linux
	for _, set := range settings {
		set(r, &loops, &options, &sys)
	}
	r.door.inside = make(chan func(), 1)
	var err error
	if r.store, err = msglog.CreateAll(ringsOf(r.rings, options)); err != nil {
		t.Fatal(err)
	}
	if r.keep.Table, err = survive.NewTable(10_000, r.store.Epoch()); err != nil {
		t.Fatal(err)
	}
	r.loops, err = newLoops(r.store, r.keep, loops, r.door, r.config, slog.New(slog.DiscardHandler), &sys)
	if err != nil {
		t.Fatal(err)
	}
	if r.config.tick() == longestTick {
		r.byHand() // what is lost must not be found again at the next tick
	}
	t.Cleanup(func() {
		if !r.stopped {
			ctx, cancel := context.WithCancel(context.Background())
			cancel()
			r.loops.Close(ctx, frame.CloseServiceRestart, "", 0)
			if p := &r.loops.population; p.all != 0 || len(p.from) != 0 {
				t.Errorf("without clients %d are counted, and %d addresses", p.all, len(p.from))
			}
		}
		if err := errors.Join(r.store.Close(), r.keep.Table.Close()); err != nil {
			t.Error(err)
		}
	})
	return r
}

// inside calls f in the goroutine of a rig's only loop, in the middle of a turn.
func (r *rig) inside(f func(l *loop)) {
	r.Helper()
	done := newSignal()
	r.door.inside <- func() { f(r.loops.loops[0]); done.give() }
	c := r.pair(0)
	c.send(request("no/inside"))
	done.wait(r, "a turn")
	c.Close()
}

// busy keeps a rig's only loop from turning until leave is called.
func (r *rig) busy() (leave func()) {
	r.Helper()
	entered, left := newSignal(), newSignal()
	r.Cleanup(left.give) // when the test has failed
	r.door.inside <- func() { entered.give(); left.wait(r, "the loop may go on") }
	c := r.pair(0)
	r.own = append(r.own, c)
	c.send(request("no/inside"))
	entered.wait(r, "a turn")
	return left.give
}

// listen serves a TCP socket and returns it.
func (r *rig) listen() *os.File {
	r.Helper()
	ln := listenTCP(r)
	defer ln.Close()
	r.address = ln.Addr().String()
	file, err := ln.(*net.TCPListener).File()
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() { file.Close() })
	if err := r.loops.Serve(file); err != nil {
		r.Fatal(err)
	}
	return file
}

func listenTCP(t testing.TB) net.Listener {
	t.Helper()
	var config net.ListenConfig
	config.SetMultipathTCP(false) // Go's default is MPTCP, which has no TCP_USER_TIMEOUT; the daemon refuses it
	ln, err := config.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

// dial opens a TCP connection.
func (r *rig) dial() *wire {
	r.Helper()
	if r.address == "" {
		r.listen()
	}
	conn, err := net.Dial("tcp", r.address)
	if err != nil {
		r.Fatal(err)
	}
	return wireOf(r, conn)
}

// pair opens a connection over a Unix socketpair; with buffer > 0 its buffers are as small as that, or as they can be.
func (r *rig) pair(buffer int) *wire {
	r.Helper()
	ours, conn := socketpair(r, buffer)
	enter(r, r.loops, ours)
	return wireOf(r, conn)
}

func socketpair(t testing.TB, buffer int) (ours int, theirs net.Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	if buffer > 0 {
		if err := unix.SetsockoptInt(fds[0], unix.SOL_SOCKET, unix.SO_SNDBUF, buffer); err != nil {
			t.Fatal(err)
		}
	}
	file := os.NewFile(uintptr(fds[1]), "client")
	defer file.Close()
	conn, err := net.FileConn(file)
	if err != nil {
		t.Fatal(err)
	}
	return fds[0], conn
}

// tight opens a TCP connection with small buffers on both sides; 1 is the smallest there are.
func (r *rig) tight(buffer int) *wire {
	r.Helper()
	ours, conn := tcpPair(r, buffer)
	enter(r, r.loops, ours)
	return wireOf(r, conn)
}

// enter lets a connection in as if it had just been accepted.
func enter(t testing.TB, g *Loops, fd int) {
	t.Helper()
	g.add(arrival(t, g.keep, fd))
}

func arrival(t testing.TB, keep survive.Keep, fd int) newcomer {
	t.Helper()
	a, _ := keep.Admit(func() (int, syscall.Errno) { return fd, 0 })
	return newcomer{Admitted: a, uncounted: isUnix(t, fd)}
}

// tcpPair is a TCP connection: our end as a non-blocking descriptor, and the client. With buffer > 0 its buffers are as
// small as that, or as they can be.
func tcpPair(t testing.TB, buffer int) (ours int, theirs net.Conn) {
	t.Helper()
	ln := listenTCP(t)
	defer ln.Close()
	small := func(fd uintptr, option int) error {
		if buffer == 0 {
			return nil
		}
		return unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, option, buffer)
	}
	dialer := net.Dialer{Control: func(_, _ string, raw syscall.RawConn) (set error) {
		err := raw.Control(func(fd uintptr) { set = small(fd, unix.SO_RCVBUF) })
		return errors.Join(err, set)
	}}
	theirs, err := dialer.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	other, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	raw, _ := other.(*net.TCPConn).SyscallConn()
	_ = raw.Control(func(s uintptr) {
		if ours, err = unix.FcntlInt(s, unix.F_DUPFD_CLOEXEC, 0); err == nil {
			err = small(s, unix.SO_SNDBUF)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return ours, theirs
}

// publish appends a text message.
func (r *rig) publish(channel, message string) (clients int) {
	r.Helper()
	clients, err := r.store.Append([]byte(channel), []byte(message), frame.Text)
	if err != nil {
		r.Fatal(err)
	}
	return clients
}

// until turns the loops until something is so.
func (r *rig) until(what string, so func(Stats) bool) {
	r.Helper()
	for deadline := time.Now().Add(patienceOfTests); !so(r.loops.Stats()); {
		if time.Now().After(deadline) {
			r.Fatalf("not in %v: %s; %+v", patienceOfTests, what, r.loops.Stats())
		}
		r.loops.Turning()
		runtime.Gosched()
	}
}

// turned waits until every loop has turned as a whole.
func (r *rig) turned() {
	r.Helper()
	for _, l := range r.loops.loops {
		from := l.turns.Load()
		r.until("a whole turn", func(Stats) bool { return l.turns.Load() >= from+2 })
	}
}

// wire is a client of bytes.
type wire struct {
	testing.TB
	net.Conn
	in *bufio.Reader
}

func wireOf(t testing.TB, conn net.Conn) *wire {
	t.Cleanup(func() { conn.Close() })
	return &wire{t, conn, bufio.NewReader(conn)}
}

func (w *wire) send(b ...string) {
	w.Helper()
	_ = w.SetWriteDeadline(time.Now().Add(patienceOfTests))
	if _, err := w.Write([]byte(strings.Join(b, ""))); err != nil {
		w.Fatalf("sending: %v", err)
	}
}

// read reads exactly n bytes.
func (w *wire) read(n int) []byte {
	w.Helper()
	_ = w.SetReadDeadline(time.Now().Add(patienceOfTests))
	b := make([]byte, n)
	if got, err := io.ReadFull(w.in, b); err != nil {
		w.Fatalf("reading: %v after %q", err, b[:got])
	}
	return b
}

func (w *wire) expect(bytes string) {
	w.Helper()
	if got := w.read(len(bytes)); string(got) != bytes {
		w.Fatalf("got %q, want %q", got, bytes)
	}
}

// join does the opening handshake.
func (w *wire) join(channel string) *wire {
	w.Helper()
	w.send(request(channel))
	w.expect(upgraded)
	return w
}

// frame reads a whole frame as the server sends them.
func (w *wire) frame() (op frame.Opcode, payload []byte) {
	w.Helper()
	op, payload, err := w.next()
	if err != nil {
		w.Fatal(err)
	}
	return op, payload
}

func (w *wire) next() (op frame.Opcode, payload []byte, err error) {
	_ = w.SetReadDeadline(time.Now().Add(patienceOfTests))
	var h [2]byte
	if _, err := io.ReadFull(w.in, h[:]); err != nil {
		return 0, nil, err
	}
	size := uint64(h[1])
	var more [8]byte
	switch size {
	case 126:
		_, err = io.ReadFull(w.in, more[:2])
		size = uint64(binary.BigEndian.Uint16(more[:]))
	case 127:
		_, err = io.ReadFull(w.in, more[:])
		size = binary.BigEndian.Uint64(more[:])
	}
	if err != nil || h[0]&0x70 != 0 || h[0]&0x80 == 0 || size > 1<<24 {
		return 0, nil, fmt.Errorf("bad frame: header % x, %d bytes, %v", h, size, err)
	}
	payload = make([]byte, size)
	_, err = io.ReadFull(w.in, payload)
	return frame.Opcode(h[0] & 0xf), payload, err
}

func (w *wire) expectFrame(op frame.Opcode, payload string) {
	w.Helper()
	if gotOp, got := w.frame(); gotOp != op || string(got) != payload {
		w.Fatalf("got frame %d %.100q, want %d %.100q", gotOp, got, op, payload)
	}
}

func (w *wire) expectText(payload string) {
	w.Helper()
	w.expectFrame(frame.Text, payload)
}

// expectClose reads a close frame, answers it, and reads the end of the stream.
func (w *wire) expectClose(code uint16) (reason string) {
	w.Helper()
	op, payload := w.frame()
	got, reason, err := frame.ParseClose(payload)
	if op != frame.Close || err != nil || got != code {
		w.Fatalf("got frame %d %.100q, want close %d", op, payload, code)
	}
	w.answer(payload)
	w.expectEnd()
	return reason
}

// answer sends a close frame back. The connection can be over already, where nobody waits for it.
func (w *wire) answer(payload []byte) {
	_, _ = io.WriteString(w, masked(fin|byte(frame.Close), string(payload)))
}

// expectEnd: nothing comes any more, and the other side has closed or reset.
func (w *wire) expectEnd() {
	w.Helper()
	_ = w.SetReadDeadline(time.Now().Add(patienceOfTests))
	b, err := io.ReadAll(w.in)
	if len(b) > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
		w.Fatalf("got %.100q, %v; want the end", b, err)
	}
}

// masked is a client's frame.
func masked(first byte, payload string) string {
	key := [4]byte{0x37, 0xfa, 0x21, 0x3d}
	b := frame.AppendHeader(nil, frame.Opcode(first&0xf), len(payload))
	b[0] = first
	b[1] |= 0x80
	b = append(b, key[:]...)
	for i := range len(payload) {
		b = append(b, payload[i]^key[i%4])
	}
	return string(b)
}

// First bytes of frames.
const (
	fin     = 0x80
	text    = fin | byte(frame.Text)
	pingOp  = fin | byte(frame.Ping)
	pongOp  = fin | byte(frame.Pong)
	closeOp = fin | byte(frame.Close)
)

func closeFrame(code uint16, reason string) string {
	return masked(closeOp, string(binary.BigEndian.AppendUint16(nil, code))+reason)
}

// signal is a one-time event between a seam and a test.
type signal struct {
	once sync.Once
	c    chan struct{}
}

func newSignal() *signal { return &signal{c: make(chan struct{})} }
func (s *signal) give()  { s.once.Do(func() { close(s.c) }) }
func (s *signal) wait(t testing.TB, what string) {
	t.Helper()
	select {
	case <-s.c:
	case <-time.After(patienceOfTests):
		t.Fatalf("not in %v: %s", patienceOfTests, what)
	}
}

// isUnix tells whether a socket is a Unix-domain one.
func isUnix(t testing.TB, fd int) bool {
	t.Helper()
	domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		t.Fatal(err)
	}
	return domain == unix.AF_UNIX
}
