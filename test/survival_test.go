package test

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
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
