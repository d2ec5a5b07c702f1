package loop

import (
	"runtime"
	"strings"
	"testing"
	"time"

	"wscast/daemon/frame"
)

var skipping = Config{HandshakeTimeout: time.Hour, CloseTimeout: time.Hour, MaxMessage: MaxMessage, SkipSlow: true}

// publishUntilSlow publishes until so many clients were found slow. A client that keeps up reads along.
func (r *rig) publishUntilSlow(n uint64, others ...*wire) {
	r.Helper()
	message := strings.Repeat("m", 10_000)
	for i := 0; r.loops.Stats().Slow < n; i++ {
		if i > 1000 {
			r.Fatalf("10 MB in a log of 1 MB, and nobody is slow: %+v", r.loops.Stats())
		}
		r.publish("news", message)
		for _, c := range others {
			c.expectText(message)
		}
		r.turned()
	}
}

// A client that does not read is closed when the log has moved on. The frame that it has half of is completed, then
// comes the close frame. It delays nobody.
func TestSlowClientIsClosed(t *testing.T) {
	r := start(t)
	slow, quick := r.pair(1).join("news"), r.dial().join("news")
	first := strings.Repeat("first ", 5000)
	r.publish("news", first)
	quick.expectText(first)
	r.publishUntilSlow(1, quick)
	slow.expectText(first)
	if reason := slow.expectClose(1013); reason != SlowReason {
		t.Errorf("reason %q", reason)
	}
	slow.Close()
	r.publish("news", "on")
	quick.expectText("on")
	r.until("gone", func(s Stats) bool { return s.Clients == 1 && s.Slow == 1 && s.Closed[closeSlow] == 1 && s.Blocked == 0 })
}

// A client between two frames is closed as well.
func TestSlowClientBetweenTwoFrames(t *testing.T) {
	r := start(t)
	slow := r.pair(1).join("news")
	for r.loops.Stats().Blocked == 0 { // until the socket takes nothing more
		r.publish("news", "small")
		r.turned()
	}
	r.publishUntilSlow(1)
	for {
		op, payload := slow.frame()
		if op == frame.Close {
			slow.answer(payload)
			break
		}
		if op != frame.Text || string(payload) != "small" {
			t.Fatalf("got %d %.100q", op, payload)
		}
	}
	slow.expectEnd()
}

// A client that skips goes on at the head, after the frame that it has half of.
func TestSlowClientSkips(t *testing.T) {
	r := start(t, with(skipping))
	slow, quick := r.pair(1).join("news"), r.dial().join("news")
	first := strings.Repeat("first ", 5000)
	r.publish("news", first)
	quick.expectText(first)
	r.publishUntilSlow(1, quick)
	r.publishUntilSlow(2, quick) // and once more before it reads
	r.publish("news", "last")
	quick.expectText("last")
	slow.send(masked(pingOp, "x"))
	slow.expectText(first)
	pong := false
	for {
		op, payload := slow.frame()
		if op == frame.Pong {
			pong = true
		} else if string(payload) == "last" {
			break
		} else if len(payload) != 10_000 {
			t.Fatalf("got %d %.100q", op, payload)
		}
	}
	if !pong {
		slow.expectFrame(frame.Pong, "x")
	}
	r.publish("news", "on")
	slow.expectText("on")
	r.until("in step", func(s Stats) bool { return s.Clients == 2 && s.Blocked == 0 && s.Closed[closeSlow] == 0 })
}

// A client of a quiet channel is not slow, however old its last message is.
func TestQuietChannelIsNotSlow(t *testing.T) {
	r := start(t)
	quiet := r.dial().join("quiet")
	r.publish("quiet", "once")
	quiet.expectText("once")
	slow := r.pair(1).join("news")
	r.publishUntilSlow(1)
	r.publishUntilSlow(1)
	for range 300 {
		r.publish("nobody", strings.Repeat("m", 10_000))
	}
	r.publish("quiet", "again")
	quiet.expectText("again")
	r.until("one was slow", func(s Stats) bool { return s.Slow == 1 && s.Clients == 2 })
	slow.Close()
}

// A client that is served in several turns is not blocked when the log moves on, and has to be dealt with all the
// same: what it is sent must never be what has been overwritten.
func TestFarBehindWhenTheLogMovesOn(t *testing.T) {
	for name, config := range map[string]Config{"close": patient, "skip": skipping} {
		t.Run(name, func(t *testing.T) {
			r := start(t, with(config), loopsOf(1))
			c := r.pair(0).join("news")
			r.inside(func(l *loop) {
				// As it is when the client has taken its portion and there is more.
				for i := range 50 {
					r.publish("news", numbered("news", i))
				}
				l.later(l.slab.at(0))
				for range 95 {
					r.publish("nobody", strings.Repeat("m", 10_000))
				}
				l.reader.News(nil)
				l.sweep()
				if s := l.count.Slow; s != 1 {
					t.Errorf("%d slow clients, want 1", s)
				}
				if !l.reader.Released() {
					t.Error("the floor is below the edge")
				}
			})
			if name == "close" {
				c.expectClose(1013)
				return
			}
			r.publish("news", "on")
			c.expectText("on")
		})
	}
}

// During one turn the log can grow by so much that its edge comes to lie above what the turn has delivered: the floor
// stays below that.
func TestEdgeAboveWhatWasServed(t *testing.T) {
	r := start(t, loopsOf(1))
	c := r.dial().join("news")
	for range 8000 { // the log runs out of entries, with few bytes in use
		r.publish("nobody", "m")
	}
	r.turned()
	leave := r.busy()
	for i := range 5 {
		r.publish("news", numbered("news", i))
	}
	for range 95 { // what there is place for until the log waits for the loop
		r.publish("nobody", strings.Repeat("m", 10_000))
	}
	leave()
	if err := c.expectNumbered("news", 0, 5); err != nil {
		t.Error(err)
	}
	r.until("served", func(s Stats) bool { return s.Slow == 0 && s.Deliveries == 5 })
}

// Clients that never read cost the memory of the frames that they have half of, and clients that are stuck in the same
// one share it.
func TestMemoryOfClientsThatNeverRead(t *testing.T) {
	r := start(t, with(skipping), loopsOf(1))
	const clients = 100
	for range clients {
		r.pair(1).join("news")
	}
	quick := r.dial().join("news")
	const size = 100_000
	first := strings.Repeat("f", size)
	r.publish("news", first)
	quick.expectText(first)
	r.until("blocked", func(s Stats) bool { return s.Blocked == clients })
	heap := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before := heap()
	r.publishUntilSlow(clients, quick)
	r.publishUntilSlow(2*clients, quick)
	if more := heap() - before; more > 5*size {
		t.Errorf("%d bytes more for %d clients that never read, want about %d", more, clients, size)
	}
	r.inside(func(l *loop) {
		shared := map[*byte]bool{}
		for _, c := range l.blocked {
			shared[&c.pending.rest[len(c.pending.rest)-1]] = true
		}
		if len(shared) != 1 || len(l.rests) != 0 {
			t.Errorf("%d copies of one frame, %d kept", len(shared), len(l.rests))
		}
	})
}

// A client that never reads is not given all that the buffer of a TCP socket has room for, which on loopback is more than 2 MB; and what it was given it
// gets, with what comes after it.
func TestKernelMemoryOfAClientThatNeverReads(t *testing.T) {
	r := start(t, loopsOf(1), sized(16<<20))
	slow, quick := r.dial().join("news"), r.dial().join("news")
	const most = unsent + 1<<20 // and what has been sent, into a receive buffer that does not grow while nobody reads
	message := strings.Repeat("m", 30_000)
	published := 0
	tell := func() {
		r.publish("news", message)
		published += len(message)
		quick.expectText(message)
		r.turned()
	}
	for r.loops.Stats().Blocked == 0 {
		if tell(); published > most {
			t.Fatalf("the socket of a client that never reads has taken %d bytes", published)
		}
	}
	t.Logf("it has taken less than %d bytes", published)
	for range 20 {
		tell()
	}
	for range published / len(message) {
		slow.expectText(message)
	}
	r.until("in step", func(s Stats) bool { return s.Blocked == 0 && s.Slow == 0 })
}
