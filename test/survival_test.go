package test

import (
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"wscast/ipc"
	"wscast/test/harness"
)

// Clients are connected throughout, messages flow, and processes end in every way at any moment. Every client gets every message that was
// acknowledged exactly once and in order, and no connection is closed.
func TestClientsSurvive(t *testing.T) {
	for _, c := range []struct {
		name    string
		clients int
		size    int
		ends    int
		kill    bool
		most    int
	}{
		{"restarts", 200, 100, 10, false, 200},
		{"kills", 200, 100, 20, true, 200},
		{"kills with large messages", 40, 100_000, 20, true, 20},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := harness.Start(t, harness.FDStore(64))
			conns := make([]*websocket.Conn, c.clients)
			for i := range conns {
				conn, _, err := websocket.DefaultDialer.Dial(d.WebSocketURL("news"), nil)
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				conns[i] = conn
			}
			var acknowledged atomic.Uint64 // messages 1 to acknowledged are in the log
			stop := make(chan struct{})
			var last, lost uint64
			var publisher sync.WaitGroup
			publisher.Go(func() { last, lost = publishUntil(d.PublishSocket(), c.size, &acknowledged, stop) })

			var clients sync.WaitGroup
			finish := make(chan struct{})
			for i, conn := range conns {
				clients.Go(func() {
					next, tries := uint64(1), uint64(0)
					for {
						_, b, err := conn.ReadMessage()
						if err != nil {
							t.Errorf("client %d at message %d: %v", i, next, err)
							return
						}
						n, try := binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:])
						if len(b) != c.size && n != 0 {
							t.Errorf("client %d: message %d has %d bytes", i, n, len(b))
						}
						switch {
						case n == 0: // the last one
							return
						case n == next:
							next, tries = next+1, try
						case n == next-1 && try > tries:
							tries = try // the publisher had no answer, and published it again
						default:
							t.Errorf("client %d got message %d (try %d) where %d was next", i, n, try, next)
							return
						}
					}
				})
			}
			random := rand.New(rand.NewPCG(1, 2))
			for range c.ends {
				target := acknowledged.Load() + uint64(random.IntN(c.most))
				for acknowledged.Load() < target {
					time.Sleep(time.Millisecond)
				}
				if c.kill {
					d.Kill()
				} else {
					d.Stop()
				}
				d.Start()
			}
			close(stop)
			publisher.Wait()
			close(finish)
			cl, err := ipc.Dial(d.PublishSocket())
			if err != nil {
				t.Fatal(err)
			}
			defer cl.Close()
			if _, err := cl.Publish("news", make([]byte, 16)); err != nil {
				t.Fatal(err)
			}
			clients.Wait()
			t.Logf("%d messages", last)
			if lost > 0 && !c.kill {
				t.Errorf("the publisher had to connect again %d times: a restart is not to be seen by it", lost)
			}
			sections, err := cl.Info()
			if err != nil {
				t.Fatal(err)
			}
			t.Log(fmt.Sprint(sections))
			if t.Failed() {
				t.Log(d.Log())
			}
		})
	}
}

// publishUntil publishes numbered messages until stop, each until it is acknowledged. It returns the last one, and how often it
// lost its connection.
func publishUntil(socket string, size int, acknowledged *atomic.Uint64, stop <-chan struct{}) (last, lost uint64) {
	message := make([]byte, size)
	var c *ipc.Client
	for n, try := uint64(1), uint64(1); ; {
		select {
		case <-stop:
			if c != nil {
				c.Close()
			}
			return n - 1, lost
		default:
		}
		var err error
		if c == nil {
			if c, err = ipc.Dial(socket); err != nil {
				c = nil
				continue
			}
		}
		binary.BigEndian.PutUint64(message, n)
		binary.BigEndian.PutUint64(message[8:], try)
		if _, err = c.Publish("news", message); err != nil {
			c.Close()
			c = nil
			try++
			lost++
			continue
		}
		acknowledged.Store(n)
		n, try = n+1, 1
	}
}

// Publishers that lose their connection publish again what was not answered. With ids every client gets every message exactly once, and in
// its publisher's order; without, the same messages come twice.
func TestPublishedAgain(t *testing.T) {
	for _, ids := range []bool{true, false} {
		t.Run(fmt.Sprint("ids ", ids), func(t *testing.T) {
			const clients, publishers, kills, most = 10, 4, 25, 3000
			d := harness.Start(t, harness.FDStore(64))
			flows := make([]*flow, publishers)
			for i := range flows {
				flows[i] = newFlow(i, ids)
			}
			var delivered progress
			var receiving sync.WaitGroup
			var twice atomic.Int64
			for i := range clients {
				conn, _, err := websocket.DefaultDialer.Dial(d.WebSocketURL("news"), nil)
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				receiving.Go(func() {
					next := make([]uint64, publishers)
					for {
						_, b, err := conn.ReadMessage()
						if err != nil {
							t.Errorf("client %d: %v", i, err)
							return
						}
						if len(b) == 0 { // the last one
							break
						}
						from, n := binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:])
						if n > next[from] || ids && n < next[from] {
							t.Errorf("client %d got message %d of publisher %d where %d was next", i, n, from, next[from])
							return
						}
						if n < next[from] {
							twice.Add(1)
							continue
						}
						next[from]++
						if i == 0 {
							delivered.add()
							flows[from].tokens <- struct{}{}
						}
					}
					for from, f := range flows {
						if next[from] != f.sent {
							t.Errorf("client %d got %d messages of publisher %d, which has published %d", i, next[from], from, f.sent)
						}
					}
				})
			}
			var publishing sync.WaitGroup
			stop := make(chan struct{})
			for _, f := range flows {
				publishing.Go(func() { f.run(d.PublishSocket(), stop) })
			}
			random, again := rand.New(rand.NewPCG(3, 4)), 0
			for range kills {
				delivered.await(t, 1+random.IntN(most))
				again += publishedAgain(t, d)
				delivered.await(t, 1+random.IntN(100))
				d.Kill()
				d.Start()
			}
			close(stop)
			publishing.Wait()
			again += publishedAgain(t, d)
			c, err := ipc.Dial(d.PublishSocket())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if _, err := c.Publish("news", nil); err != nil {
				t.Fatal(err)
			}
			receiving.Wait()
			var sent, retried uint64
			for _, f := range flows {
				sent, retried = sent+f.sent, retried+f.retried
			}
			t.Logf("%d messages, %d times one was published again, %d of which were in the log already; clients got %d messages twice", sent, retried, again, twice.Load())
			switch {
			case ids && (retried == 0 || again == 0):
				t.Error("nothing was published again that was in the log: there is nothing to prove")
			case !ids && twice.Load() == 0:
				t.Error("no message came twice without ids: with them there would be nothing to prove")
			}
			if t.Failed() {
				t.Log(d.Log())
			}
		})
	}
}

// publishedAgain is how many messages the process was given that were in the log.
func publishedAgain(t *testing.T, d *harness.Daemon) (n int) {
	t.Helper()
	c, err := ipc.Dial(d.PublishSocket())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	sections, err := c.Info("Publishers")
	if err != nil || len(sections) != 1 {
		t.Fatal(sections, err)
	}
	for _, f := range sections[0].Fields {
		if f.Key == "messages_published_again" {
			if n, err = strconv.Atoi(f.Value); err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatal("INFO does not say how many messages were published again")
	return 0
}

// progress counts what a client gets.
type progress struct {
	mu      sync.Mutex
	n, want int
	reached chan struct{}
}

func (p *progress) add() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.n++; p.reached != nil && p.n >= p.want {
		close(p.reached)
		p.reached = nil
	}
}

// await waits for n more.
func (p *progress) await(t *testing.T, n int) {
	t.Helper()
	reached := make(chan struct{})
	p.mu.Lock()
	p.want, p.reached = p.n+n, reached
	p.mu.Unlock()
	select {
	case <-reached:
	case <-time.After(harness.Patience):
		t.Fatal("messages have ceased to come")
	}
}

// flow is a publisher with many messages on their way. It sends them again, in the same order, after it has lost its connection.
type flow struct {
	number  int
	ids     bool
	tokens  chan struct{} // one for each message more: no more are on their way than clients can take
	sent    uint64
	retried uint64
}

func newFlow(number int, ids bool) *flow {
	const window = 200
	f := &flow{number: number, ids: ids, tokens: make(chan struct{}, window)}
	for range window {
		f.tokens <- struct{}{}
	}
	return f
}

// run publishes until stop, and then until everything is answered.
func (f *flow) run(socket string, stop <-chan struct{}) {
	for answered, stopped := uint64(0), false; !stopped || answered < f.sent; {
		c, err := ipc.Dial(socket)
		if err != nil {
			continue // the queue of the socket is full
		}
		lost := make(chan struct{})
		var once sync.Once
		first := answered
		s := c.PublishMany(func(a ipc.Answer) {
			if a.Err == nil {
				answered++
			} else {
				once.Do(func() { close(lost) })
			}
		})
		for n := first; err == nil; n++ {
			if n < f.sent {
				f.retried++
			} else {
				select {
				case <-f.tokens:
					f.sent++
				case <-lost:
					err = io.EOF
				case <-stop:
					stopped, err = true, io.EOF
				}
			}
			if err == nil {
				err = f.publish(s, n)
			}
		}
		s.Close()
		c.Close()
	}
}

func (f *flow) publish(s *ipc.Stream, n uint64) error {
	message := binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, uint64(f.number)), n)
	if !f.ids {
		return s.Publish("news", message)
	}
	return s.PublishOnce("news", message, fmt.Sprintf("%d of publisher %d", n, f.number))
}
