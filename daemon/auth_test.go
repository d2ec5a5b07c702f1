package daemon

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"wscast/daemon/loop"
	"wscast/token"
)

var secret = []byte(strings.Repeat("s", token.MinSecret))

// keyFile is a file with the secret.
func keyFile(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(path, secret, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func signed(t testing.TB, c token.Claims) string {
	t.Helper()
	k, err := token.ParseKey(secret)
	if err != nil {
		t.Fatal(err)
	}
	text, err := k.Sign(c)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// expectGrant judges a request, and says whether it is let in, and if not how it is answered.
func expectGrant(t *testing.T, h *handshaker, line string, headers []string, status string) loop.Grant {
	t.Helper()
	a := h.Handshake([]byte(request(line, headers...)), -1)
	if got := string(a.Answer[:min(12, len(a.Answer))]); got != "HTTP/1.1 "+status || a.Open != (status == "101" || status == "200") {
		t.Errorf("%s %q: %q", line, headers, a.Answer)
	}
	return a.Grant
}

func TestTokensComeInManyWays(t *testing.T) {
	h := newHandshaker(func(c *Config) {
		c.Auth.Method, c.Auth.Key, c.Auth.Cookie = authJWT, keyFile(t), "session"
	})
	text := signed(t, token.Claims{Subject: "alice", Channels: []string{"news", "chat/*"}, Publish: []string{"chat/alice"}})
	const news = "GET /websocket/news HTTP/1.1"
	for _, test := range []struct {
		line    string
		headers []string
		status  string
	}{
		{news, nil, "401"},
		{news, []string{"Authorization: Bearer " + text}, "101"},
		{news, []string{"Authorization: bearer " + text}, "101"},
		{news, []string{"Authorization: Basic " + text}, "401"},
		{news, []string{"Cookie: a=b; session=" + text}, "101"},
		{news, []string{"Cookie: other=" + text}, "401"},
		{news, []string{"Sec-WebSocket-Protocol: wscast.v1.json, wscast.token." + text}, "101"},
		{"GET /websocket/news?token=" + text + " HTTP/1.1", nil, "101"},
		{"GET /websocket/news?token=" + text + "x HTTP/1.1", nil, "401"},
		{"GET /websocket/chat/bob HTTP/1.1", []string{"Authorization: Bearer " + text}, "101"},
		{"GET /websocket/private HTTP/1.1", []string{"Authorization: Bearer " + text}, "403"},
		{"GET /websocket HTTP/1.1", []string{"Authorization: Bearer " + text}, "403"}, // the channel "default"
		{"GET /websocket?channel=news&channel=private HTTP/1.1", []string{"Accept: text/event-stream", "Upgrade:", "Authorization: Bearer " + text}, "403"},
		{"GET /websocket?channel=news HTTP/1.1", []string{"Accept: text/event-stream", "Upgrade:", "Authorization: Bearer " + text}, "200"},
		{news, []string{"Authorization: Bearer " + signed(t, token.Claims{Channels: []string{"*"}, Expires: time.Now().Add(-time.Second)})}, "401"},
	} {
		g := expectGrant(t, h, test.line, test.headers, test.status)
		if (g != nil) != (test.status == "101" || test.status == "200") || g != nil && g.Identity() != "alice" {
			t.Errorf("%s %q: %+v", test.line, test.headers, g)
		}
	}

	// What it may do is the same for an heir.
	g := expectGrant(t, h, news, []string{"Authorization: Bearer " + text}, "101")
	again, err := h.Restore(g.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range []loop.Grant{g, again} {
		for channel, may := range map[string]bool{"news": true, "chat/bob": true, "private": false} {
			if (h.May(g, channel) == loop.Refusal{}) != may {
				t.Errorf("%s: %+v", channel, h.May(g, channel))
			}
		}
	}
	if _, err := h.Restore([]byte("{")); err == nil {
		t.Error("a damaged grant is one")
	}
}

func TestClientsThatMayPublish(t *testing.T) {
	h := newHandshaker(func(c *Config) {
		c.Auth.Method, c.Auth.Key = authJWT, keyFile(t)
		c.Channel = []ChannelConfig{{Match: "chat/*", Upstream: upstreamBoth}, {Match: "quiet"}}
	})
	g, _ := h.settings.Load().auth.key.Verify(signed(t, token.Claims{Publish: []string{"chat/a", "quiet"}}))
	granted := newGrant(g.Subject, g.Expires, g.Channels, g.Publish)
	for channel, code := range map[string]string{"chat/a": "", "chat/b": "not_allowed", "quiet": "not_allowed", "no channel": "bad_channel"} {
		if got := h.MayPublish(granted, channel).Code; got != code {
			t.Errorf("%s: %q, want %q", channel, got, code)
		}
	}
	if got := h.MayPublish(nil, "chat/a").Code; got != "not_allowed" {
		t.Errorf("without a grant: %q", got)
	}
}

func TestWhomTheProxyNames(t *testing.T) {
	const news = "GET /websocket/news HTTP/1.1"
	plain := newHandshaker(func(c *Config) { c.Auth.Method = authHeader })
	expectGrant(t, plain, news, nil, "401")
	twice := strings.Replace(request(news, "X-Auth-User: a"), "X-Auth-User: a", "X-Auth-User: a\r\nX-Auth-User: b", 1)
	if a := plain.Handshake([]byte(twice), -1); a.Open {
		t.Errorf("two identities are one: %+v", a.Grant)
	}
	if g := expectGrant(t, plain, news, []string{"X-Auth-User: alice"}, "101"); g == nil || g.Identity() != "alice" {
		t.Errorf("%+v", g)
	}
	expectGrant(t, plain, news, []string{"X-Auth-User: " + strings.Repeat("a", token.MaxSubject+1)}, "401")

	listed := newHandshaker(func(c *Config) {
		c.Auth.Method, c.Auth.ChannelsHeader, c.Auth.PublishHeader = authHeader, "X-Channels", "X-Publish"
		c.Channel = []ChannelConfig{{Match: "*", Upstream: upstreamClients}}
	})
	expectGrant(t, listed, news, []string{"X-Auth-User: alice"}, "403")
	g := expectGrant(t, listed, news, []string{"X-Auth-User: alice", "X-Channels: sport, new*", "X-Publish: chat"}, "101")
	if listed.MayPublish(g, "chat") != (loop.Refusal{}) || listed.MayPublish(g, "news") == (loop.Refusal{}) {
		t.Errorf("%+v", g)
	}
	expectGrant(t, listed, news, []string{"X-Auth-User: alice", "X-Channels: " + strings.Repeat("a,", token.MaxPatterns+1)}, "403")
}

// The header is believed from a proxy alone: a client that reaches the daemon by another way could say that it is anybody.
func TestOnlyProxiesAreBelieved(t *testing.T) {
	for proxies, status := range map[string]int{"127.0.0.0/8": 101, "127.0.0.1": 101, "10.0.0.0/8": 403, "::1": 403} {
		r := start(t, func(o *Options, _ string) {
			o.Config.Auth.Method, o.Config.Auth.Proxies = authHeader, []string{proxies}
		})
		conn, answer, err := websocket.DefaultDialer.Dial("ws://"+r.address+"/websocket", map[string][]string{"X-Auth-User": {"alice"}})
		if answer == nil || answer.StatusCode != status {
			t.Errorf("%s: %v, want %d", proxies, err, status)
		}
		if conn != nil {
			conn.Close()
		}
	}
}

// A client whose token ends is closed, and one that is not let in is told why.
func TestTokenExpires(t *testing.T) {
	r := start(t, func(o *Options, _ string) {
		o.Config.Auth.Method, o.Config.Auth.Key = authJWT, keyFile(t)
		o.Config.WebSocket.HandshakeTimeout = Duration(250 * time.Millisecond) // the clock ticks five times as often
	})
	conn, _, err := websocket.DefaultDialer.Dial("ws://"+r.address+"/websocket?token="+
		signed(t, token.Claims{Channels: []string{"*"}, Expires: time.Now().Add(2 * time.Second)}), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	expectClosed(t, conn, loop.CloseExpired)
}

func TestKeyHasToBeThere(t *testing.T) {
	for _, test := range []struct{ key, says string }{
		{"/nonexistent", `auth.key = "/nonexistent" is not possible`},
		{"wscast.key", "LoadCredential=wscast.key:FILE"},
	} {
		t.Setenv("CREDENTIALS_DIRECTORY", "")
		c := Defaults()
		c.Auth.Method, c.Auth.Key = authJWT, test.key
		if _, bad := newAuth(&c.Auth); bad == nil || !strings.Contains(bad.Error(), test.says) {
			t.Errorf("%s: %v", test.key, bad)
		}
	}
	t.Setenv("CREDENTIALS_DIRECTORY", filepath.Dir(keyFile(t)))
	c := Defaults()
	c.Auth.Method, c.Auth.Key = authJWT, "key"
	if _, bad := newAuth(&c.Auth); bad != nil {
		t.Error(bad)
	}
}
