package main

import (
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

// A hubOfTwo sends what is published to its clients, until it is told to do wrong: then the
// first of them is not sent the next message, and the second gets it twice.
type hubOfTwo struct {
	mu    sync.Mutex
	conns map[*websocket.Conn]int // by order of their coming
	came  int
	wrong bool
	done  chan struct{} // closed when it has done wrong
}

func startHubOfTwo(t *testing.T) (h *hubOfTwo, address, path string) {
	publish, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h = &hubOfTwo{conns: make(map[*websocket.Conn]int), done: make(chan struct{})}
	var wg sync.WaitGroup
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.mu.Lock()
		defer h.mu.Unlock()
		if conn, err := new(websocket.Upgrader).Upgrade(w, r, nil); err == nil {
			h.conns[conn] = h.came
			h.came++
		}
	})}
	wg.Go(func() { _ = server.Serve(listener) })
	wg.Go(func() {
		conn, err := publish.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		for {
			payload, err := readLength(conn)
			if err != nil {
				return
			}
			h.send(payload)
		}
	})
	t.Cleanup(func() {
		publish.Close()
		server.Close()
		h.close()
		wg.Wait()
	})
	return h, listener.Addr().String(), publish.Addr().String()
}

func (h *hubOfTwo) send(payload []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for conn, number := range h.conns {
		times := 1
		if h.wrong {
			times = 2 * number
		}
		for range times {
			_ = conn.WriteMessage(websocket.TextMessage, payload)
		}
	}
	if h.wrong {
		h.wrong = false
		close(h.done)
	}
}

// close closes every connection.
func (h *hubOfTwo) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for conn := range h.conns {
		conn.Close()
	}
	clear(h.conns)
}

func TestWitnessesNoticeWhatIsWrong(t *testing.T) {
	h, address, path := startHubOfTwo(t)
	in, commands, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	defer commands.Close()
	answers, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer answers.Close()
	ended := make(chan error, 1)
	go func() {
		_, err := run(plan{Address: address, Publish: path, Protocol: lengths, Clients: 2, Rate: 200, Survive: true,
			Settle: time.Millisecond, Stall: 30 * time.Second}, &control{in, out})
		ended <- errors.Join(err, out.Close())
	}()
	decoder := json.NewDecoder(answers)
	tell := func(command string) (o observed) {
		t.Helper()
		if _, err := io.WriteString(commands, command); err != nil {
			t.Fatal(err)
		}
		if err := decoder.Decode(&o); err != nil {
			t.Fatalf("%v: %v", err, <-ended)
		}
		return o
	}
	counts := []row{closedConnections, refusedConnections, lostMessages, repeatedMessages, publishedAgain}
	expect := func(o observed, want ...float64) {
		t.Helper()
		for i, row := range counts {
			if got := o.Figures[row]; got != want[i] {
				t.Errorf("%s: %v, want %v", row, got, want[i])
			}
		}
		if o.Figures[pauseMax] < o.Figures[pauseP50] || o.Figures[pauseMax] <= 0 {
			t.Errorf("the pauses are %v", o.Figures)
		}
	}

	tell("") // all are there
	tell("m")
	expect(tell("r"), 0, 0, 0, 0, 0)

	tell("m")
	h.mu.Lock()
	h.wrong = true
	h.mu.Unlock()
	<-h.done
	expect(tell("r"), 0, 0, 1, 1, 0)

	tell("m")
	h.close()
	o := tell("r")
	// How many messages clients miss until they are back is a matter of luck.
	o.Figures[lostMessages] = 0
	expect(o, 2, 0, 0, 0, 0)

	commands.Close()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// The pause begins when the message was due that did not come.
func TestPauseBeginsWithTheMessageThatIsDue(t *testing.T) {
	s := &survivors{load: &load{plan: plan{Channels: 2}}, start: time.Unix(100, 0), interval: time.Second}
	w := &witness{client: &client{order: newOrder(1, 1, 1)}, due: 1}
	at := func(second int64) int64 { return time.Unix(second, 0).UnixNano() }
	for _, step := range []struct {
		m                message
		now              int64
		pause            time.Duration
		missed, repeated int
	}{
		// Channel 1 has its messages at 101, 103, 105, …
		{message{source: 1, sequence: 1}, at(101), 0, 0, 0},
		{message{source: 1, sequence: 2}, at(104), time.Second, 0, 0},
		{message{source: 1, sequence: 2}, at(104), time.Second, 0, 1},
		{message{source: 1, sequence: 2, try: 1}, at(104), time.Second, 0, 1}, // published again
		{message{source: 1, sequence: 5}, at(109), 4 * time.Second, 2, 1},
	} {
		if err := w.message(s, step.m.appendTo(nil), step.now); err != nil {
			t.Fatal(err)
		}
		if w.pause != int64(step.pause) || w.missed != step.missed || w.repeated != step.repeated {
			t.Fatalf("%+v: pause %v, %d missed, %d repeated, want %+v", step.m, time.Duration(w.pause), w.missed, w.repeated, step)
		}
	}
	if err := w.message(s, message{source: 0, sequence: 6}.appendTo(nil), 0); !errors.Is(err, errForeign) {
		t.Errorf("a message of another channel: error %v", err)
	}
	// With ids a message is published once, however often its publisher has tried.
	s.Protocol = resp
	if err := w.message(s, message{source: 1, sequence: 5, try: 1}.appendTo(nil), at(110)); err != nil || w.repeated != 2 {
		t.Errorf("a message that was published again in spite of its id: %d repeated, error %v", w.repeated, err)
	}
}
