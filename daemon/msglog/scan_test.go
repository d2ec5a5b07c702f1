package msglog

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"wscast/daemon/frame"
)

const page = 4096

// recovered loads a log whose file has these contents.
func recovered(t testing.TB, o Options, im image) (*Log, Found) {
	t.Helper()
	if err := os.WriteFile(o.Path, im, 0o600); err != nil {
		t.Fatal(err)
	}
	return load(t, o)
}

// exact expects every message that is there to be the one that was published. Which ones are there is for the caller.
func (p published) exact(t testing.TB, l *Log) (first, last uint64) {
	t.Helper()
	first, last = l.rings[0].m.head.tail.Load(), l.Head()
	if last > uint64(len(p)) {
		t.Fatalf("the newest message is %d, and %d were published", last, len(p))
	}
	p[:last].check(t, l, first)
	return first, last
}

// goesOnExactly appends to a log and breaks off, and expects the next one to have the old messages and the new ones.
func (p published) goesOnExactly(t testing.TB, l *Log, o Options) {
	t.Helper()
	_, last := p.exact(t, l)
	p = slices.Clone(p[:last])
	for n := range 20 { // of the sizes that were there before, so that what is left of those lies behind
		p.append(t, l, "channel 1", content(nil, uint64(last)+uint64(n), 1200), frame.Text+frame.Opcode((int(last)+n)%2))
		p[len(p)-1].message = append([]byte(nil), p[len(p)-1].message...)
	}
	shut(t, l)
	l, _ = load(t, o)
	if _, newest := p.exact(t, l); newest != uint64(len(p)) {
		t.Fatalf("the newest message is %d, want %d", newest, len(p))
	}
	shut(t, l)
}

// started is a log with messages that are on the disk, its contents then, and after more messages.
func started(t testing.TB, seed uint64, before, after int) (o Options, p published, synced, newer image) {
	t.Helper()
	o = home(t)
	l, _ := load(t, o)
	defer shut(t, l)
	random := rand.New(rand.NewPCG(seed, 0))
	p.appendSome(t, l, random, before)
	l.rings[0].writer.write(l.rings[0])
	synced = imageOf(t, l)
	p.appendSome(t, l, random, after)
	newer = imageOf(t, l)
	return o, p, synced, newer
}

// The last message is torn at each of its bytes, in its entry, its frame and its channel's name.
func TestTornMessage(t *testing.T) {
	o, p, _, newer := started(t, 1, 50, 1)
	l, _ := recovered(t, o, newer)
	oldEpoch := newer.header().epoch
	shut(t, l)
	last := uint64(len(p))
	e := newer.entry(last)
	a := newer.areas()
	var places []uint64
	offset := func(p unsafe.Pointer) uint64 { return uint64(uintptr(p) - uintptr(unsafe.Pointer(&newer[0]))) }
	for n := range uint64(entrySize - 8) { // next is not of the message
		places = append(places, offset(unsafe.Pointer(e))+n)
	}
	for n := range uint64(e.size) {
		places = append(places, a.data+e.pos+n)
	}
	for _, place := range places {
		im := slices.Clone(newer)
		im[place] ^= byte(1 + place%255)
		l, found := recovered(t, o, im)
		if first, newest := p.exact(t, l); first != 1 || newest != last-1 || !found.NewEpoch || found.CutNewer != 1 || found.Kept != last-1 {
			t.Fatalf("torn at %d: messages %d to %d, %+v", place, first, newest, found)
		}
		isOf(t, l, oldEpoch, last-1, true)
		isOf(t, l, oldEpoch, last, false)
		shut(t, l)
	}
}

// Every page that was changed since all was on the disk is missing in turn, and then in all combinations that chance gives.
func TestPagesInAnyOrder(t *testing.T) {
	for seed, n := range []struct{ before, after int }{{0, 40}, {300, 200}, {3000, 700}, {9000, 400}, {4000, 3000}} {
		o, p, synced, newer := started(t, uint64(seed), n.before, n.after)
		var changed []int
		for at := 0; at < len(newer); at += page {
			if string(newer[at:at+page]) != string(synced[at:at+page]) {
				changed = append(changed, at)
			}
		}
		random := rand.New(rand.NewPCG(uint64(seed), 1))
		cut, whole := 0, 0
		try := func(name string, im image) {
			l, found := recovered(t, o, im)
			first, last := p.exact(t, l)
			if onDisk, oldest := uint64(n.before), newer.header().tail.Load(); onDisk > oldest && (last < onDisk || first > oldest) {
				t.Fatalf("%s: messages %d to %d are there, %d to %d were on the disk: %+v", name, first, last, oldest, onDisk, found)
			}
			if !found.NewEpoch || l.Epoch() == newer.header().epoch {
				t.Fatalf("%s: the epoch was not changed: %+v", name, found)
			}
			isOf(t, l, newer.header().epoch, last, last > 0)
			isOf(t, l, newer.header().epoch, last+1, false)
			if last < uint64(len(p)) {
				cut++
			} else {
				whole++
			}
			p.goesOnExactly(t, l, o)
		}
		try("all pages", newer)
		try("no page", synced)
		for range 10 {
			at := changed[random.IntN(len(changed))]
			im := slices.Clone(newer)
			copy(im[at:at+page], synced[at:at+page])
			try(fmt.Sprint("without page ", at/page), im)
			im = slices.Clone(synced)
			copy(im[at:at+page], newer[at:at+page])
			try(fmt.Sprint("only page ", at/page), im)
		}
		for round := range 10 {
			im := slices.Clone(newer)
			share := random.Float64()
			for _, at := range changed {
				if random.Float64() < share*share {
					copy(im[at:at+page], synced[at:at+page])
				}
			}
			try(fmt.Sprint("any pages, round ", round), im)
		}
		// The head's page is old, all others are new: what it does not know is there.
		im := slices.Clone(newer)
		copy(im[:page], synced[:page])
		l, _ := recovered(t, o, im)
		if _, last := p.exact(t, l); last != uint64(len(p)) {
			t.Errorf("with an old header %d of %d messages are there", last, len(p))
		}
		shut(t, l)
		if cut == 0 || whole == 0 {
			t.Errorf("%d cut, %d whole: the test has not seen both", cut, whole)
		}
	}
}

// Pages that were never written are zero: blocks are allocated when the file is made.
func TestPagesNeverWritten(t *testing.T) {
	o, p, _, newer := started(t, 3, 0, 300)
	random := rand.New(rand.NewPCG(3, 1))
	for range 100 {
		im := slices.Clone(newer)
		for n := 1 + random.IntN(5); n > 0; n-- {
			at := headerSize + random.IntN(len(im)-headerSize)/page*page
			clear(im[at : at+page])
		}
		l, _ := recovered(t, o, im)
		p.goesOnExactly(t, l, o)
	}
}

// A file that was damaged on the disk, long after it was written, keeps the newest messages.
func TestDamageInTheMiddle(t *testing.T) {
	o := home(t)
	l, _ := load(t, o)
	random := rand.New(rand.NewPCG(4, 0))
	var p published
	p.appendSome(t, l, random, 3000)
	if err := l.Finish(); err != nil {
		t.Fatal(err)
	}
	whole := imageOf(t, l)
	tail, head := l.rings[0].m.head.tail.Load(), l.Head()
	shut(t, l)
	for _, bad := range [][]uint64{{tail}, {tail + 1}, {head - 1}, {head}, {(tail + head) / 2}, {tail + 10, head - 100}, {head, head - 1, tail}} {
		im := slices.Clone(whole)
		for _, seq := range bad {
			*im.frame(seq) ^= 4
		}
		first, last := tail, head
		for slices.Contains(bad, last) {
			last--
		}
		for _, seq := range bad {
			if seq < last {
				first = max(first, seq+1)
			}
		}
		l, found := recovered(t, o, im)
		if from, to := p.exact(t, l); from != first || to != last {
			t.Errorf("damaged %d: kept %d to %d, want %d to %d", bad, from, to, first, last)
		}
		if found.CutNewer != head-last || found.CutOlder != first-tail || !found.NewEpoch {
			t.Errorf("damaged %d: %+v", bad, found)
		}
		p.goesOnExactly(t, l, o)
	}
	// What a mark says that is damaged does no harm.
	for name, damage := range map[string]func(h *header){
		"synced 0":     func(h *header) { h.synced.Store(0) },
		"synced max":   func(h *header) { h.synced.Store(^uint64(0)) },
		"synced never": func(h *header) { h.synced.Store(never) },
		"head 0":       func(h *header) { h.head.Store(0) },
		"head max":     func(h *header) { h.head.Store(^uint64(0)) },
		"tail 0":       func(h *header) { h.tail.Store(0) },
		"tail max":     func(h *header) { h.tail.Store(^uint64(0)) },
		"closed":       func(h *header) { h.closed.Add(1) },
	} {
		im := slices.Clone(whole)
		damage(im.header())
		l, found := recovered(t, o, im)
		if from, to := p.exact(t, l); from != tail || to != head || found.NewEpoch != !strings.HasPrefix(name, "synced") {
			t.Errorf("%s: kept %d to %d, want %d to %d; %+v", name, from, to, tail, head, found)
		}
		shut(t, l)
	}
}

// Append can give up messages and fail then. What it gave up is intact on the disk, and would be kept again; but not where its
// channel, or its id, has begun anew since then.
func TestGivenUp(t *testing.T) {
	for what, oldest := range map[string]uint64{"nothing": 1, "the channel in its cell": 2, "the channel in another cell": 2, "the id": 3} {
		t.Run(what+" begins anew", func(t *testing.T) {
			o := home(t)
			l, _ := load(t, o)
			r := reader(t, l)
			put := func(channel, id string, size int) {
				t.Helper()
				if _, again, err := l.Put([]byte(channel), make([]byte, size), []byte(id), frame.Binary); again || err != nil {
					t.Fatal(again, err)
				}
				r.News(nil)
				r.Release()
			}
			put("a", "", 10)
			b, _ := join(t, r, "b")
			defer r.Leave(b, true)
			put("b", "the id", 100)
			for left := func() int { return int(l.rings[0].m.size - l.rings[0].pos) }; left() > 500; {
				put("b", "", min(60000, left()-100))
			}
			c, _ := join(t, r, "c")
			if what != "the channel in another cell" {
				r.Leave(c, true)
			}
			l.mu.Lock()
			l.rings[0].makeRoomLocked(uint64(l.rings[0].m.size - l.rings[0].pos + 20))
			l.mu.Unlock()
			if tail := l.rings[0].m.head.tail.Load(); tail != 3 {
				t.Fatalf("the tail is at %d", tail)
			}
			if what == "the channel in another cell" {
				r.Leave(c, true) // now its cell is the next one to be taken
			}
			switch what {
			case "nothing":
				put("b", "", 10)
			case "the id":
				put("b", "the id", 10)
			default:
				put("a", "", 10)
			}
			head := l.Head()
			shut(t, l)
			l, found := load(t, o)
			if first := l.rings[0].m.head.tail.Load(); l.Head() != head || first != oldest || found.Aside != "" {
				t.Errorf("messages %d to %d, want %d to %d; %+v", first, l.Head(), oldest, head, found)
			}
			shut(t, l)
		})
	}
}

// Where all messages are the same, those that were overwritten look as if they were there: their frames are.
func TestSameMessages(t *testing.T) {
	const size = 1024 // of a frame, which goes into the log a whole number of times
	o := home(t)
	l, _ := load(t, o)
	var p published
	for range 3 * MinSize / size {
		p.append(t, l, "a", make([]byte, size-frame.HeaderSize(size)), frame.Binary)
	}
	shut(t, l)
	l, found := load(t, o)
	p.check(t, l, uint64(len(p))-MinSize/size+1)
	if found.CutNewer+found.CutOlder != 0 {
		t.Errorf("%+v", found)
	}
	shut(t, l)
}

// FuzzLoad takes a log of two moments, pages of one or the other, and damage: what comes back is what was published, and
// goes on.
func FuzzLoad(f *testing.F) {
	o, p, synced, newer := started(f, 5, 2500, 300)
	var changed []int
	for at := 0; at < len(newer); at += page {
		if string(newer[at:at+page]) != string(synced[at:at+page]) {
			changed = append(changed, at)
		}
	}
	f.Add([]byte{}, []byte{}, uint64(0))
	f.Add([]byte{0xff, 0xff, 0xff}, []byte{}, uint64(0))
	f.Add([]byte{1}, []byte{}, uint64(0))
	f.Add([]byte{0, 2}, []byte{0, 0, 0, 200, 1}, uint64(7))
	f.Add([]byte{}, []byte{1, 0, 8, 0, 9}, uint64(2600))
	f.Add([]byte{}, []byte{0, 0, 0, 0x80, 1, 0, 0, 0, 0xc0, 1, 0, 0, 1, 0, 3}, ^uint64(0))
	f.Fuzz(func(t *testing.T, old, damage []byte, mark uint64) {
		im := slices.Clone(newer)
		for i, at := range changed {
			if i/8 < len(old) && old[i/8]&(1<<(i%8)) != 0 {
				copy(im[at:at+page], synced[at:at+page])
			}
		}
		if mark != 0 {
			im.header().synced.Store(mark)
		}
		for ; len(damage) >= 5; damage = damage[5:] {
			at := (int(damage[0])<<24 | int(damage[1])<<16 | int(damage[2])<<8 | int(damage[3])) % len(im)
			im[at] ^= damage[4]
		}
		o := o
		o.Path += fmt.Sprint(rand.Uint64())
		defer func() {
			files, _ := os.ReadDir(o.Path[:strings.LastIndexByte(o.Path, '/')])
			for _, file := range files {
				if path := o.Path[:strings.LastIndexByte(o.Path, '/')+1] + file.Name(); strings.HasPrefix(path, o.Path) {
					os.Remove(path)
				}
			}
		}()
		l, found := recovered(t, o, im)
		if found.Aside != "" {
			shut(t, l)
			return
		}
		p.goesOnExactly(t, l, o)
	})
}
