package crowd

import (
	"bytes"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
)

// Kind is how a client listens (doc/protocol.txt, section 6).
type Kind uint8

const (
	Raw          Kind = iota // frames with the messages of one channel
	Deflated                 // the same with permessage-deflate
	JSON                     // wscast.v1.json, all channels
	JSONDeflated             // the same with permessage-deflate
	Events                   // an event stream of one channel
	ManyEvents               // an event stream with the envelopes of all channels
	kinds
)

// Kinds are all of them.
var Kinds = []Kind{Raw, Deflated, JSON, JSONDeflated, Events, ManyEvents}

func (k Kind) String() string {
	return [kinds]string{"raw", "raw deflated", "json", "json deflated", "events", "events of several channels"}[k]
}

func (k Kind) deflates() bool    { return k == Deflated || k == JSONDeflated }
func (k Kind) json() bool        { return k == JSON || k == JSONDeflated }
func (k Kind) webSocket() bool   { return k <= JSONDeflated }
func (k Kind) allChannels() bool { return k.json() || k == ManyEvents }

// names of the channels.
func channelName(n int) string {
	if n == 0 {
		return Channel
	}
	return fmt.Sprint(Channel, "/", n)
}

// The key of the example in RFC 6455, section 1.3, and the answer to it. Every client uses it: a server has no way to profit from that.
const (
	handshakeKey    = "dGhlIHNhbXBsZSBub25jZQ=="
	handshakeAccept = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
)

// request opens a client. last is the id of the last message that it has got, "" for one that comes for the first time.
func (c *Crowd) request(cl *client, last string) []byte {
	path, query, headers := "/websocket", url.Values{}, ""
	switch {
	case !cl.kind.allChannels():
		path += "/" + channelName(cl.audience.channels[0])
	case cl.subscribes():
		// With commands, when it is open.
	default:
		for _, channel := range cl.audience.channels {
			query.Add("channel", channelName(channel))
		}
	}
	if cl.kind == ManyEvents {
		query.Set("envelope", "")
	}
	switch {
	case last == "":
	case !cl.kind.webSocket() && cl.number%2 == 0:
		headers = "Last-Event-ID: " + last + "\r\n" // as a browser does
	default:
		query.Set("last_event_id", last)
	}
	if len(query) > 0 {
		path += "?" + query.Encode()
	}
	if cl.kind.webSocket() {
		headers += "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + handshakeKey + "\r\n"
	} else {
		headers += "Accept: text/event-stream\r\n"
	}
	if cl.kind.json() {
		headers += "Sec-WebSocket-Protocol: wscast.v1.json\r\n"
	}
	if cl.kind.deflates() {
		headers += "Sec-WebSocket-Extensions: permessage-deflate\r\n"
	}
	return []byte("GET " + path + " HTTP/1.1\r\nHost: localhost\r\n" + headers + "\r\n")
}

// answer returns the length of the server's answer at the front of b, or 0 when its end has not come.
func (k Kind) answer(b []byte) (int, error) {
	end := bytes.Index(b, []byte("\r\n\r\n"))
	switch {
	case end < 0 && len(b) > 4096:
		return 0, errors.New("the answer to the handshake is longer than 4096 bytes")
	case end < 0:
		return 0, nil
	}
	head, want := strings.ToLower(string(b[:end+2])), []string{}
	status := "http/1.1 101 "
	if k.webSocket() {
		want = append(want, "Sec-WebSocket-Accept: "+handshakeAccept)
	} else {
		status = "http/1.1 200 "
		want = append(want, "Content-Type: text/event-stream", "X-Accel-Buffering: no")
	}
	if k.json() {
		want = append(want, "Sec-WebSocket-Protocol: wscast.v1.json")
	}
	if !strings.HasPrefix(head, status) {
		return 0, fmt.Errorf("the handshake was answered with %.200q", b)
	}
	for _, header := range want {
		if !strings.Contains(head, "\r\n"+strings.ToLower(header)+"\r\n") {
			name, _, _ := strings.Cut(header, ":")
			return 0, fmt.Errorf("the answer to the handshake has not the right %s", name)
		}
	}
	if agreed := strings.Contains(head, "\r\nsec-websocket-extensions: permessage-deflate"); agreed != k.deflates() {
		return 0, fmt.Errorf("the answer to the handshake of a client of kind %s: permessage-deflate is %t", k, agreed)
	}
	return end + 4, nil
}

// ascending returns an error unless the second id of messages is of the same log as the first one, and later.
func ascending(first, second string) error {
	a, b, err := parseNames(first, second)
	if err == nil && (first[:16] != second[:16] || a >= b) {
		err = fmt.Errorf("the id %s came after %s", second, first)
	}
	return err
}

func parseNames(first, second string) (a, b uint64, err error) {
	numbers := [2]uint64{}
	for i, name := range []string{first, second} {
		if len(name) < 18 || name[16] != '-' {
			return 0, 0, fmt.Errorf("%q is no id of a message", name)
		}
		if _, err := strconv.ParseUint(name[:16], 16, 64); err != nil {
			return 0, 0, fmt.Errorf("%q is no id of a message", name)
		}
		if numbers[i], err = strconv.ParseUint(name[17:], 10, 64); err != nil {
			return 0, 0, fmt.Errorf("%q is no id of a message", name)
		}
	}
	return numbers[0], numbers[1], nil
}
