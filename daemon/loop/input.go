package loop

import (
	"syscall"

	"golang.org/x/sys/unix"

	"wscast/daemon/failpoint"
	"wscast/daemon/frame"
)

// MaxMessage is the largest message that a client can be allowed to send: whole frames are peeked, so that a frame is
// either in the socket or done with, and it has to fit into the socket's receive buffer and the loop's scratch buffer.
const MaxMessage = 32 << 10

const (
	// patience is how many times in one turn a client's socket is read. One that sends more goes on in the next turn.
	patience = 2
	// mostPongs is for how many bytes of pongs the pings of one read are all answered. RFC 6455 section 5.5.3 asks
	// for an answer to the last one only, but clients have been seen to wait for each. With more only the last ones
	// are answered: a flood of pings is neither answered with a flood of writes nor with memory.
	mostPongs = 2 << 10
)

// input reads what an open client sends, or a closing one up to its close frame. Messages are counted and dropped.
func (l *loop) input(c *client) {
	gen := c.gen
	for range patience {
		n, errno := l.look(c)
		switch {
		case errno == unix.EAGAIN:
			return
		case errno != 0:
			l.failed(c, "recv", errno)
			return
		case n == 0 && c.state == closing && c.block != 0:
			return // it may still read what it has not got; flush comes to farewell then
		case n == 0:
			l.drop(c, "closed without a close frame")
			return
		}
		if c.state == open { // closeTimeout is counted from the good-bye on
			c.heard = l.tick
			c.flags &^= pinged
		}

		// pongs are sent, and a good-bye is said, when what was parsed is no longer needed.
		var pongs []byte
		class, bye := 0, (*frame.Error)(nil)
		used, frames := 0, 0
		talks := false // there is a message, and clients may publish
		for used < n && bye == nil && !talks {
			state := c.in
			f, size, err := l.parse(c, &c.in, l.scratch[used:n])
			if err != nil {
				class, bye = closeFailed, err
				break
			}
			if size == 0 {
				break
			}
			used += size
			frames++
			switch {
			case f.Message != 0:
				if l.config.Upstream && state.State == 0 && c.state == open {
					used -= size
					c.in, talks = state, true
					frames-- // commands counts it
					break
				}
				if f.Fin {
					l.count.Received++
				}
			case f.Op == frame.Ping && c.state == open:
				if len(pongs) >= mostPongs {
					pongs = pongs[:0]
				}
				pongs = frame.AppendPong(pongs, f.Payload)
			case f.Op == frame.Close:
				used -= size // it stays in the socket until we have answered it: so an heir will
				code, _, _ := frame.ParseClose(f.Payload)
				class, bye = closeNormal, &frame.Error{Code: code} // answered with its own code (RFC 6455 section 5.5.1)
			}
		}

		if c.state == open && class != closeFailed && l.crowded(c, frames) {
			class, bye, talks = closeTooFast, errTooManyFrames, false
		}
		// Before a pong is noted: where the parser stands, how many bytes that is from the beginning, and the pong are
		// noted by one store, or an heir parses what has been parsed.
		c.received += uint64(used)
		if pongs != nil {
			if l.sayAs(c, pongs, true); c.gen != gen {
				return
			}
		}
		l.rest(c, used, n)
		if bye != nil && c.state == closing {
			c.flags &^= awaited
			if c.block == 0 {
				l.farewell(c)
			}
			return
		}
		if bye != nil {
			l.close(c, class, bye.Code, bye.Reason)
			return
		}
		if talks {
			if c.session == nil {
				c.session = new(session)
			}
			c.session.talks = true
			l.commands(c)
			return
		}
		if n < len(l.scratch) {
			return // that was all; what comes from now on is a new event
		}
	}
	l.later(c)
}

// parse takes the first frame off b.
func (l *loop) parse(c *client, in *frame.Parser, b []byte) (frame.Frame, int, *frame.Error) {
	if c.encoding().Deflates() {
		return in.NextDeflate(b, l.config.MaxMessage)
	}
	return in.Next(b, l.config.MaxMessage)
}

// look puts the beginning of what a client has sent and is not done with into scratch. As a rule it is only peeked at; what is held is
// there as well when nothing new has come.
func (l *loop) look(c *client) (n int, errno syscall.Errno) {
	if c.flags&held == 0 {
		return l.sys.peek(int(c.fd), l.scratch)
	}
	had := copy(l.scratch, l.held[c.slot])
	if had < len(l.scratch) {
		n, errno = l.sys.receive(int(c.fd), l.scratch[had:])
		l.held[c.slot] = append(l.held[c.slot], l.scratch[had:had+n]...)
	}
	if had > 0 && (n > 0 || errno == unix.EAGAIN || errno == 0) {
		return had + n, 0
	}
	return n, errno
}

// leaveRest leaves the n bytes of scratch but for the first used ones to the next look.
func (l *loop) leaveRest(c *client, used, n int) {
	c.received += uint64(used)
	l.rest(c, used, n)
}

// rest is leaveRest when the used ones are counted as received already.
func (l *loop) rest(c *client, used, n int) {
	c.flags &^= partial
	switch {
	case c.flags&held == 0 && c.flags&uncounted != 0 && used > 0:
		// An heir cannot know whether what is dealt with is read: either it is both, or the client is given up. Commands are not carried out twice.
		l.consume(c, used)
		if used < n {
			c.flags |= partial
		}
	case c.flags&held == 0:
		l.stand(c) // first: an heir reads what has been done with but not read
		failpoint.Pass("input.noted")
		l.consume(c, used)
		failpoint.Pass("input.consumed")
		if used < n {
			c.flags |= partial
		}
	case used < n:
		l.held[c.slot] = append(l.held[c.slot][:0], l.held[c.slot][used:n]...) // not of scratch: there frames are unmasked
		l.stand(c)
	default:
		delete(l.held, c.slot)
		c.flags &^= held
		l.stand(c)
	}
}

// mustHold tells whether the rest of a frame may never find room in the socket behind its beginning. A writer into a
// Unix-domain socket stops when some 280 writes of it are unread, of one byte each if it likes (sock_alloc_send_pskb
// counts the size of buffers), and nobody can ask how many there are. Of a TCP socket the kernel tells what is taken
// of its receive buffer. Half of that has to be free: small segments are merged into one buffer (tcp_try_coalesce), which
// the beginning of a frame at its end keeps as a whole, and what is free then is no use if a segment of up to 64 KiB, on
// loopback, does not fit into it with the kernel's own part (tcp_can_ingest): it is dropped each time that it comes.
func (l *loop) mustHold(c *client) bool {
	if c.flags&uncounted != 0 {
		return true
	}
	free, all := l.sys.room(int(c.fd))
	return free < all/2 || free/4 < l.config.MaxMessage // at least a quarter of it is for payload (tcp_win_from_space)
}

// hold takes the beginning of a frame out of the socket, when the rest has not come for a tick, and keeps it until
// the frame is whole. A client that is killed with the process then cannot be served by an heir.
func (l *loop) hold(c *client) {
	c.flags = c.flags&^partial | held
	l.held[c.slot] = nil
	l.stand(c) // an heir cannot go on from here
	l.read(c)
}

// consume takes from the socket what has been peeked and dealt with.
func (l *loop) consume(c *client, n int) {
	if n > 0 {
		if c.flags&uncounted != 0 {
			c.record.Writing()
			defer l.stand(c)
		}
		_, _ = l.sys.receive(int(c.fd), l.scratch[:n]) // they are there: we have just seen them
	}
}

// discard throws away what a closing client sends, up to its end.
func (l *loop) discard(c *client) {
	for range patience {
		n, errno := l.sys.receive(int(c.fd), l.scratch)
		switch {
		case errno == unix.EAGAIN:
			return
		case n == 0 && errno == 0 && c.block != 0:
			return // it may still read what it has not got; farewell comes here again
		case errno != 0 || n == 0:
			l.drop(c, "closed")
			return
		}
	}
	l.later(c)
}
