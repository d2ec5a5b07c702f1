package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	// The bench runs its load process as itself, and here it is the test.
	if len(os.Args) == 2 && os.Args[1] == "load" {
		main()
		return
	}
	goleak.VerifyTestMain(m)
}

// Every server is built, started, measured and stopped; every client gets every message.
func TestServers(t *testing.T) {
	m := &measurement{options: options{names: names()}, dir: t.TempDir(), progress: t.Output()}
	if err := m.build(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(m.chosen) != len(servers) {
		t.Fatal("a server is missing: run test/install-deps")
	}
	for _, s := range servers {
		t.Run(s.name, func(t *testing.T) {
			p := plan{Phase: 50 * time.Millisecond, Settle: time.Millisecond, Stall: 30 * time.Second}
			var rows []row
			if s.protocol == resp { // nchan, pipelined so deep, stands still now and then
				for _, a := range []alone{{1, 0, 1}, {2, 0, 1}, {2, 1, 1}, {1, 0, 7}} {
					p.Alone = append(p.Alone, a)
					rows = append(rows, a.rate(), a.cpu())
				}
			}
			if s.clients {
				p.Clients, p.Windows, p.Rate, p.Idle, p.Churn = 20, []int{1, 4}, 100, true, true
				rows = append(rows, clientRows([]int{1, 4})...)
				if s.channels {
					p.Channels = 7 // of which some have three clients, and some two
					p.Rate = 0
				}
			}
			f, err := m.once(t.Context(), s, p, s.name)
			if err != nil {
				t.Fatal(err)
			}
			for _, row := range rows {
				if _, ok := f[row]; !ok && !(s.channels && strings.HasPrefix(string(row), "publish→")) {
					t.Errorf("there is no figure for %q", row)
				}
			}
		})
	}
}

func TestPublishAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	commands := make(chan int, 2)
	for range 2 {
		go func() {
			conn, err := l.Accept()
			if err != nil {
				commands <- -1
				return
			}
			defer conn.Close()
			n := 0
			for s := bufio.NewScanner(conn); s.Scan(); {
				if s.Text() == "PUBLISH" {
					n++
					_, _ = io.WriteString(conn, ":0\r\n")
				}
			}
			commands <- n
		}()
	}
	a := alone{2, 0, 3}
	f, err := run(plan{Publish: path, Protocol: resp, Servers: []int{os.Getpid()}, Alone: []alone{a}, Phase: 10 * time.Millisecond, Stall: 10 * time.Second}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if one, two := <-commands, <-commands; one < batch || two < batch || f[a.rate()] <= 0 {
		t.Fatalf("the server got %d and %d commands, the figures are %v", one, two, f)
	}
}

// One source address has not enough ports.
func TestClientComesFromTheNextAddress(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := connect(1, "/", netip.MustParseAddrPort(l.Addr().String()))
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if from := netip.MustParseAddrPort(conn.RemoteAddr().String()).Addr(); from != netip.MustParseAddr("127.0.0.2") {
		t.Fatalf("the client comes from %s, want 127.0.0.2", from)
	}
}

// A fault is what a bad server does when the third and the fourth message are due.
type fault func(send func(payload []byte), third, fourth []byte)

// A load process that would measure a server which does not deliver would measure nothing.
func TestLoadFindsABadServer(t *testing.T) {
	for _, test := range []struct {
		name  string
		fault fault
		want  string
	}{
		{"lost", func(send func([]byte), _, fourth []byte) { send(fourth) },
			": message 4 came where 3 was due: lost or reordered"},
		{"repeated", func(send func([]byte), third, fourth []byte) { send(third); send(third); send(fourth) },
			": message 3 came where 4 was due: repeated or reordered"},
		{"reordered", func(send func([]byte), third, fourth []byte) { send(fourth); send(third) },
			": message 4 came where 3 was due: lost or reordered"},
		{"changed", func(send func([]byte), third, fourth []byte) { third[messageSize-1]++; send(third); send(fourth) },
			": a message differs from what was published"},
		{"the last ones lost", func(func([]byte), []byte, []byte) {},
			": message 3 of 6 has not come"},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := startBadServer(t, test.fault)
			_, err := run(plan{Address: b.address, Publish: b.publish, Protocol: lengths, Servers: []int{os.Getpid()},
				Clients: 2, Windows: []int{4}, Phase: time.Minute, Settle: time.Millisecond, Stall: time.Second}, nil)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("error is %v, want one with %q", err, test.want)
			}
		})
	}
}

// A badServer delivers the first four messages: rightly to one of its two clients, and with a
// fault to the other.
type badServer struct{ address, publish string }

func startBadServer(t *testing.T, f fault) badServer {
	publish, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var conns []*websocket.Conn
	var wg sync.WaitGroup
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if conn, err := new(websocket.Upgrader).Upgrade(w, r, nil); err == nil {
			conns = append(conns, conn)
		}
	})}
	wg.Go(func() { _ = server.Serve(listener) })
	wg.Go(func() {
		conn, err := publish.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		var payloads [4][]byte
		for i := range payloads {
			if payloads[i], err = readLength(conn); err != nil {
				return
			}
		}
		mu.Lock()
		defer mu.Unlock()
		if len(conns) != 2 {
			return
		}
		for _, p := range payloads {
			_ = conns[0].WriteMessage(websocket.TextMessage, p)
		}
		send := func(p []byte) { _ = conns[1].WriteMessage(websocket.TextMessage, p) }
		send(payloads[0])
		send(payloads[1])
		f(send, payloads[2], payloads[3])
		_, _ = io.Copy(io.Discard, conn)
	})
	t.Cleanup(func() {
		publish.Close()
		server.Close()
		wg.Wait()
		for _, c := range conns {
			c.Close()
		}
	})
	return badServer{listener.Addr().String(), publish.Addr().String()}
}

func readLength(r io.Reader) ([]byte, error) {
	var length uint32
	if err := binary.Read(r, binary.BigEndian, &length); err != nil {
		return nil, err
	}
	b := make([]byte, length)
	_, err := io.ReadFull(r, b)
	return b, err
}

func TestStartSaysWhyAServerEnded(t *testing.T) {
	s := server{name: "sh", processes: func(programs, place) ([]process, error) {
		return []process{{"/bin/sh", []string{"-c", "echo no such flag >&2; exit 2"}, 0}}, nil
	}}
	_, err := start(t.Context(), s, nil, t.TempDir())
	if err == nil || !strings.Contains(err.Error(), "no such flag") {
		t.Fatalf("error is %v, want one with what the server said", err)
	}
}

func TestTooManyClientsAreRefused(t *testing.T) {
	err := bench(context.Background(), options{clients: []int{1 << 40}}, io.Discard, io.Discard)
	if err == nil || !strings.Contains(err.Error(), "ulimit -Hn") {
		t.Fatalf("error is %v, want one that says how to raise the limit", err)
	}
}

func TestParse(t *testing.T) {
	o, err := parse([]string{"-quick", "-clients", "1000,10000", "-rounds", "7"}, io.Discard)
	if err != nil || o.rounds != 7 || o.phase != 400*time.Millisecond || len(o.clients) != 2 || o.clients[1] != 10000 || slices.Contains(o.rows, "survival") {
		t.Fatalf("got %+v, %v", o, err)
	}
	for _, arguments := range [][]string{{"-clients", "many"}, {"-clients", "0"}, {"-servers", "nginx"}, {"-rows", "all"}, {"-rounds", "0"}, {"more"}} {
		if _, err := parse(arguments, io.Discard); err == nil || errors.Is(err, context.Canceled) {
			t.Errorf("%q was taken", arguments)
		}
	}
}
