package crowd

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"wscast/test/harness"
)

func TestMain(m *testing.M) { os.Exit(harness.Main(m)) }

// recorder is a test that may fail.
type recorder struct {
	testing.TB
	said    []string
	cleanup []func()
}

func (r *recorder) Helper()                   {}
func (r *recorder) Error(args ...any)         { r.said = append(r.said, fmt.Sprint(args...)) }
func (r *recorder) Fatal(args ...any)         { r.Error(args...); r.FailNow() }
func (r *recorder) Fatalf(f string, a ...any) { r.Fatal(fmt.Sprintf(f, a...)) }
func (r *recorder) FailNow()                  { runtime.Goexit() }
func (r *recorder) Cleanup(f func())          { r.cleanup = append(r.cleanup, f) }

// judged runs a test with two clients of a server, and returns what it says. Client 0 has its messages before client 1 is served. messages is how many
// each has to get.
func judged(t *testing.T, messages int, first, second string) []string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var server sync.WaitGroup
	defer server.Wait()
	defer l.Close()
	begin := []chan struct{}{make(chan struct{}), make(chan struct{})}
	server.Go(func() {
		for i, bytes := range []string{first, second} {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			server.Go(func() {
				defer conn.Close()
				in := bufio.NewReader(conn)
				if _, err := http.ReadRequest(in); err != nil {
					return
				}
				fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: %s\r\n\r\n", handshakeAccept)
				<-begin[i]
				if _, err := conn.Write([]byte(bytes)); err != nil || strings.HasSuffix(bytes, ended) {
					return
				}
				_, _ = in.WriteTo(nothing{})
			})
		}
	})
	r := &recorder{TB: t}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() {
			for _, f := range slices.Backward(r.cleanup) {
				f()
			}
		}()
		c := Gather(r, "tcp", l.Addr().String(), 2)
		close(begin[0])
		c.await("client 0", func() bool { return len(c.order) == messages })
		close(begin[1])
		c.await("client 1", func() bool { return c.complete == messages })
	}()
	<-done
	for _, b := range begin {
		select {
		case <-b:
		default:
			close(b)
		}
	}
	return r.said
}

type nothing struct{}

func (nothing) Write(b []byte) (int, error) { return len(b), nil }

// ended is behind what a server sends before it closes: a pong, of which nobody has heard.
const ended = "\x8a\x00"

// frame is a message as a server frames it.
func frame(publisher uint8, number uint64, try uint16) string {
	m := id{publisher: publisher, number: number, try: try}.appendTo(nil, 100)
	return "\x82" + string(rune(len(m))) + string(m)
}

func TestWhatIsRight(t *testing.T) {
	all := frame(0, 1, 1) + frame(1, 1, 1) + frame(0, 2, 1) + frame(0, 2, 3) + frame(1, 2, 1)
	if said := judged(t, 5, all, all); said != nil {
		t.Errorf("found fault with what is right: %q", said)
	}
}

func TestWhatIsWrong(t *testing.T) {
	one, two, three := frame(0, 1, 1), frame(0, 2, 1), frame(0, 3, 1)
	broken := []byte(two)
	broken[50]++
	for _, c := range []struct{ name, first, second, want string }{
		{"lost by all", one + three, "", "message 3 of publisher 0 (try 1) came after message 1"},
		{"repeated to all", one + one, "", "message 1 of publisher 0 (try 1) came after message 1"},
		{"lost by one", one + two + three, one + three, "others got message 2"},
		{"repeated to one", one + two + three, one + one, "others got message 2"},
		{"in another order", one + two + frame(1, 1, 1), one + frame(1, 1, 1), "others got message 2"},
		{"another byte", one + string(broken), "", "has other bytes"},
		{"text", one + "\x81\x01x", "", "a frame begins with 0x81"},
		{"masked", one + "\x8a\x80\x01\x02\x03\x04", "", "is masked"},
		{"a byte too many", one + "\x00" + two, "", "a frame begins with 0x00"},
		{"closed", one + "\x88\x11\x03\xf4service restart", "", `closed with 1012 "service restart"`},
		{"a pong to nothing", one + "\x8a\x08\x00\x00\x00\x00\x00\x00\x00\x01", "", "0 pings were sent"},
		{"the end", one + two[:50] + ended, "", "EOF"},
	} {
		t.Run(c.name, func(t *testing.T) {
			said := judged(t, 3, c.first, c.second)
			if len(said) == 0 || !strings.Contains(said[0], c.want) {
				t.Errorf("said %q, expected %q", said, c.want)
			}
		})
	}
}

// A frame that is taken is whole, and lies at the front.
func FuzzSplit(f *testing.F) {
	f.Add([]byte(frame(0, 1, 1)))
	f.Add([]byte("\x88\x02\x03\xf4\x8a\x00"))
	f.Add([]byte("\x82\x7e\x00\x01x"))
	f.Add([]byte("\x82\x7f\x00\x00\x00\x00\x00\x00\x00\x01x"))
	f.Add([]byte("\x82\x7f\xff\xff\xff\xff\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, payload, n, err := split(b)
		if err != nil || n == 0 {
			return
		}
		if head := n - len(payload); n > len(b) || head != 2 && head != 4 && head != 10 {
			t.Fatalf("%d bytes taken of %d, %d of them payload", n, len(b), len(payload))
		}
		if m, err := parse(payload); err == nil && string(m.appendTo(nil, len(payload))) != string(payload) {
			t.Fatalf("%v is not what was parsed: %q", m, payload)
		}
	})
}
