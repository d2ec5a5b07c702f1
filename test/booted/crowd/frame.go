package crowd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
)

// Opcodes of RFC 6455, section 5.2.
const (
	textFrame   = 0x1
	binaryFrame = 0x2
	closeFrame  = 0x8
	pingFrame   = 0x9
	pongFrame   = 0xA
)

// frame is one from the server.
type frame struct {
	opcode   byte
	deflated bool   // RFC 7692, section 6
	payload  []byte // lies in what it was split from
}

// split takes one frame off the front of b; n is its length, 0 when the end of the frame has not come. It refuses what wscastd never sends: fragments,
// and the bits of extensions that were not agreed upon.
func split(b []byte, mayDeflate bool) (f frame, n int, err error) {
	if len(b) < 2 {
		return frame{}, 0, nil
	}
	f.opcode, f.deflated = b[0]&0xf, b[0]&0x40 != 0
	head, length := 2, uint64(b[1])
	known := f.opcode == textFrame || f.opcode == binaryFrame || f.opcode == closeFrame || f.opcode == pingFrame || f.opcode == pongFrame
	switch {
	case b[0]&0xb0 != 0x80 || !known || f.deflated && (!mayDeflate || f.opcode >= closeFrame):
		return f, 0, fmt.Errorf("a frame begins with %#02x %#02x", b[0], b[1])
	case b[1]&0x80 != 0:
		return f, 0, errors.New("a frame from the server is masked")
	case f.opcode >= closeFrame && length > 125:
		return f, 0, errors.New("a control frame is longer than 125 bytes")
	case length == 126:
		if head = 4; len(b) < head {
			return f, 0, nil
		}
		length = uint64(binary.BigEndian.Uint16(b[2:]))
	case length == 127:
		if head = 10; len(b) < head {
			return f, 0, nil
		}
		length = binary.BigEndian.Uint64(b[2:])
	}
	if length > maxEncoded {
		return f, 0, fmt.Errorf("a frame of %d bytes, and at most %d are published", length, maxSize)
	}
	if n = head + int(length); len(b) < n {
		return f, 0, nil
	}
	f.payload = b[head:n]
	return f, n, nil
}

// clientFrame is a frame of less than 64 KiB, masked as a client has to.
func clientFrame(opcode byte, payload []byte) []byte {
	var key [4]byte
	binary.NativeEndian.PutUint32(key[:], rand.Uint32())
	b := []byte{0x80 | opcode, 0x80 | byte(len(payload))}
	if len(payload) > 125 {
		b[1] = 0x80 | 126
		b = binary.BigEndian.AppendUint16(b, uint16(len(payload)))
	}
	b = append(b, key[:]...)
	for i, v := range payload {
		b = append(b, v^key[i%4])
	}
	return b
}
