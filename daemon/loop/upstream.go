package loop

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"time"

	"wscast/daemon/frame"
)

// What clients publish, where the configuration lets them. The way of such a message is
//
//  1. The loop finds it in a client's input, leaves it there, and gives a copy to the goroutine that appends for all loops (post): appending
//     may have to wait for a loop.
//  2. That goroutine has the Handshaker append it, under a name that is made of the client's connection and the place of the message in what
//     the client has sent: done twice it is appended once.
//  3. The loop is told, answers the client, and takes the message from the socket (posted).
//
// A process that is killed in between has an heir who does all of it once more. A client has one such message under way at a time; what
// follows it waits in the socket.

// Upstream is a message from a client.
type Upstream struct {
	Grant   Grant // nil: none
	Channel string
	Data    []byte
	Text    bool   // Data came as text, and is UTF-8
	Once    []byte // names the message
}

// mostPosts is how many messages from clients can wait to be appended.
const mostPosts = 256

// post is a message from a client under way.
type post struct {
	Upstream
	l         *loop
	slot, gen uint32          // of the client
	size      int             // bytes of its input, frames in between included
	replies   []byte          // to these
	ref       json.RawMessage // of the command
	clients   int
	refusal   Refusal
}

// appendPosts is the goroutine that appends what clients publish.
func (g *Loops) appendPosts() {
	for {
		select {
		case p := <-g.posts:
			p.clients, p.refusal = g.host.Publish(&p.Upstream)
			p.l.mu.Lock()
			p.l.results = append(p.l.results, p)
			p.l.mu.Unlock()
			p.l.wake()
			for _, l := range g.loops {
				if l.crowds.Load() {
					l.wake()
				}
			}
		case <-g.stopping:
			return
		}
	}
}

// post sends a client's message on its way. The client is not read until it has got there.
func (l *loop) post(c *client, p *post) {
	s := c.session
	p.l, p.slot, p.gen = l, c.slot, c.gen
	p.Grant = s.grant
	var once [24]byte
	binary.LittleEndian.PutUint64(once[:], l.keep.Table.Nonce())
	binary.LittleEndian.PutUint64(once[8:], c.record.Cookie())
	binary.LittleEndian.PutUint64(once[16:], c.received)
	p.Once = once[:]
	select {
	case l.posts <- p:
		s.waiting = true
	default:
		// It is still in the socket, and is found again when others are through.
		l.crowd = append(l.crowd, waiter{c.slot, c.gen})
		l.crowds.Store(true)
	}
}

// waiter is a client that is read when there is reason to.
type waiter struct{ slot, gen uint32 }

// recalled tells whether there is something for recall to do.
func (l *loop) recalled() bool {
	return l.crowds.Load() && len(l.posts) < cap(l.posts) || len(l.deferred) > 0 && !l.group.adopting.Load()
}

// recall goes on with clients whose messages found no place on the way, as many as there are places now, and with those that had to wait until all
// were taken over.
func (l *loop) recall() {
	if !l.recalled() {
		return
	}
	n := min(len(l.crowd), cap(l.posts)-len(l.posts))
	l.readLater(l.crowd[:n])
	l.crowd = append(l.crowd[:0], l.crowd[n:]...)
	l.crowds.Store(len(l.crowd) > 0)
	if len(l.deferred) > 0 && !l.group.adopting.Load() {
		l.readLater(l.deferred)
		l.deferred = nil
	}
}

func (l *loop) readLater(waiters []waiter) {
	for _, w := range waiters {
		if c := l.slab.at(w.slot); c.fd >= 0 && c.gen == w.gen {
			l.later(c)
		}
	}
}

// posted goes on with the client whose message has been appended, or refused.
func (l *loop) posted(p *post) {
	c := l.slab.at(p.slot)
	switch {
	case c.fd < 0 || c.gen != p.gen || c.session == nil:
	case c.state != open:
		l.later(c) // what has come behind the message has been told of
	case c.block != 0:
		// The answer has its place in the record when no message is half out. Until then the message stays in the socket.
		c.session.result, c.session.unread = p, true
	default:
		l.answer(c, p)
	}
}

// answer tells a client what has become of its message, and takes that from the socket.
func (l *loop) answer(c *client, p *post) {
	c.session.waiting, c.session.result = false, nil
	n, errno := l.look(c)
	if errno != 0 || n < p.size {
		l.drop(c, "its input is gone")
		return
	}
	replies := p.replies
	switch {
	case !c.commanding():
	case p.refusal != (Refusal{}):
		replies = l.refuseCommand(replies, p.ref, p.refusal)
	default:
		replies = appendReply(replies, "published", p.ref, p.Channel, fmt.Sprintf(`,"clients":%d`, p.clients))
	}
	l.count.Received++
	if p.refusal == (Refusal{}) {
		l.count.Published++
	}
	if replies != nil && !l.prepare(c, replies) {
		return
	}
	l.leaveRest(c, p.size, n)
	l.later(c)
	if replies != nil {
		l.flush(c)
	}
}

// mayPost tells whether a client has not published too much of late: config.UpstreamRate messages a second, and as many at once.
func (s *session) mayPost(rate int, now time.Time) bool {
	if rate == 0 {
		return true
	}
	s.tokens = min(float64(rate), s.tokens+now.Sub(s.refilled).Seconds()*float64(rate))
	s.refilled = now
	if s.tokens < 1 {
		return false
	}
	s.tokens--
	return true
}

var errTooFast = &frame.Error{Code: frame.ClosePolicyViolation, Reason: "too many messages: websocket.upstream_rate"}
