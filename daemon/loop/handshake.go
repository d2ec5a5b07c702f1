package loop

import (
	"bytes"
	"net/http"

	"golang.org/x/sys/unix"

	"wscast/daemon/failpoint"
	"wscast/daemon/survive"
)

// MaxHead is the largest request head, in bytes. nginx's own limit for what it passes on is 8 KiB by default.
const MaxHead = 8 << 10

// Handshaker judges requests. Its methods are called by all loops at the same time.
type Handshaker interface {
	// Handshake returns what to answer to a request, given its head with the empty line at its end. With a channel the
	// client is upgraded and joins it; without one the connection ends after the answer. head is only valid during
	// the call.
	Handshake(head []byte) (answer []byte, channel string)
	// Refuse returns the answer to a request that cannot be served, with one line that says why.
	Refuse(status int, line string) []byte
}

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
	answer, channel := l.host.Handshake(l.scratch[:size])
	if channel == "" {
		l.reply(c, answer)
		return
	}
	if err := l.join(c, channel); err != nil {
		l.refuse(c, http.StatusServiceUnavailable, err.Error())
		return
	}
	// From here on an heir knows what the answer is worth: with none of it out the request is still in the socket, with
	// all of it the client is open. Nothing of the answer itself is kept: it goes out in one piece.
	c.received = uint64(size)
	c.record.Answer(c.subs.ch.ID(), survive.Place{Cursor: c.cursor, Base: uint64(len(answer)), Received: c.received})
	l.count.Handshakes++
	l.log.Debug("client open", "client", c.slot, "channel", channel)
	gen := c.gen
	failpoint.Pass("answer.noted")
	if l.say(c, answer); c.gen != gen {
		return
	}
	failpoint.Pass("answer.sent")
	l.consume(c, size)
	failpoint.Pass("answer.consumed")
	if n > size || n == MaxHead {
		l.input(c) // frames came with the request, or may have come: epoll has told of them already
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
