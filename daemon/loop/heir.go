package loop

import (
	"errors"
	"sync"

	"golang.org/x/sys/unix"

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
	if c.pending != nil && c.off == 0 {
		p.Extra = uint64(c.pending.noted)
		p.Out += uint64(c.pending.out)
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
	var all sync.WaitGroup
	all.Add(len(found))
	for i := range found {
		domain, err := unix.GetsockoptInt(found[i].FD, unix.SOL_SOCKET, unix.SO_DOMAIN)
		g.add(newcomer{fd: found[i].FD, uncounted: err == nil && domain == unix.AF_UNIX, adopted: &found[i], settled: all.Done})
	}
	all.Wait()
}

// adopt makes a client of a connection that an earlier process has served. From here on it is like any other.
func (l *loop) adopt(n newcomer) {
	defer n.settled()
	record := l.keep.Table.At(n.adopted.Slot)
	s, err := record.Stands(n.fd)
	c := l.enter(n, n.adopted.Slot, record)
	if c == nil {
		l.count.Lost++
		return
	}
	if err != nil && !errors.Is(err, survive.ErrInput) {
		l.lose(c, err)
		return
	}
	if s.State == survive.Opening {
		record.SetState(survive.Opening)
		return // epoll tells of its request
	}
	if s.Channel == survive.NoChannel { // it was answered with something else than 101
		l.setState(c, closing)
		l.farewell(c)
		return
	}
	if err := l.inherit(c, &s); err != nil {
		l.lose(c, err)
		return
	}
	l.count.Adopted++
	if s.Repaired() {
		l.count.Repaired++
	}
	if err != nil { // bytes of a frame were read and are gone
		l.count.Lost++
		l.close(c, closeStopped, frame.CloseServiceRestart, RestartReason)
		return
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
	l.stand(c)
	if s.State == survive.Closing {
		l.leave(c)
		l.setState(c, closing)
	}
	// The log may overwrite what is below the floor, which has been raised for the clients that are here already.
	l.blockOn(c) // until flush has looked
	l.overtake(c, l.reader.Floor())
	clear(l.rests)
	return nil
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
}
