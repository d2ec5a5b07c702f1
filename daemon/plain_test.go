package daemon

import (
	"bytes"
	"strings"
	"testing"

	"wscast/daemon/encode"
	"wscast/daemon/loop"
	"wscast/daemon/msglog"
)

// nginxHead is the request of a browser, as nginx passes it on (etc/nginx/wscast.conf).
const nginxHead = "GET /websocket/news HTTP/1.1\r\nUpgrade: websocket\r\nConnection: upgrade\r\nHost: example.org:8443\r\nX-Forwarded-For: 192.0.2.1\r\n" +
	"X-Forwarded-Proto: https\r\nPragma: no-cache\r\nCache-Control: no-cache\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64)\r\nOrigin: https://example.org:8443\r\n" +
	"Sec-WebSocket-Version: 13\r\nAccept-Encoding: gzip, deflate, br\r\nAccept-Language: de\r\nCookie: a=b; c=d\r\n" +
	"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n\r\n"

// plainHandshakers are some of different configurations, and whether any request is plain there.
func plainHandshakers() map[*handshaker]bool {
	return map[*handshaker]bool{
		newHandshaker(): true,
		newHandshaker(func(c *Config) { c.WebSocket.Greeting = "hello" }):                                 true,
		newHandshaker(func(c *Config) { c.WebSocket.Path = "/a/b" }):                                      true,
		newHandshaker(func(c *Config) { c.WebSocket.Compression = true }):                                 true,
		newHandshaker(func(c *Config) { c.WebSocket.Origins = []string{"*"} }):                            true,
		newHandshaker(func(c *Config) { c.WebSocket.Origins = []string{"https://example.org:8443"} }):     true,
		newHandshaker(func(c *Config) { c.WebSocket.Path = "/a b" }):                                      false,
		newHandshaker(func(c *Config) { c.WebSocket.MaxPerAddress = 1 }):                                  false,
		newHandshaker(func(c *Config) { c.Auth.Method, c.Auth.Header = authHeader, "X-Forwarded-Proto" }): false,
	}
}

// asPlain says of a request what Plain says, or nothing, and of the same what Handshake says.
func asPlain(t testing.TB, h *handshaker, head []byte) (answer, channel []byte) {
	t.Helper()
	room := make([]byte, 3, 1000)
	answer, channel = h.Plain(bytes.Clone(head), room)
	if channel == nil {
		return nil, nil
	}
	if !bytes.Equal(answer[:3], room) {
		t.Errorf("%q: the answer does not go behind what there is", head)
	}
	answer = answer[3:]
	a := h.Handshake(head, -1)
	if !a.Open || a.Encoding != encode.Raw || a.Grant != nil || a.From != 0 || len(a.Channels) != 1 ||
		a.Channels[0] != (loop.Start{Channel: string(channel), From: msglog.From{How: msglog.Now}}) || !bytes.Equal(a.Answer, answer) {
		t.Errorf("%q\nplain: %q %q\nelse:  %+v %q", head, channel, answer, a, a.Answer)
	}
	return answer, channel
}

// Requests as clients send them are answered the short way.
func TestPlain(t *testing.T) {
	for h, possible := range plainHandshakers() {
		s := h.settings.Load()
		for name, head := range map[string]string{
			"nginx":    nginxHead,
			"Chromium": request("GET /websocket/a/b:c HTTP/1.1", "Origin: http://example.org", "User-Agent: x"),
			"Firefox":  request("GET /websocket HTTP/1.1", "Connection: keep-alive, Upgrade", "Origin: http://example.org"),
			"another":  request("GET /websocket/x HTTP/1.1"),
		} {
			head = strings.Replace(head, " /websocket", " "+s.path, 1)
			wanted := possible
			if s.compression && name == "nginx" || len(s.origins) > 0 && s.origins[0] != (origin{}) && (name == "Chromium" || name == "Firefox") {
				wanted = false
			}
			if _, channel := asPlain(t, h, []byte(head)); (channel != nil) != wanted {
				t.Errorf("path %s: %s: the short way: %v, want %v", s.path, name, channel != nil, wanted)
			}
		}
	}
}

// What differs in any way goes the long way.
func TestNotPlain(t *testing.T) {
	h := newHandshaker()
	good := request("GET /websocket/x HTTP/1.1")
	for _, head := range []string{
		request("POST /websocket/x HTTP/1.1"), request("GET /websocket/x HTTP/1.0"), request("GET /websocket/x?token=1 HTTP/1.1"), request("GET /websocketx HTTP/1.1"),
		request("GET /websocket/%78 HTTP/1.1"), request("GET /websocket/ HTTP/1.1"), request("GET  /websocket/x HTTP/1.1"), request("GET http://example.org/websocket/x HTTP/1.1"),
		request("GET / HTTP/1.1"), request("GET /websocket/x HTTP/1.1", "Content-Length: 0"), request("GET /websocket/x HTTP/1.1", "Transfer-Encoding: chunked"),
		request("GET /websocket/x HTTP/1.1", "transfer-encoding: identity"), request("GET /websocket/x HTTP/1.1", "Trailer: x"),
		request("GET /websocket/x HTTP/1.1", "Sec-WebSocket-Protocol: wscast.v1.json"), request("GET /websocket/x HTTP/1.1", "Host:"),
		request("GET /websocket/x HTTP/1.1", "Connection: close"), request("GET /websocket/x HTTP/1.1", "Upgrade: h2c"),
		request("GET /websocket/x HTTP/1.1", "Sec-WebSocket-Version: 8"), request("GET /websocket/x HTTP/1.1", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ="),
		request("GET /websocket/x HTTP/1.1", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ!="), request("GET /websocket/x HTTP/1.1", "Origin: https://elsewhere.example"),
		request("GET /websocket/x HTTP/1.1", "Origin: null"), request("GET /websocket/x HTTP/1.1", "X: a\x00b"), request("GET /websocket/x HTTP/1.1", "X: a\tb"),
		request("GET /websocket/x HTTP/1.1", "X: ä"), request("GET /websocket/x HTTP/1.1", "X : a"), request("GET /websocket/x HTTP/1.1", " X: a"),
		strings.Replace(good, "Host: example.org\r\n", "Host: example.org\r\nHost: example.org\r\n", 1),
		strings.Replace(good, "Host: example.org\r\n", "Host: example.org\n", 1), good[:len(good)-2], good + "\x81\x80", "", "GET", "GET /websocket/x HTTP/1.1\r\n",
	} {
		if _, channel := asPlain(t, h, []byte(head)); channel != nil {
			t.Errorf("%q goes the short way", head)
		}
	}
}

// Whatever is taken for a plain request is answered as it would be otherwise.
func FuzzPlain(f *testing.F) {
	f.Add([]byte(nginxHead))
	f.Add([]byte(request("GET /a/b/c HTTP/1.1", "Origin: http://example.org", "Accept: text/event-stream")))
	f.Add([]byte(request("GET /websocket HTTP/1.1", "Connection: keep-alive, Upgrade", "Origin: HTTP://EXAMPLE.ORG:80", "Last-Event-Id: 1", "Authorization: Bearer x")))
	f.Add([]byte(request("GET /websocket/..:/.// HTTP/1.1", "Origin: https://[::1]:1", "Host: [::1]:1", "Expect: 100-continue")))
	f.Add([]byte(request("GET /websocket/news HTTP/1.1", "Origin: http://-:01", "Host: -:01", "Cookie: a=b", "host: x")))
	handshakers := plainHandshakers()
	f.Fuzz(func(t *testing.T, head []byte) {
		for h := range handshakers {
			asPlain(t, h, head)
		}
	})
}

// A request like nearly all costs no memory.
func TestPlainAllocatesNothing(t *testing.T) {
	h, head, room := newHandshaker(), []byte(nginxHead), make([]byte, 0, 1000)
	if n := testing.AllocsPerRun(1000, func() { h.Plain(head, room) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// BenchmarkPlain is to be held against BenchmarkHandshake.
func BenchmarkPlain(b *testing.B) {
	h := newHandshaker()
	head, room := []byte(request("GET /websocket/news HTTP/1.1", "Origin: https://example.org")), make([]byte, 0, 1000)
	b.ReportAllocs()
	for b.Loop() {
		if _, channel := h.Plain(head, room); string(channel) != "news" {
			b.Fatal("not plain")
		}
	}
}
