package ipc

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// taken waits until the server has read all that was sent: the kernel tells the sender (SIOCOUTQ, unix(7)).
func (s *session) taken() {
	s.t.Helper()
	raw, err := s.SyscallConn()
	if err != nil {
		s.t.Fatal(err)
	}
	for limit := time.Now().Add(deadline); ; runtime.Gosched() {
		left := 0
		if failed := raw.Control(func(fd uintptr) { left, err = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) }); failed != nil || err != nil {
			s.t.Fatal(failed, err)
		}
		if left == 0 {
			return
		}
		if time.Now().After(limit) {
			s.t.Fatalf("the server has not read the last %d bytes", left)
		}
	}
}

// conversation uses everything that a connection keeps between two commands. Its subscriptions are to channels on which
// nothing is published, so that the order of what comes back is certain.
var conversation = "PING\r\n\r\n" + array("PUBLISH", "news", "hello\r\n") + "CLIENT SETNAME joe\nCLIENT SETINFO LIB-NAME lib\r\nCLIENT SETINFO LIB-VER 7\r\n*0\r\n" +
	array("CLIENT", "REPLY", "SKIP") + array("ECHO", "not heard") + "ECHO heard\r\nCLIENT REPLY OFF\r\nPUBLISH news quietly\r\nFOO\r\nCLIENT REPLY ON\r\n" +
	"CLIENT TRACKING ON OPTIN\r\nCLIENT TRACKINGINFO\r\nHELLO 3\r\nCLIENT TRACKINGINFO\r\nCLIENT GETNAME\r\nCLIENT ID\r\n" +
	"SUBSCRIBE a b\r\n" + array("PSUBSCRIBE", "\xff*") + "SSUBSCRIBE s\r\nPUBSUB CHANNELS\r\nPUBSUB NUMPAT\r\nPUBLISH news 'a b'\r\nUNSUBSCRIBE a\r\nHELLO 2\r\nPUBLISH news refused\r\nPING\r\n" +
	"UNSUBSCRIBE\r\nPUNSUBSCRIBE\r\nSUNSUBSCRIBE\r\nGET x\r\nPUBLISH 'bad channel' x\r\nCLIENT GETNAME\r\nRESET\r\nCLIENT GETNAME\r\nPUBLISH news last\r\n*1\r\nnonsense"

// talk sends text, with a restart at each of these places, and returns all that comes back, and what was published.
func talk(t *testing.T, text string, restarts []int) (answers string, published []Message) {
	t.Helper()
	d := start(t)
	d.log.set(func(l *testLog) { l.clients["news"] = 2 })
	s := d.connect(t)
	read := make(chan []byte, 1)
	go func() {
		b, _ := io.ReadAll(s.r) // ECONNRESET after the protocol error: the answers have come
		read <- b
	}()
	from := 0
	for _, at := range restarts {
		s.send(text[from:at])
		s.taken()
		d.restart(t)
		from = at
	}
	s.send(text[from:])
	s.CloseWrite()
	answers = string(<-read)
	d.Close()
	return answers, d.log.published()
}

// Wherever a restart cuts a pipelined conversation, what comes back and what is published is the same.
func TestSuspendAnywhere(t *testing.T) {
	want, published := talk(t, conversation, nil)
	if !strings.HasSuffix(want, "+RESET\r\n$-1\r\n:2\r\n-ERR Protocol error: expected '$', got 'n'\r\n") || len(published) != 4 {
		t.Fatalf("without a restart: %q, %d messages", want, len(published))
	}
	check := func(t *testing.T, restarts []int) {
		t.Helper()
		got, messages := talk(t, conversation, restarts)
		if got != want || !reflect.DeepEqual(messages, published) {
			t.Fatalf("with restarts at %v (last after %q):\ngot  %q, %d messages\nwant %q, %d", restarts, conversation[:restarts[len(restarts)-1]], got, len(messages), want, len(published))
		}
	}
	end := strings.Index(conversation, "nonsense") // after it the connection is closed
	t.Run("each byte", func(t *testing.T) {
		for at := 0; at <= end; at++ {
			check(t, []int{at})
		}
	})
	t.Run("every byte", func(t *testing.T) {
		var all []int
		for at := 0; at <= end; at++ {
			all = append(all, at)
		}
		check(t, all)
	})
}

// A restart in a long message, or in one that is too long and is being dropped, changes nothing.
func TestSuspendInLongMessage(t *testing.T) {
	long := array("PUBLISH", "news", strings.Repeat("0123456789abcdef", DefaultMaxMessage/16))
	over := array("PUBLISH", "news", strings.Repeat("x", DefaultMaxMessage+1))
	twice := array("ECHO", strings.Repeat("x", 70<<10), "y", strings.Repeat("z", 2<<20), "")
	for name, command := range map[string]string{"whole": long, "too long": over, "several arguments": twice} {
		text := "PING\r\n" + command + array("ECHO", "after")
		want, published := talk(t, text, nil)
		end := len("PING\r\n") + len(command)
		places := []int{100, 70 << 10, len(text) / 2, DefaultMaxMessage}
		for at := end - 20; at <= end+2; at++ {
			places = append(places, at)
		}
		for _, restarts := range append([][]int{places}, []int{40}, []int{len(text) / 3}, []int{end - 1}) {
			got, messages := talk(t, text, slices.Compact(slices.Sorted(slices.Values(restarts))))
			if got != want || !reflect.DeepEqual(messages, published) {
				t.Errorf("%s, restarts at %v: got %.200q and %d messages, want %.200q and %d", name, restarts, got, len(messages), want, len(published))
			}
		}
	}
}

// A publisher that does not read in time finds every answer, whole and once, after two restarts; what it had sent and
// was not executed is executed then.
func TestSuspendUnread(t *testing.T) {
	t.Parallel() // Suspend waits for the peer
	d := start(t)
	s := d.connect(t)
	s.send("COMMAND DOCS\r\nECHO end\r\n")
	docs := s.line() + "\r\n"
	for line := ""; line != "end"; docs += line + "\r\n" {
		line = s.line()
	}
	const n = 600 // 10 kB of commands, which are read at once, and 1 MB of answers, which no socket holds
	var commands strings.Builder
	for i := range n {
		fmt.Fprintf(&commands, "COMMAND DOCS\nPUBLISH a %d\n", i)
	}
	s.send(commands.String())
	s.expect("*")
	docs = strings.TrimSuffix(docs, "$3\r\nend\r\n")
	for range 2 {
		all := d.suspend(t)
		if st := decoded(t, all[0]); len(st.unsent) == 0 || !st.timed || len(st.in.bytes) == 0 || len(all) != 1 {
			t.Fatalf("%d bytes are unsent, %d not executed", len(st.unsent), len(st.in.bytes))
		}
		d.resume(t, all)
	}
	s.expect(docs[1:] + ":0\r\n" + strings.Repeat(docs+":0\r\n", n-1))
	s.send("PING\r\n")
	s.expect("+PONG\r\n")
	for i, m := range d.log.published() {
		if string(m.Data) != fmt.Sprint(i) {
			t.Fatalf("message %d is %q", i, m.Data)
		}
	}
	if got := d.log.Head(); got != n {
		t.Errorf("%d messages have been published", got)
	}
}

// An answer much longer than what is written at once is cut off in its middle, and comes whole.
func TestSuspendInAnswer(t *testing.T) {
	t.Parallel() // Suspend waits for the peer
	d := start(t)
	s := d.connect(t)
	const n = 100_000
	s.send(array(append([]string{"PUBSUB", "NUMSUB"}, slices.Repeat([]string{"a"}, n)...)...) + "QUIT\r\nPING\r\n")
	s.expect("*200000\r\n")
	d.restart(t)
	s.expect(strings.Repeat("$1\r\na\r\n:0\r\n", n) + "+OK\r\n")
	s.expectClosed()
}

// A connection that is ending gets its last answers, and then ends, whatever was still to be read.
func TestSuspendEnding(t *testing.T) {
	t.Parallel() // Suspend waits for the peer
	d := start(t)
	d.suspend(t)
	s := d.connect(t)
	sock, err := d.l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	c, err := newConn(d.Server, sock, Peer{})
	if err != nil {
		t.Fatal(err)
	}
	fd, err := c.detach()
	if err != nil {
		t.Fatal(err)
	}
	long := strings.Repeat("0123456789abcdef", 64<<10)
	st := &state{id: 1, lastID: 1, unsent: []byte(long), timed: true, ending: true, in: inputState{bytes: []byte("PING\r\n")}}
	d.resume(t, []Suspended{{fd, st.encode()}})
	s.expect(long[:10])
	all := d.suspend(t)
	if st := decoded(t, all[0]); !st.ending || !st.timed || len(st.unsent) == 0 || !strings.HasSuffix(long, string(st.unsent)) {
		t.Errorf("ending is %v, %d bytes are unsent", st.ending, len(st.unsent))
	}
	d.resume(t, all)
	s.expect(long[10:])
	s.expectClosed()
}

// A peer that hangs up while nobody serves it is forgotten.
func TestSuspendHungUp(t *testing.T) {
	d := start(t)
	s, other := d.connect(t), d.connect(t)
	for _, s := range []*session{s, other} {
		s.send("SUBSCRIBE a\r\n")
		s.expect("*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n")
	}
	all := d.suspend(t)
	s.Close()
	d.resume(t, all)
	pub := d.connect(t)
	for count := ""; count != ":1"; count = pub.line() {
		pub.send("PUBLISH b x\r\nPUBSUB NUMSUB a\r\n")
		pub.expect(":0\r\n*2\r\n$1\r\na\r\n")
	}
	other.send("UNSUBSCRIBE\r\n")
	other.expect("*3\r\n$11\r\nunsubscribe\r\n$1\r\na\r\n:0\r\n")
}

// Each subscriber gets what is published before, between and after, once; what it does not subscribe to does not
// count against it when the log forgets.
func TestSuspendSubscriber(t *testing.T) {
	for _, plain := range []bool{false, true} {
		t.Run(fmt.Sprintf("plain=%v", plain), func(t *testing.T) {
			d := start(t)
			d.log.set(func(l *testLog) { l.plain = plain })
			two, three, quiet := d.connect(t), d.connect(t), d.connect(t)
			two.send("PSUBSCRIBE n*\r\nSUBSCRIBE news\r\n")
			two.expect("*3\r\n$10\r\npsubscribe\r\n$2\r\nn*\r\n:1\r\n*3\r\n$9\r\nsubscribe\r\n$4\r\nnews\r\n:2\r\n")
			three.send("HELLO 3\r\n")
			for range 26 {
				three.line()
			}
			three.send("SSUBSCRIBE news\r\n")
			three.expect(">3\r\n$10\r\nssubscribe\r\n$4\r\nnews\r\n:1\r\n")
			quiet.send("SUBSCRIBE quiet\r\n")
			quiet.expect("*3\r\n$9\r\nsubscribe\r\n$5\r\nquiet\r\n:1\r\n")
			pub := d.connect(t)
			expect := func(text string) {
				t.Helper()
				two.expect("*4\r\n$8\r\npmessage\r\n$2\r\nn*\r\n$4\r\nnews\r\n" + text)
				three.expect(">3\r\n$8\r\nsmessage\r\n$4\r\nnews\r\n" + text)
			}
			for i := range 5 {
				n := fmt.Sprint(i)
				pub.send("PUBLISH news a" + n + "\r\n")
				pub.expect(":3\r\n")
				if i%2 == 0 { // received before the restart, or perhaps after it
					two.expect("*3\r\n$7\r\nmessage\r\n$4\r\nnews\r\n$2\r\na" + n + "\r\n")
					expect("$2\r\na" + n + "\r\n")
				}
				all := d.suspend(t)
				if seen := max(decoded(t, all[0]).at, decoded(t, all[1]).at, decoded(t, all[2]).at); seen > d.log.Head() {
					t.Fatalf("a subscriber has come to %d, and the log to %d", seen, d.log.Head())
				}
				d.log.publish("news", "b"+n)
				d.resume(t, all)
				pub.send("PUBLISH news c" + n + "\r\n")
				pub.expect(":3\r\n")
				for j, m := range []string{"a", "b", "c"} {
					if i%2 == 1 || j > 0 {
						two.expect("*3\r\n$7\r\nmessage\r\n$4\r\nnews\r\n$2\r\n" + m + n + "\r\n")
						expect("$2\r\n" + m + n + "\r\n")
					}
				}
			}
			pub.send("PUBLISH quiet x\r\n")
			pub.expect(":1\r\n")
			quiet.expect("*3\r\n$7\r\nmessage\r\n$5\r\nquiet\r\n$1\r\nx\r\n")
			for range 100 {
				pub.send("PUBLISH other x\r\n")
				pub.expect(":0\r\n")
			}
			for _, s := range []*session{two, three, quiet} { // nothing came twice
				s.send("QUIT\r\n")
				s.expect("+OK\r\n")
				s.expectClosed()
			}
		})
	}
}

func decoded(t *testing.T, s Suspended) *state {
	t.Helper()
	st, err := decodeState(s.State)
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// The place of a subscriber is what it has been shown, not what it was sent.
func TestSuspendQuietSubscriber(t *testing.T) {
	d := start(t)
	pub, s, other := d.connect(t), d.connect(t), d.connect(t)
	s.send("SUBSCRIBE quiet\r\n")
	s.expect("*3\r\n$9\r\nsubscribe\r\n$5\r\nquiet\r\n:1\r\n")
	other.send("SUBSCRIBE busy\r\n")
	other.expect("*3\r\n$9\r\nsubscribe\r\n$4\r\nbusy\r\n:1\r\n")
	for range 100 {
		pub.send("PUBLISH busy x\r\n")
		pub.expect(":1\r\n")
	}
	for d.log.seen() < 100 { // the subscriber's own goroutine is to look at them
		runtime.Gosched()
	}
	all := d.suspend(t)
	// It is the first one, before the older publisher.
	if st := decoded(t, all[0]); len(st.channels) != 1 || st.channels["quiet"] != 0 || st.at != 100 {
		t.Errorf("at %d in a log of 100", st.at)
	}
	d.log.forget()
	d.resume(t, all)
	pub.send("PUBLISH quiet hello\r\n")
	pub.expect(":1\r\n")
	s.expect("*3\r\n$7\r\nmessage\r\n$5\r\nquiet\r\n$5\r\nhello\r\n")
}

// A subscriber that does not read gets, after two restarts, the rest of the message it was in and all that follow;
// nobody closes it for that.
func TestSuspendSubscriberDoesNotRead(t *testing.T) {
	t.Parallel() // Suspend waits for the peer
	for _, test := range []struct {
		name     string
		restarts int
		forget   bool
	}{{"two restarts", 2, false}, {"behind", 1, true}} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			d := start(t, func(s *Server) { s.ReplyTimeout = time.Millisecond })
			sub, pub := d.connect(t), d.connect(t)
			sub.send("SUBSCRIBE a\r\n")
			sub.expect("*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n")
			const n, size = 4, 1 << 20 // one is more than a socket holds
			message := func(i int) string {
				return (fmt.Sprintf("%05d", i) + strings.Repeat("0123456789abc", size/13+1))[:size]
			}
			for i := range n {
				pub.send(array("PUBLISH", "a", message(i)))
				pub.expect(":1\r\n")
			}
			sub.expect("*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$1048576\r\n00000") // the rest is being written
			got := 0
			for range test.restarts {
				const part = 300 << 10 // it reads some, and the write goes on with that
				read := make(chan error, 1)
				b := make([]byte, part)
				go func() {
					_, err := io.ReadFull(sub.r, b)
					read <- err
				}()
				all := d.suspend(t)
				if err := <-read; err != nil || string(b) != message(0)[5+got:][:part] {
					t.Fatalf("got %.20q… (%v)", b, err)
				}
				got += part
				if st := decoded(t, all[0]); len(st.unsent) == 0 || st.timed || st.at == 0 || st.at >= n {
					t.Fatalf("%d bytes are unsent, at %d", len(st.unsent), st.at)
				}
				d.resume(t, all)
			}
			sub.expect(message(0)[5+got:] + "\r\n")
			if test.forget {
				d.log.forget()
				rest, err := io.ReadAll(sub.r)
				if !bytes.HasSuffix(rest, []byte("-ERR slow: the log has moved on\r\n")) || err != nil {
					t.Fatalf("the end is %.100q (%v)", rest[max(0, len(rest)-100):], err)
				}
				return
			}
			for i := 1; i < n; i++ {
				sub.expect("*3\r\n$7\r\nmessage\r\n$1\r\na\r\n")
				if got := sub.expectBulk(); got != message(i) {
					t.Fatalf("message %d begins with %.10q", i, got)
				}
			}
			sub.send("PING\r\n")
			sub.expect("*2\r\n$4\r\npong\r\n$0\r\n\r\n")
		})
	}
}

// Where the log has forgotten what a subscriber was still to be sent, or is another one, the subscriber is told.
func TestResumeBehind(t *testing.T) {
	for name, change := range map[string]func(d *daemon){
		"overwritten": func(d *daemon) { d.log.publish("a", ""); d.log.forget() },
		"another log": func(d *daemon) { d.log.set(func(l *testLog) { l.messages = nil }) },
		"another log, which has the subscriber's place, but not that of its subscription": func(d *daemon) {
			d.log.set(func(l *testLog) { l.messages = l.messages[:1] })
		},
	} {
		d := start(t)
		s := d.connect(t)
		d.log.publish("a", "")
		d.log.publish("a", "")
		s.send("SUBSCRIBE a\r\n")
		s.expect("*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n")
		all := d.suspend(t)
		if strings.HasPrefix(name, "another log,") {
			st := decoded(t, all[0])
			st.at = 1
			all[0].State = st.encode()
		}
		change(d)
		d.resume(t, all)
		if line := s.line(); line != "-ERR slow: the log has moved on" {
			t.Errorf("%s: got %q", name, line)
		}
		s.expectClosed()
	}
}

// The package's own client notices nothing: every message of a Stream is answered with its receiver, and the Subscription
// gets each once, in order.
func TestSuspendClient(t *testing.T) {
	d := start(t)
	dial := func() *Client {
		c, err := Dial(d.path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	publisher := dial() // the older one, and yet it is to be resumed after the subscriber that it counts
	publisher.Info()
	sub, err := dial().Subscribe("a")
	if err != nil {
		t.Fatal(err)
	}
	const n, restarts = 20_000, 20
	var done sync.WaitGroup
	passed := make(chan int, n)
	done.Go(func() {
		defer close(passed)
		for i := range n {
			m, err := sub.Next()
			if err != nil || string(m.Data) != fmt.Sprint(i) {
				t.Errorf("got %q (%v), want %d", m.Data, err, i)
				return
			}
			passed <- i
		}
	})
	answers := 0
	stream := publisher.PublishMany(func(a Answer) {
		if a.Err != nil || a.Receivers != 1 {
			t.Errorf("%+v", a)
		}
		answers++
	})
	done.Go(func() {
		for i := range n {
			if err := stream.Publish("a", []byte(fmt.Sprint(i))); err != nil {
				t.Error(err)
				break
			}
		}
		if err := stream.Close(); err != nil {
			t.Error(err)
		}
	})
	next := 0
	for i := range passed {
		if i == next {
			d.restart(t)
			next += n / restarts
		}
	}
	done.Wait()
	if answers != n {
		t.Errorf("%d of %d messages are answered", answers, n)
	}
}

// Many at once, each in the middle of something, and one that connects in between.
func TestSuspendMany(t *testing.T) {
	d := start(t)
	var all []*session
	for i := range 200 {
		s := d.connect(t)
		s.send(fmt.Sprintf("CLIENT SETNAME n%d\r\n*3\r\n$7\r\nPUBL", i))
		all = append(all, s)
	}
	for i, s := range all {
		s.expect("+OK\r\n")
		if i%3 == 0 {
			s.taken()
		}
	}
	for range 3 {
		waiting := d.suspend(t)
		if len(waiting) != len(all) {
			t.Fatalf("%d of %d connections are at rest", len(waiting), len(all))
		}
		late := d.connect(t)
		late.send("PING\r\n")
		d.resume(t, waiting)
		late.expect("+PONG\r\n")
		late.send("QUIT\r\n")
		late.expect("+OK\r\n")
		late.expectClosed()
	}
	for i, s := range all {
		s.send(fmt.Sprintf("ISH\r\n$1\r\na\r\n$1\r\nx\r\nCLIENT GETNAME\r\nCLIENT ID\r\nECHO %d\r\n", i))
	}
	ids := make(map[string]bool)
	for i, s := range all {
		s.expect(":0\r\n")
		if name := s.expectBulk(); name != fmt.Sprintf("n%d", i) {
			t.Errorf("connection %d is called %q", i, name)
		}
		ids[s.line()] = true
		s.expectBulk()
	}
	if n := len(d.log.published()); n != len(all) || len(ids) != len(all) {
		t.Errorf("%d messages, %d numbers of connections", n, len(ids))
	}
	if st := d.Stats(); st.Publishers != len(all) {
		t.Errorf("%+v", st)
	}
}

// Numbers of connections stay; new ones are above all there ever were. What CLIENT LIST says stays as well.
func TestSuspendIDs(t *testing.T) {
	d := start(t)
	first, gone := d.connect(t), d.connect(t)
	first.send("HELLO 2 SETNAME joe\r\nCLIENT SETINFO LIB-NAME lib\r\nCLIENT SETINFO LIB-VER 9\r\nECHO x\r\n")
	for range 26 {
		first.line()
	}
	first.expect("+OK\r\n+OK\r\n$1\r\nx\r\n")
	gone.send("CLIENT ID\r\nQUIT\r\n")
	gone.expect(":2\r\n+OK\r\n")
	gone.expectClosed()
	d.restart(t)
	after := d.connect(t)
	after.send("CLIENT ID\r\nCLIENT LIST ID 1\r\n")
	after.expect(":3\r\n")
	info := after.expectBulk()
	for _, part := range []string{"id=1 addr=" + d.path + ":0 ", " name=joe ", " cmd=echo ", " lib-name=lib lib-ver=9 ", fmt.Sprintf(" pid=%d uid=%d ", os.Getpid(), os.Getuid())} {
		if !strings.Contains(info, part) {
			t.Errorf("CLIENT LIST is without %q: %q", part, info)
		}
	}
	first.send("CLIENT ID\r\n")
	first.expect(":1\r\n")

	// Resumed after others have come: still no number twice.
	all := d.suspend(t)
	d.resume(t, nil)
	early := d.connect(t)
	early.send("CLIENT ID\r\n")
	early.expect(":1\r\n")
	for _, s := range all {
		if err := d.Resume(s.FD, s.State); err != nil {
			t.Fatal(err)
		}
	}
	first.send("CLIENT ID\r\n")
	first.expect(":4\r\n")
	after.send("CLIENT ID\r\n")
	after.expect(":3\r\n")
}

// A server that is closed or suspended stays so; a resumed connection is closed like any other.
func TestSuspendOnce(t *testing.T) {
	d := start(t)
	s := d.connect(t)
	s.send("PING\r\n")
	s.expect("+PONG\r\n")
	all := d.suspend(t)
	if again := d.Suspend(); again != nil || d.Close() != nil || len(all) != 1 {
		t.Errorf("%d, and a second time %d", len(all), len(again))
	}
	flags, err := unix.FcntlInt(uintptr(all[0].FD), unix.F_GETFL, 0)
	if err != nil || flags&unix.O_NONBLOCK == 0 {
		t.Errorf("the descriptor is blocking (%v)", err)
	}
	flags, err = unix.FcntlInt(uintptr(all[0].FD), unix.F_GETFD, 0)
	if err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("the descriptor survives exec (%v)", err)
	}
	other, err := unix.Dup(all[0].FD)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Resume(other, all[0].State); !errors.Is(err, ErrClosed) {
		t.Errorf("Resume by a suspended server: %v", err)
	}
	d.resume(t, all)
	s.send("PING\r\n")
	s.expect("+PONG\r\n")
	d.Close()
	s.expectClosed()
}

// A connection that was accepted when the server was suspended already is one of those at rest.
func TestSuspendAccepted(t *testing.T) {
	d := start(t)
	d.suspend(t)
	s := d.connect(t)
	sock, err := d.l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	server := &Server{Broker: d.log}
	server.closed, server.suspended = true, true
	server.accepted(sock)
	s.send("PING\r\n")
	if len(server.rested) != 1 {
		t.Fatalf("%d are at rest", len(server.rested))
	}
	c := server.rested[0]
	fd, err := c.detach()
	if err != nil {
		t.Fatal(err)
	}
	d.resume(t, []Suspended{{fd, c.state().encode()}})
	s.expect("+PONG\r\n")
}

// What is no connection of the publish socket is refused, and closed.
func TestResumeRefusesDescriptor(t *testing.T) {
	d := start(t)
	good := (&state{id: 1, lastID: 1}).encode()
	open := func(domain, kind int) int {
		fd, err := unix.Socket(domain, kind|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		return fd
	}
	pair := func(kind int) int {
		fds, err := unix.Socketpair(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fds[1]) })
		return fds[0]
	}
	file, err := unix.Open(filepath.Join(t.TempDir(), "file"), unix.O_CREAT|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	for name, fd := range map[string]int{
		"none": -1, "a file": file, "not connected": open(unix.AF_UNIX, unix.SOCK_STREAM), "TCP": open(unix.AF_INET, unix.SOCK_STREAM),
		"datagrams": pair(unix.SOCK_DGRAM), "packets": pair(unix.SOCK_SEQPACKET),
	} {
		if err := d.Resume(fd, good); err == nil || !strings.HasPrefix(err.Error(), "descriptor ") || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != unix.EBADF {
			t.Errorf("%s: the descriptor is still open (%v)", name, err)
		}
	}
	fd := pair(unix.SOCK_STREAM)
	if err := d.Resume(fd, good); err != nil {
		t.Error(err)
	}
}

// FuzzResume resumes with any state, and any state with the right version and checksum: it is refused or becomes a
// connection that ends when its peer hangs up.
func FuzzResume(f *testing.F) {
	names := map[string]uint64{"a": 0, "b/c": 7}
	for _, st := range []*state{
		{id: 1, lastID: 1},
		{id: 3, lastID: 9, since: 5, active: -5, name: "joe", libName: "l", libVer: "v", last: "publish", resp3: true, skip: 1, track: "optin"},
		{id: 1, lastID: 2, channels: names, patterns: map[string]uint64{"\xff*": 1, "": 0}, shards: names, at: 2, unsent: []byte("-half an ans"), ending: true},
		{id: 1, lastID: 2, quiet: true, in: inputState{bytes: []byte("*3\r\n$7\r\nPUBLISH\r\n$1\r\na\r\n$5\r\nhel")}, unsent: []byte("x"), timed: true},
		{id: 1, lastID: 2, in: inputState{bytes: []byte("\r\n$1\r"), skipping: true, left: 2, size: 3, argument: true, skippedSize: 3, skippedLimit: 2}},
		{id: 1, lastID: 2, in: inputState{bytes: []byte("xx"), skipping: true, left: 2, size: 9, skip: 7}},
		{id: 1, lastID: 2, channels: map[string]uint64{"a": 1 << 63}, at: ^uint64(0)},
		{id: maxID, lastID: maxID},
	} {
		b := st.encode()
		if _, err := decodeState(b); err != nil {
			f.Fatalf("%+v: %v", st, err)
		}
		f.Add(b, []byte("PING\r\n"), false)
		f.Add(b[:len(b)-4], []byte("SUBSCRIBE a\r\nPUBLISH a b\r\n"), true)
	}
	f.Add([]byte{}, []byte{}, false)
	f.Add([]byte{stateVersion + 1, 0, 0, 0, 0}, []byte{}, false)
	d := start(f)
	d.log.publish("a", "x")
	f.Fuzz(func(t *testing.T, encoded, input []byte, right bool) {
		if right {
			if len(encoded) > 0 {
				encoded[0] = stateVersion
			}
			encoded = seal(encoded)
		}
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		peer := os.NewFile(uintptr(fds[1]), "peer")
		defer peer.Close()
		conn, err := net.FileConn(peer)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(deadline))
		if err := d.Resume(fds[0], encoded); err == nil {
			st, err := decodeState(encoded)
			if err != nil {
				t.Fatalf("resumed with a state that cannot be read: %v", err)
			}
			if again, err := decodeState(st.encode()); err != nil || !reflect.DeepEqual(st, again) {
				t.Fatalf("%+v encoded and decoded is %+v (%v)", st, again, err)
			}
			go func() {
				conn.Write(input)
				conn.(*net.UnixConn).CloseWrite()
			}()
		}
		b, err := io.ReadAll(io.LimitReader(conn, 64<<20))
		if ne := net.Error(nil); errors.As(err, &ne) && ne.Timeout() {
			t.Fatalf("the connection hangs, having answered %.300q", b)
		}
	})
}

// FuzzRequestsState: commands come out the same when the reader of requests is replaced by another between any
// two pieces of input.
func FuzzRequestsState(f *testing.F) {
	for _, s := range []string{
		conversation, "*2\r\n$70000\r\n" + strings.Repeat("a", 70000) + "\r\n$3\r\nabc\r\nPING\r\n",
		array("A", strings.Repeat("b", 60000), strings.Repeat("c", 60000), strings.Repeat("d", 60000), "e") + "PING\r\n",
	} {
		f.Add([]byte(s), 1+len(s)/500)
		f.Add([]byte(s), 30000)
	}
	f.Fuzz(func(t *testing.T, input []byte, size int) {
		if size <= 0 || len(input) > 1<<20 || len(input)/size > 100_000 {
			return
		}
		const limit = 1000
		want, _ := parse(string(input), size, limit)
		var got []string
		q := new(requests)
		for rest := input; ; {
			args, err := q.next(limit)
			var skipped *skippedError
			switch {
			case err == nil:
				got = append(got, fmt.Sprintf("%q", args))
			case errors.As(err, &skipped):
				got = append(got, err.Error())
			case err != errMore:
				got = append(got, err.Error())
			}
			if err != nil && skipped == nil && (err != errMore || len(rest) == 0) {
				break
			}
			if err == errMore || len(got)%3 == 0 { // also with whole commands left over
				q.idle()
				st := state{id: 1, lastID: 1, in: q.state()}
				if c := cap(st.in.bytes); c > 4*(minArgument+commandAllowed) {
					t.Fatalf("%d bytes are kept", c)
				}
				carried, err := decodeState(st.encode())
				if err != nil {
					t.Fatal(err)
				}
				q = new(requests)
				q.restore(carried.in)
			}
			if err == errMore {
				n := copy(q.room(), rest[:min(size, len(rest))])
				q.read(n)
				rest = rest[n:]
			}
		}
		if !slices.Equal(got, want) {
			t.Fatalf("in pieces of %d: got %.500q, want %.500q", size, got, want)
		}
	})
}
