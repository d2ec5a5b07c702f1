package msglog

import "wscast/daemon/frame"

// never is a sequence number, or a position, that no log lives to see. Below it sums do not overflow.
const never = 1 << 62

// rebuild makes the channels out of what the file has. Nothing in the file is believed: a log that an honest process cannot
// have left is refused as a whole, since it cannot be known which of its messages are true. It changes one link at most, so
// it can be killed as well.
func (l *Log) rebuild() error {
	head, tail := l.m.head.head.Load(), l.m.head.tail.Load()
	// A frame is at most an eighth of the data, so a log that has once had a message is never empty again.
	empty := head == 0 && tail == 1
	if !empty && (tail == 0 || tail > head || head-tail >= uint64(len(l.m.index)) || head >= never) {
		return damaged("implausible header: messages %d to %d in %d entries", tail, head, len(l.m.index))
	}
	start := l.m.entry(tail).pos
	if !empty {
		l.pos = start
	}
	for seq := tail; seq <= head; seq++ {
		e := l.m.entry(seq)
		size := uint64(e.size)
		if e.seq != seq || e.pos != l.pos || e.pos >= never || size > l.m.size/reserve || e.pos+size-start > l.m.size {
			return damaged("the entry of message %d is damaged", seq)
		}
		if op, _, ok := frame.Payload(l.m.bytes(e.pos, size)); !ok || op != frame.Text && op != frame.Binary {
			return damaged("the frame of message %d is damaged", seq)
		}
		ch, err := l.restore(e, tail)
		if err != nil {
			return err
		}
		if l.hasLocked(e.once) {
			return damaged("message %d has the id of another one, of which there can be none", seq)
		}
		l.rememberLocked(e.once)
		if last := ch.last.Load(); last != 0 {
			// The process may have been killed between moving the head and linking.
			next := l.m.entry(last).next.Load()
			if e.prev != last || next != seq && (next != 0 || seq != head) {
				return damaged("the links between messages %d and %d are damaged", last, seq)
			}
		}
		l.linkLocked(ch, seq)
		l.pos += size
	}
	for id, ch := range l.byID {
		if ch == nil {
			l.free = append(l.free, uint32(id))
		} else if last := ch.last.Load(); l.m.entry(last).next.Load() != 0 {
			return damaged("the link after message %d is damaged", last)
		}
	}
	l.nudgeLocked()
	return nil
}

// restore returns the channel of an entry, which it makes when the entry is the first one of it.
func (l *Log) restore(e *entry, tail uint64) (*Channel, error) {
	if uint64(e.channel) >= uint64(len(l.m.cells)) {
		return nil, damaged("the entry of message %d is damaged: it has channel %d of %d", e.seq, e.channel, len(l.m.cells))
	}
	for uint64(len(l.byID)) <= uint64(e.channel) {
		l.byID = append(l.byID, nil)
	}
	if ch := l.byID[e.channel]; ch != nil {
		return ch, nil
	}
	name, ok := l.m.cells[e.channel].get()
	if !ok {
		return nil, damaged("the name of channel %d, which message %d has, is damaged", e.channel, e.seq)
	}
	ch := &Channel{name: string(name), id: e.channel}
	if l.byName[ch.name] != nil {
		return nil, damaged("two channels have the name %q", ch.name)
	}
	if e.prev >= tail {
		return nil, damaged("message %d follows message %d, which has another channel", e.seq, e.prev)
	}
	ch.evicted.Store(e.prev)
	l.byName[ch.name], l.byID[ch.id] = ch, ch
	return ch, nil
}
