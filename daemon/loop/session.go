package loop

import (
	"net/http"
	"time"

	"wscast/daemon/encode"
	"wscast/daemon/failpoint"
	"wscast/daemon/msglog"
	"wscast/daemon/survive"
)

// session is what a client has that is more than one channel of raw frames without conditions.
//
// A client with subscriptions is served from one of them at a time, the one that has the oldest message for it: c.subs and c.cursor are
// that one's, c.session.at. So its messages come in the order of the log, whatever their channels, and there is never more than one
// frame half out.
type session struct {
	encoding encode.Encoding
	grant    Grant           // nil: none
	subs     []*subscription // in the order in which they came; none with encode.Raw, whose channel is c.subs
	at       *subscription   // nil: none
	rooms    []*survive.Subscription
	talks    bool          // a client of raw frames whose messages are published
	waiting  bool          // one of them is under way
	result   *post         // it has come back, and waits until the client has got what is there for it
	piece    *subscription // a piece of history that is under way; there is one at most
	tokens   float64
	refilled time.Time
	unread   bool   // input waits in the socket until the client has got what is there for it
	ponged   uint64 // bytes of input up to which pings are answered: those inside a message are met again with its other frames
	framed   uint64 // bytes of input up to which frames are counted, as they are met again, too
}

// subscription is one channel of a session.
type subscription struct {
	c      *client
	subs   *subscribers
	cursor uint64 // of this channel; where it is the session's at, c.cursor is
	until  uint64 // a piece of history: its last message. 0: what comes is sent
	member uint32 // index in subs.feeds, unless it is a piece of history
	room   *survive.Subscription
	index  uint16 // of room, plus 1; 0: the record itself
}

// encoding of what the client is sent.
func (c *client) encoding() encode.Encoding {
	if c.session == nil {
		return encode.Raw
	}
	return c.session.encoding
}

// fed tells whether the client has subscriptions instead of a channel.
func (c *client) fed() bool { return c.session != nil && c.session.encoding != encode.Raw }

// CloseExpired is the close code for a client whose token has ended, in the range for applications (RFC 6455 section 7.4.2).
const CloseExpired = 4401

// ExpiredReason goes with it.
const ExpiredReason = "the token has expired"

// expired tells whether a client is to be closed because what it was allowed has ended.
func (c *client) expired(now time.Time) bool {
	if c.session == nil || c.session.grant == nil {
		return false
	}
	end := c.session.grant.Expires()
	return !end.IsZero() && !now.Before(end)
}

// commanding tells whether what a client says are commands.
func (c *client) commanding() bool { return c.encoding().Plain() == encode.JSON }

// kindOf is what a record says of a session.
func kindOf(s *session) uint32 {
	if s == nil {
		return 0
	}
	return 1 + uint32(s.encoding)
}

// sessionOf makes a session of a record's kind, nil where there was none. ok is false for a kind that is none.
func sessionOf(kind uint32) (s *session, ok bool) {
	if kind == 0 {
		return nil, true
	}
	if kind > 256 || !encode.Encoding(kind-1).Valid() {
		return nil, false
	}
	return &session{encoding: encode.Encoding(kind - 1)}, true
}

// admit opens a client that is more than one channel of raw frames. It returns what its answer says beyond what the Handshaker has said.
func (l *loop) admit(c *client, a *Admission) (more []byte, status int, err error) {
	s := &session{encoding: a.Encoding, grant: a.Grant}
	c.session = s
	if a.Grant != nil {
		if err := l.keep.Table.Keep(c.slotted, survive.Grant, a.Grant.Bytes()); err != nil {
			return nil, http.StatusServiceUnavailable, err
		}
	}
	c.record.SetKind(kindOf(s))
	if s.encoding == encode.Raw {
		ch, cursor, err := l.reader.Join([]byte(a.Channels[0].Channel))
		if err != nil {
			return nil, http.StatusServiceUnavailable, err
		}
		cursor, _ = l.seek(ch, cursor, &a.Channels[0], msglog.Gone)
		l.enrol(c, ch, cursor)
		return nil, 0, nil
	}
	head := encode.ID{Epoch: l.store.Epoch(), Seq: l.store.Head()} // before: the client gets all that comes after it
	if !s.encoding.WebSocket() && a.Channels[0].From.How == msglog.Now {
		more = encode.AppendPosition(more, head) // who is cut off before the first event comes back with it
	}
	for i := range a.Channels {
		start := &a.Channels[i]
		sub, complete, err := l.subscribe(c, start, len(a.Channels) > 1 || c.commanding(), head.Seq)
		if err != nil {
			for _, sub := range s.subs {
				l.unsubscribe(c, sub)
			}
			return nil, http.StatusServiceUnavailable, err
		}
		if c.commanding() {
			more = l.subscribed(more, start, head.Seq, sub, complete, nil)
		} else if !complete && !s.encoding.WebSocket() {
			more = encode.AppendIncomplete(more, start.Channel)
		}
	}
	if s.subs != nil && s.subs[0].room == nil {
		l.turnTo(c, s.subs[0]) // it is the record's channel
	}
	l.setState(c, open)
	return more, 0, nil
}

// seek finds the cursor of a client that begins where start says; if that is now, after the message with the number head. now is the cursor behind
// the channel's newest message.
func (l *loop) seek(ch *msglog.Channel, now uint64, start *Start, head uint64) (cursor uint64, complete bool) {
	from := start.From
	switch from.How {
	case msglog.Now:
		if ch.Newest() <= head {
			return now, true
		}
		from = msglog.From{How: msglog.After, Seq: head} // it has come since
	case msglog.After:
		seq, ok := l.store.Sequence(ch.Ring(), start.Epoch, from.Seq)
		if !ok { // of another log: what is kept comes, and is not said to be complete
			cursor, _ = l.reader.Seek(ch, msglog.From{How: msglog.After})
			return cursor, false
		}
		from.Seq = seq
	}
	return l.reader.Seek(ch, from)
}

// subscribe adds a channel to a session, or begins anew in one that it has already. roomy: the record itself has no room for it.
func (l *loop) subscribe(c *client, start *Start, roomy bool, head uint64) (sub *subscription, complete bool, err error) {
	s := c.session
	for _, sub := range s.subs {
		if sub.until == 0 && sub.subs.ch.Name() == start.Channel {
			if start.From.How == msglog.Now {
				return sub, true, nil
			}
			l.unsubscribe(c, sub) // not moved: were the process killed now, the command would be carried out once more
			break
		}
	}
	ch, cursor, err := l.reader.Join([]byte(start.Channel))
	if err != nil {
		return nil, false, err
	}
	cursor, complete = l.seek(ch, cursor, start, head)
	sub = &subscription{c: c, subs: l.subscribersOf(ch), cursor: cursor}
	l.feed(sub)
	if err := l.house(c, sub, roomy); err != nil {
		l.unfeed(sub)
		return nil, false, err
	}
	s.subs = append(s.subs, sub)
	return sub, complete, nil
}

// replay adds a piece of a channel's history to a session.
func (l *loop) replay(c *client, ch *msglog.Channel, cursor, until uint64) error {
	sub := &subscription{c: c, subs: &subscribers{ch: ch}, cursor: cursor, until: until}
	if err := l.house(c, sub, true); err != nil {
		return err
	}
	c.session.subs = append(c.session.subs, sub)
	c.session.piece = sub
	return nil
}

// house finds room for a subscription where an heir will find it.
func (l *loop) house(c *client, sub *subscription, roomy bool) error {
	if !roomy {
		return nil
	}
	s := c.session
	index := 0
	for index < len(s.rooms) && s.rooms[index].Used() {
		index++
	}
	if index == len(s.rooms) {
		rooms, err := l.keep.Table.MoreSubscriptions(c.slotted)
		if err != nil {
			return err
		}
		s.rooms = append(s.rooms, rooms...)
	}
	sub.room, sub.index = s.rooms[index], uint16(index+1)
	sub.room.Set(sub.subs.ch.ID(), sub.cursor, sub.until)
	sub.room.Use(c.received)
	return nil
}

// unsubscribe takes a channel, or a piece of history, from a session. No frame of it is half out.
func (l *loop) unsubscribe(c *client, sub *subscription) {
	s := c.session
	for i, other := range s.subs {
		if other == sub {
			s.subs = append(s.subs[:i:i], s.subs[i+1:]...)
			break
		}
	}
	if s.piece == sub {
		s.piece = nil
	}
	if sub.room != nil {
		sub.room.SetCursor(l.cursorOf(c, sub)) // it may be the place that says so, which is another one's in a moment
	}
	if s.at == sub {
		s.at, c.subs, c.cursor = nil, nil, 0
	}
	if sub.room != nil {
		if c.state == open {
			l.stand(c) // before: no place is about a room that is not used
		}
		sub.room.Unuse()
	}
	if sub.until == 0 {
		l.unfeed(sub)
	}
}

// feed puts a subscription on the list of its channel.
func (l *loop) feed(sub *subscription) {
	sub.member = uint32(len(sub.subs.feeds))
	sub.subs.feeds = append(sub.subs.feeds, sub)
	l.group.presence.count(sub.subs.ch.Name(), sub.c.session.grant, 1)
}

// unfeed takes a subscription from its channel.
func (l *loop) unfeed(sub *subscription) {
	l.group.presence.count(sub.subs.ch.Name(), sub.c.session.grant, -1)
	s := sub.subs
	last := s.feeds[len(s.feeds)-1]
	s.feeds[sub.member] = last
	last.member = sub.member
	s.feeds[len(s.feeds)-1] = nil
	s.feeds = s.feeds[:len(s.feeds)-1]
	l.left(s)
}

func (l *loop) cursorOf(c *client, sub *subscription) uint64 {
	if c.session.at == sub {
		return c.cursor
	}
	return sub.cursor
}

// turnTo makes sub the one that the client is served from. No frame is half out.
func (l *loop) turnTo(c *client, sub *subscription) {
	s := c.session
	if s.at == sub {
		return
	}
	if s.at != nil {
		s.at.cursor = c.cursor
		if s.at.room != nil {
			s.at.room.SetCursor(c.cursor) // as the place says, until the next one
		}
	}
	s.at, c.subs, c.cursor = sub, sub.subs, sub.cursor
	l.stand(c) // before anything of it is sent: what is over the place's base is of this one
}

// turnPlace is what choose has found. What is sent to the client has to end before the message with the number before; others: that is because
// another subscription has something for it, too, or a piece of history ends there.
type turnPlace struct {
	before uint64
	others bool
}

// choose turns a client to the subscription that has the oldest message for it; where there is none it stays where it is. ok is false for a
// client that is slow.
func (l *loop) choose(c *client) (to turnPlace, ok bool) {
	s := c.session
	to.before = msglog.Gone
	switch {
	case s.piece != nil:
		// Its messages come one after the other, with nothing in between: that is how the client knows them.
		if _, ok := l.reader.Next(s.piece.subs.ch, l.cursorOf(c, s.piece)); !ok {
			return to, false
		}
		l.turnTo(c, s.piece)
		return turnPlace{msglog.Gone, true}, true
	case len(s.subs) == 1 && s.at == s.subs[0]:
		return to, true
	}
	// Messages come while we look. Of those up to the head as it is now none is passed over: when it became the head, all before it were on the
	// lists of their channels.
	head := l.store.Head()
	var oldest *subscription
	first := uint64(msglog.Gone)
	for _, sub := range s.subs {
		seq, ok := l.reader.Next(sub.subs.ch, l.cursorOf(c, sub))
		if !ok {
			return to, false
		}
		if seq == 0 {
			continue
		}
		switch number := l.reader.Number(sub.subs.ch, seq); {
		case number > head:
		case number < first:
			to.before = first
			first, oldest = number, sub
		default:
			to.before = min(to.before, number)
		}
	}
	if oldest != nil {
		l.turnTo(c, oldest)
	}
	to.others = to.before != msglog.Gone
	to.before = min(to.before, head+1)
	return to, true
}

// encodeRun is Reader.Run for a client that does not read the log's own frames. What it collects lies in l.encoded until the next call.
func (l *loop) encodeRun(c *client, to turnPlace, limit int) (ok bool) {
	run, s := &l.run, c.session
	run.Slices, run.Bytes, run.Messages, run.Last, run.More = run.Slices[:0], 0, 0, c.cursor, false
	if c.subs == nil {
		return true
	}
	if c.off > 0 { // the rest of a message; what is to follow it is chosen when it is out
		seq, ok := l.reader.Next(c.subs.ch, c.cursor)
		if !ok || seq == 0 {
			return false
		}
		b := l.frameOf(c, seq)[c.off:]
		run.Slices, run.Bytes, run.Messages, run.Last, run.More = append(run.Slices, b), len(b), 1, seq, true
		return true
	}
	l.encoded = l.encoded[:0]
	for {
		seq, ok := l.reader.Next(c.subs.ch, run.Last)
		if !ok {
			return false
		}
		if seq == 0 || l.reader.Number(c.subs.ch, seq) >= to.before || s.at.until != 0 && seq > s.at.until {
			run.More = seq != 0 || to.others
			break
		}
		if run.Messages > 0 && len(l.encoded) > limit {
			run.More = true
			break
		}
		l.encoded = l.encode(l.encoded, s.encoding, c.subs.ch, seq)
		run.Messages++
		run.Last = seq
	}
	if run.Messages > 0 {
		run.Slices, run.Bytes = append(run.Slices, l.encoded), len(l.encoded)
	}
	return true
}

func (l *loop) encode(to []byte, e encode.Encoding, ch *msglog.Channel, seq uint64) []byte {
	m := l.reader.Message(ch, seq)
	return l.encoder.Append(to, e, &encode.Message{
		Channel: m.Channel, ID: encode.ID{Epoch: l.store.Epoch(), Seq: m.Number}, Time: m.Time, Op: m.Op, Data: m.Data,
	})
}

// advance is Reader.Advance for every client.
func (l *loop) advance(c *client, n int) (cursor uint64, off, completed int) {
	if !c.fed() {
		return l.reader.Advance(c.subs.ch, c.cursor, int(c.off), n)
	}
	cursor = c.cursor
	for n += int(c.off); n > 0; completed++ {
		seq, ok := l.reader.Next(c.subs.ch, cursor)
		if !ok || seq == 0 {
			break
		}
		whole := l.frameOf(c, seq)
		if n < len(whole) {
			break
		}
		n -= len(whole)
		cursor = seq
	}
	return cursor, n, completed
}

// frameOf is the message as the client is sent it. It is the caller's only until the next message is encoded. The last one is kept: a client that
// takes a large message in small pieces asks for it with each of them, and so do others that are stuck in it.
func (l *loop) frameOf(c *client, seq uint64) []byte {
	if !c.fed() {
		return l.reader.Frame(c.subs.ch, seq)
	}
	if is := (halfOut{c.subs.ch.Ring(), seq, c.session.encoding}); l.wholeIs != is {
		l.whole, l.wholeIs = l.encode(l.whole[:0], c.session.encoding, c.subs.ch, seq), is
	}
	return l.whole
}

// deliverFeeds is deliver for the sessions of a channel.
func (l *loop) deliverFeeds(subs *subscribers) {
	l.run.valid = false
	for i := len(subs.feeds) - 1; i >= 0; i-- {
		c := subs.feeds[i].c
		if c.block != 0 || c.flags&again != 0 {
			continue
		}
		to, ok := l.choose(c)
		if !ok {
			l.slow(c, nil)
			continue
		}
		if !l.run.valid || to.others || l.run.cursor != c.cursor || l.run.subs != c.subs || l.run.encoding != c.session.encoding {
			if !l.collectFeed(c, to, runBytes) {
				continue
			}
		}
		if l.run.Bytes == 0 {
			if l.run.More {
				l.later(c) // what there is has come while we looked
			}
			continue
		}
		n, errno := l.sendRun(c)
		failpoint.Pass("feed.sent")
		if n == l.run.Bytes && !l.run.More && c.session.at.until == 0 {
			c.cursor, c.base, c.told = l.run.Last, c.base+uint64(n), l.tick
			l.stand(c)
			failpoint.Pass("feed.stood")
			l.count.Deliveries += uint64(l.run.Messages)
			l.count.Sent += uint64(n)
			continue
		}
		l.sent(c, n, errno)
	}
	l.run.valid = false
}

// collectFeed is collect for a client of a session that has been turned to what it is to be sent.
func (l *loop) collectFeed(c *client, to turnPlace, limit int) bool {
	if !l.encodeRun(c, to, limit) {
		l.run.valid = false
		l.slow(c, nil)
		return false
	}
	// What was before one head is before every later one: others at the same place can be sent it, if they have nothing of another channel.
	l.run.valid = limit == runBytes && c.off == 0 && !to.others && c.subs != nil
	l.run.cursor, l.run.subs, l.run.encoding = c.cursor, c.subs, c.session.encoding
	return true
}

// completed is for a piece of history whose last message is out.
func (l *loop) completed(c *client) {
	if at := c.session.at; at != nil && at.until != 0 && c.off == 0 && c.cursor >= at.until {
		l.unsubscribe(c, at)
		if c.session.unread {
			l.later(c)
		}
	}
}
