package loop

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"reflect"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"wscast/daemon/frame"
	"wscast/daemon/msglog"
	"wscast/daemon/survive"
)

// What a client costs besides its socket: numbers in doc.go and README depend on it.
func TestSizeOfAClient(t *testing.T) {
	if size := reflect.TypeFor[client]().Size(); size != 104 {
		t.Errorf("a client has %d bytes, want 104: correct the documentation", size)
	}
}

// still is a loop that nobody turns but the test, with clients whose sockets are not read, or read by drain.
func still(t testing.TB, sys *system, clients int) (l *loop, store *msglog.Log, drain func()) {
	t.Helper()
	store, err := msglog.Create(msglog.Options{Size: 16 << 20, Channels: 10})
	if err != nil {
		t.Fatal(err)
	}
	table, err := survive.NewTable(10_000, store.Epoch())
	if err != nil {
		t.Fatal(err)
	}
	g := &Loops{store: store, keep: survive.Keep{Table: table}, host: new(door), log: slog.New(slog.DiscardHandler)}
	config := patient
	if l, err = newLoop(g, &config, sys); err != nil {
		t.Fatal(err)
	}
	var conns []net.Conn
	for range clients {
		ours, theirs := socketpair(t, 0)
		l.newcomers = append(l.newcomers, arrival(t, l.keep, ours))
		conns = append(conns, theirs)
		if _, err := io.WriteString(theirs, request("news")); err != nil {
			t.Fatal(err)
		}
	}
	for l.count.Handshakes < uint64(clients) {
		l.ready = epollWait(l.epfd, l.events[:])
		l.turn()
	}
	buffer := make([]byte, 64<<10)
	var raws []syscall.RawConn
	for _, c := range conns {
		raw, err := c.(*net.UnixConn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		raws = append(raws, raw)
	}
	drain = func() {
		for _, raw := range raws {
			_ = raw.Control(func(fd uintptr) { _, _ = linux.receive(int(fd), buffer) })
		}
	}
	drain()
	t.Cleanup(func() {
		closed := make(chan struct{})
		close(closed)
		l.ending = &ending{deadline: closed}
		if !l.ended() {
			t.Error("the loop has not ended")
		}
		l.file.Close()
		for _, c := range conns {
			c.Close()
		}
		if err := errors.Join(store.Close(), table.Close()); err != nil {
			t.Error(err)
		}
	})
	return l, store, drain
}

// swallow is a system whose sockets take everything.
func swallow() *system {
	sys := linux
	sys.send = func(_ int, b []byte) (int, syscall.Errno) { return len(b), 0 }
	sys.sendAll = func(_ int, slices [][]byte, _ []unix.Iovec) (n int, _ syscall.Errno) {
		for _, b := range slices {
			n += len(b)
		}
		return n, 0
	}
	return &sys
}

func TestDeliveryDoesNotAllocate(t *testing.T) {
	sys := swallow()
	l, store, _ := still(t, sys, 100)
	message, news, other := make([]byte, 128), []byte("news"), []byte("other")
	round := func() {
		for range 3 {
			if _, err := store.Append(news, message, frame.Binary); err != nil {
				t.Fatal(err)
			}
			if _, err := store.Append(other, message, frame.Binary); err != nil {
				t.Fatal(err)
			}
		}
		l.turn()
	}
	round()
	before := l.count.Deliveries
	if n := testing.AllocsPerRun(100, round); n != 0 {
		t.Errorf("%v allocations in a round of deliveries to 100 clients, want none", n)
	}
	if n := l.count.Deliveries - before; n != 101*3*100 {
		t.Errorf("%d deliveries", n)
	}
}

func TestIdleClientsDoNotAllocate(t *testing.T) {
	l, _, _ := still(t, swallow(), 100)
	if n := testing.AllocsPerRun(100, l.turn); n != 0 {
		t.Errorf("%v allocations in an idle turn, want none", n)
	}
}

// Whatever is left for a loop by others, it does not sleep through it.
func TestWakeUps(t *testing.T) {
	r := start(t)
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			c := r.pair(0).join("news")
			for range 500 { // one at a time: the loops fall asleep in between
				c.send(masked(pingOp, "x"))
				for {
					if op, _ := c.frame(); op == frame.Pong {
						break
					}
				}
			}
			c.Close()
		})
	}
	c := r.pair(0).join("other")
	for range 2000 {
		r.publish("other", "x")
		c.expectText("x")
		r.publish("news", "y")
	}
	all.Wait()
}

// A message is delivered because of its own wake-up: alone, with nothing else that would wake the loop, and among others, which take the list of news
// while it is being put there. Each comes when the loop has just sent the one before it, and is about to fall asleep.
func TestNoWakeUpIsLost(t *testing.T) {
	for _, channels := range []int{1, 3} {
		t.Run(fmt.Sprintf("channels: %d", channels), func(t *testing.T) {
			r := start(t, loopsOf(1))
			var all sync.WaitGroup
			for i := range channels {
				name := fmt.Sprint("c", i)
				c := r.pair(0).join(name)
				all.Go(func() {
					for n := range 10_000 / channels {
						for range rand.IntN(2000) { // some microseconds
						}
						if _, _, err := r.store.Put([]byte(name), []byte("x"), nil, frame.Text); err != nil {
							t.Error(err)
						}
						r.store.Flush()
						if op, b, err := c.next(); err != nil || op != frame.Text || string(b) != "x" {
							t.Errorf("message %d: frame %d %q, %v", n, op, b, err)
							return
						}
					}
				})
			}
			all.Wait()
		})
	}
}

// What a client whose socket is full is to be told is in its record, for an heir to say.
func TestWhatWaitsIsNoted(t *testing.T) {
	l, _, _ := still(t, &linux, 1)
	c := l.slab.at(0)
	l.blockOn(c)
	l.close(c, closeSlow, frame.CloseTryAgainLater, SlowReason)
	p, _ := c.record.Place()
	if want := len(frame.AppendClose(nil, frame.CloseTryAgainLater, SlowReason)); int(p.Extra) != want || p.Marks != survive.Goodbye|survive.Awaited {
		t.Errorf("the record has %+v, want %d bytes", p, want)
	}
}

// Events of a client that is gone do not reach the one that has its slot now.
func TestLateEvent(t *testing.T) {
	l, _, _ := still(t, &linux, 1)
	c := l.slab.at(0)
	late := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLHUP, Fd: int32(c.slot), Pad: int32(c.gen)}
	l.later(c)
	l.drop(c, "gone")
	l.handle(&late)
	ours, theirs := socketpair(t, 0)
	defer theirs.Close()
	l.add(arrival(t, l.keep, ours))
	if l.slab.at(0).fd != int32(ours) {
		t.Fatal("the slot was not used again")
	}
	l.handle(&late)
	l.goOnWith(turnful)
	if l.slab.at(0).fd != int32(ours) || l.count.Clients != 1 || l.count.Opening != 1 {
		t.Error("the new client was taken for the old one")
	}
}

// A turn goes on with so many clients only, and with the others in the next turns.
func TestTurnful(t *testing.T) {
	l, _, _ := still(t, swallow(), 5)
	for i := range uint32(5) {
		l.later(l.slab.at(i))
	}
	l.goOnWith(2)
	if len(l.again) != 3 || l.again[0] != l.slab.at(2) || l.slab.at(0).flags&again != 0 || l.slab.at(2).flags&again == 0 {
		t.Error("not the first two")
	}
	l.goOnWith(turnful)
	if len(l.again) != 0 || l.slab.at(4).flags&again != 0 {
		t.Error("not the rest")
	}
}

func benchmarkDeliver(b *testing.B, sys *system) {
	const clients = 1000
	l, store, drain := still(b, sys, clients)
	message, news := make([]byte, 128), []byte("news")
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		if _, err := store.Append(news, message, frame.Binary); err != nil {
			b.Fatal(err)
		}
		l.turn()
		if i++; i%100 == 0 {
			b.StopTimer()
			drain()
			b.StartTimer()
		}
	}
	if l.count.Blocked > 0 || l.count.Deliveries != uint64(i)*clients {
		b.Errorf("%d of %d deliveries", l.count.Deliveries, i*clients)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(i*clients), "ns/delivery")
}

// One message at a time to 1,000 clients: with Unix-domain sockets, and without the system call.
func BenchmarkDeliver(b *testing.B) {
	b.Run("unix", func(b *testing.B) { benchmarkDeliver(b, &linux) })
	b.Run("none", func(b *testing.B) { benchmarkDeliver(b, swallow()) })
}

// Pongs that wait are replaced by newer ones, but one that is half out is completed, and nothing else is replaced.
func TestNewestPongs(t *testing.T) {
	var out []byte
	room := 0
	sys := linux
	l, _, _ := still(t, &sys, 1)
	sys.send = func(_ int, b []byte) (int, syscall.Errno) {
		n := min(len(b), room)
		room -= n
		out = append(out, b[:n]...)
		if n == 0 {
			return 0, unix.EAGAIN
		}
		return n, 0
	}
	c := l.slab.at(0)
	pong := func(payload string) { l.sayAs(c, frame.AppendPong(nil, []byte(payload)), true) }
	room = 4
	pong("first") // 4 bytes of it are out
	pong("second")
	pong("third")
	l.say(c, frame.AppendPing(nil, []byte("ours")))
	pong("fourth")
	room = 5
	l.flush(c) // up to the end of the first and into the third
	pong("fifth")
	room = 1000
	l.flush(c)
	var want []byte
	want = frame.AppendPong(want, []byte("first"))
	want = frame.AppendPong(want, []byte("third"))
	want = frame.AppendPing(want, []byte("ours"))
	want = frame.AppendPong(want, []byte("fifth"))
	if string(out) != string(want) {
		t.Errorf("got %q, want %q", out, want)
	}
	if c.pending != nil || c.block != 0 {
		t.Error("everything is out, and the client still blocked")
	}
	// A good-bye takes the place of pongs that nobody waits for any more.
	room, out = 0, nil
	pong("sixth")
	l.close(c, closeNormal, 1000, "")
	room = 1000
	l.flush(c)
	if want := frame.AppendClose(nil, 1000, ""); string(out) != string(want) {
		t.Errorf("got %q, want the close frame", out)
	}
}
