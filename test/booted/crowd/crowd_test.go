package crowd

import (
	"bufio"
	"bytes"
	"compress/flate"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"wscast/test/harness"
)

func TestMain(m *testing.M) { os.Exit(harness.Main(m)) }

// recorder is a test that may fail.
type recorder struct {
	testing.TB
	said    []string
	cleanup []func()
}

func (r *recorder) Helper()                   {}
func (r *recorder) Error(args ...any)         { r.said = append(r.said, fmt.Sprint(args...)) }
func (r *recorder) Fatal(args ...any)         { r.Error(args...); r.FailNow() }
func (r *recorder) Fatalf(f string, a ...any) { r.Fatal(fmt.Sprintf(f, a...)) }
func (r *recorder) FailNow()                  { runtime.Goexit() }
func (r *recorder) Cleanup(f func())          { r.cleanup = append(r.cleanup, f) }

// judged runs a test with two clients of a server, and returns what it says. Client 0 has its messages before client 1 is served. messages is how many
// each has to get.
func judged(t *testing.T, messages int, first, second string) []string {
	t.Helper()
	return judgedAs(t, Raw, messages, first, second)
}

// judgedAs is judged for clients of a kind.
func judgedAs(t *testing.T, kind Kind, messages int, first, second string) []string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var server sync.WaitGroup
	defer server.Wait()
	defer l.Close()
	begin := []chan struct{}{make(chan struct{}), make(chan struct{})}
	server.Go(func() {
		for i, bytes := range []string{first, second} {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			server.Go(func() {
				defer conn.Close()
				in := bufio.NewReader(conn)
				if _, err := http.ReadRequest(in); err != nil {
					return
				}
				fmt.Fprint(conn, answers[kind])
				<-begin[i]
				if _, err := conn.Write([]byte(bytes)); err != nil || strings.HasSuffix(bytes, ended) {
					return
				}
				_, _ = in.WriteTo(nothing{})
			})
		}
	})
	r := &recorder{TB: t}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() {
			for _, f := range slices.Backward(r.cleanup) {
				f()
			}
		}()
		c := GatherMix(r, "tcp", l.Addr().String(), Mix{Clients: 2, Kinds: []Kind{kind}})
		close(begin[0])
		c.await("client 0", func() bool { return len(c.audiences[0].order) == messages })
		close(begin[1])
		c.await("client 1", func() bool { return c.complete() == messages })
	}()
	<-done
	for _, b := range begin {
		select {
		case <-b:
		default:
			close(b)
		}
	}
	return r.said
}

const (
	upgraded = "HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: " + handshakeAccept + "\r\n"
	streamed = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nX-Accel-Buffering: no\r\n\r\nretry: 1500\n\nid: 00000000000000ff-0\n\n"
)

// answers are the beginning of each kind's connection.
var answers = map[Kind]string{
	Raw:        upgraded + "\r\n",
	Deflated:   upgraded + "Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover\r\n\r\n",
	Events:     streamed,
	ManyEvents: streamed,
	JSON: upgraded + "Sec-WebSocket-Protocol: wscast.v1.json\r\n\r\n" +
		object(`{"reply":"welcome","greeting":"","ping":25000,"max_subscriptions":100}`) +
		object(`{"reply":"subscribed","channel":"crowd","id":"00000000000000ff-0","complete":true}`),
}

// object is a text frame of less than 64 KiB.
func object(text string) string {
	if len(text) < 126 {
		return "\x81" + string([]byte{byte(len(text))}) + text
	}
	return "\x81\x7e" + string([]byte{byte(len(text) >> 8), byte(len(text))}) + text
}

type nothing struct{}

func (nothing) Write(b []byte) (int, error) { return len(b), nil }

// ended is behind what a server sends before it closes: a pong, of which nobody has heard.
const ended = "\x8a\x00"

// framed is a message as a server frames it.
func framed(publisher uint8, number uint64, try uint16) string {
	m := id{publisher: publisher, number: number, try: try}
	opcode := "\x82"
	if m.text() {
		opcode = "\x81"
	}
	return opcode + "d" + string(m.appendTo(nil, 'd'))
}

func TestWhatIsRight(t *testing.T) {
	all := framed(0, 1, 1) + framed(1, 1, 1) + framed(0, 2, 1) + framed(0, 2, 3) + framed(1, 2, 1)
	if said := judged(t, 5, all, all); said != nil {
		t.Errorf("found fault with what is right: %q", said)
	}
}

func TestWhatIsWrong(t *testing.T) {
	one, two, three := framed(0, 1, 1), framed(0, 2, 1), framed(0, 3, 1)
	broken := []byte(two)
	broken[50]++
	for _, c := range []struct{ name, first, second, want string }{
		{"lost by all", one + three, "", "message 3 of publisher 0 (try 1) came after message 1"},
		{"repeated to all", one + one, "", "message 1 of publisher 0 (try 1) came after message 1"},
		{"lost by one", one + two + three, one + three, "others got message 2"},
		{"repeated to one", one + two + three, one + one, "others got message 2"},
		{"in another order", one + two + framed(1, 1, 1), one + framed(1, 1, 1), "others got message 2"},
		{"another byte", one + string(broken), "", "has other bytes"},
		{"text", one + "\x81\x01x", "", "nobody has published"},
		{"text for binary", one + "\x82" + two[1:], "", "came as the other of text and binary"},
		{"compressed", one + "\xc2" + two[1:], "", "a frame begins with 0xc2"},
		{"masked", one + "\x8a\x80\x01\x02\x03\x04", "", "is masked"},
		{"a byte too many", one + "\x00" + two, "", "a frame begins with 0x00"},
		{"closed", one + "\x88\x11\x03\xf4service restart", "", `closed with 1012 "service restart"`},
		{"a pong to nothing", one + "\x8a\x08\x00\x00\x00\x00\x00\x00\x00\x01", "", "0 pings were sent"},
		{"the end", one + two[:50] + ended, "", "EOF"},
	} {
		t.Run(c.name, func(t *testing.T) {
			said := judged(t, 3, c.first, c.second)
			if len(said) == 0 || !strings.Contains(said[0], c.want) {
				t.Errorf("said %q, expected %q", said, c.want)
			}
		})
	}
}

// envelope is a message as wscast.v1.json has it.
func envelope(publisher uint8, number uint64, name int) string {
	m := id{publisher: publisher, number: number, try: 1}
	fields := map[string]any{"channel": "crowd", "id": fmt.Sprintf("00000000000000ff-%d", name), "time": 1764000000123}
	if b := m.appendTo(nil, 100); m.text() {
		fields["data"] = string(b)
	} else {
		fields["base64"] = b
	}
	text, _ := json.Marshal(fields)
	return string(text)
}

// happening is a message as an event.
func happening(publisher uint8, number uint64, name int) string {
	m := id{publisher: publisher, number: number, try: 1}
	b := m.appendTo(nil, 100)
	event := fmt.Sprintf("id: 00000000000000ff-%d\n", name)
	if m.text() && !bytes.Contains(b, []byte("\r")) {
		return event + "data: " + strings.ReplaceAll(string(b), "\n", "\ndata: ") + "\n\n"
	}
	return event + "event: base64\ndata: " + base64.StdEncoding.EncodeToString(b) + "\n\n"
}

// enveloped is a message as an event of several channels.
func enveloped(publisher uint8, number uint64, name int) string {
	return fmt.Sprintf("id: 00000000000000ff-%d\ndata: %s\n\n", name, envelope(publisher, number, name))
}

// deflated is a frame with a compressed payload.
func deflated(number uint64) string {
	m := id{number: number, try: 1}
	var b bytes.Buffer
	w, _ := flate.NewWriter(&b, flate.BestSpeed)
	w.Write(m.appendTo(nil, 110))
	w.Flush()
	small := bytes.TrimSuffix(b.Bytes(), []byte("\x00\x00\xff\xff"))
	opcode := byte(0xc2)
	if m.text() {
		opcode = 0xc1
	}
	return string([]byte{opcode, byte(len(small))}) + string(small)
}

func TestOtherKinds(t *testing.T) {
	var events, many, json, small string
	for number := range uint64(8) {
		events += happening(0, 1+number, 5+2*int(number))
		many += enveloped(0, 1+number, 5+2*int(number))
		json += object(envelope(0, 1+number, 5+2*int(number)))
		small += deflated(1 + number)
	}
	for kind, all := range map[Kind]string{Events: events, ManyEvents: ":\n\n" + many, JSON: json, Deflated: small} {
		if said := judgedAs(t, kind, 8, all, all); said != nil {
			t.Errorf("%s: found fault with what is right: %q", kind, said)
		}
	}
	one := func(f func(uint8, uint64, int) string, number uint64, name int) string { return f(0, number, name) }
	for _, c := range []struct {
		name                string
		kind                Kind
		first, second, want string
	}{
		{"an event lost", Events, one(happening, 1, 1) + one(happening, 3, 3), "", "came after message 1"},
		{"an event repeated to one", Events, one(happening, 1, 1) + one(happening, 2, 2), one(happening, 1, 1) + one(happening, 1, 1), "others got message 2"},
		{"an event with the id of another", Events, one(happening, 1, 1) + one(happening, 2, 2), one(happening, 1, 1) + one(happening, 2, 3), "others got 00000000000000ff-2"},
		{"ids that go back", Events, one(happening, 1, 2) + one(happening, 2, 1), "", "came after 00000000000000ff-2"},
		{"another log", Events, one(happening, 1, 2) + "id: 00000000000000fe-9" + strings.TrimPrefix(one(happening, 2, 9), "id: 00000000000000ff-9"), "", "came after"},
		{"an event of the wrong type", Events, "event: base64\n" + one(happening, 2, 1), "", "illegal base64"},
		{"a line too many", Events, strings.TrimSuffix(one(happening, 2, 1), "\n") + "data: \n\n", "", "has other bytes"},
		{"incomplete", Events, "event: incomplete\ndata: crowd\n\n", "", "messages of \"crowd\" are gone"},
		{"an id that is not the envelope's", ManyEvents, "id: 00000000000000ff-7\ndata: " + envelope(0, 1, 8) + "\n\n", "", "in an event with the id 00000000000000ff-7"},
		{"an envelope lost", JSON, object(envelope(0, 1, 1)) + object(envelope(0, 3, 3)), "", "came after message 1"},
		{"an envelope of another channel", JSON, object(strings.Replace(envelope(0, 1, 1), `"crowd"`, `"other"`, 1)), "", "came on channel"},
		{"a member that there is not", JSON, object(strings.Replace(envelope(0, 1, 1), `"channel"`, `"chanel"`, 1)), "", "is no object"},
		{"an answer to nothing", JSON, object(`{"reply":"pong","ref":1}`) + object(`{"reply":"pong","ref":1}`), "", "to command 1 came where that to command 2 was due"},
		{"subscribed again, and not completely", JSON, object(`{"reply":"subscribed","channel":"crowd","id":"00000000000000ff-1","complete":false}`), "", "0 came where that to command 1"},
		{"an error", JSON, object(`{"error":"unavailable","message":"no"}`), "", "unavailable: no"},
		{"compressed badly", Deflated, "\xc2d" + strings.Repeat("\xff", 'd'), "", "a compressed frame"},
		{"a compressed message lost", Deflated, deflated(1) + deflated(3), "", "came after message 1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			said := judgedAs(t, c.kind, 2, c.first, c.second)
			if len(said) == 0 || !strings.Contains(said[0], c.want) {
				t.Errorf("said %q, expected %q", said, c.want)
			}
		})
	}
}

// Two orders that have not the same in common.
func TestOrdersThatDiffer(t *testing.T) {
	of := func(m id) int { return int(m.publisher) % 2 }
	order := func(publishers ...uint8) (turns []turn) {
		for i, p := range publishers {
			turns = append(turns, turn{id: id{publisher: p, number: 1}, name: fmt.Sprintf("00000000000000ff-%d", i)})
		}
		return turns
	}
	one := &audience{channels: []int{0}, order: order(0, 2)}
	one.order[1].name = "00000000000000ff-2"
	if err := one.agrees(&audience{order: order(0, 1, 2)}, of); err != nil {
		t.Errorf("found fault with what is right: %v", err)
	}
	for want, all := range map[string][]turn{"those with all of them": order(2, 1, 0), "has the ids": order(0, 2, 1)} {
		if err := one.agrees(&audience{order: all}, of); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, expected %q", err, want)
		}
	}
}

// A frame that is taken is whole, and lies at the front.
func FuzzSplit(f *testing.F) {
	f.Add([]byte(framed(0, 1, 1)))
	f.Add([]byte("\x88\x02\x03\xf4\x8a\x00"))
	f.Add([]byte("\x82\x7e\x00\x01x"))
	f.Add([]byte("\x82\x7f\x00\x00\x00\x00\x00\x00\x00\x01x"))
	f.Add([]byte("\x82\x7f\xff\xff\xff\xff\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, b []byte) {
		f, n, err := split(b, true)
		if err != nil || n == 0 {
			return
		}
		payload := f.payload
		if head := n - len(payload); n > len(b) || head != 2 && head != 4 && head != 10 {
			t.Fatalf("%d bytes taken of %d, %d of them payload", n, len(b), len(payload))
		}
		if m, err := parse(payload); err == nil && string(m.appendTo(nil, len(payload))) != string(payload) {
			t.Fatalf("%v is not what was parsed: %q", m, payload)
		}
	})
}
