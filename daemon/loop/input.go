package loop

import (
	"golang.org/x/sys/unix"

	"wscast/daemon/frame"
)

// MaxMessage is the largest message that a client can be allowed to send: whole frames are peeked, so that a frame is
// either in the socket or done with, and it has to fit into the socket's receive buffer and the loop's scratch buffer.
const MaxMessage = 32 << 10

// patience is how many times in one turn a client's socket is read. One that sends more goes on in the next turn.
const patience = 8

// input reads what an open client sends. Messages are counted and dropped.
func (l *loop) input(c *client) {
	gen := c.gen
	for range patience {
		n, errno := l.sys.peek(int(c.fd), l.scratch)
		switch {
		case errno == unix.EAGAIN:
			return
		case errno != 0:
			l.failed(c, "recv", errno)
			return
		case n == 0:
			l.drop(c, "closed without a close frame")
			return
		}
		c.heard = l.tick
		c.flags &^= pinged
		used := 0
		for used < n {
			f, size, err := c.in.Next(l.scratch[used:n], l.config.MaxMessage)
			if err != nil {
				l.consume(c, used)
				l.close(c, err.Code, err.Reason)
				return
			}
			if size == 0 {
				break
			}
			used += size
			if f.Message != 0 {
				l.count.Received++
				continue
			}
			switch f.Op {
			case frame.Ping:
				l.sayAs(c, frame.AppendPong(nil, f.Payload), true)
			case frame.Close:
				l.consume(c, used)
				code, _, _ := frame.ParseClose(f.Payload)
				l.close(c, code, "") // the answer has the code that came (RFC 6455 section 5.5.1)
				return
			}
			if c.gen != gen {
				return // the pong found a dead socket
			}
		}
		l.consume(c, used)
		if n < len(l.scratch) {
			return // that was all; what comes from now on is a new event
		}
	}
	l.later(c)
}

// consume takes from the socket what has been peeked and dealt with.
func (l *loop) consume(c *client, n int) {
	if n > 0 {
		_, _ = l.sys.receive(int(c.fd), l.scratch[:n]) // they are there: we have just seen them
	}
}

// discard throws away what a closing client sends, up to its end.
func (l *loop) discard(c *client) {
	for range patience {
		n, errno := l.sys.receive(int(c.fd), l.scratch)
		switch {
		case errno == unix.EAGAIN:
			return
		case errno != 0 || n == 0:
			l.drop(c, "closed")
			return
		}
	}
	l.later(c)
}
