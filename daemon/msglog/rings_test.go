package msglog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"wscast/daemon/frame"
)

// arrangementOf has a ring for each of the prefixes of names that are given, and the one for all others.
func arrangementOf(prefixes ...string) *Arrangement {
	a := &Arrangement{Rings: []Options{{Size: MinSize, Channels: 20}}, Matches: func(prefix, name string) bool {
		return strings.HasPrefix(name, prefix)
	}}
	for _, prefix := range prefixes {
		a.Rings = append(a.Rings, Options{Size: MinSize, Channels: 20, Match: prefix})
	}
	return a
}

// at gives rings their files, by their prefixes.
func (a *Arrangement) at(dir string, prefixes ...string) *Arrangement {
	for i := range a.Rings {
		if o := &a.Rings[i]; slices.Contains(prefixes, o.Match) {
			o.Path = filepath.Join(dir, logName+" "+o.Match)
		}
	}
	return a
}

// A chronicle is a log of several rings, and a plain list of all that was ever appended to it.
type chronicle struct {
	testing.TB
	log     *Log
	reader  *Reader
	all     []noted
	clients map[string]*visitor
	random  *rand.Rand
}

type noted struct {
	number  uint64
	channel string
	data    string
}

// visitor is a client of one channel.
type visitor struct {
	ch     *Channel
	cursor uint64
	seen   uint64 // number of the newest message that it has been served, or that was there when it came
	slow   bool
}

var channelsOfChronicle = []string{"a1", "a2", "b1", "b2", "c1", "d1", "never"}

func newChronicle(t testing.TB, l *Log, seed uint64) *chronicle {
	c := &chronicle{TB: t, log: l, clients: map[string]*visitor{}, random: rand.New(rand.NewPCG(seed, 7))}
	c.read()
	for _, name := range channelsOfChronicle {
		ch, cursor, err := c.reader.Join([]byte(name))
		if err != nil {
			t.Fatal(err)
		}
		c.clients[name] = &visitor{ch: ch, cursor: cursor}
	}
	return c
}

func (c *chronicle) read() {
	var err error
	if c.reader, err = c.log.NewReader(func() {}); err != nil {
		c.Fatal(err)
	}
}

// write appends some messages, of which the visitors are served some.
func (c *chronicle) write(n, size int) {
	c.Helper()
	for range n {
		name := channelsOfChronicle[c.random.IntN(len(channelsOfChronicle)-1)]
		data := fmt.Sprint(len(c.all), " ", strings.Repeat("x", c.random.IntN(size)))
		if _, err := c.log.Append([]byte(name), []byte(data), frame.Text); err != nil {
			c.Fatal(err)
		}
		c.all = append(c.all, noted{c.log.Head(), name, data})
		c.reader.News(nil)
		for name, v := range c.clients {
			if c.random.IntN(3) == 0 && !v.slow {
				c.serve(name, v, 1+c.random.IntN(3))
			}
		}
		c.reader.Release()
	}
}

// serve brings a visitor up to most messages.
func (c *chronicle) serve(name string, v *visitor, most int) {
	c.Helper()
	for range most {
		seq, ok := c.reader.Next(v.ch, v.cursor)
		if !ok {
			v.slow = true
			return
		}
		if seq == 0 {
			if after := c.after(name, v.seen); len(after) > 0 {
				c.Fatalf("%s has nothing after %d, and there is %d", name, v.seen, after[0].number)
			}
			return
		}
		want := c.after(name, v.seen)
		if len(want) == 0 {
			c.Fatalf("%s: after %d there is nothing, and %d comes", name, v.seen, c.reader.Number(v.ch, seq))
		}
		c.same(v.ch, seq, want[0])
		v.cursor, v.seen = seq, want[0].number
	}
}

func (c *chronicle) same(ch *Channel, seq uint64, want noted) {
	c.Helper()
	m := c.reader.Message(ch, seq)
	if m.Number != want.number || m.Channel != want.channel || string(m.Data) != want.data || c.reader.Number(ch, seq) != want.number {
		c.Fatalf("got message %d of %s, %.20q; want %d of %s, %.20q", m.Number, m.Channel, m.Data, want.number, want.channel, want.data)
	}
}

// after is what a channel has had after that number.
func (c *chronicle) after(name string, number uint64) (all []noted) {
	first, _ := slices.BinarySearchFunc(c.all, number+1, func(n noted, number uint64) int { return int(n.number) - int(number) })
	for _, n := range c.all[first:] {
		if n.channel == name {
			all = append(all, n)
		}
	}
	return all
}

// ask comes back to each channel with some ids. What is said to be complete has to be it, in whatever way; kept tells what must be there.
func (c *chronicle) ask(complete func(name string, number uint64) bool) {
	c.Helper()
	for _, name := range channelsOfChronicle {
		ch := c.clients[name].ch
		for range 8 {
			number := uint64(c.random.IntN(int(c.log.Head()) + 1))
			cursor, is := c.reader.Seek(ch, From{How: After, Seq: number})
			want := c.after(name, number)
			var got []uint64
			for {
				seq, ok := c.reader.Next(ch, cursor)
				if !ok {
					c.Fatalf("%s after %d: slow at once", name, number)
				}
				if seq == 0 {
					break
				}
				got = append(got, seq)
				cursor = seq
			}
			if is && len(got) != len(want) || len(got) > len(want) {
				c.Fatalf("%s after %d: %d messages, complete: %v; there were %d", name, number, len(got), is, len(want))
			}
			for i, seq := range got {
				c.same(ch, seq, want[len(want)-len(got)+i])
			}
			if !is && complete(name, number) {
				c.Fatalf("%s after %d: %d of %d messages, and said to be incomplete", name, number, len(got), len(want))
			}
			if seen := c.reader.Seen(ch, cursor); len(c.after(name, seen)) > 0 && len(got) > 0 {
				c.Fatalf("%s: at the end it has seen %d", name, seen)
			}
		}
	}
}

// follow reads what there is in the order of the numbers.
func (c *chronicle) follow(from uint64) {
	c.Helper()
	f := c.log.FollowFrom(from)
	defer f.Close()
	first, _ := slices.BinarySearchFunc(c.all, from+1, func(n noted, number uint64) int { return int(n.number) - int(number) })
	for i, want := range c.all[first:] {
		m, ok, err := f.TryNext(everything)
		if err == ErrBehind && i == 0 {
			return
		}
		if !ok || err != nil || m.Number != want.number || m.Channel != want.channel || string(m.Data) != want.data {
			c.Fatalf("after %d: %d of %s (%v, %v), want %d of %s", from, m.Number, m.Channel, ok, err, want.number, want.channel)
		}
	}
	if m, ok, err := f.TryNext(everything); ok || err != nil || f.Seen() != c.log.Head() {
		c.Fatalf("%+v, %v, seen %d", m, err, f.Seen())
	}
}

// retire ends what reads.
func (c *chronicle) retire() { c.reader.Retire() }

// goOn is the next process: the visitors are taken over where they stood, by their old ids and cursors or what has become of them.
func (c *chronicle) goOn(l *Log, id func(*Channel) (uint32, bool), cursor func(*Channel, uint64) uint64) {
	c.Helper()
	type place struct {
		id     uint32
		cursor uint64
	}
	places := map[string]place{}
	for name, v := range c.clients {
		to, ok := id(v.ch)
		if !ok {
			c.Fatalf("channel %s has no place any more", name)
		}
		places[name] = place{to, cursor(v.ch, v.cursor)}
	}
	c.log = l
	c.read()
	for name, v := range c.clients {
		var err error
		if v.ch, err = c.reader.Adopt(places[name].id, places[name].cursor); err != nil || v.ch.Name() != name {
			c.Fatal(name, v.slow, err)
		}
		v.cursor = places[name].cursor
	}
	c.reader.News(nil)
	c.reader.Release()
}

// takeOver is goOn with a log that is what it was.
func (c *chronicle) takeOver(l *Log) {
	c.Helper()
	c.goOn(l, func(ch *Channel) (uint32, bool) { return ch.ID(), true }, func(_ *Channel, cursor uint64) uint64 { return cursor })
}

// reopen is what the next process does that is given the descriptors.
func reopen(t testing.TB, l *Log, a *Arrangement) *Log {
	t.Helper()
	var files []*os.File
	for i := range l.Rings() {
		files = append(files, duplicate(t, l.File(i)))
	}
	slices.Reverse(files) // in any order
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l, err := Open(files...)
	if err != nil {
		t.Fatal(err)
	}
	if !l.Fits(a) {
		t.Fatal("the log does not fit its own arrangement")
	}
	return l
}

func nothing(string, uint64) bool { return false }

// All that several rings do for readers and followers, against a plain list, over takeovers.
func TestRingsAgainstAList(t *testing.T) {
	for seed := range uint64(10) {
		a := arrangementOf("a", "b", "c1")
		l, err := CreateAll(a)
		if err != nil {
			t.Fatal(err)
		}
		c := newChronicle(t, l, seed)
		c.write(30, 1000)
		c.ask(func(string, uint64) bool { return true }) // nothing was overwritten yet
		c.follow(0)
		for range 4 {
			c.write(c.random.IntN(100), 100_000)
			c.ask(nothing)
			c.follow(c.log.Head() - uint64(c.random.IntN(30)))
			c.retire()
			c.takeOver(reopen(t, c.log, a))
		}
		c.retire()
		if err := c.log.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// What is written to one ring overwrites nothing of another one.
func TestBusyRingLeavesOthersAlone(t *testing.T) {
	l, err := CreateAll(arrangementOf("a", "b"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c := newChronicle(t, l, 1)
	defer c.retire()
	c.write(100, 1000)
	head := l.Head()
	for range 100 {
		appendTo(t, l, []byte("quick"), make([]byte, 100_000))
		c.reader.News(nil)
		c.reader.Release()
	}
	for _, name := range []string{"a1", "a2", "b1", "b2"} {
		for number := range head {
			cursor, complete := c.reader.Seek(c.clients[name].ch, From{How: After, Seq: number})
			for _, want := range c.after(name, number) {
				seq, ok := c.reader.Next(c.clients[name].ch, cursor)
				if !ok || seq == 0 {
					t.Fatalf("%s after %d: %d is gone", name, number, want.number)
				}
				c.same(c.clients[name].ch, seq, want)
				cursor = seq
			}
			if !complete {
				t.Fatalf("%s after %d is said to be incomplete", name, number)
			}
		}
	}
	u := l.Usage()
	if busy, quiet := u[0], u[1]; busy.Messages > 10 || quiet.Messages < 20 || busy.Head != head+100 || quiet.Head != busy.Head || quiet.Match != "a" {
		t.Errorf("%+v", u)
	}
}

// Whatever a log of several rings contains, it is refused or can be read, appended to and rearranged.
func FuzzOpenRings(f *testing.F) {
	a := arrangementOf("a", "b")
	l, err := CreateAll(a)
	if err != nil {
		f.Fatal(err)
	}
	c := newChronicle(f, l, 11)
	c.write(2000, 4000)
	c.retire()
	var whole []image
	for i := range l.rings {
		im := make(image, l.rings[i].m.length-uintptr(l.rings[i].m.size))
		if n, err := l.File(i).ReadAt(im, 0); n != len(im) {
			f.Fatal(n, err)
		}
		whole = append(whole, im)
	}
	if err := l.Close(); err != nil {
		f.Fatal(err)
	}
	// The ring, where in it, and what is there then.
	place := func(ring, area byte, at uint16, value uint64) []byte {
		return binary.NativeEndian.AppendUint64(binary.NativeEndian.AppendUint16([]byte{ring, area}, at), value)
	}
	var h header
	part := uint16(unsafe.Offsetof(h.part))
	f.Add(place(1, 0, part, 7), true)
	f.Add(place(1, 0, part+8, 3<<32|1<<8), true)
	f.Add(place(2, 0, part+8, 3<<32|1), true)
	f.Add(place(0, 0, part+8, 2<<32), true)
	f.Add(place(1, 0, part+20, 1<<20), true)
	f.Add(place(1, 0, uint16(unsafe.Offsetof(h.head)), 5), false)
	f.Add(place(1, 0, uint16(unsafe.Offsetof(h.given)), 1<<63), false)
	f.Add(place(2, 0, uint16(unsafe.Offsetof(h.gone)), 1<<63), false)
	f.Add(place(2, 0, uint16(unsafe.Offsetof(h.holes)), 1<<63), false)
	f.Add(place(1, 2, 8, 1<<40), false)
	f.Add(place(1, 3, 0, 1<<40), false)
	f.Add(place(0, 3, 8, 1), false)
	f.Fuzz(func(t *testing.T, damage []byte, sign bool) {
		var images []image
		for _, im := range whole {
			images = append(images, slices.Clone(im))
		}
		for ; len(damage) >= 12; damage = damage[12:] {
			ring := int(damage[0]) % len(images)
			im, at := images[ring], uint64(binary.NativeEndian.Uint16(damage[2:]))
			h := whole[ring].header()
			areas, head := h.areas(), h.head.Load()
			switch damage[1] % 5 {
			case 0:
				at %= uint64(unsafe.Sizeof(header{})) - 7
			case 1:
				at = areas.cells + at%(20*uint64(cellSize)-7)
			case 2: // the entries around the tail and the head are the interesting ones
				at = areas.index + (head*uint64(entrySize)+at-1<<15)%(h.entries*uint64(entrySize)-8)
			case 3:
				at = areas.numbers + (head*uint64(numberedSize)+at-1<<15)%(h.entries*uint64(numberedSize)-8)
			case 4:
				at = areas.data + at%(MinSize-8)
			}
			copy(im[at:], damage[4:12])
		}
		var files []*os.File
		for _, im := range images {
			if sign {
				h := im.header()
				h.part.sum = h.part.checksum()
				im.sign()
			}
			files = append(files, im.file(t))
		}
		l, err := Open(files...)
		if err != nil {
			for _, file := range files {
				file.Close()
			}
			return
		}
		l.Keep(a)
		c := newChronicle(t, l, 12)
		for name, v := range c.clients {
			v.cursor, _ = c.reader.Seek(v.ch, From{How: After})
			for {
				seq, ok := c.reader.Next(v.ch, v.cursor)
				if !ok || seq == 0 {
					break
				}
				if m := c.reader.Message(v.ch, seq); m.Channel != name || seq <= v.cursor {
					t.Fatalf("%q of %s after %d", m.Channel, name, v.cursor)
				}
				v.cursor = seq
			}
		}
		from := uint64(0)
		for _, g := range l.rings {
			from = max(from, g.gone(g.m.head.tail.Load()))
		}
		follower := l.FollowFrom(from)
		for last := from; ; {
			m, ok, err := follower.TryNext(everything)
			if !ok || err != nil {
				break
			}
			if m.Number <= last {
				t.Fatalf("message %d after %d", m.Number, last)
			}
			last = m.Number
		}
		follower.Close()
		for _, name := range []string{"a1", "b1", "c1"} {
			if l.Head() < math.MaxUint64/2 {
				if _, err := l.Append([]byte(name), []byte("more"), frame.Text); err != nil && !errors.Is(err, ErrChannels) {
					t.Fatal(err)
				}
			}
		}
		c.retire()
		next, moves, _, err := l.Rearranged(arrangementOf("b", "c"))
		if err == nil {
			for _, v := range c.clients {
				if id, ok := moves.Channel(v.ch.ID()); ok && next.ringOf(id) == nil {
					t.Fatalf("channel %x", id)
				}
				_ = moves.Cursor(v.ch.ID(), v.cursor)
			}
			if err := next.Close(); err != nil {
				t.Fatal(err)
			}
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	})
}
