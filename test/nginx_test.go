package test

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
	"time"

	"wscast/ipc"
	"wscast/test/booted/crowd"
	"wscast/test/harness"
)

// publisher is a connection to the publish socket.
func publisher(t *testing.T, d *harness.Daemon) *ipc.Client {
	t.Helper()
	p, err := ipc.Dial(d.PublishSocket())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// publish publishes a message that must go to this many clients.
func publish(t *testing.T, p *ipc.Client, channel string, message []byte, clients int) {
	t.Helper()
	got, err := p.Publish(channel, message)
	if err != nil {
		t.Fatal(err)
	}
	if got != clients {
		t.Fatalf("a message on %s went to %d clients, expected %d", channel, got, clients)
	}
}

// TestNginx: the shipped configuration carries text, binary, and what a channel's name can hold, over http and https, to
// a TCP and a Unix socket.
func TestNginx(t *testing.T) {
	for _, upstream := range []string{"tcp", "unix"} {
		t.Run(upstream, func(t *testing.T) {
			d := harness.Start(t, harness.NoSockets(), harness.Socket("websocket", upstream), harness.Socket("publish", "unix"))
			n := harness.StartNginx(t, d.Address("websocket"))
			p := publisher(t, d)
			for _, channel := range []string{"default", "a", "news.php", "a/b", "a//b", "a/../b", "A:b_c-d.e/f"} {
				plain := harness.Dial(t, n.WebSocketURL(channel))
				secure := harness.Dial(t, n.WebSocketTLSURL(channel), harness.Trust(n.Roots))
				publish(t, p, channel, []byte("héllo "+channel), 2)
				plain.ExpectText("héllo " + channel)
				secure.ExpectText("héllo " + channel)
				publish(t, p, channel, []byte("\x00\xff\r\n"), 2)
				plain.ExpectBinary([]byte("\x00\xff\r\n"))
				secure.ExpectBinary([]byte("\x00\xff\r\n"))
			}
			// The same channel written in ways that nginx would change if it rewrote the URL.
			for _, path := range []string{"/a%2Fb", "/a/b", "/%61%2fb"} {
				harness.Dial(t, n.WebSocketURL("")+path)
			}
			publish(t, p, "a/b", []byte("once each"), 5)
		})
	}
}

func TestNginxPassesRefusalsOn(t *testing.T) {
	d := harness.Start(t)
	n := harness.StartNginx(t, d.Address("websocket"))
	if status, body := harness.DialRefused(t, n.WebSocketURL("no+such")); status != http.StatusNotFound && status != http.StatusBadRequest {
		t.Errorf("a channel with a wrong name: %d %s", status, body)
	}
	if status, body := harness.DialRefused(t, n.WebSocketURL("a"), harness.Header("Origin", "http://elsewhere.example")); status != http.StatusForbidden {
		t.Errorf("a page of another origin: %d %s", status, body)
	}
	// The browser's Origin has the port of nginx, so this holds only if nginx passes the port on.
	harness.Dial(t, n.WebSocketURL("a"), harness.Header("Origin", n.URL("")))

	answer, err := http.Get(n.URL("/websocket/a"))
	if err != nil {
		t.Fatal(err)
	}
	defer http.DefaultClient.CloseIdleConnections()
	defer answer.Body.Close()
	body, _ := io.ReadAll(answer.Body)
	if answer.StatusCode != http.StatusUpgradeRequired || strings.Count(strings.TrimSpace(string(body)), "\n") != 0 || len(body) == 0 {
		t.Errorf("a plain GET: %s %q, expected 426 and one line", answer.Status, body)
	}
}

// TestNginxTellsWhoTheClientIs looks at the request as it arrives behind nginx.
func TestNginxTellsWhoTheClientIs(t *testing.T) {
	requests := make(chan *http.Request, 1)
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests <- r
		http.Error(w, "no", http.StatusTeapot)
	}))
	defer upstream.Close()
	n := harness.StartNginx(t, upstream.Listener.Addr().String())
	for _, site := range []struct{ url, proto string }{
		{n.WebSocketURL("a%2Fb"), "http"},
		{n.WebSocketTLSURL("a%2Fb"), "https"},
	} {
		status, _ := harness.DialRefused(t, site.url, harness.Trust(n.Roots), harness.Header("X-Forwarded-For", "192.0.2.1"), harness.Header("X-Forwarded-Proto", "gopher"))
		if status != http.StatusTeapot {
			t.Fatalf("%s: %d", site.url, status)
		}
		r := <-requests
		host := strings.SplitN(site.url, "/", 4)[2]
		if r.Host != host {
			t.Errorf("Host is %q, expected %q", r.Host, host)
		}
		for name, want := range map[string]string{
			"Upgrade":           "websocket",
			"Connection":        "upgrade",
			"X-Forwarded-For":   "192.0.2.1, 127.0.0.1",
			"X-Forwarded-Proto": site.proto,
		} {
			if got := strings.Join(r.Header.Values(name), " | "); got != want {
				t.Errorf("%s is %q, expected %q", name, got, want)
			}
		}
	}
	// A request that asks for no upgrade is not made one that does.
	answer, err := http.Get(n.URL("/websocket"))
	if err != nil {
		t.Fatal(err)
	}
	answer.Body.Close()
	http.DefaultClient.CloseIdleConnections()
	if r := <-requests; r.Header.Get("Upgrade") != "" || r.Header.Get("Connection") == "upgrade" {
		t.Errorf("a plain GET arrived with Upgrade %q, Connection %q", r.Header.Get("Upgrade"), r.Header.Get("Connection"))
	}
}

// TestNginxReadTimeout: pings carry a silent connection over several proxy_read_timeouts. That nginx would have ended it is shown by the
// second daemon, which pings too seldom.
func TestNginxReadTimeout(t *testing.T) {
	timeout := harness.ReadTimeout(1200 * time.Millisecond)
	d := harness.Start(t, harness.Config("[websocket]\nping = '400ms'\n"))
	n := harness.StartNginx(t, d.Address("websocket"), timeout)
	c := harness.Dial(t, n.WebSocketURL("quiet"))

	seldom := harness.Start(t, harness.Config("[websocket]\nping = '1h'\n"))
	m := harness.StartNginx(t, seldom.Address("websocket"), timeout)
	lost := harness.Dial(t, m.WebSocketURL("quiet"))

	lost.ExpectClose(1006)
	c.AwaitPings(10)
	publish(t, publisher(t, d), "quiet", []byte("still here"), 1)
	c.ExpectText("still here")
}

// TestNginxReload: nginx -s reload lets the old worker serve the clients it has.
func TestNginxReload(t *testing.T) {
	d := harness.Start(t)
	n := harness.StartNginx(t, d.Address("websocket"))
	p := publisher(t, d)
	old := harness.Dial(t, n.WebSocketURL("news"))
	for round := range 2 {
		message := fmt.Sprint("before reload ", round)
		publish(t, p, "news", []byte(message), 1)
		old.ExpectText(message)
		n.Reload()
	}
	fresh := harness.Dial(t, n.WebSocketURL("news"))
	publish(t, p, "news", []byte("after"), 2)
	old.ExpectText("after")
	fresh.ExpectText("after")
}

// TestNginxWithoutDaemon: 502 while nobody listens, and all is well as soon as the daemon is back.
func TestNginxWithoutDaemon(t *testing.T) {
	d := harness.Start(t, harness.NoSockets(), harness.Socket("websocket", "tcp"), harness.Socket("websocket", "unix"), harness.Socket("publish", "unix"))
	tcp, unix := d.Addresses("websocket")[0], d.Addresses("websocket")[1]
	one := harness.StartNginx(t, tcp)
	two := harness.StartNginx(t, tcp, harness.Upstream(unix))
	for _, n := range []*harness.Nginx{one, two} {
		harness.Dial(t, n.WebSocketURL("news"))
	}
	d.Stop()
	d.CloseSockets()
	for _, n := range []*harness.Nginx{one, two} {
		for range 3 {
			if status, _ := harness.DialRefused(t, n.WebSocketURL("news")); status != http.StatusBadGateway {
				t.Fatalf("without the daemon: %d, expected 502", status)
			}
		}
	}
	d.OpenSockets()
	d.Start()
	p := publisher(t, d)
	for _, n := range []*harness.Nginx{one, two} {
		// As many as there are servers, since nginx takes them in turn.
		for i := range 2 {
			c := harness.Dial(t, n.WebSocketURL("news"))
			message := fmt.Sprint("back ", i)
			if clients, err := p.Publish("news", []byte(message)); clients == 0 || err != nil {
				t.Fatalf("a message went to %d clients: %v", clients, err)
			}
			c.ExpectText(message)
		}
	}
}

// TestNginxWaitsForRestart: with the sockets open, as systemd keeps them, a client that comes while no daemon runs waits for the next one.
func TestNginxWaitsForRestart(t *testing.T) {
	d := harness.Start(t)
	n := harness.StartNginx(t, d.Address("websocket"))
	d.Stop()
	arrived := make(chan error, 1)
	go func() {
		conn, err := net.Dial("tcp", strings.TrimPrefix(n.URL(""), "http://"))
		if err != nil {
			arrived <- err
			return
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(harness.Patience))
		fmt.Fprintf(conn, "GET /websocket HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
		status := make([]byte, len("HTTP/1.1 101"))
		if _, err = io.ReadFull(conn, status); err == nil && string(status) != "HTTP/1.1 101" {
			err = fmt.Errorf("answered %q", status)
		}
		arrived <- err
	}()
	// The connection may come before or after the start; either way it is served.
	d.Start()
	if err := <-arrived; err != nil {
		t.Errorf("a client that came between two daemons: %v", err)
	}
}

func TestNginxLargeMessage(t *testing.T) {
	d := harness.Start(t)
	n := harness.StartNginx(t, d.Address("websocket"))
	c := harness.Dial(t, n.WebSocketURL("large"))
	s := harness.Dial(t, n.WebSocketTLSURL("large"), harness.Trust(n.Roots))
	p := publisher(t, d)
	// Random letters, so that a piece that is missing, doubled or moved is seen.
	random := rand.New(rand.NewPCG(1, 2))
	text := make([]byte, 1<<20)
	for i := range text {
		text[i] = 'a' + byte(random.IntN(26))
	}
	binary := make([]byte, 1<<20)
	for i := range binary {
		binary[i] = byte(random.Uint32())
	}
	for range 3 {
		publish(t, p, "large", text, 2)
		publish(t, p, "large", binary, 2)
	}
	for range 3 {
		for _, client := range []*harness.Client{c, s} {
			client.ExpectText(string(text))
			client.ExpectBinary(binary)
		}
	}
}

// TestNginxBurst: 10,000 messages as fast as they can be published arrive at every client, whole and in order.
func TestNginxBurst(t *testing.T) {
	const messages = 10_000
	d := harness.Start(t)
	n := harness.StartNginx(t, d.Address("websocket"))
	clients := []*harness.Client{
		harness.Dial(t, n.WebSocketURL("burst")),
		harness.Dial(t, n.WebSocketURL("burst")),
		harness.Dial(t, n.WebSocketTLSURL("burst"), harness.Trust(n.Roots)),
	}
	message := func(i int) string { return fmt.Sprintf("message %d %s", i, strings.Repeat("x", i%300)) }
	var commands strings.Builder
	for i := range messages {
		fmt.Fprintf(&commands, "PUBLISH burst \"%s\"\r\n", message(i))
	}
	conn, err := net.Dial("unix", d.PublishSocket())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(harness.Patience))
	written := make(chan error, 1)
	go func() {
		_, err := io.WriteString(conn, commands.String())
		written <- err
	}()
	answers := make([]byte, messages*len(":3\r\n"))
	if _, err := io.ReadFull(conn, answers); err != nil {
		t.Fatal(err)
	}
	if err := <-written; err != nil {
		t.Fatal(err)
	}
	if string(answers) != strings.Repeat(":3\r\n", messages) {
		t.Errorf("not all answers are 3: %.200q", answers)
	}
	for i := range messages {
		for _, c := range clients {
			c.ExpectText(message(i))
		}
	}
}

// TestNginxClientsSurvive: clients behind nginx notice neither restarts nor kills. What a Unix socket was written when its process was
// killed cannot be known, so those that were in the middle of a write then are closed.
func TestNginxClientsSurvive(t *testing.T) {
	for _, upstream := range []string{"tcp", "unix"} {
		t.Run(upstream, func(t *testing.T) {
			const clients = 200
			d := harness.Start(t, harness.FDStore(64), harness.NoSockets(), harness.Socket("websocket", upstream), harness.Socket("publish", "unix"))
			n := harness.StartNginx(t, d.Address("websocket"))
			c := crowd.Gather(t, "tcp", strings.TrimPrefix(n.URL(""), "http://"), clients)
			c.Publish(d.PublishSocket(), crowd.Flow{Publishers: 2, Size: 1000, Window: 20})
			c.AwaitMessages(20)
			for range 5 {
				d.Stop()
				d.Start()
				c.AwaitMessages(rand.IntN(20))
			}
			if upstream == "unix" {
				c.Tolerate(1006)
				c.Tolerate(1012)
			}
			for range 5 {
				d.Kill()
				d.Start()
				c.AwaitMessages(rand.IntN(20))
			}
			c.AwaitMessages(20)
			c.Finish()
			if upstream == "tcp" {
				return
			}
			closed := c.Closed(1006) + c.Closed(1012)
			t.Logf("%d of %d clients closed at kills", closed, clients)
			// A loop writes to one client at a time.
			if loops := runtime.NumCPU(); closed > 5*loops {
				t.Errorf("%d clients closed by 5 kills of %d loops", closed, loops)
			}
		})
	}
}
