package ipc

import (
	"bufio"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
)

func TestSubscribe(t *testing.T) {
	d := start(t)
	d.log.set(func(l *testLog) { l.clients["a"] = 2 })
	sub, pub := d.connect(t), d.connect(t)
	sub.send("SUBSCRIBE a b a\r\nPSUBSCRIBE a* ?\r\nSSUBSCRIBE a\r\n")
	sub.expect("*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n*3\r\n$9\r\nsubscribe\r\n$1\r\nb\r\n:2\r\n*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:2\r\n" +
		"*3\r\n$10\r\npsubscribe\r\n$2\r\na*\r\n:3\r\n*3\r\n$10\r\npsubscribe\r\n$1\r\n?\r\n:4\r\n*3\r\n$10\r\nssubscribe\r\n$1\r\na\r\n:1\r\n")
	sub.send("PUNSUBSCRIBE ?\r\n")
	sub.expect("*3\r\n$12\r\npunsubscribe\r\n$1\r\n?\r\n:3\r\n")
	pub.send("PUBLISH a one\r\nPUBLISH b two\r\nPUBLISH ab three\r\nPUBLISH c four\r\n")
	pub.expect(":5\r\n:1\r\n:1\r\n:0\r\n") // a: two clients, by name, by shard, by pattern
	sub.expect("*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$3\r\none\r\n*3\r\n$8\r\nsmessage\r\n$1\r\na\r\n$3\r\none\r\n*4\r\n$8\r\npmessage\r\n$2\r\na*\r\n$1\r\na\r\n$3\r\none\r\n" +
		"*3\r\n$7\r\nmessage\r\n$1\r\nb\r\n$3\r\ntwo\r\n*4\r\n$8\r\npmessage\r\n$2\r\na*\r\n$2\r\nab\r\n$5\r\nthree\r\n")
	pub.send("PUBSUB NUMSUB a b zz\r\nPUBSUB NUMPAT\r\nPUBSUB CHANNELS\r\nPUBSUB CHANNELS b*\r\nPUBSUB SHARDNUMSUB\r\n")
	pub.expect("*6\r\n$1\r\na\r\n:4\r\n$1\r\nb\r\n:1\r\n$2\r\nzz\r\n:0\r\n:1\r\n*2\r\n$1\r\na\r\n$1\r\nb\r\n*1\r\n$1\r\nb\r\n*0\r\n")
	if st := d.Stats(); st.Publishers != 2 || st.Subscribers != 1 {
		t.Errorf("%+v", st)
	}
	if n := d.log.following(); n != 1 {
		t.Errorf("%d follow the log for one subscriber", n)
	}
	// A RESP2 subscriber may do little else.
	sub.send("PUBLISH a x\r\nPING\r\nPING y\r\nFOO\r\nPING\r\n")
	sub.expect("-ERR Can't execute 'publish': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / RESET are allowed in this context\r\n" +
		"*2\r\n$4\r\npong\r\n$0\r\n\r\n*2\r\n$4\r\npong\r\n$1\r\ny\r\n")
	sub.expectError("ERR unknown command 'FOO'")
	sub.expect("*2\r\n$4\r\npong\r\n$0\r\n\r\n")
	sub.send("UNSUBSCRIBE b\r\nUNSUBSCRIBE\r\nPUNSUBSCRIBE zz\r\nSUNSUBSCRIBE\r\nPUNSUBSCRIBE a*\r\nUNSUBSCRIBE\r\nPING\r\n")
	sub.expect("*3\r\n$11\r\nunsubscribe\r\n$1\r\nb\r\n:2\r\n*3\r\n$11\r\nunsubscribe\r\n$1\r\na\r\n:1\r\n*3\r\n$12\r\npunsubscribe\r\n$2\r\nzz\r\n:1\r\n*3\r\n$12\r\nsunsubscribe\r\n$1\r\na\r\n:0\r\n" +
		"*3\r\n$12\r\npunsubscribe\r\n$2\r\na*\r\n:0\r\n*3\r\n$11\r\nunsubscribe\r\n$-1\r\n:0\r\n+PONG\r\n")
	if n := d.log.following(); n != 0 {
		t.Errorf("%d follow the log after the last subscription", n)
	}
	pub.send("PUBLISH a x\r\nPUBSUB NUMPAT\r\nPUBSUB NUMSUB b\r\n")
	pub.expect(":2\r\n:0\r\n*2\r\n$1\r\nb\r\n:0\r\n")
}

// With RESP3 messages are pushes, and every command goes on to work.
func TestSubscribeRESP3(t *testing.T) {
	d := start(t)
	s := d.connect(t)
	s.send("HELLO 3\r\n")
	s.expect("%7\r\n")
	for range 25 { // its fields
		s.line()
	}
	s.send("CLIENT REPLY OFF\r\nSUBSCRIBE a\r\nCLIENT REPLY ON\r\nPING\r\n") // confirmations are pushes: they come in any case
	s.expect(">3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n+OK\r\n+PONG\r\n")
	s.send("PUBLISH b x\r\n")
	s.expect(":0\r\n")
	other := d.connect(t)
	other.send("PUBLISH a one\r\n")
	other.expect(":1\r\n")
	s.expect(">3\r\n$7\r\nmessage\r\n$1\r\na\r\n$3\r\none\r\n")
	s.send("UNSUBSCRIBE\r\nUNSUBSCRIBE\r\nSUBSCRIBE a\r\nRESET\r\nPUBLISH a x\r\n")
	s.expect(">3\r\n$11\r\nunsubscribe\r\n$1\r\na\r\n:0\r\n>3\r\n$11\r\nunsubscribe\r\n_\r\n:0\r\n>3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n+RESET\r\n:0\r\n")
}

// Only what is published after the confirmation counts, also where the connection follows the log already.
func TestSubscribeFromNow(t *testing.T) {
	d := start(t)
	pub := d.connect(t)
	pub.send("PUBLISH a before\r\n")
	pub.expect(":0\r\n")
	sub := d.connect(t)
	sub.send("SUBSCRIBE other\r\n")
	sub.expect("*3\r\n$9\r\nsubscribe\r\n$5\r\nother\r\n:1\r\n")
	for i := range 200 {
		pub.send(fmt.Sprintf("PUBLISH a early\r\nPUBLISH a early%d\r\n", i))
		pub.expect(":0\r\n:0\r\n")
		sub.send("SUBSCRIBE a\r\n")
		sub.expect("*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:2\r\n")
		pub.send("PUBLISH a now\r\n")
		pub.expect(":1\r\n")
		sub.expect("*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$3\r\nnow\r\n")
		sub.send("UNSUBSCRIBE a\r\n")
		sub.expect("*3\r\n$11\r\nunsubscribe\r\n$1\r\na\r\n:1\r\n")
	}
}

// Several publishers, a subscriber that comes and goes on one connection: each sees each publisher's messages in
// order.
func TestSubscribeOrder(t *testing.T) {
	for _, plain := range []bool{false, true} {
		t.Run(fmt.Sprintf("plain=%v", plain), func(t *testing.T) {
			d := start(t)
			d.log.set(func(l *testLog) { l.plain = plain })
			sub := d.connect(t)
			sub.send("PSUBSCRIBE *\r\n")
			sub.expect("*3\r\n$10\r\npsubscribe\r\n$1\r\n*\r\n:1\r\n")
			const publishers, each = 4, 500
			var done sync.WaitGroup
			for p := range publishers {
				pub := d.connect(t)
				done.Go(func() {
					for i := range each {
						fmt.Fprintf(pub, "PUBLISH c%d %d\r\n", p, i)
					}
					for range each {
						pub.expect(":1\r\n")
					}
				})
			}
			next := make(map[string]int)
			for range publishers * each {
				sub.expect("*4\r\n$8\r\npmessage\r\n$1\r\n*\r\n$2\r\n")
				channel := sub.line()
				if got := sub.expectBulk(); got != fmt.Sprint(next[channel]) {
					t.Fatalf("channel %s: got %s, want %d", channel, got, next[channel])
				}
				next[channel]++
			}
			done.Wait()
		})
	}
}

// A subscriber that falls out of the log is told and closed, and nobody else notices.
func TestSubscriberFallsBehind(t *testing.T) {
	log, lines := events()
	d := start(t, func(s *Server) { s.Log = log })
	sub, pub := d.connect(t), d.connect(t)
	sub.send("SUBSCRIBE a\r\n")
	sub.expect("*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n")
	message := array("PUBLISH", "a", strings.Repeat("x", 100<<10))
	for range 40 { // 4 MB: more than a socket holds
		pub.send(message)
		pub.expect(":1\r\n")
	}
	d.log.forget()
	var last string
	in := bufio.NewScanner(sub.r)
	in.Buffer(nil, 1<<20)
	for in.Scan() {
		last = in.Text()
	}
	if last != "-ERR slow: the log has moved on" {
		t.Errorf("the last line is %.100q (%v)", last, in.Err())
	}
	await(t, lines, "the log has moved on past it")
	pub.send("PUBLISH a x\r\n")
	pub.expect(":0\r\n")
	if st := d.Stats(); st.Slow != 1 {
		t.Errorf("%+v", st)
	}
}

// Subscribing and unsubscribing while messages come mixes nothing up.
func TestSubscribeChurn(t *testing.T) {
	d := start(t)
	stop := make(chan struct{})
	var done sync.WaitGroup
	done.Go(func() {
		pub := d.connect(t)
		for {
			select {
			case <-stop:
				return
			default:
				fmt.Fprint(pub, strings.Repeat("PUBLISH a hello\r\n", 20))
				for range 20 {
					if _, err := pub.r.ReadString('\n'); err != nil {
						t.Error(err)
						return
					}
				}
			}
		}
	})
	s := d.connect(t)
	go io.WriteString(s, strings.Repeat("SUBSCRIBE a\r\nPSUBSCRIBE a*\r\nPING\r\nUNSUBSCRIBE\r\nPUNSUBSCRIBE\r\nPING\r\n", 300)+"QUIT\r\n")
	subscribed := 0
	for {
		line := s.line()
		switch line {
		case "+OK":
			close(stop)
			done.Wait()
			return
		case "+PONG":
			if subscribed != 0 {
				t.Fatal("a PONG of the wrong kind")
			}
			continue
		}
		if line != "*2" && line != "*3" && line != "*4" {
			t.Fatalf("got %q", line)
		}
		switch kind := s.expectBulk(); kind {
		case "pong":
			s.expect("$0\r\n\r\n")
		case "subscribe", "psubscribe", "unsubscribe", "punsubscribe":
			s.expectBulk()
			if _, err := fmt.Sscanf(s.line(), ":%d", &subscribed); err != nil {
				t.Fatal(err)
			}
		case "message":
			if subscribed == 0 {
				t.Fatal("a message after the last unsubscribe")
			}
			s.expect("$1\r\na\r\n$5\r\nhello\r\n")
		case "pmessage":
			s.expect("$2\r\na*\r\n$1\r\na\r\n$5\r\nhello\r\n")
		default:
			t.Fatalf("got %q", kind)
		}
	}
}
