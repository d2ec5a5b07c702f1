package test

import (
	"encoding/binary"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"wscast/ipc"
	"wscast/test/harness"
)

// A process that is killed at any step of parking, merging, compacting, adopting, answering and closing loses no client and no message.
func TestKilledAtEveryStep(t *testing.T) {
	program := harness.Failpoints(t)
	points := []string{
		"store.one", "store.both", "park.before", "park.sent", "merge.sent", "merge.taken", "compact.emptied", "remove.one",
		"recover.found", "recover.all", "adopt.begun", "adopt.inherited",
		"accept.recorded", "answer.noted", "answer.sent", "answer.consumed", "close.left", "close.shut", "close.forgotten",
	}
	for _, point := range points {
		for _, nth := range []int{1, 3} {
			if nth > 1 && (point == "recover.all" || point == "store.one" || point == "store.both") {
				continue // passed too seldom
			}
			t.Run(fmt.Sprint(point, " ", nth), func(t *testing.T) { killedAt(t, program, point, nth) })
		}
	}
}

func killedAt(t *testing.T, program harness.Option, point string, nth int) {
	d := harness.Start(t, program, harness.FDStore(64))
	var conns []*websocket.Conn
	for range 20 {
		conn, _, err := websocket.DefaultDialer.Dial(d.WebSocketURL("news"), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conns = append(conns, conn)
	}
	next := uint64(0)
	publish := func() error {
		c, err := ipc.Dial(d.PublishSocket())
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Publish("news", binary.BigEndian.AppendUint64(nil, next+1))
		if err == nil {
			next++
		}
		return err
	}
	if err := publish(); err != nil {
		t.Fatal(err)
	}
	d.Kill()
	dead := d.StartDoomed(point, nth)
	// Clients come and go until it has happened. A few stay for a while, so that there are some to merge, which leave later, so that there is
	// something to compact.
	stop := make(chan struct{})
	var others sync.WaitGroup
	others.Go(func() {
		const some = 24
		var guests []*websocket.Conn
		defer func() {
			for _, c := range guests {
				c.Close()
			}
		}()
		for {
			select {
			case <-stop:
				return
			default:
			}
			c, _, err := (&websocket.Dialer{HandshakeTimeout: 2 * time.Second}).Dial(d.WebSocketURL("others"), nil)
			if err != nil {
				continue
			}
			if guests = append(guests, c); len(guests) > some {
				guests[0].Close()
				guests = guests[1:]
			}
		}
	})
	select {
	case <-dead:
	case <-time.After(harness.Patience):
		t.Error("the point was not passed")
	}
	d.Bury()
	d.Start()
	close(stop)
	others.Wait()
	if err := publish(); err != nil {
		t.Fatal(err)
	}
	for i, conn := range conns {
		_ = conn.SetReadDeadline(time.Now().Add(harness.Patience))
		for n := uint64(1); n <= next; n++ {
			if _, b, err := conn.ReadMessage(); err != nil || binary.BigEndian.Uint64(b) != n {
				t.Fatalf("client %d: message %d: %x, %v", i, n, b, err)
			}
		}
	}
}
