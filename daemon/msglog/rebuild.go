package msglog

import "wscast/daemon/frame"

// never is a sequence number, or a position, that no log lives to see. Below it sums do not overflow.
const never = 1 << 62

// rebuild makes the channels out of what the file has. Nothing in the file is believed: a log that an honest process cannot
// have left is refused as a whole, since it cannot be known which of its messages are true. It changes one link at most, so
// it can be killed as well.
func (g *ring) rebuild() error {
	head, tail := g.m.head.head.Load(), g.m.head.tail.Load()
	// A frame is at most an eighth of the data, so a ring that has once had a message is never empty again.
	empty := tail == head+1 && (head == 0 || head == rearranged-1 && g.m.numbers != nil)
	if !empty && (tail == 0 || tail > head || head-tail >= uint64(len(g.m.index)) || head >= never) {
		return damaged("implausible header: messages %d to %d in %d entries", tail, head, len(g.m.index))
	}
	start := g.m.entry(tail).pos
	if !empty {
		g.pos = start
	}
	newest := g.m.head.gone.Load() // of the oldest one itself, when the process was killed just before it was given up
	if tail <= head && g.m.numbers != nil {
		if n := g.m.number(tail); n < newest || n == 0 {
			return damaged("the number of message %d is damaged", tail)
		} else if n == newest {
			newest--
		}
	}
	for seq := tail; seq <= head; seq++ {
		e := g.m.entry(seq)
		number := g.m.number(seq)
		if g.m.numbers != nil && (number <= newest || number >= never) {
			return damaged("the number of message %d is damaged", seq)
		}
		newest = number
		size := uint64(e.size)
		if e.seq != seq || e.pos != g.pos || e.pos >= never || size > g.m.size/reserve || e.pos+size-start > g.m.size {
			return damaged("the entry of message %d is damaged", seq)
		}
		if op, _, ok := frame.Payload(g.m.bytes(e.pos, size)); !ok || op != frame.Text && op != frame.Binary {
			return damaged("the frame of message %d is damaged", seq)
		}
		ch, err := g.restore(e, tail)
		if err != nil {
			return err
		}
		if g.log.hasLocked(e.once) {
			return damaged("message %d has the id of another one, of which there can be none", seq)
		}
		g.log.rememberLocked(e.once)
		if last := ch.last.Load(); last != 0 {
			// The process may have been killed between moving the head and linking.
			next := g.m.entry(last).next.Load()
			if e.prev != last || g.m.before(seq) != ch.Newest() || next != seq && (next != 0 || seq != head) {
				return damaged("the links between messages %d and %d are damaged", last, seq)
			}
		}
		g.linkLocked(ch, seq, number)
		g.pos += size
	}
	for id, ch := range g.byID {
		if ch == nil {
			g.free = append(g.free, uint32(id))
		} else if last := ch.last.Load(); g.m.entry(last).next.Load() != 0 {
			return damaged("the link after message %d is damaged", last)
		}
	}
	g.nudgeLocked()
	return nil
}

// restore returns the channel of an entry, which it makes when the entry is the first one of it.
func (g *ring) restore(e *entry, tail uint64) (*Channel, error) {
	if uint64(e.channel) >= uint64(len(g.m.cells)) {
		return nil, damaged("the entry of message %d is damaged: it has channel %d of %d", e.seq, e.channel, len(g.m.cells))
	}
	for uint64(len(g.byID)) <= uint64(e.channel) {
		g.byID = append(g.byID, nil)
	}
	if ch := g.byID[e.channel]; ch != nil {
		return ch, nil
	}
	name, ok := g.m.cells[e.channel].get()
	if !ok {
		return nil, damaged("the name of channel %d, which message %d has, is damaged", e.channel, e.seq)
	}
	if g.log.byName[string(name)] != nil {
		return nil, damaged("two channels have the name %q", name)
	}
	if e.prev >= tail {
		return nil, damaged("message %d follows message %d, which has another channel", e.seq, e.prev)
	}
	ch := g.addLocked(string(name), e.channel)
	ch.evicted.Store(e.prev)
	return ch, nil
}
