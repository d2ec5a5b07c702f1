package msglog

import (
	"errors"
	"fmt"
	"os"
)

// Resized returns the log in the size and at the path that are asked for: the log itself if it is like that, or else
// a copy in a new file, or in memory, with the same epoch, sequence numbers and channel ids, and as many of the
// newest messages as fit. The log itself stays as it is, also where its file has lost its path to the new one. It
// must not be in use: there are no readers, followers or appenders yet.
//
// What is at the path, and is not this log in another size, is moved aside; its new path is returned.
//
// Names of channels are never left out, since a client that was not taken over yet can refer to any of them: the copy
// has place for more channels than asked for where it needs to. It is an error when the newest message does not fit,
// and where Load has one.
func (l *Log) Resized(o Options) (next *Log, aside string, err error) {
	g := l.rings[0]
	g.age = o.Age
	for id := len(g.m.cells) - 1; id >= o.Channels; id-- {
		if g.m.cells[id].size != 0 {
			o.Channels = id + 1
			break
		}
	}
	inPlace := g.writer == nil && o.Path == "" || g.writer != nil && o.Path != "" && isAt(g.file, o.Path)
	if inPlace {
		g.path = o.Path // a descriptor from elsewhere does not say it exactly
	}
	if inPlace && o.Size > 0 && roundUp(uint64(o.Size)) == g.m.size && o.Channels == len(g.m.cells) {
		return l, "", nil
	}
	h, err := o.header()
	if err != nil {
		return nil, "", err
	}
	h.epoch, h.earlier = g.m.head.epoch, g.m.head.earlier
	var f *os.File
	if o.Path == "" {
		f, err = makeMemory(h)
	} else {
		h.sums = 1
		f, err = makeBeside(o.Path, h)
	}
	if err != nil {
		return nil, "", err
	}
	m, err := mapFile(f)
	if err == nil {
		err = errors.Join(g.copyTo(m), m.unmap())
	}
	if err == nil {
		next, err = Open(f)
	}
	if err == nil {
		next.rings[0].age = o.Age
	}
	if err == nil && o.Path != "" {
		if !isAt(g.file, o.Path) { // else it is locked
			aside, err = clearPath(o.Path, func(m *mapping) bool {
				return m.head.epoch == l.Epoch() && m.head.head.Load() == g.m.head.head.Load()
			})
		}
		if err == nil {
			err = putInPlace(o.Path, f)
		}
		next.rings[0].path = o.Path
	}
	if err == nil {
		return next, aside, nil
	}
	if next != nil {
		err = errors.Join(err, next.Close())
	} else {
		f.Close()
	}
	if o.Path != "" {
		_ = os.Remove(beside(o.Path))
	}
	return nil, aside, err
}

// clearPath makes way for a copy at a path where there is another file than the one that is copied. It can be another copy,
// after a process was killed in the middle of Resized or Rearranged: nothing was appended meanwhile.
func clearPath(path string, copied func(*mapping) bool) (aside string, err error) {
	f, err := lockFile(path, 0)
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer f.Close()
	if m, err := mapFile(f); err == nil {
		same := copied(m)
		if err := m.unmap(); err != nil || same {
			return "", err
		}
	}
	return SetAside(path)
}

// copyTo copies what fits into an empty log. Positions stay what they are; where that is in the data depends on its
// size alone.
func (g *ring) copyTo(m *mapping) error {
	copy(m.cells, g.m.cells)
	head, tail := g.m.head.head.Load(), g.m.head.tail.Load()
	if head == 0 {
		return nil
	}
	first, bytes := head+1, uint64(0)
	for seq := head; seq >= tail; seq-- {
		size := uint64(g.m.entry(seq).size)
		if bytes += size; size > m.size/reserve || bytes > m.size || head-seq+1 >= uint64(len(m.index)) {
			break
		}
		first = seq
	}
	if first > head {
		return fmt.Errorf("log: a size of %d bytes is too small for the newest message, which has %d bytes: an eighth of it is for one message", m.size, g.m.entry(head).size)
	}
	for seq := first; seq <= head; seq++ {
		from, to := g.m.entry(seq), m.entry(seq)
		to.seq, to.pos, to.time, to.prev, to.size, to.channel = from.seq, from.pos, from.time, from.prev, from.size, from.channel
		to.once = from.once
		to.next.Store(from.next.Load())
		copy(m.bytes(from.pos, uint64(from.size)), g.m.bytes(from.pos, uint64(from.size)))
		if m.head.sums != 0 {
			to.sum = m.sum(to)
		}
	}
	m.head.synced.Store(head) // true once the copy has its path
	m.head.tail.Store(first)
	m.head.head.Store(head)
	return nil
}
