package survive

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Standing is where a client stands according to its record and to the kernel together.
type Standing struct {
	Place
	State   State
	Channel uint32 // id in the log
	Extra   []byte // of Place.Extra, what is not out yet; nil when all of it is
	Over    uint64 // bytes that are out of the messages after Place.Cursor, or of the extra bytes when there are some left
	Discard uint64 // bytes of input that are done with but were not read from the socket
	Shut    bool   // our side is shut down

	Uncounted bool // the socket is one of which the kernel does not count the bytes
}

// Repaired tells whether the process before was interrupted in the middle of a write.
func (s *Standing) Repaired() bool { return s.Over > 0 || s.Extra != nil }

// ErrInput: the process before had read bytes of a frame that it had not dealt with. The client can still be told so: what is said of its output holds.
var ErrInput = errors.New("input was read that is gone")

// ErrInterrupted: a process was killed in the middle of a call on a socket of which the kernel does not tell how far it got.
var ErrInterrupted = errors.New("interrupted in the middle of a call on a socket that does not count")

// ErrRest: the client was slow. It has the beginning of a message that the log has overwritten, and the process before had
// the rest of it.
var ErrRest = errors.New("it was slow: the rest of a message that it has half of is gone")

// Stands finds out where the client stands whose socket is fd. An error but ErrInput means that it cannot be known, or that the record is not
// what this program leaves behind; the client has to be given up.
func (r *Record) Stands(fd int) (s Standing, err error) { return r.stands(fd, nil) }

// Stands is Record.Stands for a record that may have extensions.
func (t *Table) Stands(slot uint32, fd int) (Standing, error) {
	overflow, err := t.Kept(slot, Overflow)
	if err != nil {
		return Standing{}, err
	}
	return t.recs[slot].stands(fd, overflow)
}

// stands: overflow begins with the number of extra bytes before those that it has.
func (r *Record) stands(fd int, overflow []byte) (s Standing, err error) {
	p, interrupted := r.Place()
	s = Standing{Place: p, State: r.State(), Channel: r.channel}
	if s.State == Free || s.State > Closing {
		return s, fmt.Errorf("implausible record: state %d", s.State)
	}
	if s.State != Opening && !r.sound() {
		return s, errSum
	}
	if s.State == Open && p.Marks&(Goodbye|Awaited) != 0 {
		return s, errors.New("implausible record: an open client was said good-bye")
	}
	c, err := count(fd)
	uncounted := err == errUncounted
	s.Uncounted = uncounted
	switch {
	case uncounted && interrupted:
		return s, ErrInterrupted
	case uncounted:
		c = counters{written: p.Out, read: p.Received}
	case err != nil:
		return s, err
	}
	s.Shut = c.shut
	if s.Shut && s.State != Closing {
		return s, ErrGone // it was being dropped
	}
	switch s.State {
	case Opening:
		// Nothing is read before the answer is written. What is written in this state is an answer that was no upgrade.
		switch {
		case c.written > 0:
			s.State, s.Channel = Closing, NoChannel
		case c.read > 0:
			return s, errors.New("implausible record: the request was read and not answered")
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
	extra := uint64(p.Extra)
	switch {
	case s.Over >= extra:
		s.Over -= extra
		s.Base += extra
	case extra <= uint64(len(r.extra)):
		s.Extra = append([]byte(nil), r.extra[s.Over:extra]...)
	case covers(overflow, s.Over, extra):
		from := uint64(binary.LittleEndian.Uint32(overflow))
		s.Extra = append([]byte(nil), overflow[4:][s.Over-from:extra-from]...)
	case s.Over > 0 && p.Marks&Rest != 0:
		return s, ErrRest
	case s.Over > 0:
		return s, fmt.Errorf("%d of %d bytes are out that were for this client alone, and the rest is gone", s.Over, extra)
	default: // none of them is out: pongs, or a good-bye behind them
		s.Marks &^= Goodbye
	}
	switch {
	case s.State == Open && (c.read > p.Received || uncounted && p.Marks&Held != 0):
		return s, ErrInput
	case c.read > p.Received:
		s.Marks &^= Awaited // what comes after a good-bye is read without further notes
	default:
		s.Discard = p.Received - c.read
	}
	return s, nil
}

// covers tells whether an overflow has those extra bytes.
func covers(overflow []byte, from, to uint64) bool {
	if len(overflow) < 4 {
		return false
	}
	first := uint64(binary.LittleEndian.Uint32(overflow))
	return from >= first && to <= first+uint64(len(overflow)-4)
}

// SetExtra puts bytes behind the first have ones of the extra bytes, for a Stand that says so; those that do not fit are left out.
// What the place that holds says of the first have bytes stays true.
func (r *Record) SetExtra(have int, b []byte) {
	if have < len(r.extra) {
		copy(r.extra[have:], b)
	}
}
