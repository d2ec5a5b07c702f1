package ipc

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// Each limit of one connection, below it, at it, and above it. What is over it is refused, and the connection goes on, or the
// connection ends where nothing behind it could be trusted.
func TestLimits(t *testing.T) {
	const maxMessage = 100_000
	many := func(command string, n int) string {
		words := []string{command}
		for i := range n {
			words = append(words, fmt.Sprint("c", i))
		}
		return array(words...)
	}
	for name, test := range map[string]struct {
		limit   int
		command func(n int) string
		answer  string // a line that begins with this, when it is not over the limit
		over    string
		ends    bool
	}{
		"message": {maxMessage, func(n int) string { return array("PUBLISH", "a", strings.Repeat("x", n)) }, ":0", "ERR 100001 bytes are too long: a message has at most 100000", false},
		"channel": {MaxChannel, func(n int) string { return array("PUBLISH", strings.Repeat("x", n), "") }, ":0", "ERR bad channel", false},
		"inline command": {maxInline - 1, func(n int) string { return "PUBLISH a " + strings.Repeat("x", n-len("PUBLISH a \n")+1) + "\n" }, ":0",
			"ERR Protocol error: too big inline request", true},
		"arguments": {maxArguments, func(n int) string {
			return fmt.Sprintf("*%d\r\n$4\r\nPING\r\n$%d\r\n", n, maxMessage+1) + strings.Repeat("x", maxMessage+1) + "\r\n" + strings.Repeat("$0\r\n\r\n", n-2)
		}, "-ERR 100001 bytes are too long", "ERR Protocol error: invalid multibulk length", true},
		"command": {maxMessage + commandAllowed, func(n int) string {
			end := "\r\n$100000\r\n" + strings.Repeat("x", maxMessage)
			begin := "*4\r\n$7\r\nPUBLISH\r\n$1\r\na\r\n$65000\r\n"
			return begin[:len(begin)-len("$65000\r\n")] + fmt.Sprintf("$%d\r\n", n-len(begin)-len(end)) + strings.Repeat("y", n-len(begin)-len(end)) + end + "\r\n"
		}, "-ERR wrong number of arguments", "ERR command too long: more than 165536 bytes", false},
		"channels of a subscriber": {maxSubscriptions, func(n int) string { return many("SUBSCRIBE", n) }, "*3", "ERR too many subscriptions", false},
		"patterns of a subscriber": {maxPatterns, func(n int) string { return many("PSUBSCRIBE", n) }, "*3", "ERR too many subscriptions", false},
		"pattern":                  {maxPattern, func(n int) string { return array("PSUBSCRIBE", strings.Repeat("x", n)) }, "*3", "ERR pattern too long", false},
		"connection's name":        {maxName, func(n int) string { return array("CLIENT", "SETNAME", strings.Repeat("x", n)) }, "+OK", "ERR Client names cannot contain", false},
	} {
		t.Run(name, func(t *testing.T) {
			d := start(t, func(s *Server) { s.SetMaxMessage(maxMessage) })
			for _, n := range []int{test.limit - 1, test.limit, test.limit + 1} {
				s := d.connect(t)
				sent := make(chan struct{})
				go func() { // it is answered before it has been read to its end, or not at all
					defer close(sent)
					s.Write([]byte(test.command(n)))
					s.Write([]byte("PING end\r\n"))
				}()
				want := test.answer
				if n > test.limit {
					want = "-" + test.over
				}
				if line := s.line(); !strings.HasPrefix(line, want) {
					t.Errorf("%d: got %.100q, want %.100q", n, line, want)
				}
				if n > test.limit && test.ends {
					s.expectClosed()
				} else {
					for s.line() != "end" {
					}
				}
				s.Close()
				<-sent
			}
		})
	}
}

func TestPublishersAreLimited(t *testing.T) {
	const limit = 3
	d := start(t, func(s *Server) { s.MaxConns = limit })
	var all []*session
	for range limit { // below the limit, and at it
		s := d.connect(t)
		s.expectPong()
		all = append(all, s)
	}
	over := d.connect(t)
	over.expect("-ERR max number of publishers reached\r\n")
	over.expectClosed()
	if st := d.Stats(); st.Publishers != limit || st.Refused != 1 {
		t.Errorf("%+v", st)
	}
	all[0].send("QUIT\r\n")
	all[0].expect("+OK\r\n")
	all[0].expectClosed()
	d.connect(t).expectPong() // there is room again
	all[1].expectPong()
}

func TestPace(t *testing.T) {
	now := time.Now()
	var p pace
	const interval = time.Second / 4 // 4 a second
	for n := 1; n <= 3; n++ {        // below
		if wait := p.took(interval, now); wait > 0 {
			t.Fatalf("message %d waits for %v", n+1, wait)
		}
	}
	if wait := p.took(interval, now); wait != interval { // at the limit: the next one is over it
		t.Fatalf("message 5 waits for %v, want %v", wait, interval)
	}
	for range 100 { // in the long run, one every interval
		now = now.Add(interval)
		if wait := p.took(interval, now); wait != interval {
			t.Fatalf("waits for %v, want %v", wait, interval)
		}
	}
	now = now.Add(time.Hour) // what is not used is kept for a second
	for n := 1; n <= 4; n++ {
		if wait := p.took(interval, now); (wait > 0) != (n == 4) {
			t.Fatalf("after an hour message %d waits for %v", n+1, wait)
		}
	}
	var slow pace // less than one a second does not come to a stop
	if wait := slow.took(time.Hour, now); wait != time.Hour {
		t.Errorf("waits for %v", wait)
	}
}

// hourly lets through one message, and the next one an hour later.
func hourly(s *Server) { s.interval.Store(int64(time.Hour)) }

// What is over the rate is not executed, nor anything behind it; other publishers are not concerned.
func TestPublishRate(t *testing.T) {
	d := start(t, hourly)
	s, other := d.connect(t), d.connect(t)
	s.send("PING\r\nPUBLISH news first\r\nPUBLISH news second\r\nPING\r\n")
	s.expect("+PONG\r\n:0\r\n")
	other.send("PUBLISH news other\r\n")
	other.expect(":0\r\n")
	if n := len(d.log.published()); n != 2 {
		t.Errorf("%d messages are in the log, want one of each", n)
	}
	d.Close() // which does not wait for the hour
	s.expectClosed()
}

// What the rate holds back is executed after a restart, each once.
func TestPublishRateOverARestart(t *testing.T) {
	change := hourly
	d := start(t, func(s *Server) { change(s) })
	s := d.connect(t)
	s.send(strings.Repeat("PUBLISH news x\r\n", 5) + "PUBLISH news la")
	s.expect(":0\r\n")
	d.restart(t)
	s.expect(":0\r\n")
	if n := len(d.log.published()); n != 2 {
		t.Errorf("%d messages are in the log, want one of each server", n)
	}
	change = func(*Server) {}
	d.restart(t)
	s.send("st\r\n")
	s.expect(strings.Repeat(":0\r\n", 4))
	if m := d.log.published(); len(m) != 6 || string(m[5].Data) != "last" {
		t.Errorf("%v are in the log", m)
	}
}

func TestSetPublishRate(t *testing.T) {
	var s Server
	for rate, want := range map[int]time.Duration{-1: 0, 0: 0, 1: time.Second, 4: 250 * time.Millisecond, 1_000_000: time.Microsecond} {
		s.SetPublishRate(rate)
		if got := time.Duration(s.interval.Load()); got != want {
			t.Errorf("%d a second are one every %v, want %v", rate, got, want)
		}
	}
	d := start(t, func(s *Server) { s.SetPublishRate(50) })
	c := d.connect(t)
	c.send(strings.Repeat("PUBLISH news x\r\n", 60)) // all of them, in time
	c.expect(strings.Repeat(":0\r\n", 60))
}

// A command that stops in the middle ends its connection; one that is whole, and none at all, may stand for ever.
func TestUnfinishedCommand(t *testing.T) {
	for _, part := range []string{
		"PUB", "\"", "*", "*3\r\n", "*3\r\n$7\r\nPUBLISH\r\n$1\r\na\r\n$100\r\nhello", "*3\r\n$7\r\nPUBLISH\r\n$1\r\na\r\n$5\r\nhello\r",
		"*2\r\n$7\r\nPUBLISH\r\n$9999999\r\n" + strings.Repeat("x", 100<<10), // being skipped
	} {
		t.Run(fmt.Sprintf("%.20q", part), func(t *testing.T) {
			log, lines := events()
			d := start(t, func(s *Server) { s.CommandTimeout = 50 * time.Millisecond; s.Log = log })
			idle, s := d.connect(t), d.connect(t)
			idle.expectPong()
			s.send("PING\r\n" + part)
			s.expect("+PONG\r\n")
			s.expectError("ERR Protocol error: the command is not complete after 50ms")
			s.expectClosed()
			await(t, lines, "publisher closed: it has begun a command and not finished it")
			if st := d.Stats(); st.Unfinished != 1 || st.Publishers != 1 {
				t.Errorf("%+v", st)
			}
			idle.expectPong()
		})
	}
}

// A command that comes in pieces and becomes whole is not held against the connection afterwards.
func TestCommandInPieces(t *testing.T) {
	d := start(t, func(s *Server) { s.CommandTimeout = 2 * time.Second })
	s, later := d.connect(t), d.connect(t)
	for range 10 {
		s.send("PI")
		s.send("NG\r\nPI")
		s.send("NG\r\n")
		s.expect("+PONG\r\n+PONG\r\n")
	}
	later.send("PI")
	later.expectError("ERR Protocol error: the command is not complete")
	s.expectPong() // for which the time would have been up earlier
}

// Stopping does not wait for a command to become whole, and a restart gives it its time again.
func TestUnfinishedCommandOverARestart(t *testing.T) {
	d := start(t, func(s *Server) { s.CommandTimeout = time.Hour })
	s := d.connect(t)
	s.send("PING\r\nPUBLISH news hal")
	s.expect("+PONG\r\n")
	d.restart(t)
	s.send("f\r\n")
	s.expect(":0\r\n")
	if m := d.log.published(); len(m) != 1 || string(m[0].Data) != "half" {
		t.Errorf("%v are in the log", m)
	}
	s.send("PING\r\nPUBLISH news hal")
	s.expect("+PONG\r\n")
	d.Close()
	s.expectClosed()
}

// A subscriber that does not read, and has begun a command, does not stay for its reading.
func TestUnfinishedCommandOfASubscriber(t *testing.T) {
	d := start(t, func(s *Server) { s.CommandTimeout = 2 * time.Second })
	s, p := d.connect(t), d.connect(t)
	s.send("SUBSCRIBE news\r\nPI")
	s.expect("*3\r\n$9\r\nsubscribe\r\n$4\r\nnews\r\n:1\r\n")
	for range 3 { // more than the socket takes
		p.send(array("PUBLISH", "news", strings.Repeat("x", 1<<20)))
		p.expect(":1\r\n")
	}
	s.send("N") // which waits for the message to be written
	for d.Stats().Publishers > 1 {
		p.expectPong()
	}
}
