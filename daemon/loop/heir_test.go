package loop

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"wscast/daemon/frame"
	"wscast/daemon/msglog"
	"wscast/daemon/survive"
	"wscast/daemon/survive/shelf"
)

// dynasty is one process after the other: loops on the same log, table and lot.
type dynasty struct {
	testing.TB
	shelf  *shelf.Shelf
	config Config
	sys    *system
	n      int  // loops
	rings  int  // of the log
	talks  bool // clients may publish

	mu    sync.Mutex // of those who publish, against a change on the throne
	store *msglog.Log
	keep  survive.Keep
	loops *Loops
	sum   Stats // of those who are gone
	heirs int
}

func newDynasty(t testing.TB, loops int, config Config, sys *system) *dynasty {
	t.Helper()
	return newDynastyOver(t, 1, loops, config, sys)
}

func newDynastyOver(t testing.TB, rings, loops int, config Config, sys *system) *dynasty {
	t.Helper()
	d := &dynasty{TB: t, shelf: shelf.New(t), config: config, sys: sys, n: loops, rings: rings}
	var err error
	if d.store, err = msglog.CreateAll(d.arrangement()); err != nil {
		t.Fatal(err)
	}
	if d.keep.Table, err = survive.NewTable(1000, d.store.Epoch()); err != nil {
		t.Fatal(err)
	}
	d.keep.Lot = survive.NewLot(d.shelf, d.keep.Table)
	d.reign()
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		d.loops.Close(ctx, frame.CloseServiceRestart, "", 0)
		d.bury()
	})
	return d
}

func (d *dynasty) arrangement() *msglog.Arrangement {
	return ringsOf(d.rings, msglog.Options{Size: msglog.MinSize, Channels: 100})
}

func (d *dynasty) reign() {
	d.Helper()
	var err error
	host := new(door)
	if store := d.store; d.talks {
		host.publish = func(u *Upstream) (int, Refusal) { return appended(store, u) }
	}
	if d.loops, err = newLoops(d.store, d.keep, d.n, host, d.config, slog.New(slog.DiscardHandler), d.sys); err != nil {
		d.Fatal(err)
	}
}

func (d *dynasty) bury() {
	d.keep.Lot.Close()
	if err := errors.Join(d.store.Close(), d.keep.Table.Close()); err != nil {
		d.Error(err)
	}
}

// talking is for the beginning: from now on clients may publish.
func (d *dynasty) talking() {
	d.talks, d.config.Upstream = true, true
	store := d.store
	d.loops.host.(*door).publish = func(u *Upstream) (int, Refusal) { return appended(store, u) }
	d.loops.Configure(d.config)
}

// appended is what a door does that lets clients publish.
func appended(store *msglog.Log, u *Upstream) (int, Refusal) {
	clients, _, err := store.Put([]byte(u.Channel), u.Data, u.Once, frame.Text)
	if err != nil {
		return 0, Refusal{"unavailable", err.Error()}
	}
	store.Flush()
	return clients, Refusal{}
}

// fall is what remains to be done when a loop has been killed: its descriptors close.
func (d *dynasty) fall() {
	d.loops.wait()
	for _, l := range d.loops.loops {
		for _, n := range l.newcomers {
			_ = unix.Close(n.FD)
		}
		for _, block := range l.slab.blocks {
			for i := range block {
				if c := &block[i]; c.fd >= 0 {
					_ = unix.Close(int(c.fd))
				}
			}
		}
		_ = l.file.Close()
	}
}

// succeed is the next process.
func (d *dynasty) succeed() {
	d.Helper()
	was := d.loops.Stats()
	d.sum.add(&was)
	d.heirs++
	var rings []*os.File
	for ring := range d.store.Rings() {
		rings = append(rings, sameFile(d, d.store.File(ring)))
	}
	table := sameFile(d, d.keep.Table.File())
	d.bury()
	var err error
	if d.store, err = msglog.Open(rings...); err != nil || !d.store.Fits(d.arrangement()) {
		d.Fatal("the log is not as it was: ", err)
	}
	if d.keep.Table, err = survive.OpenTable(table); err != nil {
		d.Fatal(err)
	}
	var found []survive.Found
	if d.keep.Lot, found, err = survive.Recover(d.shelf, d.keep.Table, d.shelf.Next()); err != nil {
		d.Error(err)
	}
	d.reign()
	d.loops.Adopt(found)
}

// sameFile is a file once more, as the fd store gives it back.
func sameFile(t testing.TB, f *os.File) *os.File {
	t.Helper()
	raw, err := f.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var d int
	if cerr := raw.Control(func(fd uintptr) { d, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) }); cerr != nil || err != nil {
		t.Fatal(cerr, err)
	}
	return os.NewFile(uintptr(d), f.Name())
}

// restart is a clean one.
func (d *dynasty) restart() {
	d.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), patienceOfTests)
	defer cancel()
	d.loops.Suspend(ctx)
	d.succeed()
}

func (d *dynasty) publish(channel, message string) {
	d.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, err := d.store.Append([]byte(channel), []byte(message), frame.Text); err != nil {
		d.Fatal(err)
	}
}

func (d *dynasty) stats() Stats {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.loops.Stats()
	s.add(&d.sum)
	return s
}

// enter lets a connection in: our end of it, and the client's.
func (d *dynasty) enter(fd int, conn net.Conn) *wire {
	d.mu.Lock()
	defer d.mu.Unlock()
	enter(d, d.loops, fd)
	return wireOf(d, conn)
}

// tcp opens a TCP connection; with buffer > 0 its buffers are as small as that, or as they can be.
func (d *dynasty) tcp(buffer int) *wire {
	d.Helper()
	return d.enter(tcpPair(d, buffer))
}

func (d *dynasty) unix(buffer int) *wire {
	d.Helper()
	return d.enter(socketpair(d, buffer))
}

// until waits for something that the loops do.
func (d *dynasty) until(what string, so func(Stats) bool) {
	d.Helper()
	(&rig{TB: d, loops: d.loops}).until(what, so)
}

func TestRestartIsNotNoticed(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			d := newDynasty(t, 2, patient, &linux)
			open := d.tcp
			if network == "unix" {
				open = d.unix
			}
			early, silent := open(0).join("news"), open(0)
			whole := masked(text, "hello, and more")
			for i := range whole { // in the middle of whatever the client sends
				d.publish("news", fmt.Sprint("before ", i))
				early.send(whole[:i])
				d.restart()
				d.publish("news", fmt.Sprint("after ", i))
				early.send(whole[i:])
				early.expectText(fmt.Sprint("before ", i))
				early.expectText(fmt.Sprint("after ", i))
			}
			// A request in several parts meets as many processes.
			head := request("news")
			for _, part := range []string{head[:1], head[1 : len(head)-1], head[len(head)-1:]} {
				d.restart()
				silent.send(part)
			}
			silent.expect(upgraded)
			d.publish("news", "both")
			early.expectText("both")
			silent.expectText("both")
			d.until("all that was sent is counted", func(Stats) bool { return d.stats().Received == uint64(len(whole)) })
			if s := d.stats(); s.Lost != 0 || s.Repaired != 0 || s.Clients != 2+s.Adopted+s.Opening && s.Lost > 0 {
				t.Errorf("%+v", s)
			}
			early.send(closeFrame(frame.CloseNormal, ""))
			early.expectClose(frame.CloseNormal)
		})
	}
}

// What is half out when a process ends is completed by the next one, wherever that was.
func TestRestartInTheMiddleOfAFrame(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			d := newDynasty(t, 1, patient, &linux)
			var c *wire
			if network == "tcp" {
				c = d.tcp(4096).join("news")
			} else {
				c = d.unix(4096).join("news")
			}
			const size = 100_000
			for i := range 5 {
				d.publish("news", strings.Repeat(string(rune('a'+i)), size))
			}
			c.send(masked(pingOp, "still there?")) // its pong waits for the end of the frame
			for i := range 5 {
				d.until("the client is full", func(s Stats) bool { return s.Blocked == 1 || i == 4 })
				d.restart()
				op, got := c.frame()
				if op == frame.Pong {
					op, got = c.frame()
				}
				if op != frame.Text || string(got) != strings.Repeat(string(rune('a'+i)), size) {
					t.Fatalf("message %d: frame %d of %d bytes", i, op, len(got))
				}
			}
			d.publish("news", "after")
			op, got := c.frame()
			if op == frame.Pong {
				op, got = c.frame()
			}
			if op != frame.Text || string(got) != "after" {
				t.Fatalf("frame %d %q", op, got)
			}
			if s := d.stats(); s.Lost != 0 || s.Repaired == 0 {
				t.Errorf("%+v", s)
			}
		})
	}
}

// A client in the middle of a frame that the log has overwritten has the rest of it in the memory of the process alone. The heir gives it up, and sends it nothing
// that is not of that frame.
func TestSlowAtARestart(t *testing.T) {
	for _, skip := range []bool{false, true} {
		config := patient
		config.SkipSlow = skip
		d := newDynasty(t, 1, config, &linux)
		c := d.tcp(4096).join("news")
		message := strings.Repeat("x", 100_000)
		d.publish("news", message)
		d.until("the client is full", func(s Stats) bool { return s.Blocked == 1 })
		for range 2 * msglog.MinSize / len(message) {
			d.publish("news", message)
		}
		d.until("it is slow", func(s Stats) bool { return s.Slow > 0 })
		d.restart()
		want := frame.AppendHeader(nil, frame.Text, len(message))
		want = append(want, message...)
		if got := c.all(); !strings.HasPrefix(string(want), got) {
			t.Errorf("got %d bytes that are not the beginning of the message", len(got))
		}
		if s := d.loops.Stats(); s.Lost != 1 || s.Slow != 1 || s.Closed[closeSlow] != 1 {
			t.Errorf("%+v", s)
		}
	}
}

// One that was between two frames is told what it would have been told.
func TestSlowBetweenFramesAtARestart(t *testing.T) {
	var full atomic.Bool
	sys := linux
	sys.send = func(fd int, b []byte) (int, syscall.Errno) {
		if full.Load() {
			return 0, unix.EAGAIN
		}
		return linux.send(fd, b)
	}
	d := newDynasty(t, 1, patient, &sys)
	c := d.tcp(0).join("news")
	d.publish("news", "before")
	c.expectText("before")
	full.Store(true)
	message := strings.Repeat("x", 100_000)
	d.publish("news", message)
	d.until("the client is full", func(s Stats) bool { return s.Blocked == 1 })
	for range 2 * msglog.MinSize / len(message) {
		d.publish("news", message)
	}
	d.until("it is slow", func(s Stats) bool { return s.Slow > 0 })
	d.sys = &linux // for the heir
	d.restart()
	if reason := c.expectClose(frame.CloseTryAgainLater); reason != SlowReason {
		t.Error(reason)
	}
}

// The rest of a frame can take its time: its beginning stays in the socket of a TCP connection, where an heir finds it.
func TestHalfAFrameAtARestart(t *testing.T) {
	config := brisk
	config.HandshakeTimeout, config.CloseTimeout, config.MaxMessage = patientOfHeld, patientOfHeld, 4096
	d := newDynasty(t, 1, config, &linux)
	c := d.tcp(0).join("news")
	whole := masked(text, "in two parts")
	c.send(whole[:5])
	d.until("it has been looked after", func(Stats) bool { return d.loops.ticks.Load() >= 10 })
	d.restart()
	c.send(whole[5:], masked(pingOp, "and"))
	c.expectFrame(frame.Pong, "and")
	if s := d.stats(); s.Received != 1 || s.Lost != 0 {
		t.Errorf("%+v", s)
	}
}

// A pong that waits for the end of a frame can be lost with the process. Nothing else is: what comes next is answered.
func TestPongBehindHalfAFrameAtARestart(t *testing.T) {
	d := newDynasty(t, 1, patient, &linux)
	c := d.tcp(4096).join("news")
	message := strings.Repeat("x", 100_000)
	d.publish("news", message)
	d.until("the client is full", func(s Stats) bool { return s.Blocked == 1 })
	before, _ := d.keep.Table.At(0).Place()
	c.send(masked(pingOp, "early"))
	d.until("the ping is taken", func(Stats) bool {
		p, _ := d.keep.Table.At(0).Place()
		return p.Received > before.Received
	})
	d.restart()
	c.send(masked(pingOp, "late"))
	c.expectMessages(message)
	for pong := ""; pong != "late"; {
		op, payload := c.frame()
		if pong = string(payload); op != frame.Pong || pong != "early" && pong != "late" {
			t.Fatalf("frame %d %q", op, payload)
		}
	}
	d.publish("news", "after")
	c.expectText("after")
	if s := d.stats(); s.Lost != 0 || s.Repaired != 1 {
		t.Errorf("%+v", s)
	}
}

// Who could not be parked is served as far as it goes, and told; who has not asked yet is answered.
func TestUnparkedAtARestart(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		d := newDynasty(t, 2, patient, &linux)
		d.shelf.Refuse(errors.New("no room"))
		connect := d.tcp
		if network == "unix" {
			connect = d.unix
		}
		open, gone, silent, full := connect(0).join("news"), connect(0).join("news"), connect(0), connect(4096).join("full")
		message := strings.Repeat("x", 100_000)
		d.publish("full", message)
		d.until("one is full", func(s Stats) bool { return s.Blocked == 1 })
		gone.Close()
		d.until("one has gone, and one has not asked", func(s Stats) bool { return s.Clients == 3 && s.Handshakes == 3 && s.Opening == 1 })
		d.publish("news", "before")
		restarted := make(chan struct{})
		go func() {
			defer close(restarted)
			d.restart()
		}()
		open.expectText("before")
		open.expectClose(frame.CloseServiceRestart)
		open.Close()
		if got := silent.all(); got != string(new(door).Refuse(503, RestartReason)) {
			t.Errorf("who has not asked gets %q", got)
		}
		silent.Close()
		full.expectText(message)
		full.expectClose(frame.CloseServiceRestart)
		full.Close()
		<-restarted
		if s := d.stats(); s.Adopted != 0 || s.Lost != 0 || s.Closed[closeStopped] != 2 {
			t.Errorf("%+v", s)
		}
	}
}

// Between the tail of the log and its edge there is still what an adopted client needs.
func TestAdoptedBelowTheEdge(t *testing.T) {
	d := newDynasty(t, 1, patient, &linux)
	c := d.tcp(4096).join("news")
	message := func(i int) string { return fmt.Sprintf("%06d", i) + strings.Repeat("x", 50_000) }
	d.publish("news", message(0))
	d.until("the client is full", func(s Stats) bool { return s.Blocked == 1 })
	d.mu.Lock()
	d.loops.Suspend(context.Background())
	d.mu.Unlock()
	last := 0 // as if they had been appended at once, before any loop came round
	for d.store.Edge(0) <= 1 {
		last++
		d.publish("news", message(last))
	}
	d.mu.Lock()
	d.succeed()
	d.mu.Unlock()
	c.expectText(message(0))
	if reason := c.expectClose(frame.CloseTryAgainLater); reason != SlowReason {
		t.Error(reason)
	}
	if s := d.stats(); s.Lost != 0 || s.Slow != 1 {
		t.Errorf("%+v", s)
	}
}

// Input that was read and is not whole is gone with the process: the client is told, after what is half out.
//
// The buffer of the TCP connection is the kernel's, too small for the largest message.
func TestHeldInputAtARestart(t *testing.T) {
	config := brisk
	config.HandshakeTimeout, config.CloseTimeout = patientOfHeld, patientOfHeld
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			d := newDynasty(t, 1, config, &linux)
			var c *wire
			if network == "tcp" {
				c = d.tcp(0).join("news")
			} else {
				c = d.unix(0).join("news")
			}
			whole := masked(text, "in two parts")
			c.send(whole[:5])
			d.until("it is held", func(Stats) bool { return isHeld(d) })
			d.restart()
			c.expectClose(frame.CloseServiceRestart)
		})
	}
}

// patientOfHeld gives ticks of a fifth of it.
const patientOfHeld = 10 * shortestTick

// isHeld tells what the record of the only client says.
func isHeld(d *dynasty) bool {
	p, _ := d.keep.Table.At(0).Place()
	return p.Marks&survive.Held != 0
}

// Of several that come at once, those that make a channel wait for those that have one: the numbers of channels without messages are free
// until their clients are there.
func TestAdoptedKeepTheirChannels(t *testing.T) {
	for range 20 {
		d := newDynasty(t, 2, patient, &linux)
		var old, fresh []*wire
		for i := range 20 {
			old = append(old, d.tcp(0).join(fmt.Sprint("old", i)))
			fresh = append(fresh, d.tcp(0))
		}
		d.mu.Lock()
		d.loops.Suspend(context.Background())
		d.mu.Unlock()
		for i, c := range fresh {
			c.send(request(fmt.Sprint("fresh", i)))
		}
		d.mu.Lock()
		d.succeed()
		d.mu.Unlock()
		for i := range fresh {
			fresh[i].expect(upgraded)
			d.publish(fmt.Sprint("fresh", i), fmt.Sprint("to fresh ", i))
			d.publish(fmt.Sprint("old", i), fmt.Sprint("to old ", i))
			old[i].expectText(fmt.Sprint("to old ", i))
			fresh[i].expectText(fmt.Sprint("to fresh ", i))
		}
	}
}

// assassin kills the loop at its nth system call: the goroutine ends there and then, as a process does.
type assassin struct {
	mu    sync.Mutex
	after int // calls to come
	how   int
	done  *signal
}

// Ways to be killed.
const (
	before = iota // the call is not made
	half          // of what is to be sent one half is
	behind        // the call has been made
	ways
)

func (a *assassin) hit() (now bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.after--
	return a.after == 0
}

// relent calls the assassin off, and tells whether that is too late.
func (a *assassin) relent() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	late := a.after <= 0
	a.after = -1
	return late
}

func (a *assassin) strike() {
	a.done.give()
	runtime.Goexit()
}

func (a *assassin) way() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.how
}

// guard makes a system in which it lies in wait.
func (a *assassin) guard() *system {
	sys := linux
	around := func(call func()) {
		now := a.hit()
		if now && a.way() == before {
			a.strike()
		}
		call()
		if now {
			a.strike()
		}
	}
	sys.send = func(fd int, b []byte) (n int, errno syscall.Errno) {
		part := b
		if a.way() == half && !bytes.HasPrefix(b, []byte("HTTP")) { // of an answer that is half out nothing is promised
			a.mu.Lock()
			if a.after == 1 {
				part = b[:len(b)/2]
			}
			a.mu.Unlock()
		}
		around(func() { n, errno = linux.send(fd, part) })
		return n, errno
	}
	sys.sendAll = func(fd int, slices [][]byte, v []unix.Iovec) (n int, errno syscall.Errno) {
		around(func() { n, errno = linux.sendAll(fd, slices, v) })
		return n, errno
	}
	sys.peek = func(fd int, b []byte) (n int, errno syscall.Errno) {
		around(func() { n, errno = linux.peek(fd, b) })
		return n, errno
	}
	sys.receive = func(fd int, b []byte) (n int, errno syscall.Errno) {
		around(func() { n, errno = linux.receive(fd, b) })
		return n, errno
	}
	sys.shutdown = func(fd, how int) (errno syscall.Errno) {
		around(func() { errno = linux.shutdown(fd, how) })
		return errno
	}
	return &sys
}

// killed runs a story again and again, killing the loop at one call more each time, until it is over before.
func killed(t *testing.T, story func(t *testing.T, d *dynasty)) {
	killedOver(t, 1, false, story)
}

// killedOver is killed over so many rings, and where clients may publish.
func killedOver(t *testing.T, rings int, talks bool, story func(t *testing.T, d *dynasty)) {
	for how := range ways {
		for nth := 1; ; nth++ {
			over := false
			t.Run(fmt.Sprint([]string{"before", "half of", "after"}[how], " call ", nth), func(t *testing.T) {
				a := &assassin{after: nth, how: how, done: newSignal()}
				d := newDynastyOver(t, rings, 1, patient, a.guard())
				if talks {
					d.talking()
				}
				told := make(chan struct{})
				var watch sync.WaitGroup
				watch.Go(func() {
					select {
					case <-told:
						if !a.relent() {
							return
						}
						<-a.done.c
					case <-a.done.c:
					}
					d.mu.Lock()
					defer d.mu.Unlock()
					d.fall()
					d.sys = &linux
					d.succeed()
				})
				func() {
					defer watch.Wait()
					defer close(told)
					story(t, d)
				}()
				if s := d.stats(); s.Lost > 0 {
					t.Errorf("%+v", s)
				}
				over = d.heirs == 0
			})
			if over || t.Failed() {
				break
			}
		}
	}
}

// expectMessages reads text messages, with pongs in between.
func (w *wire) expectMessages(messages ...string) (pongs int) {
	w.Helper()
	for _, want := range messages {
		op, got := w.frame()
		for ; op == frame.Pong; op, got = w.frame() {
			pongs++
		}
		if op != frame.Text || string(got) != want {
			w.Fatalf("got frame %d %.20q of %d bytes, want %.20q of %d", op, got, len(got), want, len(want))
		}
	}
	return pongs
}

func TestKilledAtEveryCall(t *testing.T) {
	t.Run("a life", func(t *testing.T) {
		killed(t, func(t *testing.T, d *dynasty) {
			c := d.tcp(0)
			c.send(request("news"))
			c.expect(upgraded)
			d.publish("news", "one")
			d.publish("other", "not for it")
			d.publish("news", "two")
			c.expectMessages("one", "two")
			c.send(masked(pingOp, "ping"))
			d.publish("news", "three")
			c.send(masked(byte(frame.Text), "first "))
			c.send(masked(fin, "and last"))
			pongs := c.expectMessages("three")
			if pongs == 0 {
				c.expectFrame(frame.Pong, "ping")
			}
			c.send(closeFrame(frame.CloseNormal, "bye"))
			for {
				op, payload := c.frame()
				if op == frame.Pong {
					continue
				}
				code, _, err := frame.ParseClose(payload)
				if op != frame.Close || err != nil || code != frame.CloseNormal && code != frame.CloseServiceRestart {
					t.Fatalf("frame %d %d", op, code)
				}
				break
			}
			c.expectEnd()
		})
	})
	t.Run("too much at once", func(t *testing.T) {
		killed(t, func(t *testing.T, d *dynasty) {
			c := d.tcp(4096).join("news")
			var messages []string
			for i := range 4 {
				messages = append(messages, strings.Repeat(string(rune('a'+i)), 30_000+i))
				d.publish("news", messages[i])
			}
			c.send(masked(pingOp, "ping"))
			c.expectMessages(messages...)
			d.publish("news", "done")
			c.expectMessages("done")
		})
	})
	t.Run("pings around a fragment", func(t *testing.T) {
		killed(t, func(t *testing.T, d *dynasty) {
			c := d.tcp(0)
			c.send(request("news"), masked(pingOp, "one"), masked(byte(frame.Text), "first "), masked(pingOp, "two"))
			c.expect(upgraded)
			for pong := ""; pong != "two"; { // a pong can come twice
				op, payload := c.frame()
				if pong = string(payload); op != frame.Pong {
					t.Fatalf("frame %d %q", op, payload)
				}
			}
			c.send(masked(0, "then "), masked(pingOp, "three"), masked(fin, "and last"), closeFrame(frame.CloseNormal, ""))
			for {
				op, payload := c.frame()
				if op == frame.Pong {
					continue
				}
				code, _, err := frame.ParseClose(payload)
				if op != frame.Close || err != nil || code != frame.CloseNormal && code != frame.CloseServiceRestart {
					t.Fatalf("frame %d %d", op, code)
				}
				return
			}
		})
	})
	t.Run("a refusal", func(t *testing.T) {
		killed(t, func(t *testing.T, d *dynasty) {
			c := d.tcp(0)
			c.send(request("no/place"))
			got := c.all()
			if want := string(new(door).Refuse(404, "no such place")); got != want && got != "" {
				t.Fatalf("%q", got)
			}
		})
	})
}

// all reads up to the end.
func (w *wire) all() string {
	w.Helper()
	var b strings.Builder
	for {
		c, err := w.readByte()
		if err != nil {
			return b.String()
		}
		b.WriteByte(c)
	}
}

func (w *wire) readByte() (byte, error) {
	b, err := w.in.ReadByte()
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
		w.Fatal(err)
	}
	return b, err
}

// Restarts in any number at any moment, with clients of every kind: none notices anything.
func TestRestartsUnderLoad(t *testing.T) {
	d := newDynasty(t, 2, patient, &linux)
	var clients []*wire
	for i := range 12 {
		switch i % 4 {
		case 0:
			clients = append(clients, d.tcp(0).join("news"))
		case 1:
			clients = append(clients, d.unix(0).join("news"))
		case 2:
			clients = append(clients, d.tcp(4096).join("news"))
		case 3:
			clients = append(clients, d.unix(4096).join("news"))
		}
	}
	const messages = 400
	var readers sync.WaitGroup
	read := make([]chan struct{}, len(clients))
	for i, c := range clients {
		read[i] = make(chan struct{}, messages)
		readers.Go(func() {
			for n := range uint64(messages) {
				op, got, err := c.next()
				for op == frame.Pong && err == nil {
					op, got, err = c.next()
				}
				read[i] <- struct{}{}
				if err != nil || op != frame.Text || len(got) < 8 || binary.BigEndian.Uint64(got) != n {
					t.Errorf("client %d: message %d: frame %d of %d bytes, %v", i, n, op, len(got), err)
					close(read[i])
					return
				}
				if n%50 == 7 {
					c.send(masked(pingOp, "ping"))
				}
			}
		})
	}
	for n := range uint64(messages) {
		d.publish("news", string(binary.BigEndian.AppendUint64(nil, n))+strings.Repeat("x", int(n%7)*3000))
		for i := range clients { // nobody becomes slow
			if n >= 20 {
				<-read[i]
			}
		}
		if n%10 == 0 {
			d.restart()
		}
	}
	readers.Wait()
	if s := d.stats(); s.Lost != 0 || s.Slow != 0 || s.Repaired == 0 {
		t.Errorf("%+v", s)
	}
}
