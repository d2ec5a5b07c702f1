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
	for id := len(l.m.cells) - 1; id >= o.Channels; id-- {
		if l.m.cells[id].size != 0 {
			o.Channels = id + 1
			break
		}
	}
	inPlace := l.writer == nil && o.Path == "" || l.writer != nil && o.Path != "" && isAt(l.file, o.Path)
	if inPlace {
		l.path = o.Path // a descriptor from elsewhere does not say it exactly
	}
	if inPlace && o.Size > 0 && roundUp(uint64(o.Size)) == l.m.size && o.Channels == len(l.m.cells) {
		return l, "", nil
	}
	h, err := o.header()
	if err != nil {
		return nil, "", err
	}
	h.epoch, h.earlier = l.m.head.epoch, l.m.head.earlier
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
		err = errors.Join(l.copyTo(m), m.unmap())
	}
	if err == nil {
		next, err = Open(f)
	}
	if err == nil && o.Path != "" {
		if aside, err = l.clear(o.Path); err == nil {
			err = putInPlace(o.Path, f)
		}
		next.path = o.Path
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

// clear makes way for a copy of the log. A file of this log can be there that is not the one in use, after a process
// was killed in the middle of Resized: nothing was appended meanwhile.
func (l *Log) clear(path string) (aside string, err error) {
	if isAt(l.file, path) {
		return "", nil // and it is locked
	}
	f, err := lockFile(path, 0)
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer f.Close()
	if m, err := mapFile(f); err == nil {
		same := m.head.epoch == l.Epoch() && m.head.head.Load() == l.Head()
		if err := m.unmap(); err != nil || same {
			return "", err
		}
	}
	return SetAside(path)
}

// copyTo copies what fits into an empty log. Positions stay what they are; where that is in the data depends on its
// size alone.
func (l *Log) copyTo(m *mapping) error {
	copy(m.cells, l.m.cells)
	head, tail := l.Head(), l.m.head.tail.Load()
	if head == 0 {
		return nil
	}
	first, bytes := head+1, uint64(0)
	for seq := head; seq >= tail; seq-- {
		size := uint64(l.m.entry(seq).size)
		if bytes += size; size > m.size/reserve || bytes > m.size || head-seq+1 >= uint64(len(m.index)) {
			break
		}
		first = seq
	}
	if first > head {
		return fmt.Errorf("log: a size of %d bytes is too small for the newest message, which has %d bytes: an eighth of it is for one message", m.size, l.m.entry(head).size)
	}
	for seq := first; seq <= head; seq++ {
		from, to := l.m.entry(seq), m.entry(seq)
		to.seq, to.pos, to.time, to.prev, to.size, to.channel = from.seq, from.pos, from.time, from.prev, from.size, from.channel
		to.once = from.once
		to.next.Store(from.next.Load())
		copy(m.bytes(from.pos, uint64(from.size)), l.m.bytes(from.pos, uint64(from.size)))
		if m.head.sums != 0 {
			to.sum = m.sum(to)
		}
	}
	m.head.synced.Store(head) // true once the copy has its path
	m.head.tail.Store(first)
	m.head.head.Store(head)
	return nil
}
