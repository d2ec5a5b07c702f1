package encode

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"math/rand/v2"

	"wscast/daemon/frame"
)

// Server-sent events: https://html.spec.whatwg.org/multipage/server-sent-events.html, section 9.2.5 for the stream's format.

// KeepAlive is a comment: it makes every proxy on the way see that the connection is alive, and is seen by no page.
const KeepAlive = ":\n\n"

// Base64Event is the type of events whose data are the message's bytes in base64: a stream of events is text, and a carriage return in
// it is the end of a line, whatever it was meant to be.
const Base64Event = "base64"

func appendEventID(dst []byte, m *Message) []byte {
	dst = append(dst, "id: "...)
	dst = m.ID.Append(dst)
	return append(dst, '\n')
}

// appendEvent appends an event with the message's own text. A line feed in it begins a new data line, which the reader puts together again.
func appendEvent(dst []byte, m *Message) []byte {
	dst = appendEventID(dst, m)
	if m.Op != frame.Text || bytes.IndexByte(m.Data, '\r') >= 0 {
		dst = append(dst, "event: "+Base64Event+"\ndata: "...)
		dst = base64.StdEncoding.AppendEncode(dst, m.Data)
		return append(dst, "\n\n"...)
	}
	return AppendEventText(dst, m.Data)
}

// AppendEventText appends the data lines of a text without carriage returns, and the empty line that ends an event.
func AppendEventText(dst, text []byte) []byte {
	for rest := text; ; {
		line, next, more := bytes.Cut(rest, []byte{'\n'})
		dst = append(dst, "data: "...)
		dst = append(dst, line...)
		dst = append(dst, '\n')
		if !more {
			return append(dst, '\n')
		}
		rest = next
	}
}

// AppendRetry appends the end of a stream: how long the reader is to wait until it comes back, 1 to 5 seconds at random so that not all of
// them come at once, and why in a comment.
func AppendRetry(dst []byte, reason string) []byte {
	return fmt.Appendf(dst, ": %s\nretry: %d\n\n", reason, 1000+rand.IntN(4000))
}

// AppendPosition appends an id without an event: the reader comes back with it if it is cut off before the first one.
func AppendPosition(dst []byte, id ID) []byte {
	return append(id.Append(append(dst, "id: "...)), "\n\n"...)
}

// AppendIncomplete appends the event that says that messages of a channel are gone which were asked for.
func AppendIncomplete(dst []byte, channel string) []byte {
	return append(dst, "event: incomplete\ndata: "+channel+"\n\n"...)
}
