package frame

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"testing"
	"unicode/utf8"
)

// reference receives a stream of whole frames the plain way: it keeps the text of a message and
// looks at all of it again after each fragment. ok is false if the stream ends inside a frame, of
// which it cannot say whether the part that is there must fail.
func reference(stream []byte, limit int) (transcript []string, ok bool) {
	var message Opcode
	var content []byte
	fail := func(code int) ([]string, bool) { return append(transcript, fmt.Sprintf("fail %d", code)), true }
	for len(stream) > 0 {
		if len(stream) < 2 {
			return transcript, false
		}
		last, reserved, op := stream[0] >= 128, stream[0]/16%8, Opcode(stream[0]%16)
		isMasked, length, at := stream[1] >= 128, uint64(stream[1]%128), 2
		control := op == Close || op == Ping || op == Pong
		switch {
		case reserved != 0, !control && op > Binary, !isMasked:
			return fail(1002)
		case control && (!last || length > 125), op == Close && length == 1:
			return fail(1002)
		case op == Continuation && message == 0, !control && op != Continuation && message != 0:
			return fail(1002)
		}
		if length == 126 {
			if len(stream) < 4 {
				return transcript, false
			}
			if length, at = uint64(binary.BigEndian.Uint16(stream[2:])), 4; length < 126 {
				return fail(1002)
			}
		} else if length == 127 {
			if len(stream) < 10 {
				return transcript, false
			}
			if length, at = binary.BigEndian.Uint64(stream[2:]), 10; length < 65536 || length >= 1<<63 {
				return fail(1002)
			}
		}
		if !control && length+uint64(len(content)) > uint64(limit) {
			return fail(1009)
		}
		if uint64(len(stream)) < uint64(at)+4+length {
			return transcript, false
		}
		key := stream[at : at+4]
		payload := bytes.Clone(stream[at+4 : at+4+int(length)])
		for i := range payload {
			payload[i] ^= key[i%4]
		}
		stream = stream[at+4+int(length):]

		f := Frame{Op: op, Fin: last, Payload: payload}
		if control {
			if op == Close && len(payload) > 0 {
				code := int(payload[0])*256 + int(payload[1])
				known := slices.Contains([]int{1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014}, code)
				if !known && (code < 3000 || code > 4999) {
					return fail(1002)
				}
				if !utf8.Valid(payload[2:]) {
					return fail(1007)
				}
			}
		} else {
			if op != Continuation {
				message = op
			}
			f.Message = message
			content = append(content, payload...)
			if message == Text && (!viable(content) || last && !utf8.Valid(content)) {
				return fail(1007)
			}
			if last {
				message, content = 0, nil
			}
		}
		transcript = append(transcript, describe(f))
	}
	return transcript, true
}

// FuzzNext receives any stream at once, cut in two, and, if it is short, byte by byte, and compares with the
// reference. A stream that ends inside a frame may fail, or not, but always in the same way.
func FuzzNext(f *testing.F) {
	for _, e := range slices.Concat(framing(), pings(), reservedBits(), opcodes(), fragments(), lengths(), masking(), closes(), limits()) {
		if stream := slices.Concat(e.send...); len(stream) < 2000 {
			f.Add(stream, uint16(e.limit), uint16(len(stream)/2))
		}
	}
	for _, class := range sequences {
		for _, s := range class.bytes {
			f.Add(frameOf(fin|text, s), uint16(1000), uint16(7))
			f.Add(slices.Concat(frameOf(text, s[:len(s)/2]), frameOf(fin|cont, s[len(s)/2:])), uint16(1000), uint16(9))
		}
	}
	f.Fuzz(func(t *testing.T, stream []byte, limit, cut uint16) {
		whole, _ := receive(t, stream, int(limit))
		want, ok := reference(stream, int(limit))
		early := !ok && len(whole) == len(want)+1 && slices.Equal(whole[:len(want)], want)
		if !slices.Equal(whole, want) && !early {
			t.Fatalf("% x, limit %d:\ngot  %q\nwant %q", stream, limit, whole, want)
		}
		ends := []int{min(int(cut), len(stream))}
		for range 2 {
			if got, _ := receive(t, stream, int(limit), ends...); !slices.Equal(got, whole) {
				t.Fatalf("% x, limit %d, cut at %v:\ngot  %q\nwant %q", stream, limit, ends, got, whole)
			}
			ends = ends[:0]
			for i := range min(len(stream), 200) {
				ends = append(ends, i)
			}
		}
		if early {
			completed(t, stream, int(limit), whole)
		}
	})
}

// completed adds bytes to a stream that failed inside its last frame: it must fail in the same way.
func completed(t *testing.T, stream []byte, limit int, want []string) {
	t.Helper()
	for _, fill := range []byte{0x00, 0x80, 0xFF} {
		longer := append(bytes.Clone(stream), bytes.Repeat([]byte{fill}, 300)...)
		if got, _ := receive(t, longer, limit); !slices.Equal(got, want) {
			t.Fatalf("% x with more %x, limit %d:\ngot  %q\nwant %q", stream, fill, limit, got, want)
		}
		if got, ok := reference(longer, limit); ok && !slices.Equal(got, want) {
			t.Fatalf("% x with more %x, limit %d:\nreference %q\nfailed as %q", stream, fill, limit, got, want)
		}
	}
}

// FuzzRestored starts from any State, as memory that is damaged may hold it.
func FuzzRestored(f *testing.F) {
	f.Add(uint64(0), []byte{})
	f.Add(uint64(1<<8|3<<16)|uint64(textTail2), frameOf(fin|cont, "\x8C\x8D"))
	f.Add(^uint64(0), frameOf(cont, "x"))
	f.Add(uint64(5<<8|200), frameOf(fin|cont, "text"))
	f.Add(uint64(1<<8|9), frameOf(cont, "text")[:8])
	f.Fuzz(func(t *testing.T, state uint64, b []byte) {
		p := Parser{State: state}
		valid := p.Valid()
		frame, n, err := p.Next(bytes.Clone(b), 1<<20)
		switch {
		case n < 0 || n > len(b) || len(frame.Payload) > n:
			t.Fatalf("frame of %d bytes, payload of %d, in %d", n, len(frame.Payload), len(b))
		case (n == 0 || err != nil) && p.State != state:
			t.Fatalf("state changed from %#x to %#x without a frame", state, p.State)
		case valid && !p.Valid():
			t.Fatalf("state went from %#x to the invalid %#x", state, p.State)
		}
	})
}

// FuzzBuild masks a frame that was built here, as a client would send it, and parses it again.
func FuzzBuild(f *testing.F) {
	f.Add(byte(1), []byte("Hello"), uint32(0x3D21FA37))
	f.Add(byte(2), bytes.Repeat([]byte{0xFF}, 126), uint32(1))
	f.Add(byte(2), make([]byte, 65536), uint32(0xFFFFFFFF))
	f.Add(byte(9), []byte{}, uint32(0))
	f.Add(byte(10), []byte("ping"), uint32(0x01020304))
	f.Add(byte(8), []byte("\x03\xE8bye"), uint32(0x01020304))
	f.Fuzz(func(t *testing.T, opcode byte, payload []byte, key uint32) {
		op := Opcode(opcode % 16)
		built := append(AppendHeader(nil, op, len(payload)), payload...)
		size := len(built) - len(payload)
		if size != HeaderSize(len(payload)) {
			t.Fatalf("header of %d bytes: HeaderSize says %d", size, HeaderSize(len(payload)))
		}
		gotOp, got, ok := Payload(built)
		allowed := op == Text || op == Binary || op >= Close && op <= Pong && len(payload) <= 125
		if ok != allowed || ok && (gotOp != op || !bytes.Equal(got, payload)) {
			t.Fatalf("Payload of opcode %d, %d bytes: %d, %d bytes, %v", op, len(payload), gotOp, len(got), ok)
		}

		sent := bytes.Clone(built[:size])
		sent[1] |= maskBit
		sent = binary.LittleEndian.AppendUint32(sent, key)
		for i, c := range payload {
			sent = append(sent, c^byte(key>>(i%4*8)))
		}
		var p Parser
		frame, n, err := p.Next(sent, len(payload))
		_, _, closeErr := ParseClose(payload)
		allowed = allowed && (op != Text || utf8.Valid(payload)) && (op != Close || closeErr == nil)
		if allowed != (err == nil) {
			t.Fatalf("opcode %d, payload % x: error %v", op, payload, err)
		}
		if err == nil && (n != len(sent) || frame.Op != op || !frame.Fin || !bytes.Equal(frame.Payload, payload) || p != Parser{}) {
			t.Fatalf("opcode %d, payload % x: got %+v, %d bytes of %d", op, payload, frame, n, len(sent))
		}
	})
}

// FuzzPayload: what Payload accepts is what this package builds, byte for byte.
func FuzzPayload(f *testing.F) {
	f.Add([]byte{0x81, 0x02, 'O', 'K'})
	f.Add(AppendClose(nil, CloseNormal, "bye"))
	f.Add(append(AppendHeader(nil, Binary, 126), make([]byte, 126)...))
	f.Add(append(AppendHeader(nil, Binary, 65536), make([]byte, 65536)...))
	f.Add(octets("81 7E 0001 61"))
	f.Add(octets("81 7F 0000000000000001 61"))
	f.Fuzz(func(t *testing.T, b []byte) {
		op, payload, ok := Payload(b)
		if ok && !bytes.Equal(append(AppendHeader(nil, op, len(payload)), payload...), b) {
			t.Fatalf("% x accepted as opcode %d, payload % x", b, op, payload)
		}
	})
}

// FuzzClose: every close frame that is built can be parsed, and says what was meant as far as fits.
func FuzzClose(f *testing.F) {
	f.Add(uint16(1000), "bye")
	f.Add(uint16(1005), "")
	f.Add(uint16(4000), "grüße\xFF")
	f.Add(uint16(1013), string(bytes.Repeat([]byte("日"), 50)))
	f.Fuzz(func(t *testing.T, code uint16, reason string) {
		op, payload, ok := Payload(AppendClose(nil, code, reason))
		if !ok || op != Close {
			t.Fatalf("close frame with code %d, reason %q is none", code, reason)
		}
		gotCode, got, err := ParseClose(payload)
		if err != nil {
			t.Fatalf("close frame with code %d, reason %q: %v", code, reason, err)
		}
		if gotCode != code && (gotCode != CloseNoStatus || sendable(code)) {
			t.Errorf("code %d became %d", code, gotCode)
		}
		if gotCode == code && utf8.ValidString(reason) && len(reason) <= maxReason && got != reason && code != CloseNoStatus {
			t.Errorf("reason %q became %q", reason, got)
		}
		if len(got) > len(reason) || reason[:len(got)] != got {
			t.Errorf("reason %q became %q", reason, got)
		}
	})
}

// FuzzText advances over any bytes in three pieces and byte by byte: the same, and as unicode/utf8 says.
func FuzzText(f *testing.F) {
	for _, class := range sequences {
		for _, s := range class.bytes {
			f.Add([]byte("text "+s+" text"), byte(6), byte(8))
		}
	}
	f.Fuzz(func(t *testing.T, b []byte, first, second byte) {
		i := min(int(first), len(b))
		j := min(i+int(second), len(b))
		got := textWhole.advance(b[:i]).advance(b[i:j]).advance(b[j:])
		if walked := textWhole.walk(b); got != walked {
			t.Fatalf("% x cut at %d and %d: state %d, byte by byte %d", b, i, j, got, walked)
		}
		if (got == textWhole) != utf8.Valid(b) {
			t.Fatalf("% x: state %d, utf8.Valid says %v", b, got, utf8.Valid(b))
		}
		if (got != textBad) != viable(b) {
			t.Fatalf("% x: state %d, can go on: %v", b, got, viable(b))
		}
	})
}
