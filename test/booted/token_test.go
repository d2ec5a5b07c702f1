package booted_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/gorilla/websocket"

	"wscast/test/booted"
	"wscast/test/harness"
)

// The key that tokens are checked with is root's alone, and systemd hands it to the daemon, which is another user (LoadCredential=): at each start, and anew at
// a restart.
func TestKeyIsACredential(t *testing.T) {
	t.Parallel()
	m := booted.Boot(t, booted.SocketsOnly(), booted.Config("[auth]\nmethod = 'jwt'\nkey = 'tokens.key'\n"),
		booted.WithDropIn("wscast.service", "[Service]\nLoadCredential=tokens.key:/etc/wscast/tokens.key\n"))
	newKey := func(text string) {
		m.Run("sh", "-c", "umask 077 && printf %s "+text+" >/etc/wscast/tokens.key")
	}
	token := func(args ...string) harness.DialOption {
		out := m.Run(append([]string{"wscast", "token", "--key", "/etc/wscast/tokens.key", "--subject", "alice", "--channel", "news"}, args...)...)
		return harness.Header("Authorization", "Bearer "+strings.TrimSpace(out))
	}
	newKey("the-first-secret-of-32-bytes-or-more")
	if out := m.Run("stat", "--format=%U %a", "/etc/wscast/tokens.key"); out != "root 600\n" {
		t.Fatalf("the key is of %q", out)
	}
	old := token()
	c := harness.Dial(t, m.WebSocketURL("news"), old)
	for _, end := range []func(){
		func() {},
		func() { m.Systemctl("restart", "wscast.service") },
		func() { kill(m, "") },
	} {
		end()
		publish(m, "news", "hello")
		c.ExpectText("hello")
		harness.Dial(t, m.WebSocketURL("news"), old).Close(websocket.CloseNormalClosure)
		if status, text := harness.DialRefused(t, m.WebSocketURL("other"), old); status != http.StatusForbidden {
			t.Errorf("another channel: %d, %s", status, text)
		}
		if status, text := harness.DialRefused(t, m.WebSocketURL("news")); status != http.StatusUnauthorized {
			t.Errorf("no token: %d, %s", status, text)
		}
	}

	// With another key no token of the old one lets anybody in. Who is in stays.
	newKey("the-second-secret-of-32-bytes-or-more")
	m.Systemctl("restart", "wscast.service")
	publish(m, "news", "on")
	c.ExpectText("on")
	if status, text := harness.DialRefused(t, m.WebSocketURL("news"), old); status != http.StatusUnauthorized {
		t.Errorf("a token of the old key: %d, %s", status, text)
	}
	harness.Dial(t, m.WebSocketURL("news"), token("--expires", "1m")).Close(websocket.CloseNormalClosure)
}
