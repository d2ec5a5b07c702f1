package hostile

import (
	"fmt"
	"net"
	"strings"
	"syscall"
	"testing"

	"wscast/test/harness"
)

// Every limit there is, in the order of a connection's life. Where a limit is a time, above it is what never comes.

// Keys that need a restart are the same for all of the table.
const fixedLimits = `
[log]
size = "1MiB"
channels = 8

[daemon]
loops = 2
`

// limit is a row of the table.
type limit struct {
	name      string
	websocket string // keys
	publish   string
	channel   string
	at        int
	use       func(r *room, n int) string // uses n of what is limited, and returns what was heard at last
	fine      string                      // what that is up to the limit
	over      string                      // and above it
	counted   string                      // what counts in INFO above it, and only then
}

var limits = []limit{
	{name: "clients in all", websocket: "max_clients = 3", at: 3,
		use:  func(r *room, n int) string { return r.clients(n, func(int) []string { return nil }) },
		fine: "101", over: "503", counted: "requests_over_limit"},

	{name: "clients per address", websocket: "max_per_address = 3", at: 3,
		use: func(r *room, n int) string {
			r.clients(4, func(i int) []string { return []string{fmt.Sprintf("X-Forwarded-For: 198.51.100.%d", i)} }) // of others
			return r.clients(n, func(int) []string { return []string{"X-Forwarded-For: 203.0.113.7"} })
		},
		fine: "101", over: "429", counted: "requests_over_limit"},

	{name: "time of the handshake", websocket: `handshake_timeout = "50ms"`, at: 1, // tries without an end
		use: func(r *room, n int) string {
			request := opening("news")
			if n > 1 {
				request = request[:len(request)-1]
			}
			w := r.dial()
			w.send(request)
			return w.status()
		},
		fine: "101", over: "408", counted: "timed_out"},

	{name: "size of the handshake", websocket: `max_request = "2KiB"`, at: 2048,
		use: func(r *room, n int) string {
			fill := "X: " + strings.Repeat("x", n-len(opening("news", "X: ")))
			return r.dial().open("news", fill)
		},
		fine: "101", over: "431", counted: "requests_refused"},

	{name: "a client's frame", websocket: "max_message = 1000", at: 1000,
		use: func(r *room, n int) string {
			return r.client().say(frame(opText, strings.Repeat("x", n)) + frame(opPing, ""))
		},
		fine: "pong", over: "1009", counted: "closed_protocol_error"},

	{name: "a client's message", websocket: "max_message = 1000", at: 1000,
		use: func(r *room, n int) string {
			return r.client().say(frame(0x01, strings.Repeat("x", 500)) + frame(0x00, "") + frame(0x80, strings.Repeat("x", n-500)) + frame(opPing, ""))
		},
		fine: "pong", over: "1009", counted: "closed_protocol_error"},

	{name: "a client's frames in a second", websocket: "frame_rate = 20", at: 20,
		use: func(r *room, n int) string {
			return r.client().say(strings.Repeat(frame(opText, "x"), n-11) + strings.Repeat(frame(opPong, ""), 10) + frame(opClose, "\x03\xe8"))
		},
		fine: "1000", over: "1008", counted: "closed_too_fast"},

	{name: "a client's commands in a second", websocket: "frame_rate = 20", at: 20,
		use: func(r *room, n int) string {
			w := r.talker()
			w.send(strings.Repeat(frame(opText, `{"command":"ping"}`), n-1) + frame(opClose, "\x03\xe8"))
			for {
				if heard := w.code(); !strings.Contains(heard, "pong") {
					return heard
				}
			}
		},
		fine: "1000", over: "1008", counted: "closed_too_fast"},

	{name: "what a client publishes in a second", websocket: "upstream_rate = 1", channel: upstream, at: 1,
		use: func(r *room, n int) string {
			w := r.dial()
			if status := w.open("up/stream"); status != "101" {
				return status
			}
			return w.say(strings.Repeat(frame(opText, "x"), n) + frame(opClose, "\x03\xe8"))
		},
		fine: "1000", over: "1008", counted: "closed_too_fast"},

	{name: "what a client publishes in a second, by commands", websocket: "upstream_rate = 1", channel: upstream, at: 1,
		use: func(r *room, n int) (heard string) {
			w := r.talker()
			w.send(strings.Repeat(frame(opText, `{"command":"publish","channel":"up/stream","data":"x"}`), n))
			for range n {
				_, answer := w.hear()
				heard, _, _ = strings.Cut(answer, `,`)
			}
			return heard
		},
		fine: `{"reply":"published"`, over: `{"error":"too_fast"`, counted: "commands_refused"},

	// With each ping the daemon meets the beginning of the message again, and all pings before it.
	{name: "a client's frames in a second, in the middle of a message", websocket: "frame_rate = 20", at: 20,
		use: func(r *room, n int) string {
			w := r.talker()
			w.send(frame(0x01, `{"command":`))
			for range n - 3 {
				if heard := w.say(frame(opPing, "")); heard != "pong" {
					return heard
				}
			}
			w.send(frame(0x80, `"ping"}`))
			w.hear() // the answer
			return w.say(frame(opClose, "\x03\xe8"))
		},
		fine: "1000", over: "1008", counted: "closed_too_fast"},

	{name: "subscriptions of a client", websocket: "max_subscriptions = 3", at: 3,
		use: func(r *room, n int) (heard string) {
			w := r.talker()
			for i := range n {
				w.send(frame(opText, fmt.Sprintf(`{"command":"subscribe","channel":"c%d"}`, i)))
				_, answer := w.hear()
				heard, _, _ = strings.Cut(answer, `,`)
			}
			return heard
		},
		fine: `{"reply":"subscribed"`, over: `{"error":"too_many_subscriptions"`, counted: "commands_refused"},

	{name: "subscriptions of a client, and a piece of history", websocket: "max_subscriptions = 3", at: 3,
		use: func(r *room, n int) string {
			w := r.talker()
			for i := range n - 1 {
				w.send(frame(opText, fmt.Sprintf(`{"command":"subscribe","channel":"c%d"}`, i)))
				w.hear()
			}
			w.send(frame(opText, `{"command":"history","channel":"c0","last":1}`))
			_, answer := w.hear()
			heard, _, _ := strings.Cut(answer, `,`)
			return heard
		},
		fine: `{"reply":"history"`, over: `{"error":"too_many_subscriptions"`, counted: "commands_refused"},

	{name: "subscriptions in a URL", websocket: "max_subscriptions = 3", at: 3,
		use: func(r *room, n int) string {
			path := harness.WebSocketPath("c0")
			query := "?" + strings.Repeat("&channel=c1", n-1)
			w := r.dial()
			w.send(strings.Replace(opening("c0", "Sec-WebSocket-Protocol: wscast.v1.json"), path, path+query, 1))
			return w.status()
		},
		fine: "101", over: "400", counted: "requests_refused"},

	{name: "channels, by clients", at: 8,
		use: func(r *room, n int) (heard string) {
			for i := range n - r.channels() {
				heard = r.dial().open(fmt.Sprint("c", i))
			}
			return heard
		},
		fine: "101", over: "503", counted: "requests_refused"},

	{name: "publishers", at: mostPublishers,
		use: func(r *room, n int) (heard string) {
			for range n - 1 { // the observer is one
				w := r.publisher()
				_, _ = w.Write([]byte("PING\r\n")) // it may be closed already
				heard = w.line()
			}
			return heard
		},
		fine: "+PONG", over: "-ERR max number of publishers reached", counted: "rejected_connections"},

	{name: "size of what is published", publish: "max_message = 100000", at: 100_000,
		use: func(r *room, n int) string {
			w := r.publisher()
			w.send(resp("PUBLISH", "news", strings.Repeat("x", n)))
			return w.line()
		},
		fine: ":0", over: "-ERR 100001 bytes are too long: a message has at most 100000 (publish.max_message)", counted: "error_replies"},

	{name: "rate of what is published", publish: "rate = 2", at: 2,
		use: func(r *room, n int) (heard string) { // above it is later, and not refused
			w := r.publisher()
			w.send(strings.Repeat(resp("PUBLISH", "news", "x"), n))
			for range n {
				heard = w.line()
			}
			return heard
		},
		fine: ":0", over: ":0", counted: "held_to_rate"},

	{name: "memory of what is half published", publish: "max_message = 100000\nmemory = 340000", at: 2, // buffers of 128 KiB
		use: func(r *room, n int) string {
			whole := resp("PUBLISH", "news", strings.Repeat("x", 100_000))
			for i := range n - 1 {
				r.publisher().send(whole[:90_000])
				r.observer.await("unfinished_bytes", func(bytes int) bool { return bytes >= (i+1)*100_000 })
			}
			w := r.publisher()
			w.send(whole)
			return w.line()
		},
		fine: ":0", over: "-ERR publish.memory is used up by commands that are not complete: send this one again", counted: "refused_for_memory"},

	{name: "channels, by publishers", at: 8, // those stay as long as the messages: the last row
		use: func(r *room, n int) string {
			w, last := r.publisher(), n-r.channels()
			for i := range last - 1 {
				r.dial().open(fmt.Sprint("c", i))
			}
			w.send(resp("PUBLISH", fmt.Sprint("p", n), "x"))
			return w.line()
		},
		fine: ":0", over: "-ERR too many channels: each of them has clients or messages in the log; log.channels sets the limit", counted: "error_replies"},
}

const mostPublishers = 5

// upstream lets clients publish, to local processes only.
const upstream = "\n[[channel]]\nmatch = \"up/*\"\nupstream = \"local\"\n"

// room is where a row is tried.
type room struct {
	*observer
	d     *harness.Daemon
	conns []net.Conn
}

func (r *room) dial() *wire {
	w := dial(r.t, "tcp", r.d.Address("websocket"))
	r.conns = append(r.conns, w)
	return w
}

func (r *room) publisher() *wire {
	w := dial(r.t, "unix", r.d.PublishSocket())
	r.conns = append(r.conns, w)
	return w
}

// clients opens n clients and returns the status of the last one.
func (r *room) clients(n int, headers func(i int) []string) (status string) {
	for i := range n {
		status = r.dial().open("news", headers(i)...)
	}
	return status
}

func (r *room) client() *wire {
	w := r.dial()
	if status := w.open("news"); status != "101" {
		r.t.Fatal(status)
	}
	return w
}

// talker is a client that sends commands.
func (r *room) talker() *wire {
	w := r.dial()
	if status := w.open("", "Sec-WebSocket-Protocol: wscast.v1.json"); status != "101" {
		r.t.Fatal(status)
	}
	w.hear() // the welcome
	return w
}

// say sends frames and returns what they are answered with.
func (w *wire) say(frames string) string {
	w.send(frames)
	return w.code()
}

// channels are there already.
func (r *room) channels() int { return r.figure("channels") }

// empty closes all connections, and returns when they are forgotten.
func (r *room) empty() {
	for _, c := range r.conns {
		c.Close()
	}
	r.conns = nil
	for _, key := range []string{"connected_clients", "opening", "closing"} {
		r.await(key, is(0))
	}
	r.await("connected_publishers", is(1))
}

func TestLimits(t *testing.T) {
	d := harness.Start(t, harness.Config(limit{}.configuration()))
	r := &room{observer: observe(t, d), d: d}
	for _, l := range limits {
		t.Run(l.name, func(t *testing.T) {
			r.t = t
			d.Configure(l.configuration())
			d.Signal(syscall.SIGHUP)
			d.AwaitNotification(func(line string) bool { return line == "READY=1" })
			for n := l.at - 1; n <= l.at+1; n++ {
				if n == 0 {
					continue // of what is never missing, as a request
				}
				before := r.figure(l.counted)
				want := l.fine
				if n > l.at {
					want = l.over
				}
				if heard := l.use(r, n); heard != want {
					t.Errorf("%d: heard %s, want %s", n, heard, want)
				}
				r.empty()
				if counted := r.figure(l.counted) - before; (counted > 0) != (n > l.at) {
					t.Errorf("%d: %s has grown by %d", n, l.counted, counted)
				}
			}
		})
	}
}

func (l limit) configuration() string {
	return fixedLimits + "[websocket]\n" + l.websocket + fmt.Sprintf("\n[publish]\nmax_connections = %d\n", mostPublishers) + l.publish + "\n" + map[bool]string{
		true: "max_message = 100000\n"}[!strings.Contains(l.publish, "max_message")] + l.channel
}

// The log keeps as many messages as its size has places for, and never more bytes: what is new pushes out what is oldest.
func TestLimitOfTheLog(t *testing.T) {
	d := harness.Start(t, harness.Config("[log]\nsize = \"1MiB\"\n[publish]\nmax_message = 1000\n"))
	o := observe(t, d)
	most := o.figure("messages_limit")
	w := dial(t, "unix", d.PublishSocket())
	published := 0
	publish := func(n int) {
		t.Helper()
		w.send(strings.Repeat(resp("PUBLISH", "news", "x"), n))
		for range n {
			if line := w.line(); line != ":0" {
				t.Fatal(line)
			}
		}
		published += n
	}
	kept := func(want int) {
		t.Helper()
		if n := o.figure("messages_kept"); n != want {
			t.Errorf("after %d messages %d are kept, want %d", published, n, want)
		}
	}
	publish(100)
	kept(100)
	for published < most+100 {
		publish(100)
	}
	if n := o.figure("messages_kept"); n > most || n < most/2 {
		t.Errorf("after %d messages %d are kept of at most %d", published, n, most)
	}
	if bytes, limit := o.figure("bytes_kept"), o.figure("bytes_limit"); bytes > limit || limit != 1<<20 {
		t.Errorf("%d bytes are kept of %d", bytes, limit)
	}
}
