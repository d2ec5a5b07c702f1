package frame

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
)

// First bytes of frames: FIN and the opcode, or the opcode alone for a fragment that others follow.
const (
	fin = finBit

	text     = byte(Text)
	binaryOp = byte(Binary)
	cont     = byte(Continuation)
	closing  = byte(Close)
	ping     = byte(Ping)
	pong     = byte(Pong)
)

const noLimit = math.MaxInt

var testKey = [4]byte{0x37, 0xFA, 0x21, 0x3D} // the key of the example in RFC 6455, 5.7

// frameOf is the frame of a client, with the shortest length, masked byte by byte.
func frameOf(first byte, payload string) []byte {
	b := []byte{first}
	switch n := len(payload); {
	case n < 126:
		b = append(b, 0x80|byte(n))
	case n < 65536:
		b = binary.BigEndian.AppendUint16(append(b, 0x80|126), uint16(n))
	default:
		b = binary.BigEndian.AppendUint64(append(b, 0x80|127), uint64(n))
	}
	b = append(b, testKey[:]...)
	for i := range len(payload) {
		b = append(b, payload[i]^testKey[i%4])
	}
	return b
}

// closeOf is a client's close frame with any code and reason.
func closeOf(code uint16, reason string) []byte {
	return frameOf(fin|closing, string(binary.BigEndian.AppendUint16(nil, code))+reason)
}

// octets reads bytes written in hexadecimal, with spaces.
func octets(s string) []byte {
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		panic(err)
	}
	return b
}

// describe is one line of a transcript.
func describe(f Frame) string {
	name := map[Opcode]string{
		Continuation: "continuation", Text: "text", Binary: "binary", Close: "close", Ping: "ping", Pong: "pong",
	}[f.Op]
	if f.Op == Continuation {
		name = map[Opcode]string{Text: "text continuation", Binary: "binary continuation"}[f.Message]
	} else if !f.Op.control() && f.Message != f.Op || f.Op.control() && f.Message != 0 {
		name += fmt.Sprintf(" in message %d", f.Message)
	}
	if !f.Fin {
		name += ", more follows"
	}
	payload := fmt.Sprintf("%q", f.Payload)
	if len(f.Payload) > 200 {
		payload = fmt.Sprintf("%d bytes of %q", len(f.Payload), f.Payload[0])
		if bytes.Count(f.Payload, f.Payload[:1]) != len(f.Payload) {
			payload = fmt.Sprintf("%d bytes, %x", len(f.Payload), f.Payload)
		}
	}
	return name + " " + payload
}

// receive lets the stream arrive in pieces that end at the given offsets, peeks at what has arrived
// and not been consumed after each, and returns the transcript: a line for each frame, the last one
// "fail CODE" if the connection failed. arrived is how many bytes were there at the end or the failure.
func receive(t testing.TB, stream []byte, limit int, ends ...int) (transcript []string, arrived int) {
	t.Helper()
	var p Parser
	consumed := 0
	for _, arrived = range append(ends, len(stream)) {
		for {
			before := p
			there := stream[consumed:arrived]
			peeked := bytes.Clone(there)
			f, n, err := p.Next(peeked, limit)
			if !p.Valid() {
				t.Fatalf("parser is in the invalid state %#x after % x", p.State, there)
			}
			if n <= 0 && p != before {
				t.Fatalf("state changed from %#x to %#x without a frame", before.State, p.State)
			}
			if err != nil {
				if n != 0 {
					t.Fatalf("error %v together with a frame of %d bytes", err, n)
				}
				checkError(t, err)
				return append(transcript, fmt.Sprintf("fail %d", err.Code)), arrived
			}
			if n == 0 {
				if !bytes.Equal(peeked, there) {
					t.Fatalf("buffer of an incomplete frame changed from % x to % x", there, peeked)
				}
				break
			}
			if n > len(there) {
				t.Fatalf("frame of %d bytes in a buffer of %d", n, len(there))
			}
			if len(f.Payload) > 0 && &f.Payload[len(f.Payload)-1] != &peeked[n-1] {
				t.Fatal("payload is not the end of the frame in the buffer")
			}
			if cap(f.Payload) != len(f.Payload) {
				t.Fatal("appending to the payload would overwrite the next frame")
			}
			if !bytes.Equal(peeked[n:], there[n:]) {
				t.Fatal("bytes behind the frame changed")
			}
			transcript = append(transcript, describe(f))
			consumed += n
		}
	}
	return transcript, arrived
}

// checkError looks at what every error promises.
func checkError(t testing.TB, err *Error) {
	t.Helper()
	switch err.Code {
	case CloseProtocolError, CloseInvalidData, CloseTooBig:
	default:
		t.Errorf("error with code %d: want 1002, 1007 or 1009", err.Code)
	}
	built := AppendClose(nil, err.Code, err.Reason)
	if _, payload, ok := Payload(built); !ok || string(payload[2:]) != err.Reason || err.Reason == "" {
		t.Errorf("reason %q does not fit into a close frame", err.Reason)
	}
}

// exchange is what a client sends, and what comes of it.
type exchange struct {
	name  string
	send  [][]byte
	limit int // 0: none
	want  []string
	// failAt is how many bytes are enough to know that the connection fails: counted from the
	// start, or, if negative, back from the end of what is sent. 0 with a failure: all are needed.
	failAt int
}

// TestExchanges goes through the classes of the Autobahn test suite that concern the parser. Each
// exchange arrives at once, cut in two at every place, and byte by byte.
func TestExchanges(t *testing.T) {
	for _, e := range slices.Concat(
		framing(), pings(), reservedBits(), opcodes(), fragments(), lengths(), masking(), closes(), limits(),
	) {
		t.Run(e.name, func(t *testing.T) { e.run(t) })
	}
}

func (e exchange) run(t *testing.T) {
	stream := slices.Concat(e.send...)
	limit := e.limit
	if limit == 0 {
		limit = noLimit
	}
	check := func(how string, got []string) {
		t.Helper()
		if !slices.Equal(got, e.want) {
			t.Fatalf("%s:\ngot  %q\nwant %q", how, got, e.want)
		}
	}

	whole, _ := receive(t, stream, limit)
	check("all at once", whole)

	var ends []int
	for i := range stream {
		// In large frames the bytes around the two ends, and some in the middle.
		if len(stream) < 600 || i < 20 || i > len(stream)-10 || i%7919 == 0 {
			ends = append(ends, i)
		}
	}
	for _, end := range ends {
		got, _ := receive(t, stream, limit, end)
		check(fmt.Sprintf("cut after %d bytes", end), got)
	}
	got, arrived := receive(t, stream, limit, ends...)
	check("byte by byte", got)

	failAt := e.failAt
	if failAt <= 0 {
		failAt += len(stream)
	}
	if arrived != failAt {
		t.Errorf("the end was known after %d bytes of %d: want %d", arrived, len(stream), failAt)
	}
}

// Autobahn 1.*, RFC 6455, 5.2, 5.6 and 5.7: messages of one frame.
func framing() (all []exchange) {
	for _, n := range []int{0, 1, 7, 8, 9, 124, 125, 126, 127, 128, 511, 512, 513, 1024, 65535, 65536} {
		for _, op := range []Opcode{Text, Binary} {
			payload := strings.Repeat("*", n)
			all = append(all, exchange{
				name: fmt.Sprintf("framing/opcode %d, %d bytes", op, n),
				send: [][]byte{frameOf(fin|byte(op), payload)},
				want: []string{describe(Frame{Op: op, Fin: true, Message: op, Payload: []byte(payload)})},
			})
		}
	}
	return append(all,
		exchange{
			name: "framing/masked example of RFC 6455 5.7",
			send: [][]byte{octets("81 85 37fa213d 7f9f4d5158")},
			want: []string{`text "Hello"`},
		},
		exchange{
			name: "framing/one message after another",
			send: [][]byte{frameOf(fin|text, "one"), frameOf(fin|binaryOp, "\xFF\x00"), frameOf(fin|text, "ü")},
			want: []string{`text "one"`, `binary "\xff\x00"`, `text "ü"`},
		},
		exchange{
			name: "framing/binary need not be UTF-8, nor end with a sequence",
			send: [][]byte{frameOf(binaryOp, "\xC3"), frameOf(fin|cont, "\xED\xA0")},
			want: []string{`binary, more follows "\xc3"`, `binary continuation "\xed\xa0"`},
		},
	)
}

// Autobahn 2.*, RFC 6455, 5.5.2 and 5.5.3.
func pings() []exchange {
	full := strings.Repeat("p", 125)
	return []exchange{
		{name: "ping/empty", send: [][]byte{frameOf(fin|ping, "")}, want: []string{`ping ""`}},
		{name: "ping/text", send: [][]byte{frameOf(fin|ping, "Hello")}, want: []string{`ping "Hello"`}},
		{name: "ping/not UTF-8", send: [][]byte{frameOf(fin|ping, "\x00\xFF\xFE")}, want: []string{`ping "\x00\xff\xfe"`}},
		{name: "ping/125 bytes", send: [][]byte{frameOf(fin|ping, full)}, want: []string{fmt.Sprintf("ping %q", full)}},
		{name: "ping/126 bytes", send: [][]byte{frameOf(fin|ping, full+"p")}, want: []string{"fail 1002"}, failAt: 2},
		{name: "pong/unasked", send: [][]byte{frameOf(fin|pong, "x"), frameOf(fin|ping, "y")}, want: []string{`pong "x"`, `ping "y"`}},
		{name: "pong/126 bytes", send: [][]byte{frameOf(fin|pong, full+"p")}, want: []string{"fail 1002"}, failAt: 2},
		{name: "ping/64-bit length", send: [][]byte{octets("89 FF 0000000000010000")}, want: []string{"fail 1002"}, failAt: 2},
		{
			name:  "ping/not subject to the limit on messages",
			limit: 1, send: [][]byte{frameOf(text, "a"), frameOf(fin|ping, full), frameOf(fin|cont, "")},
			want: []string{`text, more follows "a"`, fmt.Sprintf("ping %q", full), `text continuation ""`},
		},
	}
}

// Autobahn 3.*, RFC 6455, 5.2: RSV1 to RSV3 without an extension.
func reservedBits() (all []exchange) {
	good := frameOf(fin|text, "good")
	for bits := byte(0x10); bits <= 0x70; bits += 0x10 {
		for _, op := range []byte{cont, text, binaryOp, closing, ping, pong} {
			all = append(all, exchange{
				name: fmt.Sprintf("reserved bits/%#x in opcode %d", bits, op),
				send: [][]byte{good, frameOf(fin|bits|op, "bad")},
				want: []string{`text "good"`, "fail 1002"}, failAt: len(good) + 1,
			})
		}
	}
	return all
}

// Autobahn 4.*, RFC 6455, 5.2: opcodes 3 to 7 and 11 to 15.
func opcodes() (all []exchange) {
	for _, op := range []byte{3, 4, 5, 6, 7, 11, 12, 13, 14, 15} {
		for _, first := range []byte{fin | op, op} {
			all = append(all, exchange{
				name: fmt.Sprintf("opcodes/reserved, first byte %#x", first),
				send: [][]byte{frameOf(text, "begun"), frameOf(first, "")},
				want: []string{`text, more follows "begun"`, "fail 1002"}, failAt: len(frameOf(text, "begun")) + 1,
			})
		}
	}
	return all
}

// Autobahn 5.*, RFC 6455, 5.4.
func fragments() []exchange {
	begun := frameOf(text, "frag1")
	return []exchange{
		{name: "fragments/ping", send: [][]byte{frameOf(ping, "a")}, want: []string{"fail 1002"}, failAt: 1},
		{name: "fragments/pong", send: [][]byte{frameOf(pong, "a")}, want: []string{"fail 1002"}, failAt: 1},
		{name: "fragments/close", send: [][]byte{frameOf(closing, "")}, want: []string{"fail 1002"}, failAt: 1},
		{
			name: "fragments/two of text",
			send: [][]byte{begun, frameOf(fin|cont, "frag2")},
			want: []string{`text, more follows "frag1"`, `text continuation "frag2"`},
		},
		{
			name: "fragments/control frames in the middle",
			send: [][]byte{
				begun, frameOf(fin|ping, "1"), frameOf(cont, "frag2"), frameOf(fin|pong, "2"),
				frameOf(fin|ping, "3"), frameOf(fin|cont, "frag3"), frameOf(fin|binaryOp, "next"),
			},
			want: []string{
				`text, more follows "frag1"`, `ping "1"`, `text continuation, more follows "frag2"`, `pong "2"`,
				`ping "3"`, `text continuation "frag3"`, `binary "next"`,
			},
		},
		{
			name: "fragments/all empty",
			send: [][]byte{frameOf(text, ""), frameOf(cont, ""), frameOf(fin|cont, ""), frameOf(fin|text, "")},
			want: []string{`text, more follows ""`, `text continuation, more follows ""`, `text continuation ""`, `text ""`},
		},
		{
			name: "fragments/close in the middle",
			send: [][]byte{begun, closeOf(1000, "enough")},
			want: []string{`text, more follows "frag1"`, `close "\x03\xe8enough"`},
		},
		{name: "fragments/continuation without start", send: [][]byte{frameOf(fin|cont, "x")}, want: []string{"fail 1002"}, failAt: 1},
		{name: "fragments/continuation without start, more", send: [][]byte{frameOf(cont, "x")}, want: []string{"fail 1002"}, failAt: 1},
		{
			name: "fragments/continuation after the end",
			send: [][]byte{begun, frameOf(fin|cont, "end"), frameOf(fin|cont, "x")},
			want: []string{`text, more follows "frag1"`, `text continuation "end"`, "fail 1002"}, failAt: -len(frameOf(0, "x")) + 1,
		},
		{
			name: "fragments/text inside of text",
			send: [][]byte{begun, frameOf(fin|text, "x")},
			want: []string{`text, more follows "frag1"`, "fail 1002"}, failAt: len(begun) + 1,
		},
		{
			name: "fragments/binary inside of text after a ping",
			send: [][]byte{begun, frameOf(fin|ping, ""), frameOf(binaryOp, "x")},
			want: []string{`text, more follows "frag1"`, `ping ""`, "fail 1002"}, failAt: -len(frameOf(0, "x")) + 1,
		},
	}
}

// RFC 6455, 5.2: the minimal number of bytes must be used, and the top bit of 64 must be 0.
func lengths() []exchange {
	return []exchange{
		{name: "lengths/0 in 16 bits", send: [][]byte{octets("82 FE 0000 00000000")}, want: []string{"fail 1002"}, failAt: 4},
		{name: "lengths/125 in 16 bits", send: [][]byte{octets("82 FE 007D 00000000")}, want: []string{"fail 1002"}, failAt: 4},
		{name: "lengths/126 in 64 bits", send: [][]byte{octets("82 FF 000000000000007E 00000000")}, want: []string{"fail 1002"}, failAt: 8},
		{name: "lengths/65535 in 64 bits", send: [][]byte{octets("82 FF 000000000000FFFF 00000000")}, want: []string{"fail 1002"}, failAt: 8},
		{name: "lengths/top bit", send: [][]byte{octets("82 FF 8000000000010000 00000000")}, want: []string{"fail 1002"}, failAt: 3},
		{name: "lengths/all bits", send: [][]byte{octets("82 FF FFFFFFFFFFFFFFFF 00000000")}, want: []string{"fail 1002"}, failAt: 3},
		{name: "lengths/2^63-1", send: [][]byte{octets("82 FF 7FFFFFFFFFFFFFFF 00000000")}, want: []string{"fail 1009"}, failAt: 3},
		{name: "lengths/2^48", send: [][]byte{octets("82 FF 0001000000000000 00000000")}, want: []string{"fail 1009"}, failAt: 4},
	}
}

// RFC 6455, 5.1: a server closes on a frame that is not masked.
func masking() (all []exchange) {
	for _, first := range []byte{fin | text, binaryOp, fin | closing, fin | ping, fin | pong} {
		for _, length := range []byte{0, 5, 126, 127} {
			all = append(all, exchange{
				name: fmt.Sprintf("masking/none, first bytes %02x %02x", first, length),
				send: [][]byte{{first, length, 0, 0, 0, 0, 0}},
				want: []string{"fail 1002"}, failAt: 2,
			})
		}
	}
	return append(all, exchange{
		name: "masking/key of zeros",
		send: [][]byte{octets("81 82 00000000 4f4b")},
		want: []string{`text "OK"`},
	})
}

// Autobahn 7.*, RFC 6455, 5.5.1 and 7.4.
func closes() (all []exchange) {
	longest := strings.Repeat("r", 123)
	all = []exchange{
		{name: "close/no payload", send: [][]byte{frameOf(fin|closing, "")}, want: []string{`close ""`}},
		{name: "close/1 byte", send: [][]byte{frameOf(fin|closing, "a")}, want: []string{"fail 1002"}, failAt: 2},
		{name: "close/code only", send: [][]byte{closeOf(1000, "")}, want: []string{`close "\x03\xe8"`}},
		{name: "close/with reason", send: [][]byte{closeOf(1000, "Hello World!")}, want: []string{`close "\x03\xe8Hello World!"`}},
		{name: "close/longest reason", send: [][]byte{closeOf(1001, longest)}, want: []string{`close "\x03\xe9` + longest + `"`}},
		{name: "close/126 bytes", send: [][]byte{closeOf(1000, longest+"r")}, want: []string{"fail 1002"}, failAt: 2},
		{name: "close/reason not UTF-8", send: [][]byte{closeOf(1000, "κόσμε\xED\xA0\x80edited")}, want: []string{"fail 1007"}},
		{name: "close/reason cut in a sequence", send: [][]byte{closeOf(1000, "\xCE")}, want: []string{"fail 1007"}},
	}
	for _, code := range []uint16{1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 3999, 4000, 4999} {
		all = append(all, exchange{
			name: fmt.Sprintf("close/code %d", code), send: [][]byte{closeOf(code, "")},
			want: []string{fmt.Sprintf("close %q", binary.BigEndian.AppendUint16(nil, code))},
		})
	}
	for _, code := range []uint16{0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535} {
		all = append(all, exchange{
			name: fmt.Sprintf("close/code %d", code), send: [][]byte{closeOf(code, "")}, want: []string{"fail 1002"},
		})
	}
	return all
}

// Autobahn 9.*, RFC 6455, 7.4.1 (1009) and 10.4: the limit on a message.
func limits() []exchange {
	b := func(n int) string { return strings.Repeat("b", n) }
	return []exchange{
		{name: "limit/just allowed", limit: 10, send: [][]byte{frameOf(fin|binaryOp, b(10))}, want: []string{fmt.Sprintf("binary %q", b(10))}},
		{name: "limit/one over", limit: 10, send: [][]byte{frameOf(fin|binaryOp, b(11))}, want: []string{"fail 1009"}, failAt: 2},
		{name: "limit/16 bits, just allowed", limit: 300, send: [][]byte{frameOf(fin|text, b(300))}, want: []string{"text 300 bytes of 'b'"}},
		{name: "limit/16 bits, one over", limit: 300, send: [][]byte{frameOf(fin|text, b(301))}, want: []string{"fail 1009"}, failAt: 4},
		{name: "limit/16 bits, over by the first byte", limit: 300, send: [][]byte{frameOf(fin|text, b(512))}, want: []string{"fail 1009"}, failAt: 3},
		{name: "limit/64 bits, just allowed", limit: 65536, send: [][]byte{frameOf(fin|text, b(65536))}, want: []string{"text 65536 bytes of 'b'"}},
		{name: "limit/64 bits, one over", limit: 65536, send: [][]byte{frameOf(fin|text, b(65537))}, want: []string{"fail 1009"}, failAt: 10},
		{name: "limit/64 bits, over by the fourth byte", limit: 65536, send: [][]byte{octets("82 FF 0000000100000000 00000000")}, want: []string{"fail 1009"}, failAt: 6},
		{
			name: "limit/fragments, just allowed", limit: 10,
			send: [][]byte{frameOf(binaryOp, "bbbb"), frameOf(cont, "bbb"), frameOf(fin|cont, "bbb"), frameOf(fin|binaryOp, b(10))},
			want: []string{
				`binary, more follows "bbbb"`, `binary continuation, more follows "bbb"`, `binary continuation "bbb"`,
				fmt.Sprintf("binary %q", b(10)),
			},
		},
		{
			name: "limit/fragments, one over", limit: 10,
			send: [][]byte{frameOf(binaryOp, "bbbb"), frameOf(cont, "bbb"), frameOf(fin|cont, "bbbb")},
			want: []string{`binary, more follows "bbbb"`, `binary continuation, more follows "bbb"`, "fail 1009"}, failAt: -len(frameOf(0, "bbbb")) + 2,
		},
		{name: "limit/negative lets empty messages pass", limit: -1, send: [][]byte{frameOf(fin|text, ""), frameOf(fin|text, "x")}, want: []string{`text ""`, "fail 1009"}, failAt: -5},
	}
}

// A reload may lower the limit in the middle of a message.
func TestLimitLoweredInsideMessage(t *testing.T) {
	var p Parser
	if _, n, err := p.Next(frameOf(text, "0123456789"), 10); n == 0 || err != nil {
		t.Fatalf("first fragment: n %d, error %v", n, err)
	}
	if _, n, err := p.Next(frameOf(fin|cont, ""), 5); n != 0 || err == nil || err.Code != CloseTooBig {
		t.Fatalf("after the limit was lowered: n %d, error %v, want 1009", n, err)
	}
}

// A Parser stored between any two frames and restored goes on as if nothing had happened.
func TestRestored(t *testing.T) {
	frames := [][]byte{
		frameOf(text, "f\xF0\x9F"), frameOf(fin|ping, "p"), frameOf(cont, "\x8C"), frameOf(fin|cont, "\x8D!"),
		frameOf(binaryOp, "\xF0"), frameOf(fin|cont, "\xF0"),
	}
	want := []uint64{
		uint64(textTail2) | 1<<8 | 3<<16, uint64(textTail2) | 1<<8 | 3<<16, uint64(textTail1) | 1<<8 | 4<<16, 0,
		2<<8 | 1<<16, 0,
	}
	stored := uint64(0)
	for i, b := range frames {
		p := Parser{State: stored}
		if _, n, err := p.Next(b, noLimit); n != len(b) || err != nil {
			t.Fatalf("frame %d: n %d of %d, error %v", i, n, len(b), err)
		}
		if stored = p.State; stored != want[i] {
			t.Fatalf("state after frame %d is %#x: want %#x, or records of running daemons are misread", i, stored, want[i])
		}
	}
}

func TestValid(t *testing.T) {
	for _, tc := range []struct {
		state uint64
		want  bool
	}{
		{0, true},
		{1 << 8, true},                            // text, an empty fragment so far
		{1<<8 | 9<<16, true},                      // text
		{1<<8 | 1<<16 | uint64(textF4), true},     // text, inside a sequence
		{2<<8 | maxMessage<<16, true},             // binary
		{1, false},                                // inside a sequence of no message
		{1 << 16, false},                          // size of no message
		{1<<8 | uint64(textTail1), false},         // inside a sequence of an empty message
		{1<<8 | 1<<16 | uint64(textBad), false},   // text that had failed
		{2<<8 | 1<<16 | uint64(textTail1), false}, // sequence in a binary message
		{3 << 8, false},                           // reserved opcode
		{8 << 8, false},                           // control frames have no state
		{math.MaxUint64, false},
	} {
		if got := (Parser{State: tc.state}).Valid(); got != tc.want {
			t.Errorf("Valid of %#x is %v: want %v", tc.state, got, tc.want)
		}
	}
}

func TestErrorForLogs(t *testing.T) {
	var p Parser
	_, _, err := p.Next(frameOf(fin|text, "too long"), 4)
	if err == nil {
		t.Fatal("no error")
	}
	const want = "message is larger than 4 bytes, the limit here: send smaller ones (close code 1009)"
	if err.Error() != want {
		t.Errorf("got  %s\nwant %s", err, want)
	}
}

// Good frames cost no allocation, whole or not.
func TestNoAllocations(t *testing.T) {
	long := frameOf(fin|text, strings.Repeat("grüße ", 300))
	first, last := frameOf(text, "gr\xC3"), frameOf(fin|cont, "\xBC\xC3\x9Fe")
	bye := closeOf(1000, "bye")
	buffer := make([]byte, len(long))
	var p Parser
	take := func(frame []byte, there int) {
		copy(buffer, frame[:there])
		if _, n, err := p.Next(buffer[:there], 4096); err != nil || n != 0 && n != len(frame) {
			t.Fatalf("n %d of %d, error %v", n, len(frame), err)
		}
	}
	if got := testing.AllocsPerRun(100, func() {
		take(long, len(long)-1)
		take(long, len(long))
		take(first, len(first))
		take(last, len(last))
		take(bye, len(bye))
	}); got != 0 {
		t.Errorf("%v allocations: want 0", got)
	}
}
