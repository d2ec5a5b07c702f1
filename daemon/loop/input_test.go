package loop

import (
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"

	"wscast/daemon/frame"
)

func TestPingIsAnswered(t *testing.T) {
	everyway(t, func(t *testing.T, connect func(*rig) *wire) {
		r := start(t)
		c := connect(r).join("news")
		for _, payload := range []string{"", "x", strings.Repeat("p", 125)} {
			c.send(masked(pingOp, payload))
			c.expectFrame(frame.Pong, payload)
		}
		// In the middle of a fragmented message.
		c.send(masked(byte(frame.Text), "frag"), masked(pingOp, "1"), masked(byte(frame.Continuation), "men"),
			masked(pingOp, "2"), masked(fin|byte(frame.Continuation), "ted"), masked(pingOp, "3"))
		c.expectFrame(frame.Pong, "1")
		c.expectFrame(frame.Pong, "2")
		c.expectFrame(frame.Pong, "3")
		c.send(masked(pongOp, "nobody has asked"), masked(pingOp, "4"))
		c.expectFrame(frame.Pong, "4")
		r.until("one message", func(s Stats) bool { return s.Received == 1 })
	})
}

func TestMessagesAreCountedAndDropped(t *testing.T) {
	everyway(t, func(t *testing.T, connect func(*rig) *wire) {
		r := start(t)
		c := connect(r).join("news")
		c.send(masked(text, "hello"), masked(fin|byte(frame.Binary), "\xff"), masked(text, strings.Repeat("x", MaxMessage)),
			masked(pingOp, ""))
		c.expectFrame(frame.Pong, "")
		r.until("counted", func(s Stats) bool { return s.Received == 3 })
		if head := r.store.Head(); head != 0 {
			t.Errorf("%d messages in the log, want none", head)
		}
	})
}

// A frame grows in the socket until it is whole. What has been looked at already is told once only.
func TestFrameInPieces(t *testing.T) {
	everyway(t, func(t *testing.T, connect func(*rig) *wire) {
		r := start(t)
		c := connect(r).join("news")
		all := masked(text, "first") + masked(pingOp, strings.Repeat("p", 100)) + masked(text, "last") + masked(pingOp, "end")
		for i := range all {
			c.send(all[i : i+1])
			r.turned()
		}
		c.expectFrame(frame.Pong, strings.Repeat("p", 100))
		c.expectFrame(frame.Pong, "end")
		r.until("counted", func(s Stats) bool { return s.Received == 2 })
	})
}

// A writer into a Unix-domain socket can have some 280 writes unread. A frame of more is taken out of the socket.
func TestFrameInMorePiecesThanASocketHolds(t *testing.T) {
	r := start(t, with(brisk), loopsOf(1))
	c := r.pair(0).join("news")
	for range 2 {
		all := masked(text, strings.Repeat("x", 1500)) + masked(pingOp, "end")
		for i := range all {
			c.send(all[i : i+1])
		}
		c.expectFrame(frame.Pong, "end")
	}
	c.send(masked(text, "half of it")[:8])
	held := func() (n int) {
		r.inside(func(l *loop) { n = len(l.held) })
		return n
	}
	r.until("held", func(Stats) bool { return held() == 1 })
	c.Close()
	r.until("gone", func(s Stats) bool { return s.Clients == 0 && s.Received == 2 })
	if n := held(); n != 0 {
		t.Errorf("%d beginnings of frames are left", n)
	}
}

// The beginning of a frame can keep so much of a TCP socket's receive buffer that the rest of the frame finds no room, and is dropped by the kernel each time
// that it comes. Then it is taken out of the socket, and otherwise not.
func TestBeginningOfAFrameInAFullSocket(t *testing.T) {
	for name, c := range map[string]struct {
		room int
		held bool
	}{"full": {receiveBuffer - 1, true}, "half full": {receiveBuffer, false}} {
		t.Run(name, func(t *testing.T) {
			asked := newSignal()
			r := start(t, with(brisk), loopsOf(1), seam(func(sys *system) {
				sys.room = func(int) (free, all int) { asked.give(); return c.room, 2 * receiveBuffer }
			}))
			w := r.dial().join("news")
			all := masked(pingOp, "whole")
			w.send(all[:4])
			asked.wait(t, "the beginning of a frame to be looked at")
			held := -1
			r.inside(func(l *loop) { held = len(l.held) })
			if (held == 1) != c.held {
				t.Errorf("%d beginnings of frames are held", held)
			}
			w.send(all[4:])
			w.expectFrame(frame.Pong, "whole")
		})
	}
}

func TestCloseHandshake(t *testing.T) {
	everyway(t, func(t *testing.T, connect func(*rig) *wire) {
		for _, code := range []uint16{1000, 1001, 1002, 1007, 1012, 1013, 3000, 4999} {
			r := start(t)
			c := connect(r).join("news")
			c.send(closeFrame(code, "bye"), masked(text, "what comes after it is not looked at"))
			if reason := c.expectClose(code); reason != "" {
				t.Errorf("reason %q", reason)
			}
			if n := r.publish("news", "hello"); n != 0 {
				t.Errorf("%d clients after the close frame", n)
			}
			c.Close()
			r.until("gone", func(s Stats) bool { return s.Clients == 0 && s.Closing == 0 && s.Closed[closeNormal] == 1 })
		}
		r := start(t)
		c := connect(r).join("news")
		c.send(masked(closeOp, ""))
		c.expectFrame(frame.Close, "")
		c.expectEnd()
	})
}

func TestEndRightBehindTheCloseFrame(t *testing.T) {
	everyway(t, func(t *testing.T, connect func(*rig) *wire) {
		r := start(t)
		c := connect(r).join("news")
		c.send(masked(pingOp, "x"), closeFrame(1000, ""))
		c.Conn.(interface{ CloseWrite() error }).CloseWrite()
		c.expectFrame(frame.Pong, "x")
		c.expectClose(1000)
		r.until("gone", func(s Stats) bool { return s.Clients == 0 && s.Closed[closeNormal] == 1 })
	})
}

func TestProtocolErrors(t *testing.T) {
	for _, e := range []struct {
		name string
		code uint16
		send string
	}{
		{"reserved bits (5.2)", 1002, masked(text|0x40, "x")},
		{"reserved opcode (5.2)", 1002, masked(fin|3, "x")},
		{"unmasked (5.1)", 1002, "\x81\x01x"},
		{"continuation of nothing (5.4)", 1002, masked(fin, "x")},
		{"fragmented ping (5.5)", 1002, masked(byte(frame.Ping), "x")},
		{"close code that must not be sent (7.4)", 1002, closeFrame(1005, "")},
		{"close of one byte (5.5.1)", 1002, masked(closeOp, "x")},
		{"text that is not UTF-8 (8.1)", 1007, masked(text, "\xff")},
		{"beginning of a text that is not UTF-8 (8.1)", 1007, masked(text, "\xc0\xaf and more")[:9]},
		{"close reason that is not UTF-8 (8.1)", 1007, closeFrame(1000, "\xff")},
		{"too large a frame (7.4.1)", 1009, masked(text, strings.Repeat("x", MaxMessage+1))},
		{"too large in fragments (7.4.1)", 1009, masked(byte(frame.Binary), strings.Repeat("x", MaxMessage)) + masked(fin, "x")},
	} {
		t.Run(e.name, func(t *testing.T) {
			everyway(t, func(t *testing.T, connect func(*rig) *wire) {
				r := start(t)
				other := connect(r).join("news")
				c := connect(r).join("news")
				c.send(masked(pingOp, "before"), e.send)
				c.expectFrame(frame.Pong, "before")
				if reason := c.expectClose(e.code); reason == "" {
					t.Error("no reason")
				}
				c.Close()
				r.until("gone", func(s Stats) bool { return s.Clients == 1 && s.Closed[closeFailed] == 1 })
				r.publish("news", "hello")
				other.expectText("hello")
			})
		})
	}
}

func TestGoneWithoutACloseFrame(t *testing.T) {
	everyway(t, func(t *testing.T, connect func(*rig) *wire) {
		for name, end := range map[string]func(c *wire){
			"closed":                 func(c *wire) { c.Close() },
			"half closed":            func(c *wire) { c.Conn.(interface{ CloseWrite() error }).CloseWrite() },
			"in the middle of frame": func(c *wire) { c.send(masked(text, "hello")[:7]); c.Close() },
			"after a message":        func(c *wire) { c.send(masked(text, "hello")); c.Close() },
			"reset": func(c *wire) {
				if tcp, ok := c.Conn.(*net.TCPConn); ok {
					tcp.SetLinger(0)
				}
				c.Close()
			},
		} {
			r := start(t)
			c := connect(r).join("news")
			end(c)
			r.until(name+": gone", func(s Stats) bool { return s.Clients == 0 && s.Closed[closeAbnormal] == 1 })
			if n := r.publish("news", "hello"); n != 0 {
				t.Errorf("%s: still %d clients", name, n)
			}
		}
	})
}

// Gone while blocked in the middle of a frame.
func TestBlockedClientIsGone(t *testing.T) {
	everyway(t, func(t *testing.T, connect func(*rig) *wire) {
		r := start(t)
		c := connect(r).join("news")
		for range 9 {
			r.publish("news", strings.Repeat("x", 100_000))
			r.turned()
		}
		if tcp, ok := c.Conn.(*net.TCPConn); ok { // the kernel's buffers are larger than the log
			for n := 0; r.loops.Stats().Blocked == 0 && n < 500; n++ {
				r.publish("news", strings.Repeat("x", 100_000))
				r.turned()
			}
			tcp.SetLinger(0)
		}
		r.until("blocked", func(s Stats) bool { return s.Blocked == 1 })
		c.Close()
		r.until("gone", func(s Stats) bool { return s.Clients == 0 && s.Blocked == 0 })
	})
}

// A pong waits for the end of the frame that is half out, and only the newest pongs wait: a client that pings and does
// not read costs no memory.
func TestPingsOfAClientThatDoesNotRead(t *testing.T) {
	r := start(t, loopsOf(1))
	c := r.pair(1).join("news")
	long := strings.Repeat("x", 100_000)
	r.publish("news", long)
	r.until("blocked", func(s Stats) bool { return s.Blocked == 1 })
	const pings = 5000
	for i := range pings {
		c.send(masked(pingOp, fmt.Sprintf("%0100d", i)))
	}
	c.send(masked(text, "that was all"))
	r.until("all are read", func(s Stats) bool { return s.Received == 1 })
	r.inside(func(l *loop) {
		if p := l.slab.at(0).pending; p == nil || len(p.bytes) > 2*(mostPongs+127) {
			t.Errorf("waiting: %d bytes, want at most two batches of pongs", len(p.bytes))
		}
	})
	c.expectText(long)
	var last string
	for last != fmt.Sprintf("%0100d", pings-1) {
		op, payload := c.frame()
		if op != frame.Pong || string(payload) <= last {
			t.Fatalf("got %d %.200q after %q, want newer pongs", op, payload, last)
		}
		last = string(payload)
	}
	r.publish("news", "on")
	c.expectText("on")
}

// Clients that flood are read in portions, and deliveries go on in between. Every ping of a moderate number is
// answered.
func TestFloods(t *testing.T) {
	everyway(t, func(t *testing.T, connect func(*rig) *wire) {
		r := start(t, loopsOf(1))
		var flood sync.WaitGroup
		stop := make(chan struct{})
		const flooders = 4
		for range flooders {
			c := connect(r).join("floods")
			flood.Go(func() {
				b := []byte(strings.Repeat(masked(text, "flood")+masked(pongOp, ""), 5000))
				for {
					select {
					case <-stop:
						return
					default:
						if _, err := c.Write(b); err != nil {
							t.Error(err)
							return
						}
					}
				}
			})
		}
		c := connect(r).join("news")
		r.until("flooded", func(s Stats) bool { return s.Received > 0 })
		for i := range 50 {
			r.publish("news", fmt.Sprint(i))
			c.expectText(fmt.Sprint(i))
			c.send(masked(pingOp, "1"), masked(pingOp, "2"))
			c.expectFrame(frame.Pong, "1")
			c.expectFrame(frame.Pong, "2")
		}
		close(stop)
		flood.Wait()
	})
}
