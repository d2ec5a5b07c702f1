package loop

import (
	"bytes"

	"wscast/daemon/encode"
	"wscast/daemon/frame"
)

// SlowReason goes with close code 1013.
const SlowReason = "slow: the log has moved on"

// sweep looks after the edge of the log: clients that need messages below it are slow, and when they are dealt with
// the log may overwrite those messages. Only two kinds of clients can need them, the blocked ones and those that are
// so far behind that they are served in several turns: all others have got in this turn what was below the edge when
// it began. If the edge has moved meanwhile, the rest is left for the next turn, which comes at once.
func (l *loop) sweep() {
	if l.reader.Released() {
		return
	}
	for _, c := range l.again {
		// Nobody is added to the list meanwhile: who is closed here is on it.
		if c.flags&again != 0 && c.state == open && c.block == 0 {
			if l.needs(c) {
				l.slow(c, nil)
			}
		}
	}
	// A blocked client stays in its place here: what it is told waits until it is writable.
	for _, c := range l.blocked {
		l.overtake(c)
	}
	clear(l.rests)
	l.reader.Release()
}

// halfOut is a message that some client has half of.
type halfOut struct {
	ring     int
	seq      uint64 // in the ring
	encoding encode.Encoding
}

// needs tells whether a client needs a message below the edge.
func (l *loop) needs(c *client) bool {
	if c.subs != nil {
		if seq, ok := l.reader.Next(c.subs.ch, c.cursor); !ok || seq != 0 && seq < l.reader.Edge(c.subs.ch) {
			return true
		}
	}
	if c.fed() {
		for _, sub := range c.session.subs {
			if sub != c.session.at {
				if seq, ok := l.reader.Next(sub.subs.ch, sub.cursor); !ok || seq != 0 && seq < l.reader.Edge(sub.subs.ch) {
					return true
				}
			}
		}
	}
	return false
}

// overtake deals with a blocked client if it needs a message below the edge.
func (l *loop) overtake(c *client) {
	if c.state == opening || c.state == closing && c.off == 0 {
		return
	}
	if !l.needs(c) {
		return
	}
	var rest []byte
	if c.off > 0 { // else it has perhaps no channel
		if seq, _ := l.reader.Next(c.subs.ch, c.cursor); seq < l.reader.Edge(c.subs.ch) {
			// What is half out must be completed, or no further frame can follow. It is copied out of the log, once for all
			// clients that are stuck in that message.
			key := halfOut{c.subs.ch.Ring(), seq, c.encoding()}
			whole := l.rests[key]
			if whole == nil {
				whole = bytes.Clone(l.frameOf(c, seq))
				l.rests[key] = whole
			}
			rest = whole[c.off:]
			c.cursor = seq
		}
	}
	l.slow(c, rest)
}

// detach makes the rest of what a client has half of pending, so that it does not depend on the log any more. The cursor is at that message already.
func (l *loop) detach(c *client, rest []byte) {
	if c.pending == nil {
		c.pending = &pending{pong: -1}
	}
	// From the end of the last message on, all of the frame counts as pending, and off bytes of it are out.
	c.pending.rest, c.pending.out, c.pending.noted, c.off = rest, int(c.off), int(c.off), 0
	l.note(c)
}

// slow deals with a client for which the log has moved on; rest is what is to come of a frame that is half out.
func (l *loop) slow(c *client, rest []byte) {
	if rest != nil {
		l.detach(c, rest)
	}
	if c.state == closing {
		return
	}
	l.count.Slow++
	if l.config.SkipSlow && c.encoding().Plain() == encode.Raw { // who knows the ids comes back with the last one
		c.cursor = c.subs.ch.Last()
		l.stand(c) // before anything is written that does not follow the old cursor
		if c.block == 0 {
			l.later(c)
		}
		return
	}
	l.close(c, closeSlow, frame.CloseTryAgainLater, SlowReason)
}
