package loop

import (
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"

	"wscast/daemon/encode"
	"wscast/daemon/failpoint"
	"wscast/daemon/msglog"
	"wscast/daemon/survive"
)

// The way of messages out of the log into sockets. The functions stand in the order in which a message passes them.

const (
	// runBytes is how much a client is offered at once: what a send buffer can have room for. More waits for the
	// client's next turn, so that one that is far behind does not keep others waiting.
	runBytes = 256 << 10
	// runSlices is into how many slices it may fall: messages of other channels lie in between. At most IOV_MAX.
	runSlices = 64
	// breath is after how many writes other goroutines get a chance: raw system calls do not tell the scheduler.
	// Nothing of the loop is touched by others meanwhile.
	breath = 256
)

// deliver sends the news of a channel to all of its clients that are not blocked.
func (l *loop) deliver(subs *subscribers) {
	// Nearly all stand at the same place. What comes after it is collected once.
	l.run.valid = false
	// From the end, since a client that leaves the list is replaced there by the last one, which has been served
	// already. Serving a client costs at most that client its place.
	for i := len(subs.members) - 1; i >= 0; i-- {
		c := subs.members[i]
		if c.block != 0 {
			continue
		}
		if !l.run.valid || l.run.cursor != c.cursor {
			if !l.collect(c, runBytes) {
				continue
			}
		}
		if l.run.Bytes == 0 {
			continue
		}
		n, errno := l.sendRun(c)
		failpoint.Pass("deliver.sent")
		if n == l.run.Bytes && !l.run.More {
			c.cursor, c.base, c.told = l.run.Last, c.base+uint64(n), l.tick
			l.stand(c)
			failpoint.Pass("deliver.stood")
			l.count.Deliveries += uint64(l.run.Messages)
			l.count.Sent += uint64(n)
			continue
		}
		l.sent(c, n, errno)
	}
	l.run.valid = false
}

// run is what there is to send after a cursor.
type run struct {
	msglog.Run
	valid    bool // for others at the same cursor as well
	cursor   uint64
	subs     *subscribers    // where it is encoded,
	encoding encode.Encoding // and how
}

// collect finds out what there is to send to a client. It returns false for a client that was found to be slow.
func (l *loop) collect(c *client, limit int) bool {
	if c.fed() {
		if c.off > 0 {
			return l.collectFeed(c, turnPlace{}, 0) // the rest of the frame alone
		}
		to, ok := l.choose(c)
		if !ok {
			l.run.valid = false
			l.slow(c, nil)
			return false
		}
		return l.collectFeed(c, to, limit)
	}
	l.run.valid, l.run.cursor = limit == runBytes && c.off == 0, c.cursor
	if l.reader.Run(&l.run.Run, c.subs.ch, c.cursor, int(c.off), limit, runSlices) {
		return true
	}
	l.run.valid = false
	l.slow(c, nil)
	return false
}

func (l *loop) sendRun(c *client) (n int, errno syscall.Errno) {
	if l.writes++; l.writes%breath == 0 {
		runtime.Gosched()
	}
	if c.flags&uncounted != 0 {
		c.record.Writing()
	}
	if len(l.run.Slices) == 1 {
		return l.sys.send(int(c.fd), l.run.Slices[0])
	}
	return l.sys.sendAll(int(c.fd), l.run.Slices, l.iovecs[:])
}

// sent moves a client's cursor by n bytes of the run and decides how it goes on.
func (l *loop) sent(c *client, n int, errno syscall.Errno) {
	if errno != 0 && errno != unix.EAGAIN {
		l.failed(c, "send", errno)
		return
	}
	if n > 0 {
		cursor, off, completed := l.run.Last, 0, l.run.Messages
		if n < l.run.Bytes {
			cursor, off, completed = l.advance(c, n)
		}
		c.base += uint64(n) + uint64(c.off) - uint64(off)
		c.cursor, c.off, c.told = cursor, uint32(off), l.tick
		l.count.Deliveries += uint64(completed)
		l.count.Sent += uint64(n)
	}
	l.stand(c)
	if c.fed() {
		l.completed(c)
	}
	switch {
	case n < l.run.Bytes:
		l.blockOn(c)
	case c.pending != nil: // was waiting for the end of the frame
		l.flush(c)
	case c.state == closing:
		l.farewell(c)
	case l.run.More:
		l.unblock(c)
		l.later(c)
	default:
		l.caughtUp(c)
	}
}

// caughtUp comes when a client that was behind has been sent all that the log has for it.
func (l *loop) caughtUp(c *client) {
	l.unblock(c)
	if l.ending != nil && !l.ending.suspend && c.state == open && c.slot < l.parted {
		l.close(c, closeStopped, l.ending.code, l.ending.reason)
	}
}

// flush sends a client what it has not got: what is pending for it, and what is after its cursor. Afterwards the
// client is blocked, on the list again, or has got everything; or it was dropped.
func (l *loop) flush(c *client) {
	for c.pending != nil && c.off == 0 {
		p := c.pending
		l.note(c)
		failpoint.Pass("say.noted")
		what := &p.rest
		if len(p.rest) == 0 {
			what = &p.bytes
		}
		if c.flags&uncounted != 0 {
			c.record.Writing()
		}
		n, errno := l.sys.send(int(c.fd), *what)
		failpoint.Pass("say.sent")
		if errno != 0 && errno != unix.EAGAIN {
			l.failed(c, "send", errno)
			return
		}
		l.count.Sent += uint64(n)
		p.out += n
		if n > 0 {
			c.told = l.tick
		}
		short := n < len(*what)
		if *what = (*what)[n:]; what == &p.bytes {
			p.pong = max(p.pong-n, -1)
		} else if len(p.rest) == 0 {
			l.count.Deliveries++
		}
		if short {
			l.stand(c)
			l.blockOn(c)
			return
		}
		if p.left() == 0 {
			c.pending = nil
			c.base += uint64(p.out)
			if c.flags&overflown != 0 {
				c.flags &^= overflown
				defer l.keep.Table.Drop(c.slotted, survive.Overflow)
			}
			if c.state == open {
				c.record.SetState(survive.Open) // it was answering
			}
		}
		l.stand(c)
	}
	switch {
	case c.state == opening:
		return
	case c.state == closing && c.off == 0:
		l.farewell(c)
		return
	}
	limit := runBytes
	if c.pending != nil || c.state == closing {
		limit = 0 // the rest of the frame alone
	}
	if !l.collect(c, limit) {
		return
	}
	if l.run.Bytes == 0 {
		l.caughtUp(c)
		return
	}
	n, errno := l.sendRun(c)
	l.sent(c, n, errno)
}

// say sends bytes to one client alone, as soon as no frame is half out.
func (l *loop) say(c *client, b []byte) {
	if c.pending != nil || c.block != 0 {
		l.sayAs(c, b, false)
		return
	}
	// Nearly always all of it goes out at once: nothing is allocated for that. Nobody is said anything while this is on its way.
	gen := c.gen
	l.spare = pending{bytes: b, pong: -1}
	c.pending = &l.spare
	l.flush(c)
	if c.gen == gen && c.pending == &l.spare {
		left := l.spare
		c.pending = &left
	}
	l.spare = pending{}
}

// sayAs is say for pongs, too. Pongs that still wait are replaced by newer ones: the newest ping is the one to answer
// (RFC 6455 section 5.5.3).
func (l *loop) sayAs(c *client, b []byte, pong bool) {
	l.queue(c, b, pong)
	switch {
	case c.block == 0:
		l.flush(c)
	case c.off == 0: // an heir says it then
		l.note(c)
	}
}

func (l *loop) queue(c *client, b []byte, pong bool) {
	p := c.pending
	if p == nil {
		p = &pending{pong: -1}
		c.pending = p
	} else if pong {
		l.dropPong(c)
	} else {
		p.pong = -1
	}
	if pong {
		p.pong = len(p.bytes)
	}
	if p.bytes == nil {
		p.bytes = b
	} else {
		p.bytes = append(p.bytes[:len(p.bytes):len(p.bytes)], b...)
	}
}

// blockOn leaves a client alone until its socket has room. It is watched anew each time, which makes epoll look at
// the socket: an edge-triggered event would not come for one that has room although it has just refused (for want of
// memory, tcp_sendmsg).
func (l *loop) blockOn(c *client) {
	if c.block == 0 {
		l.blocked = append(l.blocked, c)
		c.block = int32(len(l.blocked))
		l.count.Blocked = uint64(len(l.blocked))
	}
	l.watch(c, eventsBlocked)
}

func (l *loop) unblock(c *client) {
	if c.block == 0 {
		return
	}
	l.unlist(c)
	l.watch(c, eventsIdle)
	if c.session != nil && c.session.unread {
		l.later(c)
	}
}

func (l *loop) unlist(c *client) {
	last := l.blocked[len(l.blocked)-1]
	l.blocked[c.block-1] = last
	last.block = c.block
	l.blocked[len(l.blocked)-1] = nil
	l.blocked = l.blocked[:len(l.blocked)-1]
	c.block = 0
	l.count.Blocked = uint64(len(l.blocked))
}

func (l *loop) watch(c *client, events uint32) {
	event := unix.EpollEvent{Events: events, Fd: int32(c.slot), Pad: int32(c.gen)}
	if err := unix.EpollCtl(l.epfd, unix.EPOLL_CTL_MOD, int(c.fd), &event); err != nil {
		panic("loop: epoll_ctl on a socket of our own: " + err.Error())
	}
}

// later puts a client on the list of those that have more to do in the next turn.
func (l *loop) later(c *client) {
	if c.flags&again == 0 {
		c.flags |= again
		l.again = append(l.again, c)
	}
}
