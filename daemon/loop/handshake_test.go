package loop

import (
	"net"
	"strings"
	"testing"

	"wscast/daemon/frame"
	"wscast/daemon/msglog"
)

// everyway runs a test over TCP and over a Unix-domain socket: both can be between a proxy and the daemon.
func everyway(t *testing.T, test func(t *testing.T, connect func(*rig) *wire)) {
	t.Run("tcp", func(t *testing.T) { test(t, (*rig).dial) })
	t.Run("unix", func(t *testing.T) { test(t, func(r *rig) *wire { return r.pair(0) }) })
}

func TestHandshake(t *testing.T) {
	everyway(t, func(t *testing.T, connect func(*rig) *wire) {
		r := start(t)
		c := connect(r).join("news")
		if n := r.publish("news", "hello"); n != 1 {
			t.Errorf("the message goes to %d clients, want 1", n)
		}
		c.expectText("hello")
		r.until("counted", func(s Stats) bool { return s.Handshakes == 1 && s.Clients == 1 && s.Opening == 0 && s.Deliveries == 1 })
	})
}

func TestHandshakeComesByteByByte(t *testing.T) {
	everyway(t, func(t *testing.T, connect func(*rig) *wire) {
		r := start(t)
		c := connect(r)
		for _, b := range strings.Split(request("news"), "") {
			c.send(b)
			r.turned()
		}
		c.expect(upgraded)
		r.publish("news", "hello")
		c.expectText("hello")
	})
}

func TestGreetingComesWithTheAnswer(t *testing.T) {
	greeting := append(frame.AppendHeader(nil, frame.Text, 2), "hi"...)
	r := start(t, entrance(&door{greeting: greeting}))
	c := r.dial().join("news")
	r.publish("news", "hello")
	c.expectText("hi")
	c.expectText("hello")
}

func TestFramesBehindTheRequest(t *testing.T) {
	everyway(t, func(t *testing.T, connect func(*rig) *wire) {
		r := start(t)
		c := connect(r)
		c.send(request("news"), masked(pingOp, "there?"), masked(text, "data"), closeFrame(1000, ""))
		c.expect(upgraded)
		c.expectFrame(frame.Pong, "there?")
		c.expectClose(1000)
		c.Close()
		r.until("gone", func(s Stats) bool { return s.Clients == 0 && s.Received == 1 && s.Closed[closeNormal] == 1 })
	})
}

func TestHalfAFrameBehindTheRequest(t *testing.T) {
	r := start(t)
	c := r.dial()
	ping := masked(pingOp, "there?")
	c.send(request("news"), ping[:5])
	c.expect(upgraded)
	c.send(ping[5:])
	c.expectFrame(frame.Pong, "there?")
}

func TestLargestRequest(t *testing.T) {
	r := start(t)
	c := r.dial()
	head := "GET /news HTTP/1.1\r\nX: "
	c.send(head, strings.Repeat("x", defaultRequest-len(head)-4), "\r\n\r\n", masked(pingOp, ""))
	c.expect(upgraded)
	c.expectFrame(frame.Pong, "")
}

func TestRequestTooLarge(t *testing.T) {
	everyway(t, func(t *testing.T, connect func(*rig) *wire) {
		r := start(t)
		c := connect(r)
		// More than is looked at: what is not read must not reset the connection.
		c.send("GET /news HTTP/1.1\r\nX: ", strings.Repeat("x", 5*defaultRequest))
		c.expect("HTTP/1.1 431\r\n\r\nthe request head has more than 8192 bytes\n")
		c.expectEnd()
		c.Close()
		r.until("gone", func(s Stats) bool { return s.Clients == 0 && s.Refused == 1 })
	})
}

func TestRequestInTime(t *testing.T) {
	everyway(t, func(t *testing.T, connect func(*rig) *wire) {
		r := start(t, with(brisk))
		c := connect(r)
		c.send("GET /news HTT")
		c.expect("HTTP/1.1 408\r\n\r\nthe request did not arrive in time\n")
		c.expectEnd()
		c.Close()
		r.until("gone", func(s Stats) bool { return s.Clients == 0 && s.TimedOut == 1 })
	})
}

// A loop without clients does not follow the clock. The first client's time counts from when it came nevertheless.
func TestFirstClientAfterALongTime(t *testing.T) {
	config := patient
	config.HandshakeTimeout = patienceOfTests * 10
	r := start(t, with(config)).byHand()
	r.loops.ticks.Add(1 << 20)
	c := r.dial()
	r.until("in", func(s Stats) bool { return s.Clients == 1 })
	r.turned()
	c.join("news")
}

func TestRefusedRequest(t *testing.T) {
	everyway(t, func(t *testing.T, connect func(*rig) *wire) {
		r := start(t)
		c := connect(r)
		c.send(request("no/where"), "what comes behind it is not looked at")
		c.expect("HTTP/1.1 404\r\n\r\nno such place\n")
		c.expectEnd()
		c.Close()
		r.until("gone", func(s Stats) bool { return s.Clients == 0 && s.Refused == 1 && s.Closing == 0 })
	})
}

// A page that does not fit into the socket is sent as a whole, also to a client that has nothing more to say.
func TestLargeAnswerToAHalfClosedConnection(t *testing.T) {
	body := []byte(strings.Repeat("page ", 1<<20))
	everyway(t, func(t *testing.T, connect func(*rig) *wire) {
		r := start(t, entrance(&door{body: body}))
		c := connect(r)
		c.send(request("no/page"))
		r.until("blocked", func(s Stats) bool { return s.Blocked == 1 })
		if err := c.Conn.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		r.turned()
		c.expect("HTTP/1.1 404\r\n\r\nno such place\n")
		c.expect(string(body))
		c.expectEnd()
		r.until("gone", func(s Stats) bool { return s.Clients == 0 && s.Blocked == 0 })
	})
}

func TestGoneInTheMiddleOfTheRequest(t *testing.T) {
	everyway(t, func(t *testing.T, connect func(*rig) *wire) {
		r := start(t)
		c := connect(r)
		c.send("GET /news")
		r.until("opening", func(s Stats) bool { return s.Opening == 1 })
		c.Close()
		r.until("gone", func(s Stats) bool { return s.Clients == 0 && s.Opening == 0 })
	})
}

func TestGoneBeforeTheRequest(t *testing.T) {
	r := start(t)
	r.dial().Close()
	reset := r.dial()
	reset.Conn.(*net.TCPConn).SetLinger(0)
	reset.Close()
	c := r.dial().join("news")
	r.until("alone", func(s Stats) bool { return s.Clients == 1 })
	r.publish("news", "hello")
	c.expectText("hello")
}

// Request and end come at once: the request is answered, and then the client is gone.
func TestRequestAndEndAtOnce(t *testing.T) {
	everyway(t, func(t *testing.T, connect func(*rig) *wire) {
		r := start(t, loopsOf(1))
		leave := r.busy()
		c := connect(r)
		c.send(request("news"), masked(pingOp, "x"), closeFrame(4000, "bye"))
		c.Conn.(interface{ CloseWrite() error }).CloseWrite()
		leave()
		c.expect(upgraded)
		c.expectFrame(frame.Pong, "x")
		c.expectClose(4000)
		r.until("gone", func(s Stats) bool { return s.Opening == 0 && s.Closed[closeNormal] == 1 })
	})
}

func TestTooManyChannels(t *testing.T) {
	r := start(t, func(_ *rig, _ *int, o *msglog.Options, _ *system) { o.Channels = 1 })
	r.dial().join("one")
	c := r.dial()
	c.send(request("two"))
	c.expect("HTTP/1.1 503\r\n\r\ntoo many channels")
}
