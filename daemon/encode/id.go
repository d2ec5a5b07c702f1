package encode

import (
	"errors"
	"strconv"
	"strings"
)

// ID is what clients know a message by: the log it is in, and its place there. In text it is 16 hexadecimal digits, a hyphen and a decimal number.
type ID struct {
	Epoch uint64 // of the log
	Seq   uint64 // sequence number, from 1
}

// MaxID is the longest ID, in bytes of text.
const MaxID = 16 + 1 + 20

// Append appends the text.
func (id ID) Append(dst []byte) []byte {
	for shift := 60; shift >= 0; shift -= 4 {
		dst = append(dst, hex[id.Epoch>>shift&15])
	}
	dst = append(dst, '-')
	return strconv.AppendUint(dst, id.Seq, 10)
}

// String implements fmt.Stringer.
func (id ID) String() string { return string(id.Append(nil)) }

var errID = errors.New("not the id of a message: 16 hexadecimal digits, a hyphen and a number, as it came with the message")

// ParseID reads what Append writes, and nothing else.
func ParseID(text string) (ID, error) {
	epoch, seq, ok := strings.Cut(text, "-")
	if !ok || len(epoch) != 16 || len(seq) == 0 || seq[0] == '0' && len(seq) > 1 || seq[0] == '+' || strings.ToLower(epoch) != epoch {
		return ID{}, errID
	}
	e, err := strconv.ParseUint(epoch, 16, 64)
	if err != nil {
		return ID{}, errID
	}
	s, err := strconv.ParseUint(seq, 10, 64)
	if err != nil {
		return ID{}, errID
	}
	return ID{Epoch: e, Seq: s}, nil
}
