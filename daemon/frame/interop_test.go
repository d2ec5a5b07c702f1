package frame

import (
	"bufio"
	"bytes"
	"crypto/sha1"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/gorilla/websocket"
)

// wire is the network of a gorilla client without a network: what the client has sent is in
// sent, what it will receive in received. It answers the opening handshake itself.
type wire struct {
	sent, received bytes.Buffer
	upgraded       bool
}

func (w *wire) Write(b []byte) (int, error) {
	w.sent.Write(b)
	if !w.upgraded && bytes.HasSuffix(w.sent.Bytes(), []byte("\r\n\r\n")) {
		request, err := http.ReadRequest(bufio.NewReader(&w.sent))
		if err != nil {
			return 0, err
		}
		// RFC 6455, 4.2.2
		accept := sha1.Sum([]byte(request.Header.Get("Sec-WebSocket-Key") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
		fmt.Fprintf(&w.received, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %s\r\n\r\n",
			base64.StdEncoding.EncodeToString(accept[:]))
		w.sent.Reset()
		w.upgraded = true
	}
	return len(b), nil
}

func (w *wire) Read(b []byte) (int, error)       { return w.received.Read(b) }
func (w *wire) Close() error                     { return nil }
func (w *wire) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (w *wire) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (w *wire) SetDeadline(time.Time) error      { return nil }
func (w *wire) SetReadDeadline(time.Time) error  { return nil }
func (w *wire) SetWriteDeadline(time.Time) error { return nil }

// connect returns a gorilla client whose frames have at most so many bytes of payload.
func connect(t *testing.T, fragment int) (*websocket.Conn, *wire) {
	t.Helper()
	w := &wire{}
	dialer := websocket.Dialer{
		NetDial:         func(network, address string) (net.Conn, error) { return w, nil },
		WriteBufferSize: fragment,
	}
	c, _, err := dialer.Dial("ws://wscast.test/websocket", nil)
	if err != nil {
		t.Fatal(err)
	}
	return c, w
}

// message is a whole message, put together from its fragments, or a control frame.
type message struct {
	op      Opcode
	payload string
}

// collect parses all of the stream and puts the messages together.
func collect(t *testing.T, stream []byte) (all []message, fragments int, err *Error) {
	t.Helper()
	var p Parser
	var payload []byte
	for len(stream) > 0 {
		f, n, err := p.Next(stream, noLimit)
		switch {
		case err != nil:
			return all, fragments, err
		case n == 0:
			t.Fatalf("incomplete frame at the end: % x", stream)
		case f.Op.control():
			all = append(all, message{f.Op, string(f.Payload)})
		default:
			fragments++
			payload = append(payload, f.Payload...)
			if f.Fin {
				all = append(all, message{f.Message, string(payload)})
				payload = payload[:0]
			}
		}
		stream = stream[n:]
	}
	return all, fragments, nil
}

// What a gorilla client sends, in frames of different sizes, is what is parsed.
func TestFromGorilla(t *testing.T) {
	random := rand.New(rand.NewPCG(6455, 3629))
	runes := []rune("az \x00\u007f\u0080ßü\u07ff\u0800日本\ud7ff\ue000\uffff\U00010000🌍\U0010ffff")
	for _, fragment := range []int{1, 2, 3, 7, 64, 126, 4096, 1 << 20} {
		c, w := connect(t, fragment)
		var want []message
		send := func(op Opcode, payload string) {
			t.Helper()
			want = append(want, message{op, payload})
			var err error
			if op.control() { // WriteMessage would cut them into fragments
				err = c.WriteControl(int(op), []byte(payload), time.Time{})
			} else {
				err = c.WriteMessage(int(op), []byte(payload))
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		for _, n := range []int{0, 1, 125, 126, 127, 1000, 65535, 65536, 70000} {
			if n/fragment > 10000 {
				continue
			}
			b := make([]byte, n)
			for i := range b {
				b[i] = byte(random.Uint32())
			}
			send(Binary, string(b))
			var s strings.Builder
			for s.Len() < n {
				s.WriteRune(runes[random.IntN(len(runes))])
			}
			send(Text, s.String())
			send(Ping, s.String()[:min(n, 125)])
			send(Pong, string(b[:min(n, 125)]))
		}
		send(Close, string(websocket.FormatCloseMessage(1001, "gone, grüße")))

		got, fragments, err := collect(t, w.sent.Bytes())
		if err != nil {
			t.Fatalf("frames of up to %d bytes: %v", fragment, err)
		}
		if len(got) != len(want) {
			t.Fatalf("frames of up to %d bytes: %d messages, want %d", fragment, len(got), len(want))
		}
		for i := range want {
			if got[i] != want[i] {
				t.Fatalf("frames of up to %d bytes: message %d is %d, %.80q; want %d, %.80q", fragment, i, got[i].op, got[i].payload, want[i].op, want[i].payload)
			}
		}
		if fragment < 64 && fragments < 2*len(want) {
			t.Errorf("frames of up to %d bytes: %d data frames only: the client does not fragment", fragment, fragments)
		}
		if code, reason, err := ParseClose([]byte(got[len(got)-1].payload)); code != 1001 || reason != "gone, grüße" || err != nil {
			t.Errorf("close is %d, %q, %v", code, reason, err)
		}
	}
}

// gorilla sends text unchecked: it is refused here exactly if it is not UTF-8.
func TestTextFromGorilla(t *testing.T) {
	for _, class := range sequences {
		for _, s := range class.bytes {
			for _, fragment := range []int{1, 2, 3, 4096} {
				c, w := connect(t, fragment)
				if err := c.WriteMessage(websocket.TextMessage, []byte(s)); err != nil {
					t.Fatal(err)
				}
				got, _, err := collect(t, w.sent.Bytes())
				switch {
				case utf8.ValidString(s):
					if err != nil || len(got) != 1 || got[0] != (message{Text, s}) {
						t.Errorf("%s: %q in frames of up to %d bytes: got %q, error %v", class.name, s, fragment, got, err)
					}
				case err == nil || err.Code != CloseInvalidData || len(got) != 0:
					t.Errorf("%s: %q in frames of up to %d bytes: got %q, error %v, want 1007", class.name, s, fragment, got, err)
				}
			}
		}
	}
}

// What is built here is what a gorilla client receives.
func TestToGorilla(t *testing.T) {
	c, w := connect(t, 0)
	var controls []message
	note := func(op Opcode) func(string) error {
		return func(payload string) error {
			controls = append(controls, message{op, payload})
			return nil
		}
	}
	c.SetPingHandler(note(Ping))
	c.SetPongHandler(note(Pong))

	for _, n := range []int{0, 1, 125, 126, 127, 65535, 65536, 70000} {
		for _, op := range []Opcode{Text, Binary} {
			want := bytes.Repeat([]byte{'m'}, n)
			b := AppendPing(nil, want[:min(n, 125)])
			b = AppendPong(b, want[:min(n, 125)])
			b = append(AppendHeader(b, op, n), want...)
			w.received.Write(b)
			kind, got, err := c.ReadMessage()
			if err != nil || kind != int(op) || !bytes.Equal(got, want) {
				t.Fatalf("message of %d bytes, opcode %d: got %d, %d bytes, %v", n, op, kind, len(got), err)
			}
			if len(controls) != 2 || controls[0] != (message{Ping, string(want[:min(n, 125)])}) || controls[1].op != Pong {
				t.Fatalf("control frames of %d bytes: got %q", n, controls)
			}
			controls = nil
		}
	}

	for _, want := range []websocket.CloseError{
		{Code: 1000, Text: ""}, {Code: 1012, Text: "back in a moment"}, {Code: 4999, Text: strings.Repeat("ü", 61)}, {Code: 1005, Text: ""},
	} {
		c, w := connect(t, 0)
		w.received.Write(AppendClose(nil, uint16(want.Code), want.Text))
		_, _, err := c.ReadMessage()
		var got *websocket.CloseError
		if !errors.As(err, &got) || *got != want {
			t.Errorf("close %d, %q arrives as %v", want.Code, want.Text, err)
		}
		if _, err := w.received.ReadByte(); err != io.EOF {
			t.Errorf("close %d, %q: the client left bytes unread", want.Code, want.Text)
		}
	}
}
