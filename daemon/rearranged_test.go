package daemon

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"golang.org/x/sys/unix"
)

// behind is a client that takes few of its messages while the daemon is replaced, so that one of them is half out whenever that happens.
type behind struct {
	conn     net.Conn
	what     string
	channels string                 // a letter each
	next     func() (string, error) // the next message
	got      map[string]int
}

// take reads a message, which is the next one of its channel.
func (b *behind) take(t *testing.T, r *running) {
	t.Helper()
	_ = b.conn.SetReadDeadline(time.Now().Add(patience))
	message, err := b.next()
	if err != nil {
		t.Fatalf("%s after %v: %v\n%s", b.what, b.got, err, r.log)
	}
	channel := message[:min(1, len(message))]
	if !strings.Contains(b.channels, channel) || message != long(channel, b.got[channel]) {
		t.Fatalf("%s after %v: %.20q, %d bytes\n%s", b.what, b.got, message, len(message), r.log)
	}
	b.got[channel]++
}

// long is a message that no socket takes many of.
func long(channel string, n int) string {
	return fmt.Sprintf("%s %d %s", channel, n, strings.Repeat(channel, 50_000+n))
}

// dialSlow has a receive buffer that holds a part of a message.
func dialSlow(network, address string) (net.Conn, error) {
	dialer := net.Dialer{Control: func(_, _ string, c syscall.RawConn) (err error) {
		cerr := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 16<<10) })
		if err == nil {
			err = cerr
		}
		return err
	}}
	return dialer.Dial(network, address)
}

func (r *running) fallBehind(t *testing.T, what, channels string) *behind {
	t.Helper()
	b := &behind{what: what, channels: channels, got: map[string]int{}}
	url := "/websocket?channel=" + strings.Join(strings.Split(channels, ""), "&channel=")
	if what == "events" {
		conn, err := dialSlow("tcp", r.address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		b.conn = conn
		fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\nAccept: text/event-stream\r\n\r\n", url, r.address)
		body := bufio.NewReader(conn)
		if answer, err := http.ReadResponse(body, nil); err != nil || answer.StatusCode != http.StatusOK {
			t.Fatal(answer, err)
		}
		b.next = func() (string, error) {
			for {
				line, err := body.ReadString('\n')
				if data, is := strings.CutPrefix(line, "data: "); is || err != nil {
					var envelope struct{ Data string }
					if err == nil {
						err = json.Unmarshal([]byte(data), &envelope)
					}
					return envelope.Data, err
				}
			}
		}
		return b
	}
	dialer := websocket.Dialer{NetDial: dialSlow, EnableCompression: strings.Contains(what, "compressed")}
	if strings.Contains(what, "json") {
		dialer.Subprotocols = []string{Subprotocol}
	}
	conn, _, err := dialer.Dial("ws://"+r.address+url, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	b.conn = conn.NetConn()
	b.next = func() (string, error) {
		for {
			_, text, err := conn.ReadMessage()
			if err != nil || conn.Subprotocol() == "" {
				return string(text), err
			}
			var envelope struct{ Data, Reply string }
			if err := json.Unmarshal(text, &envelope); err != nil || envelope.Reply == "" {
				return envelope.Data, err
			}
		}
	}
	return b
}

// Clients of every kind, of one channel and of several, in the middle of a message, do not notice that the channels get other logs.
func TestOwnLogsChangeUnderWay(t *testing.T) {
	k := newKeeper(t, 60)
	a, b, most := OwnLogConfig{Match: "a"}, OwnLogConfig{Match: "b", Size: 12 << 20}, OwnLogConfig{Match: "[bc]"}
	var clients []*behind
	said, epoch := 0, uint64(0)
	for i, own := range [][]OwnLogConfig{{}, {a}, {b, a}, {most, a}, {a, b}, {most}, {}, {b}} {
		r := k.reignAs(t, k.files(), func(c *Config) {
			c.Log.Size, c.Log.Own, c.WebSocket.Compression = 16<<20, own, true
		})
		if i == 0 {
			epoch = r.d.store.Epoch()
			for _, channels := range []string{"a", "b", "c"} {
				clients = append(clients, r.fallBehind(t, "raw", channels))
			}
			for _, channels := range []string{"abc", "ca"} {
				for _, what := range []string{"json", "json compressed", "events"} {
					clients = append(clients, r.fallBehind(t, what, channels))
				}
			}
		}
		for range 4 {
			for _, channel := range []string{"a", "b", "c"} {
				if n, _, err := r.d.Publish([]byte(channel), []byte(long(channel, said)), nil); n != 7 && n != 4 || err != nil {
					t.Fatalf("reign %d: %d clients of %s, %v\n%s", i, n, channel, err, r.log)
				}
			}
			said++
		}
		r.d.Flush()
		for _, c := range clients {
			c.take(t, r)
		}
		if text := r.log.String(); strings.Contains(text, "stays as it is") || r.d.store.Epoch() != epoch {
			t.Errorf("reign %d:\n%s", i, text)
		}
		if s := r.d.loops.Stats(); i > 0 && (s.Adopted != uint64(len(clients)) || s.Lost != 0) {
			t.Errorf("reign %d: %+v", i, s)
		} else if i > 0 && s.Blocked < 3 { // but those of compressed messages, perhaps
			t.Errorf("reign %d: %d clients are in the middle of something", i, s.Blocked)
		}
		if i < 7 {
			k.end(r)
			continue
		}
		for _, c := range clients {
			for slices.ContainsFunc(strings.Split(c.channels, ""), func(channel string) bool { return c.got[channel] < said }) {
				c.take(t, r)
			}
		}
	}
}
