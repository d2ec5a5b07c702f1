package daemon

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/gorilla/websocket"

	"wscast/daemon/loop"
	"wscast/ipc"
	"wscast/token"
)

// Who may connect is asked once, before a client is answered. What it may do from then on is its grant, which survives restarts with it and holds
// until it has expired, whatever a reload says meanwhile.

// The values of auth.method.
const (
	authNone   = "none"
	authHeader = "header"
	authJWT    = "jwt"
)

// tokenProtocol begins the member of the subprotocol list that is a token: a browser cannot send headers with a WebSocket, and what is in the
// URL ends up in logs.
const tokenProtocol = "wscast.token."

// grant implements loop.Grant.
type grant struct {
	Subject   string   `json:"sub"`
	Exp       int64    `json:"exp"` // Unix time in seconds, 0: never
	Subscribe []string `json:"subscribe"`
	Publish   []string `json:"publish"`

	bytes []byte
}

func (g *grant) Identity() string { return g.Subject }
func (g *grant) Bytes() []byte    { return g.bytes }
func (g *grant) Expires() time.Time {
	if g.Exp == 0 {
		return time.Time{}
	}
	return time.Unix(g.Exp, 0)
}

// newGrant makes a grant, and what Restore makes it of again.
func newGrant(subject string, expires time.Time, subscribe, publish []string) *grant {
	g := &grant{Subject: subject, Subscribe: subscribe, Publish: publish}
	if !expires.IsZero() {
		g.Exp = expires.Unix()
	}
	g.bytes, _ = json.Marshal(g) // strings and a number
	return g
}

// Restore implements loop.Handshaker.
func (h *handshaker) Restore(b []byte) (loop.Grant, error) {
	g := &grant{bytes: b}
	if err := json.Unmarshal(b, g); err != nil {
		return nil, errors.New("implausible record: what the client is allowed to do")
	}
	return g, nil
}

func matches(patterns []string, channel string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return ipc.Match(p, channel) })
}

// auth is [auth], ready for use.
type auth struct {
	AuthConfig
	proxies []netip.Prefix
	key     *token.Key
}

// newAuth reads the key. The configuration was checked.
func newAuth(c *AuthConfig) (*auth, *ConfigError) {
	bad := func(key string, value any, hint string, args ...any) *ConfigError {
		return &ConfigError{Text: fmt.Sprintf("%s = %v is not possible", key, show(value)), Hint: fmt.Sprintf(hint, args...)}
	}
	a := &auth{AuthConfig: *c}
	for _, text := range c.Proxies {
		p, err := parseProxy(text)
		if err != nil {
			return nil, bad("auth.proxies", text, "an address or a network, such as 127.0.0.1 or 10.0.0.0/8")
		}
		a.proxies = append(a.proxies, p)
	}
	if c.Method != authJWT {
		return a, nil
	}
	path := c.Key
	if !filepath.IsAbs(path) {
		dir := os.Getenv("CREDENTIALS_DIRECTORY") // systemd.exec(5), LoadCredential=
		if dir == "" {
			return nil, bad("auth.key", path, "the name of a credential is for a daemon that systemd gives credentials: LoadCredential=%s:FILE in the unit, or an absolute path here", path)
		}
		path = filepath.Join(dir, path)
	}
	b, err := os.ReadFile(path)
	if err == nil {
		a.key, err = token.ParseKey(b)
	}
	if err != nil {
		return nil, bad("auth.key", c.Key, "%s", err)
	}
	return a, nil
}

// validHeader tells whether a name is a token, as those of headers and cookies are (RFC 9110 section 5.6.2).
func validHeader(name string) bool {
	return name != "" && !strings.ContainsFunc(name, func(r rune) bool {
		return (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z') && !strings.ContainsRune("!#$%&'*+-.^_`|~", r)
	})
}

func parseProxy(text string) (netip.Prefix, error) {
	if addr, err := netip.ParseAddr(text); err == nil {
		return netip.PrefixFrom(addr, addr.BitLen()), nil
	}
	return netip.ParsePrefix(text)
}

// admit finds out what the client of a request may do. g is nil where everybody may do everything; refused says why it is not let in.
func (a *auth) admit(r *http.Request, peer loop.Peer) (g *grant, refused []byte) {
	switch a.Method {
	case authHeader:
		return a.admitHeader(r, peer)
	case authJWT:
		return a.admitToken(r)
	}
	return nil, nil
}

// admitHeader believes the proxy, which has asked somebody else (auth_request of nginx).
func (a *auth) admitHeader(r *http.Request, peer loop.Peer) (*grant, []byte) {
	if addr := peer.Addr(); addr.IsValid() && !a.believes(addr) {
		return nil, refusal(http.StatusForbidden, fmt.Sprintf("%s is no proxy of auth.proxies", addr))
	}
	lines := r.Header.Values(a.Header)
	if len(lines) != 1 || lines[0] == "" {
		return nil, refusal(http.StatusUnauthorized, fmt.Sprintf(
			"log in first; behind nginx: auth_request, and proxy_set_header %s with who it is", a.Header))
	}
	if len(lines[0]) > token.MaxSubject {
		return nil, refusal(http.StatusUnauthorized, fmt.Sprintf("%s has more than %d bytes", a.Header, token.MaxSubject))
	}
	subscribe := []string{"*"}
	if a.ChannelsHeader != "" {
		subscribe = list(r.Header.Values(a.ChannelsHeader))
	}
	var publish []string
	if a.PublishHeader != "" {
		publish = list(r.Header.Values(a.PublishHeader))
	}
	if len(subscribe) > token.MaxPatterns || len(publish) > token.MaxPatterns {
		return nil, refusal(http.StatusForbidden, fmt.Sprintf("more than %d patterns in %s or %s", token.MaxPatterns, a.ChannelsHeader, a.PublishHeader))
	}
	return newGrant(lines[0], time.Time{}, subscribe, publish), nil
}

// list are the members of a header that is a list.
func list(lines []string) (members []string) {
	for _, line := range lines {
		for m := range strings.FieldsFuncSeq(line, func(r rune) bool { return r == ',' || r == ' ' }) {
			members = append(members, m)
		}
	}
	return members
}

func (a *auth) admitToken(r *http.Request) (*grant, []byte) {
	text := a.tokenOf(r)
	if text == "" {
		places := "the header Authorization, the subprotocol " + tokenProtocol + "TOKEN"
		if a.Cookie != "" {
			places += ", the cookie " + a.Cookie
		}
		return nil, unauthorized("a token is needed: in " + places + " or the query")
	}
	c, err := a.key.Verify(text)
	if err != nil {
		return nil, unauthorized(err.Error())
	}
	return newGrant(c.Subject, c.Expires, c.Channels, c.Publish), nil
}

func unauthorized(line string) []byte {
	return refusal(http.StatusUnauthorized, line, "WWW-Authenticate: Bearer") // RFC 6750 section 3
}

// tokenOf finds a request's token, "" if it has none.
func (a *auth) tokenOf(r *http.Request) string {
	if scheme, text, ok := strings.Cut(r.Header.Get("Authorization"), " "); ok && strings.EqualFold(scheme, "Bearer") {
		return strings.TrimSpace(text)
	}
	for _, protocol := range websocket.Subprotocols(r) {
		if text, ok := strings.CutPrefix(protocol, tokenProtocol); ok {
			return text
		}
	}
	if text := r.URL.Query().Get("token"); text != "" {
		return text
	}
	if cookie, err := r.Cookie(a.Cookie); a.Cookie != "" && err == nil {
		return cookie.Value
	}
	return ""
}

// maySubscribe tells why a client with that grant may not subscribe to a channel, or publish to it.
func (a *auth) may(g loop.Grant, what, channel string) loop.Refusal {
	granted, _ := g.(*grant)
	switch {
	case granted == nil && a.Method == authNone:
		return loop.Refusal{}
	case granted == nil: // connected before a reload that has asked for more
		return loop.Refusal{Code: "not_allowed", Sentence: "connect again, with a token or logged in"}
	case what == mayPublish && !matches(granted.Publish, channel):
		return loop.Refusal{Code: "not_allowed", Sentence: "you may not publish to " + channel}
	case what == maySubscribe && !matches(granted.Subscribe, channel):
		return loop.Refusal{Code: "not_allowed", Sentence: "you may not subscribe to " + channel}
	}
	return loop.Refusal{}
}

const (
	maySubscribe = "subscribe"
	mayPublish   = "publish"
)
