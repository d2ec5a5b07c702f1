package harness

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

// Client is a WebSocket client of a test. Pings are answered and messages read all the time, up to a thousand messages ahead of the
// test. Used by one goroutine.
type Client struct {
	t        testing.TB
	conn     *websocket.Conn
	messages chan message
	pings    chan struct{}
	leave    chan struct{} // closed when the test ends
	done     chan struct{} // closed when the reader has ended
	err      error         // why it has, set before messages is closed
}

type message struct {
	kind int // websocket.TextMessage or websocket.BinaryMessage
	data []byte
}

func (m message) String() string {
	kind := "text"
	if m.kind == websocket.BinaryMessage {
		kind = "binary"
	}
	if len(m.data) > 200 {
		return fmt.Sprintf("%s of %d bytes: %q…", kind, len(m.data), m.data[:200])
	}
	return fmt.Sprintf("%s %q", kind, m.data)
}

// A DialOption changes the opening handshake.
type DialOption func(*websocket.Dialer, http.Header)

// Header adds a header field to the request.
func Header(name, value string) DialOption {
	return func(_ *websocket.Dialer, h http.Header) { h.Add(name, value) }
}

// Trust verifies the server's certificate by roots.
func Trust(roots *x509.CertPool) DialOption {
	return func(d *websocket.Dialer, _ http.Header) { d.TLSClientConfig = &tls.Config{RootCAs: roots} }
}

// Unix connects to a Unix socket whatever the URL's host is.
func Unix(path string) DialOption {
	return func(d *websocket.Dialer, _ http.Header) {
		d.NetDial = func(string, string) (net.Conn, error) { return net.Dial("unix", path) }
	}
}

// Dial opens a WebSocket connection, which is closed when the test ends.
func Dial(t testing.TB, url string, options ...DialOption) *Client {
	t.Helper()
	conn, answer, err := dial(url, options)
	if err != nil {
		if answer != nil {
			body, _ := io.ReadAll(answer.Body)
			t.Fatalf("%s: %s: %v\n%s", url, answer.Status, err, body)
		}
		t.Fatalf("%s: %v", url, err)
	}
	c := &Client{
		t: t, conn: conn,
		messages: make(chan message, 1000),
		pings:    make(chan struct{}, 1000),
		leave:    make(chan struct{}),
		done:     make(chan struct{}),
	}
	answerPing := conn.PingHandler()
	conn.SetPingHandler(func(data string) error {
		select {
		case c.pings <- struct{}{}:
		default:
		}
		return answerPing(data)
	})
	go c.read()
	t.Cleanup(func() {
		close(c.leave)
		conn.Close()
		<-c.done
	})
	return c
}

// DialRefused does an opening handshake that must be answered with something other than 101, and returns the status and the body.
func DialRefused(t testing.TB, url string, options ...DialOption) (status int, body string) {
	t.Helper()
	conn, answer, err := dial(url, options)
	if err == nil {
		conn.Close()
		t.Fatalf("%s: a connection was opened, and should have been refused", url)
	}
	if answer == nil {
		t.Fatalf("%s: no answer: %v", url, err)
	}
	// gorilla keeps the first kilobyte of the body and closes the connection.
	text, _ := io.ReadAll(answer.Body)
	return answer.StatusCode, string(text)
}

func dial(url string, options []DialOption) (*websocket.Conn, *http.Response, error) {
	dialer := &websocket.Dialer{HandshakeTimeout: Patience}
	header := http.Header{}
	for _, o := range options {
		o(dialer, header)
	}
	return dialer.Dial(url, header)
}

func (c *Client) read() {
	defer close(c.done)
	defer close(c.messages)
	for {
		kind, data, err := c.conn.ReadMessage()
		if err != nil {
			c.err = err
			return
		}
		select {
		case c.messages <- message{kind, data}:
		case <-c.leave:
			return
		}
	}
}

// ExpectText receives the next message, which must be this text.
func (c *Client) ExpectText(text string) {
	c.t.Helper()
	c.expect(message{websocket.TextMessage, []byte(text)})
}

// ExpectBinary receives the next message, which must be this binary message.
func (c *Client) ExpectBinary(data []byte) {
	c.t.Helper()
	c.expect(message{websocket.BinaryMessage, data})
}

func (c *Client) expect(want message) {
	c.t.Helper()
	timer := time.NewTimer(Patience)
	defer timer.Stop()
	select {
	case got, open := <-c.messages:
		if !open {
			c.t.Fatalf("the connection ended (%v) instead of receiving %v", c.err, want)
		}
		if got.kind != want.kind || !bytes.Equal(got.data, want.data) {
			c.t.Fatalf("received %v, expected %v", got, want)
		}
	case <-timer.C:
		c.t.Fatalf("received nothing in %v, expected %v", Patience, want)
	}
}

// ExpectClose receives a close frame, which must be next and have this code, and returns its reason. Code 1006 stands for a connection that ended
// without a close frame.
func (c *Client) ExpectClose(code int) (reason string) {
	c.t.Helper()
	timer := time.NewTimer(Patience)
	defer timer.Stop()
	select {
	case got, open := <-c.messages:
		if open {
			c.t.Fatalf("received %v, expected the connection to close with %d", got, code)
		}
	case <-timer.C:
		c.t.Fatalf("the connection is still open after %v, expected it to close with %d", Patience, code)
	}
	closed := &websocket.CloseError{Code: websocket.CloseAbnormalClosure}
	if !errors.As(c.err, &closed) && !abrupt(c.err) {
		c.t.Fatalf("the connection ended with %v, expected it to close with %d", c.err, code)
	}
	if closed.Code != code {
		c.t.Fatalf("closed with %d %q, expected %d", closed.Code, closed.Text, code)
	}
	return closed.Text
}

// abrupt: the connection was reset or ended, not a frame that was wrong or a deadline.
func abrupt(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || strings.Contains(err.Error(), "reset by peer")
}

// AwaitPings waits until n more pings have come.
func (c *Client) AwaitPings(n int) {
	c.t.Helper()
	timer := time.NewTimer(Patience)
	defer timer.Stop()
	for ; n > 0; n-- {
		select {
		case <-c.pings:
		case <-c.done:
			c.t.Fatalf("the connection ended (%v), expected %d more pings", c.err, n)
		case <-timer.C:
			c.t.Fatalf("%d pings are missing after %v", n, Patience)
		}
	}
}

// SendText sends a text message.
func (c *Client) SendText(text string) {
	c.t.Helper()
	if err := c.conn.WriteMessage(websocket.TextMessage, []byte(text)); err != nil {
		c.t.Fatal(err)
	}
}

// Close sends a close frame with this code; the daemon's answer is received with [Client.ExpectClose].
func (c *Client) Close(code int) {
	c.t.Helper()
	if err := c.conn.WriteMessage(websocket.CloseMessage, websocket.FormatCloseMessage(code, "")); err != nil {
		c.t.Fatal(err)
	}
}
