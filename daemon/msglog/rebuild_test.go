package msglog

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"wscast/daemon/frame"
)

// image is what the file of a log contains.
type image []byte

func imageOf(t testing.TB, l *Log) image {
	t.Helper()
	im := make(image, l.rings[0].m.length-uintptr(l.rings[0].m.size))
	if n, err := l.rings[0].file.ReadAt(im, 0); n != len(im) {
		t.Fatal(n, err)
	}
	return im
}

// file is a memfd with the image.
func (im image) file(t testing.TB) *os.File {
	t.Helper()
	fd, err := unix.MemfdCreate("wscast-log", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "wscast-log")
	if _, err := f.Write(im); err != nil {
		t.Fatal(err)
	}
	return f
}

// open takes over a log with the image, until the test ends or close is called.
func (im image) open(t testing.TB) (l *Log, close func()) {
	t.Helper()
	l, err := Open(im.file(t))
	if err != nil {
		t.Fatal(err)
	}
	return l, func() {
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// header is the header in the image: the image's memory is aligned for it.
func (im image) header() *header { return (*header)(unsafe.Pointer(&im[0])) }

func (im image) areas() areas {
	h := im.header()
	return h.areas()
}

func (im image) entry(seq uint64) *entry {
	at := im.areas().index + seq%im.header().entries*uint64(entrySize)
	return (*entry)(unsafe.Pointer(&im[at]))
}

func (im image) cell(id uint32) *cell {
	return (*cell)(unsafe.Pointer(&im[im.areas().cells+uint64(id)*uint64(cellSize)]))
}

// frame is where the frame of a message begins.
func (im image) frame(seq uint64) *byte {
	return &im[im.areas().data+im.entry(seq).pos%im.header().data]
}

// published is what a test has appended, by sequence number less one.
type published []struct {
	channel string
	message []byte
	op      frame.Opcode
}

func (p *published) append(t testing.TB, l *Log, channel string, message []byte, op frame.Opcode) {
	t.Helper()
	if _, err := l.Append([]byte(channel), message, op); err != nil {
		t.Fatal(err)
	}
	*p = append(*p, struct {
		channel string
		message []byte
		op      frame.Opcode
	}{channel, bytes.Clone(message), op})
}

// appendSome appends n messages of all sizes to channels of which some are used for a while only.
func (p *published) appendSome(t testing.TB, l *Log, random *rand.Rand, n int) {
	t.Helper()
	for range n {
		channel := fmt.Sprint("channel ", random.IntN(3))
		if random.IntN(100) == 0 {
			channel = fmt.Sprint(strings.Repeat("long", random.IntN(30)), len(*p)%1000)
		}
		most := 1200
		if random.IntN(200) == 0 {
			most = 100000
		}
		p.append(t, l, channel, content(nil, uint64(len(*p)), most), frame.Text+frame.Opcode(len(*p)%2))
	}
}

// check compares a log with what was published, from the message with sequence number oldest on: every message, and
// everything that is known about channels.
func (p published) check(t testing.TB, l *Log, oldest uint64) {
	t.Helper()
	if tail, head := l.rings[0].m.head.tail.Load(), l.Head(); tail != oldest || head != uint64(len(p)) {
		t.Fatalf("the log has messages %d to %d, want %d to %d", tail, head, oldest, len(p))
	}
	type kept struct{ seqs []uint64 }
	channels := map[string]*kept{}
	pos := l.rings[0].m.entry(oldest).pos
	for seq := oldest; seq <= uint64(len(p)); seq++ {
		e, want := l.rings[0].m.entry(seq), p[seq-1]
		sameBytes(t, fmt.Sprint("message ", seq), l.rings[0].m.bytes(e.pos, uint64(e.size)), framed(want.op, want.message))
		if ch := l.rings[0].byID[e.channel]; ch == nil || ch.name != want.channel || l.byName[ch.name] != ch || ch.id != e.channel {
			t.Fatalf("message %d: channel %d is not %q", seq, e.channel, want.channel)
		}
		if e.seq != seq || e.pos != pos {
			t.Fatalf("message %d: %+v", seq, e)
		}
		pos += uint64(e.size)
		if channels[want.channel] == nil {
			channels[want.channel] = new(kept)
		}
		channels[want.channel].seqs = append(channels[want.channel].seqs, seq)
	}
	if l.rings[0].pos != pos || len(l.byName) != len(channels) || len(l.rings[0].byID)-len(l.rings[0].free) != len(channels) {
		t.Fatalf("position %d, want %d; %d channels by name, %d by id, want %d", l.rings[0].pos, pos, len(l.byName), len(l.rings[0].byID)-len(l.rings[0].free), len(channels))
	}
	for name, k := range channels {
		ch := l.byName[name]
		first, last := k.seqs[0], k.seqs[len(k.seqs)-1]
		if ch.first.Load() != first || ch.last.Load() != last || ch.kept != uint64(len(k.seqs)) || ch.clients != 0 {
			t.Fatalf("channel %q: first %d, last %d, %d kept, %d clients; want %d, %d, %d", name, ch.first.Load(), ch.last.Load(), ch.kept, ch.clients, first, last, len(k.seqs))
		}
		if evicted := ch.evicted.Load(); evicted != l.rings[0].m.entry(first).prev || evicted >= oldest || evicted > 0 && p[evicted-1].channel != name {
			t.Fatalf("channel %q: evicted %d, prev %d, tail %d", name, evicted, l.rings[0].m.entry(first).prev, oldest)
		}
		for i, seq := range k.seqs {
			var prev, next uint64
			if i > 0 {
				prev = k.seqs[i-1]
			}
			if i+1 < len(k.seqs) {
				next = k.seqs[i+1]
			}
			if e := l.rings[0].m.entry(seq); i > 0 && e.prev != prev || e.next.Load() != next {
				t.Fatalf("channel %q, message %d: prev %d, next %d; want %d, %d", name, seq, e.prev, e.next.Load(), prev, next)
			}
		}
	}
}

// goesOn appends to a log that was taken over, for clients of it and a follower.
func (p published) goesOn(t testing.TB, l *Log) {
	t.Helper()
	r := reader(t, l)
	f := l.Follow()
	defer f.Close()
	clients := []*client{newClient(t, r, "channel 0"), newClient(t, r, "a new one")}
	for i := range 4 {
		message := fmt.Sprint("after it ", i)
		p.append(t, l, clients[i%2].ch.name, []byte(message), frame.Binary)
		clients[i%2].expect(t, message)
		if m, err := f.Next(everything); err != nil || string(m.Data) != message || m.Number != uint64(len(p)) {
			t.Fatalf("%+v, %v", m, err)
		}
	}
	for _, c := range clients {
		r.Leave(c.ch, true)
	}
	p.check(t, l, l.rings[0].m.head.tail.Load())
}

func TestOpen(t *testing.T) {
	for _, n := range []int{0, 1, 2, 500, 4096, 4097, 20000} {
		t.Run(fmt.Sprint("messages=", n), func(t *testing.T) {
			l := create(t, Options{Size: MinSize, Channels: 300})
			var p published
			p.appendSome(t, l, rand.New(rand.NewPCG(1, uint64(n))), n)
			p.check(t, l, l.rings[0].m.head.tail.Load())
			for range 3 {
				// The same memory, as another process sees it once this one is dead.
				again, err := Open(duplicate(t, l.rings[0].file))
				if err != nil {
					t.Fatal(err)
				}
				p.check(t, again, l.rings[0].m.head.tail.Load())
				if again.Epoch() != l.Epoch() || again.Edge(0) < again.rings[0].m.head.tail.Load() || again.Usage()[0].Published != 0 {
					t.Errorf("%+v, edge %d", again.Usage()[0], again.Edge(0))
				}
				if again.Head() > 4096 && again.Edge(0) == again.rings[0].m.head.tail.Load() {
					t.Error("the edge of a full log is at its tail")
				}
				if err := again.Close(); err != nil {
					t.Fatal(err)
				}
			}
			again, shut := imageOf(t, l).open(t)
			defer shut()
			p.goesOn(t, again)
		})
	}
}

// word is eight bytes of an image.
type word struct {
	at  int
	new uint64
}

func (im image) set(words ...word) {
	for _, w := range words {
		binary.NativeEndian.PutUint64(im[w.at:], w.new)
	}
}

// TestKilledBetweenStores kills an appender after each of its stores. What Append stores is found by comparing the memory before
// and after, and is brought into the order that the package promises: the tail, message by message; then the channel's name, the frame
// and the entry, which may come in any order; then the head; then the link from the channel's previous message.
func TestKilledBetweenStores(t *testing.T) {
	l := create(t, Options{Size: MinSize, Channels: 300})
	random := rand.New(rand.NewPCG(3, 4))
	var p published
	evictions, cells := 0, 0
	for round := range 12 {
		p.appendSome(t, l, random, []int{0, 1, 5, 5000, 700}[min(round, 4)])
		before, tail := imageOf(t, l), l.rings[0].m.head.tail.Load()
		old := p
		switch round % 4 {
		case 0:
			p.append(t, l, fmt.Sprint("new ", round), content(nil, uint64(round), 1000), frame.Text)
		case 1:
			p.append(t, l, "channel 1", make([]byte, 100000), frame.Binary) // overwrites several
		default:
			p.appendSome(t, l, random, 1)
		}
		after := imageOf(t, l)

		// The file's offsets of what may be changed, and when.
		var tails, body, heads, links []word
		seq := uint64(len(p))
		a, e := after.areas(), after.entry(seq)
		in := func(at int, from, size uint64) bool {
			return uint64(at) >= from&^7 && uint64(at) < from+size
		}
		offset := func(p unsafe.Pointer) uint64 { return uint64(uintptr(p) - uintptr(unsafe.Pointer(&after[0]))) }
		for at := 0; at < len(after); at += 8 {
			if bytes.Equal(before[at:at+8], after[at:at+8]) {
				continue
			}
			w := word{at, binary.NativeEndian.Uint64(after[at:])}
			frameAt := e.pos % MinSize
			switch {
			case in(at, offset(unsafe.Pointer(&after.header().tail)), 8):
				for to := tail + 1; to <= w.new; to++ {
					tails = append(tails, word{at, to})
				}
			case in(at, offset(unsafe.Pointer(&after.header().head)), 8):
				heads = append(heads, w)
			case in(at, offset(unsafe.Pointer(after.cell(e.channel))), uint64(cellSize)):
				cells++
				body = append(body, w)
			case in(at, offset(unsafe.Pointer(e)), uint64(entrySize)):
				body = append(body, w)
			case e.prev > 0 && in(at, offset(unsafe.Pointer(&after.entry(e.prev).next)), 8):
				links = append(links, w)
			case in(at, a.data+frameAt, uint64(e.size)), in(at, a.data, uint64(max(0, int(frameAt)+int(e.size)-MinSize))):
				body = append(body, w)
			default:
				t.Fatalf("round %d: Append has changed the word at %d, which is none of its message's", round, at)
			}
		}
		if len(heads) != 1 || len(links) > 1 {
			t.Fatal(heads, links)
		}
		evictions += len(tails)

		try := func(state string, im image, want published, oldest uint64) {
			again, shut := im.open(t)
			defer shut()
			if again.Epoch() != l.Epoch() {
				t.Fatalf("round %d, %s: another epoch", round, state)
			}
			want.check(t, again, oldest)
			sameBytes(t, "the file that was taken over twice", imageOf(t, again)[a.index:a.data], rebuilt(t, imageOf(t, again))[a.index:a.data])
			slices.Clip(want).goesOn(t, again)
		}
		im := slices.Clone(before)
		try("before anything", im, old, tail)
		for i, w := range tails {
			im.set(w)
			tail++
			if i < 3 || i+1 == len(tails) {
				try("tail moved", im, old, tail)
			}
		}
		for range 3 {
			random.Shuffle(len(body), func(i, j int) { body[i], body[j] = body[j], body[i] })
			torn := slices.Clone(im)
			torn.set(body[:random.IntN(len(body))]...)
			try("message half written", torn, old, tail)
		}
		im.set(body...)
		try("message written", im, old, tail)
		im.set(heads...)
		try("head moved", im, p, tail)
		im.set(links...)
		sameBytes(t, "the last state", im, after)
		try("linked", im, p, tail)
	}
	if evictions < 100 || cells == 0 {
		t.Errorf("%d evictions, %d words of names: the test has not seen all", evictions, cells)
	}
}

// rebuilt is an image after one more Open.
func rebuilt(t testing.TB, im image) image {
	t.Helper()
	l, shut := im.open(t)
	defer shut()
	return imageOf(t, l)
}

// Whatever is damaged is noticed, and nothing of a log that is refused stays behind.
func TestDamage(t *testing.T) {
	l := create(t, Options{Size: MinSize, Channels: 300})
	var p published
	p.appendSome(t, l, rand.New(rand.NewPCG(5, 6)), 9000)
	whole := imageOf(t, l)
	tail, head := l.rings[0].m.head.tail.Load(), l.Head()
	middle := (tail + head) / 2
	for middle++; l.rings[0].m.entry(middle).prev < tail || l.rings[0].m.entry(middle).next.Load() == 0; middle++ {
	}
	id := l.rings[0].m.entry(middle).channel

	tests := map[string]func(im image) image{
		"cut off":          func(im image) image { return im[:len(im)-1] },
		"a page too short": func(im image) image { return im[:len(im)-align] },
		"only a header":    func(im image) image { return im[:headerSize] },
		"half a header":    func(im image) image { return im[:20] },
		"empty":            func(im image) image { return nil },
		"too long":         func(im image) image { return append(im, make([]byte, align)...) },
		"all zero":         func(im image) image { return make(image, len(im)) },

		"layout":        func(im image) image { im.header().layout++; im.sign(); return im },
		"no channels":   func(im image) image { im.header().channels = 0; im.sign(); return im },
		"many channels": func(im image) image { im.header().channels = 1 << 31; im.sign(); return im },
		"entries":       func(im image) image { im.header().entries--; im.sign(); return im },
		"many entries":  func(im image) image { im.header().entries = 1 << 58; im.sign(); return im },
		"data":          func(im image) image { im.header().data += align; im.sign(); return im },
		"less data":     func(im image) image { im.header().data = 1; im.sign(); return im },
		"much data":     func(im image) image { im.header().data = 1 << 63; im.sign(); return im },
		"all the data": func(im image) image {
			im.header().data = MaxSize
			im.header().entries = MaxSize / bytesPerEntry
			im.sign()
			return im
		},

		"head 0":        func(im image) image { im.header().head.Store(0); return im },
		"head - 1":      func(im image) image { im.header().head.Store(head - 1); return im },
		"head + 1":      func(im image) image { im.header().head.Store(head + 1); return im },
		"head max":      func(im image) image { im.header().head.Store(^uint64(0)); return im },
		"tail 0":        func(im image) image { im.header().tail.Store(0); return im },
		"tail - 1":      func(im image) image { im.header().tail.Store(tail - 1); return im },
		"tail head + 1": func(im image) image { im.header().tail.Store(head + 1); return im },
		"tail max":      func(im image) image { im.header().tail.Store(^uint64(0)); return im },
		"head, tail max": func(im image) image {
			im.header().head.Store(^uint64(0))
			im.header().tail.Store(^uint64(0))
			return im
		},
		"head, tail zero": func(im image) image { im.header().head.Store(0); im.header().tail.Store(0); return im },

		"size of a name":    func(im image) image { im.cell(id).size++; return im },
		"no name":           func(im image) image { im.cell(id).size = 0; return im },
		"long name":         func(im image) image { im.cell(id).size = 1 << 31; return im },
		"sum of a name":     func(im image) image { im.cell(id).sum++; return im },
		"a name":            func(im image) image { im.cell(id).name[3] ^= 1; return im },
		"two with one name": func(im image) image { im.cell((id + 1) % 3).put(im.cell(id).name[:im.cell(id).size]); return im },
	}
	for at := range unsafe.Offsetof(header{}.sum) + 4 {
		tests[fmt.Sprint("byte of the header ", at)] = func(im image) image { im[at] ^= 0x10; return im }
	}
	for name, seq := range map[string]uint64{"oldest": tail, "middle": middle, "newest": head} {
		for field, damage := range map[string]func(im image, e *entry){
			"seq":              func(im image, e *entry) { e.seq++ },
			"pos + 1":          func(im image, e *entry) { e.pos++ },
			"pos max":          func(im image, e *entry) { e.pos = ^uint64(0) },
			"size + 1":         func(im image, e *entry) { e.size++ },
			"size 0":           func(im image, e *entry) { e.size = 0 },
			"size max":         func(im image, e *entry) { e.size = ^uint32(0) },
			"next to itself":   func(im image, e *entry) { e.next.Store(seq) },
			"next back":        func(im image, e *entry) { e.next.Store(tail) },
			"next max":         func(im image, e *entry) { e.next.Store(^uint64(0)) },
			"prev to itself":   func(im image, e *entry) { e.prev = seq },
			"prev max":         func(im image, e *entry) { e.prev = ^uint64(0) },
			"another channel":  func(im image, e *entry) { e.channel = (e.channel + 1) % 3 },
			"no channel":       func(im image, e *entry) { e.channel = 299 },
			"channel too high": func(im image, e *entry) { e.channel = 300 },
			"channel max":      func(im image, e *entry) { e.channel = ^uint32(0) },
			"opcode":           func(im image, e *entry) { *im.frame(seq) ^= 8 },
			"fin":              func(im image, e *entry) { *im.frame(seq) ^= 0x80 },
			"reserved bit":     func(im image, e *entry) { *im.frame(seq) ^= 0x40 },
			"length":           func(im image, e *entry) { im[im.areas().data+(e.pos+1)%im.header().data] ^= 1 },
		} {
			tests[name+" "+field] = func(im image) image { damage(im, im.entry(seq)); return im }
		}
	}
	tests["middle without a link to it"] = func(im image) image { im.entry(im.entry(middle).prev).next.Store(0); return im }
	tests["middle without a link back"] = func(im image) image { im.entry(middle).prev = 0; return im }

	before := addressSpace(t)
	for name, damage := range tests {
		t.Run(name, func(t *testing.T) {
			fds, maps := descriptors(), mappings()
			f := damage(slices.Clone(whole)).file(t)
			l, err := Open(f)
			if err == nil {
				l.Close()
				t.Fatal("no error")
			}
			if s := err.Error(); !strings.HasPrefix(s, "log: ") || strings.ContainsAny(s, "\n") || strings.Contains(s, "%!") {
				t.Errorf("error %q", s)
			}
			if descriptors() != fds+1 || mappings() != maps {
				t.Errorf("%d descriptors and %d mappings more", descriptors()-fds-1, mappings()-maps)
			}
			f.Close()
		})
	}
	// A log is mapped with 4 MiB; the Go heap reserves address space in steps of 64 MiB.
	if more := addressSpace(t) - before; more > len(tests)*2*MinSize {
		t.Errorf("%d MiB of address space are gone after %d logs of 3 MiB", more>>20, len(tests))
	}
	again, shut := whole.open(t) // the test has changed the images only
	defer shut()
	p.check(t, again, tail)
}

// sign makes the header's checksum right.
func (im image) sign() { im.header().sum = checksum(im.header().fixed()) }

// addressSpace in bytes, that of reservations without a file included.
func addressSpace(t testing.TB) (size int) {
	t.Helper()
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Sscan(string(b), &size); err != nil {
		t.Fatal(err)
	}
	return size * os.Getpagesize()
}

func TestOpenWrongFile(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	closed, err := os.Create(t.TempDir() + "/closed")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	for _, f := range []*os.File{r, closed} {
		if l, err := Open(f); err == nil {
			l.Close()
			t.Errorf("%s: no error", f.Name())
		}
	}
}

// The memory cannot be cut off by somebody else who has the descriptor.
func TestSeals(t *testing.T) {
	l := small(t)
	if err := l.rings[0].file.Truncate(0); err == nil {
		t.Error("the file can be cut off")
	}
	if err := l.rings[0].file.Truncate(1 << 30); err == nil {
		t.Error("the file can grow")
	}
}

// FuzzOpen damages an image, 11 bytes of the input a place: in which area, where, what. With sign the header's checksum is
// made right, with sparse the file gets the size that the header asks for. What Open accepts must work.
func FuzzOpen(f *testing.F) {
	l, err := Create(Options{Size: MinSize, Channels: 300})
	if err != nil {
		f.Fatal(err)
	}
	var p published
	p.appendSome(f, l, rand.New(rand.NewPCG(7, 8)), 3000)
	whole := imageOf(f, l)
	if err := l.Close(); err != nil {
		f.Fatal(err)
	}
	head := whole.header().head.Load()

	place := func(area byte, at uint16, value uint64) []byte {
		return binary.NativeEndian.AppendUint64(binary.NativeEndian.AppendUint16([]byte{area}, at), value)
	}
	var h header
	f.Add(place(0, uint16(unsafe.Offsetof(h.channels)), 1<<24), true, true)
	f.Add(place(0, uint16(unsafe.Offsetof(h.entries)), 1<<32), true, true)
	f.Add(append(place(0, uint16(unsafe.Offsetof(h.data)), MaxSize), place(0, uint16(unsafe.Offsetof(h.entries)), MaxSize/bytesPerEntry)...), true, true)
	f.Add(append(place(0, uint16(unsafe.Offsetof(h.data)), 1<<30), place(0, uint16(unsafe.Offsetof(h.entries)), 1<<22)...), true, true)
	f.Add(place(0, uint16(unsafe.Offsetof(h.head)), head-1), false, false)
	f.Add(place(0, uint16(unsafe.Offsetof(h.tail)), head), false, false)
	f.Add(place(0, uint16(unsafe.Offsetof(h.epoch)), 7), true, false)
	f.Add(place(1, 0, 5), false, false)
	f.Add(place(2, 8, 1<<40), false, false)
	f.Add(place(3, 0, 0x8182), false, false)
	f.Fuzz(func(t *testing.T, damage []byte, sign, sparse bool) {
		im := slices.Clone(whole)
		a := im.areas()
		for ; len(damage) >= 11; damage = damage[11:] {
			at := uint64(binary.NativeEndian.Uint16(damage[1:]))
			switch damage[0] % 4 {
			case 0:
				at %= uint64(unsafe.Sizeof(header{})) - 7
			case 1:
				at = a.cells + at%(300*uint64(cellSize)-7)
			case 2: // the entries around the tail and the head are the interesting ones
				at = a.index + (head*uint64(entrySize)+at-1<<15)%(im.areas().data-im.areas().index-8)
			case 3:
				at = a.data + (whole.entry(head).pos+at-1<<15)%(MinSize-8)
			}
			copy(im[at:], damage[3:11])
		}
		if sign {
			im.sign()
		}
		file := im.file(t)
		if h := im.header(); sparse && h.data <= MaxSize && h.channels <= MaxChannels && h.entries <= MaxSize {
			if err := file.Truncate(int64(h.areas().end)); err != nil {
				t.Fatal(err)
			}
		}
		l, err := Open(file)
		if err != nil {
			file.Close()
			return
		}
		defer l.Close()
		u := l.Usage()[0]
		if u.Messages > u.Entries || u.Bytes > u.Size || u.Channels > u.Places {
			t.Fatalf("%+v", u)
		}
		r := reader(t, l)
		follower := l.Follow()
		defer follower.Close()
		var clients []*client
		for _, ch := range slices.Clone(l.rings[0].byID) {
			if ch != nil && len(clients) < 10 {
				clients = append(clients, newClient(t, r, ch.name))
			}
		}
		for i, c := range clients {
			message := strings.Repeat("x", i*10000)
			if _, err := l.Append([]byte(c.ch.name), []byte(message), frame.Text); err != nil {
				t.Fatal(err)
			}
			c.expect(t, message)
			if m, err := follower.Next(everything); err != nil || string(m.Data) != message || m.Channel != c.ch.name {
				t.Fatal(err)
			}
			r.News(nil)
			r.Release()
		}
	})
}
