package daemon

import (
	"bytes"
	"crypto/sha1"
	"encoding/base64"

	"wscast/ipc"
)

// Nearly all requests are alike: a WebSocket on one channel, with the headers that browsers and nginx send and nobody asks about. They are answered
// here, from the bytes as they are. That takes 0.4 µs and no memory; net/http and the Upgrader take 5.5 µs and 2 KB (BenchmarkPlain, BenchmarkHandshake), which a
// crowd that connects would leave behind as heap.
//
// What is not taken for such a request goes the long way, whatever is the matter with it, and what is gets the answer that it would get there, to the
// byte: FuzzPlain holds one against the other. So nothing is refused here, and whoever wants to know what is allowed need not read it.

// plainHeaders are the headers that are looked at here.
type plainHeaders struct {
	host, upgrade, connection, version, key, origin []byte
}

// of returns where the value of a header goes, nil if nobody asks about it. ok is false for those that make a request another one.
func (h *plainHeaders) of(name []byte, compression bool) (value *[]byte, ok bool) {
	switch len(name) { // few names are compared with any
	case 4:
		if bytes.EqualFold(name, []byte("Host")) {
			return &h.host, true
		}
	case 6:
		if bytes.EqualFold(name, []byte("Origin")) {
			return &h.origin, true
		}
	case 7:
		if bytes.EqualFold(name, []byte("Upgrade")) {
			return &h.upgrade, true
		}
		return nil, !bytes.EqualFold(name, []byte("Trailer"))
	case 10:
		if bytes.EqualFold(name, []byte("Connection")) {
			return &h.connection, true
		}
	case 14:
		return nil, !bytes.EqualFold(name, []byte("Content-Length"))
	case 17:
		if bytes.EqualFold(name, []byte("Sec-WebSocket-Key")) {
			return &h.key, true
		}
		return nil, !bytes.EqualFold(name, []byte("Transfer-Encoding"))
	case 21:
		if bytes.EqualFold(name, []byte("Sec-WebSocket-Version")) {
			return &h.version, true
		}
	case 22:
		return nil, !bytes.EqualFold(name, []byte("Sec-WebSocket-Protocol"))
	case 24:
		return nil, !compression || !bytes.EqualFold(name, []byte("Sec-WebSocket-Extensions"))
	}
	return nil, true
}

// parse reads the lines of a head, up to its empty line. It is stricter than net/http in every way.
func (h *plainHeaders) parse(lines []byte, compression bool) bool {
	for {
		end := bytes.IndexByte(lines, '\n')
		if end < 1 || lines[end-1] != '\r' {
			return false
		}
		line := lines[:end-1]
		lines = lines[end+1:]
		if len(line) == 0 {
			return len(lines) == 0
		}
		colon := 0
		for colon < len(line) && nameByte[line[colon]] {
			colon++
		}
		if colon == 0 || colon == len(line) || line[colon] != ':' {
			return false
		}
		for _, c := range line[colon+1:] {
			if c < ' ' || c > '~' {
				return false
			}
		}
		value, ok := h.of(line[:colon], compression)
		if !ok {
			return false
		}
		if value == nil {
			continue
		}
		if *value != nil {
			return false // twice
		}
		if *value = bytes.Trim(line[colon+1:], " "); len(*value) == 0 {
			return false
		}
	}
}

// nameByte are the bytes of names of headers.
var nameByte = func() (ok [256]bool) {
	for c := range ok {
		ok[c] = c < 0x80 && validHeader(string(rune(c)))
	}
	return ok
}()

const (
	plainMethod  = "GET "
	plainVersion = " HTTP/1.1\r\n"
	plainAnswer  = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "
	guid         = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11" // RFC 6455 section 1.3
	keySize      = 24
)

var defaultChannel = []byte(DefaultChannel)

// Plain implements loop.Handshaker.
func (h *handshaker) Plain(head, room []byte) (answer, channel []byte) {
	s := h.settings.Load()
	if !s.plain {
		return nil, nil
	}
	rest, ok := bytes.CutPrefix(head, []byte(plainMethod))
	end := bytes.IndexByte(rest, '\n') + 1
	if !ok || !bytes.HasSuffix(rest[:end], []byte(plainVersion)) {
		return nil, nil
	}
	target, lines := rest[:end-len(plainVersion)], rest[end:]
	channel, ok = bytes.CutPrefix(target, []byte(s.path))
	switch {
	case !ok:
		return nil, nil
	case len(channel) == 0:
		channel = defaultChannel
	case channel[0] != '/' || !ipc.ValidChannel(channel[1:]): // what it allows means itself in a URL
		return nil, nil
	default:
		channel = channel[1:]
	}
	var headers plainHeaders
	if !headers.parse(lines, s.compression) || headers.host == nil || !bytes.EqualFold(headers.upgrade, []byte("websocket")) ||
		!bytes.EqualFold(headers.connection, []byte("Upgrade")) && !bytes.EqualFold(headers.connection, []byte("keep-alive, Upgrade")) ||
		string(headers.version) != "13" || !validKey(headers.key) {
		return nil, nil
	}
	if headers.origin != nil && !sameOrigin(s.origins, headers.origin, headers.host) &&
		!allowed(s.origins, []string{string(headers.origin)}, string(headers.host)) {
		return nil, nil
	}
	var hashed [keySize + len(guid)]byte
	copy(hashed[copy(hashed[:], headers.key):], guid)
	sum := sha1.Sum(hashed[:])
	answer = base64.StdEncoding.AppendEncode(append(room, plainAnswer...), sum[:])
	return append(append(answer, "\r\n\r\n"...), s.greeting...), channel
}

// validKey tells whether a key is base64 of 16 bytes.
func validKey(key []byte) bool {
	if len(key) != keySize || key[22] != '=' || key[23] != '=' {
		return false
	}
	for _, c := range key[:22] {
		if (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') && c != '+' && c != '/' {
			return false
		}
	}
	return true
}

// sameOrigin tells of nearly all origins that are allowed where the host's own are that they are.
func sameOrigin(origins []origin, from, host []byte) bool {
	rest, ok := bytes.CutPrefix(from, []byte("http"))
	rest = bytes.TrimPrefix(rest, []byte("s"))
	if rest, ok2 := bytes.CutPrefix(rest, []byte("://")); len(origins) > 0 || !ok || !ok2 || !bytes.Equal(rest, host) {
		return false
	}
	name, port, _ := bytes.Cut(host, []byte(":"))
	for _, c := range name {
		if (c < '0' || c > '9') && (c < 'a' || c > 'z') && c != '.' && c != '-' {
			return false
		}
	}
	for _, c := range port {
		if c < '0' || c > '9' {
			return false
		}
	}
	return len(name) > 0 && !bytes.HasSuffix(host, []byte(":"))
}
