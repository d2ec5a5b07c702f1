package daemon

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"wscast/ipc"
	"wscast/web"
)

// newHandshaker is one with the defaults, changed.
func newHandshaker(change ...func(*Config)) *handshaker {
	c := Defaults()
	for _, f := range change {
		f(&c)
	}
	h := &handshaker{publish: "/run/wscast/publish.sock"}
	auth, bad := newAuth(&c.Auth)
	if bad != nil {
		panic(bad)
	}
	h.configure(&c, auth)
	return h
}

// request builds a request head: the opening handshake, in which headers of the same name are replaced, or left out where
// the header given is "Name:" alone.
func request(line string, headers ...string) string {
	lines := []string{"Host: example.org", "Upgrade: websocket", "Connection: Upgrade",
		"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version: 13"}
	for _, h := range headers {
		name, _, _ := strings.Cut(h, ":")
		for i, l := range lines {
			if strings.HasPrefix(l, name+":") {
				lines[i] = ""
			}
		}
		if !strings.HasSuffix(h, ":") {
			lines = append(lines, h)
		}
	}
	text := line + "\r\n"
	for _, l := range lines {
		if l != "" {
			text += l + "\r\n"
		}
	}
	return text + "\r\n"
}

// answer parses an answer, which has to be a whole valid response that ends the connection, or a 101.
func answer(t testing.TB, method string, b []byte) (r *http.Response, body string) {
	t.Helper()
	in := bufio.NewReader(bytes.NewReader(b))
	r, err := http.ReadResponse(in, &http.Request{Method: method})
	if err != nil {
		t.Fatalf("the answer is no HTTP response: %v\n%q", err, b)
	}
	if r.StatusCode == http.StatusSwitchingProtocols {
		rest, _ := io.ReadAll(in)
		return r, string(rest)
	}
	text, err := io.ReadAll(r.Body)
	r.Body.Close()
	if err != nil {
		t.Fatalf("the answer's body: %v\n%q", err, b)
	}
	if more := in.Buffered(); more > 0 || !r.Close {
		t.Errorf("the answer goes on with %d bytes, and ends the connection: %v\n%q", more, r.Close, b)
	}
	for name, want := range map[string]string{"Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"} {
		if got := r.Header.Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	return r, string(text)
}

// Every answer to RFC 6455's example is the example's.
func TestHandshakeOfTheRFC(t *testing.T) {
	h := newHandshaker()
	b, channel := shake(h, []byte("GET /websocket HTTP/1.1\r\nHost: server.example.com\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"+
		"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nOrigin: http://server.example.com\r\nSec-WebSocket-Protocol: chat, superchat\r\n"+
		"Sec-WebSocket-Version: 13\r\n\r\n"))
	want := "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
	if string(b) != want || channel != "default" {
		t.Errorf("channel %q\n%q\nwant\n%q", channel, b, want)
	}
}

// As nginx passes a browser's request on (etc/nginx/wscast.conf), and as Chromium sends one itself.
func TestHandshakeOfBrowsers(t *testing.T) {
	h := newHandshaker()
	for name, head := range map[string]string{
		"nginx": "GET /websocket/news HTTP/1.1\r\nUpgrade: websocket\r\nConnection: upgrade\r\nHost: example.org:8443\r\nX-Forwarded-For: 192.0.2.1\r\n" +
			"X-Forwarded-Proto: https\r\nPragma: no-cache\r\nCache-Control: no-cache\r\nUser-Agent: Mozilla/5.0\r\nOrigin: https://example.org:8443\r\n" +
			"Sec-WebSocket-Version: 13\r\nAccept-Encoding: gzip, deflate, br\r\nAccept-Language: de\r\nCookie: a=b; c=d\r\n" +
			"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n\r\n",
		"Chromium": "GET /websocket/news HTTP/1.1\r\nHost: 127.0.0.1:7311\r\nConnection: Upgrade\r\nPragma: no-cache\r\nCache-Control: no-cache\r\n" +
			"User-Agent: Mozilla/5.0\r\nUpgrade: websocket\r\nOrigin: http://127.0.0.1:7311\r\nSec-WebSocket-Version: 13\r\n" +
			"Accept-Encoding: gzip, deflate, br, zstd\r\nAccept-Language: en-US,en;q=0.9\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n" +
			"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n\r\n",
		"Firefox": "GET /websocket/news HTTP/1.1\r\nHost: example.org\r\nSec-WebSocket-Version: 13\r\nOrigin: https://example.org\r\n" +
			"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\n",
	} {
		b, channel := shake(h, []byte(head))
		r, _ := answer(t, "GET", b)
		if r.StatusCode != 101 || channel != "news" {
			t.Errorf("%s: status %d, channel %q\n%s", name, r.StatusCode, channel, b)
		}
		if ext := r.Header["Sec-Websocket-Extensions"]; ext != nil {
			t.Errorf("%s: extensions %q, which nobody has agreed on", name, ext)
		}
	}
}

func TestChannelOfURL(t *testing.T) {
	h := newHandshaker()
	for target, want := range map[string]string{ // "": refused with 400
		"/websocket":                                   "default",
		"/websocket?token=1":                           "default",
		"/websocket/news":                              "news",
		"/websocket/news?a=/b":                         "news",
		"/websocket/a/b":                               "a/b",
		"/websocket/a%2Fb":                             "a/b",
		"/websocket%2Fnews":                            "news",
		"/%77ebsocket/news":                            "news",
		"/websocket/%6e%65ws":                          "news",
		"/websocket/A-Z_0.9:x":                         "A-Z_0.9:x",
		"/websocket//news":                             "/news",
		"/websocket/news/":                             "news/",
		"/websocket/./news":                            "./news",
		"/websocket/..":                                "..",
		"/websocket/a%2F..%2Fb":                        "a/../b",
		"http://example.org/websocket/news":            "news",
		"/websocket/" + strings.Repeat("x", 128):       strings.Repeat("x", 128),
		"/websocket/" + strings.Repeat("x", 129):       "",
		"/websocket/" + strings.Repeat("%78", 128):     strings.Repeat("x", 128),
		"/websocket/":                                  "",
		"/websocket/%":                                 "",
		"/websocket/%zz":                               "",
		"/websocket/a%20b":                             "",
		"/websocket/a+b":                               "",
		"/websocket/%00":                               "",
		"/websocket/%0d%0aSet-Cookie:a":                "",
		"/websocket/b%C3%BCcher":                       "",
		"/websocket/b\xc3\xbccher":                     "",
		"/websocket/%2525":                             "",
		"/websocket/a;b":                               "",
		"/websocket/<script>alert(1)</script>%3Cp%3E/": "",
	} {
		b, channel := shake(h, []byte(request("GET "+target+" HTTP/1.1")))
		r, body := answer(t, "GET", b)
		switch {
		case channel != want:
			t.Errorf("%s: channel %q, want %q", target, channel, want)
		case want != "" && r.StatusCode != 101, want == "" && r.StatusCode != 400:
			t.Errorf("%s: status %d\n%s", target, r.StatusCode, body)
		}
	}
}

func TestRequestsThatAreRefused(t *testing.T) {
	const get = "GET /websocket HTTP/1.1"
	for name, test := range map[string]struct {
		head    string
		status  int
		line    string
		headers []string
	}{
		"plain GET": {request(get, "Upgrade:", "Connection:", "Sec-WebSocket-Key:", "Sec-WebSocket-Version:"), 426,
			"this is a WebSocket: open it with new WebSocket(url); behind nginx, pass on the headers Upgrade and Connection",
			[]string{"Upgrade: websocket", "Connection: close, Upgrade"}},
		"without Upgrade":    {request(get, "Upgrade:"), 426, "this is a WebSocket", []string{"Upgrade: websocket"}},
		"without Connection": {request(get, "Connection:"), 426, "this is a WebSocket", []string{"Upgrade: websocket"}},
		"Connection: close":  {request(get, "Connection: close"), 426, "this is a WebSocket", nil},
		"Upgrade: h2c":       {request(get, "Upgrade: h2c"), 426, "this is a WebSocket", nil},
		"version 8": {request(get, "Sec-WebSocket-Version: 8"), 426, "only version 13 of the WebSocket protocol is spoken here (RFC 6455)",
			[]string{"Sec-WebSocket-Version: 13", "Upgrade: websocket"}},
		"no version":      {request(get, "Sec-WebSocket-Version:"), 426, "only version 13", []string{"Sec-WebSocket-Version: 13"}},
		"no key":          {request(get, "Sec-WebSocket-Key:"), 400, "a WebSocket needs one header Sec-WebSocket-Key", nil},
		"two keys":        {request(get, "X: 1\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="), 400, "a WebSocket needs one header Sec-WebSocket-Key", nil},
		"short key":       {request(get, "Sec-WebSocket-Key: dGhl"), 400, "'Sec-WebSocket-Key' header must be Base64 encoded value of 16-byte in length", nil},
		"key not Base64":  {request(get, "Sec-WebSocket-Key: !!!!!!!!!!!!!!!!!!!!!!=="), 400, "Sec-WebSocket-Key", nil},
		"HTTP/1.0":        {request("GET /websocket HTTP/1.0"), 426, "a WebSocket needs HTTP/1.1; behind nginx: proxy_http_version 1.1", []string{"Upgrade: websocket"}},
		"HTTP/2.0":        {request("GET /websocket HTTP/2.0"), 505, "only HTTP/1.1 is spoken here", nil},
		"HTTP/2 preface":  {"PRI * HTTP/2.0\r\n\r\n", 505, "only HTTP/1.1 is spoken here", nil},
		"HTTP/0.9":        {"GET /websocket\r\n\r\n", 400, "not a valid HTTP request", nil},
		"TLS":             {"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400, "not a valid HTTP request", nil},
		"bad header":      {request(get, "X Y"), 400, "not a valid HTTP request", nil},
		"no Host":         {request(get, "Host:"), 400, "a request needs the header Host", nil},
		"two Hosts":       {request(get, "X: 1\r\nhOST: other.example"), 400, "not a valid HTTP request", nil},
		"POST":            {request("POST /websocket HTTP/1.1"), 405, "a WebSocket is opened with GET", []string{"Allow: GET"}},
		"get":             {request("get /websocket HTTP/1.1"), 405, "a WebSocket is opened with GET", nil},
		"OPTIONS":         {request("OPTIONS /websocket HTTP/1.1"), 405, "a WebSocket is opened with GET", nil},
		"OPTIONS *":       {request("OPTIONS * HTTP/1.1"), 404, "nothing here", nil},
		"CONNECT":         {request("CONNECT example.org:443 HTTP/1.1"), 404, "nothing here", nil},
		"body":            {request(get, "Content-Length: 10"), 400, "a request that opens a WebSocket has no body", nil},
		"chunked body":    {request(get, "Transfer-Encoding: chunked"), 400, "a request that opens a WebSocket has no body", nil},
		"other transfer":  {request(get, "Transfer-Encoding: gzip"), 400, "not a valid HTTP request", nil},
		"two lengths":     {request(get, "Content-Length: 1\r\nContent-Length: 2"), 400, "not a valid HTTP request", nil},
		"both kinds":      {request(get, "Content-Length: 5\r\nTransfer-Encoding: chunked"), 400, "a request that opens a WebSocket has no body", nil},
		"elsewhere":       {request("GET /websockets HTTP/1.1"), 404, "nothing here: WebSockets are at /websocket and /websocket/CHANNEL", nil},
		"//websocket":     {request("GET //websocket HTTP/1.1"), 404, "nothing here", nil},
		"upper case":      {request("GET /WebSocket HTTP/1.1"), 404, "nothing here", nil},
		"root":            {request("GET / HTTP/1.1"), 404, "nothing here", nil},
		"foreign page":    {request(get, "Origin: https://evil.example"), 403, `pages of "https://evil.example" may not connect to "example.org": add the origin to websocket.origins; behind nginx, pass on the header Host with $http_host`, nil},
		"origin of bytes": {request(get, "Origin: \xff\xfe<\"b\xc3\xbc"), 403, `pages of "\xff\xfe<\"b\u00fc" may not connect to "example.org"`, nil},
	} {
		b, channel := shake(newHandshaker(), []byte(test.head))
		r, body := answer(t, "GET", b)
		if r.StatusCode != test.status || channel != "" {
			t.Errorf("%s: status %d, channel %q, want status %d\n%s", name, r.StatusCode, channel, test.status, b)
		}
		if !strings.HasPrefix(body, test.line) && !strings.Contains(body, test.line) || strings.Count(body, "\n") != 1 || !strings.HasSuffix(body, "\n") {
			t.Errorf("%s: the answer is not the one line %q\n%q", name, test.line, body)
		}
		if got := r.Header.Get("Content-Type"); got != "text/plain; charset=utf-8" || !utf8.ValidString(body) {
			t.Errorf("%s: content type %q of %q", name, got, body)
		}
		for _, h := range test.headers {
			if !strings.Contains(string(b), "\r\n"+h+"\r\n") {
				t.Errorf("%s: no header %q\n%s", name, h, b)
			}
		}
	}
}

// What is harmless is served.
func TestRequestsThatAreUnusual(t *testing.T) {
	for name, head := range map[string]string{
		"Content-Length: 0":      request("GET /websocket HTTP/1.1", "Content-Length: 0"),
		"tokens in another case": request("GET /websocket HTTP/1.1", "Upgrade: WebSocket", "Connection: keep-alive , UPGRADE"),
		"tokens on two lines":    request("GET /websocket HTTP/1.1", "Connection: keep-alive", "Connection: upgrade"),
		"HTTP/1.2":               request("GET /websocket HTTP/1.2"),
		"line feeds alone":       strings.ReplaceAll(request("GET /websocket HTTP/1.1"), "\r\n", "\n"),
		"Expect":                 request("GET /websocket HTTP/1.1", "Expect: 100-continue"),
	} {
		b, channel := shake(newHandshaker(), []byte(head))
		if r, _ := answer(t, "GET", b); r.StatusCode != 101 || channel != "default" {
			t.Errorf("%s: status %d, channel %q\n%s", name, r.StatusCode, channel, b)
		}
	}
}

func TestHeadHasNoBody(t *testing.T) {
	h := newHandshaker()
	h.demo = true
	for target, status := range map[string]int{"/websocket": 405, "/": 200, "/demo.js": 200, "/nowhere": 404} {
		b, channel := shake(h, []byte(request("HEAD "+target+" HTTP/1.1")))
		r, body := answer(t, "HEAD", b)
		if r.StatusCode != status || body != "" || channel != "" || !bytes.HasSuffix(b, []byte("\r\n\r\n")) || r.ContentLength <= 0 {
			t.Errorf("HEAD %s: status %d, want %d, without a body\n%s", target, r.StatusCode, status, b)
		}
	}
}

func TestGreetingComesWithTheAnswer(t *testing.T) {
	h := newHandshaker(func(c *Config) { c.WebSocket.Greeting = "websocket is running" })
	b, _ := shake(h, []byte(request("GET /websocket HTTP/1.1")))
	if _, rest := answer(t, "GET", b); rest != "\x81\x14websocket is running" {
		t.Errorf("behind the answer comes %q", rest)
	}
	h = newHandshaker(func(c *Config) { c.WebSocket.Greeting = strings.Repeat("ü", 100) })
	b, _ = shake(h, []byte(request("GET /websocket HTTP/1.1")))
	if _, rest := answer(t, "GET", b); rest != "\x81\x7e\x00\xc8"+strings.Repeat("ü", 100) {
		t.Errorf("behind the answer comes %q", rest)
	}
}

func TestAnotherPath(t *testing.T) {
	h := newHandshaker(func(c *Config) { c.WebSocket.Path = "/live/ws" })
	for target, want := range map[string]string{"/live/ws": "default", "/live/ws/a": "a", "/live": "", "/websocket": "", "/live/wsa": ""} {
		b, channel := shake(h, []byte(request("GET "+target+" HTTP/1.1")))
		if channel != want || want == "" && !strings.Contains(string(b), "WebSockets are at /live/ws and /live/ws/CHANNEL") {
			t.Errorf("%s: channel %q, want %q\n%s", target, channel, want, b)
		}
	}
}

func TestOrigin(t *testing.T) {
	list := []string{"https://example.org", "https://Example.NET:8443", "capacitor://localhost"}
	for _, test := range []struct {
		origins []string
		host    string
		origin  string // lines, "" none
		want    bool
	}{
		// The request's own host.
		{nil, "example.org", "", true},
		{nil, "example.org", "https://example.org", true},
		{nil, "example.org", "http://example.org", true},
		{nil, "Example.ORG", "https://example.org", true},
		{nil, "example.org", "HTTPS://EXAMPLE.org", true},
		{nil, "example.org:443", "https://example.org", true},
		{nil, "example.org:80", "http://example.org", true},
		{nil, "example.org", "https://example.org:443", true},
		{nil, "example.org:8443", "https://example.org:8443", true},
		{nil, "[::1]:7311", "http://[::1]:7311", true},
		{nil, "[::1]:80", "http://[::1]", true},
		{nil, "example.org:80", "https://example.org", false},
		{nil, "example.org:443", "http://example.org", false},
		{nil, "example.org", "https://example.org:8443", false},
		{nil, "example.org:8443", "https://example.org", false},
		{nil, "example.org", "https://sub.example.org", false},
		{nil, "example.org", "https://example.org.evil.example", false},
		{nil, "example.org", "https://evil.example", false},
		{nil, "example.org", "ftp://example.org", false},
		{nil, "example.org", "null", false},
		{nil, "example.org", "*", false},
		{nil, "example.org", "example.org", false},
		{nil, "example.org", "//example.org", false},
		{nil, "example.org", "https://example.org/", false},
		{nil, "example.org", "https://example.org?", false},
		{nil, "example.org", "https://example.org#", false},
		{nil, "example.org", "https://example.org: ", false},
		{nil, "example.org", "https://a@example.org", false},
		{nil, "example.org", "https://", false},
		{nil, "example.org", "https://%65xample.org", false},
		{nil, "example.org", "https://example.org https://evil.example", false},
		{nil, "example.org", "https://example.org\r\nOrigin: https://example.org", false},
		{nil, "example.org", " ", false},

		// A list instead: not even the own host, unless it is in it.
		{list, "example.com", "https://example.org", true},
		{list, "example.com", "https://example.org:443", true},
		{list, "example.com", "https://example.net:8443", true},
		{list, "example.com", "capacitor://localhost", true},
		{list, "example.com", "", true},
		{list, "example.com", "http://example.org", false},
		{list, "example.com", "https://example.com", false},
		{list, "example.com", "null", false},
		{list, "example.com", "*", false},

		// All pages.
		{[]string{"*"}, "example.org", "https://evil.example", true},
		{[]string{"*"}, "example.org", "null", true},
		{[]string{"https://example.org", "*"}, "example.org", "null", true},
		{[]string{"*"}, "example.org", "rubbish\r\nOrigin: more", true},
	} {
		h := newHandshaker(func(c *Config) { c.WebSocket.Origins = test.origins })
		headers := []string{"Host: " + test.host}
		if test.origin != "" {
			headers = append(headers, "Origin: "+test.origin)
		}
		b, channel := shake(h, []byte(request("GET /websocket HTTP/1.1", headers...)))
		r, _ := answer(t, "GET", b)
		if got := channel != ""; got != test.want || !got && r.StatusCode != http.StatusForbidden {
			t.Errorf("origins %q, host %q, origin %q: status %d, allowed %v, want %v", test.origins, test.host, test.origin, r.StatusCode, got, test.want)
		}
	}
}

func TestDemoPageIsServedOnDemandOnly(t *testing.T) {
	h := newHandshaker(func(c *Config) { c.WebSocket.Path = "/live" })
	if b, _ := shake(h, []byte(request("GET / HTTP/1.1"))); !bytes.HasPrefix(b, []byte("HTTP/1.1 404 Not Found\r\n")) {
		t.Errorf("without --demo / is answered with\n%s", b)
	}
	h.demo = true
	site := web.Site{PublishSocket: "/run/wscast/publish.sock", WebSocketPath: "/live"}
	for _, target := range []string{"/", "/demo.css", "/demo.js"} {
		want, contentType, _ := site.Page(target)
		b, channel := shake(h, []byte(request("GET "+target+" HTTP/1.1", "Upgrade:", "Connection:")))
		r, body := answer(t, "GET", b)
		if r.StatusCode != 200 || channel != "" || body != string(want) || r.Header.Get("Content-Type") != contentType {
			t.Errorf("%s: status %d, content type %q", target, r.StatusCode, r.Header.Get("Content-Type"))
		}
		csp := ""
		if target == "/" {
			csp = web.ContentSecurityPolicy
		}
		if got := r.Header.Get("Content-Security-Policy"); got != csp {
			t.Errorf("%s: Content-Security-Policy %q, want %q", target, got, csp)
		}
	}
	b, _ := shake(h, []byte(request("POST / HTTP/1.1")))
	if r, body := answer(t, "POST", b); r.StatusCode != 405 || r.Header.Get("Allow") != "GET, HEAD" || body != "this page is read with GET\n" {
		t.Errorf("POST /: %d %q", r.StatusCode, body)
	}
	b, _ = shake(h, []byte(request("GET /live/a HTTP/1.1")))
	if r, _ := answer(t, "GET", b); r.StatusCode != 101 {
		t.Errorf("with --demo a WebSocket is answered with %d", r.StatusCode)
	}
}

// The loops refuse what never comes to be judged.
func TestRefuse(t *testing.T) {
	r, body := answer(t, "GET", newHandshaker().Refuse(http.StatusRequestTimeout, "the request did not arrive in time"))
	if r.StatusCode != 408 || body != "the request did not arrive in time\n" {
		t.Errorf("%d %q", r.StatusCode, body)
	}
}

// A handshaker is used by all loops at once, and what it returns stays the caller's.
func TestHandshakesDoNotShareAnswers(t *testing.T) {
	h := newHandshaker()
	first, _ := shake(h, []byte(request("GET /websocket/a HTTP/1.1")))
	kept := string(first)
	for i := range 100 {
		if _, channel := shake(h, []byte(request("GET /websocket/b"+strconv.Itoa(i)+" HTTP/1.1", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="))); channel != "b"+strconv.Itoa(i) {
			t.Fatalf("channel %q of request %d", channel, i)
		}
	}
	if string(first) != kept {
		t.Errorf("an answer has changed later: %q, was %q", first, kept)
	}
}

func FuzzHandshake(f *testing.F) {
	for _, line := range []string{"GET /websocket HTTP/1.1", "GET /websocket/news HTTP/1.1", "HEAD / HTTP/1.1", "POST /websocket/a%2F HTTP/1.0", "GET /demo.js HTTP/1.1",
		"GET http://example.org/websocket/%zz HTTP/1.1", "PRI * HTTP/2.0"} {
		f.Add([]byte(request(line)))
	}
	f.Add([]byte(request("GET /websocket HTTP/1.1", "Origin: https://example.org:443", "Host: EXAMPLE.org:443")))
	f.Add([]byte(request("GET /websocket HTTP/1.1", "Origin: \xff\"\\", "Content-Length: 0")))
	f.Add([]byte(request("GET /websocket HTTP/1.1", "Transfer-Encoding: chunked", "Trailer: X")))
	h := newHandshaker(func(c *Config) { c.WebSocket.Greeting = "hello" })
	h.demo = true
	f.Fuzz(func(t *testing.T, head []byte) {
		before := bytes.Clone(head)
		b, channel := shake(h, head)
		if !bytes.Equal(head, before) {
			t.Error("the request was changed")
		}
		method := http.MethodGet
		if r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(head))); err == nil {
			method = r.Method
		}
		r, rest := answer(t, method, b)
		if (r.StatusCode == 101) != (channel != "") {
			t.Errorf("status %d, channel %q", r.StatusCode, channel)
		}
		if channel != "" && (!ipc.ValidChannel(channel) || rest != "\x81\x05hello") {
			t.Errorf("channel %q, and behind the answer %q", channel, rest)
		}
	})
}

func FuzzOrigin(f *testing.F) {
	for _, text := range []string{"*", "null", "https://example.org", "http://[::1]:80", "https://a:443", "HTTPS://A", "x://y:1", "https://a\x00"} {
		f.Add(text, "example.org")
	}
	f.Fuzz(func(t *testing.T, text, host string) {
		o, err := parseOrigin(text)
		if err != nil {
			if allowed(nil, []string{text}, host) {
				t.Errorf("%q is no origin, and allowed to %q", text, host)
			}
			return
		}
		if text != "*" && (o.scheme == "" || o.host == "") {
			t.Errorf("%q is taken for all origins", text)
		}
		if again, err := parseOrigin(o.scheme + "://" + o.host); text != "*" && (err != nil || again != o) {
			t.Errorf("%q is %v, and that is %v, %v", text, o, again, err)
		}
	})
}

func BenchmarkHandshake(b *testing.B) {
	h := newHandshaker()
	head := []byte(request("GET /websocket/news HTTP/1.1", "Origin: https://example.org"))
	b.ReportAllocs()
	for b.Loop() {
		if _, channel := shake(h, head); channel != "news" {
			b.Fatal("refused")
		}
	}
}

// shake is a handshake of a client of one channel.
func shake(h *handshaker, head []byte) (answer []byte, channel string) {
	a := h.Handshake(head, -1)
	if a.Open && len(a.Channels) == 1 {
		channel = a.Channels[0].Channel
	}
	return a.Answer, channel
}
