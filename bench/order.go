package main

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
)

// messageSize is the size in bytes of every message.
const messageSize = 128

// A message is text: its sequence number and the time it was published, in nanoseconds since
// 1970 (0 where nobody asks), each as 16 hexadecimal digits behind a space, then filler.
const (
	sequenceAt = 1
	stampAt    = sequenceAt + 16 + 1
	fillerAt   = stampAt + 16 + 1
)

var filler = bytes.Repeat([]byte("wscast "), messageSize/7+1)[:messageSize-fillerAt]

// appendMessage appends message number sequence to b.
func appendMessage(b []byte, sequence uint64, stamp int64) []byte {
	b = append(b, ' ')
	b = appendHex(b, sequence)
	b = append(b, ' ')
	b = appendHex(b, uint64(stamp))
	b = append(b, ' ')
	return append(b, filler...)
}

func appendHex(b []byte, v uint64) []byte {
	for shift := 60; shift >= 0; shift -= 4 {
		b = append(b, "0123456789abcdef"[v>>shift&15])
	}
	return b
}

var errNotOurs = errors.New("a message differs from what was published")

// parseMessage is the inverse of appendMessage. It fails when any byte is not as published.
func parseMessage(b []byte) (sequence uint64, stamp int64, err error) {
	if len(b) != messageSize || b[0] != ' ' || b[stampAt-1] != ' ' || b[fillerAt-1] != ' ' || !bytes.Equal(b[fillerAt:], filler) {
		return 0, 0, fmt.Errorf("%w: %s", errNotOurs, strconv.QuoteToASCII(string(b)))
	}
	sequence, ok := parseHex(b[sequenceAt : sequenceAt+16])
	time, also := parseHex(b[stampAt : stampAt+16])
	if !ok || !also {
		return 0, 0, fmt.Errorf("%w: %s", errNotOurs, strconv.QuoteToASCII(string(b)))
	}
	return sequence, int64(time), nil
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
	errGap   = errors.New("lost or reordered")
	errAgain = errors.New("repeated or reordered")
)

// An order is what one client is due: the number of the next message. Every message must
// pass through it, so that each one arrives exactly once and in order.
type order struct{ due uint64 }

func (o *order) take(sequence uint64) error {
	switch {
	case sequence > o.due:
		return fmt.Errorf("message %d came where %d was due: %w", sequence, o.due, errGap)
	case sequence < o.due:
		return fmt.Errorf("message %d came where %d was due: %w", sequence, o.due, errAgain)
	}
	o.due++
	return nil
}
