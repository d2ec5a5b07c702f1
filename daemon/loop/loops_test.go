package loop

import (
	"context"
	"fmt"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"wscast/daemon/frame"
)

// close ends the loops of a rig.
func (r *rig) close(ctx context.Context) (closed chan struct{}) {
	r.stopped = true
	closed = make(chan struct{})
	go func() {
		r.loops.Close(ctx, frame.CloseServiceRestart, "service restart", 0)
		close(closed)
	}()
	return closed
}

func (r *rig) mustClose(closed chan struct{}) {
	r.Helper()
	select {
	case <-closed:
	case <-time.After(patienceOfTests):
		r.Fatalf("Close has not returned in %v: %+v", patienceOfTests, r.loops.Stats())
	}
}

func TestBalance(t *testing.T) {
	r := start(t, loopsOf(4))
	var clients []*wire
	for range 40 {
		clients = append(clients, r.pair(0).join("news"))
	}
	for i, l := range r.loops.loops {
		if n := l.load.Load(); n != 10 {
			t.Errorf("loop %d has %d clients of 40, want 10", i, n)
		}
	}
	// Places that become free are the next ones'.
	for _, c := range clients[:10] {
		c.Close()
	}
	r.until("gone", func(s Stats) bool { return s.Clients == 30 })
	r.turned()
	for range 10 {
		r.pair(0).join("news")
	}
	for i, l := range r.loops.loops {
		if n := l.load.Load(); n != 10 {
			t.Errorf("loop %d has %d clients of 40, want 10", i, n)
		}
	}
}

func TestConfigureWhileRunning(t *testing.T) {
	r := start(t)
	c := r.dial().join("news")
	var all sync.WaitGroup
	for i := range 4 {
		all.Go(func() {
			for n := range 50 {
				config := patient
				config.MaxMessage = 1000 + i*100 + n
				r.loops.Configure(config)
				r.publish("news", "x")
			}
		})
	}
	for range 200 {
		c.expectText("x")
	}
	all.Wait()
	for _, l := range r.loops.loops {
		if l.next.Load() != r.loops.loops[0].next.Load() {
			t.Error("the loops have different configurations")
		}
	}
	config := patient
	config.MaxMessage = 125
	r.loops.Configure(config)
	r.turned()
	c.send(masked(text, strings.Repeat("x", 126)))
	c.expectClose(frame.CloseTooBig)
}

func TestTurning(t *testing.T) {
	r := start(t)
	r.loops.Turning()
	for _, l := range r.loops.loops { // idle as they are, they have been asked to turn
		for l.asked.Load() || l.turns.Load() == 0 {
			runtime.Gosched()
		}
	}
	if !r.loops.Turning() {
		t.Error("idle loops that have turned do not count as turning")
	}
}

func TestTurningWhenALoopStandsStill(t *testing.T) {
	r := start(t, loopsOf(1))
	leave := r.busy()
	r.loops.Turning()
	for range 100 {
		if r.loops.Turning() {
			t.Fatal("a loop that stands still counts as turning")
		}
	}
	leave()
	r.until("turning again", func(Stats) bool { return r.loops.Turning() })
}

// Everybody is sent what the log has for them, and then a close frame.
func TestClose(t *testing.T) {
	everyway(t, func(t *testing.T, connect func(*rig) *wire) {
		r := start(t)
		var clients []*wire
		for range 20 {
			clients = append(clients, connect(r).join("news"))
		}
		opening := connect(r)
		opening.send("GET /news")
		r.until("in", func(s Stats) bool { return s.Opening == 1 })
		for i := range 300 {
			r.publish("news", fmt.Sprint(i))
		}
		closed := r.close(context.Background())
		for _, c := range clients {
			for i := range 300 {
				c.expectText(fmt.Sprint(i))
			}
			if reason := c.expectClose(1012); reason != "service restart" {
				t.Errorf("reason %q", reason)
			}
			c.Close()
		}
		opening.expect("HTTP/1.1 503\r\n\r\nservice restart\n")
		opening.expectEnd()
		opening.Close()
		r.mustClose(closed)
		if s := r.loops.Stats(); s.Clients != 0 || s.Closed[closeStopped] != 20 {
			t.Errorf("%+v", s)
		}
	})
}

// A message that is published between the loop's look at the news and its look at the order to end is sent, too.
func TestCloseRightBehindAMessage(t *testing.T) {
	r := start(t, loopsOf(1))
	c := r.dial().join("news")
	leave := r.busy() // in the middle of a turn, behind its look at the news
	r.publish("news", "last")
	closed := r.close(context.Background())
	l := r.loops.loops[0]
	for ordered := false; !ordered; runtime.Gosched() {
		l.mu.Lock()
		ordered = l.order != nil
		l.mu.Unlock()
	}
	leave()
	c.expectText("last")
	c.expectClose(1012)
	c.Close()
	r.dropAll(closed)
}

// dropAll waits for Close when connections of the rig itself may be open.
func (r *rig) dropAll(closed chan struct{}) {
	r.Helper()
	for _, c := range r.own {
		c.Close()
	}
	r.mustClose(closed)
}

// A client that is behind gets all that the log has for it before it is told good-bye.
func TestCloseOfABlockedClient(t *testing.T) {
	r := start(t)
	c := r.pair(1).join("news")
	for i := range 500 {
		r.publish("news", numbered("news", i))
	}
	r.until("blocked", func(s Stats) bool { return s.Blocked == 1 })
	closed := r.close(context.Background())
	if err := c.expectNumbered("news", 0, 500); err != nil {
		t.Error(err)
	}
	c.expectClose(1012)
	c.Close()
	r.mustClose(closed)
}

// Clients that do not answer, do not read, or come late do not hold up the end longer than the context says.
func TestCloseEndsWithItsContext(t *testing.T) {
	r := start(t)
	mute, blocked := r.dial().join("news"), r.pair(1).join("news")
	r.publish("news", strings.Repeat("x", 100_000))
	r.until("blocked", func(s Stats) bool { return s.Blocked == 1 })
	ctx, cancel := context.WithCancel(context.Background())
	closed := r.close(ctx)
	mute.frame()
	mute.expectClose(1012)
	late := r.pair(0)
	late.expect("HTTP/1.1 503\r\n\r\nservice restart\n")
	select {
	case <-closed:
		t.Error("Close has returned before its context has ended, and clients were left")
	default:
	}
	cancel()
	r.mustClose(closed)
	blocked.read(10)
	after := r.pair(0) // nobody takes it any more, and its descriptor is not lost
	after.expectEnd()
	if s := r.loops.Stats(); s.Clients != 0 || s.Blocked != 0 {
		t.Errorf("%+v", s)
	}
	r.loops.Turning() // harmless
	r.loops.Configure(patient)
}

// With a close timeout the end comes of itself.
func TestCloseTimeoutWhileEnding(t *testing.T) {
	r := start(t, with(brisk))
	c := r.dial().join("news")
	closed := r.close(context.Background())
	c.expectFrame(frame.Close, "\x03\xf4service restart")
	c.expectEnd()
	r.mustClose(closed)
}

// Connections that nobody has accepted stay in the backlog, for the next process.
func TestStopAccepting(t *testing.T) {
	r := start(t)
	file := r.listen()
	r.dial().join("news")
	r.loops.StopAccepting()
	waiting := r.dial()
	waiting.send(request("news"))
	raw, err := file.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var fd int
	if err := raw.Read(func(listener uintptr) bool { // the deadline is not left in the past
		var errno syscall.Errno
		fd, errno = linux.accept(int(listener))
		return errno != unix.EAGAIN
	}); err != nil {
		t.Fatal(err)
	}
	enter(r, r.loops, fd)
	waiting.expect(upgraded)
	if err := r.loops.Serve(file); err == nil {
		t.Error("Serve after StopAccepting")
	}
	r.loops.StopAccepting()
}

// Without descriptors accepting rests, and goes on when there are some again.
func TestNoDescriptorsToAccept(t *testing.T) {
	for name, short := range map[string]struct {
		errno syscall.Errno
		calls int64 // after which it has rested twice
	}{
		"process": {unix.EMFILE, 3}, "machine": {unix.ENFILE, 3}, "memory": {unix.ENOMEM, 3}, "buffers": {unix.ENOBUFS, 3}, "strange": {unix.EPERM, burst + 2},
	} {
		t.Run(name, func(t *testing.T) {
			var calls atomic.Int64
			var first time.Time
			var rested time.Duration
			enough := newSignal()
			r := start(t, seam(func(sys *system) {
				sys.accept = func(listener int) (int, syscall.Errno) {
					switch n := calls.Add(1); {
					case n == 1:
						first = time.Now()
					case n == short.calls:
						rested = time.Since(first)
						enough.give()
					case n > short.calls:
						return linux.accept(listener)
					}
					return -1, short.errno
				}
			}))
			c := r.dial()
			enough.wait(t, "accept is called again and again")
			if rested < 2*pause {
				t.Errorf("%d calls of accept in %v: it spins", short.calls, rested)
			}
			c.join("news")
		})
	}
}

// An error of a connection that waits costs no time, and no other connection.
func TestConnectionAbortedBeforeAccept(t *testing.T) {
	var calls atomic.Int64
	r := start(t, seam(func(sys *system) {
		sys.accept = func(listener int) (int, syscall.Errno) {
			if calls.Add(1)%3 != 0 {
				return -1, unix.ECONNABORTED
			}
			return linux.accept(listener)
		}
	}))
	for range 10 {
		r.dial().join("news")
	}
}

// A listening socket that somebody has shut down is given up, not asked for ever.
func TestListenerIsShutDown(t *testing.T) {
	var calls atomic.Int64
	given := newSignal()
	r := start(t, seam(func(sys *system) {
		sys.accept = func(listener int) (int, syscall.Errno) {
			fd, errno := linux.accept(listener)
			if errno == unix.EINVAL {
				calls.Add(1)
				given.give()
			}
			return fd, errno
		}
	}))
	file := r.listen()
	r.dial().join("news")
	raw, err := file.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	_ = raw.Control(func(fd uintptr) { _ = unix.Shutdown(int(fd), unix.SHUT_RDWR) })
	given.wait(t, "accept fails")
	r.loops.accepts.Wait()
	if n := calls.Load(); n != 1 {
		t.Errorf("%d calls of accept", n)
	}
}

func TestServeOfWhatIsNoSocket(t *testing.T) {
	r := start(t)
	p, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	defer w.Close()
	if err := r.loops.Serve(p); err == nil || !strings.Contains(err.Error(), p.Name()) {
		t.Errorf("error %v, want one that names the file", err)
	}
}

func TestUnixListener(t *testing.T) {
	r := start(t)
	ln, err := net.Listen("unix", t.TempDir()+"/socket")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	file, err := ln.(*net.UnixListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := r.loops.Serve(file); err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("unix", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c := wireOf(t, conn).join("news")
	r.publish("news", "hello")
	c.expectText("hello")
	r.loops.StopAccepting()
}

// With no place for one loop more nothing is left over.
func TestTooManyLoops(t *testing.T) {
	r := start(t, loopsOf(60))
	if g, err := New(r.store, r.keep, 10, r.door, patient, r.loops.log); err == nil {
		t.Errorf("%d loops", g.Len())
	}
	c := r.dial().join("news")
	for range 300 { // the readers of the loops that were given up do not hold up the log
		r.publish("nobody", strings.Repeat("x", 10_000))
	}
	r.publish("news", "hello")
	c.expectText("hello")
}

// At the end clients are told one after the other, as it is time for them, and not before they have what the log has.
func TestGoodbyesAreSpread(t *testing.T) {
	const clients = 600
	r := start(t)
	var conns []*wire
	for range clients {
		conns = append(conns, r.pair(0).join("news"))
	}
	behind := r.tight(1).join("large")
	message := strings.Repeat("x", 100_000)
	r.publish("large", message)
	r.until("one is behind", func(s Stats) bool { return s.Blocked == 1 })
	opening := r.pair(0)
	r.until("one has not asked yet", func(s Stats) bool { return s.Opening == 1 })

	r.stopped = true
	r.loops.StopAccepting()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	order := &ending{code: frame.CloseGoingAway, reason: "the server stops", deadline: ctx.Done()}
	r.loops.end(order)
	if got := opening.all(); got != string(new(door).Refuse(503, "the server stops")) {
		t.Errorf("who has not asked gets %q", got)
	}
	opening.Close()
	behind.expectText(message)
	r.until("it has caught up", func(s Stats) bool { return s.Blocked == 0 })
	r.turned()
	if s := r.loops.Stats(); s.Closing != 0 || s.Clients != clients+1 {
		t.Errorf("before it is time: %+v", s)
	}
	for _, part := range []uint32{all / 4, all / 2} {
		was := r.loops.Stats().Closing
		order.due.Store(part)
		r.loops.wake()
		r.until("some are told", func(s Stats) bool { return s.Closing > was })
		r.turned()
		if s := r.loops.Stats(); s.Closing >= clients {
			t.Errorf("at %d of %d: %+v", part, all, s)
		}
	}
	order.due.Store(all)
	r.loops.wake()
	for _, c := range append(conns, behind) {
		c.expectClose(frame.CloseGoingAway)
		c.Close()
	}
	r.loops.wait()
}

func TestCloseTellsAll(t *testing.T) {
	r := start(t)
	var conns []*wire
	for range 300 {
		conns = append(conns, r.pair(0).join("news"))
	}
	r.stopped = true
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		r.loops.Close(context.Background(), frame.CloseGoingAway, "", 3*pulse)
	}()
	for _, c := range conns {
		c.expectClose(frame.CloseGoingAway)
		c.Close()
	}
	r.mustClose(closed)
}
