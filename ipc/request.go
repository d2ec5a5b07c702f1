package ipc

import (
	"bytes"
	"errors"
	"fmt"
)

// Limits of a request. Over one of the first four is a protocol error: the connection is closed, since
// nothing after it can be trusted. Over the others the command is skipped and answered with -ERR.
const (
	maxInline    = 64 << 10  // bytes of an inline command, with its end of line (Redis: PROTO_INLINE_MAX_SIZE)
	maxArguments = 1 << 20   // arguments of one command
	maxBulk      = 512 << 20 // bytes announced for one argument (Redis: proto-max-bulk-len)
	maxDigits    = 10        // of a length

	minArgument    = 64 << 10 // an argument may have as many bytes as a message, and always this many
	commandAllowed = 64 << 10 // bytes of a command beyond its largest argument
)

// protocolError ends the connection. Its text follows "ERR Protocol error: ".
type protocolError string

func (e protocolError) Error() string { return "ERR Protocol error: " + string(e) }

// skippedError is a command over a limit; it has been read to its end and dropped.
type skippedError struct {
	size, limit int  // limit 0: there was no memory for it
	argument    bool // one argument was too long, otherwise the command as a whole
}

func (e *skippedError) Error() string {
	switch {
	case e.argument:
		return fmt.Sprintf("ERR %d bytes are too long: a message has at most %d (publish.max_message)", e.size, e.limit)
	case e.limit == 0:
		return "ERR " + usedUp
	}
	return fmt.Sprintf("ERR command too long: more than %d bytes", e.limit)
}

// errMore asks for more input.
var errMore = errors.New("more input is needed")

// requests reads commands out of a buffer that its owner fills: arrays of bulk strings and inline commands
// (redis.io/docs/reference/protocol-spec), mixed freely. It remembers how far it has come in an incomplete
// command, so that no byte is looked at twice, and holds no more than one command within the limits: what is over
// a limit is dropped as it comes.
//
//	           left == 0                          left > 0
//	between commands --"*3\r\n"--> size < 0 --"$5\r\n"--> size >= 0 --5 bytes, CRLF--> left-1, size < 0
//	      '-- a line: inline            (skipping: the bytes are dropped, nothing is recorded)
type requests struct {
	buf   *buffer // nil while there is nothing in it
	share share   // of the server's memory, for buf
	start int     // of the command in hand
	at    int     // what has been parsed
	end   int     // of what has been read

	spans   []span // arguments so far, counted from start
	args    [][]byte
	left    int // arguments still to come
	size    int // of the argument being read; -1: its header is next
	scanned int // of an inline command: bytes without an end of line
	limit   int // for an argument of the command in hand

	skipping bool
	skip     int // bytes still to drop of the argument in hand
	skipped  skippedError
}

type span struct{ off, len int32 }

// next returns the arguments of the next command, at least one; they are valid until the next call or room.
// maxMessage is the limit for an argument. The error is errMore, a *skippedError (go on), or a protocolError.
func (q *requests) next(maxMessage int) ([][]byte, error) {
	args, err := q.parse(maxMessage)
	if err == errMore && q.buf != nil && q.start == 0 && q.end == len(q.buf.b) {
		return nil, q.enlarge()
	}
	return args, err
}

// enlarge makes more room for the command in hand. Where the server has no memory for it, it is skipped from here on; an inline one ends the connection.
func (q *requests) enlarge() error {
	switch {
	case q.share.grow(2 * len(q.buf.b)):
		q.grow(2 * len(q.buf.b))
	case q.left == 0:
		return protocolError(usedUp)
	default:
		q.skipping, q.skipped = true, skippedError{}
		if q.size >= 0 {
			n := min(q.skip, q.end-q.at)
			q.skip -= n
			q.at += n
		}
		q.start = q.at
	}
	return errMore
}

func (q *requests) parse(maxMessage int) ([][]byte, error) {
	for q.left == 0 {
		q.start = q.at
		if q.at == q.end {
			return nil, errMore
		}
		if q.buf.b[q.at] != '*' {
			args, err := q.inline()
			if err != nil || len(args) > 0 {
				return args, err
			}
			continue
		}
		n, err := q.number("invalid multibulk length")
		if err != nil {
			return nil, err
		}
		if n > maxArguments {
			return nil, protocolError("invalid multibulk length")
		}
		if n <= 0 {
			continue // no command and no answer, as in Redis
		}
		q.left, q.size, q.limit = n, -1, max(maxMessage, minArgument)
		q.spans = q.spans[:0]
	}
	for q.left > 0 {
		if q.size < 0 {
			if q.at == q.end {
				return nil, errMore
			}
			if c := q.buf.b[q.at]; c != '$' {
				return nil, protocolError("expected '$', got " + quoteByte(c))
			}
			n, err := q.number("invalid bulk length")
			if err != nil {
				return nil, err
			}
			if n < 0 || n > maxBulk {
				return nil, protocolError("invalid bulk length")
			}
			q.size, q.skip = n, n
			if !q.skipping && n > q.limit {
				q.skipping, q.skipped = true, skippedError{size: n, limit: maxMessage, argument: true}
			}
			if !q.skipping && q.at-q.start+n > q.limit+commandAllowed {
				q.skipping, q.skipped = true, skippedError{limit: q.limit + commandAllowed}
			}
		}
		at := q.at
		if q.skipping {
			n := min(q.skip, q.end-q.at)
			q.skip -= n
			q.at += n
			q.start = q.at
			if q.skip > 0 {
				return nil, errMore
			}
		} else {
			at += q.size
		}
		if !q.skipping {
			if q.end-q.at < q.size+2 {
				return nil, errMore
			}
		} else {
			at = q.at
			if q.end-q.at < 2 {
				return nil, errMore
			}
		}
		if q.buf.b[at] != '\r' || q.buf.b[at+1] != '\n' {
			return nil, protocolError("expected CRLF after bulk string")
		}
		if !q.skipping {
			q.spans = append(q.spans, span{int32(q.at - q.start), int32(q.size)})
		}
		q.at = at + 2
		q.left--
		q.size = -1
	}
	if q.skipping {
		q.skipping = false
		q.start = q.at
		return nil, &q.skipped
	}
	q.args = q.args[:0]
	for _, s := range q.spans {
		off := q.start + int(s.off)
		q.args = append(q.args, q.buf.b[off:off+int(s.len):off+int(s.len)])
	}
	return q.args, nil
}

// number parses "*123\r\n" or "$123\r\n" at q.at and steps over it. Redis is as strict: no sign but
// minus, no leading zero.
func (q *requests) number(invalid protocolError) (int, error) {
	b := q.buf.b[q.at+1 : q.end]
	i, n := 0, 0
	negative := len(b) > 0 && b[0] == '-'
	if negative {
		i = 1
	}
	digits := i
	for ; i < len(b) && '0' <= b[i] && b[i] <= '9'; i++ {
		if i-digits == maxDigits || i > digits && n == 0 {
			return 0, invalid
		}
		n = 10*n + int(b[i]-'0')
	}
	switch {
	case i < len(b) && (b[i] != '\r' || i == digits):
		return 0, invalid
	case i+1 < len(b) && b[i+1] != '\n':
		return 0, invalid
	case i+1 >= len(b):
		return 0, errMore
	}
	q.at += 1 + i + 2
	if negative {
		n = -n
	}
	return n, nil
}

// inline reads one line as a command; no arguments means an empty line.
func (q *requests) inline() ([][]byte, error) {
	b := q.buf.b[q.start:q.end]
	i := bytes.IndexByte(b[q.scanned:], '\n')
	if i < 0 {
		q.scanned = len(b)
		if len(b) >= maxInline {
			return nil, protocolError("too big inline request")
		}
		return nil, errMore
	}
	i += q.scanned
	if i >= maxInline {
		return nil, protocolError("too big inline request")
	}
	q.at, q.scanned = q.start+i+1, 0
	var ok bool
	if q.args, ok = splitInline(bytes.TrimSuffix(b[:i], []byte("\r")), q.args[:0]); !ok {
		return nil, protocolError("unbalanced quotes in request")
	}
	return q.args, nil
}

// room returns where the owner can read more input into; it calls read with how much it has read.
func (q *requests) room() []byte {
	switch {
	case q.buf == nil:
		q.buf = getBuffer(smallBuffer)
	case q.start == q.end:
		q.move(q.buf)
	case q.start > 0 && q.end > len(q.buf.b)/2:
		q.move(q.buf)
	case q.end < len(q.buf.b):
	default:
		q.grow(2 * len(q.buf.b))
	}
	return q.buf.b[q.end:]
}

// read tells that n bytes have been put into room.
func (q *requests) read(n int) {
	full := q.end == 0 && n == len(q.buf.b)
	q.end += n
	if full && n < largeBuffer && q.share.grow(largeBuffer) {
		q.grow(largeBuffer) // fewer system calls for one who sends much
	}
}

// grow moves the command in hand to a buffer of n bytes.
func (q *requests) grow(n int) {
	old := q.buf
	q.move(getBuffer(n))
	putBuffer(old)
}

// move moves what is not done with to the beginning of to.
func (q *requests) move(to *buffer) {
	copy(to.b, q.buf.b[q.start:q.end])
	q.buf = to
	q.at, q.end, q.start = q.at-q.start, q.end-q.start, 0
}

// pending reports whether there is input that next has not taken.
func (q *requests) pending() bool { return q.at < q.end }

// begun reports whether a part of a command is there, or was.
func (q *requests) begun() bool { return q.start < q.end || q.left > 0 }

// idle gives back what is not needed while there is no input to wait for the rest of.
func (q *requests) idle() {
	if q.start < q.end || q.buf == nil {
		return
	}
	putBuffer(q.buf)
	q.share.give()
	q.buf, q.start, q.at, q.end = nil, 0, 0, 0
	if cap(q.spans) > 64 || cap(q.args) > 64 {
		q.spans, q.args = nil, nil
	}
}

// splitInline splits a line into words by Redis's rules (sdssplitargs): words are separated by white space;
// "…" takes \xHH, \n \r \t \b \a and \ before any other byte; '…' takes only \'; after a closing quote comes white
// space or the end. A quote that is not closed, or closed in a word's middle, is ok = false. Other than Redis,
// a NUL byte is a byte like any other. The words are appended to args and take the memory of line.
func splitInline(line []byte, args [][]byte) (_ [][]byte, ok bool) {
	w := 0 // words are never longer than their source, so they are written over it
	for i := 0; ; {
		for i < len(line) && isSpace(line[i]) {
			i++
		}
		if i == len(line) {
			return args, true
		}
		start := w
		for i < len(line) && !isSpace(line[i]) {
			c := line[i]
			i++
			switch c {
			case '"', '\'':
				if i, w, ok = unquote(line, i, w, c); !ok {
					return args, false
				}
			default:
				line[w] = c
				w++
			}
		}
		args = append(args, line[start:w:w])
	}
}

// unquote copies from line[i:], just after an opening quote, to line[w:] until the closing quote, which must
// end the word.
func unquote(line []byte, i, w int, quote byte) (int, int, bool) {
	for i < len(line) {
		c := line[i]
		i++
		switch {
		case c == quote:
			return i, w, i == len(line) || isSpace(line[i])
		case c == '\\' && quote == '"' && i+2 < len(line) && line[i] == 'x' && unhex(line[i+1]) >= 0 && unhex(line[i+2]) >= 0:
			c = byte(unhex(line[i+1])<<4 | unhex(line[i+2]))
			i += 3
		case c == '\\' && quote == '"' && i < len(line):
			c = line[i]
			i++
			switch c {
			case 'n':
				c = '\n'
			case 'r':
				c = '\r'
			case 't':
				c = '\t'
			case 'b':
				c = '\b'
			case 'a':
				c = '\a'
			}
		case c == '\\' && quote == '\'' && i < len(line) && line[i] == '\'':
			c = '\''
			i++
		}
		line[w] = c
		w++
	}
	return i, w, false
}

func unhex(c byte) int {
	switch {
	case '0' <= c && c <= '9':
		return int(c - '0')
	case 'a' <= c && c <= 'f':
		return int(c-'a') + 10
	case 'A' <= c && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}

// isSpace is isspace(3) in the C locale.
func isSpace(c byte) bool { return c == ' ' || '\t' <= c && c <= '\r' }

// quoteByte shows a byte in an error: printable as it is, otherwise as \xHH.
func quoteByte(c byte) string {
	if ' ' <= c && c <= '~' {
		return "'" + string(rune(c)) + "'"
	}
	return fmt.Sprintf(`'\x%02x'`, c)
}
