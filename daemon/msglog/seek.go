package msglog

import (
	"sort"
	"time"

	"wscast/daemon/frame"
)

// From is where in a channel a client wants to begin. The zero value is now: with what comes from here on.
type From struct {
	How  How
	Seq  uint64        // After: the last message that the client has seen, of whichever channel
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
	m, floor := r.log.m, max(r.floor.Load(), 1)
	head, last := m.head.head.Load(), ch.last.Load()
	all := floor == 1 // nothing is left out; the floor rises before anything is overwritten
	switch from.How {
	case After:
		first := r.firstAfter(ch, from.Seq, last)
		switch {
		case from.Seq > head: // no message of this log; it can have been cut
			return last, false
		case first == 0:
			return last, from.Seq+1 >= floor || last != 0 && last <= from.Seq
		}
		prev := m.entry(first).prev
		return prev, from.Seq+1 >= floor || prev != 0 && prev <= from.Seq
	case Since:
		since := time.Now().Add(-from.Age).UnixNano()
		n := sort.Search(int(head+1-min(floor, head+1)), func(i int) bool { return m.entry(floor+uint64(i)).time >= since })
		complete = all || n > 0
		if first := r.firstAfter(ch, floor+uint64(n)-1, last); first != 0 {
			return m.entry(first).prev, complete
		}
		return last, complete
	case Last:
		first, n := uint64(0), 0
		for at := last; n < from.Last && at >= floor; at = m.entry(at).prev {
			first = at
			n++
		}
		if first != 0 {
			last = m.entry(first).prev
		}
		return last, n == from.Last || all
	}
	return last, true
}

// firstAfter finds the channel's first message after seq at or above the floor, 0 if there is none. last is its newest one.
func (r *Reader) firstAfter(ch *Channel, seq, last uint64) uint64 {
	m := r.log.m
	from := max(seq+1, r.floor.Load(), 1)
	if seq == Gone || last < from {
		return 0
	}
	// The usual cases cost nothing: a client comes back with a message of this channel, or wants all that there is.
	if seq+1 == from && seq >= r.log.m.head.tail.Load() && seq >= r.floor.Load() && m.entry(seq).channel == ch.id {
		return m.entry(seq).next.Load()
	}
	if first := ch.first.Load(); first >= from {
		return first
	}
	for back, on := last, from; ; on++ {
		if m.entry(on).channel == ch.id {
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
	return l.m.head.head.Load()
}

// Message is the message with that sequence number, at or above the floor. Its data are mapped memory, not to be written, and valid
// until the next Release.
func (r *Reader) Message(ch *Channel, seq uint64) Message {
	op, data, _ := frame.Payload(r.Frame(seq))
	return Message{Channel: ch.name, Seq: seq, Time: r.log.m.entry(seq).time, Op: op, Data: data}
}
