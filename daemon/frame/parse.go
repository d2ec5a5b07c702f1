package frame

import (
	"encoding/binary"
	"math"
	"strconv"
)

// Parser is what has to be remembered of one client between two of its frames. The zero value is a
// client that has sent nothing. A copy is a snapshot: parse with the copy and assign it when the
// bytes are consumed.
//
//	                  text or binary without FIN
//	between messages ───────────────────────────> inside a message
//	  │ ^      ^                                    │ ^         │
//	  └─┘      └────────────────────────────────────│─│─────────┘
//	 text or           continuation with FIN        └─┘
//	 binary                                     continuation
//	 with FIN                                   without FIN
//
// Everything else is error 1002. Control frames may come in both states and change neither (RFC
// 6455, 5.4).
type Parser struct {
	// State is the whole Parser in one word, 0 between messages, so that it is kept in shared
	// memory with one store, and a process killed at any instant leaves it old or new but never
	// half. Next stores it once per data frame. From the lowest byte up: state of the UTF-8 decoder
	// (0 in binary and compressed messages), opcode of the message in progress, with the bit
	// deflatedBit if it is compressed, then 6 bytes: its size so far in bytes.
	State uint64
}

// maxMessage is the largest size that fits into State.
const maxMessage = 1<<48 - 1

func inMessage(message Opcode, text textState, size uint64) uint64 {
	return uint64(text) | uint64(message)<<8 | size<<16
}

func (p Parser) text() textState { return textState(p.State) }
func (p Parser) message() Opcode { return Opcode(p.State>>8) &^ deflatedBit }
func (p Parser) deflated() bool  { return p.State>>8&deflatedBit != 0 }
func (p Parser) size() uint64    { return p.State >> 16 }

// Valid tells whether p is a state that Next can leave behind. Ask it of a Parser whose State comes
// from memory that may be damaged: Next does not panic on an invalid one, but what it returns means
// nothing.
func (p Parser) Valid() bool {
	switch Opcode(p.State >> 8) {
	case Text | deflatedBit, Binary | deflatedBit:
		return p.text() == textWhole
	case Continuation:
		return p.State == 0
	case Text:
		// The sequence that has begun is part of the message.
		return p.text() == textWhole || p.text() < textBad && p.size() > 0
	case Binary:
		return p.text() == textWhole
	}
	return false
}

// Frame is one frame from a client.
type Frame struct {
	Op      Opcode // as in the frame: Continuation for all fragments of a message but the first
	Fin     bool   // the message ends with this frame; always so for control frames
	Message Opcode // Text or Binary: the message that a data frame is part of; 0 for control frames
	Payload []byte // unmasked, a slice of the buffer given to Next

	// Deflated: the message that a data frame is part of is compressed (RFC 7692, 6). Whether it is
	// text has not been looked at then, and its size is the compressed one.
	Deflated bool
}

var (
	errReservedBits = &Error{CloseProtocolError, "reserved bits are set but no extension was agreed on (RFC 6455 5.2)"}
	errOpcode       = &Error{CloseProtocolError, "reserved opcode (RFC 6455 5.2)"}
	errFragmented   = &Error{CloseProtocolError, "fragmented control frame: set FIN (RFC 6455 5.5)"}
	errNoMessage    = &Error{CloseProtocolError, "continuation frame outside of a message: start with a text or binary frame (RFC 6455 5.4)"}
	errInMessage    = &Error{CloseProtocolError, "new message inside a fragmented one: finish that with continuation frames (RFC 6455 5.4)"}
	errUnmasked     = &Error{CloseProtocolError, "frame is not masked: clients must mask (RFC 6455 5.1)"}
	errControlSize  = &Error{CloseProtocolError, "control frame with more than 125 bytes of payload (RFC 6455 5.5)"}
	errLength       = &Error{CloseProtocolError, "payload length with the top bit set (RFC 6455 5.2)"}
	errLengthForm   = &Error{CloseProtocolError, "payload length is not in its shortest form (RFC 6455 5.2)"}
	errText         = &Error{CloseInvalidData, "text message is not UTF-8: send bytes as a binary message (RFC 6455 8.1)"}
	errTextEnd      = &Error{CloseInvalidData, "text message ends in the middle of a UTF-8 sequence (RFC 6455 8.1)"}
)

func errTooBig(limit uint64) *Error {
	return &Error{CloseTooBig, "message is larger than " + strconv.FormatUint(limit, 10) + " bytes, the limit here: send smaller ones"}
}

// Next takes the first frame off b, which starts where the frame before ended.
//
// With n > 0 the first n bytes of b are that frame, and its payload has been unmasked in them; p is
// past it. With n == 0 and a nil error the frame is incomplete: p and b are unchanged; call again
// with the same bytes and more of them. An error says how to fail the connection (RFC 6455, 7.1.7);
// p is unchanged, the bytes in b are of no further use. Errors come as early as the bytes that are
// there allow: a bad header does not wait for its payload, nor bad UTF-8 for the rest of its frame.
// A longer b gives the same error.
//
// limit is the largest size in bytes of a message, all its fragments together; 0 or less lets only
// empty ones pass. It does not count control frames. The payload of a close frame has been checked:
// ParseClose finds no error in it.
func (p *Parser) Next(b []byte, limit int) (f Frame, n int, err *Error) {
	return p.next(b, limit, false)
}

// NextDeflate is Next for a client with which permessage-deflate was agreed on (RFC 7692).
func (p *Parser) NextDeflate(b []byte, limit int) (f Frame, n int, err *Error) {
	return p.next(b, limit, true)
}

func (p *Parser) next(b []byte, limit int, deflate bool) (f Frame, n int, err *Error) {
	h, err := p.header(b, uint64(min(max(limit, 0), maxLimit)), deflate)
	if err != nil || h.size == 0 {
		return Frame{}, 0, err
	}
	rest := b[h.size:]
	if uint64(len(rest)) < h.length {
		if h.message == Text && !h.deflated && peekText(p.text(), rest, h.key) == textBad {
			return Frame{}, 0, errText
		}
		return Frame{}, 0, nil
	}

	payload := rest[:h.length:h.length]
	unmask(payload, h.key)
	switch h.op {
	case Close:
		if err := checkClose(payload); err != nil {
			return Frame{}, 0, err
		}
	case Continuation, Text, Binary:
		text := textWhole
		if h.message == Text && !h.deflated {
			switch text = p.text().advance(payload); {
			case text == textBad:
				return Frame{}, 0, errText
			case h.fin && text != textWhole:
				return Frame{}, 0, errTextEnd
			}
		}
		if h.fin {
			p.State = 0
		} else {
			message := h.message
			if h.deflated {
				message |= deflatedBit
			}
			p.State = inMessage(message, text, p.size()+h.length)
		}
	}
	return Frame{Op: h.op, Fin: h.fin, Message: h.message, Payload: payload, Deflated: h.deflated}, h.size + len(payload), nil
}

// maxLimit is maxMessage where an int can hold it.
const maxLimit = min(maxMessage, math.MaxInt)

// header is the header of a frame from a client. Size is 0 when it is incomplete.
type header struct {
	op       Opcode
	fin      bool
	message  Opcode // of a data frame: what it is part of
	deflated bool
	size     int
	length   uint64 // of the payload; at most the limit, or maxControl
	key      uint32 // little-endian: its lowest byte masks the first byte of the payload
}

// header parses and checks the header that b starts with, in the order of its bytes, as far as they
// are there.
func (p Parser) header(b []byte, limit uint64, deflate bool) (h header, err *Error) {
	if len(b) == 0 {
		return header{}, nil
	}
	h.op = Opcode(b[0] & opcodeBits)
	h.fin = b[0]&finBit != 0
	// Only the first frame of a message can say that it is compressed (RFC 7692, 6.1).
	h.deflated = deflate && b[0]&rsvBits == rsv1Bit && (h.op == Text || h.op == Binary)
	switch {
	case b[0]&rsvBits != 0 && !h.deflated:
		return header{}, errReservedBits
	case !h.op.defined():
		return header{}, errOpcode
	case h.op.control():
		if !h.fin {
			return header{}, errFragmented
		}
	case h.op == Continuation:
		if h.message = p.message(); h.message == Continuation {
			return header{}, errNoMessage
		}
		h.deflated = p.deflated()
	default:
		if h.message = h.op; p.message() != Continuation {
			return header{}, errInMessage
		}
	}

	if len(b) < 2 {
		return header{}, nil
	}
	if b[1]&maskBit == 0 {
		return header{}, errUnmasked
	}
	short := b[1] & lengthBits
	if h.op.control() && short > maxControl {
		return header{}, errControlSize
	}
	if h.op == Close && short == 1 {
		return header{}, errCloseSize
	}

	// While bytes of the length are missing it lies between low and high: the frame fails as soon
	// as no length in between is allowed. Shifts by 64 give 0 in Go, as is wanted here.
	low, high := uint64(short), uint64(short)
	extended, shortest := 0, uint64(0)
	switch short {
	case length16:
		extended, shortest = 2, length16
	case length64:
		extended, shortest = 8, math.MaxUint16+1
	}
	there := min(len(b)-2, extended)
	if extended > 0 {
		low = 0
		for _, c := range b[2 : 2+there] {
			low = low<<8 | uint64(c)
		}
		missing := 8 * (extended - there)
		low <<= missing
		high = low | (1<<missing - 1)
	}
	switch {
	case low>>63 != 0:
		return header{}, errLength
	case high < shortest:
		return header{}, errLengthForm
	case !h.op.control() && p.size()+low > limit: // below 2^48 + 2^63: no overflow
		return header{}, errTooBig(limit)
	}

	size := 2 + extended + 4
	if len(b) < size {
		return header{}, nil
	}
	h.size, h.length = size, low
	h.key = binary.LittleEndian.Uint32(b[size-4:])
	return h, nil
}

// unmask applies the masking key (RFC 6455, 5.3) to the whole of b, 8 bytes at a time.
func unmask(b []byte, key uint32) {
	key64 := uint64(key) | uint64(key)<<32
	for len(b) >= 8 {
		binary.LittleEndian.PutUint64(b, binary.LittleEndian.Uint64(b)^key64)
		b = b[8:]
	}
	for i := range b {
		b[i] ^= byte(key64 >> (8 * i))
	}
}

// peekText is the state after the masked bytes that have arrived of a text frame. It unmasks copies
// of pieces on the stack, because b must stay as it is until the frame is whole.
func peekText(s textState, b []byte, key uint32) textState {
	var piece [512]byte // a multiple of 4: each piece starts with the first byte of the key
	for len(b) > 0 && s != textBad {
		n := copy(piece[:], b)
		unmask(piece[:n], key)
		s = s.advance(piece[:n])
		b = b[n:]
	}
	return s
}
