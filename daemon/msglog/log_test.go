package msglog

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"wscast/daemon/frame"
)

func TestCreateRefuses(t *testing.T) {
	for _, o := range []Options{
		{}, {Size: MinSize - 1, Channels: 1}, {Size: MaxSize + 1, Channels: 1}, {Size: -1, Channels: 1},
		{Size: MinSize}, {Size: MinSize, Channels: -1}, {Size: MinSize, Channels: MaxChannels + 1},
	} {
		if l, err := Create(o); err == nil {
			l.Close()
			t.Errorf("%+v: no error", o)
		}
	}
	l := create(t, Options{Size: MinSize + 1, Channels: 1})
	if u := l.Usage()[0]; u.Size != MinSize+align || u.Places != 1 || u.Entries != (MinSize+align)/bytesPerEntry {
		t.Errorf("%+v", u)
	}
	if other := create(t, Options{Size: MinSize, Channels: 1}); other.Epoch() == l.Epoch() {
		t.Error("two logs have the same epoch")
	}
}

func TestAppend(t *testing.T) {
	l := small(t)
	r := reader(t, l)
	if l.Head() != 0 {
		t.Fatal("the head of an empty log is", l.Head())
	}
	if n := appendTo(t, l, []byte("news"), []byte("nobody hears this")); n != 0 {
		t.Error("a message for nobody goes to", n)
	}
	c := newClient(t, r, "news")
	newClient(t, r, "news")
	for i, message := range []string{"", "x", strings.Repeat("a", 125), strings.Repeat("b", 126), strings.Repeat("c", 65535), strings.Repeat("d", 65536)} {
		for _, op := range []frame.Opcode{frame.Text, frame.Binary} {
			n, err := l.Append([]byte("news"), []byte(message), op)
			if n != 2 || err != nil {
				t.Fatal(n, err)
			}
			if l.Head() != c.cursor+1 {
				t.Fatalf("head %d after message %d", l.Head(), c.cursor+1)
			}
			sameBytes(t, "Frame", r.Frame(c.ch, l.Head()), framed(op, []byte(message)))
			c.sendAll(t)
			if got, payload, ok := c.received(); !ok || got != op || string(payload) != message {
				t.Fatalf("message %d: opcode %d, %d bytes, %v", i, got, len(payload), ok)
			}
		}
	}
	u := l.Usage()[0]
	if u.Messages != 13 || u.Published != 13 || u.Head != 13 || u.Channels != 1 || u.Epoch != l.Epoch() || u.Oldest.IsZero() {
		t.Errorf("%+v", u)
	}
	if want := uint64(17 + 2*(1+125+126+65535+65536)); u.PublishedBytes != want || u.Bytes != want+2+2*(2+2+2+4+4+10) {
		t.Errorf("%+v", u)
	}
}

func TestAppendRefuses(t *testing.T) {
	l := small(t)
	largest := make([]byte, MinSize/reserve-frame.MaxHeader)
	for range 3 * reserve { // all the way round
		appendTo(t, l, []byte("news"), largest)
	}
	for _, test := range []struct {
		name    string
		message []byte
		err     error
	}{
		{"news", append(largest, 0), ErrTooLarge},
		{"", nil, errName},
		{strings.Repeat("n", MaxName+1), nil, errName},
	} {
		before := l.Usage()[0]
		if _, err := l.Append([]byte(test.name), test.message, frame.Text); err != test.err {
			t.Errorf("%.10q, %d bytes: %v", test.name, len(test.message), err)
		}
		if after := l.Usage()[0]; after != before {
			t.Errorf("%.10q: a refused message changed %+v to %+v", test.name, before, after)
		}
	}
	appendTo(t, l, []byte(strings.Repeat("n", MaxName)), nil)
}

// The log is filled to the last byte, and to the last entry, and no further.
func TestFull(t *testing.T) {
	const eighth = MinSize / reserve
	l := small(t)
	r := reader(t, l)
	message := make([]byte, eighth-frame.MaxHeader)
	usage := func(messages, bytes uint64) {
		t.Helper()
		if u := l.Usage()[0]; u.Messages != messages || u.Bytes != bytes {
			t.Fatalf("%d messages, %d bytes; want %d, %d", u.Messages, u.Bytes, messages, bytes)
		}
	}
	for range 7 {
		appendTo(t, l, []byte("news"), message)
	}
	r.Retire()
	appendTo(t, l, []byte("news"), message[1:])
	usage(8, MinSize-1)
	appendTo(t, l, []byte("news"), nil) // a byte more than there is place for
	usage(8, MinSize-1-eighth+2)
	appendTo(t, l, []byte("news"), message[1:])
	usage(9, MinSize)
	for range MinSize / bytesPerEntry {
		appendTo(t, l, []byte("news"), nil)
	}
	usage(MinSize/bytesPerEntry, 2*MinSize/bytesPerEntry)
	appendTo(t, l, []byte("news"), nil)
	usage(MinSize/bytesPerEntry, 2*MinSize/bytesPerEntry)
}

// Messages 1 to 7 of the channels a a b a b b a: what lies next to each other goes in one slice.
func TestRun(t *testing.T) {
	l := small(t)
	r := reader(t, l)
	a, b := newClient(t, r, "a"), newClient(t, r, "b")
	for i, ch := range "aababba" {
		appendTo(t, l, []byte(string(ch)), fmt.Appendf(nil, "message %d", i+1)) // 11 bytes as a frame
	}
	for _, test := range []struct {
		c                   *client
		cursor              uint64
		skip, limit, slices int
		sizes               []int
		last                uint64
		more                bool
	}{
		{a, 0, 0, 1000, 10, []int{22, 11, 11}, 7, false},
		{b, 0, 0, 1000, 10, []int{11, 22}, 6, false},
		{a, 0, 5, 1000, 10, []int{17, 11, 11}, 7, false},
		{a, 1, 5, 1000, 10, []int{6, 11, 11}, 7, false},
		{a, 2, 10, 1000, 10, []int{1, 11}, 7, false},
		{a, 7, 0, 1000, 10, nil, 7, false},
		{a, 0, 0, 44, 10, []int{22, 11, 11}, 7, false},
		{a, 0, 0, 43, 10, []int{22, 11}, 4, true},
		{a, 0, 1, 43, 10, []int{21, 11, 11}, 7, false},
		{a, 0, 0, 22, 10, []int{22}, 2, true},
		{a, 0, 0, 21, 10, []int{11}, 1, true},
		{a, 0, 0, 0, 10, []int{11}, 1, true},
		{a, 4, 3, 0, 10, []int{8}, 7, false},
		{a, 0, 0, 1000, 3, []int{22, 11, 11}, 7, false},
		{a, 0, 0, 1000, 2, []int{22, 11}, 4, true},
		{a, 0, 0, 1000, 1, []int{22}, 2, true},
		{b, 0, 0, 1000, 1, []int{11}, 3, true},
	} {
		var run Run
		if ok := r.Run(&run, test.c.ch, test.cursor, test.skip, test.limit, test.slices); !ok {
			t.Fatalf("%+v: not ok", test)
		}
		var sizes []int
		total, messages := 0, 0
		for _, s := range run.Slices {
			sizes = append(sizes, len(s))
			total += len(s)
		}
		for seq := test.cursor + 1; seq <= run.Last; seq++ {
			if "-aababba"[seq] == test.c.ch.name[0] {
				messages++
			}
		}
		if !slices.Equal(sizes, test.sizes) || run.Last != test.last || run.More != test.more || run.Bytes != total || run.Messages != messages {
			t.Errorf("%s after %d, skip %d, limit %d, slices %d: slices of %v, %+v", test.c.ch.name, test.cursor, test.skip, test.limit, test.slices, sizes, run)
		}
	}
	a.expect(t, "message 1", "message 2", "message 4", "message 7")
	b.expect(t, "message 3", "message 5", "message 6")
}

// A stream that takes n bytes, then m: wherever it is cut, the cursor stands where the bytes say.
func TestAdvance(t *testing.T) {
	l := small(t)
	r := reader(t, l)
	ch, _ := join(t, r, "news")
	var ends []int // of the frames in the stream
	var seqs []uint64
	total := 0
	for _, size := range []int{0, 1, 30, 0, 125, 126, 7} {
		appendTo(t, l, []byte("other"), nil)
		appendTo(t, l, []byte("news"), make([]byte, size))
		total += frame.HeaderSize(size) + size
		ends, seqs = append(ends, total), append(seqs, l.Head())
	}
	at := func(n int) (cursor uint64, skip, messages int) {
		skip = n
		for i, end := range ends {
			if end <= n {
				cursor, skip, messages = seqs[i], n-end, i+1
			}
		}
		return cursor, skip, messages
	}
	for n := range total + 1 {
		cursor, skip, first := r.Advance(ch, 0, 0, n)
		if c, s, m := at(n); cursor != c || skip != s || first != m {
			t.Fatalf("%d bytes: cursor %d, skip %d, %d messages; want %d, %d, %d", n, cursor, skip, first, c, s, m)
		}
		for more := range total - n + 1 {
			c2, s2, completed := r.Advance(ch, cursor, skip, more)
			if c, s, m := at(n + more); c2 != c || s2 != s || first+completed != m {
				t.Fatalf("%d and %d bytes: cursor %d, skip %d, %d messages; want %d, %d, %d", n, more, c2, s2, first+completed, c, s, m)
			}
		}
	}
}

// The data goes round ten times, with frames over its end, while clients take it in pieces of every size.
func TestWrap(t *testing.T) {
	for _, most := range []int{0, 300, 3000, MinSize/reserve - frame.MaxHeader} {
		t.Run(fmt.Sprint("most=", most), func(t *testing.T) {
			l := small(t)
			r := reader(t, l)
			random := rand.New(rand.NewPCG(1, uint64(most)))
			var clients [3]*client
			var sent, got [3][]uint64
			for i := range clients {
				clients[i] = newClient(t, r, fmt.Sprint("channel ", i))
			}
			var buf, want []byte
			over := 0
			for n := uint64(0); l.rings[0].pos < 10*MinSize && n < 10*MinSize/bytesPerEntry; n++ {
				i := int(random.Uint32() % 3)
				buf = content(buf, n, most)
				appendTo(t, l, []byte(clients[i].ch.name), buf)
				sent[i] = append(sent[i], n)
				if e := l.rings[0].m.entry(l.Head()); e.pos/MinSize != (e.pos+uint64(e.size)-1)/MinSize {
					over++
				}
				c := clients[random.Uint32()%3]
				c.send(t, random.IntN(100000), 1+random.IntN(5), random.IntN(2*most+20))
				if r.News(nil); random.IntN(8) == 0 || most > 3000 {
					for _, c := range clients {
						c.sendAll(t)
					}
					r.Release()
				}
				for i, c := range clients {
					for {
						_, payload, ok := c.received()
						if !ok {
							break
						}
						want = content(want, sent[i][len(got[i])], most)
						sameBytes(t, c.ch.name, payload, want)
						got[i] = append(got[i], sent[i][len(got[i])])
					}
				}
			}
			if u := l.Usage()[0]; over < 2 && most > 300 || u.Bytes > u.Size || u.Messages > u.Entries {
				t.Errorf("%d frames lay over the end; %+v", over, u)
			}
			for i, c := range clients {
				c.sendAll(t)
				for range len(sent[i]) - len(got[i]) {
					if _, _, ok := c.received(); !ok {
						t.Fatalf("%s: messages are missing", c.ch.name)
					}
				}
			}
		})
	}
}

func TestJoin(t *testing.T) {
	l := small(t)
	r := reader(t, l)
	appendTo(t, l, []byte("news"), []byte("before"))
	first := newClient(t, r, "news")
	if n := appendTo(t, l, []byte("news"), []byte("one")); n != 1 {
		t.Error(n, "clients")
	}
	second := newClient(t, r, "news")
	quiet := newClient(t, r, "quiet")
	if n := appendTo(t, l, []byte("news"), []byte("two")); n != 2 {
		t.Error(n, "clients")
	}
	first.expect(t, "one", "two")
	second.expect(t, "two")
	quiet.expect(t)
	r.Leave(first.ch, false)
	if n := appendTo(t, l, []byte("news"), []byte("three")); n != 1 || l.Clients("news") != 1 || l.Clients("none") != 0 {
		t.Error(n, "clients,", l.Clients("news"))
	}
	second.expect(t, "three")
	names := l.Channels()
	slices.Sort(names)
	if !slices.Equal(names, []string{"news", "quiet"}) {
		t.Errorf("channels: %q", names)
	}
	if got := r.News(nil); !slices.Equal(got, []*Channel{first.ch}) || r.HasNews() {
		t.Error("news of", got)
	}
	r.Leave(second.ch, true)
	appendTo(t, l, []byte("news"), nil)
	if r.HasNews() {
		t.Error("a reader without clients of a channel has news of it")
	}
	for _, name := range []string{"", strings.Repeat("n", MaxName+1)} {
		if _, _, err := r.Join([]byte(name)); err != errName {
			t.Errorf("%.10q: %v", name, err)
		}
	}
}

// Channels come and go; an id is given again when neither clients nor messages need it.
func TestChannels(t *testing.T) {
	l := create(t, Options{Size: MinSize, Channels: 3})
	r := reader(t, l)
	busy := newClient(t, r, "busy")
	gone, _ := join(t, r, "gone")
	appendTo(t, l, []byte("kept"), nil)
	if _, err := l.Append([]byte("fourth"), nil, frame.Text); err != ErrChannels {
		t.Fatal("a fourth channel:", err)
	}
	if _, _, err := r.Join([]byte("fourth")); err != ErrChannels {
		t.Fatal("a fourth channel:", err)
	}

	r.Leave(gone, true)
	fourth := newClient(t, r, "fourth")
	if fourth.ch.ID() != gone.ID() || fourth.ch == gone || fourth.cursor != 0 {
		t.Errorf("id %d after %d, cursor %d", fourth.ch.ID(), gone.ID(), fourth.cursor)
	}
	appendTo(t, l, []byte("fourth"), []byte("mine"))
	fourth.expect(t, "mine")
	busy.expect(t)

	// Without clients a channel stays while the log has a message of it.
	last := fourth.ch.Last()
	r.Leave(fourth.ch, true)
	if again := newClient(t, r, "fourth"); again.ch != fourth.ch || again.cursor != last {
		t.Error("a channel with messages was forgotten")
	}
	r.Leave(fourth.ch, true)
	if _, err := l.Append([]byte("fifth"), nil, frame.Text); err != ErrChannels {
		t.Fatal("a fifth channel:", err)
	}
	for range MinSize / bytesPerEntry {
		appendTo(t, l, []byte("busy"), nil)
		r.News(nil)
		busy.sendAll(t)
		r.Release()
	}
	if u := l.Usage()[0]; u.Channels != 1 {
		t.Errorf("%d channels are left", u.Channels)
	}
	fifth := newClient(t, r, "fifth")
	sixth := newClient(t, r, "sixth")
	if fifth.ch.ID() == sixth.ch.ID() || fifth.ch.ID() == busy.ch.ID() || sixth.ch.ID() == busy.ch.ID() {
		t.Error("two channels have one id")
	}
	// A client with an idle channel keeps it, and its place in it, when the log has moved on.
	r.Leave(sixth.ch, true)
	appendTo(t, l, []byte("fifth"), []byte("first"))
	fifth.expect(t, "first")
	for range 2 * MinSize / bytesPerEntry {
		appendTo(t, l, []byte("busy"), nil)
		r.News(nil)
		busy.sendAll(t)
		r.Release()
	}
	if fifth.ch.kept != 0 || fifth.ch.Last() == 0 || l.byName["fifth"] != fifth.ch {
		t.Error("a channel with a client was forgotten")
	}
	fifth.expect(t)
	appendTo(t, l, []byte("fifth"), []byte("second"))
	fifth.expect(t, "second")
}

// Channels looks at some of the channels at a time.
func TestManyChannels(t *testing.T) {
	l := create(t, Options{Size: MinSize, Channels: 5000})
	r := reader(t, l)
	if names := l.Channels(); len(names) != 0 {
		t.Errorf("%q", names)
	}
	for _, n := range []int{1, 1023, 1024, 1025, 2048, 5000} {
		for i := len(l.rings[0].byID); i < n; i++ {
			join(t, r, fmt.Sprint("channel ", i))
		}
		names := l.Channels()
		slices.Sort(names)
		if len(slices.Compact(names)) != n {
			t.Errorf("%d of %d channels", len(names), n)
		}
	}
}

func TestReaders(t *testing.T) {
	l := small(t)
	woken := make([]int, MaxReaders)
	var clients [MaxReaders]*client
	for i := range clients {
		r, err := l.NewReader(func() { woken[i]++ })
		if err != nil {
			t.Fatal(err)
		}
		clients[i] = newClient(t, r, "news")
	}
	if _, err := l.NewReader(func() {}); err == nil {
		t.Error("one reader too many")
	}
	if n := appendTo(t, l, []byte("news"), []byte("x")); n != MaxReaders {
		t.Error(n, "clients")
	}
	for i, c := range clients {
		if woken[i] != 1 || !c.r.HasNews() {
			t.Errorf("reader %d was woken %d times", i, woken[i])
		}
		c.expect(t, "x")
	}
}

// The hot paths do not allocate.
func TestAllocations(t *testing.T) {
	l := small(t)
	r := reader(t, l)
	c := newClient(t, r, "news")
	other := newClient(t, r, "other")
	name, otherName, message := []byte("news"), []byte("other"), make([]byte, 128)
	run, news := Run{Slices: make([][]byte, 0, 16)}, make([]*Channel, 0, 2)
	allocs := testing.AllocsPerRun(3*MinSize/bytesPerEntry, func() {
		_, err := l.Append(name, message, frame.Text)
		_, err2 := l.Append(otherName, message, frame.Text)
		news = r.News(news[:0])
		for _, c := range []*client{c, other} {
			if !r.Run(&run, c.ch, c.cursor, c.skip, 1<<20, 16) || run.Bytes != 132 {
				t.Fatal("nothing to send")
			}
			c.cursor, c.skip, _ = r.Advance(c.ch, c.cursor, c.skip, 100)
			c.cursor, c.skip, _ = r.Advance(c.ch, c.cursor, c.skip, 32)
		}
		r.Release()
		if err := errors.Join(err, err2); err != nil || len(news) != 2 {
			t.Fatal(err, news)
		}
	})
	if allocs != 0 {
		t.Errorf("%v allocations for two messages", allocs)
	}
}
