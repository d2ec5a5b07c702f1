package web

import (
	"bytes"
	_ "embed"
	"html"
	"regexp"
	"strings"
)

// ContentSecurityPolicy is the value of the header of that name to send with the page: its own script and style, the
// icon in its text, and connections to its own host. 'self' covers ws and wss of the same host and port (CSP Level 3, section 6.7.2.8).
const ContentSecurityPolicy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"

//go:embed index.html
var index []byte

//go:embed demo.css
var style []byte

//go:embed demo.js
var script []byte

//go:embed wscast.js
var clientSource []byte

// client is what is sent of it: a page waits for it, and nobody reads it there.
var client = shrink(clientSource)

var (
	comments  = regexp.MustCompile(`(?m)^ *//.*\n|^\n|^ +`)
	operators = regexp.MustCompile(` ([=?:+*<>&|]+) `)
	after     = regexp.MustCompile(`([,;{]) `)
	ahead     = regexp.MustCompile(` ([{}])`)
)

// shrink takes the comments and most of the blanks from wscast.js, which is written for that; but for the first line, which says what it is.
// Line feeds stay, so that no statement needs a semicolon that was not there.
func shrink(script []byte) []byte {
	first, rest, _ := bytes.Cut(script, []byte("\n"))
	rest = comments.ReplaceAll(rest, nil)
	for _, pattern := range []*regexp.Regexp{operators, after, ahead} {
		rest = pattern.ReplaceAll(rest, []byte("$1"))
	}
	return append(append(bytes.Clone(first), '\n'), rest...)
}

//go:embed wscast.mjs
var clientModule []byte

// Client returns the client for browsers, where at is the path at which it is served, as /wscast.js: there as a script, and with the ending .mjs
// as a module, which loads the script from beside it. body is not to be changed.
func Client(at, path string) (body []byte, ok bool) {
	switch {
	case at == "":
	case path == at:
		return client, true
	case path == strings.TrimSuffix(at, ".js")+".mjs":
		return bytes.Replace(clientModule, []byte("./wscast.js"), []byte("."+at[strings.LastIndexByte(at, '/'):]), 1), true
	}
	return nil, false
}

// What index.html has in the places that a Site fills in: the defaults of wscastd.
const (
	defaultSocket = `data-socket="/run/wscast/publish.sock"`
	defaultPath   = `data-websocket="websocket"`
	defaultScript = `src="wscast.js"`
)

// Site is what the page says about the daemon that serves it. The zero value stands for the daemon's defaults.
type Site struct {
	PublishSocket string // path of the publish socket, shown in the commands to publish with
	WebSocketPath string // path of the WebSocket URL, as /websocket
	Script        string // path of the client for browsers, as /wscast.js
}

// Page returns the file of the page with this URL path, one of /, /demo.css and /demo.js, and its media type. body is not to be changed.
func (s Site) Page(path string) (body []byte, contentType string, ok bool) {
	switch path {
	case "/":
		return s.index(), "text/html; charset=utf-8", true
	case "/demo.css":
		return style, "text/css; charset=utf-8", true
	case "/demo.js":
		return script, "text/javascript; charset=utf-8", true
	}
	return nil, "", false
}

func (s Site) index() []byte {
	page := index
	if s.PublishSocket != "" {
		page = bytes.ReplaceAll(page, []byte(defaultSocket), []byte(`data-socket="`+html.EscapeString(s.PublishSocket)+`"`))
	}
	if s.WebSocketPath != "" {
		// Relative, so that the page also works below a path of a proxy.
		path := strings.TrimPrefix(s.WebSocketPath, "/")
		page = bytes.ReplaceAll(page, []byte(defaultPath), []byte(`data-websocket="`+html.EscapeString(path)+`"`))
	}
	if s.Script != "" {
		page = bytes.ReplaceAll(page, []byte(defaultScript), []byte(`src="`+html.EscapeString(strings.TrimPrefix(s.Script, "/"))+`"`))
	}
	return page
}
