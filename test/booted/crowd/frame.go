package crowd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
)

// The key of the example in RFC 6455, section 1.3, and the answer to it. Every client uses it: a server has no way to profit from that.
const (
	handshakeKey    = "dGhlIHNhbXBsZSBub25jZQ=="
	handshakeAccept = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
)

func request(path string) []byte {
	return []byte("GET " + path + " HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" +
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + handshakeKey + "\r\n\r\n")
}

// answer returns the length of the server's answer at the front of b, or 0 when its end has not come.
func answer(b []byte) (int, error) {
	end := bytes.Index(b, []byte("\r\n\r\n"))
	switch {
	case end < 0 && len(b) > 4096:
		return 0, errors.New("the answer to the handshake is longer than 4096 bytes")
	case end < 0:
		return 0, nil
	}
	head := b[:end+2]
	if !bytes.HasPrefix(head, []byte("HTTP/1.1 101 ")) {
		return 0, fmt.Errorf("the handshake was answered with %.200q", b)
	}
	if !bytes.Contains(bytes.ToLower(head), bytes.ToLower([]byte("\r\nSec-WebSocket-Accept: "+handshakeAccept+"\r\n"))) {
		return 0, errors.New("the answer to the handshake has not the right Sec-WebSocket-Accept")
	}
	return end + 4, nil
}

// Opcodes of RFC 6455, section 5.2.
const (
	binaryFrame = 0x2
	closeFrame  = 0x8
	pingFrame   = 0x9
	pongFrame   = 0xA
)

// split takes one frame off the front of b: its opcode, its payload, which lies in b, and its length. The length is 0 when the end of the frame has
// not come. It refuses what wscastd never sends: text, which nobody here publishes, and fragments.
func split(b []byte) (opcode byte, payload []byte, n int, err error) {
	if len(b) < 2 {
		return 0, nil, 0, nil
	}
	opcode = b[0] & 0xf
	head, length := 2, uint64(b[1])
	switch {
	case b[0]&0xf0 != 0x80 || opcode != binaryFrame && opcode != closeFrame && opcode != pingFrame && opcode != pongFrame:
		return 0, nil, 0, fmt.Errorf("a frame begins with %#02x %#02x", b[0], b[1])
	case b[1]&0x80 != 0:
		return 0, nil, 0, errors.New("a frame from the server is masked")
	case opcode >= closeFrame && length > 125:
		return 0, nil, 0, errors.New("a control frame is longer than 125 bytes")
	case length == 126:
		if head = 4; len(b) < head {
			return 0, nil, 0, nil
		}
		length = uint64(binary.BigEndian.Uint16(b[2:]))
	case length == 127:
		if head = 10; len(b) < head {
			return 0, nil, 0, nil
		}
		length = binary.BigEndian.Uint64(b[2:])
	}
	if length > maxSize {
		return 0, nil, 0, fmt.Errorf("a frame of %d bytes, and at most %d are published", length, maxSize)
	}
	if n = head + int(length); len(b) < n {
		return 0, nil, 0, nil
	}
	return opcode, b[head:n], n, nil
}

// clientFrame is a control frame, masked as a client has to.
func clientFrame(opcode byte, payload []byte) []byte {
	var key [4]byte
	binary.NativeEndian.PutUint32(key[:], rand.Uint32())
	b := append([]byte{0x80 | opcode, 0x80 | byte(len(payload))}, key[:]...)
	for i, v := range payload {
		b = append(b, v^key[i%4])
	}
	return b
}
