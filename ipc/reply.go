package ipc

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
)

// Both directions of RESP as the client sees them: commands it sends, replies it reads. The client never
// says HELLO, so replies are RESP2 (redis.io/docs/reference/protocol-spec): + - : $ and flat * arrays.

const maxReply = 512 << 20 // bytes in one reply, and items in an array; Redis's own limit of a bulk string

// appendCommand appends a command as an array of bulk strings.
func appendCommand(b []byte, name string, args ...string) []byte {
	b = appendHeader(b, '*', 1+len(args))
	b = appendBulk(b, name)
	for _, a := range args {
		b = appendBulk(b, a)
	}
	return b
}

// appendPublish appends PUBLISH, with an id unless that is "".
func appendPublish(b []byte, channel string, message []byte, id string) []byte {
	if id == "" {
		b = append(b, "*3\r\n$7\r\nPUBLISH\r\n"...)
	} else {
		b = append(b, "*5\r\n$7\r\nPUBLISH\r\n"...)
	}
	b = appendBulk(b, channel)
	b = appendBulk(b, message)
	if id != "" {
		b = append(b, "$2\r\nID\r\n"...)
		b = appendBulk(b, id)
	}
	return b
}

func appendBulk[T string | []byte](b []byte, s T) []byte {
	b = appendHeader(b, '$', len(s))
	b = append(b, s...)
	return append(b, '\r', '\n')
}

// appendHeader appends a kind, a number and the end of the line: ":42\r\n", "*3\r\n".
func appendHeader(b []byte, kind byte, n int) []byte {
	b = append(b, kind)
	if uint(n) < 10 {
		return append(b, byte('0'+n), '\r', '\n')
	}
	b = strconv.AppendInt(b, int64(n), 10)
	return append(b, '\r', '\n')
}

// reply is one reply; its memory is used again by the next read.
type reply struct {
	kind  byte     // + - : $ *
	text  []byte   // of + - : $
	items [][]byte // of *

	mem  []byte
	ends []int
}

var errNotRESP = errors.New("what came back is not RESP: is this wscastd's publish socket?")

func (v *reply) read(r *bufio.Reader) error {
	if cap(v.mem) > 64<<10 {
		v.mem = nil // a large one is not kept for the small ones after it
	}
	v.mem, v.ends, v.items, v.text = v.mem[:0], v.ends[:0], v.items[:0], nil
	kind, n, err := v.value(r)
	if err != nil {
		return err
	}
	v.kind = kind
	if kind != '*' {
		v.text = v.mem
		return nil
	}
	for range n {
		kind, _, err := v.value(r)
		if err != nil {
			return noEOF(err)
		}
		if kind == '*' {
			return errNotRESP // no reply that the client asks for nests
		}
		v.ends = append(v.ends, len(v.mem))
	}
	start := 0
	for _, end := range v.ends {
		v.items = append(v.items, v.mem[start:end:end])
		start = end
	}
	return nil
}

// value reads one value and appends its text to mem; of an array it reads the header and returns the count.
func (v *reply) value(r *bufio.Reader) (kind byte, n int, err error) {
	line, err := r.ReadSlice('\n')
	switch {
	case errors.Is(err, bufio.ErrBufferFull):
		return 0, 0, errNotRESP
	case err != nil && len(line) > 0:
		return 0, 0, noEOF(err)
	case err != nil:
		return 0, 0, err
	case len(line) < 3 || line[len(line)-2] != '\r':
		return 0, 0, errNotRESP
	}
	kind, line = line[0], line[1:len(line)-2]
	switch kind {
	case '+', '-', ':':
		v.mem = append(v.mem, line...)
		return kind, 0, nil
	case '$', '*':
	default:
		return 0, 0, errNotRESP
	}
	n, err = strconv.Atoi(string(line))
	if err != nil || n < -1 || n > maxReply {
		return 0, 0, errNotRESP
	}
	if n = max(n, 0); kind == '*' { // a null reads as empty
		return kind, n, nil
	}
	if string(line) == "-1" {
		return kind, 0, nil
	}
	return kind, n, v.bulk(r, n)
}

// bulk appends n bytes and takes the end of line after them. It grows with what has come, not with what
// was announced.
func (v *reply) bulk(r *bufio.Reader, n int) error {
	for n > 0 {
		b, err := r.Peek(min(n, r.Size()))
		if err != nil && len(b) == 0 {
			return noEOF(err)
		}
		v.mem = append(v.mem, b...)
		n -= len(b)
		if _, err := r.Discard(len(b)); err != nil {
			return err
		}
	}
	end, err := r.Peek(2)
	if err != nil {
		return noEOF(err)
	}
	if !bytes.Equal(end, []byte("\r\n")) {
		return fmt.Errorf("a bulk string does not end where it said: %w", errNotRESP)
	}
	_, err = r.Discard(2)
	return err
}

func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
