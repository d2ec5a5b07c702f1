package loop

import (
	"io"
	"strings"
	"testing"
	"time"

	"wscast/daemon/frame"
)

// pinging is a configuration with pings after 5 ticks.
var pinging = Config{
	Ping: 25 * time.Second, HandshakeTimeout: time.Hour, CloseTimeout: time.Hour, MaxMessage: MaxMessage,
}

var pingTicks = int(pinging.pingTicks())

// byHand stops the clock of the loops: only tick turns it on.
func (r *rig) byHand() *rig {
	r.loops.retick <- 1000 * time.Hour
	return r
}

// tick turns the clock on, one tick at a time.
func (r *rig) tick(n int) {
	r.Helper()
	for range n {
		r.loops.ticks.Add(1)
		r.turned()
	}
}

func TestSilentClientIsPinged(t *testing.T) {
	everyway(t, func(t *testing.T, connect func(*rig) *wire) {
		r := start(t, with(pinging)).byHand()
		c := connect(r).join("news")
		for range 5 { // the answer keeps it
			r.tick(pingTicks)
			c.expectFrame(frame.Ping, "")
			c.send(masked(pongOp, ""), masked(pingOp, "heard"))
			c.expectFrame(frame.Pong, "heard")
		}
		r.tick(pingTicks)
		c.expectFrame(frame.Ping, "")
		r.until("there", func(s Stats) bool { return s.Clients == 1 && s.Pings == 6 })
		r.tick(pingTicks + 1)
		c.expectFrame(frame.Ping, "") // for the proxy
		c.expectEnd()
		r.until("gone", func(s Stats) bool { return s.Clients == 0 && s.TimedOut == 1 && s.Closed[closeAbnormal] == 1 })
	})
}

// Anything that comes is a sign of life, but a proxy wants something to come from us as well (nginx:
// proxy_read_timeout).
func TestClientThatIsSentNothingIsPinged(t *testing.T) {
	r := start(t, with(pinging)).byHand()
	c := r.dial().join("news")
	for range 3 * pingTicks {
		c.send(masked(text, "I talk"))
		n := r.loops.Stats().Received
		r.until("heard", func(s Stats) bool { return s.Received >= n })
		r.tick(1)
	}
	c.expectFrame(frame.Ping, "")
	c.expectFrame(frame.Ping, "")
	r.until("two pings at least", func(s Stats) bool { return s.Pings >= 2 && s.Pings <= 3 && s.Clients == 1 })
}

// Deliveries are no sign of life of the one who gets them.
func TestSilentClientThatIsSentMessagesIsPinged(t *testing.T) {
	r := start(t, with(pinging)).byHand()
	c := r.dial().join("news")
	for range pingTicks {
		r.publish("news", "x")
		c.expectText("x")
		r.tick(1)
	}
	c.expectFrame(frame.Ping, "")
}

func TestNoPings(t *testing.T) {
	config := pinging
	config.Ping = 0
	r := start(t, with(config)).byHand()
	c := r.dial().join("news")
	r.tick(5 * pingTicks)
	r.publish("news", "x")
	c.expectText("x")
}

// What is not read is not pinged: nothing would reach it. When nothing moves in either direction it is given up.
func TestBlockedClientAndTheClock(t *testing.T) {
	r := start(t, with(pinging), loopsOf(1)).byHand()
	reader, silent := r.pair(1).join("news"), r.pair(1).join("news")
	r.publish("news", strings.Repeat("x", 100_000))
	r.until("blocked", func(s Stats) bool { return s.Blocked == 2 })
	for range 2*pingTicks + 1 {
		io.CopyN(io.Discard, reader.in, 5000)
		r.tick(1)
	}
	r.until("one is gone", func(s Stats) bool { return s.Clients == 1 && s.Blocked == 1 && s.TimedOut == 1 && s.Pings == 0 })
	reader.send(masked(pingOp, ""))
	silent.Close()
}

func TestOtherSideDoesNotClose(t *testing.T) {
	r := start(t, with(brisk))
	c := r.dial().join("news")
	c.send(closeFrame(1000, ""))
	c.expectClose(1000)
	r.until("dropped", func(s Stats) bool { return s.Clients == 0 && s.Closing == 0 })
}

// A configuration with longer ticks: what was counted in the short ones means nothing any more.
func TestTicksChangeTheirLength(t *testing.T) {
	r := start(t, with(pinging), loopsOf(1)).byHand()
	c := r.dial().join("news")
	r.tick(pingTicks)
	c.expectFrame(frame.Ping, "")
	r.tick(pingTicks) // one more and it is gone
	c.expectFrame(frame.Ping, "")
	config := pinging
	config.HandshakeTimeout = time.Second
	if config.tick() == pinging.tick() {
		t.Fatal("the same ticks")
	}
	r.loops.Configure(config)
	r.turned()
	r.loops.Configure(pinging)
	r.turned()
	r.byHand().tick(1)
	c.send(masked(pingOp, "here"))
	c.expectFrame(frame.Pong, "here")
}

func TestTicks(t *testing.T) {
	for _, c := range []struct {
		ping, handshake, closing, tick time.Duration
		pings                          uint32
	}{
		{25 * time.Second, 10 * time.Second, 5 * time.Second, time.Second, 25},
		{0, 10 * time.Second, 10 * time.Second, 2 * time.Second, 0},
		{time.Hour, time.Hour, time.Hour, longestTick, 720},
		{time.Millisecond, time.Second, time.Second, shortestTick, 1},
		{26 * time.Second, 5 * time.Second, 100 * time.Second, time.Second, 26},
		{time.Second + 1, time.Second, time.Second, time.Second / 5, 6},
	} {
		config := Config{Ping: c.ping, HandshakeTimeout: c.handshake, CloseTimeout: c.closing}
		if got := config.tick(); got != c.tick {
			t.Errorf("%+v: a tick of %v, want %v", config, got, c.tick)
		}
		if got := config.pingTicks(); got != c.pings {
			t.Errorf("%+v: pings after %d ticks, want %d", config, got, c.pings)
		}
	}
}
