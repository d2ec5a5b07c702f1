package conformance

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"wscast/ipc"
	"wscast/test/harness"
)

// Chapter 11: connections that end in the middle of something. Nothing of what was not whole has an effect, the client is
// forgotten, and the daemon goes on.
func TestEnds(t *testing.T) {
	d := startDaemon(t)
	p, err := ipc.Dial(d.PublishSocket())
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	long := strings.Repeat("x", 30000)
	whole := framed(fin|opText, long)
	n := 0
	for _, c := range []struct{ name, sent string }{
		{"with nothing sent", ""},
		{"after one byte", whole[:1]},
		{"in the length", whole[:3]},
		{"in the key", whole[:6]},
		{"behind the header", whole[:8]},
		{"in the payload", whole[:20000]},
		{"before the last byte", whole[:len(whole)-1]},
		{"in a ping", framed(fin|opPing, "ping")[:7]},
		{"in a close frame", closing(1000, "bye")[:7]},
		{"between fragments", framed(opText, "fragment")},
		{"in the second fragment", framed(opText, "fragment") + framed(fin|opContinuation, "more")[:7]},
		{"between compressed fragments", framed(rsv1|opText, deflated("fragment"))},
	} {
		for _, m := range modes {
			if strings.Contains(c.name, "compressed") && !m.deflates {
				continue
			}
			for _, how := range []string{"FIN", "RST"} {
				if how == "RST" && m.network != "tcp" {
					continue
				}
				n++
				name := fmt.Sprintf("11.%d %s %s (%s)", n, how, c.name, m.name)
				w, err := dial(m, addressOf(d, m), m.channel())
				if err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				if _, err := io.WriteString(w, framed(fin|opPing, "open")+c.sent); err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				if e, err := w.read(); err != nil || e != pong("open") {
					t.Fatalf("%s: %v, %v", name, e, err)
				}
				if how == "RST" {
					_ = w.Conn.(*net.TCPConn).SetLinger(0) // socket(7): close resets the connection
					w.Close()
					continue
				}
				_ = w.Conn.(interface{ CloseWrite() error }).CloseWrite()
				// Who closes a socket with something unread in it resets the connection: that is an end as well.
				if e, err := w.read(); !errors.Is(err, syscall.ECONNRESET) && (err != nil || e.what != "end") {
					t.Errorf("%s: %v, %v", name, e, err)
				}
				w.Close()
			}
		}
	}
	await(t, p, "connected_clients", "0")
	await(t, p, "opening", "0")
	if n := figure(t, p, "messages_from_clients"); n != "0" {
		t.Errorf("%s messages of them were published", n)
	}
	t.Logf("%d connections have ended", n)
}

// figure is one of INFO.
func figure(t *testing.T, p *ipc.Client, key string) string {
	t.Helper()
	sections, err := p.Info()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range sections {
		for _, f := range s.Fields {
			if f.Key == key {
				return f.Value
			}
		}
	}
	t.Fatalf("INFO has no %s", key)
	return ""
}

// await asks until a figure is as wanted: each time is an answer of the daemon, so that nothing sleeps.
func await(t *testing.T, p *ipc.Client, key, want string) {
	t.Helper()
	for deadline := time.Now().Add(harness.Patience); ; {
		got := figure(t, p, key)
		if got == want {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s is %s, want %s", key, got, want)
		}
	}
}
