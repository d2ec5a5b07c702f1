package frame

import (
	"bytes"
	"fmt"
	"math"
	"strings"
	"testing"
)

// The examples of RFC 6455, 5.7, and the sizes around the steps of the length.
func TestHeaders(t *testing.T) {
	for _, tc := range []struct {
		op      Opcode
		payload int
		want    string
	}{
		{Text, 5, "81 05"},
		{Text, 0, "81 00"},
		{Ping, 5, "89 05"},
		{Pong, 125, "8A 7D"},
		{Close, 2, "88 02"},
		{Binary, 125, "82 7D"},
		{Binary, 126, "82 7E 007E"},
		{Binary, 256, "82 7E 0100"},
		{Text, 65535, "81 7E FFFF"},
		{Binary, 65536, "82 7F 0000000000010000"},
		{Binary, math.MaxInt32, "82 7F 000000007FFFFFFF"},
	} {
		want := octets(tc.want)
		if got := AppendHeader([]byte("before"), tc.op, tc.payload); string(got) != "before"+string(want) {
			t.Errorf("AppendHeader(%d, %d) = % x: want % x", tc.op, tc.payload, got[6:], want)
		}
		if got := HeaderSize(tc.payload); got != len(want) {
			t.Errorf("HeaderSize(%d) = %d: want %d", tc.payload, got, len(want))
		}
		exact := make([]byte, len(want))
		if n := PutHeader(exact, tc.op, tc.payload); n != len(want) || !bytes.Equal(exact, want) {
			t.Errorf("PutHeader(%d, %d) = %d, % x: want % x", tc.op, tc.payload, n, exact, want)
		}
		// The log has other frames behind.
		roomy := bytes.Repeat([]byte{0xEE}, 2*MaxHeader)
		if n := PutHeader(roomy, tc.op, tc.payload); bytes.Count(roomy[n:], []byte{0xEE}) != len(roomy)-n {
			t.Errorf("PutHeader(%d, %d) wrote past the header: % x", tc.op, tc.payload, roomy)
		}
	}
}

func TestHeaderMisuse(t *testing.T) {
	panics := func(name string, f func()) {
		t.Helper()
		defer func() {
			if recover() == nil {
				t.Errorf("%s: no panic", name)
			}
		}()
		f()
	}
	for _, payload := range []int{0, 126, 65536} {
		short := make([]byte, HeaderSize(payload)-1)
		panics(fmt.Sprintf("%d bytes for the header of %d", len(short), payload), func() { PutHeader(short, Text, payload) })
		if bytes.Count(short, []byte{0}) != len(short) {
			t.Errorf("part of a header that does not fit was written: % x", short)
		}
	}
	panics("negative size", func() { HeaderSize(-1) })
}

func TestPingPong(t *testing.T) {
	if got := AppendPing(nil, []byte("Hello")); !bytes.Equal(got, octets("89 05 48656c6c6f")) {
		t.Errorf("ping is % x", got)
	}
	if got := AppendPong([]byte{1}, nil); !bytes.Equal(got, octets("01 8A 00")) {
		t.Errorf("pong is % x", got)
	}
	long := []byte(strings.Repeat("x", 126))
	for _, got := range [][]byte{AppendPing(nil, long), AppendPong(nil, long)} {
		if _, payload, ok := Payload(got); !ok || len(payload) != 125 {
			t.Errorf("control frame of 126 bytes of payload became % x", got)
		}
	}
}

func TestPayload(t *testing.T) {
	for _, n := range []int{0, 1, 125, 126, 127, 65535, 65536} {
		for _, op := range []Opcode{Text, Binary, Ping} {
			if op == Ping && n > 125 {
				continue
			}
			want := bytes.Repeat([]byte{'p'}, n)
			built := append(AppendHeader(nil, op, n), want...)
			gotOp, got, ok := Payload(built)
			if !ok || gotOp != op || !bytes.Equal(got, want) || cap(got) != len(got) {
				t.Errorf("payload of %d bytes, opcode %d: got %d, %d bytes (capacity %d), %v", n, op, gotOp, len(got), cap(got), ok)
			}
			if _, _, ok := Payload(built[:len(built)-1]); ok {
				t.Errorf("frame of %d bytes accepted without its last byte", n)
			}
			if _, _, ok := Payload(append(built, 0)); ok {
				t.Errorf("frame of %d bytes accepted with one byte more", n)
			}
		}
	}
	for _, nonsense := range []string{
		"", "81", // too short
		"01 00",          // a fragment
		"80 00",          // a continuation
		"83 00", "8B 00", // reserved opcodes
		"C1 00", "91 00", // reserved bits
		"81 80 00000000", // masked
		"81 82 00000000 4f4b",
		"81 7E", "81 7E 00", "81 7E 0000", "81 7E 0001 61", // not the shortest length
		"81 7F 0000000000000001 61",
		"81 7F 00000000",
		"81 7F FFFFFFFFFFFFFFFF",
	} {
		if op, payload, ok := Payload(octets(nonsense)); ok || op != 0 || payload != nil {
			t.Errorf("% s accepted: %d, % x", nonsense, op, payload)
		}
	}
	if _, _, ok := Payload(append(AppendHeader(nil, Ping, 126), make([]byte, 126)...)); ok {
		t.Error("ping of 126 bytes accepted")
	}
}
