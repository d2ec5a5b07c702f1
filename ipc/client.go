package ipc

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

// Client is a connection to wscastd's publish socket. It is safe for concurrent use: calls take turns.
// A connection that failed stays failed: every later call returns the same error, but for PublishOnce, which connects
// again; or Dial again.
//
// A call waits for its answer as long as wscastd takes. Close, from another goroutine, ends the wait.
type Client struct {
	path string

	mu   sync.Mutex // held for one request and its answer
	conn net.Conn   // replaced with both mu and closing held
	r    *bufio.Reader
	in   reply
	out  []byte
	busy string // what has taken the connection over ("" none)
	err  error  // first failure of the connection; sticky

	closing sync.Mutex
	closed  chan struct{}
}

// Dial connects to the publish socket at path, for example /run/wscast/publish.sock.
// The error is a *DialError.
func Dial(path string) (*Client, error) { return DialContext(context.Background(), path) }

// DialContext is Dial, given up when ctx ends. ctx does not govern the connection afterwards.
func DialContext(ctx context.Context, path string) (*Client, error) {
	conn, err := dial(ctx, path)
	if err != nil {
		return nil, err
	}
	return &Client{path: path, conn: conn, r: bufio.NewReaderSize(conn, 16<<10), closed: make(chan struct{})}, nil
}

func dial(ctx context.Context, path string) (net.Conn, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, newDialError(path, err)
	}
	return conn, nil
}

// Publish publishes one message and waits for the answer: once it returns nil, the message is in the log.
// It returns how many receivers the message goes to: WebSocket clients and local subscribers.
// A message that wscastd refuses (bad channel, too long) is a *ReplyError, and the connection goes on.
// After any other error it is not known whether the message is in the log: who publishes it again may publish it twice.
// Publish does not do that by itself. PublishOnce does, without the risk.
func (c *Client) Publish(channel string, message []byte) (receivers int, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.usable(); err != nil {
		return 0, err
	}
	return c.publish(channel, message, "")
}

// publish sends one message and reads its answer. The caller holds mu.
func (c *Client) publish(channel string, message []byte, id string) (receivers int, err error) {
	c.out = appendPublish(c.out[:0], channel, message, id)
	if err := c.send(); err != nil {
		return 0, err
	}
	receivers, err = readReceivers(c.r, &c.in)
	if err != nil && !refused(err) {
		err = c.fail(err)
	}
	return receivers, err
}

// Info returns the sections of INFO in the order in which wscastd gives them; with names, only the
// sections of these names (in any case).
func (c *Client) Info(names ...string) ([]Section, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.usable(); err != nil {
		return nil, err
	}
	c.out = appendCommand(c.out[:0], "INFO", names...)
	if err := c.send(); err != nil {
		return nil, err
	}
	v := &c.in
	if err := v.read(c.r); err != nil {
		return nil, c.fail(err)
	}
	if v.kind == '-' {
		return nil, &ReplyError{Text: string(v.text)}
	}
	return parseInfo(string(v.text)), nil
}

// Subscribe gives the connection over to a Subscription to these channels: it sees what is published
// after Subscribe returns.
func (c *Client) Subscribe(channels ...string) (*Subscription, error) {
	return c.subscribe("SUBSCRIBE", channels)
}

// PSubscribe is Subscribe to every channel that matches one of the patterns: Redis globs, where
// * is any run of bytes, ? one byte, [a-c] or [^a-c] one of a set, and \ takes the next byte as it is.
// A message that matches several patterns comes once for each.
func (c *Client) PSubscribe(patterns ...string) (*Subscription, error) {
	return c.subscribe("PSUBSCRIBE", patterns)
}

// PublishMany gives the connection over to a Stream, which publishes without waiting for each answer.
// answered, unless nil, is called once for each message, in the order of publishing, from a goroutine
// of the stream; it must not call the stream's methods.
func (c *Client) PublishMany(answered func(Answer)) *Stream {
	c.mu.Lock()
	defer c.mu.Unlock()
	err := c.usable()
	if err == nil {
		c.busy = "publishing a stream"
	}
	return startStream(c, answered, err)
}

// Close closes the connection. Calls that wait end with ErrClosed.
func (c *Client) Close() error {
	c.closing.Lock()
	defer c.closing.Unlock()
	if c.isClosed() {
		return nil
	}
	close(c.closed)
	return c.conn.Close()
}

func (c *Client) isClosed() bool {
	select {
	case <-c.closed:
		return true
	default:
		return false
	}
}

// A Subscription receives what is published. One goroutine may call Next; any may call Close.
type Subscription struct {
	c   *Client
	buf reply
}

// Next waits for the next message. Data is valid until the next call; Seq is 0, since the protocol does
// not carry it. ErrClosed after Close; a *ReplyError when wscastd gives the subscription up, because the
// log has moved on past it. After an error there is nothing more to receive.
func (s *Subscription) Next() (Message, error) {
	for {
		if err := s.buf.read(s.c.r); err != nil {
			return Message{}, s.c.failed(err)
		}
		v := &s.buf
		switch {
		case v.kind == '-':
			return Message{}, &ReplyError{Text: string(v.text)}
		case len(v.items) == 3 && string(v.items[0]) == "message":
			return Message{Channel: string(v.items[1]), Data: v.items[2]}, nil
		case len(v.items) == 4 && string(v.items[0]) == "pmessage":
			return Message{Channel: string(v.items[2]), Data: v.items[3]}, nil
		}
	}
}

// Close ends the subscription and closes its connection.
func (s *Subscription) Close() error { return s.c.Close() }

// ReplyError is a command that wscastd refused; the connection goes on.
type ReplyError struct {
	Text string // as sent, with its code: "ERR bad channel …"
}

// Error returns the text without the code ERR.
func (e *ReplyError) Error() string { return strings.TrimPrefix(e.Text, "ERR ") }

// DialError says why the publish socket cannot be reached, and what to do about it.
type DialError struct {
	Path string
	Err  error  // the cause: fs.ErrNotExist, fs.ErrPermission, syscall.ECONNREFUSED, …
	Hint string // what to do; "" where nothing is known
}

func (e *DialError) Error() string {
	s := "cannot reach wscastd at " + e.Path + ": " + e.Err.Error()
	if e.Hint != "" {
		s += " (" + e.Hint + ")"
	}
	return s
}

func (e *DialError) Unwrap() error { return e.Err }

func newDialError(path string, err error) *DialError {
	e := &DialError{Path: path, Err: err}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		e.Err = errno // the path and the call are in our own line already
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		e.Hint = "is wscastd running, and is this its publish socket?"
	case errors.Is(err, syscall.ECONNREFUSED):
		e.Hint = "nothing listens on this socket: is wscastd running?"
	case errors.Is(err, fs.ErrPermission):
		e.Hint = "ask to be added to the group that owns the socket, then log in again"
	case errors.Is(err, syscall.EINVAL) && len(path) > 107:
		e.Hint = "a socket path has at most 107 bytes" // unix(7), sun_path
	}
	return e
}

// usable reports why the connection cannot take a request. The caller holds mu.
func (c *Client) usable() error {
	if c.err != nil {
		return c.err
	}
	if c.busy != "" {
		return fmt.Errorf("this connection is %s: dial another", c.busy)
	}
	return nil
}

// fail makes the connection unusable: after a broken answer nobody knows which answer is whose.
// The caller holds mu.
func (c *Client) fail(err error) error {
	if c.err == nil {
		c.err = c.failed(err)
		c.conn.Close()
	}
	return c.err
}

// failed puts an error of the connection into words.
func (c *Client) failed(err error) error {
	if c.isClosed() {
		return ErrClosed
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) {
		return fmt.Errorf("wscastd closed the connection: %w", io.ErrUnexpectedEOF)
	}
	return err
}

// send writes the request in out. The caller holds mu.
func (c *Client) send() error {
	_, err := c.conn.Write(c.out)
	if cap(c.out) > 64<<10 {
		c.out = nil
	}
	if err != nil {
		return c.fail(err)
	}
	return nil
}

// readReceivers reads the answer to one PUBLISH. A *ReplyError leaves the connection in order.
func readReceivers(r *bufio.Reader, v *reply) (int, error) {
	if err := v.read(r); err != nil {
		return 0, err
	}
	switch v.kind {
	case '-':
		return 0, &ReplyError{Text: string(v.text)}
	case ':':
		if n, err := strconv.Atoi(string(v.text)); err == nil {
			return n, nil
		}
	}
	return 0, errNotRESP
}

func refused(err error) bool {
	var e *ReplyError
	return errors.As(err, &e)
}

func (c *Client) subscribe(command string, names []string) (*Subscription, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.usable(); err != nil {
		return nil, err
	}
	if len(names) == 0 {
		return nil, errors.New("subscribe to at least one channel")
	}
	c.out = appendCommand(c.out[:0], command, names...)
	if err := c.send(); err != nil {
		return nil, err
	}
	s := &Subscription{c: c}
	for range names {
		if err := s.buf.read(c.r); err != nil {
			return nil, c.fail(err)
		}
		if s.buf.kind == '-' {
			return nil, &ReplyError{Text: string(s.buf.text)}
		}
	}
	c.busy = "a subscription"
	return s, nil
}

// parseInfo reads the text of INFO: "# Section" lines, key:value lines, blank lines.
func parseInfo(text string) []Section {
	var sections []Section
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\r\n")
		if name, ok := strings.CutPrefix(line, "# "); ok {
			sections = append(sections, Section{Name: name})
			continue
		}
		key, value, ok := strings.Cut(line, ":")
		if !ok || len(sections) == 0 {
			continue
		}
		s := &sections[len(sections)-1]
		s.Fields = append(s.Fields, Field{Key: key, Value: value})
	}
	return sections
}
