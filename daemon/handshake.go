package daemon

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gorilla/websocket"

	"wscast/daemon/encode"
	"wscast/daemon/frame"
	"wscast/daemon/loop"
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
	secret   uint64 // of stands: the connection table's, so that an heir finds the same
	append   func(*loop.Upstream) (clients int, refusal loop.Refusal)
	settings atomic.Pointer[handshakeSettings]
	pool     sync.Pool // of *upgrade
}

// handshakeSettings can change at a reload.
type handshakeSettings struct {
	auth     *auth
	path     string
	script   string   // path of the client for browsers, "": it is not served
	origins  []origin // none: the request's own host
	greeting []byte   // a finished frame, or nothing
	greeted  []byte   // the same as an event
	welcome  []byte   // the same for the subprotocol
	site     web.Site

	compression   bool
	subscriptions int                         // of one connection
	addresses     bool                        // where clients come from is asked
	plain         bool                        // nothing is asked of a client that Plain does not look at
	upstream      func(channel string) string // Config.upstream
}

func (h *handshaker) configure(c *Config, a *auth) {
	s := &handshakeSettings{auth: a, path: c.WebSocket.Path, site: web.Site{PublishSocket: h.publish, WebSocketPath: c.WebSocket.Path}}
	for _, text := range c.WebSocket.Origins {
		o, _ := parseOrigin(text) // Config.check has
		s.origins = append(s.origins, o)
	}
	if g := c.WebSocket.Greeting; g != "" { // TOML is UTF-8
		s.greeting = append(frame.AppendHeader(nil, frame.Text, len(g)), g...)
		s.greeted = encode.AppendEventText(nil, []byte(strings.ReplaceAll(g, "\r", "")))
	}
	if s.script = c.WebSocket.Script; s.script == "" && h.demo {
		s.script = "/wscast.js"
	}
	s.site.Script = s.script
	s.upstream, s.compression = c.upstream, c.WebSocket.Compression
	s.subscriptions = c.WebSocket.MaxSubscriptions
	s.addresses = c.WebSocket.MaxPerAddress > 0
	s.plain = a.Method == authNone && !s.addresses && ipc.ValidChannel(s.path) && s.subscriptions > 0
	welcome := encode.AppendString([]byte(`{"reply":"welcome","greeting":`), []byte(c.WebSocket.Greeting))
	welcome = fmt.Appendf(welcome, `,"ping":%d,"max_subscriptions":%d}`, time.Duration(c.WebSocket.Ping).Milliseconds(), s.subscriptions)
	s.welcome = append(frame.AppendHeader(nil, frame.Text, len(welcome)), welcome...)
	h.settings.Store(s)
}

// Subprotocol is the WebSocket subprotocol for clients that want more than the messages of one channel.
const Subprotocol = "wscast.v1.json"

// Handshake implements loop.Handshaker.
func (h *handshaker) Handshake(head []byte, peer loop.Peer) loop.Admission {
	u, _ := h.pool.Get().(*upgrade)
	if u == nil {
		u = newUpgrade()
	}
	defer h.pool.Put(u)
	u.reset(head)

	s := h.settings.Load()
	r, err := http.ReadRequest(u.request)
	if err != nil {
		return loop.Admission{Answer: refusal(http.StatusBadRequest, "not a valid HTTP request")}
	}
	a, refused := h.judge(s, r)
	if refused == nil {
		refused = h.admit(s, r, peer, &a)
	}
	if refused == nil {
		if a.Encoding.WebSocket() {
			a.Answer, refused = h.upgrade(s, u, r, &a)
		} else {
			a.Answer = h.stream(s, r, a.Encoding)
		}
	}
	if refused == nil {
		a.Open, a.From = true, h.from(s, r, peer)
		return a
	}
	if r.Method == http.MethodHead {
		refused = refused[:bytes.Index(refused, endOfHead)+len(endOfHead)] // RFC 9110 section 9.3.2
	}
	return loop.Admission{Answer: refused}
}

// upgrade answers an opening handshake that was found to be good (RFC 6455 section 4.2.2).
func (h *handshaker) upgrade(s *handshakeSettings, u *upgrade, r *http.Request, a *loop.Admission) (answer, refused []byte) {
	upgrader := websocket.Upgrader{CheckOrigin: accept, Error: u.fail}
	upgrader.EnableCompression = s.compression && offersDeflate(r) // without context takeover in both directions
	greeting := s.greeting
	if a.Encoding.Plain() == encode.JSON {
		upgrader.Subprotocols = []string{Subprotocol}
		greeting = s.welcome
	}
	if _, err := upgrader.Upgrade(u, r, nil); err != nil {
		return nil, u.refused(err)
	}
	if upgrader.EnableCompression && bytes.Contains(u.answer, []byte(deflateName)) { // it reads the offers in its own way
		a.Encoding |= encode.Deflate
	}
	return append(bytes.Clone(u.answer), greeting...), nil
}

const deflateName = "permessage-deflate"

// offersDeflate tells whether a client offers permessage-deflate in a form that needs no particular answer: one that limits the window of the
// server has to be answered with the limit (RFC 7692 section 7.1.2.1), which the Upgrader does not do. What is no good offer is declined
// (section 7.1).
func offersDeflate(r *http.Request) bool {
	for _, line := range r.Header["Sec-Websocket-Extensions"] {
		for offer := range strings.SplitSeq(line, ",") {
			name, parameters, _ := strings.Cut(offer, ";")
			if strings.TrimSpace(name) == deflateName && acceptable(parameters) {
				return true
			}
		}
	}
	return false
}

// acceptable judges the parameters of an offer of permessage-deflate.
func acceptable(parameters string) bool {
	if parameters == "" {
		return true
	}
	var seen []string
	for parameter := range strings.SplitSeq(parameters, ";") {
		name, value, valued := strings.Cut(parameter, "=")
		name, value = strings.TrimSpace(name), strings.Trim(strings.TrimSpace(value), `"`)
		good := false
		switch name {
		case "server_no_context_takeover", "client_no_context_takeover":
			good = !valued
		case "client_max_window_bits": // what it says it will keep to
			good = !valued || slices.Contains([]string{"8", "9", "10", "11", "12", "13", "14", "15"}, value)
		}
		if !good || slices.Contains(seen, name) {
			return false
		}
		seen = append(seen, name)
	}
	return true
}

// stream answers the request for an event stream, which ends with the connection. What a page of another origin may read is said to its
// browser in the words of https://fetch.spec.whatwg.org/#http-cors-protocol.
func (h *handshaker) stream(s *handshakeSettings, r *http.Request, e encode.Encoding) []byte {
	var b bytes.Buffer
	b.WriteString("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache\r\nConnection: close\r\n" +
		"X-Accel-Buffering: no\r\nX-Content-Type-Options: nosniff\r\n")
	if origin := r.Header.Get("Origin"); origin != "" {
		b.WriteString("Access-Control-Allow-Origin: " + origin + "\r\nAccess-Control-Allow-Credentials: true\r\nVary: Origin\r\n")
	}
	// Those who are cut off together come back one by one.
	fmt.Fprintf(&b, "\r\nretry: %d\n\n", 1000+rand.IntN(2000))
	if e == encode.Events {
		b.Write(s.greeted)
	}
	return b.Bytes()
}

var endOfHead = []byte("\r\n\r\n")

// accept: judge has looked at the origin already.
func accept(*http.Request) bool { return true }

// judge finds out what a request asks for, or the answer to one that is none of ours. The path is
// percent-decoded as a whole and taken as it is then: slashes are not merged and dots are not resolved, so that what
// nginx made of the URL in order to choose a location holds for the channel as well.
func (h *handshaker) judge(s *handshakeSettings, r *http.Request) (a loop.Admission, refused []byte) {
	refuse := func(status int, line string, headers ...string) (loop.Admission, []byte) {
		return loop.Admission{}, refusal(status, line, headers...)
	}
	switch { // what net/http's server checks after ReadRequest (RFC 9112 sections 2.3 and 3.2)
	case r.ProtoMajor != 1:
		return refuse(http.StatusHTTPVersionNotSupported, "only HTTP/1.1 is spoken here; behind nginx: proxy_http_version 1.1")
	case r.ProtoAtLeast(1, 1) && r.Host == "":
		return refuse(http.StatusBadRequest, "a request needs the header Host")
	}
	for name := range r.Header { // "X-Auth-User : admin" must not be one thing to the proxy and another to us (RFC 9112 section 5.1)
		if !validHeader(name) {
			return refuse(http.StatusBadRequest, "the name of a header has a character that it cannot have")
		}
	}
	channel := ""
	rest, ours := strings.CutPrefix(r.URL.Path, s.path)
	switch {
	case ours && rest == "":
	case ours && rest[0] == '/':
		if channel = rest[1:]; !ipc.ValidChannel(channel) {
			return refuse(http.StatusBadRequest, invalidChannel(s))
		}
	default:
		return loop.Admission{}, h.other(s, r)
	}
	switch {
	case r.Method != http.MethodGet:
		return refuse(http.StatusMethodNotAllowed, "a WebSocket is opened with GET", "Allow: GET")
	case r.ContentLength != 0 || len(r.TransferEncoding) > 0:
		// Its bytes would be read as frames.
		return refuse(http.StatusBadRequest, "a request that opens a WebSocket has no body")
	}
	if acceptsEvents(r) && !hasToken(r.Header["Upgrade"], "websocket") {
		a.Encoding = encode.Events
	} else if line, headers := notWebSocket(r); line != "" {
		return refuse(http.StatusUpgradeRequired, line, headers...)
	} else if len(r.Header["Sec-Websocket-Key"]) != 1 { // RFC 6455 section 11.3.1; the Upgrader looks into the first one
		return refuse(http.StatusBadRequest, "a WebSocket needs one header Sec-WebSocket-Key")
	} else if slices.Contains(websocket.Subprotocols(r), Subprotocol) {
		a.Encoding = encode.JSON
	}
	if line := h.wanted(s, r, channel, &a); line != "" {
		return refuse(http.StatusBadRequest, line)
	}
	if from := r.Header["Origin"]; len(from) > 0 && !allowed(s.origins, from, r.Host) {
		return refuse(http.StatusForbidden, fmt.Sprintf(
			"pages of %s may not connect to %s: add the origin to websocket.origins; behind nginx, pass on the header Host with $http_host",
			strconv.QuoteToASCII(from[0]), strconv.QuoteToASCII(r.Host)))
	}
	return a, nil
}

// notWebSocket says what is wrong with a request that is to open a WebSocket, and with which headers to say so.
func notWebSocket(r *http.Request) (line string, headers []string) {
	switch {
	case !r.ProtoAtLeast(1, 1):
		return "a WebSocket needs HTTP/1.1; behind nginx: proxy_http_version 1.1", []string{"Upgrade: websocket"}
	case !hasToken(r.Header["Connection"], "upgrade") || !hasToken(r.Header["Upgrade"], "websocket"):
		return "this is a WebSocket: open it with new WebSocket(url); behind nginx, pass on the headers Upgrade and Connection",
			[]string{"Upgrade: websocket"}
	case !hasToken(r.Header["Sec-Websocket-Version"], "13"):
		return "only version 13 of the WebSocket protocol is spoken here (RFC 6455)",
			[]string{"Upgrade: websocket", "Sec-WebSocket-Version: 13"}
	}
	return "", nil
}

// acceptsEvents tells whether the client is one that reads server-sent events: an EventSource asks for nothing else.
func acceptsEvents(r *http.Request) bool {
	for _, line := range r.Header["Accept"] {
		for item := range strings.SplitSeq(line, ",") {
			kind, _, _ := strings.Cut(item, ";")
			if strings.EqualFold(strings.TrimSpace(kind), "text/event-stream") {
				return true
			}
		}
	}
	return false
}

// wanted reads which channels a request asks for, and from where on. line says what is wrong with it.
func (h *handshaker) wanted(s *handshakeSettings, r *http.Request, channel string, a *loop.Admission) (line string) {
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return "the query of the URL is not well-formed"
	}
	channels := query["channel"]
	switch {
	case channel != "":
		channels = append([]string{channel}, channels...)
	case len(channels) == 0 && a.Encoding != encode.JSON: // who can subscribe later need not at once
		channels = []string{DefaultChannel}
	}
	switch {
	case len(channels) > 1 && a.Encoding == encode.Raw:
		return "several channels are for the subprotocol " + Subprotocol + " and for event streams: raw messages do not say whose they are"
	case len(channels) > s.subscriptions:
		return fmt.Sprintf("a connection can have %d subscriptions", s.subscriptions)
	case a.Encoding == encode.Events && (len(channels) > 1 || query.Has("envelope")):
		a.Encoding = encode.JSONEvents
	}
	last := query.Get("last_event_id")
	if id := r.Header.Get("Last-Event-Id"); id != "" && !a.Encoding.WebSocket() {
		last = id // of a reader that has come back; what its URL says is older
	}
	for i, channel := range channels {
		switch {
		case !ipc.ValidChannel(channel):
			return invalidChannel(s)
		case slices.Contains(channels[:i], channel):
			continue
		}
		start, err := loop.StartAt(channel, last, query.Get("since"))
		if err != nil {
			return err.Error()
		}
		a.Channels = append(a.Channels, start)
	}
	return ""
}

func invalidChannel(s *handshakeSettings) string {
	return fmt.Sprintf("invalid channel: %s/CHANNEL has 1 to %d letters, digits and . _ - : /", s.path, ipc.MaxChannel)
}

// admit finds out what the client may do, and whether that is what it asks for.
func (h *handshaker) admit(s *handshakeSettings, r *http.Request, peer loop.Peer, a *loop.Admission) (refused []byte) {
	g, refused := s.auth.admit(r, peer)
	if refused != nil {
		return refused
	}
	if g != nil {
		a.Grant = g
	}
	for i := range a.Channels {
		if no := s.auth.may(a.Grant, maySubscribe, a.Channels[i].Channel); no != (loop.Refusal{}) {
			return refusal(http.StatusForbidden, no.Sentence)
		}
	}
	return nil
}

var badChannel = loop.Refusal{Code: "bad_channel", Sentence: fmt.Sprintf("a channel has 1 to %d letters, digits and . _ - : /", ipc.MaxChannel)}

// May implements loop.Handshaker.
func (h *handshaker) May(g loop.Grant, channel string) loop.Refusal {
	if !ipc.ValidChannel(channel) {
		return badChannel
	}
	return h.settings.Load().auth.may(g, maySubscribe, channel)
}

// other answers what is no WebSocket: the client for browsers, the demo page, or not found.
func (h *handshaker) other(s *handshakeSettings, r *http.Request) []byte {
	if body, ok := web.Client(s.script, r.URL.Path); ok {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			return refusal(http.StatusMethodNotAllowed, "this script is read with GET", "Allow: GET, HEAD")
		}
		return response(http.StatusOK, "text/javascript; charset=utf-8", body)
	}
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
