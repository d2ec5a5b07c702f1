package encode

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"strings"
	"testing"
	"unicode/utf8"

	"wscast/daemon/frame"
)

var example = Message{
	Channel: "news", ID: ID{Epoch: 0x0123456789abcdef, Seq: 42}, Time: 1764000000123456789, Op: frame.Text, Data: []byte("hello"),
}

func with(op frame.Opcode, data string) *Message {
	m := example
	m.Op, m.Data = op, []byte(data)
	return &m
}

// What comes of a message may never change without Version: clients have half of it.
func TestBytes(t *testing.T) {
	const id = "0123456789abcdef-42"
	for _, c := range []struct {
		encoding Encoding
		op       frame.Opcode
		data     string
		want     string
	}{
		{Raw, frame.Text, "hello", "\x81\x05hello"},
		{Raw, frame.Binary, "\xff", "\x82\x01\xff"},
		{Raw | Deflate, frame.Text, "hello", "\x81\x05hello"},
		{JSON, frame.Text, "hello", "\x81\x51" + `{"channel":"news","id":"` + id + `","time":1764000000123,"data":"hello"}`},
		{JSON, frame.Binary, "\xff\x00", "\x81\x52" + `{"channel":"news","id":"` + id + `","time":1764000000123,"base64":"/wA="}`},
		{JSON, frame.Text, "\"\\\n\r\t\b\x00é\u2028</", "\x81\x69" +
			`{"channel":"news","id":"` + id + `","time":1764000000123,"data":"\"\\\n\r\t\u0008\u0000é` + "\u2028" + `</"}`},
		{Events, frame.Text, "hello", "id: " + id + "\ndata: hello\n\n"},
		{Events, frame.Text, "", "id: " + id + "\ndata: \n\n"},
		{Events, frame.Text, "a\n\n b", "id: " + id + "\ndata: a\ndata: \ndata:  b\n\n"},
		{Events, frame.Text, "a\r\n", "id: " + id + "\nevent: base64\ndata: YQ0K\n\n"},
		{Events, frame.Binary, "\xff", "id: " + id + "\nevent: base64\ndata: /w==\n\n"},
		{JSONEvents, frame.Text, "a\nb", "id: " + id + "\ndata: " + `{"channel":"news","id":"` + id + `","time":1764000000123,"data":"a\nb"}` + "\n\n"},
	} {
		var n Encoder
		if got := n.Append([]byte("before"), c.encoding, with(c.op, c.data)); string(got) != "before"+c.want {
			t.Errorf("%x of %q: %q, want %q", c.encoding, c.data, got[6:], c.want)
		}
	}
}

// The compressor comes with Go; another one may do it in another way, and then Version is another one too. This one always does the same.
func TestDeflateIsTheSameEachTime(t *testing.T) {
	long := strings.Repeat("the same again, and ", 500)
	var first, second Encoder
	want := bytes.Clone(first.Append(nil, JSON|Deflate, with(frame.Text, long)))
	first.Append(nil, Raw|Deflate, with(frame.Text, long[:1000])) // of which nothing is kept
	for range 3 {
		for _, n := range []*Encoder{&first, &second} {
			if got := n.Append(nil, JSON|Deflate, with(frame.Text, long)); !bytes.Equal(got, want) {
				t.Fatalf("%08x, and before %08x", crc32.ChecksumIEEE(got), crc32.ChecksumIEEE(want))
			}
		}
	}
}

// The sizes at which a frame's header grows, in each encoding.
func TestSizes(t *testing.T) {
	var n Encoder
	for _, size := range []int{0, 1, 50, 51, 52, 53, 54, 55, 56, 57, 124, 125, 126, 127, 65_460, 65_461, 65_462, 65_463, 65_464, 65_465, 65_535, 65_536, 65_537} {
		data := strings.Repeat("x", size)
		for _, e := range []Encoding{Raw, JSON, Raw | Deflate, JSON | Deflate} {
			b := n.Append(nil, e, with(frame.Text, data))
			op, payload, deflated := unframe(t, b)
			if op != frame.Text {
				t.Fatalf("%x: opcode %d", e, op)
			}
			if deflated {
				var err error
				if payload, err = Inflate(nil, payload, len(data)+1000); err != nil {
					t.Fatal(err)
				}
			}
			if e.Plain() == JSON {
				payload = []byte(envelopeOf(t, payload).Data)
			}
			if string(payload) != data {
				t.Errorf("%x: %d bytes came of %d", e, len(payload), size)
			}
		}
	}
}

// unframe takes a whole frame apart, by RFC 6455 section 5.2, and checks that it is the whole.
func unframe(t testing.TB, b []byte) (op frame.Opcode, payload []byte, deflated bool) {
	t.Helper()
	head, size := 2, int(b[1])
	switch size {
	case 126:
		head, size = 4, int(b[2])<<8|int(b[3])
		if size < 126 {
			t.Fatalf("% x: not the shortest form", b[:head])
		}
	case 127:
		head, size = 10, int(b[6])<<24|int(b[7])<<16|int(b[8])<<8|int(b[9])
		if size < 1<<16 {
			t.Fatalf("% x: not the shortest form", b[:head])
		}
	}
	if b[0]&0x80 == 0 || b[0]&0x30 != 0 || len(b) != head+size {
		t.Fatalf("% x of %d bytes", b[:head], len(b))
	}
	return frame.Opcode(b[0] & 0xf), b[head:], b[0]&0x40 != 0
}

type envelope struct {
	Channel, ID, Data string
	Time              int64
	Base64            []byte
}

func envelopeOf(t testing.TB, b []byte) (e envelope) {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&e); err != nil {
		t.Fatalf("%v: %.200q", err, b)
	}
	if bytes.ContainsAny(b, "\r\n") {
		t.Fatalf("not one line: %.200q", b)
	}
	return e
}

// event is what an EventSource dispatches.
type event struct{ kind, data, id string }

// eventSource reads a stream as https://html.spec.whatwg.org/multipage/server-sent-events.html section 9.2.6 says.
func eventSource(stream string) (events []event, last, retry string) {
	var kind, data, id string
	stream = strings.NewReplacer("\r\n", "\n", "\r", "\n").Replace(strings.TrimPrefix(stream, "\ufeff"))
	lines := strings.Split(stream, "\n")
	for _, line := range lines[:len(lines)-1] {
		if line == "" {
			last = id
			if data != "" {
				events = append(events, event{kind, strings.TrimSuffix(data, "\n"), last})
			}
			kind, data = "", ""
			continue
		}
		field, value, _ := strings.Cut(line, ":")
		value = strings.TrimPrefix(value, " ")
		switch field {
		case "event":
			kind = value
		case "data":
			data += value + "\n"
		case "id":
			if !strings.Contains(value, "\x00") {
				id = value
			}
		case "retry":
			retry = value
		}
	}
	return events, last, retry
}

func FuzzRoundTrip(f *testing.F) {
	for _, s := range []string{"", "hello", "a\nb\n", "\n", "\r", "\xff", "\x00", " :", "data: x", "\"\\</script>\u2028", "\ufeff", strings.Repeat("é\n", 300)} {
		f.Add([]byte(s), uint64(7), int64(1764000000123456789))
	}
	f.Fuzz(func(t *testing.T, data []byte, seq uint64, nanos int64) {
		op := frame.Binary
		if utf8.Valid(data) {
			op = frame.Text
		}
		m := &Message{Channel: "a.b/c:d", ID: ID{seq * 3, seq}, Time: nanos, Op: op, Data: data}
		check := func(e envelope) {
			if e.Channel != m.Channel || e.ID != m.ID.String() || e.Time != nanos/1e6 ||
				op == frame.Text && e.Data != string(data) || op == frame.Binary && !bytes.Equal(e.Base64, data) {
				t.Fatalf("%+v of %+v", e, m)
			}
		}
		var n Encoder
		for _, e := range []Encoding{Raw, JSON, Raw | Deflate, JSON | Deflate} {
			got, payload, deflated := unframe(t, n.Append(nil, e, m))
			if deflated && !e.Deflates() {
				t.Fatalf("%x: compressed", e)
			}
			if deflated {
				small := len(payload)
				var err error
				if payload, err = Inflate(nil, payload, 8*len(data)+1000); err != nil || small >= len(payload) {
					t.Fatalf("%x: %v, %d bytes of %d", e, err, small, len(payload))
				}
			}
			if e.Plain() == JSON {
				if got != frame.Text {
					t.Fatalf("opcode %d", got)
				}
				check(envelopeOf(t, payload))
			} else if got != op || !bytes.Equal(payload, data) {
				t.Fatalf("%x: %d %q of %q", e, got, payload, data)
			}
		}
		events, last, _ := eventSource(string(n.Append(nil, Events, m)))
		if len(events) != 1 || last != m.ID.String() || events[0].id != last {
			t.Fatalf("%q: %v", data, events)
		}
		text := events[0].data
		if events[0].kind == Base64Event {
			b, err := base64.StdEncoding.DecodeString(text)
			if err != nil {
				t.Fatal(err)
			}
			text = string(b)
		}
		if text != string(data) {
			t.Fatalf("%q of %q", text, data)
		}
		events, last, _ = eventSource(string(n.Append(nil, JSONEvents, m)))
		if len(events) != 1 || last != m.ID.String() || events[0].kind != "" {
			t.Fatalf("%q: %v", data, events)
		}
		check(envelopeOf(t, []byte(events[0].data)))
	})
}

// What is no message between events is seen by no page, but for where to come back.
func TestBetweenEvents(t *testing.T) {
	id := ID{1, 2}
	b := AppendPosition(nil, id)
	b = append(b, KeepAlive...)
	if events, last, _ := eventSource(string(b)); len(events) != 0 || last != id.String() {
		t.Errorf("%v %q", events, last)
	}
	b = AppendIncomplete(b, "news")
	b = AppendRetry(b, "slow")
	events, last, retry := eventSource(string(b))
	if fmt.Sprint(events) != fmt.Sprint([]event{{"incomplete", "news", id.String()}}) || last != id.String() || len(retry) != 4 {
		t.Errorf("%v %q %q", events, last, retry)
	}
}

func TestAppendString(t *testing.T) {
	for _, s := range []string{"", "a\xffb", "\xed\xa0\x80", "\x7f\u0080", string(rune(0x10ffff))} {
		var got string
		b := AppendString(nil, []byte(s))
		if err := json.Unmarshal(b, &got); err != nil || !utf8.Valid(b) || got != strings.ToValidUTF8(s, "\uFFFD") {
			t.Errorf("%q: %q %v", s, b, err)
		}
	}
}

func TestValid(t *testing.T) {
	want := map[Encoding]bool{Raw: true, JSON: true, Events: true, JSONEvents: true, Raw | Deflate: true, JSON | Deflate: true}
	for e := range 256 {
		if Encoding(e).Valid() != want[Encoding(e)] {
			t.Errorf("%#x is valid: %v", e, Encoding(e).Valid())
		}
	}
}

func TestAppendAllocatesNothing(t *testing.T) {
	long := strings.Repeat("some text that is said again\n", 100)
	for _, e := range []Encoding{Raw, JSON, Events, JSONEvents, Raw | Deflate, JSON | Deflate} {
		for _, m := range []*Message{with(frame.Text, long), with(frame.Binary, long)} {
			var n Encoder
			b := n.Append(nil, e, m)
			if allocations := testing.AllocsPerRun(100, func() { b = n.Append(b[:0], e, m) }); allocations != 0 {
				t.Errorf("%#x: %v allocations a message", e, allocations)
			}
		}
	}
}
