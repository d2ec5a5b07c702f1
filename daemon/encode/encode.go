package encode

import (
	"bytes"
	"encoding/base64"
	"strconv"
	"time"
	"unicode/utf8"

	"wscast/daemon/frame"
)

// Encoding is how a client reads messages.
type Encoding uint8

// The encodings. Their numbers are in the connection table.
const (
	Raw        Encoding = iota // a WebSocket frame with the message's own bytes, as it is in the log
	JSON                       // a WebSocket text frame with the envelope
	Events                     // a server-sent event with the message's own text
	JSONEvents                 // a server-sent event with the envelope
	encodings

	// Deflate is added to Raw or JSON: messages are compressed where that makes them smaller (RFC 7692).
	Deflate Encoding = 0x10
)

// Valid tells whether e is one of the encodings: what comes from memory that may be damaged need not be.
func (e Encoding) Valid() bool {
	return e.Plain() < encodings && (!e.Deflates() || e.Plain().WebSocket()) && e&^Deflate == e.Plain()
}

// Plain is the encoding without compression.
func (e Encoding) Plain() Encoding { return e & 0xf }

// Deflates tells whether messages are compressed.
func (e Encoding) Deflates() bool { return e&Deflate != 0 }

// WebSocket tells whether the client speaks RFC 6455; one that does not is an event stream and says nothing after its request.
func (e Encoding) WebSocket() bool { return e.Plain() <= JSON }

// Message is what there is to encode.
type Message struct {
	Channel string // its name has no characters that JSON has to escape
	ID      ID
	Time    int64        // Unix time in nanoseconds
	Op      frame.Opcode // frame.Text: Data is valid UTF-8; frame.Binary
	Data    []byte
}

// Encoder encodes for one goroutine. The zero value is ready for use.
type Encoder struct {
	deflater *deflater // made when it is needed: it takes some 600 KiB
}

// Append appends the encoded message to dst.
func (n *Encoder) Append(dst []byte, e Encoding, m *Message) []byte {
	from := len(dst)
	switch e.Plain() {
	case JSON:
		dst = appendFrame(dst, m)
	case Events:
		return appendEvent(dst, m)
	case JSONEvents:
		dst = appendEventID(dst, m)
		dst = append(dst, "data: "...)
		dst = appendEnvelope(dst, m)
		return append(dst, "\n\n"...)
	default:
		dst = append(frame.AppendHeader(dst, m.Op, len(m.Data)), m.Data...)
	}
	if e.Deflates() {
		dst = n.deflate(dst, from)
	}
	return dst
}

// appendFrame appends the envelope as a text frame. The header comes first and its size depends on that of the payload: room is
// left for the largest one, and what is too much is closed up.
func appendFrame(dst []byte, m *Message) []byte {
	from := len(dst)
	var header [frame.MaxHeader]byte
	dst = append(dst, header[:]...)
	dst = appendEnvelope(dst, m)
	payload := dst[from+frame.MaxHeader:]
	n := frame.PutHeader(header[:], frame.Text, len(payload))
	copy(dst[from:], header[:n])
	copy(dst[from+n:], payload)
	return dst[:from+n+len(payload)]
}

// appendEnvelope appends the envelope, one line of JSON.
func appendEnvelope(dst []byte, m *Message) []byte {
	dst = append(dst, `{"channel":"`...)
	dst = append(dst, m.Channel...)
	dst = append(dst, `","id":"`...)
	dst = m.ID.Append(dst)
	dst = append(dst, `","time":`...)
	dst = strconv.AppendInt(dst, m.Time/int64(time.Millisecond), 10)
	if m.Op == frame.Text {
		dst = append(dst, `,"data":`...)
		dst = AppendString(dst, m.Data)
	} else {
		dst = append(dst, `,"base64":"`...)
		dst = base64.StdEncoding.AppendEncode(dst, m.Data)
		dst = append(dst, '"')
	}
	return append(dst, '}')
}

const hex = "0123456789abcdef"

// plain are the bytes that stand for themselves in a string of JSON (RFC 8259 section 7).
var plain = func() (plain [256]bool) {
	for c := range plain {
		plain[c] = c >= ' ' && c != '"' && c != '\\'
	}
	return plain
}()

// AppendString appends text as a string of JSON. What is not UTF-8 in it becomes U+FFFD.
func AppendString(dst []byte, text []byte) []byte {
	dst = append(dst, '"')
	if !utf8.Valid(text) {
		text = bytes.ToValidUTF8(text, []byte("\uFFFD"))
	}
	from := 0
	for i, c := range text {
		if plain[c] {
			continue
		}
		dst = append(dst, text[from:i]...)
		from = i + 1
		switch c {
		case '"', '\\':
			dst = append(dst, '\\', c)
		case '\n':
			dst = append(dst, `\n`...)
		case '\r':
			dst = append(dst, `\r`...)
		case '\t':
			dst = append(dst, `\t`...)
		default:
			dst = append(dst, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		}
	}
	dst = append(dst, text[from:]...)
	return append(dst, '"')
}
