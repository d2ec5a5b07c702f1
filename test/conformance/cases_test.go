package conformance

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// limit is websocket.max_message of the daemon that the cases are run against.
const limit = 32 << 10

// testCase is one case. An expectation is written for a client whose messages come back, and ends with the close frame where
// the client is to be closed; mode.told makes of it what another client is told.
type testCase struct {
	number, name string
	send         []string // each with one write
	want         []event
	lenient      [][]event // what the RFC allows as well, but does not prefer
	compressed   bool      // for clients with permessage-deflate only
	plain        bool      // for clients without it only
	raw          bool      // for clients of raw frames only: those of commands are told earlier that it is binary
}

func (c *testCase) fits(m *mode) bool {
	switch {
	case c.compressed && !m.deflates, c.plain && m.deflates, c.raw && m.commands:
		return false
	case m.commands: // who sends a binary message is closed at its first fragment: that is case 1.2
		if strings.HasPrefix(c.number, "1.2.") {
			return true
		}
		for _, e := range c.want {
			if e.what == "binary" {
				return false
			}
		}
	}
	return true
}

func text(payload string) event          { return event{"text", payload} }
func binaryMessage(payload string) event { return event{"binary", payload} }
func pong(payload string) event          { return event{"pong", payload} }
func closed(code string) event           { return event{"close", code} }

// chopped is bytes that are sent so many at a time.
func chopped(b string, size int) (pieces []string) {
	for len(b) > size {
		pieces, b = append(pieces, b[:size]), b[size:]
	}
	return append(pieces, b)
}

// chapter numbers cases as they are added.
type chapter struct {
	cases  *[]testCase
	prefix string
	n      int
}

func (c *chapter) add(name string, send []string, want ...event) *testCase {
	c.n++
	*c.cases = append(*c.cases, testCase{number: fmt.Sprintf("%s.%d", c.prefix, c.n), name: name, send: send, want: want})
	return &(*c.cases)[len(*c.cases)-1]
}

func allCases() []testCase {
	var all []testCase
	in := func(prefix string) *chapter { return &chapter{cases: &all, prefix: prefix} }
	framing(in)
	pings(in)
	reserved(in)
	fragments(in)
	utf8Cases(in)
	closes(in)
	forms(in)
	limits(in)
	compression(in)
	return all
}

func framing(in func(string) *chapter) {
	sizes := []int{0, 1, 125, 126, 127, 128, 4096, limit}
	for _, kind := range []struct {
		prefix string
		op     byte
		event  func(string) event
		fill   string
	}{{"1.1", opText, text, "*"}, {"1.2", opBinary, binaryMessage, "\xfe"}} {
		c := in(kind.prefix)
		for _, size := range sizes {
			payload := strings.Repeat(kind.fill, size)
			c.add(fmt.Sprintf("message of %d bytes", size), []string{framed(fin|kind.op, payload)}, kind.event(payload))
		}
		for _, size := range []int{0, 125, 126} {
			payload := strings.Repeat(kind.fill, size)
			c.add(fmt.Sprintf("message of %d bytes, byte by byte", size), chopped(framed(fin|kind.op, payload), 1), kind.event(payload))
		}
		payload := strings.Repeat(kind.fill, limit)
		c.add("large message in pieces of 997 bytes", chopped(framed(fin|kind.op, payload), 997), kind.event(payload))
	}
	c := in("1.3")
	c.add("two messages in one segment", []string{framed(fin|opText, "one") + framed(fin|opText, "two")}, text("one"), text("two"))
	c.add("two messages in segments that do not end with them", chopped(framed(fin|opText, "one")+framed(fin|opText, "two"), 5), text("one"), text("two"))
}

func pings(in func(string) *chapter) {
	c := in("2")
	full := strings.Repeat("\xfe", 125)
	ping := func(payload string) string { return framed(fin|opPing, payload) }
	c.add("ping without payload", []string{ping("")}, pong(""))
	c.add("ping with text", []string{ping("Hello, world!")}, pong("Hello, world!"))
	c.add("ping with bytes that are no text", []string{ping("\x00\xff\xfe\xfd\xfc\xfb\x00\xff")}, pong("\x00\xff\xfe\xfd\xfc\xfb\x00\xff"))
	c.add("ping of 125 bytes", []string{ping(full)}, pong(full))
	c.add("ping of 126 bytes", []string{ping(full + "\xfe")}, closed("1002"))
	for _, control := range []struct {
		name string
		op   byte
	}{{"ping", opPing}, {"pong", opPong}, {"close frame", opClose}} { // of 65,536 bytes, whose length is in its shortest form
		c.add(control.name+" of 65536 bytes, of which only the header comes", []string{header(fin|control.op, 1<<16, in64, keys[0])}, closed("1002"))
	}
	c.add("ping of 125 bytes, byte by byte", chopped(ping(full), 1), pong(full))
	c.add("pong that nobody has asked for", []string{framed(fin|opPong, "")})
	c.add("pong with payload that nobody has asked for", []string{framed(fin|opPong, "unsolicited")})
	c.add("pong, then ping", []string{framed(fin|opPong, "unsolicited"), ping("ping")}, pong("ping"))
	var ten string
	var answers []event
	for i := range 10 {
		ten += ping(fmt.Sprint("payload-", i))
		answers = append(answers, pong(fmt.Sprint("payload-", i)))
	}
	c.add("ten pings in one segment", []string{ten}, answers...)
	c.add("ten pings byte by byte", chopped(ten, 1), answers...)
	c.add("pong of 126 bytes", []string{framed(fin|opPong, full+"\xfe")}, closed("1002"))
	c.add("ping without FIN", []string{framed(opPing, "x")}, closed("1002"))
	c.add("pong without FIN", []string{framed(opPong, "x")}, closed("1002"))
}

func reserved(in func(string) *chapter) {
	c := in("3")
	for bits := byte(1); bits < 8; bits++ {
		first := fin | bits<<4
		name := fmt.Sprintf("reserved bits %03b", bits)
		bad := func(name string, op byte, payload string) *testCase {
			return c.add(name, []string{framed(fin|opText, "before") + framed(first|op, payload) + framed(fin|opPing, "")}, text("before"), closed("1002"))
		}
		// RSV1 of a text or binary message means with permessage-deflate that it is compressed: chapter 13.
		bad(name+" of a text", opText, "Hello").plain = bits == 4
		bad(name+" of a text, with nothing but its first byte", opText, "").plain = bits == 4
		bad(name+" of a binary message", opBinary, "\xfe").plain = bits == 4
		bad(name+" of a ping", opPing, "")
		bad(name+" of a pong", opPong, "")
		bad(name+" of a close frame", opClose, "\x03\xe8")
		c.add(name+" of a continuation", []string{framed(opText, "before") + framed(first|opContinuation, "after")}, closed("1002"))
	}
	c = in("4")
	for _, op := range []byte{3, 4, 5, 6, 7, 11, 12, 13, 14, 15} {
		name := fmt.Sprintf("reserved opcode %d", op)
		c.add(name+" without payload", []string{framed(fin|op, "")}, closed("1002"))
		c.add(name+" with payload", []string{framed(fin|op, "reserved")}, closed("1002"))
		c.add(name+" after a message and before a ping", []string{framed(fin|opText, "Hello"), framed(fin|op, "") + framed(fin|opPing, "")}, text("Hello"), closed("1002"))
		c.add(name+" in the middle of a message", []string{framed(opText, "Hello") + framed(fin|op, "")}, closed("1002"))
		c.add(name+" without FIN", []string{framed(op, "")}, closed("1002"))
		c.add(name+", of which only the first byte comes", []string{string([]byte{fin | op})}, closed("1002"))
	}
}

func fragments(in func(string) *chapter) {
	c := in("5")
	first, more, last := func(s string) string { return framed(opText, s) }, func(s string) string { return framed(opContinuation, s) },
		func(s string) string { return framed(fin|opContinuation, s) }
	ping := func(payload string) string { return framed(fin|opPing, payload) }
	// Each in one segment, a frame at a time, and byte by byte.
	each := func(name string, frames []string, want ...event) {
		c.add(name+", in one segment", []string{strings.Join(frames, "")}, want...)
		c.add(name+", frame by frame", frames, want...)
		c.add(name+", byte by byte", chopped(strings.Join(frames, ""), 1), want...)
	}
	each("ping in two fragments", []string{framed(opPing, "fragment1"), last("fragment2")}, closed("1002"))
	each("pong in two fragments", []string{framed(opPong, "fragment1"), last("fragment2")}, closed("1002"))
	each("text in two fragments", []string{first("fragment1"), last("fragment2")}, text("fragment1fragment2"))
	each("binary message in three fragments", []string{framed(opBinary, "\xfe"), more("\xff"), last("\x00")}, binaryMessage("\xfe\xff\x00"))
	each("text in two fragments with a ping in between", []string{first("fragment1"), ping("ping"), last("fragment2")}, pong("ping"), text("fragment1fragment2"))
	each("continuation with FIN, and nothing to continue", []string{last("non-continuation payload"), framed(fin|opText, "Hello")}, closed("1002"))
	each("continuation without FIN, and nothing to continue", []string{more("non-continuation payload"), framed(fin|opText, "Hello")}, closed("1002"))
	each("continuation after a message that is whole", []string{framed(fin|opText, "one"), last("two")}, text("one"), closed("1002"))
	each("text inside of a text", []string{first("fragment1"), framed(fin|opText, "fragment2")}, closed("1002"))
	each("beginning of a text inside of a text", []string{first("fragment1"), first("fragment2")}, closed("1002"))
	each("binary message inside of a text", []string{first("fragment1"), framed(fin|opBinary, "fragment2")}, closed("1002"))
	each("five fragments with pings in between", []string{first("fragment1"), more("fragment2"), ping("ping1"), more("fragment3"), more("fragment4"),
		ping("ping2"), last("fragment5")}, pong("ping1"), pong("ping2"), text("fragment1fragment2fragment3fragment4fragment5"))
	each("fragments with pongs in between", []string{first("a"), framed(fin|opPong, "pong"), more("b"), framed(fin|opPong, ""), last("c")}, text("abc"))
	each("fragments that are empty", []string{first(""), more(""), more(""), last("")}, text(""))
	each("fragments that are empty but the one in the middle", []string{first(""), more("middle"), last("")}, text("middle"))
	each("two messages in fragments", []string{first("a"), last("b"), first("c"), ping("p"), last("d")}, text("ab"), pong("p"), text("cd"))
	each("command in fragments with a ping in between", []string{first(`{"command":"ping",`), ping("p"), more(`"ref":"κ`), last(`όσμε"}`)}, pong("p"),
		text(`{"command":"ping","ref":"κόσμε"}`))

	// The pong comes although the message is not whole.
	c.add("pings in the middle of a message that never ends", []string{first("fragment1"), ping("1"), more("fragment2"), ping("2")}, pong("1"), pong("2"))
	thousand := []string{first("x")}
	for range 998 {
		thousand = append(thousand, more("x"))
	}
	thousand = append(thousand, last("x"))
	c.add("thousand fragments", []string{strings.Join(thousand, "")}, text(strings.Repeat("x", 1000)))
	var pinged string
	var answers []event
	for i := range 100 {
		pinged += more("x") + ping(fmt.Sprint(i))
		answers = append(answers, pong(fmt.Sprint(i)))
	}
	c.add("hundred fragments with pings in between", chopped(first("")+pinged+last(""), 50), append(answers, text(strings.Repeat("x", 100)))...)
}

// Sequences of UTF-8: Unicode 15, table 3-7, and the cases of the Autobahn suite, which are from Markus Kuhn's test file.
var (
	goodText = []string{
		"κόσμε", "\x00", "\x7f", "\u0080", "\u07ff", "\u0800", "\uffff", "\U00010000", "\U0010ffff", "\ud7ff", "\ue000", "\ufffd", "\ufeff",
		"\ufffe", "\U0001fffe", "\U0008ffff", "Hello-µ@ßöäüàá-UTF-8!!", "𝄞𝄞", "\U000fffff",
	}
	badText = []string{
		"\x80", "\xbf", "\x80\xbf\x80", "\xc0", "\xc1\xbf", "\xfe", "\xff", "\xfe\xfe\xff\xff", // lone bytes
		"\xc0\xaf", "\xe0\x80\xaf", "\xf0\x80\x80\xaf", "\xf8\x80\x80\x80\xaf", "\xfc\x80\x80\x80\x80\xaf", // too long
		"\xc1\xbf", "\xe0\x9f\xbf", "\xf0\x8f\xbf\xbf", "\xc0\x80", "\xe0\x80\x80", "\xf0\x80\x80\x80",
		"\xed\xa0\x80", "\xed\xad\xbf", "\xed\xae\x80", "\xed\xbf\xbf", "\xed\xa0\x80\xed\xb0\x80", // surrogates
		"\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xf8\x88\x80\x80\x80", "\xfc\x84\x80\x80\x80\x80", // above U+10FFFF
		"\xc3\x28", "\xe2\x28\xa1", "\xe2\x82\x28", "\xf0\x28\x8c\xbc", "\xf0\x90\x28\xbc", "\xf0\x9f\x98A", // broken off by something else
		"κόσμε\xed\xa0\x80edited",
	}
)

// wrongAt is the place of the first byte with which b cannot be the beginning of any text.
func wrongAt(b string) int {
	for n := 1; n <= len(b); n++ {
		if !beginsText(b[:n]) {
			return n - 1
		}
	}
	return -1
}

// beginsText tells whether something can be appended that makes b a text.
func beginsText(b string) bool {
	for _, tail := range []string{"", "\x80", "\xbf", "\x80\x80", "\xbf\xbf", "\x80\x80\x80", "\xbf\xbf\xbf"} {
		if utf8.ValidString(b + tail) {
			return true
		}
	}
	return false
}

func utf8Cases(in func(string) *chapter) {
	c := in("6.1")
	for _, s := range goodText {
		c.add(fmt.Sprintf("%+q", s), []string{framed(fin|opText, s)}, text(s))
		c.add(fmt.Sprintf("%+q, in fragments of a byte", s), []string{inFragments(s, 1)}, text(s))
	}
	all := strings.Join(goodText, "")
	c.add("all of them byte by byte", chopped(framed(fin|opText, all), 1), text(all))
	for _, size := range []int{2, 3, 5, 511, 512, 513} {
		long := strings.Repeat(all, 2000/len(all)+1)
		c.add(fmt.Sprintf("long text in fragments of %d bytes", size), []string{inFragments(long, size)}, text(long))
	}
	c = in("6.2")
	for _, s := range badText {
		c.add(fmt.Sprintf("%+q", s), []string{framed(fin|opText, s)}, closed("1007"))
		c.add(fmt.Sprintf("%+q, in fragments of a byte", s), []string{inFragments(s, 1)}, closed("1007"))
		c.add(fmt.Sprintf("%+q, behind a text", s), []string{framed(fin|opText, "before") + framed(fin|opText, s)}, text("before"), closed("1007"))
	}
	c = in("6.3")
	for _, s := range goodText {
		for n := len(s) - 1; n > 0; n-- {
			if !utf8.ValidString(s[:n]) {
				c.add(fmt.Sprintf("%+q, which is not whole", s[:n]), []string{framed(fin|opText, s[:n])}, closed("1007"))
				c.add(fmt.Sprintf("%+q, which is not whole, in fragments", s[:n]), []string{framed(opText, s[:n]) + framed(fin|opContinuation, "")}, closed("1007"))
				break
			}
		}
	}
	// As soon as it cannot become a text, and not when it is whole (RFC 6455 section 8.1).
	c = in("6.4")
	for _, s := range badText {
		at := wrongAt(s)
		whole := framed(fin|opText, s+"and more")
		c.add(fmt.Sprintf("%+q, of a frame that is not whole", s[:at+1]), []string{whole[:len(whole)-len(s+"and more")+at+1]}, closed("1007"))
		c.add(fmt.Sprintf("%+q, of a message that is not whole", s[:at+1]), []string{framed(opText, s[:at]), framed(opContinuation, s[at:at+1])}, closed("1007"))
	}
	c = in("6.5")
	for _, s := range badText {
		c.add(fmt.Sprintf("%+q in a binary message", s), []string{framed(fin|opBinary, s)}, binaryMessage(s))
	}
}

// inFragments is a text in fragments of so many bytes.
func inFragments(s string, size int) string {
	var b strings.Builder
	first := byte(opText)
	for len(s) > size {
		b.WriteString(framed(first, s[:size]))
		first, s = opContinuation, s[size:]
	}
	b.WriteString(framed(fin|first, s))
	return b.String()
}

func closes(in func(string) *chapter) {
	c := in("7.1")
	c.add("message, then close", []string{framed(fin|opText, "Hello"), closing(1000, "")}, text("Hello"), closed("1000"))
	c.add("close twice", []string{closing(1000, "") + closing(1001, "")}, closed("1000"))
	c.add("close, then ping", []string{closing(1000, "") + framed(fin|opPing, "")}, closed("1000"))
	c.add("close, then message", []string{closing(1000, "") + framed(fin|opText, "late")}, closed("1000"))
	c.add("close, then what is no frame", []string{closing(1000, "") + "\xff\xff\xff\xff"}, closed("1000"))
	c.add("close in the middle of a message", []string{framed(opText, "fragment1") + closing(1000, "") + framed(fin|opContinuation, "fragment2")}, closed("1000"))
	c.add("close in the middle of a message, frame by frame", []string{framed(opText, "fragment1"), closing(1000, ""), framed(fin|opContinuation, "fragment2")}, closed("1000"))
	c.add("close in the middle of a binary message", []string{framed(opBinary, "\xfe") + closing(1000, "")}, closed("1000")).raw = true
	c.add("ping, then close", []string{framed(fin|opPing, "p") + closing(1000, "")}, pong("p"), closed("1000"))
	c = in("7.3")
	c.add("close without payload", []string{framed(fin|opClose, "")}, closed(""))
	c.add("close with one byte", []string{framed(fin|opClose, "\x03")}, closed("1002"))
	c.add("close with a code", []string{closing(1000, "")}, closed("1000"))
	c.add("close with a reason", []string{closing(1000, "Hello World!")}, closed("1000"))
	c.add("close with the longest reason", []string{closing(1000, strings.Repeat("*", 123))}, closed("1000"))
	c.add("close with a reason that is too long", []string{closing(1000, strings.Repeat("*", 124))}, closed("1002"))
	c.add("close without FIN", []string{framed(opClose, "\x03\xe8")}, closed("1002"))
	c.add("close byte by byte", chopped(closing(1000, "bye"), 1), closed("1000"))
	c = in("7.5")
	for _, s := range []string{"\xce\xba\xed\xa0\x80", "\xff", "\xc3"} {
		c.add(fmt.Sprintf("reason %+q", s), []string{closing(1000, s)}, closed("1007"))
	}
	c.add("reason of runes of several bytes", []string{closing(1000, "κόσμε 𝄞")}, closed("1000"))
	c = in("7.7")
	for _, code := range []uint16{1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 3999, 4000, 4999} {
		c.add(fmt.Sprint("code ", code), []string{closing(code, "")}, closed(fmt.Sprint(code)))
	}
	c = in("7.9")
	for _, code := range []uint16{0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535} {
		c.add(fmt.Sprint("code ", code), []string{closing(code, "")}, closed("1002"))
		c.add(fmt.Sprint("code ", code, " with a reason"), []string{closing(code, "reason")}, closed("1002"))
	}
}

func forms(in func(string) *chapter) {
	c := in("8.1")
	for _, f := range []struct {
		name  string
		first byte
	}{{"text", fin | opText}, {"binary message", fin | opBinary}, {"beginning of a text", opText}, {"ping", fin | opPing}, {"pong", fin | opPong}} {
		c.add("unmasked "+f.name, []string{unmasked(f.first, "Hello")}, closed("1002"))
		c.add("unmasked "+f.name+" without payload", []string{unmasked(f.first, "")}, closed("1002"))
		c.add("unmasked "+f.name+", of which only the header comes", []string{unmasked(f.first, "Hello")[:2]}, closed("1002"))
	}
	c.add("unmasked close frame", []string{unmasked(fin|opClose, "\x03\xe8")}, closed("1002"))
	c.add("unmasked continuation", []string{framed(opText, "masked") + unmasked(fin|opContinuation, "not")}, closed("1002"))
	c.add("unmasked frame behind a masked one", []string{framed(fin|opText, "masked") + unmasked(fin|opText, "not")}, text("masked"), closed("1002"))
	c = in("8.2")
	for _, size := range []int{0, 1, 125} {
		payload := strings.Repeat("x", size)
		c.add(fmt.Sprintf("length %d in 16 bits", size), []string{formed(fin|opText, payload, in16)}, closed("1002"))
		c.add(fmt.Sprintf("length %d in 64 bits", size), []string{formed(fin|opText, payload, in64)}, closed("1002"))
	}
	for _, size := range []int{126, 0x7fff} {
		c.add(fmt.Sprintf("length %d in 64 bits", size), []string{formed(fin|opText, strings.Repeat("x", size), in64)}, closed("1002"))
	}
	c.add("length 65535 in 64 bits, of which only the header comes", []string{header(fin|opText, 0xffff, in64, keys[0])}, closed("1002")) // and not 1009
	c.add("length in 16 bits of a ping", []string{formed(fin|opPing, "x", in16)}, closed("1002"))
	c.add("length in 64 bits of a close frame", []string{formed(fin|opClose, "\x03\xe8", in64)}, closed("1002"))
	c.add("length with its highest bit set", []string{header(fin|opText, 1<<63, in64, keys[0])}, closed("1002"))
	c.add("all bits of the length set", []string{header(fin|opText, 1<<64-1, in64, keys[0])}, closed("1002"))
}

func limits(in func(string) *chapter) {
	c := in("9")
	at, over := strings.Repeat("x", limit), strings.Repeat("x", limit+1)
	c.add("text at the limit", []string{framed(fin|opText, at)}, text(at))
	c.add("text over the limit", []string{framed(fin|opText, over)}, closed("1009"))
	c.add("text over the limit, of which only the header comes", []string{framed(fin|opText, over)[:8]}, closed("1009"))
	c.add("binary message over the limit", []string{framed(fin|opBinary, over)}, closed("1009"))
	c.add("length of 63 bits", []string{header(fin|opBinary, 1<<63-1, in64, keys[0])}, closed("1009"))
	c.add("length of 32 bits", []string{header(fin|opBinary, 1<<32, in64, keys[0])}, closed("1009"))
	c.add("fragments at the limit", []string{inFragments(at, 1000)}, text(at))
	c.add("fragments over the limit", []string{inFragments(over, 1000)}, closed("1009"))
	c.add("fragments over the limit by the last one, of which only the header comes", []string{framed(opText, at), framed(fin|opContinuation, "x")[:2]}, closed("1009"))
	c.add("message at the limit after one at the limit", []string{framed(fin|opText, at), framed(fin|opText, at)}, text(at), text(at))
	c.add("fragments without end", []string{framed(opText, at), framed(opContinuation, ""), framed(opContinuation, "x")}, closed("1009"))
}

func compression(in func(string) *chapter) {
	c := in("12")
	add := func(name string, send []string, want ...event) *testCase {
		k := c.add(name, send, want...)
		k.compressed = true
		return k
	}
	command := `{"command":"ping","ref":"` + strings.Repeat("κ", 20) + `"}`
	for _, s := range []string{"", "Hello", strings.Repeat("Hello ", 100), strings.Repeat("*", limit), command, command + strings.Repeat(" ", 20000)} {
		add(fmt.Sprintf("text of %d bytes", len(s)), []string{framed(fin|rsv1|opText, deflated(s))}, text(s))
		add(fmt.Sprintf("text of %d bytes, byte by byte", len(s)), chopped(framed(fin|rsv1|opText, deflated(s)), 1), text(s))
		add(fmt.Sprintf("text of %d bytes in fragments", len(s)), []string{compressedFragments(opText, deflated(s), 3, "")}, text(s))
		add(fmt.Sprintf("binary message of %d bytes", len(s)), []string{framed(fin|rsv1|opBinary, deflated(s))}, binaryMessage(s))
		add(fmt.Sprintf("text of %d bytes that is not compressed", len(s)), []string{framed(fin|opText, s)}, text(s))
	}
	hello := deflated("Hello")
	add("pings between compressed fragments", []string{framed(rsv1|opText, hello[:2]) + framed(fin|opPing, "p") + framed(fin|opContinuation, hello[2:])}, pong("p"), text("Hello"))
	add("compressed and not, in turn", []string{framed(fin|rsv1|opText, hello) + framed(fin|opText, "plain") + framed(fin|rsv1|opText, hello)},
		text("Hello"), text("plain"), text("Hello"))
	add("empty first fragment", []string{framed(rsv1|opText, "") + framed(fin|opContinuation, hello)}, text("Hello"))
	add("empty last fragment", []string{framed(rsv1|opText, hello) + framed(fin|opContinuation, "")}, text("Hello"))
	// The examples of RFC 7692 section 7.2.3.
	add("a block with fixed codes", []string{framed(fin|rsv1|opText, "\xf2\x48\xcd\xc9\xc9\x07\x00")}, text("Hello"))
	add("a block without compression", []string{framed(fin|rsv1|opText, "\x00\x05\x00\xfa\xffHello\x00")}, text("Hello"))
	add("a block with BFINAL set", []string{framed(fin|rsv1|opText, "\xf3\x48\xcd\xc9\xc9\x07\x00\x00")}, text("Hello"))
	add("two blocks", []string{framed(fin|rsv1|opText, "\xf2\x48\x05\x00\x00\x00\xff\xff\xca\xc9\xc9\x07\x00")}, text("Hello"))
	add("the empty message", []string{framed(fin|rsv1|opText, "\x00")}, text(""))

	c = in("13.1")
	add("RSV1 of a ping", []string{framed(fin|rsv1|opPing, "")}, closed("1002"))
	add("RSV1 of a pong", []string{framed(fin|rsv1|opPong, "")}, closed("1002"))
	add("RSV1 of a close frame", []string{framed(fin|rsv1|opClose, "\x03\xe8")}, closed("1002"))
	add("RSV1 of a continuation", []string{framed(rsv1|opText, hello[:2]) + framed(fin|rsv1|opContinuation, hello[2:])}, closed("1002"))
	add("RSV1 of the continuation of what is not compressed", []string{framed(opText, "a") + framed(fin|rsv1|opContinuation, hello)}, closed("1002"))
	add("RSV2 of a compressed text", []string{framed(fin|rsv1|rsv2|opText, hello)}, closed("1002"))
	add("RSV3 of a compressed text", []string{framed(fin|rsv1|rsv3|opText, hello)}, closed("1002"))
	add("close between compressed fragments", []string{framed(rsv1|opText, hello[:2]) + closing(1000, "")}, closed("1000"))
	c = in("13.2")
	for _, s := range []string{"\xff\xff\xff\xff", "Hello", "\x06\x00", "\x00\x05\x00\x05\x00Hello", "\xf2\x48\xcd", "\x03\xff"} {
		add(fmt.Sprintf("%+q, which is not compressed", s), []string{framed(fin|rsv1|opText, s)}, closed("1007"))
		add(fmt.Sprintf("%+q, which is not compressed, behind a text that is", s), []string{framed(fin|rsv1|opText, hello) + framed(fin|rsv1|opText, s)}, text("Hello"), closed("1007"))
	}
	add("reference to the message before", []string{framed(fin|rsv1|opText, deflated("Hello, Hello, Hello")) + framed(fin|rsv1|opText, deflatedAfter("Hello, Hello, Hello", "Hello, Hello"))},
		text("Hello, Hello, Hello"), closed("1007"))
	for _, s := range badText {
		add(fmt.Sprintf("%+q compressed", s), []string{framed(fin|rsv1|opText, deflated(s))}, closed("1007"))
	}
	c = in("13.3")
	add("message that is over the limit when it is not compressed any more", []string{framed(fin|rsv1|opText, deflated(strings.Repeat("x", limit+1)))}, closed("1009"))
	bomb := deflated(strings.Repeat("\x00", 24<<20)) // about 24 KiB
	add("bomb", []string{framed(fin|rsv1|opBinary, bomb)}, closed("1009")).raw = true
	add("bomb of text", []string{framed(fin|rsv1|opText, bomb)}, closed("1009"))
	add("bomb in fragments", []string{compressedFragments(opText, bomb, 1000, framed(fin|opPong, ""))}, closed("1009"))
	add("compressed message over the limit", []string{header(fin|rsv1|opText, limit+1, shortest, keys[0])}, closed("1009"))
}

// compressedFragments are a compressed payload in fragments of so many bytes, with something in between.
func compressedFragments(op byte, payload string, size int, between string) string {
	var b strings.Builder
	first := rsv1 | op
	for len(payload) > size {
		b.WriteString(framed(first, payload[:size]) + between)
		first, payload = opContinuation, payload[size:]
	}
	b.WriteString(framed(fin|first, payload))
	return b.String()
}
