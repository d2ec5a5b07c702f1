package loop

import (
	"bytes"

	"wscast/daemon/frame"
)

// SlowReason goes with close code 1013.
const SlowReason = "slow: the log has moved on"

// sweep looks after the edge of the log: clients that need messages below it are slow, and when they are dealt with the log
// may overwrite those messages. It runs between two turns, when all clients that are not blocked have been served up to a head
// above the edge; so only the blocked ones are looked at.
func (l *loop) sweep() {
	if l.reader.Released() {
		return
	}
	edge := l.store.Edge()
	clear(l.rests)
	for i := len(l.blocked) - 1; i >= 0; i-- {
		c := l.blocked[i]
		if c.subs == nil || c.state == closing && c.off == 0 {
			continue
		}
		seq, ok := l.reader.Next(c.subs.ch, c.cursor)
		if ok && (seq == 0 || seq >= edge) {
			continue
		}
		var rest []byte
		if c.off > 0 {
			// What is half out must be completed, or no further frame can follow. It is copied out of the log, once for all clients that
			// are stuck in that message.
			whole := l.rests[seq]
			if whole == nil {
				whole = bytes.Clone(l.reader.Frame(seq))
				l.rests[seq] = whole
			}
			rest = whole[c.off:]
			c.cursor, c.off = seq, 0
		}
		l.slow(c, rest)
	}
	clear(l.rests)
	l.reader.Release(edge)
}

// slow deals with a client for which the log has moved on; rest is what is to come of a frame that is half out.
func (l *loop) slow(c *client, rest []byte) {
	if rest != nil {
		if c.pending == nil {
			c.pending = &pending{pong: -1}
		}
		c.pending.rest = rest
	}
	if c.state == closing {
		return
	}
	l.count.Slow++
	if l.config.SkipSlow {
		c.cursor = c.subs.ch.Last()
		if c.block == 0 {
			l.later(c)
		}
		return
	}
	l.close(c, frame.CloseTryAgainLater, SlowReason)
}
