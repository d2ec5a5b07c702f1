package msglog

import (
	"errors"
	"fmt"
)

// Resized returns the log in the size that is asked for: the log itself if it has that size, or else a copy in a new memfd, with the same epoch,
// sequence numbers and channel ids, and as many of the newest messages as fit. The log itself stays as it is. It must not be in use: there are no readers, followers or
// appenders yet.
//
// Names of channels are never left out, since a client that was not taken over yet can refer to any of them: the copy has place for more channels
// than asked for where it needs to. It is an error when the newest message does not fit.
func (l *Log) Resized(o Options) (*Log, error) {
	for id := len(l.m.cells) - 1; id >= o.Channels; id-- {
		if l.m.cells[id].size != 0 {
			o.Channels = id + 1
			break
		}
	}
	if o.Size > 0 && roundUp(uint64(o.Size)) == l.m.size && o.Channels == len(l.m.cells) {
		return l, nil
	}
	f, err := makeFile(o, l.Epoch())
	if err != nil {
		return nil, err
	}
	m, err := mapFile(f)
	if err == nil {
		err = errors.Join(l.copyTo(m), m.unmap())
	}
	var next *Log
	if err == nil {
		next, err = Open(f)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return next, nil
}

// copyTo copies what fits into an empty log. Positions stay what they are; where that is in the data depends on its size alone.
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
		to.next.Store(from.next.Load())
		copy(m.bytes(from.pos, uint64(from.size)), l.m.bytes(from.pos, uint64(from.size)))
	}
	m.head.tail.Store(first)
	m.head.head.Store(head)
	return nil
}
