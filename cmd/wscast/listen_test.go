package main

import (
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

// webSocketServer answers /websocket with gorilla's Upgrader and gives the connection to serve.
func webSocketServer(t *testing.T, serve func(conn *websocket.Conn)) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(upgrading(serve))
	t.Cleanup(s.Close)
	return s
}

func upgrading(serve func(conn *websocket.Conn)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/websocket" {
			http.Error(w, "no such path\x1b[2J", http.StatusNotFound)
			return
		}
		if origin := r.Header.Get("Origin"); origin != "" && origin != "https://example.org" {
			http.Error(w, "origin not allowed", http.StatusForbidden)
			return
		}
		upgrader := websocket.Upgrader{CheckOrigin: func(*http.Request) bool { return true }}
		conn, err := upgrader.Upgrade(w, r, nil)
		if err != nil {
			return
		}
		defer conn.Close()
		conn.SetReadDeadline(time.Now().Add(deadline))
		serve(conn)
	})
}

func webSocketURL(s *httptest.Server) string {
	return "ws" + strings.TrimPrefix(s.URL, "http") + "/websocket"
}

// closing sends a close frame and waits for the answer.
func closing(code int, reason string) func(*websocket.Conn) {
	return func(conn *websocket.Conn) {
		conn.WriteMessage(websocket.CloseMessage, websocket.FormatCloseMessage(code, reason))
		conn.ReadMessage()
	}
}

func TestListen(t *testing.T) {
	s := webSocketServer(t, func(conn *websocket.Conn) {
		conn.WriteMessage(websocket.TextMessage, []byte("hello"))
		conn.WriteMessage(websocket.BinaryMessage, []byte("\x00\xff\n"))
		conn.WriteMessage(websocket.TextMessage, nil)
		closing(websocket.CloseGoingAway, "see you")(conn)
	})
	want := "hello\n\x00\xff\n\n"
	wscast(t, "", "listen", webSocketURL(s)).expect(t, 0, want, "wscast: closed by the server: 1001 (going away): see you\n")
	wscast(t, "", "listen", webSocketURL(s), "--origin", "https://example.org").expect(t, 0, want, "1001")
	wscast(t, "", "listen", "--origin=https://example.com", webSocketURL(s)).
		expect(t, exitFailure, "", webSocketURL(s)+": 403 Forbidden: origin not allowed\n")
}

func TestListenClosed(t *testing.T) {
	for _, c := range []struct {
		serve  func(*websocket.Conn)
		code   int
		stderr string
	}{
		{closing(1000, ""), 0, "wscast: closed by the server: 1000 (normal closure)\n"},
		{closing(1001, "bye"), 0, "wscast: closed by the server: 1001 (going away): bye\n"},
		{closing(1012, "service restart"), exitFailure, "wscast: closed by the server: 1012 (service restart)\n"},
		{closing(1012, ""), exitFailure, "wscast: closed by the server: 1012 (service restart)\n"},
		{closing(1013, "slow: the log has moved on"), exitFailure, "wscast: closed by the server: 1013 (try again later): slow: the log has moved on\n"},
		{closing(4001, "\x1b[2Jtwo\nlines"), exitFailure, "wscast: closed by the server: 4001: \\x1b[2Jtwo\\x0alines\n"},
		{closing(websocket.CloseNoStatusReceived, ""), exitFailure, "wscast: closed by the server without a code\n"},
		{func(conn *websocket.Conn) {}, exitFailure, "wscast: connection lost: the server sent no close frame\n"},
		{func(conn *websocket.Conn) {
			conn.NetConn().(*net.TCPConn).SetLinger(0) // close sends a reset
		}, exitFailure, "wscast: connection lost: connection reset by peer\n"},
		{func(conn *websocket.Conn) {
			// A frame that announces more than the tool takes: RFC 6455 section 5.2.
			conn.NetConn().Write([]byte{0x82, 127, 0, 0, 0, 1, 0, 0, 0, 0})
			conn.ReadMessage()
		}, exitFailure, "wscast: a message is longer than 64 MiB"},
	} {
		t.Run(strings.TrimSpace(c.stderr), func(t *testing.T) {
			s := webSocketServer(t, c.serve)
			wscast(t, "", "listen", webSocketURL(s)).expect(t, c.code, "", c.stderr)
		})
	}
}

func TestListenRefused(t *testing.T) {
	for status, hint := range map[int]string{
		http.StatusForbidden:        "--origin https://example.org",
		http.StatusNotFound:         "wscastd answers at /websocket",
		http.StatusBadGateway:       "does not reach wscastd",
		http.StatusUpgradeRequired:  "Upgrade and Connection",
		http.StatusMovedPermanently: "redirects to wss://elsewhere/websocket",
	} {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/html")
			w.Header().Set("Location", "wss://elsewhere/websocket")
			w.WriteHeader(status)
			io.WriteString(w, "<html>not for a terminal</html>")
		}))
		t.Cleanup(s.Close)
		wscast(t, "", "listen", webSocketURL(s)).
			expect(t, exitFailure, "", fmt.Sprintf("/websocket: %d %s\n", status, http.StatusText(status)), "hint: ", hint)
	}
	s := webSocketServer(t, nil)
	r := wscast(t, "", "listen", webSocketURL(s)+"s")
	r.expect(t, exitFailure, "", "404 Not Found: no such path\\x1b[2J\n")
	if strings.Contains(r.stderr, "hint") {
		t.Errorf("a hint although the server has explained itself: %s", r.stderr)
	}
}

func TestListenUnreachable(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	url := "ws://" + l.Addr().String() + "/websocket"
	l.Close()
	wscast(t, "", "listen", url).expect(t, exitFailure, "", "wscast: cannot reach "+url+": connection refused\n", "hint: nothing listens there")
	wscast(t, "", "listen", "ws+unix:/none.sock:/websocket").
		expect(t, exitFailure, "", "wscast: cannot reach ws+unix:/none.sock:/websocket: no such file or directory\n")
}

func TestListenAnswersPings(t *testing.T) {
	s := webSocketServer(t, func(conn *websocket.Conn) {
		conn.SetPongHandler(func(text string) error { return errors.New(text) })
		conn.WriteMessage(websocket.PingMessage, []byte("are you there"))
		_, _, err := conn.ReadMessage()
		closing(1000, err.Error())(conn)
	})
	wscast(t, "", "listen", webSocketURL(s)).expect(t, 0, "", "1000 (normal closure): are you there\n")
}

func TestListenUnix(t *testing.T) {
	path := filepath.Join(t.TempDir(), "websocket.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(upgrading(closing(1000, "")))
	s.Listener.Close()
	s.Listener = l
	s.Start()
	t.Cleanup(s.Close)
	t.Setenv("HTTP_PROXY", "http://127.0.0.1:1") // no proxy reaches a socket of this machine
	for _, scheme := range []string{"ws+unix:", "ws+unix://"} {
		wscast(t, "", "listen", scheme+path+":/websocket").expect(t, 0, "", "1000")
	}
}

func TestListenTLS(t *testing.T) {
	s := httptest.NewUnstartedServer(upgrading(closing(1000, "")))
	s.Config.ErrorLog = log.New(io.Discard, "", 0) // the tool's refusal of the certificate
	s.StartTLS()
	t.Cleanup(s.Close)
	url := webSocketURL(s)
	if !strings.HasPrefix(url, "wss://") {
		t.Fatal(url)
	}
	trusted := filepath.Join(t.TempDir(), "ca.pem")
	certificate := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
	if err := os.WriteFile(trusted, certificate, 0o600); err != nil {
		t.Fatal(err)
	}
	// Go reads the trusted certificates once in a process.
	start(t, []string{"SSL_CERT_FILE=" + trusted}, "listen", url).wait().expect(t, 0, "", "1000")
	start(t, nil, "listen", url).wait().
		expect(t, exitFailure, "", "wscast: cannot reach "+url+": x509: ", "hint: SSL_CERT_FILE=")
}

func TestListenInterrupted(t *testing.T) {
	for _, signal := range []os.Signal{os.Interrupt, syscall.SIGTERM} {
		end := make(chan error, 1)
		s := webSocketServer(t, func(conn *websocket.Conn) {
			conn.WriteMessage(websocket.TextMessage, []byte("hello"))
			_, _, err := conn.ReadMessage()
			end <- err
		})
		p := start(t, nil, "listen", webSocketURL(s))
		expectLine(t, p, "hello\n")
		p.Process.Signal(signal)
		p.wait().expect(t, 0, "")
		if err := <-end; !websocket.IsCloseError(err, websocket.CloseNormalClosure) {
			t.Errorf("%v: the server saw %v, want a close frame with 1000", signal, err)
		}
	}
}

// A server that takes the connection and says nothing.
func TestListenInterruptedBeforeHandshake(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	p := start(t, nil, "listen", "ws://"+l.Addr().String()+"/websocket")
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Read(make([]byte, 1)); err != nil { // the request is on its way
		t.Fatal(err)
	}
	p.Process.Signal(os.Interrupt)
	p.wait().expect(t, exitFailure, "", "wscast: interrupted before the opening handshake was done\n")
}

func TestTarget(t *testing.T) {
	for spelled, want := range map[string]target{
		"ws://host/websocket/a":        {url: "ws://host/websocket/a"},
		"wss://[::1]:443/":             {url: "wss://[::1]:443/"},
		"ws+unix:/run/s:/websocket/a":  {url: "ws://localhost/websocket/a", socket: "/run/s"},
		"ws+unix:///run/s:/w/sensor:1": {url: "ws://localhost/w/sensor:1", socket: "/run/s"},
	} {
		want.spelled = spelled
		if got, err := parseTarget(spelled); err != nil || got != want {
			t.Errorf("%s: %+v (%v), want %+v", spelled, got, err, want)
		}
	}
	for spelled, want := range map[string]string{
		"http://host/websocket":   "hint: try ws://host/websocket",
		"https://host/websocket":  "hint: try wss://host/websocket",
		"localhost:7311":          "hint: it begins with ws://HOST",
		"default":                 "hint: it begins with ws://HOST",
		"ws:///websocket":         "hint: it begins with ws://HOST",
		"ws://host:x/":            "is not a URL",
		"ws+unix:/run/s":          "hint: as in: ws+unix:/run/s:/websocket/default",
		"ws+unix:/run/s:w":        "no request path",
		"ws://me:secret@host/":    "me:xxxxx@host",
		"ws://host/\x7f\nsecret/": `is not a URL`,
	} {
		wscast(t, "", "listen", spelled).expect(t, exitUsage, "", want)
	}
}

func FuzzTarget(f *testing.F) {
	f.Add("ws://127.0.0.1:7311/websocket")
	f.Add("wss://example.org/websocket/news%2Fx")
	f.Add("ws+unix:/run/wscast/websocket.sock:/websocket")
	f.Add("ws+unix::")
	f.Fuzz(func(t *testing.T, spelled string) {
		got, err := parseTarget(spelled)
		if err != nil {
			var stderr strings.Builder
			code := report(&stderr, err)
			if lines := strings.Count(stderr.String(), "\n"); code != exitUsage || lines < 1 || lines > 2 {
				t.Fatalf("%q: exit code %d, %q", spelled, code, stderr.String())
			}
			return
		}
		u, err := url.Parse(got.url)
		if err != nil || u.Scheme != "ws" && u.Scheme != "wss" || u.Host == "" {
			t.Fatalf("%q: taken, but %q is no WebSocket URL (%v)", spelled, got.url, err)
		}
		if strings.HasPrefix(spelled, "ws+unix:") != strings.HasPrefix(got.socket, "/") {
			t.Fatalf("%q: socket %q", spelled, got.socket)
		}
	})
}
