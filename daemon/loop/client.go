package loop

import (
	"net/http"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"

	"wscast/daemon/encode"
	"wscast/daemon/failpoint"
	"wscast/daemon/frame"
	"wscast/daemon/msglog"
	"wscast/daemon/survive"
)

// client is one connection.
//
// Everything that can write to a client can find that its socket is dead and drop it: say, flush, sent, close, refuse,
// reply, farewell, discard, and what calls them. They are the last thing that is done with a client, or gen tells
// afterwards whether it is still there.
//
//	           request judged, 101 queued           close frame queued
//	opening ───────────────────────────────> open ─────────────────────> closing ───> (dropped)
//	   │  │                                   │                             ^   their side closed, error,
//	   │  └── any other answer queued ────────│─────────────────────────────┘   or closeTimeout is over
//	   └── gone, or handshakeTimeout is over ─┴── gone, error, no sign of life ─────────> (dropped)
//
// In every state the client can be blocked: its socket took less than it was given, and nothing is written until epoll
// says that it is writable.
type client struct {
	fd   int32 // -1: the slot is free
	slot uint32
	gen  uint32 // of the slot: with it a late event of an earlier client is told apart

	// Where it stands in the log. cursor is the last message that is out as a whole, off the bytes that are out of the
	// one after it, base the bytes that had been written to the socket before that one. in is where it stands in what
	// it sends us, received how many bytes of it are done with. record has what an heir needs to know of that (stand).
	off      uint32
	cursor   uint64
	base     uint64
	in       frame.Parser
	received uint64
	record   *survive.Record
	subs     *subscribers // nil before it is open, and where a session has no channel
	session  *session     // nil: nothing but a channel of raw frames

	// pending goes out before anything more from the log, except the rest of a frame that is half out (off > 0).
	// A client that has pending bytes, or off > 0, is blocked between two calls of flush.
	pending *pending

	heard  uint32 // tick of the last input; of the beginning in opening and closing
	told   uint32 // tick of the last output
	member uint32 // index in subs.members while it is open
	block  int32  // index in loop.blocked plus 1, 0: not blocked

	slotted uint32 // slot of the record
	flags   flags
	state   state
}

type state uint8

const (
	opening state = iota
	open
	closing
)

type flags uint16

const (
	pinged    flags = 1 << iota // a ping is out that nothing has come back for
	shut                        // our side is shut down
	again                       // on the list loop.again
	over                        // their side is closed, as far as epoll has told
	partial                     // the beginning of a frame is in the socket
	held                        // the beginning of a frame is in loop.held
	awaited                     // closing: their close frame is to come
	overflown                   // what is pending is in an extension of the record
	uncounted                   // a Unix-domain socket, of which the kernel does not count the bytes
	resident                    // it has a place in Loops.population
)

// pending are bytes for one client alone: the answer to its handshake, control frames, the rest of a frame that has
// left the log. Few clients have any at any time. What a client can make it grow to is bounded: one ping of ours
// (none is sent while it is blocked), two batches of pongs (mostPongs), the answers to the commands of one read (mostReplies), one close frame.
type pending struct {
	rest  []byte // of a frame that is half out; shared between clients, not to be written
	bytes []byte // to be sent after rest; perhaps shared too: appending copies
	pong  int    // bytes[pong:] are pongs, none of them half out, that newer ones replace; -1: none
	out   int    // bytes of all that was pending that are out already
	noted int    // how many of them, and of what is to come, the client's record knows
}

func (p *pending) left() int { return len(p.rest) + len(p.bytes) }

// subscribers are a loop's clients of one channel.
type subscribers struct {
	ch      *msglog.Channel
	members []*client       // who are sent the log's own frames
	feeds   []*subscription // of those who are sent something else
}

// slab keeps the clients in blocks that never move and are never given back: the memory of a client that is gone is
// the next one's.
type slab struct {
	blocks []*[slabBlock]client
	free   []uint32
}

const slabBlock = 256

func (s *slab) at(slot uint32) *client { return &s.blocks[slot/slabBlock][slot%slabBlock] }

func (s *slab) take() *client {
	if len(s.free) == 0 {
		block := new([slabBlock]client)
		first := uint32(len(s.blocks) * slabBlock)
		s.blocks = append(s.blocks, block)
		for i := range block {
			block[i].fd, block[i].slot = -1, first+uint32(i)
		}
		for i := slabBlock - 1; i >= 0; i-- {
			s.free = append(s.free, first+uint32(i))
		}
	}
	slot := s.free[len(s.free)-1]
	s.free = s.free[:len(s.free)-1]
	return s.at(slot)
}

func (s *slab) give(c *client) {
	*c = client{fd: -1, slot: c.slot, gen: c.gen + 1}
	s.free = append(s.free, c.slot)
}

// newcomer is a connection on its way into a loop.
type newcomer struct {
	survive.Admitted                 // FD and Slot of an adopted one, too
	uncounted        bool            // a Unix-domain socket
	adopted          bool            // of an earlier process; else accepted
	unanswered       bool            // it may be one whose handshake is to be answered
	settled          func(done bool) // called when the adopted one is in, or given up, or may not come in yet
}

// add takes an accepted connection in. The descriptor is the loop's from here on, also when it cannot be used. A loop
// that is coming to its end refuses it: the others have been told good-bye already.
func (l *loop) add(n newcomer) {
	failpoint.Pass("accept.begun")
	if n.Err != nil {
		l.count.Refused++
		l.log.Error("a connection is closed", "error", n.Err)
		_ = l.sys.close(n.FD)
		return
	}
	c := l.enter(n)
	if c == nil {
		return
	}
	if n.Unparked != nil { // whoever looks after the store says more of it: it can concern thousands
		l.log.Debug("a connection will not outlive this process", "client", c.slot, "cause", n.Unparked)
	}
	if l.ending != nil {
		l.refuse(c, http.StatusServiceUnavailable, l.ending.reason)
	}
}

// reject closes a newcomer that has found the loop at its end: nobody accepts any more before that, so it was in hand
// for long. An adopted one stays parked.
func (l *loop) reject(n newcomer) {
	if n.adopted {
		_ = l.sys.close(n.FD)
		n.settled(true)
		return
	}
	if n.Err == nil { // in the order of drop
		if l.keep.Lot != nil {
			l.keep.Lot.Leave(n.Slot)
		}
		_ = l.sys.shutdown(n.FD, unix.SHUT_RDWR)
		l.keep.Table.Give(n.Slot)
	}
	_ = l.sys.close(n.FD)
}

// enter makes a client of a connection that has a record, in state opening. It returns nil if it cannot.
func (l *loop) enter(n newcomer) *client {
	c := l.slab.take()
	c.fd, c.heard, c.told = int32(n.FD), l.tick, l.tick
	c.slotted, c.record = n.Slot, l.keep.Table.At(n.Slot)
	if n.uncounted {
		c.flags |= uncounted
	}
	l.count.Clients++
	l.count.Opening++
	event := unix.EpollEvent{Events: eventsIdle, Fd: int32(c.slot), Pad: int32(c.gen)}
	if err := unix.EpollCtl(l.epfd, unix.EPOLL_CTL_ADD, n.FD, &event); err != nil {
		l.drop(c, "epoll: "+err.Error()) // out of memory, or over fs.epoll.max_user_watches
		return nil
	}
	return c
}

// A socket is watched for input, edge-triggered: what is peeked stays in it, and a level would be reported for ever.
// For room to write it is watched only while it is blocked: a Unix-domain socket reports room after every read of its
// peer (unix_write_space), a TCP socket only after it was full.
const (
	eventsIdle    = unix.EPOLLIN | unix.EPOLLRDHUP | unix.EPOLLET&0xffffffff
	eventsBlocked = eventsIdle | unix.EPOLLOUT
)

// join makes an open client of one whose handshake is answered, or which comes without one.
func (l *loop) join(c *client, channel []byte) error {
	ch, cursor, err := l.reader.Join(channel)
	if err != nil {
		return err
	}
	l.enrol(c, ch, cursor)
	return nil
}

// enrol puts a client on the list of its channel, which it has joined, and opens it.
func (l *loop) enrol(c *client, ch *msglog.Channel, cursor uint64) {
	subs := l.subscribersOf(ch)
	c.subs, c.cursor, c.member = subs, cursor, uint32(len(subs.members))
	if n := len(subs.members); n == cap(subs.members) && n >= 256 { // append's steps are smaller, and would leave more behind
		subs.members = slices.Grow(subs.members, n)
	}
	subs.members = append(subs.members, c)
	if c.session != nil {
		l.group.presence.count(ch.Name(), c.session.grant, 1)
	}
	l.setState(c, open)
}

// subscribersOf is the list of a channel that somebody has joined.
func (l *loop) subscribersOf(ch *msglog.Channel) *subscribers {
	if subs := l.listOf(ch); subs != nil {
		return subs
	}
	cells := &l.channels[ch.Ring()]
	for ch.Cell() >= len(*cells) {
		*cells = append(*cells, nil)
	}
	subs := &subscribers{ch: ch}
	(*cells)[ch.Cell()] = subs
	return subs
}

// listOf is the list of a channel, nil if there is none.
func (l *loop) listOf(ch *msglog.Channel) *subscribers {
	if cells := l.channels[ch.Ring()]; ch.Cell() < len(cells) {
		if subs := cells[ch.Cell()]; subs != nil && subs.ch == ch {
			return subs
		}
	}
	return nil
}

// left comes when a client was taken from the list of a channel.
func (l *loop) left(s *subscribers) {
	nobody := len(s.members) == 0 && len(s.feeds) == 0
	if nobody {
		l.channels[s.ch.Ring()][s.ch.Cell()] = nil
	}
	l.reader.Leave(s.ch, nobody)
}

// leave takes an open client from its channels. The client can still finish the frame that is half out.
func (l *loop) leave(c *client) {
	if c.fed() {
		for _, sub := range c.session.subs {
			if sub.until == 0 {
				l.unfeed(sub)
			}
		}
		c.session.subs = nil
	} else {
		s := c.subs
		if c.session != nil {
			l.group.presence.count(s.ch.Name(), c.session.grant, -1)
		}
		last := s.members[len(s.members)-1]
		s.members[c.member] = last
		last.member = c.member
		s.members[len(s.members)-1] = nil
		s.members = s.members[:len(s.members)-1]
		l.left(s)
	}
	if c.flags&held != 0 {
		delete(l.held, c.slot)
		c.flags &^= held
	}
}

func (l *loop) setState(c *client, s state) {
	if c.state == opening {
		l.count.Opening--
	}
	if s == closing {
		l.moveOut(c)
		l.count.Closing++
		if c.state == open { // else the record stays in opening: with nothing of the answer out it can be given once more
			c.record.SetState(survive.Closing)
		}
	}
	c.state = s
}

// close says good-bye to an open client: after what is half out it gets a close frame. class is for Stats.Closed.
func (l *loop) close(c *client, class int, code uint16, reason string) {
	l.leave(c)
	l.setState(c, closing)
	c.heard = l.tick
	l.count.Closed[class]++
	if l.debugs() {
		l.log.Debug("client closed", "client", c.slot, "channel", c.channel(), "code", code, "reason", reason)
	}
	l.dropPong(c) // nobody waits for it any more
	failpoint.Pass("close.begun")
	if !c.encoding().WebSocket() {
		l.say(c, encode.AppendRetry(nil, reason))
		return
	}
	if class == closeSlow || class == closeStopped || class == closeExpired {
		c.flags |= awaited
	}
	l.say(c, frame.AppendClose(nil, code, reason))
}

// farewell comes when all that a closing client had to be sent is in its socket. Where the good-bye was our idea, the
// client's own close frame comes first: a browser, and nginx between us, takes an end before it for a connection
// that broke (RFC 6455 section 7.1.1).
func (l *loop) farewell(c *client) {
	l.unblock(c)
	if c.flags&(shut|awaited) == 0 {
		c.flags |= shut
		if errno := l.sys.shutdown(int(c.fd), unix.SHUT_WR); errno != 0 {
			l.drop(c, "shutdown: "+errno.Error())
			return
		}
		failpoint.Pass("close.said")
		// Their end may have come before: what edge-triggered epoll has told once it does not tell again.
		l.discard(c)
	}
}

// drop forgets a client at once. The order matters, see the package's documentation.
func (l *loop) drop(c *client, why string) {
	switch c.state {
	case opening:
		l.count.Opening--
	case open:
		l.leave(c)
		l.count.Closed[closeAbnormal]++
		if l.debugs() {
			l.log.Debug("client gone", "client", c.slot, "channel", c.channel(), "why", why)
		}
	case closing:
		l.count.Closing--
	}
	l.moveOut(c)
	delete(l.talkers, c.slot)
	l.count.Clients--
	if c.block != 0 {
		l.unlist(c)
	}
	fd := int(c.fd)
	if l.keep.Lot != nil {
		l.keep.Lot.Leave(c.slotted)
	}
	failpoint.Pass("close.left")
	_ = l.sys.shutdown(fd, unix.SHUT_RDWR) // ENOTCONN when the peer was faster
	failpoint.Pass("close.shut")
	l.keep.Table.Give(c.slotted) // not before: a parked connection without a record is nobody's
	failpoint.Pass("close.forgotten")
	_ = unix.EpollCtl(l.epfd, unix.EPOLL_CTL_DEL, fd, nil)
	_ = l.sys.close(fd)
	failpoint.Pass("close.closed")
	l.slab.give(c)
}

// failed drops a client after an error of its socket.
func (l *loop) failed(c *client, call string, errno syscall.Errno) {
	l.drop(c, call+": "+errno.Error())
}

// channel is for messages.
func (c *client) channel() string {
	if c.subs == nil {
		return ""
	}
	return c.subs.ch.Name()
}

// dropPong takes back pongs that wait.
func (l *loop) dropPong(c *client) {
	p := c.pending
	if p == nil || p.pong < 0 {
		return
	}
	p.bytes, p.pong = p.bytes[:p.pong], -1
	if all := p.out + p.left(); p.noted > all {
		p.noted = all
		l.stand(c) // before others take their place in the record
	}
}
