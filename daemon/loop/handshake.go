package loop

import (
	"bytes"
	"net/http"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"wscast/daemon/encode"
	"wscast/daemon/failpoint"
	"wscast/daemon/msglog"
	"wscast/daemon/survive"
)

// MaxHead is the largest request head, in bytes. nginx's own limit for what it passes on is 8 KiB by default.
const MaxHead = 8 << 10

// Handshaker judges requests. Its methods are called by all loops at the same time.
type Handshaker interface {
	// Handshake returns what to answer to a request, given its head with the empty line at its end. head is only valid during
	// the call.
	Handshake(head []byte, peer Peer) Admission
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
	n, errno := l.sys.peek(int(c.fd), l.scratch[:MaxHead])
	switch {
	case errno == unix.EAGAIN:
		return
	case errno != 0 || n == 0:
		l.drop(c, "gone before the handshake")
		return
	}
	size := bytes.Index(l.scratch[:n], endOfHead)
	if size < 0 {
		if n == MaxHead {
			l.refuse(c, http.StatusRequestHeaderFieldsTooLarge, "the request head has more than 8192 bytes")
		}
		return
	}
	size += len(endOfHead)
	a := l.host.Handshake(l.scratch[:size], Peer(c.fd))
	answer := a.Answer
	if !a.Open {
		l.reply(c, answer)
		return
	}
	if a.plain() {
		if err := l.join(c, a.Channels[0].Channel); err != nil {
			l.refuse(c, http.StatusServiceUnavailable, err.Error())
			return
		}
	} else if more, status, err := l.admit(c, &a); err != nil {
		c.session = nil
		c.record.SetKind(0)
		l.refuse(c, status, err.Error())
		return
	} else {
		answer = append(answer[:len(answer):len(answer)], more...)
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
	l.log.Debug("client open", "client", c.slot, "channel", c.channel())
	gen := c.gen
	failpoint.Pass("answer.noted")
	if l.say(c, answer); c.gen != gen {
		return
	}
	failpoint.Pass("answer.sent")
	l.consume(c, size)
	failpoint.Pass("answer.consumed")
	if n > size || n == MaxHead {
		l.read(c) // frames came with the request, or may have come: epoll has told of them already
	}
}

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
