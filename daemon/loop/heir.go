package loop

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"net/http"
	"sync"

	"wscast/daemon/encode"
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
		if len(c.pending.rest) > 0 {
			p.Marks |= survive.Rest
		}
		p.Out += uint64(c.pending.out)
		told = c.pending.noted == c.pending.out+c.pending.left()
	}
	if c.fed() && c.session.at != nil {
		p.At = c.session.at.index
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
	l.fill(c)
	l.stand(c)
}

// fill puts what is pending where an heir will find it, for a place that says so. It returns false when not all of it has found room.
func (l *loop) fill(c *client) bool {
	p := c.pending
	all := p.out + p.left()
	kept := true
	if all > survive.MaxExtra {
		kept = false
		if p.left() <= mostOverflow {
			b := binary.LittleEndian.AppendUint32(make([]byte, 0, 4+p.left()), uint32(p.out))
			b = append(append(b, p.rest...), p.bytes...)
			if err := l.keep.Table.Keep(c.slotted, survive.Overflow, b); err == nil {
				c.flags |= overflown
				kept = true
			}
		}
	}
	known := p.noted - p.out // of what is to come
	if known < len(p.rest) {
		c.record.SetExtra(p.noted, p.rest[known:])
		c.record.SetExtra(p.noted+len(p.rest)-known, p.bytes)
	} else {
		c.record.SetExtra(p.noted, p.bytes[known-len(p.rest):])
	}
	p.noted = all
	return kept
}

// mostOverflow is how many bytes for one client alone are kept for an heir: what commands can be answered with at once (mostReplies), or half of a
// message, and control frames.
const mostOverflow = 64 << 10

// Adopt takes over the clients that an earlier process has parked. It returns when each of them is served or given up. Nothing may be appended to
// the log before.
func (g *Loops) Adopt(found []survive.Found) {
	g.adopting.Store(true)
	if was := g.keep.Table.Encoders(); was != encode.Version() && was != 0 {
		// From now on clients can have half of what this version has made as well: were we killed, nobody could tell whose half it is.
		g.keep.Table.SetEncoders(mixed)
		g.encoders = was
	} else {
		g.encoders = encode.Version()
	}
	// Those that have no channel yet come last: a channel that one of them makes takes a free number, and which ones are free is known only when
	// all the others have theirs.
	g.adopt(g.adopt(found, false), true)
	g.keep.Table.SetEncoders(encode.Version())
	g.adopting.Store(false)
	g.wake()
}

// mixed is a version of encoders that is none.
const mixed = 1

func (g *Loops) adopt(found []survive.Found, unanswered bool) (left []survive.Found) {
	var all sync.WaitGroup
	var mu sync.Mutex
	all.Add(len(found))
	for i := range found {
		f := &found[i]
		g.add(newcomer{
			Admitted: survive.Admitted{FD: f.FD, Slot: f.Slot}, adopted: true, unanswered: unanswered, settled: func(is bool) {
				if !is {
					mu.Lock()
					left = append(left, *f)
					mu.Unlock()
				}
				all.Done()
			},
		})
	}
	all.Wait()
	return left
}

// adopt makes a client of a connection that an earlier process has served. From here on it is like any other.
func (l *loop) adopt(n newcomer) {
	record := l.keep.Table.At(n.Slot)
	s, err := l.keep.Table.Stands(n.Slot, n.FD)
	if err == nil && s.State == survive.Opening && !n.unanswered {
		n.settled(false)
		return
	}
	defer func() {
		l.show() // whoever waits for it reads the figures then
		n.settled(true)
	}()
	n.uncounted = s.Uncounted
	c := l.enter(n)
	if c == nil {
		l.count.Lost++
		return
	}
	switch {
	case errors.Is(err, survive.ErrGone):
		l.drop(c, err.Error())
		return
	case errors.Is(err, survive.ErrRest):
		l.count.Slow++
		l.count.Closed[closeSlow]++
		l.lose(c, err)
		return
	case err != nil && !errors.Is(err, survive.ErrInput):
		l.lose(c, err)
		return
	}
	if s.State == survive.Opening {
		l.keep.Table.Anew(n.Slot)
		return // epoll tells of its request
	}
	if s.Channel == survive.NoChannel && record.Kind() == 0 { // it was answered with something else than 101
		c.flags |= shutFlag(&s)
		l.setState(c, closing)
		l.farewell(c)
		return
	}
	c.flags |= resident
	l.group.population.add(l.keep.Table.Address(n.Slot))
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
	if c.fed() && c.state == open {
		l.completed(c)
	}
	if l.ending == nil || !l.ending.suspend {
		l.flush(c)
	}
}

// inherit puts a client where it stands.
func (l *loop) inherit(c *client, s *survive.Standing) error {
	if err := l.inheritSession(c); err != nil {
		return err
	}
	if c.fed() {
		if err := l.inheritSubscriptions(c, s); err != nil {
			return err
		}
	} else {
		ch, err := l.reader.Adopt(s.Channel, s.Cursor)
		if err != nil {
			return err
		}
		l.enrol(c, ch, s.Cursor)
	}
	failpoint.Pass("adopt.begun")
	c.record.SetState(s.State)
	c.base, c.in, c.received = s.Base, frame.Parser{State: s.In}, s.Received
	if !c.in.Valid() {
		return errors.New("implausible record: the state of the parser")
	}
	if s.Extra != nil {
		c.flags |= overflown // perhaps
		c.pending = &pending{bytes: s.Extra, pong: -1, out: int(s.Over), noted: int(s.Over) + len(s.Extra)}
	} else if s.Over > 0 {
		switch {
		case c.subs == nil:
			return errors.New("implausible record: a message is half out, of no channel")
		case c.fed() && l.group.encoders != encode.Version():
			return errors.New("a message is half out that this version would encode in another way")
		}
		cursor, off, _ := l.advance(c, int(s.Over))
		if off > 0 {
			seq, ok := l.reader.Next(c.subs.ch, cursor)
			if !ok || seq == 0 || off >= len(l.frameOf(c, seq)) {
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

// inheritSession makes the session that the record speaks of.
func (l *loop) inheritSession(c *client) (err error) {
	var ok bool
	if c.session, ok = sessionOf(c.record.Kind()); !ok {
		return errors.New("implausible record: the kind of client")
	}
	if c.session == nil {
		return nil
	}
	grant, err := l.keep.Table.Kept(c.slotted, survive.Grant)
	if err == nil && grant != nil {
		c.session.grant, err = l.host.Restore(grant)
	}
	return err
}

// inheritSubscriptions puts a client of a session on its channels.
func (l *loop) inheritSubscriptions(c *client, s *survive.Standing) (err error) {
	n := c.session
	if n.rooms, err = l.keep.Table.Subscriptions(c.slotted); err != nil {
		return err
	}
	add := func(channel uint32, cursor, until uint64) (*subscription, error) {
		ch, err := l.reader.Adopt(channel, cursor)
		if err != nil {
			return nil, err
		}
		sub := &subscription{c: c, cursor: cursor, until: until}
		if until != 0 {
			n.piece = sub
			sub.subs = &subscribers{ch: ch}
			others := l.subscribersOf(ch)
			l.left(others) // history is nothing to be told of
		} else {
			sub.subs = l.subscribersOf(ch)
			l.feed(sub)
		}
		n.subs = append(n.subs, sub)
		return sub, nil
	}
	if s.Channel != survive.NoChannel {
		if n.at, err = add(s.Channel, s.Cursor, 0); err != nil {
			return l.disinherit(c, err)
		}
	}
	for i, room := range n.rooms {
		if !room.Holds(s.Received) {
			room.Unuse() // its command is carried out once more
			continue
		}
		cursor := room.Cursor()
		switch {
		case int(s.At) == i+1:
			cursor = s.Cursor
		case s.State == survive.Closing:
			continue // it has left its channels, and some may be gone; what is half out is of the one above
		case room.Until() != 0 && cursor >= room.Until():
			room.Unuse() // a piece of history that is out
			continue
		}
		sub, err := add(room.Channel(), cursor, room.Until())
		if err != nil {
			return l.disinherit(c, err)
		}
		sub.room, sub.index = room, uint16(i+1)
		if int(s.At) == i+1 {
			n.at = sub
		}
	}
	if s.At != 0 && (n.at == nil || n.at.index != s.At) {
		return l.disinherit(c, errors.New("implausible record: the subscription"))
	}
	if n.at != nil {
		c.subs, c.cursor = n.at.subs, n.at.cursor
	}
	l.setState(c, open)
	return nil
}

// disinherit takes a client from the channels again that it was put on.
func (l *loop) disinherit(c *client, err error) error {
	for _, sub := range c.session.subs {
		if sub.until == 0 {
			l.unfeed(sub)
		}
	}
	c.session.subs = nil
	return err
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

// settle puts the rest of what a client of a session has half of where an heir finds it: that one may be of a version that would make other bytes of
// the message.
func (l *loop) settle(c *client) {
	if !c.fed() || c.off == 0 {
		return
	}
	seq, ok := l.reader.Next(c.subs.ch, c.cursor)
	if !ok || seq == 0 {
		return
	}
	rest := bytes.Clone(l.frameOf(c, seq)[c.off:])
	b := append(binary.LittleEndian.AppendUint32(nil, c.off), rest...)
	if c.pending != nil {
		b = append(b, c.pending.bytes...)
	}
	if len(b) > mostOverflow || l.keep.Table.Keep(c.slotted, survive.Overflow, b) != nil {
		return // an heir of this version can do without
	}
	c.flags |= overflown
	c.cursor = seq
	l.detach(c, rest)
}

// Suspend ends the loops and leaves all clients as they are, parked, for the next process. They are not closed. Those that
// could not be parked are: they are sent what the log has for them and a close frame, as far as their sockets have room,
// and have until ctx ends to close.
func (g *Loops) Suspend(ctx context.Context) {
	g.StopAccepting()
	g.end(&ending{suspend: true, code: frame.CloseServiceRestart, reason: RestartReason, deadline: ctx.Done()})
	stop := context.AfterFunc(ctx, g.wake)
	defer stop()
	g.wait()
	// Not before all loops are at their end: one that is not may still park the clients of others anew. The next process
	// is waiting for this one to be gone, so all of them do it at once.
	var closing sync.WaitGroup
	for _, l := range g.loops {
		closing.Go(l.abandon)
	}
	closing.Wait()
}

// abandon closes the descriptors of all clients, and nothing else: they stay open where they are parked.
func (l *loop) abandon() {
	for _, block := range l.slab.blocks {
		for i := range block {
			if c := &block[i]; c.fd >= 0 {
				failpoint.Pass("suspend.closing")
				_ = l.sys.close(int(c.fd))
			}
		}
	}
}

// closeUnparked says good-bye to those that end with this process.
func (l *loop) closeUnparked() {
	if l.keep.Lot == nil {
		return
	}
	if homeless, _ := l.keep.Lot.House(); homeless == 0 {
		return
	}
	l.deliverNews() // what was appended after this turn began
	for _, block := range l.slab.blocks {
		for i := range block {
			c := &block[i]
			if c.fd < 0 || l.keep.Lot.IsParked(c.slotted) {
				continue
			}
			gen := c.gen
			if c.state == opening {
				l.handshake(c) // what has arrived in this turn is not refused for that
			}
			switch {
			case c.gen != gen:
				continue
			case c.state == opening:
				l.refuse(c, http.StatusServiceUnavailable, l.ending.reason)
			case c.state == open:
				l.close(c, closeStopped, l.ending.code, l.ending.reason)
			}
			if c.gen == gen {
				l.leaving = append(l.leaving, parting{c, gen})
			}
		}
	}
}

// anyLeaving tells whether one of those is still there.
func (l *loop) anyLeaving() bool {
	for n := len(l.leaving); n > 0; n = len(l.leaving) {
		if p := l.leaving[n-1]; p.c.gen == p.gen {
			return true
		}
		l.leaving = l.leaving[:n-1]
	}
	return false
}
