package survive

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Standing is where a client stands according to its record and to the kernel together.
type Standing struct {
	Place
	State   State
	Channel uint32 // id in the log
	Extra   []byte // of Place.Extra, what is not out yet; nil when all of it is
	Over    uint64 // bytes that are out of the messages after Place.Cursor
	Discard uint64 // bytes of input that are done with but were not read from the socket
}

// Repaired tells whether the process before was interrupted in the middle of a write.
func (s *Standing) Repaired() bool { return s.Over > 0 || s.Extra != nil }

// ErrInput: the process before had read bytes of a frame that it had not dealt with. The client can still be told so: what is said of its output holds.
var ErrInput = errors.New("input was read that is gone")

// ErrInterrupted: a process was killed in the middle of a call on a socket of which the kernel does not tell how far it got.
var ErrInterrupted = errors.New("interrupted in the middle of a call on a socket that does not count")

// Stands finds out where the client stands whose socket is fd. An error means that it cannot be known, or that the record is not what this
// program leaves behind; the client has to be given up.
func (r *Record) Stands(fd int) (s Standing, err error) {
	p, interrupted := r.Place()
	s = Standing{Place: p, State: r.State(), Channel: r.channel}
	c, err := count(fd)
	switch {
	case err == errUncounted && interrupted:
		return s, ErrInterrupted
	case err == errUncounted:
		c = counters{written: p.Out, read: p.Received}
	case err != nil:
		return s, err
	}
	switch s.State {
	case Opening:
		// The request is in the socket: nothing is read before the answer is written, and nothing was written.
		if c.written != 0 || c.read != 0 {
			return s, errors.New("implausible record: opening, but the connection was used")
		}
		return s, nil
	case Answering:
		switch c.written {
		case 0:
			s.State = Opening // not answered: the request is still there
			return s, nil
		case p.Base:
			s.State = Open
		default:
			return s, fmt.Errorf("%d of %d bytes of the answer are out", c.written, p.Base)
		}
	}
	if c.written < p.Base || c.written-p.Base > 1<<32 {
		return s, fmt.Errorf("implausible record: %d bytes are out, the record says at least %d", c.written, p.Base)
	}
	s.Over = c.written - p.Base
	switch {
	case s.Over >= p.Extra:
		s.Over -= p.Extra
		s.Base += p.Extra
	case p.Extra <= uint64(len(r.extra)):
		s.Extra = append([]byte(nil), r.extra[s.Over:p.Extra]...)
	case s.Over > 0:
		return s, fmt.Errorf("%d of %d bytes are out that were for this client alone, and the rest is gone", s.Over, p.Extra)
	} // or none of them, which were pongs, or a long good-bye
	if s.State == Open && c.read > p.Received && !ended(fd) {
		return s, ErrInput
	}
	if c.read < p.Received {
		s.Discard = p.Received - c.read
	}
	return s, nil
}

// ended: the other side has closed, which the kernel counts as a byte.
func ended(fd int) bool {
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
	n, err := unix.Poll(p, 0)
	return err == nil && n == 1 && p[0].Revents&(unix.POLLRDHUP|unix.POLLHUP|unix.POLLERR) != 0
}

// SetExtra puts bytes behind the first have ones of the extra bytes, for a Stand that says so; those that do not fit are left out.
// What the place that holds says of the first have bytes stays true.
func (r *Record) SetExtra(have int, b []byte) {
	if have < len(r.extra) {
		copy(r.extra[have:], b)
	}
}
