package loop

import (
	"errors"
	"sync"

	"golang.org/x/sys/unix"

	"wscast/daemon/failpoint"
	"wscast/daemon/frame"
	"wscast/daemon/survive"
)

// This file is about being an heir and having one: clients are taken over from an earlier process, and left to the next one.

// RestartReason goes with close code 1012.
const RestartReason = "service restart"

// stand notes in a client's record where it stands. It follows whatever has changed that, and comes before input that has been dealt with
// is taken from the socket.
func (l *loop) stand(c *client) {
	if c.record.State() == survive.Answering {
		return // the record says already where it will stand
	}
	p := survive.Place{Cursor: c.cursor, Base: c.base, Out: c.base + uint64(c.off), In: c.in.State, Received: c.received}
	told := c.off == 0 // all that it was to be told is known to the record, or out
	if c.pending != nil && c.off == 0 {
		p.Extra = uint32(c.pending.noted)
		p.Out += uint64(c.pending.out)
		told = c.pending.noted == c.pending.out+c.pending.left()
	}
	if c.flags&held != 0 {
		p.Marks |= survive.Held
	}
	if c.state == closing {
		if told {
			p.Marks |= survive.Goodbye
		}
		if c.flags&awaited != 0 {
			p.Marks |= survive.Awaited
		}
	}
	c.record.Stand(p)
}

// note puts what is pending into the client's record before any of it is sent. What finds no room there is lost if the process is killed in the
// middle of it, and the client with it.
func (l *loop) note(c *client) {
	p := c.pending
	all := p.out + p.left()
	if p.noted == all || c.record.State() == survive.Answering {
		return
	}
	known := p.noted - p.out // of what is to come
	if known < len(p.rest) {
		c.record.SetExtra(p.noted, p.rest[known:])
		c.record.SetExtra(p.noted+len(p.rest)-known, p.bytes)
	} else {
		c.record.SetExtra(p.noted, p.bytes[known-len(p.rest):])
	}
	p.noted = all
	l.stand(c)
}

// Adopt takes over the clients that an earlier process has parked. It returns when each of them is served or given up. Nothing may be appended to
// the log before.
func (g *Loops) Adopt(found []survive.Found) {
	// Those that have no channel yet come last: a channel that one of them makes takes a free number, and which ones are free is known only when
	// all the others have theirs.
	g.adopt(g.adopt(found, false), true)
}

func (g *Loops) adopt(found []survive.Found, unanswered bool) (left []survive.Found) {
	var all sync.WaitGroup
	var mu sync.Mutex
	all.Add(len(found))
	for i := range found {
		f := &found[i]
		domain, err := unix.GetsockoptInt(f.FD, unix.SOL_SOCKET, unix.SO_DOMAIN)
		g.add(newcomer{fd: f.FD, uncounted: err == nil && domain == unix.AF_UNIX, adopted: f, unanswered: unanswered, settled: func(is bool) {
			if !is {
				mu.Lock()
				left = append(left, *f)
				mu.Unlock()
			}
			all.Done()
		}})
	}
	all.Wait()
	return left
}

// adopt makes a client of a connection that an earlier process has served. From here on it is like any other.
func (l *loop) adopt(n newcomer) {
	record := l.keep.Table.At(n.adopted.Slot)
	s, err := record.Stands(n.fd)
	if err == nil && s.State == survive.Opening && !n.unanswered {
		n.settled(false)
		return
	}
	defer func() {
		l.show() // whoever waits for it reads the figures then
		n.settled(true)
	}()
	c := l.enter(n, n.adopted.Slot, record)
	if c == nil {
		l.count.Lost++
		return
	}
	switch {
	case errors.Is(err, survive.ErrGone):
		l.drop(c, err.Error())
		return
	case err != nil && !errors.Is(err, survive.ErrInput):
		l.lose(c, err)
		return
	}
	if s.State == survive.Opening {
		record.SetState(survive.Opening)
		return // epoll tells of its request
	}
	if s.Channel == survive.NoChannel { // it was answered with something else than 101
		c.flags |= shutFlag(&s)
		l.setState(c, closing)
		l.farewell(c)
		return
	}
	if err := l.inherit(c, &s); err != nil {
		l.lose(c, err)
		return
	}
	failpoint.Pass("adopt.inherited")
	l.count.Adopted++
	if s.Repaired() {
		l.count.Repaired++
	}
	switch {
	case err != nil: // bytes of a frame were read and are gone
		l.count.Lost++
		l.close(c, closeStopped, frame.CloseServiceRestart, RestartReason)
		return
	case s.State == survive.Closing && s.Marks&survive.Goodbye == 0: // it was to be told, and was not
		l.close(c, closeStopped, frame.CloseServiceRestart, RestartReason)
		return
	case s.State == survive.Closing:
		l.leave(c)
		l.setState(c, closing)
		c.flags |= shutFlag(&s)
		if s.Marks&survive.Awaited != 0 {
			c.flags |= awaited
		}
		l.stand(c)
	}
	if l.ending == nil || !l.ending.suspend {
		l.flush(c)
	}
}

// inherit puts a client where it stands.
func (l *loop) inherit(c *client, s *survive.Standing) error {
	ch, err := l.reader.Adopt(s.Channel, s.Cursor)
	if err != nil {
		return err
	}
	l.enrol(c, ch, s.Cursor)
	failpoint.Pass("adopt.begun")
	c.record.SetState(s.State)
	c.base, c.in, c.received = s.Base, frame.Parser{State: s.In}, s.Received
	if !c.in.Valid() {
		return errors.New("implausible record: the state of the parser")
	}
	if s.Extra != nil {
		c.pending = &pending{bytes: s.Extra, pong: -1, out: int(s.Over), noted: int(s.Over) + len(s.Extra)}
	} else {
		cursor, off, _ := l.reader.Advance(ch, s.Cursor, 0, int(s.Over))
		if off > 0 {
			seq, ok := l.reader.Next(ch, cursor)
			if !ok || seq == 0 || off >= len(l.reader.Frame(seq)) {
				return errors.New("the log has no such message any more")
			}
		}
		c.base += s.Over - uint64(off)
		c.cursor, c.off = cursor, uint32(off)
	}
	for left := s.Discard; left > 0; {
		n, errno := l.sys.receive(int(c.fd), l.scratch[:min(left, uint64(len(l.scratch)))])
		if errno != 0 || n == 0 {
			return errors.New("implausible record: input that was dealt with is not there")
		}
		left -= uint64(n)
	}
	if s.State != survive.Closing { // then its marks hold until it is closing here as well
		l.stand(c)
	}
	return nil
}

func shutFlag(s *survive.Standing) flags {
	if s.Shut {
		return shut
	}
	return 0
}

// lose gives up a client of which it is not known where it stands: any byte could be a wrong one.
func (l *loop) lose(c *client, err error) {
	l.count.Lost++
	l.log.Warn("a client could not be taken over", "error", err)
	l.drop(c, "not taken over")
}

// Suspend ends the loops and leaves all clients as they are, parked, for the next process. Nothing is written to them, and they are not closed.
func (g *Loops) Suspend() {
	g.StopAccepting()
	g.end(&ending{suspend: true})
	g.wait()
	// Not before all loops are at their end: one that is not may still park the clients of others anew.
	for _, l := range g.loops {
		for _, block := range l.slab.blocks {
			for i := range block {
				if c := &block[i]; c.fd >= 0 {
					_ = l.sys.close(int(c.fd)) // and nothing else: it stays open where it is parked
				}
			}
		}
	}
}
