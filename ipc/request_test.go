package ipc

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// parse feeds input in pieces of at most size bytes and writes down what comes out: a line a command.
func parse(input string, size, maxMessage int) (out []string, q *requests) {
	q = new(requests)
	for {
		args, err := q.next(maxMessage)
		var skipped *skippedError
		switch {
		case err == nil:
			out = append(out, fmt.Sprintf("%q", args))
			continue
		case errors.As(err, &skipped):
			out = append(out, err.Error())
			continue
		case err != errMore:
			return append(out, err.Error()), q
		case input == "":
			return out, q
		}
		q.idle()
		n := copy(q.room(), input[:min(size, len(input))])
		q.read(n)
		input = input[n:]
	}
}

func TestRequests(t *testing.T) {
	for _, test := range []struct{ input, want string }{
		{"*1\r\n$4\r\nPING\r\n", `["PING"]`},
		{"*3\r\n$7\r\nPUBLISH\r\n$1\r\na\r\n$0\r\n\r\n", `["PUBLISH" "a" ""]`},
		{"*2\r\n$4\r\nECHO\r\n$5\r\na\r\n*b\r\nPING\r\n", `["ECHO" "a\r\n*b"]|["PING"]`},
		{"PING\r\nPING\n*1\r\n$4\r\nPING\r\n\r\n\nPING\r\n", `["PING"]|["PING"]|["PING"]|["PING"]`},
		{"  ECHO  \"a b\\x00\\n\" 'it\\'s' c\"d\"\n", `["ECHO" "a b\x00\n" "it's" "cd"]`},
		{"*0\r\n*-1\r\n*-12\r\nPING\r\n", `["PING"]`},
		{"*1\r\n$4\r\nPIN", ``},
		{"*1\r\n$4\r\nPINGxx", `ERR Protocol error: expected CRLF after bulk string`},
		{"*1\r\nPING\r\n", `ERR Protocol error: expected '$', got 'P'`},
		{"*1\r\n\x00", `ERR Protocol error: expected '$', got '\x00'`},
		{"*x\r\n", `ERR Protocol error: invalid multibulk length`},
		{"*01\r\n", `ERR Protocol error: invalid multibulk length`},
		{"*+1\r\n", `ERR Protocol error: invalid multibulk length`},
		{"*\r\n", `ERR Protocol error: invalid multibulk length`},
		{"*-\r\n", `ERR Protocol error: invalid multibulk length`},
		{"*1\n", `ERR Protocol error: invalid multibulk length`},
		{"*1048577\r\n", `ERR Protocol error: invalid multibulk length`},
		{"*99999999999999999999\r\n", `ERR Protocol error: invalid multibulk length`},
		{"*1\r\n$-1\r\n", `ERR Protocol error: invalid bulk length`},
		{"*1\r\n$536870913\r\n", `ERR Protocol error: invalid bulk length`},
		{"PING \"a\r\n", `ERR Protocol error: unbalanced quotes in request`},
		{"PING \"a\"b\r\n", `ERR Protocol error: unbalanced quotes in request`},
		{strings.Repeat("x", maxInline), `ERR Protocol error: too big inline request`},
		{strings.Repeat("x", maxInline) + "\n", `ERR Protocol error: too big inline request`},
	} {
		for _, size := range []int{1, 3, 1 << 20} {
			got, _ := parse(test.input, size, DefaultMaxMessage)
			if s := strings.Join(got, "|"); s != test.want {
				t.Errorf("%.60q in pieces of %d:\ngot  %.200s\nwant %.200s", test.input, size, s, test.want)
			}
		}
	}
}

// What is over a limit is skipped without being kept, and what follows is not touched by it.
func TestRequestsSkip(t *testing.T) {
	const limit = 100 << 10
	long := strings.Repeat("x", limit+1)
	for _, test := range []struct{ input, want string }{
		{array("PUBLISH", "a", long), "ERR 102401 bytes are too long: a message has at most 102400 (publish.max_message)"},
		{array("PUBLISH", "a", strings.Repeat("x", 10<<20)), "ERR 10485760 bytes are too long: a message has at most 102400 (publish.max_message)"},
		{array(long, "a", "b"), "ERR 102401 bytes are too long: a message has at most 102400 (publish.max_message)"},
		{array("A", long[1:], long[1:]), "ERR command too long: more than 167936 bytes"},
		{array(strings.Split(strings.Repeat("MANY,", 100000), ",")...), "ERR command too long: more than 167936 bytes"},
	} {
		for _, size := range []int{1000, 4097, 1 << 20} {
			got, q := parse("PING\r\n"+test.input+"PING\r\n"+array("ECHO", "x"), size, limit)
			want := []string{`["PING"]`, test.want, `["PING"]`, `["ECHO" "x"]`}
			if !slices.Equal(got, want) {
				t.Errorf("%.40q in pieces of %d: got %.300q, want %q", test.input, size, got, want)
			}
			if n := len(q.buf.b); n > 4*limit {
				t.Errorf("%.40q in pieces of %d: the buffer has grown to %d bytes", test.input, size, n)
			}
		}
	}
	// Exactly at the limit nothing is skipped.
	if got, _ := parse(array("PUBLISH", "a", long[1:]), 5000, limit); len(got) != 1 || !strings.HasPrefix(got[0], `["PUBLISH"`) {
		t.Errorf("a message of the greatest length: %.100q", got)
	}
}

// A connection without input in hand has no buffer.
func TestRequestsIdle(t *testing.T) {
	_, q := parse(array("PUBLISH", "a", strings.Repeat("x", 1<<20)), 64<<10, DefaultMaxMessage)
	if q.idle(); q.buf != nil {
		t.Error("a buffer is held while there is nothing in it")
	}
	_, q = parse("PIN", 10, DefaultMaxMessage)
	if q.idle(); q.buf == nil {
		t.Error("a part of a command has been dropped")
	}
}

// quoteInline quotes words so that splitInline gives them back.
func quoteInline(args [][]byte) []byte {
	var line []byte
	for i, arg := range args {
		switch {
		case i%3 == 0 && len(arg) > 0 && !bytes.ContainsFunc(arg, func(r rune) bool { return r <= ' ' || r == '"' || r == '\'' || r > '~' }):
			line = append(line, arg...)
		case i%3 == 1 && !bytes.ContainsAny(arg, "'\\\n"):
			line = append(append(append(line, '\''), arg...), '\'')
		default:
			line = append(line, '"')
			for _, c := range arg {
				if c < ' ' || c == '"' || c == '\\' || c > '~' {
					line = fmt.Appendf(line, "\\x%02x", c)
				} else {
					line = append(line, c)
				}
			}
			line = append(line, '"')
		}
		line = append(line, " \t "[:1+i%2]...)
	}
	return line
}

func FuzzSplitInline(f *testing.F) {
	for _, s := range []string{"", "PING", `a "b c" 'd\'e' f"g"`, `"\x41\n\r\t\b\a\q\\\""`, `"a"b`, `'a`, `"\x4`, "\x00 \xff", `"\`, `\" '\n'`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		kept := bytes.Clone(line)
		args, ok := splitInline(bytes.Clone(line), nil)
		total := 0
		for _, arg := range args {
			total += len(arg)
		}
		if total > len(line) {
			t.Fatalf("%q: words are longer than the line: %q", kept, args)
		}
		if !ok {
			return
		}
		again, ok := splitInline(quoteInline(args), nil)
		if !ok || !slices.EqualFunc(args, again, bytes.Equal) {
			t.Fatalf("%q split into %q, which quoted as %q splits into %q", kept, args, quoteInline(args), again)
		}
	})
}

// FuzzRequests: the same commands come out however the input is cut; what comes out, written as arrays, reads back
// the same; the buffer stays within its bound.
func FuzzRequests(f *testing.F) {
	for _, s := range []string{
		"PING\r\n", array("PUBLISH", "a", "b"), "*1\r\n$4\r\nPING\r\nPING\r\n*0\r\n", "*-1\r\n$", "*2\r\n$70000\r\n", "*1\r\n$70000\r\n" + strings.Repeat("a", 70000) + "\r\nPING\r\n",
		"\"a\" 'b\r\n", "*1048576\r\n$0\r\n\r\n", "*1\r\n$536870912\r\nabc",
	} {
		f.Add([]byte(s), 7)
	}
	f.Fuzz(func(t *testing.T, input []byte, size int) {
		if size <= 0 || len(input) > 1<<20 {
			return
		}
		const limit = 1000
		whole, _ := parse(string(input), len(input)+1, limit)
		pieces, q := parse(string(input), size, limit)
		if !slices.Equal(whole, pieces) {
			t.Fatalf("in one piece: %.500q\nin pieces of %d: %.500q", whole, size, pieces)
		}
		if q.buf != nil && len(q.buf.b) > 4*(minArgument+commandAllowed) {
			t.Fatalf("the buffer has grown to %d bytes", len(q.buf.b))
		}
		var arrays []byte
		var commands []string
		q = new(requests)
		for rest := input; ; {
			args, err := q.next(limit)
			if err == nil {
				commands = append(commands, fmt.Sprintf("%q", args))
				arrays = appendHeader(arrays, '*', len(args))
				for _, arg := range args {
					arrays = appendBulk(arrays, arg)
				}
				continue
			}
			if err != errMore || len(rest) == 0 {
				break
			}
			n := copy(q.room(), rest)
			q.read(n)
			rest = rest[n:]
		}
		if again, _ := parse(string(arrays), 1<<20, limit); !slices.Equal(commands, again) {
			t.Fatalf("%.500q written as arrays reads back as %.500q", commands, again)
		}
	})
}
