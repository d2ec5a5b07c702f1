package loop

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"regexp"
	"strings"
	"testing"
	"time"

	"wscast/daemon/encode"
	"wscast/daemon/frame"
)

// said is a frame of wscast.v1.json.
type said struct {
	Reply, Error, Message, Channel, ID, Data, Base64 string
	Ref                                              any
	Time                                             int64
	Complete                                         *bool
	Messages, Clients                                int
}

// hear reads a frame of wscast.v1.json.
func (w *wire) hear() (s said) {
	w.Helper()
	op, b := w.frame()
	if op != frame.Text {
		w.Fatalf("frame %d %q", op, b)
	}
	if err := json.Unmarshal(b, &s); err != nil {
		w.Fatalf("%v: %s", err, b)
	}
	return s
}

// hearData reads envelopes, and returns their ids.
func (w *wire) hearData(channelAndData ...string) (ids []string) {
	w.Helper()
	for _, want := range channelAndData {
		s := w.hear()
		if got := s.Channel + " " + s.Data; got != want || s.ID == "" || s.Time == 0 {
			w.Fatalf("got %+v, want %q", s, want)
		}
		ids = append(ids, s.ID)
	}
	return ids
}

func (w *wire) ask(command string) { w.Helper(); w.send(masked(text, command)) }

// hearReply reads an answer.
func (w *wire) hearReply(reply, channel string, ref any) said {
	w.Helper()
	s := w.hear()
	if s.Reply != reply || s.Channel != channel || s.Ref != ref {
		w.Fatalf("got %+v, want %s of %s to %v", s, reply, channel, ref)
	}
	return s
}

// The life of a client of wscast.v1.json, killed at every call: every command is answered once, every message comes once.
func TestSessionKilledAtEveryCall(t *testing.T) {
	overRings(t, "subscriptions", func(t *testing.T, rings int) {
		killedOver(t, rings, false, func(t *testing.T, d *dynasty) {
			d.publish("news", "zero")
			c := d.tcp(0)
			c.send(request("json=news"))
			c.expect(upgraded)
			start := c.hearReply("subscribed", "news", nil)
			d.publish("news", "one")
			c.hearData("news one")
			c.ask(`{"command":"subscribe","channel":"chat","ref":1}`)
			c.hearReply("subscribed", "chat", 1.0)
			d.publish("chat", "two")
			d.publish("other", "not for it")
			d.publish("news", "three")
			c.hearData("chat two", "news three")
			c.ask(`{"command":"subscribe","channel":"news","last_event_id":"` + start.ID + `","ref":"again"}`)
			if s := c.hearReply("subscribed", "news", "again"); s.Complete == nil || !*s.Complete {
				t.Errorf("%+v", s)
			}
			ids := c.hearData("news one", "news three")
			c.ask(`{"command":"history","channel":"chat","last":5}`)
			if s := c.hearReply("history", "chat", nil); s.Messages != 1 {
				t.Errorf("%+v", s)
			}
			c.hearData("chat two")
			c.ask(`{"command":"unsubscribe","channel":"news","ref":2}`)
			c.hearReply("unsubscribed", "news", 2.0)
			d.publish("news", "not for it any more")
			d.publish("chat", "four")
			c.hearData("chat four")
			c.ask(`{"command":"subscribe","channel":"news","last_event_id":"` + ids[1] + `"}`)
			c.hearReply("subscribed", "news", nil)
			c.hearData("news not for it any more")
			c.ask(`{"command":"dance","ref":3}`)
			if s := c.hear(); s.Error != "unknown_command" || s.Ref != 3.0 {
				t.Errorf("%+v", s)
			}
			c.send(closeFrame(frame.CloseNormal, ""))
			c.expectClose(frame.CloseNormal)
		})
	})
	t.Run("long answers to one that reads slowly", func(t *testing.T) {
		killed(t, func(t *testing.T, d *dynasty) {
			c := d.tcp(4096)
			c.send(request("json="))
			c.expect(upgraded)
			long := strings.Repeat("n", 100)
			var all strings.Builder
			for i := range 6 {
				all.WriteString(masked(text, fmt.Sprintf(`{"command":"subscribe","channel":"%s%d","ref":%d}`, long, i, i)))
			}
			c.send(all.String())
			for i := range 6 {
				c.hearReply("subscribed", fmt.Sprint(long, i), float64(i))
			}
			var want []string
			for i := range 6 {
				data := strings.Repeat(fmt.Sprint(i), 9_000)
				d.publish(fmt.Sprint(long, i), data)
				want = append(want, fmt.Sprint(long, i, " ", data))
			}
			c.hearData(want...)
		})
	})
	t.Run("compressed", func(t *testing.T) {
		killed(t, func(t *testing.T, d *dynasty) {
			c := d.tcp(4096)
			c.send(request("raw-deflate=news"))
			c.expect(upgraded)
			d.publish("news", "short")
			c.expectText("short")
			for i := range 3 {
				message := noise(t, 20_000+i)
				d.publish("news", message)
				c.expectDeflated(message)
			}
			c.send(masked(pingOp, "ping"))
			c.expectFrame(frame.Pong, "ping")
			c.send(closeFrame(frame.CloseNormal, ""))
			c.expectClose(frame.CloseNormal)
		})
	})
	t.Run("an event stream", func(t *testing.T) {
		killed(t, func(t *testing.T, d *dynasty) {
			c := d.tcp(4096)
			c.send(request("events=news"))
			c.expect(upgraded)
			c.expectPosition()
			d.publish("news", "one\ntwo")
			big := strings.Repeat("x", 30_000)
			d.publish("news", big)
			d.publish("news", "line\r\n")
			c.expectEvents("data: one\ndata: two", "data: "+big, "event: base64\ndata: bGluZQ0K")
		})
	})
	overRings(t, "an event stream of several channels", func(t *testing.T, rings int) {
		killedOver(t, rings, false, func(t *testing.T, d *dynasty) {
			c := d.tcp(4096)
			c.send(request("json-events=a,b"))
			c.expect(upgraded)
			c.expectPosition()
			for i := range 4 {
				d.publish(string("ab"[i%2]), strings.Repeat(fmt.Sprint(i), 10_000*(i%3)))
			}
			for i := range 4 {
				id, fields := c.event()
				var s said
				if err := json.Unmarshal([]byte(strings.TrimPrefix(fields, "data: ")), &s); err != nil || s.ID != id ||
					s.Channel != string("ab"[i%2]) || s.Data != strings.Repeat(fmt.Sprint(i), 10_000*(i%3)) {
					t.Fatalf("event %d: %s %.100s %v", i, id, fields, err)
				}
			}
		})
	})
}

// noise is text that can be compressed a little.
func noise(t *testing.T, n int) string {
	r := rand.New(rand.NewPCG(uint64(n), 1))
	var b strings.Builder
	for b.Len() < n {
		fmt.Fprintf(&b, "%x ", r.Uint64())
	}
	return b.String()
}

// expectDeflated reads a compressed message.
func (w *wire) expectDeflated(want string) {
	w.Helper()
	_ = w.SetReadDeadline(time.Now().Add(patienceOfTests))
	h := w.read(4) // of these sizes
	if h[0] != 0xc1 || h[1] != 126 {
		w.Fatalf("header % x", h)
	}
	payload := w.read(int(h[2])<<8 | int(h[3]))
	got, err := encode.Inflate(nil, payload, len(want)+1)
	if err != nil || string(got) != want {
		w.Fatalf("%v: %d bytes, want %d", err, len(got), len(want))
	}
}

var idLine = regexp.MustCompile(`^id: ([0-9a-f]{16}-[0-9]+)\n`)

// event reads a server-sent event up to the empty line.
func (w *wire) event() (id, fields string) {
	w.Helper()
	var b strings.Builder
	for !strings.HasSuffix(b.String(), "\n\n") {
		b.Write(w.read(1))
	}
	event := strings.TrimSuffix(b.String(), "\n\n")
	if m := idLine.FindStringSubmatch(event); m != nil {
		return m[1], event[len(m[0]):]
	}
	return "", event
}

// expectPosition reads an id without an event.
func (w *wire) expectPosition() {
	w.Helper()
	var b strings.Builder
	for !strings.HasSuffix(b.String(), "\n\n") {
		b.Write(w.read(1))
	}
	if !idLine.MatchString(b.String()) || strings.Count(b.String(), "\n") != 2 {
		w.Fatalf("%q", b.String())
	}
}

func (w *wire) expectEvents(events ...string) (ids []string) {
	w.Helper()
	for _, want := range events {
		id, got := w.event()
		if got != want || id == "" {
			w.Fatalf("got %s %.100q, want %.100q", id, got, want)
		}
		ids = append(ids, id)
	}
	return ids
}

// What came while nobody was there comes first, and then what comes, without a gap and without a repeat.
func TestReplay(t *testing.T) { overRings(t, "after an id", testReplay) }

func testReplay(t *testing.T, rings int) {
	r := start(t, splitOver(rings))
	r.publish("news", "one")
	c := r.dial()
	c.send(request("json=news"))
	c.expect(upgraded)
	c.hearReply("subscribed", "news", nil)
	r.publish("news", "two")
	id := c.hearData("news two")[0]
	c.Close()
	r.publish("news", "three")
	r.publish("other", "x")
	r.publish("news", "four")
	for _, how := range []string{"raw", "json", "events"} {
		c := r.dial()
		c.send(request(how + "=news!" + id))
		c.expect(upgraded)
		switch how {
		case "raw":
			c.expectText("three")
			c.expectText("four")
		case "json":
			if s := c.hearReply("subscribed", "news", nil); !*s.Complete || s.ID != id {
				t.Errorf("%+v", s)
			}
			c.hearData("news three", "news four")
		case "events":
			c.expectEvents("data: three", "data: four")
		}
	}
	other := encode.ID{Epoch: r.store.Epoch() + 1, Seq: 1}
	c = r.dial()
	c.send(request("json=news!" + other.String()))
	c.expect(upgraded)
	if s := c.hearReply("subscribed", "news", nil); *s.Complete {
		t.Errorf("%+v: of another log", s)
	}
	c = r.dial()
	c.send(request("events=news!" + other.String()))
	c.expect(upgraded)
	if _, got := c.event(); got != "event: incomplete\ndata: news" {
		t.Errorf("%q", got)
	}
}
