package loop

import (
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"wscast/daemon/frame"
)

func TestDelivery(t *testing.T) {
	everyway(t, func(t *testing.T, connect func(*rig) *wire) {
		r := start(t)
		var news, chat []*wire
		for range 5 {
			news = append(news, connect(r).join("news"))
			chat = append(chat, connect(r).join("chat"))
		}
		long := strings.Repeat("long ", 20_000)
		for i := range 3 {
			if n := r.publish("news", fmt.Sprint("news ", i)); n != 5 {
				t.Errorf("goes to %d clients, want 5", n)
			}
			r.publish("nobody", "is here")
			r.publish("chat", fmt.Sprint("chat ", i))
		}
		r.publish("news", long)
		for _, c := range news {
			c.expectText("news 0")
			c.expectText("news 1")
			c.expectText("news 2")
			c.expectText(long)
		}
		if _, err := r.store.Append([]byte("chat"), []byte{0xff, 0}, frame.Binary); err != nil {
			t.Fatal(err)
		}
		for _, c := range chat {
			c.expectText("chat 0")
			c.expectText("chat 1")
			c.expectText("chat 2")
			c.expectFrame(frame.Binary, "\xff\x00")
		}
		r.until("counted", func(s Stats) bool { return s.Deliveries == 5*4+5*4 })
	})
}

// numbered messages carry what a client needs to check that it misses none and gets none twice, and not a wrong byte.
func numbered(channel string, n int) string {
	body := fmt.Sprintf("%s %d %s", channel, n, strings.Repeat("x", n%701))
	return fmt.Sprintf("%08x %s", crc32.ChecksumIEEE([]byte(body)), body)
}

// expectNumbered reads the messages of a channel from one number up to another.
func (w *wire) expectNumbered(channel string, from, to int) error {
	for i := from; i < to; i++ {
		op, payload, err := w.next()
		if err != nil || op != frame.Text || string(payload) != numbered(channel, i) {
			return fmt.Errorf("message %d of %s: got frame %d %.100q, %v", i, channel, op, payload, err)
		}
	}
	return nil
}

// Clients over both kinds of sockets, some with small buffers: each gets every message of its channel exactly once
// and in order, and some leave in the middle of it. The publishers keep to what the clients take, as otherwise they
// are slow.
func TestExactlyOnce(t *testing.T) {
	const (
		clients  = 200
		channels = 5
		messages = 2000 // in each channel
		window   = 250
	)
	r := start(t)
	r.listen()
	connect := []func() *wire{
		r.dial, func() *wire { return r.pair(0) }, func() *wire { return r.pair(1) }, func() *wire { return r.tight(32 << 10) },
	}
	name := func(i int) string { return fmt.Sprint("channel-", i%channels) }
	var all sync.WaitGroup
	stepped := make(chan struct{})
	stay := 0
	for i := range clients {
		c := connect[i%len(connect)]().join(name(i))
		if i%10 == 9 {
			all.Go(func() {
				if err := c.expectNumbered(name(i), 0, rand.IntN(messages)); err != nil {
					t.Errorf("client %d: %v", i, err)
				}
				c.Close()
			})
			continue
		}
		stay++
		all.Go(func() {
			for from := 0; from < messages; from += window {
				if err := c.expectNumbered(name(i), from, from+window); err != nil {
					t.Errorf("client %d: %v", i, err)
				}
				stepped <- struct{}{}
			}
		})
	}
	for from := 0; from < messages && !t.Failed(); from += window {
		var publishers sync.WaitGroup
		for i := range channels {
			publishers.Go(func() {
				for n := from; n < from+window; n++ {
					r.publish(name(i), numbered(name(i), n))
				}
			})
		}
		publishers.Wait()
		for range stay {
			<-stepped
		}
	}
	all.Wait()
	r.until("counted", func(s Stats) bool { return s.Slow == 0 && s.Deliveries >= uint64(stay*messages) })
}

// A socket takes one byte at a time and refuses every other time, and yet what comes out is the same.
func TestWritesShortAtEveryByte(t *testing.T) {
	everyway(t, func(t *testing.T, connect func(*rig) *wire) {
		turn := 0
		short := func(fd int, b []byte) (int, syscall.Errno) {
			if turn++; turn%2 == 0 {
				return 0, unix.EAGAIN
			}
			return linux.send(fd, b[:1])
		}
		r := start(t, loopsOf(1), seam(func(sys *system) {
			sys.send = short
			sys.sendAll = func(fd int, slices [][]byte, _ []unix.Iovec) (int, syscall.Errno) { return short(fd, slices[0]) }
		}))
		a, b := connect(r).join("news"), connect(r).join("news")
		var want []string
		for i := range 30 {
			m := strings.Repeat(fmt.Sprint(i), 1+i*5)
			want = append(want, m)
			r.publish("news", m)
			r.publish("other", "in between, so that there are several slices")
		}
		for _, m := range want {
			a.expectText(m)
			b.expectText(m)
		}
		// Control frames keep to the borders of frames.
		r.publish("news", "one")
		a.send(masked(pingOp, "x"))
		r.publish("news", "two")
		seen := map[string]int{}
		for range 3 {
			op, payload := a.frame()
			seen[fmt.Sprint(op, " ", string(payload))]++
		}
		if seen["1 one"] != 1 || seen["1 two"] != 1 || seen["10 x"] != 1 {
			t.Errorf("got %v", seen)
		}
		a.send(closeFrame(1000, ""))
		a.expectClose(1000)
		b.expectText("one")
		b.expectText("two")
	})
}

// Whatever number of bytes the socket takes of what it is offered, the next offer begins behind them.
func TestWritesShortAtEachLength(t *testing.T) {
	var limit, left atomic.Int64
	r := start(t, loopsOf(1), seam(func(sys *system) {
		send := sys.send
		take := func(fd int, b []byte) (int, syscall.Errno) {
			n := min(int64(len(b)), left.Load())
			if n == 0 {
				left.Store(limit.Load())
				return 0, unix.EAGAIN
			}
			left.Add(-n)
			return send(fd, b[:n])
		}
		sys.send = take
		sys.sendAll = func(fd int, slices [][]byte, _ []unix.Iovec) (int, syscall.Errno) {
			var all []byte
			for _, b := range slices {
				all = append(all, b...)
			}
			return take(fd, all)
		}
	}))
	limit.Store(1000)
	c := r.pair(0).join("news")
	for n := int64(1); n < 150; n++ {
		limit.Store(n)
		for i := range 3 {
			r.publish("news", fmt.Sprintf("%03d-%d", n, i))
			r.publish("other", "x")
		}
		r.publish("news", strings.Repeat("y", 130))
		for i := range 3 {
			c.expectText(fmt.Sprintf("%03d-%d", n, i))
		}
		c.expectText(strings.Repeat("y", 130))
	}
}

// An error of one socket costs that client and no other.
func TestErrorsOfASocket(t *testing.T) {
	calls := map[string]func(sys *system, bad func(fd int) syscall.Errno){
		"send": func(sys *system, bad func(int) syscall.Errno) {
			sys.send = func(fd int, b []byte) (int, syscall.Errno) {
				if errno := bad(fd); errno != 0 {
					return 0, errno
				}
				return linux.send(fd, b)
			}
		},
		"peek": func(sys *system, bad func(int) syscall.Errno) {
			sys.peek = func(fd int, b []byte) (int, syscall.Errno) {
				if errno := bad(fd); errno != 0 {
					return 0, errno
				}
				return linux.peek(fd, b)
			}
		},
		"shutdown": func(sys *system, bad func(int) syscall.Errno) {
			sys.shutdown = func(fd, how int) syscall.Errno {
				if errno := bad(fd); errno != 0 {
					linux.shutdown(fd, how)
					return errno
				}
				return linux.shutdown(fd, how)
			}
		},
	}
	for name, change := range calls {
		t.Run(name, func(t *testing.T) {
			var broken atomic.Int64 // descriptor
			r := start(t, loopsOf(1), seam(func(sys *system) {
				change(sys, func(fd int) syscall.Errno {
					if int64(fd) == broken.Load() {
						return unix.EIO
					}
					return 0
				})
			}))
			var clients []*wire
			var fds []int
			for range 5 {
				ours, conn := socketpair(t, 0)
				enter(r, r.loops, ours)
				clients, fds = append(clients, wireOf(t, conn).join("news")), append(fds, ours)
			}
			broken.Store(int64(fds[2]))
			clients[2].send(masked(pingOp, "x"), closeFrame(1000, ""))
			r.publish("news", "hello")
			r.until("one is gone", func(s Stats) bool { return s.Clients == 4 })
			broken.Store(0)
			r.publish("news", "again")
			for i, c := range clients {
				if i != 2 {
					c.expectText("hello")
					c.expectText("again")
				}
			}
		})
	}
}

// A client is readable again after it was blocked with all kinds of things to come, and gets all of them.
func TestBlockedClientCatchesUp(t *testing.T) {
	for name, connect := range map[string]func(*rig) *wire{
		"tcp": func(r *rig) *wire { return r.tight(1) }, "unix": func(r *rig) *wire { return r.pair(1) },
	} {
		t.Run(name, func(t *testing.T) {
			r := start(t)
			c, other := connect(r).join("news"), r.dial().join("news")
			var want []string
			for i := range 400 {
				want = append(want, numbered("news", i*7))
				r.publish("news", want[i])
				r.publish("other", "in between")
				other.expectText(want[i])
			}
			r.until("blocked", func(s Stats) bool { return s.Blocked == 1 })
			c.send(masked(pingOp, "are you there?"))
			r.turned()
			pong := false
			for i := 0; i < len(want); {
				op, payload := c.frame()
				if op == frame.Pong && string(payload) == "are you there?" && !pong {
					pong = true
					continue
				}
				if op != frame.Text || string(payload) != want[i] {
					t.Fatalf("message %d: got %d %.100q", i, op, payload)
				}
				i++
			}
			if !pong {
				c.expectFrame(frame.Pong, "are you there?")
			}
			r.publish("news", "last")
			c.expectText("last")
			r.until("nobody is blocked", func(s Stats) bool { return s.Blocked == 0 && s.Slow == 0 && s.Clients == 2 })
		})
	}
}

// What a client has missed while its loop was busy is more than it is offered at once, in bytes and in slices.
func TestFarBehind(t *testing.T) {
	r := start(t, loopsOf(1))
	c := r.dial().join("news")
	leave := r.busy()
	for i := range 3000 {
		r.publish("news", numbered("news", i%300))
		if i > 2500 {
			r.publish("other", "x")
		}
	}
	leave()
	for range 10 {
		if err := c.expectNumbered("news", 0, 300); err != nil {
			t.Fatal(err)
		}
	}
}

// Clients join and leave, and channels with them, while others publish.
func TestComingAndGoing(t *testing.T) {
	r := start(t)
	stay := r.dial().join("news")
	stop, window := make(chan struct{}), make(chan struct{}, 500)
	var all, guests sync.WaitGroup
	last := 0
	all.Go(func() {
		for i := 0; ; i++ {
			select {
			case window <- struct{}{}: // at the pace of the client that stays
			case <-stop:
				last = i
				return
			}
			r.publish("news", numbered("news", i))
			r.publish(fmt.Sprint("gone-", i%7), "x")
		}
	})
	all.Go(func() {
		for i := 0; ; i++ {
			op, payload, err := stay.next()
			if string(payload) == "end" {
				return
			}
			if err != nil || op != frame.Text || string(payload) != numbered("news", i) {
				t.Errorf("message %d: %d %.100q %v", i, op, payload, err)
				return
			}
			select {
			case <-window:
			case <-stop:
			}
		}
	})
	for range 4 {
		guests.Go(func() {
			for i := range 50 {
				c := r.pair(0)
				if i%3 == 0 {
					c.join(fmt.Sprint("gone-", i%7))
					c.Close()
					continue
				}
				_, payload := c.join("news").frame()
				var first int
				if _, err := fmt.Sscanf(string(payload[9:]), "news %d", &first); err != nil || string(payload) != numbered("news", first) {
					t.Errorf("first message: %.100q", payload)
				} else if err := c.expectNumbered("news", first+1, first+4); err != nil {
					t.Error(err)
				}
				c.Close()
			}
		})
	}
	guests.Wait()
	close(stop)
	r.until("the guests are gone", func(s Stats) bool { return s.Clients == 1 })
	r.publish("news", "end")
	all.Wait()
	stay.Close()
	r.until("all are gone", func(s Stats) bool { return s.Clients == 0 && s.Deliveries > uint64(last) })
	if names := r.store.Channels(); len(names) > 0 {
		t.Errorf("channels without clients: %q", names)
	}
}
