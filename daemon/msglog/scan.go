package msglog

import (
	"crypto/rand"
	"encoding/binary"
	"os"
	"runtime"
	"runtime/debug"
)

// After a power failure the pages of the file are those of different moments: the kernel writes them in any order.
// What the header says is a hint then, the checksums of the messages say what is there.

// Found is what Load has found.
type Found struct {
	Kept uint64 // messages that are there again
	// Messages that were not intact, as far as anything is known of them: newer ones than those that are kept, and
	// older ones.
	CutNewer, CutOlder uint64
	// NewEpoch: the log was not closed in good order, so messages may be gone that clients have seen. Log.Sequence
	// still takes ids of those that are kept.
	NewEpoch bool
	Aside    string // where a file is now that could not be used
	Cause    error  // why it could not
}

// recoverFile brings a file into the state in which Open takes it.
func recoverFile(f *os.File) (found Found, err error) {
	m, err := mapFile(f)
	if err != nil {
		return Found{}, err
	}
	defer m.unmap()
	if m.head.sums == 0 {
		return Found{}, damaged("the file is a log without checksums, a copy of one in memory")
	}
	// Place for every page, also of a file that was copied without its empty ones.
	if err := reserveFile(f, int64(m.length)-int64(m.size)); err != nil {
		return Found{}, err
	}
	err = survivingFaults(func() error {
		found, err = m.recover(f)
		return err
	})
	return found, err
}

// survivingFaults turns reading what the disk cannot give (SIGBUS, mmap(2)) into an error.
func survivingFaults(do func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		switch fault := recover().(type) {
		case nil:
		case interface {
			runtime.Error
			Addr() uintptr
		}:
			err = damaged("the disk cannot read all of the file")
		default:
			panic(fault)
		}
	}()
	return do()
}

func (m *mapping) recover(f *os.File) (found Found, err error) {
	h := m.head
	head, tail := h.head.Load(), h.tail.Load()
	mark := h.synced.Load()
	closed := h.closed.Load() == h.closedMark()
	first, last := m.scan(mark)
	if last == 0 && mark > 0 && mark < never {
		return Found{}, damaged("none of its messages is intact")
	}
	if last > 0 {
		found.Kept = last + 1 - first
	}
	if head > last && head < never {
		found.CutNewer = head - last
	}
	if first > tail && first-tail < uint64(len(m.index)) {
		found.CutOlder = first - tail
	}
	if closed && (head == last && tail == first || last == 0 && tail == head+1) {
		return found, nil // Open takes the mark away
	}

	found.CutNewer = max(found.CutNewer, m.wipe(last))
	m.relink(first, last)
	h.head.Store(last)
	h.tail.Store(max(1, first))
	h.closed.Store(0)
	if h.ofMany() {
		if h.gone.Store(0); last > 0 {
			h.gone.Store(m.number(first) - 1) // or less, but that is not known
		}
		h.given.Store(h.gone.Load())
	}
	// First all of this, then the epoch that it is for. A power failure in between leaves a log that is recovered the
	// same way.
	if err := dataSync(f); err != nil {
		return Found{}, err
	}
	h.synced.Store(last)
	// Also when there was nothing: messages may have been there that the disk has not seen a page of.
	found.NewEpoch = true
	if last > 0 {
		last = m.number(last)
	}
	err = changeHeader(f, func(h *header) {
		h.retire(last)
		h.epoch = newEpoch()
	})
	if err != nil {
		return Found{}, err
	}
	return found, dataSync(f)
}

// retire makes the epoch one of the earlier ones. Numbers above last may have been those of messages that are gone.
func (h *header) retire(last uint64) {
	copy(h.earlier[1:], h.earlier[:])
	h.earlier[0] = generation{h.epoch, last}
	for i := range h.earlier {
		h.earlier[i].last = min(h.earlier[i].last, last)
	}
}

// changeHeader changes what else does not change.
func changeHeader(f *os.File, change func(*header)) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	cerr := raw.Control(func(fd uintptr) {
		var h *header
		if h, err = readHeader(int(fd)); err != nil {
			return
		}
		change(h)
		err = writeHeader(int(fd), h)
	})
	if cerr != nil {
		return cerr
	}
	return err
}

// newEpoch is not 0, which in a generation is none.
func newEpoch() uint64 {
	var random [8]byte
	_, _ = rand.Read(random[:]) // never fails since Go 1.24
	return binary.LittleEndian.Uint64(random[:]) | 1
}

// scan finds the messages to keep: a run of intact ones without a gap, 0 and 0 when there is none.
//
// It is the run that has the newest intact message that was on the disk for certain, the one at the mark. Above the
// mark a gap is what a power failure has left, and what is beyond it is cut: its time is a second or so. Below the
// mark there are no gaps unless the disk is at fault; what is older than one is cut then, since clients that come
// back need the newest messages. When the log has gone round since the mark was set, it is the longest run.
func (m *mapping) scan(mark uint64) (first, last uint64) {
	last = m.newestBelow(min(mark, never-1))
	if last == 0 {
		last = m.endOfLongest()
	}
	if last == 0 {
		return 0, 0
	}
	for last+1 < never && m.intact(last+1) && m.follows(last) {
		last++
	}
	return m.beginning(last), last
}

// newestBelow is the newest intact message up to the mark, 0 if there is none.
func (m *mapping) newestBelow(mark uint64) uint64 {
	for n := range min(mark, uint64(len(m.index))) {
		if m.intact(mark - n) {
			return mark - n
		}
	}
	return 0
}

// endOfLongest is the last message of the longest run; of two that are as long, of the newer one.
func (m *mapping) endOfLongest() (end uint64) {
	var longest, run, previous uint64
	for i := range 2 * len(m.index) { // a run that goes beyond the end of the index is seen whole in the second round
		seq := m.index[i%len(m.index)].seq
		switch {
		case seq == 0 || seq >= never || !m.intact(seq) || m.entry(seq) != &m.index[i%len(m.index)]:
			run = 0
			continue
		case run > 0 && seq == previous+1 && m.follows(previous):
			run++
		default:
			run = 1
		}
		if previous = seq; run > longest || run == longest && seq > end {
			longest, end = run, seq
		}
	}
	return end
}

// intact tells whether a message is there as it was appended.
func (m *mapping) intact(seq uint64) bool {
	e := m.entry(seq)
	return e.seq == seq && e.pos < never && uint64(e.size) <= m.size/reserve && uint64(e.channel) < uint64(len(m.cells)) &&
		e.sum == m.sum(e)
}

// follows tells whether the message after an intact one, which is intact as well, lies behind it.
func (m *mapping) follows(seq uint64) bool {
	e := m.entry(seq)
	return m.entry(seq+1).pos == e.pos+uint64(e.size)
}

// beginning is the oldest message of the run that ends with an intact one. Older ones can be intact that the log had
// given up before it needed their place, since they are not erased. Append gives up more than it needs when it fails
// after having made room; such a message can have the same id as a kept one, or a channel that was forgotten and has
// begun anew since then.
func (m *mapping) beginning(last uint64) (first uint64) {
	type channel struct{ oldest, prev uint64 }
	channels := make(map[uint32]channel)
	names := make(map[string]uint32)
	ids := make(map[onceHash]struct{})
	end := m.entry(last).pos + uint64(m.entry(last).size)
	for seq := last; ; seq-- {
		e := m.entry(seq)
		if end-e.pos > m.size || last-seq >= uint64(len(m.index)) {
			return seq + 1
		}
		ch, known := channels[e.channel]
		if known && ch.prev != seq {
			return seq + 1
		}
		name, ok := m.cells[e.channel].get()
		if !ok {
			return seq + 1
		}
		if !known {
			if _, ok := names[string(name)]; ok {
				return seq + 1
			}
			names[string(name)] = e.channel
		}
		if e.once != (onceHash{}) {
			if _, ok := ids[e.once]; ok {
				return seq + 1
			}
			ids[e.once] = struct{}{}
		}
		channels[e.channel] = channel{seq, e.prev}
		if seq == 1 || !m.intact(seq-1) || !m.follows(seq-1) {
			return seq
		}
	}
}

// wipe erases the entries above the last message and returns how many messages they were of: what is appended next
// has their numbers, and after one more power failure they would be taken for it.
func (m *mapping) wipe(last uint64) (wiped uint64) {
	for i := range m.index {
		if e := &m.index[i]; e.seq > last {
			if e.seq < never && m.entry(e.seq) == e {
				wiped++
			}
			*e = entry{}
		}
	}
	return wiped
}

// relink makes the links, which the checksums do not cover.
func (m *mapping) relink(first, last uint64) {
	newest := make(map[uint32]uint64)
	for seq := max(1, first); seq <= last; seq++ {
		e := m.entry(seq)
		e.next.Store(0)
		if prev := newest[e.channel]; prev != 0 {
			m.entry(prev).next.Store(seq)
		}
		newest[e.channel] = seq
	}
}
