package daemon

import (
	"errors"
	"net/url"
	"slices"
	"strings"
)

// origin is the scheme, host and port of pages that may connect (RFC 6454), as a browser writes it: in lower case and without
// the scheme's default port. The zero value is all of them.
type origin struct{ scheme, host string }

var errOrigin = errors.New(`an origin is "https://example.org" or "https://example.org:8443", without a path, in ASCII (xn--…); "*" is all`)

// parseOrigin reads an origin, or "*". It is strict: what is not exactly an origin is an error, "null" for instance.
func parseOrigin(text string) (origin, error) {
	if text == "*" {
		return origin{}, nil
	}
	text = strings.ToLower(text)
	u, err := url.Parse(text)
	if err != nil || u.Scheme == "" || u.Hostname() == "" || strings.HasSuffix(u.Host, ":") || u.Scheme+"://"+u.Host != text ||
		strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return origin{}, errOrigin
	}
	return origin{u.Scheme, withoutDefaultPort(u.Scheme, u.Host)}, nil
}

// withoutDefaultPort makes hosts comparable: an Origin never has its scheme's default port, but a Host can (RFC 6454 section
// 6.2, RFC 9110 section 4.2.3).
func withoutDefaultPort(scheme, host string) string {
	switch scheme {
	case "http":
		return strings.TrimSuffix(host, ":80")
	case "https":
		return strings.TrimSuffix(host, ":443")
	}
	return host
}

// allowed judges the Origin header. A request without one is not a browser's, and the check is about nothing else: pages of
// strangers that open a WebSocket here with the cookies of the person who looks at them. What is not understood is refused.
//
// Without a list a page may connect to the host it came from. The scheme cannot be compared: behind nginx nobody knows that
// of the request.
func allowed(origins []origin, from []string, host string) bool {
	if slices.Contains(origins, origin{}) {
		return true
	}
	if len(from) != 1 || from[0] == "*" {
		return false
	}
	o, err := parseOrigin(from[0])
	switch {
	case err != nil:
		return false
	case len(origins) > 0:
		return slices.Contains(origins, o)
	case o.scheme != "http" && o.scheme != "https":
		return false
	}
	return o.host == withoutDefaultPort(o.scheme, strings.ToLower(host))
}
