package hostile

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"wscast/ipc"
	"wscast/test/harness"
)

// wire is a connection whose client keeps to nothing.
type wire struct {
	testing.TB
	net.Conn
	in *bufio.Reader
}

func dial(t testing.TB, network, address string) *wire {
	t.Helper()
	conn, err := net.Dial(network, address)
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.SetDeadline(time.Now().Add(harness.Patience))
	t.Cleanup(func() { conn.Close() })
	return &wire{t, conn, bufio.NewReader(conn)}
}

func (w *wire) send(text string) {
	w.Helper()
	if _, err := io.WriteString(w, text); err != nil {
		w.Fatal(err)
	}
}

// opening is a request for a channel, with further headers.
func opening(channel string, headers ...string) string {
	request := "GET " + harness.WebSocketPath(channel) + " HTTP/1.1\r\nHost: wscast.example\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" +
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
	for _, h := range headers {
		request += h + "\r\n"
	}
	return request + "\r\n"
}

// status is that of an HTTP answer.
func (w *wire) status() string {
	w.Helper()
	answer, err := http.ReadResponse(w.in, nil)
	if err != nil {
		w.Fatal(err)
	}
	return strconv.Itoa(answer.StatusCode)
}

// open does an opening handshake and returns the status.
func (w *wire) open(channel string, headers ...string) string {
	w.Helper()
	w.send(opening(channel, headers...))
	return w.status()
}

const (
	opText  = 0x81
	opClose = 0x88
	opPing  = 0x89
	opPong  = 0x8a
)

// frame is a frame of a client, masked with zeros, which leaves the payload as it is.
func frame(first byte, payload string) string {
	b := []byte{first}
	if len(payload) > 125 {
		b = binary.BigEndian.AppendUint16(append(b, 0x80|126), uint16(len(payload)))
	} else {
		b = append(b, 0x80|byte(len(payload)))
	}
	return string(append(b, 0, 0, 0, 0)) + payload
}

// hear returns the next frame; "end" is the end of the connection.
func (w *wire) hear() (first byte, payload string) {
	w.Helper()
	first, payload, err := hear(w.in)
	switch {
	case err == io.EOF:
		return 0, "end"
	case err != nil:
		w.Fatal(err)
	}
	return first, payload
}

func hear(in *bufio.Reader) (first byte, payload string, err error) {
	var head [2]byte
	if _, err := io.ReadFull(in, head[:]); err != nil {
		return 0, "", err
	}
	size := int(head[1])
	if size > 125 {
		long := make([]byte, 2+6*(size-126))
		if _, err := io.ReadFull(in, long); err != nil {
			return 0, "", err
		}
		size = 0
		for _, b := range long {
			size = size<<8 | int(b)
		}
	}
	b := make([]byte, size)
	_, err = io.ReadFull(in, b)
	return head[0], string(b), err
}

// expect reads a message.
func (w *wire) expect(text string) {
	w.Helper()
	if first, payload := w.hear(); first != opText || payload != text {
		w.Fatalf("%#x %.100q instead of the text %.100q", first, payload, text)
	}
}

// code is that of the close frame that comes next, or of a pong: what has become of a client that has sent something.
func (w *wire) code() string {
	w.Helper()
	switch first, payload := w.hear(); {
	case first == opClose && len(payload) >= 2:
		return fmt.Sprint(binary.BigEndian.Uint16([]byte(payload)))
	case first == opPong:
		return "pong"
	default:
		return fmt.Sprintf("%#x %.100q", first, payload)
	}
}

// line is a line of a publisher's answer.
func (w *wire) line() string {
	w.Helper()
	text, err := w.in.ReadString('\n')
	if err != nil {
		w.Fatalf("%q, %v", text, err)
	}
	return strings.TrimSuffix(text, "\r\n")
}

// resp is a command on the publish socket.
func resp(words ...string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "*%d\r\n", len(words))
	for _, w := range words {
		fmt.Fprintf(&b, "$%d\r\n%s\r\n", len(w), w)
	}
	return b.String()
}

// observer is a publisher that asks how things are.
type observer struct {
	t testing.TB
	c *ipc.Client
}

func observe(t testing.TB, d *harness.Daemon) *observer {
	t.Helper()
	c, err := ipc.Dial(d.PublishSocket())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return &observer{t, c}
}

// figure is one of INFO.
func (o *observer) figure(key string) int {
	o.t.Helper()
	sections, err := o.c.Info()
	if err != nil {
		o.t.Fatal(err)
	}
	for _, s := range sections {
		for _, f := range s.Fields {
			if f.Key == key {
				n, err := strconv.Atoi(f.Value)
				if err != nil {
					o.t.Fatalf("%s is %q", key, f.Value)
				}
				return n
			}
		}
	}
	o.t.Fatalf("INFO has no %s", key)
	return 0
}

// await returns when a figure is what is wanted of it.
func (o *observer) await(key string, good func(n int) bool) {
	o.t.Helper()
	for until := time.Now().Add(harness.Patience); ; {
		n := o.figure(key)
		if good(n) {
			return
		}
		if time.Now().After(until) {
			o.t.Fatalf("%s is %d after %v", key, n, harness.Patience)
		}
	}
}

func is(want int) func(int) bool { return func(n int) bool { return n == want } }

// publish publishes a message.
func (o *observer) publish(channel, text string) {
	o.t.Helper()
	if _, err := o.c.Publish(channel, []byte(text)); err != nil {
		o.t.Fatal(err)
	}
}
