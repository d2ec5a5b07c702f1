package frame

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

// viable tells whether b can be the start of UTF-8 text. It knows nothing of states: it tries endings
// of up to three bytes, among them the first and last of every range in RFC 3629, section 4.
func viable(b []byte) bool {
	// Only the last three bytes can be part of a sequence that is not whole.
	for keep := range min(len(b), 3) + 1 {
		if tail := b[len(b)-keep:]; utf8.Valid(b[:len(b)-keep]) && canEnd(tail, 3) {
			return true
		}
	}
	return false
}

func canEnd(b []byte, more int) bool {
	if utf8.Valid(b) {
		return true
	}
	if more > 0 {
		for _, c := range []byte{0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF} {
			if canEnd(append(slices.Clip(b), c), more-1) {
				return true
			}
		}
	}
	return false
}

// failsAt returns how many bytes of b are enough to know that it is not UTF-8; len(b)+1: it may go on.
func failsAt(b []byte) int {
	for n := range len(b) + 1 {
		if !viable(b[:n]) {
			return n
		}
	}
	return len(b) + 1
}

// sequences are what Autobahn 6.* sends: the limits of RFC 3629 from both sides, sequences cut
// short, alone and in the middle of text.
var sequences = []struct {
	name  string
	bytes []string
}{
	{"ASCII and beyond", []string{"", "Hello", "\x00", "\x7F", "Hello-µ@ßöäüàá-UTF-8!!", "κόσμε", "日本語", "𝄞🌍"}},
	{"first of each length", []string{"\xC2\x80", "\xE0\xA0\x80", "\xF0\x90\x80\x80"}},
	{"last of each length", []string{"\x7F", "\xDF\xBF", "\xEF\xBF\xBF", "\xF4\x8F\xBF\xBF"}},
	{"around the surrogates", []string{"\xED\x9F\xBF", "\xEE\x80\x80", "\xEF\xBF\xBD"}},
	{"surrogates", []string{
		"\xED\xA0\x80", "\xED\xAD\xBF", "\xED\xAE\x80", "\xED\xAF\xBF", "\xED\xB0\x80", "\xED\xBE\x80", "\xED\xBF\xBF",
		"\xED\xA0\x80\xED\xB0\x80", "\xED\xAF\xBF\xED\xBF\xBF", "κόσμε\xED\xA0\x80edited",
	}},
	{"past U+10FFFF", []string{"\xF4\x90\x80\x80", "\xF5\x80\x80\x80", "\xF7\xBF\xBF\xBF", "κόσμε\xF4\x90\x80\x80edited"}},
	{"five and six bytes", []string{"\xF8\x88\x80\x80\x80", "\xFB\xBF\xBF\xBF\xBF", "\xFC\x84\x80\x80\x80\x80", "\xFD\xBF\xBF\xBF\xBF\xBF"}},
	{"overlong", []string{
		"\xC0\xAF", "\xE0\x80\xAF", "\xF0\x80\x80\xAF", "\xF8\x80\x80\x80\xAF", "\xFC\x80\x80\x80\x80\xAF",
		"\xC0\x80", "\xC1\xBF", "\xE0\x80\x80", "\xE0\x9F\xBF", "\xF0\x80\x80\x80", "\xF0\x8F\xBF\xBF",
	}},
	{"continuation bytes alone", []string{
		"\x80", "\xBF", "\x80\xBF", "\x80\xBF\x80", "\x80\xBF\x80\xBF", "a\x80", "ü\x80", "日\xBF", "🌍\x80",
	}},
	{"starts alone", []string{
		"\xC2 ", "\xDF ", "\xE0 ", "\xEF ", "\xF0 ", "\xF4 ", "\xC0 ", "\xF5 ", "\xC2\xC2", "\xE0\xE0", "\xF4\xF4", "\xE1\x80\xC2", "\xF1\x80\x80\xE1",
	}},
	{"cut short", []string{
		"\xC2", "\xDF", "\xE0\xA0", "\xE1", "\xEF\xBF", "\xED\x9F", "\xF0", "\xF0\x90", "\xF0\x90\x80", "\xF4\x8F\xBF", "\xF3\xBF\xBF", "κόσμ\xCE",
	}},
	{"cut short, then more", []string{"\xE0\xA0 ", "\xEF\xBF\xEF\xBF\xBF", "\xF0\x90\x80 ", "\xF4\x8F\xBF\xF4", "\xCEκ"}},
	{"never in UTF-8", []string{"\xFE", "\xFF", "\xFE\xFE\xFF\xFF"}},
	{"noncharacters are characters", []string{
		"\xEF\xBF\xBE", "\xEF\xB7\x90", "\xEF\xB7\xAF", "\xF0\x9F\xBF\xBE", "\xF0\x9F\xBF\xBF", "\xF3\xBF\xBF\xBE", "\xF4\x8F\xBF\xBE",
	}},
	{"byte order mark", []string{"\xEF\xBB\xBFtext", "\xFE\xFFtext"}},
}

// Autobahn 6.*: each text as one frame, cut into two fragments at each place, and a fragment a
// byte, with a ping between fragments. The failure must be known with the byte that makes it so.
func TestText(t *testing.T) {
	for _, class := range sequences {
		for _, sequence := range class.bytes {
			for _, around := range []struct{ before, after string }{
				{"", ""}, {"before", "after"}, {"日本", "語"}, {strings.Repeat("x", 509), "y"}, {strings.Repeat("long ", 30), strings.Repeat(" text", 30)},
			} {
				whole := []byte(around.before + sequence + around.after)
				t.Run(class.name, func(t *testing.T) { testText(t, whole, len(around.before)) })
			}
		}
	}
}

// testText sends one message; at is where in it the sequence begins that is looked at.
func testText(t *testing.T, message []byte, at int) {
	t.Helper()
	cuts := [][]int{nil}
	for cut := range len(message) + 1 {
		// In long texts around the sequence, and some elsewhere.
		if len(message) < 40 || cut >= at-4 && cut <= at+12 || cut%97 == 0 {
			cuts = append(cuts, []int{cut})
		}
	}
	if len(message) < 40 {
		var all []int
		for cut := range len(message) {
			all = append(all, cut)
		}
		cuts = append(cuts, all)
	}
	bad := failsAt(message)
	for _, cut := range cuts {
		// The stream, what is to be received of it, and after how many bytes it is over.
		var stream []byte
		var want []string
		over := 0
		failed := func(end, code int) {
			if over == 0 {
				over = end
				want = append(want, fmt.Sprintf("fail %d", code))
			}
		}
		start := 0
		for i, end := range append(slices.Clone(cut), len(message)) {
			if i > 0 {
				stream = append(stream, frameOf(fin|ping, "")...)
			}
			if i > 0 && over == 0 {
				want = append(want, `ping ""`)
			}
			op, first := Text, text
			if i > 0 {
				op, first = Continuation, cont
			}
			f := Frame{Op: op, Fin: i == len(cut), Message: Text, Payload: message[start:end]}
			if f.Fin {
				first |= fin
			}
			frame := frameOf(first, string(f.Payload))
			switch {
			case bad <= end:
				failed(len(stream)+len(frame)-(end-bad), CloseInvalidData)
			case f.Fin && !utf8.Valid(message):
				failed(len(stream)+len(frame), CloseInvalidData)
			case over == 0:
				want = append(want, describe(f))
			}
			stream = append(stream, frame...)
			start = end
		}
		if over == 0 {
			over = len(stream)
		}

		if got, _ := receive(t, stream, noLimit); !slices.Equal(got, want) {
			t.Fatalf("%q in fragments cut at %v:\ngot  %q\nwant %q", message, cut, got, want)
		}
		if got, arrived := receive(t, stream, noLimit, over-1, over); !slices.Equal(got, want) || arrived != over && over != len(stream) {
			t.Fatalf("%q in fragments cut at %v, all but one of %d bytes first:\ngot  %q after %d\nwant %q", message, cut, over, got, arrived, want)
		}
		if over > 1 && want[len(want)-1] == "fail 1007" {
			if got, _ := receive(t, stream[:over-1], noLimit); !slices.Equal(got, want[:len(want)-1]) {
				t.Fatalf("%q in fragments cut at %v, without the last of %d bytes:\ngot  %q\nwant %q", message, cut, over, got, want[:len(want)-1])
			}
		}
	}
}

// The text of Autobahn 6.4.1: the frame goes on after the bad byte, and must fail before its end.
func TestTextFailsFast(t *testing.T) {
	frame := frameOf(fin|text, "κόσμε\xF4\x90\x80\x80"+strings.Repeat("edited", 1000))
	header := 8
	got, arrived := receive(t, frame, noLimit, header+11, header+12)
	if !slices.Equal(got, []string{"fail 1007"}) || arrived != header+12 {
		t.Errorf("%q after %d bytes: want fail 1007 after %d", got, arrived, header+12)
	}
}

// Every state, reached by a shortest text, takes exactly the bytes that UTF-8 allows there.
func TestSteps(t *testing.T) {
	reach := map[textState]string{
		textWhole: "", textTail1: "\xC2", textTail2: "\xE1", textTail3: "\xF1",
		textE0: "\xE0", textED: "\xED", textF0: "\xF0", textF4: "\xF4",
	}
	for s := range textBad {
		before, ok := reach[s]
		if !ok {
			t.Fatalf("state %d is not reached", s)
		}
		if got := textWhole.walk([]byte(before)); got != s {
			t.Fatalf("state after % x is %d: want %d", before, got, s)
		}
		for c := range 256 {
			b := append([]byte(before), byte(c))
			next := s.step(byte(c))
			if (next != textBad) != viable(b) {
				t.Errorf("state after % x is %d", b, next)
			}
			if (next == textWhole) != utf8.Valid(b) {
				t.Errorf("state after % x is %d, utf8.Valid says %v", b, next, utf8.Valid(b))
			}
		}
	}
	for s := textBad; s != 0; s++ { // up to the overflow of the byte
		if got := s.step('a'); got != textBad {
			t.Errorf("state %d leads to %d", s, got)
		}
	}
}

// All texts of four bytes out of those where the grammar of RFC 3629 changes, cut at each place.
func TestAdvanceAgainstUTF8(t *testing.T) {
	edges := []byte{
		0x00, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xC1, 0xC2, 0xDF,
		0xE0, 0xE1, 0xEC, 0xED, 0xEE, 0xEF, 0xF0, 0xF1, 0xF3, 0xF4, 0xF5, 0xFF,
	}
	n := len(edges)
	b := make([]byte, 4)
	for i := range n * n * n * n {
		b[0], b[1], b[2], b[3] = edges[i%n], edges[i/n%n], edges[i/n/n%n], edges[i/n/n/n]
		want := utf8.Valid(b)
		for at := range len(b) {
			if got := textWhole.advance(b[:at]).advance(b[at:]); (got == textWhole) != want {
				t.Fatalf("state after % x, % x is %d, utf8.Valid says %v", b[:at], b[at:], got, want)
			}
		}
	}
}

// The piece-wise look at masked text sees what unmasking the whole would show, and touches nothing.
func TestPeekText(t *testing.T) {
	const key = 0x3D21FA37
	for _, end := range []string{"", "\xE6", "\xE6\x97", "\xFF"} {
		for n := range 400 {
			plain := []byte(strings.Repeat("x", n) + strings.Repeat("日本語", 100) + end)
			masked := bytes.Clone(plain)
			unmask(masked, key)
			arrived := bytes.Clone(masked)
			if got, want := peekText(textWhole, arrived, key), textWhole.advance(plain); got != want {
				t.Fatalf("%d bytes: state %d, want %d", len(plain), got, want)
			}
			if !bytes.Equal(arrived, masked) {
				t.Fatalf("%d bytes: buffer changed", len(plain))
			}
		}
	}
}
