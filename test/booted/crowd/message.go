package crowd

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"strconv"
)

// id is which message, and which try to publish it.
type id struct {
	publisher uint8
	try       uint16
	number    uint64 // from 1
}

func (m id) String() string {
	return fmt.Sprintf("message %d of publisher %d (try %d)", m.number, m.publisher, m.try)
}

// A message is its id and filler, which is another piece of the same random bytes for each message. Those with an odd number begin with a byte that is
// in no UTF-8, and go out as binary frames. The others are text, with what JSON and event streams have to take care of: quotes, line feeds and,
// in some, a carriage return.
const (
	mark       = 0xff
	binarySize = 12
	textSize   = 2 + 4 + 16 + len(oddities) + 1
	oddities   = "é✓😀\"\\\x01\n\n: "
	maxSize    = 1 << 20
	pieces     = 1 << 12
	// maxEncoded is the largest message in base64, or in JSON, with what is around it.
	maxEncoded = 2*maxSize + 1024
)

var bytesFiller, textFiller = func() (b, text []byte) {
	b = make([]byte, pieces+maxSize)
	random := rand.NewChaCha8([32]byte{1})
	_, _ = random.Read(b) // never fails
	text = make([]byte, len(b))
	for i, v := range b {
		text[i] = "abcdefghijklmnopqrstuvwxyz 0123456789{}[]:,<>&'=\"\\\n\tabcdefghijkl"[v%64]
	}
	return b, text
}()

func (m id) text() bool { return m.number%2 == 0 }

func (m id) filler(size int) []byte {
	at := (m.number*31 + uint64(m.publisher)*1009) % pieces
	if m.text() {
		return textFiller[at:][:size-textSize]
	}
	return bytesFiller[at:][:size-binarySize]
}

// appendTo appends the message of that many bytes, textSize at least.
func (m id) appendTo(b []byte, size int) []byte {
	if m.text() {
		end := byte('\n')
		if m.number%8 == 0 {
			end = '\r'
		}
		b = fmt.Appendf(b, "%02x%04x%016x%s%c", m.publisher, m.try, m.number, oddities, end)
	} else {
		b = append(b, mark, m.publisher)
		b = binary.BigEndian.AppendUint16(b, m.try)
		b = binary.BigEndian.AppendUint64(b, m.number)
	}
	return append(b, m.filler(size)...)
}

// parse is the inverse of appendTo. It fails when any byte is not as published.
func parse(b []byte) (m id, err error) {
	switch {
	case len(b) >= binarySize && b[0] == mark:
		m = id{publisher: b[1], try: binary.BigEndian.Uint16(b[2:]), number: binary.BigEndian.Uint64(b[4:])}
	case len(b) >= textSize && b[0] != mark:
		for _, field := range []struct {
			from, to int
			set      func(v uint64)
		}{
			{0, 2, func(v uint64) { m.publisher = uint8(v) }}, {2, 6, func(v uint64) { m.try = uint16(v) }}, {6, 22, func(v uint64) { m.number = v }},
		} {
			v, err := strconv.ParseUint(string(b[field.from:field.to]), 16, 64)
			if err != nil {
				return id{}, fmt.Errorf("a message that nobody has published: %.100q", b)
			}
			field.set(v)
		}
	default:
		return id{}, fmt.Errorf("a message that nobody has published: %.100q", b)
	}
	if m.text() != (b[0] != mark) || len(b) > maxSize || !bytes.Equal(b, m.appendTo(nil, len(b))) {
		return m, fmt.Errorf("%v of %d bytes has other bytes than were published", m, len(b))
	}
	return m, nil
}
