package ipc

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
)

func (d *daemon) dial(t testing.TB) *Client {
	t.Helper()
	c, err := Dial(d.path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestClient(t *testing.T) {
	d := start(t)
	d.log.set(func(l *testLog) { l.clients["news"] = 3 })
	c := d.dial(t)
	if n, err := c.Publish("news", []byte("a\r\nb")); n != 3 || err != nil {
		t.Fatal(n, err)
	}
	var refused *ReplyError
	if _, err := c.Publish("bad one", nil); !errors.As(err, &refused) || !strings.HasPrefix(err.Error(), "bad channel 'bad one'") {
		t.Fatal(err)
	}
	if _, err := c.Publish("news", make([]byte, 2<<20)); !errors.As(err, &refused) || !strings.Contains(err.Error(), "2097152 bytes are too long") {
		t.Fatal(err)
	}
	if n, err := c.Publish("news", make([]byte, 1<<20)); n != 3 || err != nil {
		t.Fatal(n, err)
	}
	if m := d.log.published(); len(m) != 2 || string(m[0].Data) != "a\r\nb" {
		t.Errorf("%d messages", len(m))
	}
	sections, err := c.Info("clients", "log")
	want := []Section{{"Clients", []Field{{"connected_clients", "3"}}}, {"Log", []Field{{"head", "7"}, {"note", "two  lines"}}}}
	if err != nil || !slices.EqualFunc(sections, want, func(a, b Section) bool { return a.Name == b.Name && slices.Equal(a.Fields, b.Fields) }) {
		t.Errorf("%q %v", sections, err)
	}
	if sections, err = c.Info(); err != nil || len(sections) != 4 {
		t.Errorf("%q %v", sections, err)
	}
	var done sync.WaitGroup
	for range 8 { // calls take turns
		done.Go(func() {
			for range 50 {
				if n, err := c.Publish("news", []byte("x")); n != 3 || err != nil {
					t.Error(n, err)
				}
			}
		})
	}
	done.Wait()
}

func TestClientSubscribe(t *testing.T) {
	d := start(t)
	byName, byPattern, pub := d.dial(t), d.dial(t), d.dial(t)
	if _, err := byName.Subscribe("bad one"); err == nil || !strings.HasPrefix(err.Error(), "bad channel") {
		t.Fatal(err)
	}
	if _, err := byName.Subscribe(); err == nil {
		t.Fatal("subscribed to nothing")
	}
	named, err := byName.Subscribe("a", "b")
	if err != nil {
		t.Fatal(err)
	}
	matched, err := byPattern.PSubscribe("b*", "c")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := byName.Publish("a", nil); err == nil || !strings.Contains(err.Error(), "a subscription: dial another") {
		t.Fatal(err)
	}
	long := strings.Repeat("x", 300<<10)
	for _, m := range []struct {
		channel, text string
		receivers     int
	}{{"a", "one", 1}, {"b", long, 2}, {"bb", "", 1}, {"c", "\r\n", 1}, {"d", "x", 0}, {"b", "end", 2}} {
		if n, err := pub.Publish(m.channel, []byte(m.text)); n != m.receivers || err != nil {
			t.Fatal(m.channel, n, err)
		}
	}
	expect := func(s *Subscription, channel, text string) {
		t.Helper()
		if m, err := s.Next(); m.Channel != channel || string(m.Data) != text || err != nil {
			t.Fatalf("got %q %.100q (%v), want %q %.100q", m.Channel, m.Data, err, channel, text)
		}
	}
	expect(named, "a", "one")
	expect(named, "b", long)
	expect(named, "b", "end")
	expect(matched, "b", long)
	expect(matched, "bb", "")
	expect(matched, "c", "\r\n")
	expect(matched, "b", "end")

	ended := make(chan error)
	go func() {
		_, err := named.Next()
		ended <- err
	}()
	named.Close()
	if err := <-ended; err != ErrClosed {
		t.Errorf("Next after Close: %v", err)
	}
	d.Close()
	if _, err := matched.Next(); !errors.Is(err, io.ErrUnexpectedEOF) || err.Error() != "wscastd closed the connection: unexpected EOF" {
		t.Errorf("Next after the server has gone: %v", err)
	}
	if _, err := pub.Publish("a", nil); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("Publish after the server has gone: %v", err)
	}
}

func TestClientSubscriptionFallsBehind(t *testing.T) {
	d := start(t)
	s, err := d.dial(t).Subscribe("a")
	if err != nil {
		t.Fatal(err)
	}
	pub := d.dial(t)
	for range 40 {
		if _, err := pub.Publish("a", make([]byte, 100<<10)); err != nil {
			t.Fatal(err)
		}
	}
	d.log.forget()
	for err == nil {
		_, err = s.Next()
	}
	var refused *ReplyError
	if !errors.As(err, &refused) || err.Error() != "slow: the log has moved on" {
		t.Error(err)
	}
}

func TestPublishMany(t *testing.T) {
	d := start(t)
	d.log.set(func(l *testLog) { l.clients["a"] = 2 })
	c := d.dial(t)
	const n = 50000
	var answers []Answer
	s := c.PublishMany(func(a Answer) { answers = append(answers, a) })
	buf := make([]byte, 0, 20)
	for i := range n {
		channel := "a"
		if i%1000 == 7 {
			channel = "bad one"
		}
		buf = fmt.Append(buf[:0], i)
		if err := s.Publish(channel, buf); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.Publish("a", nil); err == nil || !strings.Contains(err.Error(), "publishing a stream: dial another") {
		t.Error(err)
	}
	var refused *ReplyError
	if err := s.Close(); !errors.As(err, &refused) {
		t.Errorf("Close: %v", err)
	}
	if err := s.Publish("a", nil); err != ErrClosed {
		t.Errorf("Publish after Close: %v", err)
	}
	if len(answers) != n {
		t.Fatalf("%d answers", len(answers))
	}
	messages := d.log.published()
	for i, a := range answers {
		switch {
		case a.Index != uint64(i):
			t.Fatalf("answer %d is to message %d", i, a.Index)
		case i%1000 == 7:
			if !errors.As(a.Err, &refused) {
				t.Fatalf("answer %d: %v", i, a.Err)
			}
		case a.Err != nil || a.Receivers != 2 || string(messages[0].Data) != fmt.Sprint(i):
			t.Fatalf("answer %d: %+v, in the log: %q", i, a, messages[0].Data)
		default:
			messages = messages[1:]
		}
	}
	if n, err := c.Publish("a", nil); n != 2 || err != nil { // the client is free again
		t.Error(n, err)
	}
	if err := c.PublishMany(nil).Close(); err != nil {
		t.Error(err)
	}
}

// What comes slowly is sent at once: the answer comes before the next message is given.
func TestPublishManySlowly(t *testing.T) {
	d := start(t)
	answers := make(chan Answer)
	s := d.dial(t).PublishMany(func(a Answer) { answers <- a })
	for range 100 {
		if err := s.Publish("a", []byte("x")); err != nil {
			t.Fatal(err)
		}
		if a := <-answers; a.Err != nil {
			t.Fatal(a.Err)
		}
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// When the server goes in the middle, every message has its answer, and what is answered well is in the log.
func TestPublishManyServerGoes(t *testing.T) {
	d := start(t)
	c := d.dial(t)
	good, bad := 0, 0
	some := make(chan struct{})
	s := c.PublishMany(func(a Answer) {
		switch {
		case a.Err != nil:
			bad++
		case bad > 0:
			t.Error("a good answer after a lost one")
		default:
			if good++; good == 1000 {
				close(some)
			}
		}
	})
	given := 0
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		<-some
		d.Close()
	}()
	for ; s.Publish("a", []byte("hello")) == nil; given++ {
	}
	<-closed
	if err := s.Close(); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("Close: %v", err)
	}
	if in := len(d.log.published()); good+bad != given || good > in {
		t.Errorf("%d given, %d answered, %d lost, %d in the log", given, good, bad, in)
	}
	if _, err := c.Publish("a", nil); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Error(err)
	}
	if err := c.PublishMany(nil).Publish("a", nil); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Error(err)
	}
}

func TestDialErrors(t *testing.T) {
	dir := t.TempDir()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: dir + "/stale", Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	for _, test := range []struct {
		path string
		err  error
		hint string
	}{
		{dir + "/none", fs.ErrNotExist, "is wscastd running, and"},
		{dir + "/stale", syscall.ECONNREFUSED, "nothing listens"},
		{dir + strings.Repeat("/long", 30), syscall.EINVAL, "at most 107 bytes"},
	} {
		_, err := Dial(test.path)
		var e *DialError
		if !errors.As(err, &e) || !errors.Is(err, test.err) || e.Path != test.path || !strings.Contains(e.Hint, test.hint) {
			t.Errorf("%s: %v", test.path, err)
		}
	}
	if e := newDialError("/p", &net.OpError{Op: "dial", Err: syscall.EACCES}); e.Error() != "cannot reach wscastd at /p: permission denied (ask to be added to the group that owns the socket, then log in again)" {
		t.Error(e)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := DialContext(ctx, dir+"/none"); err == nil {
		t.Error("dialled after the context ended")
	}
}

// Something else listens on the path: the client says so, once and for all.
func TestClientNotRESP(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, answer := range []string{"HTTP/1.1 400 Bad Request\r\n", "$-2\r\n", "$3\r\nabcd\r\n", "*1\r\n*0\r\n", "+\n", strings.Repeat("x", 20<<10), "+OK\r\n", ":x\r\n", "$99999999999\r\n"} {
		var done sync.WaitGroup
		done.Go(func() {
			conn, err := l.Accept()
			if err != nil {
				t.Error(err)
				return
			}
			io.WriteString(conn, answer)
			io.Copy(io.Discard, conn)
			conn.Close()
		})
		c, err := Dial(path)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if _, err := c.Publish("a", nil); !errors.Is(err, errNotRESP) {
				t.Errorf("%.30q: %v", answer, err)
			}
		}
		c.Close()
		done.Wait()
	}
}

// FuzzReply: whatever comes, reading ends, in the memory that it needs.
func FuzzReply(f *testing.F) {
	for _, s := range []string{"+OK\r\n", "-ERR x\r\n", ":1\r\n", "$3\r\nabc\r\n", "$-1\r\n", "*2\r\n$1\r\na\r\n:5\r\n", "*-1\r\n", "*536870912\r\n", "$536870912\r\nabc"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, input []byte) {
		var v reply
		r := bufio.NewReaderSize(bytes.NewReader(input), 64)
		for {
			if err := v.read(r); err != nil {
				return
			}
			n := len(v.text)
			for _, item := range v.items {
				n += len(item)
			}
			if n > len(input) || len(v.items) > len(input) {
				t.Fatalf("%q reads as more than it is: %q %q", input, v.text, v.items)
			}
		}
	})
}
