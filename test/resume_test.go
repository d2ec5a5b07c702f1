package test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"wscast/test/booted/crowd"
	"wscast/test/harness"
)

// The network cuts connections at any byte, in both directions, and clients of every kind come back with the id of the last message that they have got:
// all of them get every message that was acknowledged once, and in order, while the daemon is restarted and killed.
func TestClientsResume(t *testing.T) {
	d := harness.Start(t, harness.FDStore(64), harness.Config("[websocket]\ncompression = true\n"))
	n := crowd.Between(t, d.Address("websocket"))
	c := crowd.GatherMix(t, "tcp", n.Address(), crowd.Mix{Clients: 48, Kinds: crowd.Kinds, Channels: 2})
	c.Publish(d.PublishSocket(), crowd.Flow{Publishers: 4, Size: 400, Large: 20_000, Window: 20})
	c.AwaitMessages(10) // everybody has a place to come back to
	c.Return()
	n.Rough(150_000)
	for i := range 4 {
		c.AwaitMessages(10 + rand.IntN(20))
		if i%2 == 0 {
			d.Kill()
		} else {
			d.Stop()
		}
		d.Start()
	}
	for _, k := range crowd.Kinds {
		for c.Returned(k) == 0 {
			c.AwaitMessages(10)
		}
	}
	n.Rough(0)
	c.Finish()
	for _, k := range crowd.Kinds {
		t.Logf("%s: came back %d times", k, c.Returned(k))
	}
	t.Logf("%d messages, %d cuts", c.Messages(), n.Cuts())
}

// reader is a client that is told ids: of wscast.v1.json, or of an event stream.
type reader struct {
	t      *testing.T
	socket *websocket.Conn
	stream *bufio.Scanner
	close  func()
}

// read opens a client at a URL's path and query.
func read(t *testing.T, d *harness.Daemon, pathAndQuery string, events bool, headers ...string) *reader {
	t.Helper()
	header := http.Header{}
	for i := 0; i < len(headers); i += 2 {
		header.Set(headers[i], headers[i+1])
	}
	r := &reader{t: t}
	if !events {
		dialer := websocket.Dialer{HandshakeTimeout: harness.Patience, Subprotocols: []string{"wscast.v1.json"}}
		conn, _, err := dialer.Dial("ws://"+d.Address("websocket")+pathAndQuery, header)
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.SetReadDeadline(time.Now().Add(harness.Patience))
		r.socket, r.close = conn, func() { conn.Close() }
		if welcome := r.next(); !strings.Contains(welcome, `"welcome"`) {
			t.Fatalf("welcomed with %s", welcome)
		}
	} else {
		header.Set("Accept", "text/event-stream")
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+d.Address("websocket")+pathAndQuery, nil)
		if err != nil {
			t.Fatal(err)
		}
		request.Header = header
		transport := &http.Transport{DisableKeepAlives: true}
		answer, err := transport.RoundTrip(request)
		if err != nil {
			t.Fatal(err)
		}
		if answer.StatusCode != http.StatusOK {
			t.Fatal(answer.Status)
		}
		patience := time.AfterFunc(harness.Patience, func() { answer.Body.Close() })
		r.stream, r.close = bufio.NewScanner(answer.Body), func() { patience.Stop(); answer.Body.Close() }
		if retry := r.next(); !strings.HasPrefix(retry, "retry: ") {
			t.Fatalf("the stream begins with %q", retry)
		}
	}
	t.Cleanup(r.close)
	return r
}

// next is the next object, or the next event, its lines with a bar in between.
func (r *reader) next() string {
	r.t.Helper()
	if r.socket != nil {
		_, b, err := r.socket.ReadMessage()
		if err != nil {
			r.t.Fatal(err)
		}
		return string(b)
	}
	var lines []string
	for r.stream.Scan() && r.stream.Text() != "" {
		lines = append(lines, r.stream.Text())
	}
	if len(lines) == 0 {
		r.t.Fatalf("the stream has ended: %v", r.stream.Err())
	}
	return strings.Join(lines, "|")
}

// idOf is the id in what next returned.
func idOf(t *testing.T, text string) string {
	t.Helper()
	var s struct{ ID string }
	if first, _, _ := strings.Cut(text, "|"); strings.HasPrefix(first, "id: ") {
		return first[len("id: "):]
	}
	if err := json.Unmarshal([]byte(text), &s); err != nil || s.ID == "" {
		t.Fatalf("no id is in %s", text)
	}
	return s.ID
}

// Who comes back and cannot be sent all that it has missed is told so, in whatever way it comes back, and for whatever reason; who can be is not. What
// is there it gets in any case.
func TestLossIsReported(t *testing.T) {
	const small = "[log]\nsize = '1MiB'\n[publish]\nmax_message = '64KiB'\n"
	for _, c := range []struct {
		name      string
		meanwhile func(t *testing.T, d *harness.Daemon)
		lost      bool
	}{
		{"nothing happens", func(*testing.T, *harness.Daemon) {}, false},
		{"a restart", func(_ *testing.T, d *harness.Daemon) { d.Stop(); d.Start() }, false},
		{"a crash", func(_ *testing.T, d *harness.Daemon) { d.Kill(); d.Start() }, false},
		{"another log", func(_ *testing.T, d *harness.Daemon) { d.Kill(); d.EmptyStore(); d.Start() }, true},
		{"another log that has as many messages", func(t *testing.T, d *harness.Daemon) {
			d.Kill()
			d.EmptyStore()
			d.Start()
			publishAll(t, d, "news", numbered(0, 3))
		}, true},
		{"more messages than the log can hold", func(t *testing.T, d *harness.Daemon) {
			for range 100 {
				publishAll(t, d, "news", []string{strings.Repeat("x", 20_000)})
			}
		}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := harness.Start(t, harness.FDStore(64), harness.Config(small))
			first := read(t, d, "/websocket/news", false)
			first.next()
			publishAll(t, d, "news", numbered(0, 2))
			id := idOf(t, first.next())
			first.close()
			c.meanwhile(t, d)
			publishAll(t, d, "news", []string{"last"})

			byURL := read(t, d, "/websocket/news?last_event_id="+id, false)
			byCommand := read(t, d, "/websocket", false)
			if err := byCommand.socket.WriteMessage(websocket.TextMessage, fmt.Appendf(nil, `{"command":"subscribe","channel":"news","last_event_id":%q}`, id)); err != nil {
				t.Fatal(err)
			}
			for way, r := range map[string]*reader{"by URL": byURL, "by a command": byCommand} {
				if answer, want := r.next(), fmt.Sprintf(`"complete":%t`, !c.lost); !strings.Contains(answer, want) {
					t.Errorf("%s: answered with %s, expected %s", way, answer, want)
				}
			}
			header, query := read(t, d, "/websocket/news", true, "Last-Event-ID", id), read(t, d, "/websocket/news?last_event_id="+id, true)
			several := read(t, d, "/websocket?channel=news&channel=other", true, "Last-Event-ID", id)
			for way, r := range map[string]*reader{"by a header": header, "by a query": query, "with several channels": several} {
				if !c.lost {
					continue
				}
				if event := r.next(); event != "event: incomplete|data: news" {
					t.Errorf("event stream %s: %s, expected to be told", way, event)
				}
			}
			if c.lost { // the other channel may have had messages as well: nobody knows any more
				several.next()
			}
			for _, r := range []*reader{byURL, byCommand, header, query, several} {
				text := r.next()
				if strings.Contains(text, "incomplete") {
					t.Errorf("told that something is missing: %s", text)
				}
				for !strings.Contains(text, "last") {
					text = r.next()
				}
			}
		})
	}
}
