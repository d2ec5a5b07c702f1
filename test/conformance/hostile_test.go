package conformance

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"wscast/ipc"
	"wscast/test/harness"
)

// Cross-site WebSocket hijacking: a page of somebody else opens a connection with the cookies of who looks at it. It is refused,
// whatever it sends along, and so is reading an event stream.
func TestPagesOfOthersAreRefused(t *testing.T) {
	d := startDaemon(t)
	for _, c := range []struct {
		name    string
		headers []string
	}{
		{"another host", []string{"Origin: https://evil.example"}},
		{"with cookies", []string{"Origin: https://evil.example", "Cookie: session=of-the-victim"}},
		{"with a token", []string{"Origin: https://evil.example", "Authorization: Bearer x"}},
		{"no host", []string{"Origin: null"}},
		{"empty", []string{"Origin: "}},
		{"the wildcard", []string{"Origin: *"}},
		{"our host in front of another", []string{"Origin: https://server.example.com.evil.example"}},
		{"our host behind another", []string{"Origin: https://evil-server.example.com"}},
		{"our host as a user", []string{"Origin: https://server.example.com@evil.example"}},
		{"our host as a path", []string{"Origin: https://evil.example/server.example.com"}},
		{"another port", []string{"Origin: http://server.example.com:8080"}},
		{"another scheme", []string{"Origin: ftp://server.example.com"}},
		{"two", []string{"Origin: http://server.example.com", "+Origin: https://evil.example"}},
		{"a list", []string{"Origin: http://server.example.com https://evil.example"}},
		{"a host that the proxy is said to have", []string{"Origin: https://evil.example", "X-Forwarded-Host: evil.example"}},
		{"a host of Forwarded", []string{"Origin: https://evil.example", `Forwarded: host="evil.example"`}},
	} {
		for _, stream := range []bool{false, true} {
			changes := c.headers
			if stream {
				changes = append([]string{"-Upgrade", "-Connection", "Accept: text/event-stream"}, changes...)
			}
			answer, _ := ask(t, d.Address("websocket"), opening(changes...))
			if answer.StatusCode != http.StatusForbidden {
				t.Errorf("%s, event stream %t: %s, want 403", c.name, stream, answer.Status)
			}
			if allow := answer.Header.Get("Access-Control-Allow-Origin"); allow != "" {
				t.Errorf("%s: the page may read the answer (%s)", c.name, allow)
			}
		}
	}
}

// Who a client is comes from one header of the proxy, exactly as it is called; nothing else is an identity, or an address.
func TestHeadersThatSmuggle(t *testing.T) {
	d := harness.Start(t, harness.Config("[auth]\nmethod = \"header\"\nchannels_header = \"X-Auth-Channels\"\n"))
	for _, c := range []struct {
		name    string
		headers []string
		status  int
	}{
		{"as the proxy sends it", []string{"X-Auth-User: alice", "X-Auth-Channels: news"}, 101},
		{"none", nil, 401},
		{"empty", []string{"X-Auth-User: "}, 401},
		{"two", []string{"X-Auth-User: alice", "X-Auth-Channels: news", "+X-Auth-User: root"}, 401},
		{"underscores, which CGI makes the same of", []string{"X_Auth_User: root", "X-Auth-Channels: news"}, 401},
		{"space before the colon", []string{"X-Auth-User : root", "X-Auth-Channels: news"}, 400},
		{"tab before the colon", []string{"X-Auth-User\t: root", "X-Auth-Channels: news"}, 400},
		{"folded into another", []string{"X-Other: a\r\n X-Auth-User: root", "X-Auth-Channels: news"}, 401},
		{"behind a carriage return", []string{"X-Other: a\rX-Auth-User: root", "X-Auth-Channels: news"}, 400},
		{"behind a zero byte", []string{"X-Other: a\x00X-Auth-User: root", "X-Auth-Channels: news"}, 400},
		{"named by Connection", []string{"Connection: Upgrade, X-Auth-User", "X-Auth-Channels: news"}, 401},
		{"no channels", []string{"X-Auth-User: alice"}, 403},
		{"other channels", []string{"X-Auth-User: alice", "X-Auth-Channels: sports"}, 403},
		{"channels in the query", []string{"GET /websocket/news?X-Auth-User=alice&X-Auth-Channels=news HTTP/1.1"}, 401},
	} {
		answer, body := ask(t, d.Address("websocket"), opening(c.headers...))
		if answer.StatusCode != c.status {
			t.Errorf("%s: %s, want %d\n%s", c.name, answer.Status, c.status, body)
		}
	}

	// An address that is forwarded makes nobody a proxy.
	d.Configure("[auth]\nmethod = \"header\"\nproxies = [\"192.0.2.1\"]\n")
	d.Stop()
	d.Start()
	for _, header := range []string{"X-Forwarded-For: 192.0.2.1", "X-Real-IP: 192.0.2.1", "Forwarded: for=192.0.2.1", "True-Client-IP: 192.0.2.1"} {
		if answer, _ := ask(t, d.Address("websocket"), opening("X-Auth-User: root", header)); answer.StatusCode != http.StatusForbidden {
			t.Errorf("%s: %s, want 403", header, answer.Status)
		}
	}
}

// What stands behind a request that is refused is not taken for another one, which the proxy has never seen.
func TestRequestsAreNotSmuggled(t *testing.T) {
	d := startDaemon(t)
	for _, first := range []string{
		opening("-Upgrade"),
		opening("Content-Length: 4") + "abcd",
		opening("Transfer-Encoding: chunked") + "0\r\n\r\n",
		opening("POST /websocket HTTP/1.1", "Content-Length: 0", "+Transfer-Encoding: chunked"),
		"GET /nowhere HTTP/1.1\r\nHost: a\r\nConnection: keep-alive\r\n\r\n",
		"GET /websocket/x HTTP/1.1\r\nHost: a\r\nX: \r\n\r\n",
	} {
		conn, err := net.Dial("tcp", d.Address("websocket"))
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(patience))
		_, _ = io.WriteString(conn, first+opening()+opening())
		in := bufio.NewReader(conn)
		answer, err := http.ReadResponse(in, nil)
		if err != nil || answer.StatusCode < 400 {
			t.Fatalf("%.40q: %v, %v", first, answer, err)
		}
		_, _ = io.Copy(io.Discard, answer.Body)
		if more, err := io.ReadAll(in); len(more) > 0 || err != nil {
			t.Errorf("%.40q: answered again: %q, %v", first, more, err)
		}
		conn.Close()
	}
}

// Names of channels that are to be something else on the way: to a file system, a log, the proxy, a pattern, or a channel of local
// processes.
var badChannels = []string{
	"@news", "*", "news*", "n?ws", "[n]ews", " ", "news ", "\tnews", "news\n", "news\r\nX-Evil: 1", "\x00", "news\x00", "\x1b[2J", "nëws", "新闻", "\xff",
	"news\\", "news%", "%6eews", "news\"", `","x":"`, "news'", "<news>", "a,b", "a;b", "news?", "news#", "news=1", "$news", "news&channel=other",
	strings.Repeat("x", 129),
}

func TestChannelNameTricks(t *testing.T) {
	d := harness.Start(t, harness.Config(configuration+"\n[[channel]]\nmatch = \"*\"\nupstream = \"both\"\n"))
	for _, channel := range badChannels {
		for _, target := range []string{"/websocket/" + url.PathEscape(channel), "/websocket?channel=" + url.QueryEscape(channel)} {
			answer, body := ask(t, d.Address("websocket"), opening("GET "+target+" HTTP/1.1"))
			if answer.StatusCode != http.StatusBadRequest {
				t.Errorf("%s: %s, want 400", target, answer.Status)
			}
			if answer.Header.Get("X-Evil") != "" || strings.Contains(body, "\x1b") || strings.Contains(body, "X-Evil") {
				t.Errorf("%s is in the answer: %v %q", target, answer.Header, body)
			}
		}
	}

	w, err := dial(&mode{network: "tcp", commands: true}, d.Address("websocket"), "")
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	for _, channel := range badChannels {
		for _, command := range []string{`{"command":"subscribe","channel":%s}`, `{"command":"unsubscribe","channel":%s}`, `{"command":"history","channel":%s,"last":1}`,
			`{"command":"presence","channel":%s}`, `{"command":"publish","channel":%s,"data":"x"}`} {
			ask := fmt.Sprintf(command, quoted(channel))
			if _, err := io.WriteString(w, framed(fin|opText, ask)); err != nil {
				t.Fatal(err)
			}
			e, err := w.read()
			if err != nil {
				t.Fatalf("%s: %v", ask, err)
			}
			if !strings.HasPrefix(e.payload, `{"error":"bad_channel"`) || strings.Contains(e.payload, "evil") {
				t.Errorf("%s is answered with %v", ask, e)
			}
		}
	}
	p, err := ipc.Dial(d.PublishSocket())
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	for _, channel := range badChannels {
		if channel == "@news" {
			continue // publishers may: it is theirs
		}
		if _, err := p.Publish(channel, []byte("x")); err == nil {
			t.Errorf("PUBLISH %q went through", channel)
		}
	}
}

// quoted is a string in JSON, with bytes that are no UTF-8 replaced: they cannot come in a text.
func quoted(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		if r < ' ' || r == '"' || r == '\\' {
			fmt.Fprintf(&b, `\u%04x`, r)
		} else {
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}

// What others choose the words of stands in the log as one line, quoted, and not in INFO as a figure.
func TestNothingIsInjected(t *testing.T) {
	d := harness.Start(t, harness.Config(configuration+"\n[daemon]\nlog_level = \"debug\"\n\n[[publish.allow]]\nusers = [\"*\"]\npublish = [\"allowed\"]\nsubscribe = [\"allowed\"]\n"))
	const evil = "evil\r\nlevel=ERROR msg=forged\n# Forged\r\nforged:1\r\n\x1b[31m"
	// A client: the channel, its headers, its reason to close.
	for _, c := range []string{
		opening("GET /websocket/" + url.PathEscape(evil) + " HTTP/1.1"),
		opening("GET /websocket/news?last_event_id=" + url.QueryEscape(evil) + " HTTP/1.1"),
		opening("Origin: http://evil\x1b[31m.example"),
		opening("User-Agent: evil\x1b[31m", "X-Forwarded-For: evil\x1b[31m"),
		"evil\x1b[31m / HTTP/1.1\r\n\r\n",
	} {
		if _, body := ask(t, d.Address("websocket"), c); strings.Contains(body, "\x1b") {
			t.Errorf("%q is answered with %q", c, body)
		}
	}
	w, err := dial(modes[0], d.Address("websocket"), modes[0].channel())
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(w, closing(4000, evil))
	if e, err := w.read(); err != nil || e != closed("4000") {
		t.Errorf("%v, %v", e, err)
	}
	w.Close()

	// A publisher: its name, channels, ids, and commands.
	conn, err := net.Dial("unix", d.PublishSocket())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(patience))
	in := bufio.NewReader(conn)
	for _, command := range [][]string{
		{"CLIENT", "SETNAME", evil}, {"CLIENT", "SETINFO", "LIB-NAME", evil}, {"PUBLISH", evil, "x"}, {"PUBLISH", "denied", evil},
		{"PUBLISH", "allowed", "x", "ID", "id\r\n" + evil}, {"SUBSCRIBE", evil}, {evil, evil}, {"HELLO", "3", "SETNAME", evil}, {"INFO", evil},
	} {
		b := fmt.Sprintf("*%d\r\n", len(command))
		for _, argument := range command {
			b += fmt.Sprintf("$%d\r\n%s\r\n", len(argument), argument)
		}
		if _, err := io.WriteString(conn, b); err != nil {
			t.Fatal(err)
		}
		line, err := in.ReadString('\n')
		if err != nil {
			t.Fatalf("%q: %v", command, err)
		}
		if strings.HasPrefix(line, "-") && (strings.Count(line, "\r") != 1 || strings.Contains(line, "\x1b")) {
			t.Errorf("%q is answered with %q", command, line)
		}
		if strings.HasPrefix(line, "$") { // INFO of a section that is none
			var n int
			_, _ = fmt.Sscanf(line, "$%d", &n)
			_, _ = in.Discard(n + 2)
		}
	}
	p, err := ipc.Dial(d.PublishSocket())
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	sections, err := p.Info()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range sections {
		for _, f := range append(s.Fields, ipc.Field{Key: s.Name}) {
			if strings.Contains(strings.ToLower(f.Key+f.Value), "forged") || strings.ContainsAny(f.Key+f.Value, "\x1b\r\n") {
				t.Errorf("INFO has %q: %q", f.Key, f.Value)
			}
		}
	}

	d.AwaitLog("client closed")
	line := regexp.MustCompile(`^time=\S+ level=(DEBUG|INFO|WARN|ERROR) msg=("[^"\x00-\x1f]*"|[^" \x00-\x1f]+)( [a-z_.]+=("([^"\\\x00-\x1f]|\\.)*"|[^" \x00-\x1f]*))*$`)
	for text := range strings.Lines(d.Log()) {
		if text = strings.TrimSuffix(text, "\n"); !line.MatchString(text) || strings.Contains(text, " msg=forged") {
			t.Errorf("in the log: %q", text)
		}
	}
}
