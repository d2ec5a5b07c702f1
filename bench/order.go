package main

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
)

// messageSize is the size in bytes of every message.
const messageSize = 128

// A message says which one it is. It is published as text: four numbers of as many
// hexadecimal digits as are given here, each between two spaces, then filler.
type message struct {
	source   uint32 // 8: which channel of a server it goes to, or which publisher it is from
	sequence uint64 // 16: which message of that source, from 1
	try      uint8  // 2: how often it has been published before
	stamp    int64  // 16: when it was published, in nanoseconds since 1970; 0 where nobody asks
}

const (
	sourceAt   = 1
	sequenceAt = sourceAt + 8 + 1
	tryAt      = sequenceAt + 16 + 1
	stampAt    = tryAt + 2 + 1
	fillerAt   = stampAt + 16 + 1
)

var filler = bytes.Repeat([]byte("wscast "), messageSize/7+1)[:messageSize-fillerAt]

// appendTo appends what is published.
func (m message) appendTo(b []byte) []byte {
	b = append(b, ' ')
	b = appendHex(b, uint64(m.source), 8)
	b = append(b, ' ')
	b = appendHex(b, m.sequence, 16)
	b = append(b, ' ')
	b = appendHex(b, uint64(m.try), 2)
	b = append(b, ' ')
	b = appendHex(b, uint64(m.stamp), 16)
	b = append(b, ' ')
	return append(b, filler...)
}

func appendHex(b []byte, v uint64, digits int) []byte {
	for shift := 4 * (digits - 1); shift >= 0; shift -= 4 {
		b = append(b, "0123456789abcdef"[v>>shift&15])
	}
	return b
}

var errNotOurs = errors.New("a message differs from what was published")

func notOurs(b []byte) error {
	return fmt.Errorf("%w: %s", errNotOurs, strconv.QuoteToASCII(string(b)))
}

// parseMessage is the inverse of appendTo. It fails when any byte is not as published.
func parseMessage(b []byte) (message, error) {
	if len(b) != messageSize || !bytes.Equal(b[fillerAt:], filler) {
		return message{}, notOurs(b)
	}
	for _, at := range []int{sourceAt, sequenceAt, tryAt, stampAt, fillerAt} {
		if b[at-1] != ' ' {
			return message{}, notOurs(b)
		}
	}
	source, ok1 := parseHex(b[sourceAt : sourceAt+8])
	sequence, ok2 := parseHex(b[sequenceAt : sequenceAt+16])
	try, ok3 := parseHex(b[tryAt : tryAt+2])
	stamp, ok4 := parseHex(b[stampAt : stampAt+16])
	if !ok1 || !ok2 || !ok3 || !ok4 {
		return message{}, notOurs(b)
	}
	return message{uint32(source), sequence, uint8(try), int64(stamp)}, nil
}

func parseHex(b []byte) (v uint64, ok bool) {
	for _, c := range b {
		switch {
		case '0' <= c && c <= '9':
			v = v<<4 | uint64(c-'0')
		case 'a' <= c && c <= 'f':
			v = v<<4 | uint64(c-'a'+10)
		default:
			return 0, false
		}
	}
	return v, true
}

var (
	errGap     = errors.New("lost or reordered")
	errAgain   = errors.New("repeated or reordered")
	errForeign = errors.New("meant for others")
)

// An order is what one client is due: of each of its sources, which have numbers from first
// on, the number of the next message. Every message must pass through it, so that each one
// arrives exactly once and in order, and nothing arrives that was published for others.
type order struct {
	first uint32
	due   []uint64
}

// newOrder is due message number next of each source.
func newOrder(first uint32, sources int, next uint64) order {
	o := order{first, make([]uint64, sources)}
	for i := range o.due {
		o.due[i] = next
	}
	return o
}

func (o *order) take(m message) error {
	at := m.source - o.first
	if m.source < o.first || int(at) >= len(o.due) {
		return fmt.Errorf("message %d of source %d came: %w", m.sequence, m.source, errForeign)
	}
	switch due := o.due[at]; {
	case m.sequence > due:
		return fmt.Errorf("message %d came where %d was due: %w", m.sequence, due, errGap)
	case m.sequence < due:
		return fmt.Errorf("message %d came where %d was due: %w", m.sequence, due, errAgain)
	}
	o.due[at]++
	return nil
}
