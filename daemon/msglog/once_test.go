package msglog

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"wscast/daemon/frame"
)

// put puts a message with an id, and expects that there is one with it already, or that there is none.
func put(t testing.TB, l *Log, channel, id string, again bool) (clients int) {
	t.Helper()
	before := l.Head()
	clients, got, err := l.Put([]byte(channel), []byte(id), []byte(id), frame.Text)
	if err != nil {
		t.Fatal(err)
	}
	if appended := l.Head() - before; got != again || again && appended > 0 || !again && appended != 1 {
		t.Fatalf("channel %s, id %.20q: again is %v, and %d messages were appended; want again %v", channel, id, got, appended, again)
	}
	return clients
}

func TestPutOnce(t *testing.T) {
	l := small(t)
	r := reader(t, l)
	news := newClient(t, r, "news")
	join(t, r, "news")
	longest := strings.Repeat("x", MaxID)
	if n := put(t, l, "news", "1", false); n != 2 {
		t.Errorf("%d clients", n)
	}
	if n := put(t, l, "news", "1", true); n != 2 {
		t.Errorf("%d clients, the second time", n)
	}
	join(t, r, "news")
	if n := put(t, l, "news", "1", true); n != 3 {
		t.Errorf("%d clients, after one more has come", n)
	}
	put(t, l, "new", "s1", false) // the same bytes in a row
	put(t, l, "new", "1", false)
	put(t, l, "news", "s1", false)
	put(t, l, "news", longest, false)
	put(t, l, "news", longest, true)
	put(t, l, "news", "\x00", false)
	put(t, l, "news", "\x00\x00", false)
	appendTo(t, l, []byte("news"), []byte("1")) // none is not an id
	appendTo(t, l, []byte("news"), []byte("1"))
	news.expect(t, "1", "s1", longest, "\x00", "\x00\x00", "1", "1")

	head := l.Head()
	for _, test := range []struct {
		channel, id string
		want        error
	}{{"news", longest + "x", errID}, {"", "1", errName}, {strings.Repeat("x", MaxName+1), "1", errName}} {
		if _, again, err := l.Put([]byte(test.channel), nil, []byte(test.id), frame.Text); again || !errors.Is(err, test.want) {
			t.Errorf("channel %.10q, id %.10q: %v, %v; want %v", test.channel, test.id, again, err, test.want)
		}
	}
	if l.Head() != head {
		t.Error("what was refused is in the log")
	}
}

// Ids cost nothing where there are none, and are forgotten with their messages.
func TestIDIsForgotten(t *testing.T) {
	l := small(t)
	appendTo(t, l, []byte("news"), nil)
	if l.once != nil {
		t.Error("there is an index without ids")
	}
	put(t, l, "news", "1", false)
	put(t, l, "news", "2", false)
	if len(l.once) != 2 {
		t.Errorf("%d ids are kept, want 2", len(l.once))
	}
	for l.rings[0].m.head.tail.Load() <= 2 { // until the message with the id 1 is overwritten
		put(t, l, "news", "2", true)
		appendTo(t, l, []byte("news"), nil)
	}
	put(t, l, "news", "1", false)
	for l.rings[0].m.head.tail.Load() <= 3 {
		appendTo(t, l, []byte("news"), nil)
	}
	if len(l.once) != 1 {
		t.Errorf("%d ids are kept, want 1", len(l.once))
	}
	for range l.rings[0].m.index {
		appendTo(t, l, []byte("news"), nil)
	}
	if l.once != nil {
		t.Errorf("%d ids are kept, want none", len(l.once))
	}
	// Nor do entries keep those of the messages that had their place before.
	next, err := Open(duplicate(t, l.rings[0].file))
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	if next.once != nil {
		t.Errorf("after Open %d ids are kept, want none", len(next.once))
	}
}

// Nothing is overwritten for what is not put: above all not the message itself.
func TestAgainMakesNoRoom(t *testing.T) {
	l := small(t)
	put(t, l, "news", "1", false)
	for l.Usage()[0].Messages < uint64(len(l.rings[0].m.index)) {
		appendTo(t, l, []byte("news"), nil)
	}
	for range 3 {
		put(t, l, "news", "1", true)
	}
	if tail := l.rings[0].m.head.tail.Load(); tail != 1 {
		t.Errorf("the oldest message is %d", tail)
	}
}

// Many publishers put the same ids: each id is that of one message, also when they have to wait for readers.
func TestOnceConcurrent(t *testing.T) {
	const publishers, ids = 8, 3 * MinSize / bytesPerEntry
	l := small(t)
	r, woken := ringing(t, l)
	c := newClient(t, r, "news")
	var fresh, again atomic.Int64
	var group sync.WaitGroup
	for range publishers {
		group.Go(func() {
			for id := range ids {
				_, repeated, err := l.Put([]byte("news"), nil, fmt.Append(nil, id), frame.Text)
				if err != nil {
					t.Error(err)
				}
				if repeated {
					again.Add(1)
				} else {
					fresh.Add(1)
				}
				if id%3 == 0 {
					l.Flush()
				}
			}
			l.Flush()
		})
	}
	done := make(chan struct{})
	go func() {
		group.Wait()
		close(done)
	}()
	received := 0
	for serving := true; serving; {
		select {
		case <-woken:
		case <-done:
			serving = false
		}
		r.News(nil)
		c.sendAll(t)
		for ; len(c.stream) > 0; c.received() {
			received++
		}
		r.Release()
	}
	// A publisher may be so far behind the others that an id of its is forgotten; not here, where most wait together.
	if n := fresh.Load(); n != int64(l.Head()) || int(n) != received || n+again.Load() != publishers*ids {
		t.Errorf("%d put, %d again, %d in the log, %d received", n, again.Load(), l.Head(), received)
	}
	if n := fresh.Load(); n < ids {
		t.Errorf("%d messages with %d ids", n, ids)
	}
	kept := make(map[onceHash]bool)
	for seq := l.rings[0].m.head.tail.Load(); seq <= l.Head(); seq++ {
		if e := l.rings[0].m.entry(seq); kept[e.once] {
			t.Fatalf("message %d has the id of another one", seq)
		} else {
			kept[e.once] = true
		}
	}
	if len(kept) != len(l.once) {
		t.Errorf("%d ids in the log, %d in the index", len(kept), len(l.once))
	}
}

// Two wait for room with the same id. It is known only afterwards that one of them need not have.
func TestOnceWaiting(t *testing.T) {
	l := small(t)
	r := reader(t, l)
	for l.Usage()[0].Messages < uint64(len(l.rings[0].m.index)) {
		appendTo(t, l, []byte("news"), nil)
	}
	head := l.Head()
	var fresh atomic.Int64
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			_, again, err := l.Put([]byte("news"), nil, []byte("1"), frame.Text)
			if err != nil {
				t.Error(err)
			}
			if !again {
				fresh.Add(1)
			}
		})
	}
	await(t, "all to wait", func() bool { return l.rings[0].waiting.Load() == 4 })
	r.News(nil)
	r.Release()
	finish(t, &group)
	if n := fresh.Load(); n != 1 || l.Head() != head+1 {
		t.Errorf("%d were put, %d are in the log: want one", n, l.Head()-head)
	}
}

// Whoever takes the log over knows the ids of all messages in it, and of no others.
func TestIDsSurvive(t *testing.T) {
	fill := func(l *Log) (forgotten, kept int) {
		for id := range 2 * len(l.rings[0].m.index) {
			put(t, l, "news", fmt.Sprint(id), false)
		}
		// Below it nothing has an id.
		return 2*len(l.rings[0].m.index) - int(l.Usage()[0].Messages) - 1, 2*len(l.rings[0].m.index) - 1
	}
	check := func(t *testing.T, l *Log, forgotten, kept int) {
		t.Helper()
		for id := forgotten + 1; id <= kept; id++ {
			put(t, l, "news", fmt.Sprint(id), true)
		}
		put(t, l, "news", fmt.Sprint(forgotten), false)
		put(t, l, "news", fmt.Sprint(kept+1), false)
	}
	t.Run("a process", func(t *testing.T) {
		l := small(t)
		forgotten, kept := fill(l)
		next, err := Open(duplicate(t, l.rings[0].file))
		if err != nil {
			t.Fatal(err)
		}
		defer next.Close()
		check(t, next, forgotten, kept)
	})
	t.Run("another size", func(t *testing.T) {
		l := small(t)
		_, kept := fill(l)
		next := resized(t, l, Options{Size: 2 * MinSize, Channels: 8})
		check(t, next, kept-int(next.Usage()[0].Messages), kept)
	})
	t.Run("a file", func(t *testing.T) {
		o := home(t)
		l, _ := load(t, o)
		forgotten, kept := fill(l)
		shut(t, l)
		next, _ := load(t, o)
		defer shut(t, next)
		check(t, next, forgotten, kept)
	})
}

// An id that two messages have is damage; what is above the head is none of it.
func TestIDTwice(t *testing.T) {
	l := small(t)
	put(t, l, "news", "1", false)
	put(t, l, "news", "2", false)
	im := imageOf(t, l)
	im.header().head.Store(1)
	im.entry(1).next.Store(0)
	im.entry(2).once = im.entry(1).once
	next, shutNext := im.open(t)
	put(t, next, "news", "1", true)
	put(t, next, "news", "2", false)
	shutNext()

	im = imageOf(t, l)
	im.entry(2).once = im.entry(1).once
	file := im.file(t)
	defer file.Close()
	if l, err := Open(file); err == nil || !strings.Contains(err.Error(), "message 2 has the id of another one") {
		t.Errorf("%v: want it to be refused", err)
		l.Close()
	}
}

// FuzzIDs gives messages of a log any hashes, 12 bytes of the input each. What Open accepts must work.
func FuzzIDs(f *testing.F) {
	const messages, ids = 100, 20
	l, err := Create(Options{Size: MinSize, Channels: 8})
	if err != nil {
		f.Fatal(err)
	}
	for n := range messages {
		var id []byte
		if n < ids {
			id = fmt.Append(nil, n)
		}
		if _, _, err := l.Put(fmt.Appendf(nil, "channel %d", n%3), nil, id, frame.Text); err != nil {
			f.Fatal(err)
		}
	}
	whole := imageOf(f, l)
	if err := l.Close(); err != nil {
		f.Fatal(err)
	}
	first := whole.entry(1).once
	f.Add([]byte{})
	f.Add(make([]byte, 12*ids))
	f.Add(bytes.Repeat([]byte{1}, 12))
	f.Add(bytes.Repeat([]byte{1}, 24))
	f.Add(first[:])
	f.Add(append(make([]byte, 12), first[:]...))
	h := hashID([]byte("no channel yet"), []byte("1"))
	f.Add(h[:])
	f.Fuzz(func(t *testing.T, hashes []byte) {
		im := slices.Clone(whole)
		for seq := uint64(1); seq <= messages && len(hashes) > 0; seq++ {
			n := copy(im.entry(seq).once[:], hashes)
			hashes = hashes[n:]
		}
		known, twice := make(map[onceHash]bool), false
		for seq := uint64(1); seq <= messages; seq++ {
			if h := onceHash(im.entry(seq).once); h != (onceHash{}) {
				twice = twice || known[h]
				known[h] = true
			}
		}
		file := im.file(t)
		l, err := Open(file)
		if (err != nil) != twice {
			t.Fatalf("an id is there twice: %v, and Open says %v", twice, err)
		}
		if err != nil {
			file.Close()
			return
		}
		defer l.Close()
		if len(l.once) != len(known) {
			t.Fatalf("%d ids are known, want %d", len(l.once), len(known))
		}
		for _, name := range []string{"channel 0", "channel 1", "no channel yet"} {
			for n := range ids {
				id := fmt.Append(nil, n)
				want := known[hashID([]byte(name), id)]
				known[hashID([]byte(name), id)] = true
				if _, again, err := l.Put([]byte(name), nil, id, frame.Text); again != want || err != nil {
					t.Fatalf("channel %s, id %s: %v, %v; want %v", name, id, again, err, want)
				}
			}
		}
		for range l.rings[0].m.index {
			appendTo(t, l, []byte("channel 0"), nil)
		}
		if l.once != nil {
			t.Fatalf("%d ids are left", len(l.once))
		}
	})
}

// What is put is there for whoever looks, and who waits is woken by the next Flush, once.
func TestFlush(t *testing.T) {
	l := small(t)
	r, woken := ringing(t, l)
	other, otherWoken := ringing(t, l)
	c := newClient(t, r, "news")
	join(t, r, "more")
	join(t, other, "other")
	f := l.Follow()
	defer f.Close()
	rung := func(b bell) bool {
		select {
		case <-b:
			return true
		default:
			return false
		}
	}
	rung(woken) // NewReader moves the edge
	rung(otherWoken)
	quiet := func(when string) {
		t.Helper()
		if rung(woken) || rung(otherWoken) || len(f.news) > 0 {
			t.Errorf("%s: somebody is woken", when)
		}
	}
	l.Flush()
	quiet("Flush of nothing")
	for _, channel := range []string{"news", "news", "more", "nobody's"} {
		put(t, l, channel, fmt.Sprint("id ", l.Head()), false)
	}
	quiet("Put")
	if !r.HasNews() || other.HasNews() {
		t.Errorf("news: %v and %v, want them for the first reader", r.HasNews(), other.HasNews())
	}
	if m, ok, err := f.TryNext(everything); !ok || err != nil || m.Number != 1 {
		t.Errorf("a follower that looks finds %d, %v, %v", m.Number, ok, err)
	}
	l.Flush()
	if !rung(woken) || rung(otherWoken) || len(f.news) != 1 {
		t.Error("Flush does not wake the reader with news and the follower alone")
	}
	<-f.news
	l.Flush()
	quiet("Flush again")
	c.expect(t, "id 0", "id 1")

	// A reader that was told and has not looked yet is not woken again.
	put(t, l, "news", "5", false)
	l.Flush()
	if rung(woken) {
		t.Error("a reader is woken for news that it was woken for")
	}
	<-f.news
	r.News(nil)

	// Nobody waits for the end of another one's batch.
	put(t, l, "news", "6", false)
	appendTo(t, l, []byte("news"), nil)
	if !rung(woken) || len(f.news) != 1 {
		t.Error("Append does not wake those that Put has left")
	}
	<-f.news
	l.Flush()
	quiet("Flush after another one's Append")
}

// An appender that waits for readers does not make those wait for whom it has news.
func TestWaitingFlushes(t *testing.T) {
	l := small(t)
	r := reader(t, l)
	join(t, r, "news")
	f := l.Follow()
	defer f.Close()
	for l.Usage()[0].Messages < uint64(len(l.rings[0].m.index)) {
		appendTo(t, l, []byte("news"), nil)
	}
	r.News(nil)
	<-f.news
	// The edge moves without it: the next message does not fit.
	done := make(chan struct{})
	l.untold.Or(r.bit) // as if the last one had been put
	l.untoldFollowers.Store(true)
	go func() {
		defer close(done)
		if _, _, err := l.Put([]byte("news"), nil, nil, frame.Text); err != nil {
			t.Error(err)
		}
	}()
	await(t, "the appender to wait", l.Starved)
	l.mu.Lock() // it has it until it waits
	if l.untold.Load() != 0 || len(f.news) != 1 {
		t.Errorf("an appender waits, readers %b and the follower %v are not told", l.untold.Load(), len(f.news) == 0)
	}
	l.mu.Unlock()
	r.Release()
	event(t, "the end of waiting", done)
}

// In a log that goes round, the index of ids allocates nothing that would count.
func TestPutAllocations(t *testing.T) {
	l := small(t)
	channel, id, n := []byte("news"), make([]byte, 0, 20), int64(0)
	one := func() {
		id = strconv.AppendInt(id[:0], n, 10)
		n++
		if _, again, err := l.Put(channel, nil, id, frame.Text); again || err != nil {
			t.Fatal(again, err)
		}
	}
	for range 2 * len(l.rings[0].m.index) {
		one()
	}
	if allocs := testing.AllocsPerRun(10*len(l.rings[0].m.index), one); allocs != 0 {
		t.Errorf("%v allocations for a message with an id", allocs)
	}
}

// BenchmarkPut is what an id costs a publisher, in a log that is full of them.
func BenchmarkPut(b *testing.B) {
	for _, ids := range []bool{false, true} {
		b.Run(fmt.Sprint("ids=", ids), func(b *testing.B) {
			l := create(b, Options{Size: 64 << 20, Channels: 1})
			message, channel, n := make([]byte, 128), []byte("news"), 0
			id := make([]byte, 0, 20)
			one := func() {
				if ids {
					id = strconv.AppendInt(id[:0], int64(n), 10)
				}
				n++
				if _, again, err := l.Put(channel, message, id, frame.Binary); again || err != nil {
					b.Fatal(again, err)
				}
			}
			for range 3 * len(l.rings[0].m.index) {
				one()
			}
			b.ReportAllocs()
			for b.Loop() {
				one()
			}
		})
	}
}
