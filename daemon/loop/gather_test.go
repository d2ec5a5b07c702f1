package loop

import (
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// What is published while the loop gathers goes out with one write, and not before.
func TestGather(t *testing.T) {
	config := patient
	config.Gather = time.Hour
	var sends atomic.Int32
	r := start(t, with(config), loopsOf(1), seam(func(sys *system) {
		send, sendAll := sys.send, sys.sendAll
		sys.send = func(fd int, b []byte) (int, syscall.Errno) { sends.Add(1); return send(fd, b) }
		sys.sendAll = func(fd int, s [][]byte, v []unix.Iovec) (int, syscall.Errno) { sends.Add(1); return sendAll(fd, s, v) }
	}))
	c := r.dial().join("news")
	r.publish("other", "the first message moves the edge of the log to where it begins")
	r.turned()
	before := sends.Load()
	for _, text := range []string{"one", "two", "three"} {
		r.publish("news", text)
		r.turned()
	}
	if n := sends.Load() - before; n != 0 {
		t.Errorf("%d writes while more may come", n)
	}
	l := r.loops.loops[0]
	l.gathered.Store(true) // as the gatherer does
	l.wake()
	for _, text := range []string{"one", "two", "three"} {
		c.expectText(text)
	}
	if n := sends.Load() - before; n != 1 {
		t.Errorf("%d writes, want 1", n)
	}

	config.Gather = time.Millisecond
	r.loops.Configure(config)
	r.publish("news", "four")
	l.gathered.Store(true) // the timer of before is not changed
	l.wake()
	c.expectText("four")
	r.publish("news", "five")
	c.expectText("five")
}

// A log that is full is not waited for.
func TestGatheringHoldsNobodyUp(t *testing.T) {
	config := patient
	config.Gather = time.Hour
	r := start(t, with(config))
	c := r.dial().join("news")
	message := string(make([]byte, 10_000))
	const (
		messages = 240 // more than twice the log
		ahead    = 95  // of the client: enough to have the log full, and with what is in the socket not enough to make the client slow
	)
	places := make(chan struct{}, ahead)
	go func() {
		for range messages {
			places <- struct{}{}
			r.publish("news", message)
		}
		r.loops.Configure(patient)
	}()
	for range messages {
		c.expectText(message)
		<-places
	}
}
