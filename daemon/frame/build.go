package frame

import (
	"encoding/binary"
	"math"
)

// Opcode is the kind of a frame: the low four bits of its first byte (RFC 6455, 5.2).
type Opcode uint8

// The opcodes that RFC 6455 defines. All others are reserved.
const (
	Continuation Opcode = 0x0
	Text         Opcode = 0x1
	Binary       Opcode = 0x2
	Close        Opcode = 0x8
	Ping         Opcode = 0x9
	Pong         Opcode = 0xA
)

// The two bytes that every frame starts with (RFC 6455, 5.2).
const (
	finBit     = 0x80 // first byte: last fragment of the message
	rsvBits    = 0x70 // first byte: for extensions
	rsv1Bit    = 0x40 // first byte: the message is compressed (RFC 7692, 6)
	opcodeBits = 0x0F // first byte
	maskBit    = 0x80 // second byte: a masking key follows the length
	lengthBits = 0x7F // second byte: the length, or one of the two below

	length16 = 126 // the length is in the next 2 bytes, big-endian
	length64 = 127 // the length is in the next 8 bytes, big-endian
)

// deflatedBit marks the opcode of a compressed message in a Parser's state.
const deflatedBit = 0x40

// SetDeflated marks a frame that PutHeader or AppendHeader has begun as a compressed message.
func SetDeflated(frame []byte) { frame[0] |= rsv1Bit }

const (
	// MaxHeader is the size in bytes of the largest header of a frame to a client.
	MaxHeader = 10
	// MaxClientHeader is the size in bytes of the largest header of a frame from a client: four
	// bytes of masking key more.
	MaxClientHeader = MaxHeader + 4

	// maxControl is the largest payload of a close, ping or pong (RFC 6455, 5.5).
	maxControl = 125
)

func (op Opcode) control() bool { return op&0x8 != 0 }

func (op Opcode) defined() bool { return op <= Binary || op >= Close && op <= Pong }

// HeaderSize returns the size in bytes of the header that PutHeader and AppendHeader make for a
// payload of that many bytes: 2, 4 or 10. It panics if payload is negative.
func HeaderSize(payload int) int {
	switch {
	case payload < 0:
		panic("frame: negative payload size")
	case payload < length16:
		return 2
	case payload <= math.MaxUint16:
		return 4
	default:
		return MaxHeader
	}
}

// PutHeader writes into dst the header of an unmasked frame that is a whole message (FIN), with the
// shortest encoding of the length, and returns its size. payload is the number of bytes of the
// payload, which the caller puts behind it; for a control frame it must be at most 125. PutHeader
// panics if dst is shorter than HeaderSize(payload), and writes nothing past that size.
func PutHeader(dst []byte, op Opcode, payload int) int {
	size := HeaderSize(payload)
	_ = dst[size-1] // before the first store: a header that does not fit leaves dst alone
	dst[0] = finBit | byte(op)
	switch size {
	case 2:
		dst[1] = byte(payload)
	case 4:
		dst[1] = length16
		binary.BigEndian.PutUint16(dst[2:], uint16(payload))
	default:
		dst[1] = length64
		binary.BigEndian.PutUint64(dst[2:], uint64(payload))
	}
	return size
}

// AppendHeader appends to dst the header that PutHeader writes.
func AppendHeader(dst []byte, op Opcode, payload int) []byte {
	var header [MaxHeader]byte
	return append(dst, header[:PutHeader(header[:], op, payload)]...)
}

// AppendPing appends to dst a whole ping frame. A payload over 125 bytes, the most that a control
// frame can hold (RFC 6455, 5.5), is cut there.
func AppendPing(dst, payload []byte) []byte {
	return appendControl(dst, Ping, payload)
}

// AppendPong appends to dst a whole pong frame. The answer to a ping carries the payload of the
// ping (RFC 6455, 5.5.3), which fits if Next returned it; a longer one is cut at 125 bytes.
func AppendPong(dst, payload []byte) []byte {
	return appendControl(dst, Pong, payload)
}

func appendControl(dst []byte, op Opcode, payload []byte) []byte {
	payload = payload[:min(len(payload), maxControl)]
	return append(AppendHeader(dst, op, len(payload)), payload...)
}

// Payload returns the opcode and the payload, as a slice of frame, of exactly one frame as this
// package builds them. ok is false for anything else, such as a masked frame, a fragment, or bytes
// missing or left over: it is safe on memory that may be damaged.
func Payload(frame []byte) (op Opcode, payload []byte, ok bool) {
	if len(frame) < 2 {
		return 0, nil, false
	}
	op = Opcode(frame[0] & opcodeBits)
	if frame[0]&^opcodeBits != finBit || !op.defined() || op == Continuation {
		return 0, nil, false
	}
	// The size of the frame allows one size of the header, and with it one length, only. For a
	// damaged frame whose size no header allows, the length written there differs.
	size := 2
	length := uint64(frame[1])
	switch {
	case frame[1] == length16 && len(frame) >= 4:
		size, length = 4, uint64(binary.BigEndian.Uint16(frame[2:]))
	case frame[1] == length64 && len(frame) >= MaxHeader:
		size, length = MaxHeader, binary.BigEndian.Uint64(frame[2:])
	}
	payload = frame[size:len(frame):len(frame)]
	if uint64(len(payload)) != length || HeaderSize(len(payload)) != size || op.control() && length > maxControl {
		return 0, nil, false
	}
	return op, payload, true
}
