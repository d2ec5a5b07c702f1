package msglog

import (
	"time"

	"wscast/daemon/frame"
)

// From is where in a channel a client wants to begin. The zero value is now: with what comes from here on.
type From struct {
	How  How
	Seq  uint64        // After: number of the last message that the client has seen, of whichever channel
	Age  time.Duration // Since
	Last int           // Last: how many messages
}

// How is the kind of a From.
type How uint8

// The kinds.
const (
	Now   How = iota
	After     // a message
	Since     // so long ago
	Last      // so many messages
)

// Seek returns the cursor of a client that begins there. The client is on the channel already, so what is appended meanwhile comes after the
// messages that were there. complete tells whether the log has, as far as it can know, all messages from there on; when it has not, the
// cursor is before the oldest one that can still be sent.
//
// A quiet channel is walked back from its newest message and a busy one is come across when the log is walked on from there: the shorter of the
// two ways is what it costs, some 5 ns a step.
func (r *Reader) Seek(ch *Channel, from From) (cursor uint64, complete bool) {
	g := ch.ring
	m, floor := g.m, g.fresh(max(r.at[g.index].floor.Load(), 1))
	last := ch.last.Load()
	number := ch.Newest() // of last, or newer
	switch from.How {
	case After:
		switch {
		case from.Seq > r.log.Head(): // no message of this log; it can have been cut
			return last, false
		case last != 0 && number <= from.Seq: // the usual case of a client that has missed nothing
			return last, true
		}
		first := r.firstAfter(ch, floor, from.Seq, last)
		if first == 0 {
			return last, from.Seq >= g.gone(floor)
		}
		before := m.before(first)
		return m.entry(first).prev, from.Seq >= g.gone(floor) || before != 0 && before <= from.Seq
	case Since:
		at := g.since(floor, time.Now().Add(-from.Age))
		complete = at > floor || g.gone(floor) == 0
		if first := r.firstFrom(ch, at, last); first != 0 {
			return m.entry(first).prev, complete
		}
		return last, complete
	case Last:
		first, n := uint64(0), 0
		for at := last; n < from.Last && at >= floor; at = m.entry(at).prev {
			first = at
			n++
		}
		complete = n == from.Last || g.gone(floor) == 0
		if first != 0 {
			last = m.entry(first).prev
		}
		return last, complete
	}
	return last, true
}

// firstAfter finds the channel's first message after that number, at or above the floor, 0 if there is none. last is its
// newest one.
func (r *Reader) firstAfter(ch *Channel, floor, number, last uint64) uint64 {
	if number == Gone {
		return 0
	}
	m, from := ch.ring.m, ch.ring.above(floor, number)
	// The usual cases cost nothing: a client comes back with a message of this channel, or wants all that there is.
	if seq := from - 1; seq >= floor && last >= from && m.number(seq) == number && m.entry(seq).channel == cellOf(ch.id) {
		return m.entry(seq).next.Load()
	}
	return r.firstFrom(ch, from, last)
}

// firstFrom finds the channel's first message from an ordinal on that is at or above the floor.
func (r *Reader) firstFrom(ch *Channel, from, last uint64) uint64 {
	m, cell := ch.ring.m, cellOf(ch.id)
	if last < from {
		return 0
	}
	if first := ch.first.Load(); first >= from {
		return first
	}
	for back, on := last, from; ; on++ {
		if m.entry(on).channel == cell {
			return on
		}
		prev := m.entry(back).prev
		if prev < from {
			return back
		}
		back = prev
	}
}

// Linked is Head when that message, as all before it, has its place in its channel.
func (l *Log) Linked() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.Head()
}

// Newest is the number of the newest message of a channel, or of one that has come meanwhile; 0 if there was none since the
// channel has its place in the log.
func (ch *Channel) Newest() uint64 {
	if ch.ring.m.numbers == nil {
		return ch.last.Load()
	}
	return ch.number.Load()
}

// Message is the message with that ordinal, at or above the floor. Its data are mapped memory, not to be written, and valid
// until the next Release.
func (r *Reader) Message(ch *Channel, seq uint64) Message {
	op, data, _ := frame.Payload(r.Frame(ch, seq))
	return Message{Channel: ch.name, Number: ch.ring.m.number(seq), Time: ch.ring.m.entry(seq).time, Op: op, Data: data}
}
