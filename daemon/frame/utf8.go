package frame

import "unicode/utf8"

// textState is where a text message stands in its current UTF-8 sequence. It is the part of the
// automaton that unicode/utf8 does not offer: a sequence may be cut by the end of a fragment. The
// transitions are the grammar of RFC 3629, section 4; every state but textWhole takes one range of
// bytes.
//
//	textWhole ── 00..7F ──> textWhole
//	          ── C2..DF ──> textTail1 ── 80..BF ──> textWhole
//	          ── E1..EC, EE, EF ──> textTail2 ── 80..BF ──> textTail1
//	          ── F1..F3 ──> textTail3 ── 80..BF ──> textTail2
//	          ── E0 ──> textE0 ── A0..BF ──> textTail1      (shorter would be overlong)
//	          ── ED ──> textED ── 80..9F ──> textTail1      (above are surrogates)
//	          ── F0 ──> textF0 ── 90..BF ──> textTail2      (shorter would be overlong)
//	          ── F4 ──> textF4 ── 80..8F ──> textTail2      (above is past U+10FFFF)
//
// The values are stored in connection tables: they must not change.
type textState uint8

const (
	textWhole textState = 0
	textTail1 textState = 1
	textTail2 textState = 2
	textTail3 textState = 3
	textE0    textState = 4
	textED    textState = 5
	textF0    textState = 6
	textF4    textState = 7

	textBad textState = 8 // never stored; leads nowhere
)

// inside[s] is what the state s, inside a sequence, takes and leads to.
var inside = [textBad]struct {
	low, high byte
	next      textState
}{
	textTail1: {0x80, 0xBF, textWhole},
	textTail2: {0x80, 0xBF, textTail1},
	textTail3: {0x80, 0xBF, textTail2},
	textE0:    {0xA0, 0xBF, textTail1},
	textED:    {0x80, 0x9F, textTail1},
	textF0:    {0x90, 0xBF, textTail2},
	textF4:    {0x80, 0x8F, textTail2},
}

// step takes one byte.
func (s textState) step(c byte) textState {
	if s >= textBad {
		return textBad // restored from damaged memory
	}
	if s != textWhole {
		if t := inside[s]; c >= t.low && c <= t.high {
			return t.next
		}
		return textBad
	}
	switch {
	case c <= 0x7F:
		return textWhole
	case c < 0xC2: // a continuation byte, or the start of an overlong sequence
		return textBad
	case c <= 0xDF:
		return textTail1
	case c == 0xE0:
		return textE0
	case c == 0xED:
		return textED
	case c <= 0xEF:
		return textTail2
	case c == 0xF0:
		return textF0
	case c <= 0xF3:
		return textTail3
	case c == 0xF4:
		return textF4
	}
	return textBad
}

// walk takes bytes one by one.
func (s textState) walk(b []byte) textState {
	for _, c := range b {
		if s = s.step(c); s == textBad {
			break
		}
	}
	return s
}

// advance takes the bytes of b, and is textBad if they cannot be part of UTF-8 text. All but the
// sequences cut at the two ends goes through utf8.Valid, which takes ASCII 8 bytes at a time.
func (s textState) advance(b []byte) textState {
	for s != textWhole && len(b) > 0 {
		if s = s.step(b[0]); s == textBad {
			return textBad
		}
		b = b[1:]
	}
	whole := len(b) - cut(b)
	if !utf8.Valid(b[:whole]) {
		return textBad
	}
	return s.walk(b[whole:])
}

// cut returns how many bytes at the end of b, at most three, start a sequence that is longer than
// that.
func cut(b []byte) int {
	for n := 1; n <= 3 && n <= len(b); n++ {
		switch c := b[len(b)-n]; {
		case c < 0x80:
			return 0
		case c >= 0xF0 && n < 4, c >= 0xE0 && n < 3, c >= 0xC0 && n < 2:
			return n
		case c >= 0xC0:
			return 0
		}
	}
	return 0
}
