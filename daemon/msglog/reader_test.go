package msglog

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"wscast/daemon/frame"
)

// bell is how a loop is woken.
type bell chan struct{}

func newBell() bell { return make(bell, 1) }

func (b bell) ring() {
	select {
	case b <- struct{}{}:
	default:
	}
}

func ringing(t testing.TB, l *Log) (*Reader, bell) {
	t.Helper()
	b := newBell()
	r, err := l.NewReader(b.ring)
	if err != nil {
		t.Fatal(err)
	}
	return r, b
}

// An appender that needs the place of what a reader may still need waits until the reader has come round.
func TestAppendWaits(t *testing.T) {
	for _, size := range []int{0, 1000, MinSize/reserve - frame.MaxHeader} {
		t.Run(fmt.Sprint("size=", size), func(t *testing.T) {
			l := small(t)
			r := reader(t, l)
			c := newClient(t, r, "news")
			n := 3 * MinSize / uint64(max(bytesPerEntry, size))
			done := make(chan struct{})
			go func() {
				defer close(done)
				var buf []byte
				for i := range n {
					buf = content(buf, i, 0)
					if _, err := l.Append([]byte("news"), append(buf, make([]byte, size)...), frame.Binary); err != nil {
						t.Error(err)
					}
				}
			}()
			parked := func() bool { return l.Starved() && l.rings[0].m.head.tail.Load() == r.at[0].floor.Load() }
			for round := 0; ; round++ {
				await(t, "the appender to be parked or at its end", func() bool { return parked() || l.Head() == n })
				head := l.Head()
				if runtime.Gosched(); round == 0 && !parked() || head < n && l.Head() != head {
					t.Fatalf("round %d: tail %d, floor %d, head %d, then %d", round, l.rings[0].m.head.tail.Load(), r.at[0].floor.Load(), head, l.Head())
				}
				r.News(nil)
				c.sendAll(t)
				for ; len(c.stream) > 0; c.received() {
				}
				if c.cursor < head {
					t.Fatalf("%d of %d messages were there to send", c.cursor, head)
				}
				if head == n {
					break
				}
				r.Release()
			}
			event(t, "the end of appending", done)
		})
	}
}

// A reader that never comes round holds up an appender, until it is gone.
func TestGone(t *testing.T) {
	l := small(t)
	r := reader(t, l)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 3 * MinSize / bytesPerEntry {
			if _, err := l.Append([]byte("news"), nil, frame.Text); err != nil {
				t.Error(err)
			}
		}
	}()
	await(t, "the appender to be parked", l.Starved)
	if r.Released() {
		t.Error("the floor is at the edge, and an appender waits")
	}
	r.Retire()
	event(t, "the end of appending", done)
	if !r.Released() {
		t.Error("the floor of a reader that is gone is below the edge")
	}
	// A reader that comes later has the edge as it is now.
	late := reader(t, l)
	if tail := l.rings[0].m.head.tail.Load(); late.at[0].floor.Load() < tail {
		t.Errorf("floor %d, tail %d", late.at[0].floor.Load(), tail)
	}
}

// What is appended between News and Release has not been served, even if the whole log is filled meanwhile.
func TestReleaseAfterNews(t *testing.T) {
	l := small(t)
	r := reader(t, l)
	quiet := newClient(t, r, "quiet")
	r.News(nil)
	appendTo(t, l, []byte("quiet"), []byte("hello"))
	for range MinSize/bytesPerEntry - 1 {
		appendTo(t, l, []byte("busy"), nil)
	}
	if l.Edge(0) < 2 {
		t.Fatal("the edge is at", l.Edge(0))
	}
	r.Release()
	if r.Released() {
		t.Error("the reader has given up a message that it cannot know of")
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		appendTo(t, l, []byte("busy"), nil)
	}()
	await(t, "the appender to be parked", l.Starved)
	if news := r.News(nil); len(news) != 1 || news[0] != quiet.ch {
		t.Errorf("news of %v", news)
	}
	quiet.expect(t, "hello")
	r.Release()
	event(t, "the append", done)
}

// Below the floor messages may be overwritten at any time, and are never given out.
func TestBelowFloor(t *testing.T) {
	l := small(t)
	r := reader(t, l)
	ch, cursor := join(t, r, "news")
	_, idle := join(t, r, "idle")
	appendTo(t, l, []byte("news"), nil) // 1
	appendTo(t, l, []byte("news"), nil) // 2
	for range MinSize/bytesPerEntry - 3 {
		appendTo(t, l, []byte("busy"), nil)
	}
	appendTo(t, l, []byte("news"), []byte("last"))
	last := l.Head()
	r.News(nil)
	r.Release()
	if tail, floor := l.rings[0].m.head.tail.Load(), r.at[0].floor.Load(); tail != 1 || floor <= 3 || floor >= last {
		t.Fatal("tail", tail, "floor", floor)
	}
	check := func(when string, ok1 bool) {
		t.Helper()
		for _, test := range []struct {
			cursor, seq uint64
			ok          bool
		}{{cursor, 0, false}, {1, 0, false}, {2, last, true}, {last, 0, true}} {
			seq, ok := r.Next(ch, test.cursor)
			if ok != test.ok || ok && seq != test.seq {
				t.Errorf("%s, after %d: %d, %v", when, test.cursor, seq, ok)
			}
			if run := new(Run); r.Run(run, ch, test.cursor, 0, 1<<20, 8) != test.ok {
				t.Errorf("%s: Run after %d", when, test.cursor)
			}
		}
		if seq, ok := r.Next(l.byName["idle"], idle); seq != 0 || !ok {
			t.Errorf("%s, idle: %d, %v", when, seq, ok)
		}
	}
	check("in the log", false)
	for range 10 {
		appendTo(t, l, []byte("busy"), nil)
	}
	if tail := l.rings[0].m.head.tail.Load(); tail <= 3 {
		t.Fatal("tail", tail)
	}
	check("overwritten", false)
	appendTo(t, l, []byte("idle"), nil)
	if seq, ok := r.Next(l.byName["idle"], idle); seq != l.Head() || !ok {
		t.Errorf("idle: %d, %v", seq, ok)
	}
}

// letter is a message that says who sent it and that it is whole: writer, number, filling, CRC-32.
func letter(buf []byte, writer uint32, n uint64, most int) []byte {
	buf = content(buf, n*31+uint64(writer), most)
	buf = binary.BigEndian.AppendUint32(buf, writer)
	buf = binary.BigEndian.AppendUint64(buf, n)
	return binary.BigEndian.AppendUint32(buf, crc32.ChecksumIEEE(buf))
}

func open(payload []byte) (writer uint32, n uint64, ok bool) {
	end := len(payload) - 4
	if end < 12 || crc32.ChecksumIEEE(payload[:end]) != binary.BigEndian.Uint32(payload[end:]) {
		return 0, 0, false
	}
	return binary.BigEndian.Uint32(payload[end-12:]), binary.BigEndian.Uint64(payload[end-8:]), true
}

// reading is a client with what it has received of each writer.
type reading struct {
	*client
	next map[uint32]uint64
}

// check takes the stream apart: of each writer exactly the next message.
func (c *reading) check(t *testing.T) bool {
	for {
		_, payload, ok := c.received()
		if !ok {
			return true
		}
		writer, n, ok := open(payload)
		if !ok {
			t.Errorf("channel %s before message %d: damaged: %.60x", c.ch.name, c.cursor, payload)
			return false
		}
		if n != c.next[writer] {
			t.Errorf("channel %s: message %d of writer %d after %d", c.ch.name, n, writer, int64(c.next[writer])-1)
			return false
		}
		c.next[writer]++
	}
}

// serve is a loop: it serves its clients, some of which take part only of what they are offered, until each has had
// want messages.
func serve(t *testing.T, l *Log, r *Reader, woken bell, clients []*reading, want uint64, seed uint64) {
	random := rand.New(rand.NewPCG(seed, seed))
	byChannel := map[*Channel][]*reading{}
	behind := map[*reading]bool{}
	for _, c := range clients {
		byChannel[c.ch] = append(byChannel[c.ch], c)
	}
	send := func(c *reading, room int) bool {
		run := &c.run
		if !r.Run(run, c.ch, c.cursor, c.skip, 1+random.IntN(20000), 1+random.IntN(8)) {
			t.Errorf("channel %s: what comes after message %d, floor %d, is not in the log", c.ch.name, c.cursor, r.at[0].floor.Load())
			return false
		}
		n := 0
		for _, b := range run.Slices {
			b = b[:min(len(b), room-n)]
			c.stream = append(c.stream, b...)
			n += len(b)
		}
		c.cursor, c.skip, _ = r.Advance(c.ch, c.cursor, c.skip, n)
		if run.More || n < run.Bytes {
			behind[c] = true
		} else {
			delete(behind, c)
		}
		return c.check(t)
	}
	received := func() (n uint64) {
		for _, c := range clients {
			for _, next := range c.next {
				n += next
			}
		}
		return n
	}
	var news []*Channel
	for received() < want*uint64(len(clients)) {
		if !r.HasNews() && r.Released() && len(behind) == 0 {
			select {
			case <-woken:
			case <-t.Context().Done():
				t.Error("the loop was not woken")
				return
			}
		}
		news = r.News(news[:0])
		for _, ch := range news {
			for _, c := range byChannel[ch] {
				if !behind[c] && !send(c, 1+random.IntN(20000)) {
					return
				}
			}
		}
		for c := range behind {
			if random.IntN(4) == 0 && !send(c, 1+random.IntN(5000)) {
				return
			}
		}
		if r.Released() {
			continue
		}
		edge := l.Edge(0)
		for c := range behind {
			for behind[c] {
				if seq, ok := r.Next(c.ch, c.cursor); ok && (seq == 0 || seq >= edge) {
					break
				}
				if !send(c, 1<<30) {
					return
				}
			}
		}
		r.Release()
	}
	r.Retire()
}

// Several writers at full speed, several loops: every client gets every message of its channel once, in order and whole.
func TestConcurrent(t *testing.T) {
	const writers, readers, channels = 4, 3, 4
	for _, test := range []struct{ most, messages int }{{0, 12000}, {2000, 6000}, {MinSize/reserve - 100, 200}} {
		t.Run(fmt.Sprint("most=", test.most), func(t *testing.T) {
			l := small(t)
			var done sync.WaitGroup
			for i := range readers {
				r, woken := ringing(t, l)
				var clients []*reading
				for j := range 2 * channels {
					clients = append(clients, &reading{newClient(t, r, fmt.Sprint("channel ", j%channels)), map[uint32]uint64{}})
				}
				done.Go(func() { serve(t, l, r, woken, clients, writers*uint64(test.messages)/channels, uint64(i)) })
			}
			for w := range uint32(writers) {
				done.Go(func() {
					var buf []byte
					for n := range uint64(test.messages) {
						// Each channel has its own numbers.
						buf = letter(buf, w, n/channels, test.most)
						clients, err := l.Append(fmt.Appendf(nil, "channel %d", n%channels), buf, frame.Binary)
						if err != nil || clients != 2*readers {
							t.Error(clients, err)
						}
					}
				})
			}
			finish(t, &done)
		})
	}
}

// finish waits for goroutines that are at their end soon.
func finish(t *testing.T, group *sync.WaitGroup) {
	t.Helper()
	done := make(chan struct{})
	go func() { group.Wait(); close(done) }()
	event(t, "the end of all goroutines", done)
}

// Clients of quiet channels, whose last message is overwritten at about the time when the next one comes: Next looks at an
// entry that is being overwritten.
func TestQuiet(t *testing.T) {
	const channels = 64
	l := create(t, Options{Size: MinSize, Channels: channels + 1})
	r, woken := ringing(t, l)
	var clients []*reading
	var names [channels][]byte
	for i := range names {
		names[i] = fmt.Appendf(nil, "quiet %d", i)
		clients = append(clients, &reading{newClient(t, r, string(names[i])), map[uint32]uint64{}})
	}
	const messages = 100
	var done sync.WaitGroup
	done.Go(func() { serve(t, l, r, woken, clients, messages, 1) })
	done.Go(func() {
		random := rand.New(rand.NewPCG(1, 2))
		var buf []byte
		for n := range uint64(messages) {
			for _, i := range random.Perm(channels) {
				// As many messages as the log has entries, give or take a few, between two of a channel.
				for range MinSize/bytesPerEntry/channels - 1 + random.IntN(2) {
					if _, err := l.Append([]byte("busy"), nil, frame.Text); err != nil {
						t.Error(err)
					}
				}
				buf = letter(buf, 1, n, 10)
				if _, err := l.Append(names[i], buf, frame.Binary); err != nil {
					t.Error(err)
				}
			}
			if n%16 == 0 {
				runtime.Gosched()
			}
		}
	})
	finish(t, &done)
}

// tiny is a log with a small index, so that it goes round often.
func tiny(t testing.TB, entries int) *Log {
	t.Helper()
	l := small(t)
	l.rings[0].m.index = l.rings[0].m.index[:entries]
	l.rings[0].nudgeLocked() // the steps are those of the small index
	return l
}

// The same with one channel and an index of 32 entries, so that it happens all the time: the message is appended when the
// channel's last one is about to be overwritten, and read while the log goes on.
func TestQuietExactly(t *testing.T) {
	const messages, entries = 20000, 32
	l := tiny(t, entries)
	r, woken := ringing(t, l)
	c := &reading{newClient(t, r, "quiet"), map[uint32]uint64{}}
	var done sync.WaitGroup
	done.Go(func() { serve(t, l, r, woken, []*reading{c}, messages, 1) })
	done.Go(func() {
		var buf []byte
		for n := range uint64(messages) {
			buf = letter(buf, 1, n, 10)
			if _, err := l.Append([]byte("quiet"), buf, frame.Binary); err != nil {
				t.Error(err)
			}
			for range entries - 5 + n%7 {
				if _, err := l.Append([]byte("busy"), nil, frame.Text); err != nil {
					t.Error(err)
				}
			}
		}
	})
	finish(t, &done)
}

// Next for the client of a quiet channel while the message at its cursor is overwritten: the answer never changes.
func TestNextWhileOverwritten(t *testing.T) {
	const rounds, entries = 5000, 32
	l := tiny(t, entries)
	r := reader(t, l)
	ch, cursor := join(t, r, "quiet")
	name, busy := []byte("quiet"), []byte("busy")
	ask := make(chan uint64)
	answered := make(chan bool)
	var over atomic.Uint64 // the round whose message is overwritten
	go func() {
		defer close(answered)
		for round := range ask {
			right := true
			want := ch.Last()
			for at, last := cursor, false; right && !last; {
				last = over.Load() == round
				seq, ok := r.Next(ch, at)
				right = ok && seq == want
			}
			answered <- right
		}
	}()
	for round := range uint64(rounds) {
		r.News(nil)
		r.Release()
		appendTo(t, l, name, nil)
		cursor = l.Head()
		for range entries - 2 {
			appendTo(t, l, busy, nil)
			r.News(nil)
			r.Release()
		}
		appendTo(t, l, name, nil) // the entry at the cursor is the next one to be overwritten
		if l.rings[0].m.head.tail.Load() != cursor || r.at[0].floor.Load() <= cursor {
			t.Fatal("tail", l.rings[0].m.head.tail.Load(), "floor", r.at[0].floor.Load(), "cursor", cursor)
		}
		ask <- round + 1
		for range 3 {
			appendTo(t, l, busy, nil)
		}
		over.Store(round + 1)
		if !<-answered {
			t.Fatalf("round %d: Next has missed message %d after %d", round, ch.Last(), cursor)
		}
	}
	close(ask)
	<-answered
}

// Messages of all sizes for a reader that comes round when it is woken, and only then: appending never gets stuck.
func TestEdge(t *testing.T) {
	l := small(t)
	r, woken := ringing(t, l)
	var reading, writing sync.WaitGroup
	stop := make(chan struct{})
	reading.Go(func() {
		for {
			select {
			case <-woken:
				r.News(nil)
				r.Release()
			case <-stop:
				return
			}
		}
	})
	writing.Go(func() {
		random := rand.New(rand.NewPCG(1, 1))
		message := make([]byte, MinSize/reserve-frame.MaxHeader)
		for range 3000 {
			size := len(message)
			if random.IntN(3) > 0 {
				size = random.IntN(size)
			}
			if random.IntN(3) > 0 {
				size %= 1000
			}
			if _, err := l.Append([]byte("news"), message[:size], frame.Binary); err != nil {
				t.Error(err)
			}
		}
	})
	finish(t, &writing)
	close(stop)
	finish(t, &reading)
}

// A writer that sends one message and waits for it: no wake-up is lost.
func TestWake(t *testing.T) {
	const n = 20000
	l := small(t)
	r, woken := ringing(t, l)
	const channels = 3
	var clients [channels]*client
	for i := range clients {
		clients[i] = newClient(t, r, fmt.Sprint("channel ", i))
	}
	seen := newBell()
	var done sync.WaitGroup
	done.Go(func() {
		var news []*Channel
		for got := 0; got < 2*n; {
			if !r.HasNews() {
				select {
				case <-woken:
				case <-t.Context().Done():
					t.Error("the loop was not woken")
					return
				}
			}
			for _, ch := range r.News(news[:0]) {
				c := clients[ch.ID()]
				var ok bool
				for seq := uint64(1); seq != 0; {
					if seq, ok = r.Next(ch, c.cursor); !ok {
						t.Error("overwritten")
						return
					}
					if seq != 0 {
						c.cursor, got = seq, got+1
						if ch.name == "channel 0" {
							seen.ring()
						}
					}
				}
			}
			r.Release()
		}
		r.Retire()
	})
	done.Go(func() { // sets bits in channel and list at the same time
		for i := range n {
			if _, err := l.Append(fmt.Appendf(nil, "channel %d", 1+i%2), nil, frame.Text); err != nil {
				t.Error(err)
			}
		}
	})
	done.Go(func() {
		for range n {
			if _, err := l.Append([]byte("channel 0"), nil, frame.Text); err != nil {
				t.Error(err)
			}
			select {
			case <-seen:
			case <-t.Context().Done():
				t.Error("a message was not seen")
				return
			}
		}
	})
	finish(t, &done)
}

// Clients come and go while their channels are written to: each sees what comes after it has joined, without a gap.
func TestJoinConcurrent(t *testing.T) {
	const channels, rounds = 3, 600
	l := create(t, Options{Size: MinSize, Channels: channels})
	var writer, done sync.WaitGroup
	stop := make(chan struct{})
	for w := range channels {
		name := fmt.Appendf(nil, "channel %d", w)
		writer.Go(func() {
			var buf []byte
			for n := uint64(0); ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				buf = letter(buf, uint32(w), n, 100)
				if _, err := l.Append(name, buf, frame.Binary); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for i := range 2 {
		r, woken := ringing(t, l)
		done.Go(func() {
			defer r.Retire()
			random := rand.New(rand.NewPCG(uint64(i), 1))
			for range rounds {
				r.News(nil)
				name := fmt.Sprint("channel ", random.IntN(channels))
				ch, cursor, err := r.Join([]byte(name))
				if err != nil {
					t.Error(err)
					return
				}
				c := &reading{client: &client{r: r, ch: ch, cursor: cursor}}
				for range 1 + random.IntN(3) {
					for {
						if seq, _ := r.Next(ch, c.cursor); seq != 0 {
							break
						}
						<-woken // what it was rung for may be an edge
						r.News(nil)
						if seq, _ := r.Next(ch, c.cursor); seq == 0 { // or it is to be served first
							r.Release()
						}
					}
					r.News(nil)
					c.sendAll(t)
					r.Release()
					if c.next == nil {
						_, payload, _ := c.received()
						writer, n, ok := open(payload)
						if !ok || fmt.Sprint("channel ", writer) != name {
							t.Errorf("%s: %.60x", name, payload)
							return
						}
						c.next = map[uint32]uint64{writer: n + 1}
					}
					if !c.check(t) {
						return
					}
				}
				r.Leave(ch, true)
			}
		})
	}
	finish(t, &done)
	close(stop)
	finish(t, &writer)
	if names := l.Channels(); len(names) != 0 {
		t.Errorf("clients are left in %q", names)
	}
}
