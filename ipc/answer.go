package ipc

import "strings"

// answers gathers what the server writes to one connection, in the protocol that the connection speaks.
type answers struct {
	b     []byte
	resp3 bool
}

func (a *answers) ok()             { a.b = append(a.b, "+OK\r\n"...) }
func (a *answers) int(n int)       { a.b = appendHeader(a.b, ':', n) }
func (a *answers) bulk(s string)   { a.b = appendBulk(a.b, s) }
func (a *answers) bytes(s []byte)  { a.b = appendBulk(a.b, s) }
func (a *answers) array(n int)     { a.b = appendHeader(a.b, '*', n) }
func (a *answers) simple(s string) { a.b = append(append(append(a.b, '+'), s...), '\r', '\n') }
func (a *answers) pair(key, value string) {
	a.bulk(key)
	a.bulk(value)
}

// mapping begins n pairs; push, a message that answers no command; set, n members. RESP2 has arrays for all three.
func (a *answers) mapping(n int) {
	if a.resp3 {
		a.b = appendHeader(a.b, '%', n)
	} else {
		a.array(2 * n)
	}
}

func (a *answers) push(n int) { a.only3('>', n) }
func (a *answers) set(n int)  { a.only3('~', n) }

func (a *answers) only3(kind byte, n int) {
	if !a.resp3 {
		kind = '*'
	}
	a.b = appendHeader(a.b, kind, n)
}

func (a *answers) null() {
	if a.resp3 {
		a.b = append(a.b, "_\r\n"...)
	} else {
		a.b = append(a.b, "$-1\r\n"...)
	}
}

func (a *answers) nullArray() {
	if a.resp3 {
		a.b = append(a.b, "_\r\n"...)
	} else {
		a.b = append(a.b, "*-1\r\n"...)
	}
}

// verbatim is text for people.
func (a *answers) verbatim(s string) {
	if !a.resp3 {
		a.bulk(s)
		return
	}
	a.b = appendHeader(a.b, '=', len("txt:")+len(s))
	a.b = append(append(append(a.b, "txt:"...), s...), '\r', '\n')
}

// error writes "-text"; bytes that would end the line or confuse a terminal become spaces.
func (a *answers) error(text string) {
	a.b = append(a.b, '-')
	a.b = append(a.b, oneLine(text)...)
	a.b = append(a.b, '\r', '\n')
}

func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
}

// quoteArgument shows what a client sent in an error: at most 128 bytes of it.
func quoteArgument(s []byte) string {
	return "'" + oneLine(string(s[:min(len(s), 128)])) + "'"
}
