package loop

import (
	"bytes"
	"context"
	"log/slog"
	"net/http"
	"net/netip"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"wscast/daemon/encode"
	"wscast/daemon/failpoint"
	"wscast/daemon/msglog"
	"wscast/daemon/survive"
)

const (
	// MaxRequest is the largest Config.MaxRequest: heads are peeked as a whole, as frames are.
	MaxRequest = 32 << 10
	// defaultRequest is nginx's own limit for a line of a request.
	defaultRequest = 8 << 10
)

// Handshaker judges requests. Its methods are called by all loops at the same time.
type Handshaker interface {
	// Handshake returns what to answer to a request, given its head with the empty line at its end. head is only valid during
	// the call.
	Handshake(head []byte, peer Peer) Admission
	// Plain is Handshake for requests like nearly all, which it answers with an upgrade to raw frames of one channel, from now on. It appends the answer to room, and
	// returns a nil channel for every other request. The channel is part of head, and must not be written.
	Plain(head, room []byte) (answer, channel []byte)
	// Refuse returns the answer to a request that cannot be served, with one line that says why.
	Refuse(status int, line string) []byte
	// May tells why a client with that grant, nil for none, may not subscribe to a channel; the zero Refusal: it may.
	May(grant Grant, channel string) Refusal
	// MayPublish tells the same of publishing.
	MayPublish(grant Grant, channel string) Refusal
	// Publish appends what a client sends, and returns to how many clients it goes. It may wait, and is called by a goroutine of its own.
	Publish(u *Upstream) (clients int, refusal Refusal)
	// Restore makes a grant of what Grant.Bytes has returned in an earlier process.
	Restore(grant []byte) (Grant, error)
}

// Peer is the other end of a connection.
type Peer int32

// Addr is its address; the zero Addr for a Unix-domain socket, whose peers are on this machine and were let in by its permissions.
func (p Peer) Addr() netip.Addr {
	sa, _ := unix.Getpeername(int(p))
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrFrom4(sa.Addr)
	case *unix.SockaddrInet6:
		return netip.AddrFrom16(sa.Addr).Unmap()
	}
	return netip.Addr{}
}

// Admission is the answer to a request.
type Admission struct {
	Answer   []byte
	Open     bool            // the client is in; otherwise the connection ends after the answer
	Encoding encode.Encoding // how it reads messages
	Channels []Start         // with encode.Raw there is one
	Grant    Grant           // nil: none
	From     uint32          // stands for the address that it comes from, for Config.MaxPerAddress; 0: not known, or there is no limit
}

// plain tells whether it is a client like nearly all.
func (a *Admission) plain() bool {
	return a.Encoding == encode.Raw && a.Grant == nil && a.Channels[0].From.How == msglog.Now
}

// Start is a channel, and where in it a client begins.
type Start struct {
	Channel string
	Epoch   uint64 // of the log that From.Seq is about
	From    msglog.From
}

// Grant is what a client is allowed to do, and who it is.
type Grant interface {
	Identity() string   // "": not known
	Expires() time.Time // zero: never
	Bytes() []byte      // for Handshaker.Restore
}

// Refusal says why something is not done: a word for programs and a sentence for people.
type Refusal struct{ Code, Sentence string }

var endOfHead = []byte("\r\n\r\n")

// handshake answers the request of a client when it is there as a whole. It stays in the socket until it is answered,
// so that a process that comes after us can answer it if we die.
func (l *loop) handshake(c *client) {
	n, errno := l.sys.peek(int(c.fd), l.scratch[:l.config.maxRequest()])
	switch {
	case errno == unix.EAGAIN:
		return
	case errno != 0 || n == 0:
		l.drop(c, "gone before the handshake")
		return
	}
	size := bytes.Index(l.scratch[:n], endOfHead)
	if size < 0 {
		if most := l.config.maxRequest(); n == most {
			l.refuse(c, http.StatusRequestHeaderFieldsTooLarge, "the request head has more than "+strconv.Itoa(most)+" bytes")
		}
		return
	}
	size += len(endOfHead)
	answer, channel := l.host.Plain(l.scratch[:size], l.welcome[:0])
	if channel != nil {
		l.welcome = answer
		if !l.letIn(c, channel, 0) {
			return
		}
	} else if answer = l.judge(c, l.scratch[:size]); answer == nil {
		return
	}
	// From here on an heir knows what the answer is worth: with none of it out the request is still in the socket, with
	// all of it the client is open. Nothing of the answer itself is kept: it goes out in one piece.
	c.received = uint64(size)
	id := survive.NoChannel
	if c.subs != nil {
		id = c.subs.ch.ID()
	}
	c.record.Answer(id, survive.Place{Cursor: c.cursor, Base: uint64(len(answer)), Received: c.received})
	l.count.Handshakes++
	if l.debugs() {
		l.log.Debug("client open", "client", c.slot, "channel", c.channel())
	}
	gen := c.gen
	failpoint.Pass("answer.noted")
	if l.say(c, answer); c.gen != gen {
		return
	}
	if c.pending != nil {
		c.pending.bytes = bytes.Clone(c.pending.bytes) // l.welcome is the next one's
	}
	failpoint.Pass("answer.sent")
	l.consume(c, size)
	failpoint.Pass("answer.consumed")
	if n > size || n == l.config.maxRequest() {
		l.read(c) // frames came with the request, or may have come: epoll has told of them already
	}
}

// judge has the Handshaker judge a request, and opens the client or refuses it. The answer is nil for one that was refused.
func (l *loop) judge(c *client, head []byte) (answer []byte) {
	a := l.host.Handshake(head, Peer(c.fd))
	if !a.Open {
		l.reply(c, a.Answer)
		return nil
	}
	if a.plain() {
		if !l.letIn(c, []byte(a.Channels[0].Channel), a.From) {
			return nil
		}
		return a.Answer
	}
	if no := l.settleIn(c, a.From); no != nil {
		l.refuse(c, no.status, no.line)
		return nil
	}
	more, status, err := l.admit(c, &a)
	if err != nil {
		c.session = nil
		c.record.SetKind(0)
		l.refuse(c, status, err.Error())
		return nil
	}
	return append(a.Answer[:len(a.Answer):len(a.Answer)], more...)
}

// letIn opens a client like nearly all, or refuses it for want of room.
func (l *loop) letIn(c *client, channel []byte, from uint32) bool {
	if no := l.settleIn(c, from); no != nil {
		l.refuse(c, no.status, no.line)
		return false
	}
	if err := l.join(c, channel); err != nil {
		l.refuse(c, http.StatusServiceUnavailable, err.Error())
		return false
	}
	return true
}

// debugs: what is logged would be made in any case, by hundreds of bytes for each client.
func (l *loop) debugs() bool { return l.log.Enabled(context.Background(), slog.LevelDebug) }

// reply ends a connection with an HTTP answer. The request, and whatever comes after it, is discarded.
func (l *loop) reply(c *client, answer []byte) {
	l.count.Refused++
	l.setState(c, closing)
	c.heard = l.tick
	l.say(c, answer)
}

func (l *loop) refuse(c *client, status int, line string) {
	l.reply(c, l.host.Refuse(status, line))
}
