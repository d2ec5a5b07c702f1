package daemon

import (
	"bufio"
	"bytes"
	"fmt"
	"net"
	"net/http"
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

// Every HTTP answer that is not 101, the demo page aside, is one line of text that says what to do; each of them ends the
// connection, so that nothing behind the request can be taken for another one.

// DefaultChannel is the channel of a URL that names none.
const DefaultChannel = "default"

// handshaker judges the requests of clients for the loops.
type handshaker struct {
	demo     bool   // serve the demo page
	publish  string // socket that it names
	settings atomic.Pointer[handshakeSettings]
	pool     sync.Pool // of *upgrade
}

// handshakeSettings can change at a reload.
type handshakeSettings struct {
	path     string
	origins  []origin // none: the request's own host
	greeting []byte   // a finished frame, or nothing
	site     web.Site
}

func (h *handshaker) configure(c *Config) {
	s := &handshakeSettings{path: c.WebSocket.Path, site: web.Site{PublishSocket: h.publish, WebSocketPath: c.WebSocket.Path}}
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
	if refused == nil {
		upgrader := websocket.Upgrader{CheckOrigin: accept, Error: u.fail}
		if _, err = upgrader.Upgrade(u, r, nil); err == nil {
			return append(bytes.Clone(u.answer), s.greeting...), channel
		}
		refused = u.refused(err)
	}
	if r.Method == http.MethodHead {
		refused = refused[:bytes.Index(refused, endOfHead)+len(endOfHead)] // RFC 9110 section 9.3.2
	}
	return refused, ""
}

var endOfHead = []byte("\r\n\r\n")

// accept: judge has looked at the origin already.
func accept(*http.Request) bool { return true }

// judge finds the channel of a request, or the answer to one that is no opening handshake of ours. The path is
// percent-decoded as a whole and taken as it is then: slashes are not merged and dots are not resolved, so that what
// nginx made of the URL in order to choose a location holds for the channel as well.
func (h *handshaker) judge(s *handshakeSettings, r *http.Request) (channel string, answer []byte) {
	switch { // what net/http's server checks after ReadRequest (RFC 9112 sections 2.3 and 3.2)
	case r.ProtoMajor != 1:
		return "", refusal(http.StatusHTTPVersionNotSupported, "only HTTP/1.1 is spoken here; behind nginx: proxy_http_version 1.1")
	case r.ProtoAtLeast(1, 1) && r.Host == "":
		return "", refusal(http.StatusBadRequest, "a request needs the header Host")
	}
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
	case r.ContentLength != 0 || len(r.TransferEncoding) > 0:
		// Its bytes would be read as frames.
		return "", refusal(http.StatusBadRequest, "a request that opens a WebSocket has no body")
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
	case len(r.Header["Sec-Websocket-Key"]) != 1: // RFC 6455 section 11.3.1; the Upgrader looks into the first one
		return "", refusal(http.StatusBadRequest, "a WebSocket needs one header Sec-WebSocket-Key")
	case !ipc.ValidChannel(channel):
		return "", refusal(http.StatusBadRequest,
			fmt.Sprintf("invalid channel: %s/CHANNEL has 1 to %d letters, digits and . _ - : /", s.path, ipc.MaxChannel))
	}
	if from := r.Header["Origin"]; len(from) > 0 && !allowed(s.origins, from, r.Host) {
		return "", refusal(http.StatusForbidden, fmt.Sprintf(
			"pages of %s may not connect to %s: add the origin to websocket.origins; behind nginx, pass on the header Host with $http_host",
			strconv.QuoteToASCII(from[0]), strconv.QuoteToASCII(r.Host)))
	}
	return channel, nil
}

// other answers what is no WebSocket: the demo page, or not found.
func (h *handshaker) other(s *handshakeSettings, r *http.Request) []byte {
	if h.demo {
		if body, contentType, ok := s.site.Page(r.URL.Path); ok {
			if r.Method != http.MethodGet && r.Method != http.MethodHead {
				return refusal(http.StatusMethodNotAllowed, "this page is read with GET", "Allow: GET, HEAD")
			}
			return response(http.StatusOK, contentType, body)
		}
	}
	return refusal(http.StatusNotFound, fmt.Sprintf("nothing here: WebSockets are at %s and %s/CHANNEL", s.path, s.path))
}

// Refuse implements loop.Handshaker.
func (h *handshaker) Refuse(status int, line string) []byte { return refusal(status, line) }

// refusal is an answer of one line.
func refusal(status int, line string, headers ...string) []byte {
	return response(status, "text/plain; charset=utf-8", []byte(line+"\n"), headers...)
}

func response(status int, contentType string, body []byte, headers ...string) []byte {
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
	b.Write(body)
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

// upgrade lets gorilla's Upgrader answer a request without a connection: it is the http.ResponseWriter that is hijacked and
// the net.Conn that comes of it, and collects what is written.
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
