package msglog

import (
	"fmt"

	"wscast/daemon/frame"
)

// rebuild makes the channels out of what the file has. Nothing in the file is believed: a log that an honest process
// cannot have left is refused as a whole, since it cannot be known which of its messages are true.
func (l *Log) rebuild() error {
	h := l.m.head
	head, tail := h.head.Load(), h.tail.Load()
	if tail == 0 || tail > head+1 || head+1-tail > uint64(len(l.m.index)) || head >= 1<<62 {
		return fmt.Errorf("log: implausible header: messages %d to %d in %d entries", tail, head, len(l.m.index))
	}
	byID := make([]*Channel, len(l.m.cells))
	used := 0
	for seq := tail; seq <= head; seq++ {
		e := l.m.entry(seq)
		if seq == tail {
			l.pos = e.pos
		}
		if e.seq != seq || e.pos != l.pos || e.pos >= 1<<62 || int(e.channel) >= len(l.m.cells) ||
			uint64(e.size) > h.data/reserve || e.size < 2 || e.pos+uint64(e.size)-l.m.entry(tail).pos > h.data {
			return fmt.Errorf("log: the entry of message %d is damaged", seq)
		}
		l.pos += uint64(e.size)
		if op, _, ok := frame.Payload(l.m.bytes(e.pos, uint64(e.size))); !ok || op != frame.Text && op != frame.Binary {
			return fmt.Errorf("log: the frame of message %d is damaged", seq)
		}
		ch := byID[e.channel]
		if ch == nil {
			c := &l.m.cells[e.channel]
			if c.size == 0 || c.size > MaxName {
				return fmt.Errorf("log: the channel of message %d is damaged", seq)
			}
			ch = &Channel{name: string(c.name[:c.size]), id: e.channel}
			if l.byName[ch.name] != nil {
				return fmt.Errorf("log: two channels have the name %q", ch.name)
			}
			l.byName[ch.name], byID[ch.id] = ch, ch
			if e.prev >= tail {
				return fmt.Errorf("log: message %d follows message %d, which has another channel", seq, e.prev)
			}
			ch.evicted.Store(e.prev)
			used = max(used, int(ch.id)+1)
		}
		// The links are made anew: the process may have been killed between moving the head and linking.
		e.prev = ch.last.Load()
		if e.prev == 0 {
			e.prev = ch.evicted.Load()
		}
		e.next.Store(0)
		l.linkLocked(ch, seq)
	}
	l.byID = byID[:used]
	for id, ch := range l.byID {
		if ch == nil {
			l.free = append(l.free, uint32(id))
		}
	}
	for id := range l.m.cells {
		if id >= used || l.byID[id] == nil {
			if c := &l.m.cells[id]; c.size != 0 { // not written without need: an untouched page costs no memory
				c.size = 0
			}
		}
	}
	l.nudgeLocked()
	return nil
}
