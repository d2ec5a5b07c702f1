package conformance

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// ask sends a request, and returns the answer with its body.
func ask(t *testing.T, address, request string) (answer *http.Response, body string) {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(conn, request); err != nil {
		t.Fatal(err)
	}
	answer, err = http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatalf("%.60q: %v", request, err)
	}
	if answer.StatusCode == http.StatusSwitchingProtocols {
		return answer, ""
	}
	b, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatalf("%.60q: %v", request, err)
	}
	return answer, string(b)
}

// opening is the request of RFC 6455 section 1.3 with changes: "Name: value" replaces a line or is one more, "-Name" takes it out,
// "+Name: value" is a second one, and a line with HTTP/ in it replaces the first.
func opening(changes ...string) string {
	lines := []string{"GET /websocket/news HTTP/1.1", "Host: server.example.com", "Upgrade: websocket", "Connection: Upgrade",
		"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version: 13"}
	for _, change := range changes {
		if strings.Contains(change, " HTTP/") {
			lines[0] = change
			continue
		}
		if more, ok := strings.CutPrefix(change, "+"); ok {
			lines = append(lines, more)
			continue
		}
		out, isOut := strings.CutPrefix(change, "-")
		name, _, _ := strings.Cut(out, ":")
		kept := lines[:1]
		for _, line := range lines[1:] {
			if !strings.HasPrefix(line, name+":") {
				kept = append(kept, line)
			}
		}
		if lines = kept; !isOut {
			lines = append(lines, change)
		}
	}
	return strings.Join(lines, "\r\n") + "\r\n\r\n"
}

// Chapter 10: the opening handshake (RFC 6455 section 4.2).
func TestOpeningHandshake(t *testing.T) {
	d := startDaemon(t)
	for _, c := range []struct {
		number, name string
		request      string
		status       int
		says         string // a line of the head of the answer
	}{
		{"10.1.1", "as in the RFC", opening(), 101, "Sec-Websocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo="},
		{"10.1.2", "values in another case, and in lists", opening("Upgrade: h2c, WebSocket", "Connection: keep-alive, upgrade"), 101, ""},
		{"10.1.3", "names in another case", strings.ReplaceAll(opening(), "Sec-WebSocket", "sec-websocket"), 101, ""},
		{"10.1.4", "headers that nobody knows", opening("X-Whatever: 1", "Cookie: a=b"), 101, ""},
		{"10.1.5", "page of the same host", opening("Origin: http://server.example.com"), 101, ""},
		{"10.1.6", "subprotocol that nobody speaks", opening("Sec-WebSocket-Protocol: chat, superchat"), 101, ""},
		{"10.1.7", "subprotocol among others", opening("Sec-WebSocket-Protocol: chat, wscast.v1.json"), 101, "Sec-Websocket-Protocol: wscast.v1.json"},
		{"10.1.8", "extension that nobody speaks", opening("Sec-WebSocket-Extensions: x-foo; a=1"), 101, ""},
		{"10.2.1", "no Host", opening("-Host"), 400, ""},
		{"10.2.2", "two Hosts", opening("+Host: b.example"), 400, ""},
		{"10.2.3", "no Upgrade", opening("-Upgrade"), 426, "Upgrade: websocket"},
		{"10.2.4", "Upgrade to something else", opening("Upgrade: h2c"), 426, "Upgrade: websocket"},
		{"10.2.5", "no Connection", opening("-Connection"), 426, "Upgrade: websocket"},
		{"10.2.6", "Connection without upgrade", opening("Connection: keep-alive"), 426, ""},
		{"10.2.7", "no key", opening("-Sec-WebSocket-Key"), 400, ""},
		{"10.2.8", "key that is empty", opening("Sec-WebSocket-Key: "), 400, ""},
		{"10.2.9", "key of 15 bytes", opening("Sec-WebSocket-Key: " + "AAAAAAAAAAAAAAAAAAAA"), 400, ""},
		{"10.2.10", "key that is no base64", opening("Sec-WebSocket-Key: !!!!!!!!!!!!!!!!!!!!!!=="), 400, ""},
		{"10.2.11", "two keys", opening("+Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="), 400, ""},
		{"10.2.12", "no version", opening("-Sec-WebSocket-Version"), 426, "Sec-Websocket-Version: 13"},
		{"10.2.13", "version 8", opening("Sec-WebSocket-Version: 8"), 426, "Sec-Websocket-Version: 13"},
		{"10.2.14", "version 14", opening("Sec-WebSocket-Version: 14"), 426, "Sec-Websocket-Version: 13"},
		{"10.2.15", "version 013", opening("Sec-WebSocket-Version: 013"), 426, "Sec-Websocket-Version: 13"},
		{"10.2.16", "POST", opening("POST /websocket/news HTTP/1.1"), 405, "Allow: GET"},
		{"10.2.17", "HTTP/1.0", opening("GET /websocket/news HTTP/1.0"), 426, "Upgrade: websocket"},
		{"10.2.18", "HTTP/2.0", opening("GET /websocket/news HTTP/2.0"), 505, ""},
		{"10.2.19", "another path", opening("GET /other HTTP/1.1"), 404, ""},
		{"10.2.20", "path above the one of WebSockets", opening("GET /websocket/../ HTTP/1.0"), 426, ""},
		{"10.2.21", "page of another host", opening("Origin: http://evil.example"), 403, ""},
		{"10.2.22", "page of nowhere", opening("Origin: null"), 403, ""},
		{"10.2.23", "body", opening("Content-Length: 5") + "Hello", 400, ""},
		{"10.2.24", "chunked body", opening("Transfer-Encoding: chunked") + "0\r\n\r\n", 400, ""},
		{"10.2.25", "length and chunks", opening("Transfer-Encoding: chunked", "Content-Length: 5") + "0\r\n\r\n", 400, ""},
		{"10.2.26", "two lengths", opening("Content-Length: 5", "+Content-Length: 6") + "Hello", 400, ""},
		{"10.2.27", "no HTTP", "Hello\r\n\r\n", 400, ""},
		{"10.2.28", "line that is continued", opening("X-Folded: a\r\nb"), 400, ""},
		{"10.2.29", "space before the colon", opening("X-Space : a"), 400, ""},
		{"10.2.30", "zero byte in a header", opening("X-Zero: a\x00b"), 400, ""},
		{"10.2.31", "head of 9 KiB", opening("X-Long: " + strings.Repeat("x", 9<<10)), 431, ""},
		{"10.2.32", "preface of HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, ""},
	} {
		answer, body := ask(t, d.Address("websocket"), c.request)
		if answer.StatusCode != c.status {
			t.Errorf("%s %s: %s, want %d\n%s", c.number, c.name, answer.Status, c.status, body)
			continue
		}
		var head bytes.Buffer
		_ = answer.Header.Write(&head)
		if !strings.Contains(head.String(), c.says) {
			t.Errorf("%s %s: the answer has no %q:\n%s", c.number, c.name, c.says, head.String())
		}
		if protocols := answer.Header["Sec-Websocket-Protocol"]; len(protocols) > 0 && !strings.Contains(c.says, "Protocol") {
			t.Errorf("%s %s: answered with the subprotocol %q", c.number, c.name, protocols)
		}
	}
}

// Chapter 12.1: what is offered of permessage-deflate, and what is agreed on (RFC 7692 sections 5 and 7.1).
func TestExtensionsOffered(t *testing.T) {
	const agreed = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"
	d := startDaemon(t)
	for _, c := range []struct {
		offer  []string
		answer string
	}{
		{[]string{"permessage-deflate"}, agreed},
		{[]string{"permessage-deflate; client_max_window_bits"}, agreed},
		{[]string{"permessage-deflate; client_max_window_bits=9"}, agreed},
		{[]string{`permessage-deflate; client_max_window_bits="15"`}, agreed},
		{[]string{"permessage-deflate; server_no_context_takeover; client_no_context_takeover"}, agreed},
		{[]string{"x-webkit-deflate-frame, permessage-deflate"}, agreed},
		{[]string{"x-foo", "permessage-deflate"}, agreed},
		{[]string{"permessage-deflate; server_max_window_bits=10, permessage-deflate"}, agreed},
		// What cannot be kept, or is no offer, is declined (section 7.1).
		{[]string{"permessage-deflate; server_max_window_bits=10"}, ""},
		{[]string{"permessage-deflate; client_max_window_bits=7"}, ""},
		{[]string{"permessage-deflate; client_max_window_bits=16"}, ""},
		{[]string{"permessage-deflate; client_max_window_bits=010"}, ""},
		{[]string{"permessage-deflate; client_max_window_bits="}, ""},
		{[]string{"permessage-deflate; client_max_window_bits; client_max_window_bits"}, ""},
		{[]string{"permessage-deflate; server_no_context_takeover=1"}, ""},
		{[]string{"permessage-deflate; server_no_context_takeover; server_no_context_takeover"}, ""},
		{[]string{"permessage-deflate; unknown"}, ""},
		{[]string{"Permessage-Deflate"}, ""},
		{[]string{"x-webkit-deflate-frame"}, ""},
		{[]string{`x-foo; a=", permessage-deflate ,"`}, ""},
		{nil, ""},
	} {
		var changes []string
		for _, line := range c.offer {
			changes = append(changes, "+Sec-WebSocket-Extensions: "+line)
		}
		answer, body := ask(t, d.Address("websocket"), opening(changes...))
		if answer.StatusCode != 101 {
			t.Errorf("%q: %s\n%s", c.offer, answer.Status, body)
			continue
		}
		if got := strings.Join(answer.Header["Sec-Websocket-Extensions"], ", "); got != c.answer {
			t.Errorf("%q is answered with %q, want %q", c.offer, got, c.answer)
		}
	}
}
