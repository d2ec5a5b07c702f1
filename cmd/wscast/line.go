package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// messageLimit bounds what one message may take of this process's memory. wscastd has its own limit,
// publish.max_message, and says so when a message is above it.
const messageLimit = 64 << 20

// linePrinter writes messages to standard output, one a line, each with one write of its own, so that
// whatever reads the output sees a message when it comes.
type linePrinter struct {
	out      io.Writer
	terminal bool
	buf      []byte
}

func newLinePrinter(out io.Writer) *linePrinter {
	return &linePrinter{out: out, terminal: isTerminal(out)}
}

// print writes one message. With a channel, the channel and a tab (which no channel contains) come first.
// A message goes out byte for byte; a newline is added unless it ends with one. On a terminal its control
// characters are made visible: a publisher could otherwise move the cursor, or type, on the reader's screen.
func (p *linePrinter) print(channel string, message []byte) error {
	p.buf = p.buf[:0]
	if channel != "" {
		p.buf = append(append(p.buf, channel...), '\t')
	}
	if p.terminal {
		p.buf = appendVisible(p.buf, message)
	} else {
		p.buf = append(p.buf, message...)
	}
	if len(message) == 0 || message[len(message)-1] != '\n' {
		p.buf = append(p.buf, '\n')
	}
	return write(p.out, p.buf)
}

// appendVisible appends text with everything that is not UTF-8, and every control character except tab and
// newline, as \xNN.
func appendVisible(b, text []byte) []byte {
	for len(text) > 0 {
		r, size := utf8.DecodeRune(text)
		bad := r == utf8.RuneError && size == 1
		if r != '\n' && r != '\t' && (bad || unicode.IsControl(r)) {
			for _, c := range text[:size] {
				b = fmt.Appendf(b, `\x%02x`, c)
			}
		} else {
			b = append(b, text[:size]...)
		}
		text = text[size:]
	}
	return b
}

// oneLine is text with every control character made visible.
func oneLine(text string) string {
	return strings.ReplaceAll(string(appendVisible(nil, []byte(text))), "\n", `\x0a`)
}

// isTerminal tells whether a stream is an open terminal.
func isTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	if !ok {
		return false
	}
	conn, err := f.SyscallConn()
	if err != nil {
		return false
	}
	terminal := false
	err = conn.Control(func(fd uintptr) {
		_, e := unix.IoctlGetTermios(int(fd), unix.TCGETS)
		terminal = e == nil
	})
	return err == nil && terminal
}
