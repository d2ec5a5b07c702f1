package daemon

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gorilla/websocket"

	"wscast/daemon/frame"
	"wscast/ipc"
	"wscast/web"
)

// Every HTTP answer that is not 101 is one line of text that says what to do, and ends the connection.

// DefaultChannel is the channel of a URL that names none.
const DefaultChannel = "default"

// handshaker judges the requests of clients for the loops.
type handshaker struct {
	settings atomic.Pointer[handshakeSettings]
	page     func(path string) (body []byte, contentType string, ok bool) // nil: no demo page
	pool     sync.Pool                                                    // of *upgrade
}

// handshakeSettings can change at a reload.
type handshakeSettings struct {
	path     string
	origins  []origin // none: the request's own host
	greeting []byte   // a finished frame, or nothing
}

func (h *handshaker) configure(c *Config) {
	s := &handshakeSettings{path: c.WebSocket.Path}
	for _, text := range c.WebSocket.Origins {
		o, _ := parseOrigin(text) // Config.check has
		s.origins = append(s.origins, o)
	}
	if g := c.WebSocket.Greeting; g != "" { // TOML is UTF-8
		s.greeting = append(frame.AppendHeader(nil, frame.Text, len(g)), g...)
	}
	h.settings.Store(s)
}

// Handshake implements loop.Handshaker.
func (h *handshaker) Handshake(head []byte) (answer []byte, channel string) {
	u, _ := h.pool.Get().(*upgrade)
	if u == nil {
		u = newUpgrade()
	}
	defer h.pool.Put(u)
	u.reset(head)

	s := h.settings.Load()
	r, err := http.ReadRequest(u.request)
	if err != nil {
		return refusal(http.StatusBadRequest, "not a valid HTTP request"), ""
	}
	channel, refused := h.judge(s, r)
	if refused != nil {
		return refused, ""
	}
	upgrader := websocket.Upgrader{CheckOrigin: accept, Error: u.fail}
	if _, err := upgrader.Upgrade(u, r, nil); err != nil {
		return u.refused(err), ""
	}
	return append(bytes.Clone(u.answer), s.greeting...), channel
}

// accept: judge has looked at the origin already.
func accept(*http.Request) bool { return true }

// judge finds the channel of a request, or the answer to one that is no opening handshake of ours.
func (h *handshaker) judge(s *handshakeSettings, r *http.Request) (channel string, answer []byte) {
	rest, ours := strings.CutPrefix(r.URL.Path, s.path)
	switch {
	case ours && rest == "":
		channel = DefaultChannel
	case ours && rest[0] == '/':
		channel = rest[1:]
	default:
		return "", h.other(s, r)
	}
	switch {
	case r.Method != http.MethodGet:
		return "", refusal(http.StatusMethodNotAllowed, "a WebSocket is opened with GET", "Allow: GET")
	case !r.ProtoAtLeast(1, 1):
		return "", refusal(http.StatusUpgradeRequired,
			"a WebSocket needs HTTP/1.1; behind nginx: proxy_http_version 1.1", "Upgrade: websocket")
	case !hasToken(r.Header["Connection"], "upgrade") || !hasToken(r.Header["Upgrade"], "websocket"):
		return "", refusal(http.StatusUpgradeRequired,
			"this is a WebSocket: open it with new WebSocket(url); behind nginx, pass on the headers Upgrade and Connection",
			"Upgrade: websocket")
	case !hasToken(r.Header["Sec-Websocket-Version"], "13"):
		return "", refusal(http.StatusUpgradeRequired, "only version 13 of the WebSocket protocol is spoken here (RFC 6455)",
			"Upgrade: websocket", "Sec-WebSocket-Version: 13")
	case !ipc.ValidChannel(channel):
		return "", refusal(http.StatusBadRequest,
			fmt.Sprintf("invalid channel: %s/CHANNEL has 1 to %d letters, digits and . _ - : /", s.path, ipc.MaxChannel))
	}
	if from := r.Header["Origin"]; len(from) > 0 && !s.allowed(from, r.Host) {
		return "", refusal(http.StatusForbidden, fmt.Sprintf(
			"pages of %s may not connect to %s: add the origin to websocket.origins; behind nginx, pass on the header Host with $http_host",
			strconv.Quote(from[0]), strconv.Quote(r.Host)))
	}
	return channel, nil
}

// other answers what is no WebSocket: the demo page, or not found.
func (h *handshaker) other(s *handshakeSettings, r *http.Request) []byte {
	if h.page != nil {
		if body, contentType, ok := h.page(r.URL.Path); ok {
			switch r.Method {
			case http.MethodGet:
				return response(http.StatusOK, contentType, body, true)
			case http.MethodHead:
				return response(http.StatusOK, contentType, body, false)
			}
			return refusal(http.StatusMethodNotAllowed, "this page is read with GET", "Allow: GET, HEAD")
		}
	}
	return refusal(http.StatusNotFound, fmt.Sprintf("nothing here: WebSockets are at %s and %s/CHANNEL", s.path, s.path))
}

// Refuse implements loop.Handshaker.
func (h *handshaker) Refuse(status int, line string) []byte { return refusal(status, line) }

// refusal is an answer of one line.
func refusal(status int, line string, headers ...string) []byte {
	return response(status, "text/plain; charset=utf-8", []byte(line+"\n"), true, headers...)
}

func response(status int, contentType string, body []byte, withBody bool, headers ...string) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "HTTP/1.1 %d %s\r\n", status, http.StatusText(status))
	connection := "close"
	for _, h := range headers {
		b.WriteString(h + "\r\n")
		if strings.HasPrefix(h, "Upgrade:") {
			connection = "close, Upgrade" // RFC 9110 section 7.8
		}
	}
	fmt.Fprintf(&b, "Content-Type: %s\r\nContent-Length: %d\r\nConnection: %s\r\n"+
		"Cache-Control: no-cache\r\nX-Content-Type-Options: nosniff\r\n", contentType, len(body), connection)
	if strings.HasPrefix(contentType, "text/html") {
		b.WriteString("Content-Security-Policy: " + web.ContentSecurityPolicy + "\r\n")
	}
	b.WriteString("\r\n")
	if withBody {
		b.Write(body)
	}
	return b.Bytes()
}

// hasToken looks for a token in a header that is a list (RFC 9110 section 5.6.1).
func hasToken(lines []string, token string) bool {
	for _, line := range lines {
		for item := range strings.SplitSeq(line, ",") {
			if strings.EqualFold(strings.TrimSpace(item), token) {
				return true
			}
		}
	}
	return false
}

// origin is the scheme, host and port of pages that may connect (RFC 6454). The zero value is all of them.
type origin struct{ scheme, host string }

func parseOrigin(text string) (origin, error) {
	if text == "*" {
		return origin{}, nil
	}
	u, err := url.Parse(text)
	if err != nil || u.Scheme == "" || u.Host == "" || u.Path != "" || u.RawQuery != "" || u.User != nil || u.Fragment != "" {
		return origin{}, errors.New(`an origin is "https://example.org" or "https://example.org:8443", without a path; "*" is all`)
	}
	return origin{strings.ToLower(u.Scheme), strings.ToLower(u.Host)}, nil
}

// allowed judges the Origin header. A request without one is not a browser's, and the check is about nothing else: pages of
// strangers that open a WebSocket here with the cookies of the person who looks at them. What is not understood is refused.
func (s *handshakeSettings) allowed(from []string, host string) bool {
	o, err := parseOrigin(from[0])
	if err != nil || o.scheme == "" || len(from) > 1 {
		return len(s.origins) == 1 && s.origins[0] == origin{}
	}
	if len(s.origins) == 0 {
		return o.host == strings.ToLower(host)
	}
	for _, a := range s.origins {
		if a == o || a == (origin{}) {
			return true
		}
	}
	return false
}

// upgrade lets gorilla's Upgrader answer a request without a connection: it is the http.ResponseWriter that is hijacked and the net.Conn that
// comes of it, and collects what is written.
type upgrade struct {
	net.Conn // nil: none of its other methods is called
	head     bytes.Reader
	request  *bufio.Reader
	buffers  *bufio.ReadWriter // what the Upgrader makes its Conn of, which nobody uses
	header   http.Header
	answer   []byte
	status   int
}

func newUpgrade() *upgrade {
	u := &upgrade{header: make(http.Header)}
	u.request = bufio.NewReaderSize(&u.head, 4096)
	// Of a size that the Upgrader takes instead of making its own.
	u.buffers = bufio.NewReadWriter(bufio.NewReaderSize(strings.NewReader(""), 512), bufio.NewWriterSize(u, 512))
	return u
}

func (u *upgrade) reset(head []byte) {
	u.head.Reset(head)
	u.request.Reset(&u.head)
	u.answer, u.status = u.answer[:0], 0
}

func (u *upgrade) Header() http.Header { return u.header }
func (u *upgrade) WriteHeader(int)     {}
func (u *upgrade) Write(b []byte) (int, error) {
	u.answer = append(u.answer, b...)
	return len(b), nil
}
func (u *upgrade) Hijack() (net.Conn, *bufio.ReadWriter, error) { return u, u.buffers, nil }
func (u *upgrade) Close() error                                 { return nil }
func (u *upgrade) SetDeadline(time.Time) error                  { return nil }

// fail is the Upgrader's way to refuse.
func (u *upgrade) fail(_ http.ResponseWriter, _ *http.Request, status int, _ error) {
	u.status = status
}

func (u *upgrade) refused(err error) []byte {
	return refusal(max(u.status, http.StatusBadRequest), strings.TrimPrefix(err.Error(), "websocket: "))
}
