package crowd

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
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

// A message is its id and filler, which is another piece of the same random bytes for each message. The first byte is in no UTF-8, so
// messages go out as binary frames.
const (
	mark    = 0xff
	idSize  = 12
	maxSize = 1 << 20
	pieces  = 1 << 12
)

var filler = func() []byte {
	b := make([]byte, pieces+maxSize)
	random := rand.NewChaCha8([32]byte{1})
	_, _ = random.Read(b) // never fails
	return b
}()

func (m id) filler(size int) []byte {
	at := (m.number*31 + uint64(m.publisher)*1009) % pieces
	return filler[at:][:size-idSize]
}

// appendTo appends the message of that many bytes, idSize at least.
func (m id) appendTo(b []byte, size int) []byte {
	b = append(b, mark, m.publisher)
	b = binary.BigEndian.AppendUint16(b, m.try)
	b = binary.BigEndian.AppendUint64(b, m.number)
	return append(b, m.filler(size)...)
}

// parse is the inverse of appendTo. It fails when any byte is not as published.
func parse(b []byte) (id, error) {
	if len(b) < idSize || b[0] != mark {
		return id{}, fmt.Errorf("a message that nobody has published: %.100q", b)
	}
	m := id{publisher: b[1], try: binary.BigEndian.Uint16(b[2:]), number: binary.BigEndian.Uint64(b[4:])}
	if !bytes.Equal(b[idSize:], m.filler(len(b))) {
		return id{}, fmt.Errorf("%v of %d bytes has other bytes than were published", m, len(b))
	}
	return m, nil
}

// sequence judges the messages of all publishers: those of each come in order, a later try of a message only right behind it.
type sequence map[uint8]id // the last of each

// take judges the next message. With late, any message may be a publisher's first one.
func (s sequence) take(m id, late bool) error {
	last, known := s[m.publisher]
	switch {
	case !known && late:
	case m.number == last.number+1:
	case m.number == last.number && m.try > last.try:
	default:
		return fmt.Errorf("%v came after %v", m, last)
	}
	s[m.publisher] = m
	return nil
}
