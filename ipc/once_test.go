package ipc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// texts are the messages so far, each after its channel.
func (l *testLog) texts() (all []string) {
	for _, m := range l.published() {
		all = append(all, m.Channel+" "+string(m.Data))
	}
	return all
}

func expectTexts(t *testing.T, l *testLog, want ...string) {
	t.Helper()
	if got := l.texts(); !slices.Equal(got, want) {
		t.Errorf("the log has %q, want %q", got, want)
	}
}

func TestPublishWithID(t *testing.T) {
	d := start(t)
	d.log.set(func(l *testLog) { l.clients["a"] = 2 })
	s := d.connect(t)
	s.send("PUBLISH a one ID 1\r\nPUBLISH a one ID 1\r\nPUBLISH a other id 1\r\nSPUBLISH a two Id 2\r\nPUBLISH b one ID 1\r\n")
	s.expect(":2\r\n:2\r\n:2\r\n:2\r\n:0\r\n")
	other := d.connect(t)
	other.send("PUBLISH a one ID 1\r\n")
	other.expect(":2\r\n")
	// An id is any bytes.
	s.send(array("PUBLISH", "b", "two", "ID", "\x00\r\n") + array("PUBLISH", "b", "two", "ID", "\x00\r\n"))
	s.expect(":0\r\n:0\r\n")
	// Local subscribers count as they do otherwise.
	other.send("SUBSCRIBE a\r\n")
	other.expect("*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n")
	s.send("PUBLISH a one ID 1\r\n")
	s.expect(":3\r\n")
	expectTexts(t, d.log, "a one", "a two", "b one", "b two")
	if st := d.Stats(); st.Published != 4 || st.Again != 5 {
		t.Errorf("%d published, %d again: want 4 and 5", st.Published, st.Again)
	}
}

func TestPublishWithBadID(t *testing.T) {
	d := start(t)
	s := d.connect(t)
	longest := strings.Repeat("x", MaxID)
	s.send(array("PUBLISH", "a", "", "ID", longest))
	s.expect(":0\r\n")
	s.send(array("PUBLISH", "a", "", "ID", longest+"x"))
	s.expectError("ERR bad id 'xxx")
	s.send("PUBLISH a '' ID ''\r\n")
	s.expectError("ERR bad id ''")
	for _, line := range []string{"PUBLISH a b ID", "PUBLISH a b c d", "PUBLISH a b IDX 1", "SPUBLISH a b ID 1 2", "PUBLISH a b ID 1 ID 2"} {
		s.send(line + "\r\n")
		s.expectError("ERR wrong number of arguments for '" + strings.ToLower(strings.Fields(line)[0]) + "' command: quote")
	}
	s.send("PUBLISH a\r\n")
	s.expectError("ERR wrong number of arguments for 'publish' command")
	expectTexts(t, d.log, "a ")
}

// Those who wait for messages are told once of those that came together, and before the answers go out.
func TestToldTogether(t *testing.T) {
	d := start(t)
	s := d.connect(t)
	many := func(n int) string { return strings.Repeat("PUBLISH a x\r\n", n) }
	large := array("PUBLISH", "a", strings.Repeat("x", tellAt))
	for _, c := range []struct {
		name    string
		send    string
		answers int
		told    []uint64 // the newest message each time, counted from here
	}{
		{"one", many(1), 1, []uint64{1}},
		{"two", many(2), 2, []uint64{2}},
		{"many", many(300), 300, []uint64{128, 256, 300}},
		{"another command", many(2) + "PING\r\n" + many(3), 6, []uint64{2, 5}},
		{"none", "PING\r\n", 1, nil},
		{"refused", "PUBLISH ? x\r\n", 1, nil},
		{"again", "PUBLISH a x ID 1\r\nPUBLISH a x ID 1\r\n", 2, []uint64{1}},
		{"large", large + many(1), 2, []uint64{1, 2}},
		{"no answers", "CLIENT REPLY OFF\r\n" + many(2) + "CLIENT REPLY ON\r\n", 1, []uint64{2}},
	} {
		before := d.log.Head()
		d.log.set(func(l *testLog) { l.flushed = nil })
		s.send(c.send)
		for range c.answers {
			s.line()
		}
		d.log.set(func(l *testLog) {
			var told []uint64
			for _, newest := range l.flushed {
				told = append(told, newest-before)
			}
			if !slices.Equal(told, c.told) {
				t.Errorf("%s: told at %d, want %d", c.name, told, c.told)
			}
		})
	}
}

// lossy stands before a Server and loses answers: of each connection the first bytes that are asked for reach the
// Server and are answered, but the peer sees the end of its connection instead. Connections after the first few are served.
type lossy struct {
	net.Listener
	path string
	done sync.WaitGroup
}

func (d *daemon) lossy(t *testing.T, losses int) *lossy {
	t.Helper()
	l := &lossy{path: filepath.Join(t.TempDir(), "lossy.sock")}
	var err error
	if l.Listener, err = net.Listen("unix", l.path); err != nil {
		t.Fatal(err)
	}
	l.done.Go(func() {
		for n := 0; ; n++ {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			l.done.Go(func() {
				defer conn.Close()
				to, err := net.Dial("unix", d.path)
				if err != nil {
					t.Error(err)
					return
				}
				defer to.Close()
				if n < losses {
					b := make([]byte, 64<<10)
					k, err := conn.Read(b)
					if err == nil {
						_, err = to.Write(b[:k])
					}
					if err == nil {
						_, err = to.Read(b)
					}
					if err != nil {
						t.Error(err)
					}
					return
				}
				l.done.Go(func() {
					io.Copy(to, conn)
					to.Close()
				})
				io.Copy(conn, to)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		l.done.Wait()
	})
	return l
}

func dialPath(t *testing.T, path string) *Client {
	t.Helper()
	c, err := Dial(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func patient(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	t.Cleanup(cancel)
	return ctx
}

func TestPublishOnce(t *testing.T) {
	d := start(t)
	d.log.set(func(l *testLog) { l.clients["a"] = 2 })
	l := d.lossy(t, 3)
	c := dialPath(t, l.path)
	for _, ctx := range []context.Context{patient(t), context.Background()} {
		for _, m := range []string{"one", "two"} {
			if n, err := c.PublishOnce(ctx, "a", []byte(m), m); n != 2 || err != nil {
				t.Fatalf("%d, %v: want 2 receivers", n, err)
			}
		}
	}
	expectTexts(t, d.log, "a one", "a two")
	if again := d.Stats().Again; again != 3+2 {
		t.Errorf("%d were published again, want 3 for the answers lost and 2 asked for", again)
	}
	// A refusal is an answer.
	var refused *ReplyError
	if _, err := c.PublishOnce(patient(t), "a channel", nil, "3"); !errors.As(err, &refused) {
		t.Errorf("%v: want a refusal", err)
	}
	for _, id := range []string{"", strings.Repeat("x", MaxID+1)} {
		if _, err := c.PublishOnce(patient(t), "a", nil, id); err != errID {
			t.Errorf("id of %d bytes: %v", len(id), err)
		}
	}
	s := c.PublishMany(nil)
	defer s.Close()
	for _, id := range []string{"", strings.Repeat("x", MaxID+1)} {
		if err := s.PublishOnce("a", nil, id); err != errID {
			t.Errorf("id of %d bytes in a stream: %v", len(id), err)
		}
	}
	if _, err := c.PublishOnce(patient(t), "a", nil, "4"); err == nil || !strings.Contains(err.Error(), "dial another") {
		t.Errorf("on a connection that publishes a stream: %v", err)
	}
}

// Without an id nothing is tried again.
func TestPublishIsNotRepeated(t *testing.T) {
	d := start(t)
	c := dialPath(t, d.lossy(t, 1).path)
	if _, err := c.Publish("a", []byte("one")); err == nil {
		t.Error("there is an answer")
	}
	if _, err := c.Publish("a", []byte("two")); err == nil {
		t.Error("the connection has not failed")
	}
	if _, err := c.PublishOnce(patient(t), "a", []byte("three"), "3"); err != nil {
		t.Errorf("PublishOnce on a failed connection: %v", err)
	}
	if _, err := c.Publish("a", []byte("four")); err != nil {
		t.Errorf("Publish after it: %v", err)
	}
	expectTexts(t, d.log, "a one", "a three", "a four")
}

func TestPublishOnceWaitsForServer(t *testing.T) {
	d := start(t)
	c := d.dial(t)
	if _, err := c.PublishOnce(patient(t), "a", []byte("one"), "1"); err != nil {
		t.Fatal(err)
	}
	d.Close()
	if err := <-d.served; err != nil {
		t.Fatal(err)
	}
	again := func(back func()) {
		t.Helper()
		published := make(chan error, 1)
		go func() {
			_, err := c.PublishOnce(patient(t), "a", []byte("two"), "2")
			published <- err
		}()
		back()
		if err := <-published; err != nil {
			t.Error(err)
		}
	}
	again(func() { d.resume(t, nil) }) // connections wait in the listener's queue, as in systemd's

	d.Close()
	<-d.served
	d.l.SetUnlinkOnClose(true)
	d.l.Close()
	short, cancel := context.WithTimeout(t.Context(), 3*firstPause)
	defer cancel()
	_, err := c.PublishOnce(short, "a", []byte("three"), "3")
	var dial *DialError
	if !errors.As(err, &dial) || !errors.Is(err, os.ErrNotExist) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("without a socket: %v", err)
	}
	again(func() {
		if d.l, err = net.ListenUnix("unix", &net.UnixAddr{Name: d.path, Net: "unix"}); err != nil {
			t.Fatal(err)
		}
		d.resume(t, nil)
	})
	expectTexts(t, d.log, "a one", "a two")
}

func TestPublishOnceGivesUp(t *testing.T) {
	d := start(t)
	path := filepath.Join(t.TempDir(), "silent.sock")
	silent, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	c := dialPath(t, path)

	// No answer.
	ctx, cancel := context.WithCancelCause(t.Context())
	tired := errors.New("tired")
	asked := make(chan struct{})
	go func() {
		defer close(asked)
		conn, err := silent.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		conn.Read(make([]byte, 1))
		cancel(tired)
		io.Copy(io.Discard, conn) // until it is closed
	}()
	if _, err := c.PublishOnce(ctx, "a", nil, "1"); !errors.Is(err, tired) || !strings.HasPrefix(err.Error(), "no answer from wscastd: ") {
		t.Errorf("%v: want the cause", err)
	}
	<-asked
	if _, err := c.PublishOnce(ctx, "a", nil, "1"); !errors.Is(err, tired) {
		t.Errorf("%v with a context that has ended", err)
	}

	// What waiting does not help against: somebody else's socket.
	go func() {
		if conn, err := silent.Accept(); err == nil {
			conn.Write([]byte("220 mail.example.org ESMTP\r\n"))
			conn.Read(make([]byte, 1))
			conn.Close()
		}
	}()
	if _, err := c.PublishOnce(patient(t), "a", nil, "1"); !errors.Is(err, errNotRESP) {
		t.Errorf("%v: want that it is not RESP", err)
	}

	// Close while it waits for an answer, and while it waits to connect.
	other := d.dial(t)
	d.log.mu.Lock()
	published := make(chan error, 1)
	go func() {
		_, err := other.PublishOnce(patient(t), "a", nil, "1")
		published <- err
	}()
	other.Close()
	if err := <-published; err != ErrClosed {
		t.Errorf("%v: want ErrClosed", err)
	}
	d.log.mu.Unlock()
	silent.Close()
	go func() {
		_, err := c.PublishOnce(context.Background(), "a", nil, "1")
		published <- err
	}()
	c.Close()
	if err := <-published; err != ErrClosed {
		t.Errorf("%v: want ErrClosed", err)
	}
}

// lateConn ends a context when the answer has come, and gives it out when the deadline that follows from that is set.
type lateConn struct {
	net.Conn
	end func()
	set chan struct{}
}

func (c *lateConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if c.end != nil {
		c.end()
		c.end = nil
		<-c.set
	}
	return n, err
}

func (c *lateConn) SetDeadline(t time.Time) error {
	if !t.IsZero() {
		defer close(c.set)
	}
	return c.Conn.SetDeadline(t)
}

// A deadline that comes with the answer is none for what is published next.
func TestPublishOnceDeadlineIsOver(t *testing.T) {
	d := start(t)
	c := d.dial(t)
	ctx, cancel := context.WithCancel(t.Context())
	c.conn = &lateConn{Conn: c.conn, end: cancel, set: make(chan struct{})}
	c.r.Reset(c.conn)
	if _, err := c.PublishOnce(ctx, "a", []byte("one"), "1"); err != nil {
		t.Errorf("the answer has come, and PublishOnce says %v", err)
	}
	if _, err := c.Publish("a", []byte("two")); err != nil {
		t.Errorf("Publish after it: %v", err)
	}
	expectTexts(t, d.log, "a one", "a two")
}

// A publisher that connects again and publishes what has no answer, with the same ids: every message once, in order.
func TestStreamOnce(t *testing.T) {
	const messages = 2000
	d := start(t)
	var want []string
	for i := range messages {
		want = append(want, fmt.Sprintf("a %d", i))
	}
	l := d.lossy(t, 10)
	for next := 0; next < messages; {
		c := dialPath(t, l.path)
		s := c.PublishMany(func(a Answer) {
			if a.Err == nil {
				next++
			}
		})
		for i := next; i < messages; i++ {
			if s.PublishOnce("a", []byte(fmt.Sprint(i)), fmt.Sprint("number ", i)) != nil {
				break
			}
		}
		s.Close()
		c.Close()
	}
	expectTexts(t, d.log, want...)
	if again := d.Stats().Again; again == 0 {
		t.Error("no message was published again: there is nothing to prove")
	}
}

func TestAppendPublish(t *testing.T) {
	for _, c := range []struct{ id, want string }{
		{"", array("PUBLISH", "a", "m")},
		{"1", array("PUBLISH", "a", "m", "ID", "1")},
	} {
		if got := appendPublish([]byte("x"), "a", []byte("m"), c.id); !bytes.Equal(got, []byte("x"+c.want)) {
			t.Errorf("id %q: %q", c.id, got)
		}
	}
}
