package loop

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"wscast/daemon/encode"
	"wscast/daemon/frame"
)

// Messages come in the order of the log, whatever their channels, also those that come while others are looked for.
func TestChannelsInTheOrderOfTheLog(t *testing.T) { overRings(t, "in order", testOrder) }

func testOrder(t *testing.T, rings int) {
	config := patient
	config.MaxSubscriptions = 100
	const channels, rounds, each = 20, 100, 30
	names := make([]string, channels)
	for i := range names {
		names[i] = fmt.Sprint("c", i)
	}
	r := start(t, loopsOf(2), with(config), splitOver(rings))
	var clients []*wire
	for range 6 {
		c := r.dial()
		c.send(request("json=" + strings.Join(names, ",")))
		c.expect(upgraded)
		for _, name := range names {
			c.hearReply("subscribed", name, nil)
		}
		clients = append(clients, c)
	}
	last := make([]uint64, len(clients))
	for range rounds {
		var publishers sync.WaitGroup
		for range 3 {
			publishers.Go(func() {
				for range each {
					r.publish(names[rand.IntN(channels)], "x")
				}
			})
		}
		publishers.Wait()
		for i, c := range clients {
			for range 3 * each {
				id, err := encode.ParseID(c.hear().ID)
				if err != nil || id.Seq != last[i]+1 {
					t.Fatalf("client %d: %v after %d, %v", i, id, last[i], err)
				}
				last[i] = id.Seq
			}
		}
	}
}

// What comes while a client is turned to what it is to be sent waits for the next time.
func TestMessagesThatComeMeanwhile(t *testing.T) { overRings(t, "later", testMeanwhile) }

func testMeanwhile(t *testing.T, rings int) {
	r := start(t, loopsOf(1), splitOver(rings))
	c := r.dial()
	c.send(request("json=a,b"))
	c.expect(upgraded)
	c.hearReply("subscribed", "a", nil)
	c.hearReply("subscribed", "b", nil)
	r.inside(func(l *loop) {
		r.publish("a", "1")
		var client *client
		for i := range l.slab.blocks[0] {
			if c := &l.slab.blocks[0][i]; c.fd >= 0 && c.fed() {
				client = c
			}
		}
		to, ok := l.choose(client)
		r.publish("b", "2")
		r.publish("a", "3")
		if !ok || !l.encodeRun(client, to, runBytes) || l.run.Messages != 1 || l.reader.Number(client.subs.ch, l.run.Last) != 1 || !l.run.More {
			t.Errorf("%v: %+v", ok, l.run)
		}
	})
	c.hearData("a 1", "b 2", "a 3")
}

// heard is what a client of some encoding is told: the number that each message has.
func (w *wire) heard(e encode.Encoding) (n int, err error) {
	var data string
	if e.WebSocket() {
		op, b, deflated, err := w.nextOf()
		if err != nil || op != frame.Text {
			return 0, fmt.Errorf("frame %d: %w", op, err)
		}
		if deflated {
			if b, err = encode.Inflate(nil, b, 1<<20); err != nil {
				return 0, err
			}
		}
		data = string(b)
	} else {
		for {
			_, fields := w.event()
			if text, ok := strings.CutPrefix(fields, "data: "); ok {
				data = text
				break
			}
			if fields != ":" && fields != "" {
				return 0, fmt.Errorf("event %.100q", fields)
			}
		}
	}
	if p := e.Plain(); p == encode.JSON || p == encode.JSONEvents {
		var s said
		if err := json.Unmarshal([]byte(data), &s); err != nil {
			return 0, err
		}
		if s.Reply != "" {
			return w.heard(e)
		}
		data = s.Data
	}
	rest := ""
	if _, err := fmt.Sscanf(data, "%d %s", &n, &rest); err != nil || rest != strings.Repeat("x", sizeOf(n)) {
		return n, fmt.Errorf("%.100q of %d bytes: %w", data, len(data), err)
	}
	return n, nil
}

func sizeOf(n int) int { return 1 + n%7*3000 }

// nextOf is next for a client that takes compressed messages.
func (w *wire) nextOf() (op frame.Opcode, payload []byte, deflated bool, err error) {
	first, err := w.in.Peek(1)
	if err != nil {
		return 0, nil, false, err
	}
	deflated = first[0]&0x40 != 0
	first[0] &^= 0x40 // of the buffer
	op, payload, err = w.next()
	return op, payload, deflated, err
}

// Clients of every encoding, restarts and kills in the middle of calls: each message comes to each of them once, and in order.
func TestEveryEncodingUnderRestartsAndKills(t *testing.T) {
	overRings(t, "each once", testEveryEncoding)
}

func testEveryEncoding(t *testing.T, rings int) {
	a := &assassin{after: -1, how: half, done: newSignal()}
	d := newDynastyOver(t, rings, 1, patient, a.guard())
	type listener struct {
		*wire
		encode.Encoding
		read chan struct{}
	}
	const messages, ahead = 300, 15
	var clients []*listener
	for _, kind := range []string{"raw-deflate=a", "json=a,b", "json-deflate=b,a", "events=a", "json-events=a,b", "raw-deflate=a", "json=b,a", "events=a"} {
		e := map[string]encode.Encoding{"json": encode.JSON, "events": encode.Events, "json-events": encode.JSONEvents,
			"raw-deflate": encode.Raw | encode.Deflate, "json-deflate": encode.JSON | encode.Deflate}[kind[:strings.IndexByte(kind, '=')]]
		buffer := 0
		if len(clients)%2 == 0 {
			buffer = 4096
		}
		c := d.tcp(buffer)
		c.send(request(kind))
		c.expect(upgraded)
		if !e.WebSocket() {
			c.expectPosition()
		}
		clients = append(clients, &listener{c, e, make(chan struct{}, messages)})
	}
	raw := d.tcp(4096).join("a")
	clients = append(clients, &listener{raw, encode.Raw, make(chan struct{}, messages)})
	d.until("all are open", func(s Stats) bool { return s.Opening == 0 && int(s.Clients) == len(clients) })

	var ends sync.WaitGroup
	over := make(chan struct{})
	kills, restarts := 0, 0
	turn := make(chan bool) // true: kill
	ends.Go(func() {
		for {
			var kill bool
			select {
			case <-over:
				return
			case kill = <-turn:
			}
			if kill {
				a.mu.Lock()
				a.after, a.how = 1+rand.IntN(40), rand.IntN(ways)
				a.mu.Unlock()
				select {
				case <-a.done.c:
				case <-over:
					if !a.relent() {
						return
					}
					<-a.done.c
				}
				kills++
			} else {
				restarts++
			}
			func() {
				d.mu.Lock()
				defer d.mu.Unlock()
				if kill {
					d.fall()
					a = &assassin{after: -1, done: newSignal()}
					d.sys = a.guard()
				} else {
					d.loops.Suspend(context.Background())
				}
				d.succeed()
			}()
		}
	})
	both := func(n int) bool { return n%2 == 0 } // on channel a, else on b
	var readers sync.WaitGroup
	for i, c := range clients {
		all := c.Plain() == encode.JSON || c.Plain() == encode.JSONEvents
		readers.Go(func() {
			defer close(c.read)
			for n := range messages {
				if all || both(n) {
					if got, err := c.heard(c.Encoding); err != nil || got != n {
						t.Errorf("client %d of encoding %#x: %d, want %d: %v", i, c.Encoding, got, n, err)
						return
					}
				}
				c.read <- struct{}{}
			}
		})
	}
	for n := range messages {
		channel := "b"
		if both(n) {
			channel = "a"
		}
		d.publish(channel, fmt.Sprintf("%d %s", n, strings.Repeat("x", sizeOf(n))))
		for _, c := range clients { // nobody becomes slow
			if n >= ahead {
				<-c.read
			}
		}
		select {
		case turn <- rand.IntN(3) > 0:
		default:
		}
	}
	readers.Wait()
	close(over)
	ends.Wait()
	s := d.stats()
	t.Logf("%d restarts, %d kills, %d adopted, %d repaired", restarts, kills, s.Adopted, s.Repaired)
	if s.Lost != 0 || s.Slow != 0 || s.Repaired == 0 || kills == 0 {
		t.Errorf("%+v", s)
	}
}
