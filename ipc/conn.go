package ipc

import (
	"errors"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// flushAt is how many bytes of answers are gathered at most before they are written.
	flushAt = 64 << 10

	// tellAt is with how many bytes of messages, each with messageCost more, those who wait for them are told: after 128
	// small ones, about as much as an event loop sends in one go. More would keep it from sending while we append.
	tellAt      = 64 << 10
	messageCost = 512
)

// conn is one connection to the publish socket. Its goroutine, serve:
//
//  1. fill waits for input without holding a buffer, then reads all there is
//  2. batch executes every whole command in it and gathers the answers in out
//  3. flush wakes those who wait for what was published, and writes the answers with one system call
//
// A connection that subscribes has a second goroutine, follow (subscribe.go), which writes messages. Each of the
// two holds mu while it produces and writes output: so an answer never comes in the middle of a message, and a
// confirmation comes before the first message.
//
// A connection that an earlier Server suspended (suspend.go) begins with what that one had left over: restart.
//
// Lock order: mu, then Server.mu, index.mu, subs.mu or about.mu, none of which is held while another is taken.
type conn struct {
	server *Server
	sock   *net.UnixConn
	raw    syscall.RawConn
	peer   Peer
	id     int64
	since  time.Time

	// Of the goroutine in fill.
	in      requests
	due     due
	readErr error
	recv    func(fd uintptr) bool

	mu      sync.Mutex
	out     answers
	outBuf  *buffer // whose memory out.b started with; nil while there is nothing in it
	sending []byte
	sent    int
	sentErr error
	send    func(fd uintptr) bool
	broken  error // first failure of a write; nothing is written after it
	ending  bool  // after the answers in hand: QUIT, protocol error, fallen behind
	tail    Tail  // while it subscribes
	rights  rights
	pace    pace
	held    time.Duration // how long to wait before the next command
	quiet   bool          // CLIENT REPLY OFF
	skip    int           // answers to drop: CLIENT REPLY SKIP drops its own and the next
	say     bool          // the command in hand is heard even so
	track   string
	counted batchCounts
	untold  int // cost of the messages that were published and not told of yet

	// Of a connection that Suspend has stopped, and of one resumed until restart has dealt with them.
	unsent  []byte // what the peer did not take: it goes out before anything else
	timed   bool   // unsent is answers, for which the peer has ReplyTimeout
	resting Tail   // what follow was reading
	at      uint64 // how far it had come

	subs subscriptions

	active atomic.Int64            // Unix time of the last input
	last   atomic.Pointer[command] // for CLIENT LIST
	about  struct {
		mu                    sync.Mutex
		name, libName, libVer string
	}
}

// batchCounts are added to the server's once a batch, so that connections do not contend for them.
type batchCounts struct{ commands, published, again, errors uint64 }

var (
	errEnded = errors.New("the connection is to be closed")
	errSlow  = errors.New("answers are not read")
	errRest  = errors.New("the server suspends its connections, and the peer does not take what it is sent")
)

func newConn(s *Server, sock *net.UnixConn, peer Peer) (*conn, error) {
	raw, err := sock.SyscallConn()
	if err != nil {
		return nil, err
	}
	c := &conn{server: s, sock: sock, raw: raw, peer: peer, since: time.Now()}
	c.in.share.of = &s.memory
	c.recv, c.send = c.tryRead, c.tryWrite
	return c, nil
}

func (c *conn) serve() {
	defer c.server.running.Done()
	err := c.restart()
	if err == nil && c.in.pending() {
		err = c.answer()
	}
	for err == nil {
		if err = c.fill(); err == nil {
			err = c.answer()
		}
	}
	c.due.stop()
	if c.rest(err) {
		return
	}
	if c.due.missed() && errors.Is(err, os.ErrDeadlineExceeded) {
		c.giveUp()
	}
	if errors.Is(err, errSlow) {
		c.server.count.slow.Add(1)
		c.server.log().Warn("publisher closed: it does not read its answers", "pid", c.peer.PID, "uid", c.peer.UID, "name", c.name())
	}
	c.close()
}

// fill reads what there is, and waits for it if need be.
func (c *conn) fill() error {
	if err := c.raw.Read(c.recv); err != nil {
		return err
	}
	return c.readErr
}

// tryRead is called by the runtime's poller until it returns true. Before it lets the goroutine sleep it gives
// back the buffers.
func (c *conn) tryRead(fd uintptr) bool {
	n, err := readNow(fd, c.in.room())
	switch {
	case err == unix.EAGAIN:
		c.in.idle()
		if c.in.begun() {
			c.due.start(c)
		}
		return false
	case err == nil && n == 0:
		err = io.EOF
	case err == nil:
		c.in.read(n)
	}
	c.readErr = err
	return true
}

// batch executes the commands that have been read and writes their answers.
func (c *conn) batch() error {
	c.active.Store(time.Now().Unix())
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ending {
		return errEnded
	}
	err := c.commands()
	if c.counted.commands > 0 { // what is left of the input is another one
		c.due.stop()
	}
	c.server.count.commands.Add(c.counted.commands)
	c.server.count.published.Add(c.counted.published)
	if c.counted.again > 0 {
		c.server.count.again.Add(c.counted.again)
	}
	c.server.count.errors.Add(c.counted.errors)
	c.counted = batchCounts{}
	if flushed := c.flush(); flushed != nil {
		err = flushed
	}
	if c.outBuf != nil {
		c.outBuf.b, c.out.b = c.out.b, nil // it may have grown
		putBuffer(c.outBuf)
		c.outBuf = nil
	}
	return err
}

func (c *conn) commands() error {
	for {
		if len(c.unsent) > 0 {
			return errRest // what has been read goes on to the next server
		}
		if c.held > 0 {
			return nil
		}
		args, err := c.in.next(c.server.MaxMessage())
		switch {
		case err == nil:
			c.execute(args)
		case err == errMore:
			return nil
		default:
			c.reject(err)
		}
		if c.ending {
			return errEnded
		}
		if len(c.out.b) >= flushAt {
			if err := c.flush(); err != nil {
				return err
			}
		}
	}
}

// reject answers what could not be read as a command: one over a limit, which has been skipped, or a protocol error,
// after which the connection ends.
func (c *conn) reject(err error) {
	c.begin()
	mark := len(c.out.b)
	c.fail(err.Error())
	if _, ok := err.(*skippedError); ok {
		c.counted.commands++
		c.finish(mark)
	} else {
		c.ending = true
	}
}

// begin makes sure that there is memory for an answer.
func (c *conn) begin() {
	if c.outBuf == nil {
		c.outBuf = getBuffer(smallBuffer)
		c.out.b = c.outBuf.b[:0]
	}
}

// finish drops the answer that began at mark if the client has asked for silence. A part of it that was
// too long to be kept back has gone out.
func (c *conn) finish(mark int) {
	drop := (c.quiet || c.skip > 0) && !c.say
	c.skip, c.say = max(c.skip-1, 0), false
	if drop {
		c.out.b = c.out.b[:min(mark, len(c.out.b))]
	}
}

// fail answers with an error; text has its code.
func (c *conn) fail(text string) {
	c.counted.errors++
	c.out.error(text)
}

// enough writes the answers gathered so far when they are many, in the middle of a long one. An error shows
// again at the next flush.
func (c *conn) enough() {
	if len(c.out.b) >= flushAt && !c.quiet && c.skip == 0 {
		c.flush()
	}
}

// gather counts a message that was published. Those who wait for messages are told once of what came together: an event loop
// that was woken by the first one would send it alone.
func (c *conn) gather(size int) {
	if c.untold += messageCost + size; c.untold >= tellAt {
		c.tell()
	}
}

// tell is called wherever this goroutine may come to wait, so that nobody waits with it.
func (c *conn) tell() {
	if c.untold > 0 {
		c.untold = 0
		c.server.Broker.Flush()
	}
}

// flush writes out. It stops reading from a peer that does not take its answers, by waiting, and gives it up
// after ReplyTimeout. The caller holds mu.
func (c *conn) flush() error {
	c.tell()
	if len(c.out.b) > 0 {
		c.write(c.out.b, true)
	}
	c.out.b = c.out.b[:0]
	return c.broken
}

// write writes b; in most cases that is one system call and no timer. What a suspended connection's peer does not take
// becomes unsent. The caller holds mu.
func (c *conn) write(b []byte, timed bool) {
	switch {
	case c.broken != nil:
	case len(c.unsent) > 0:
		c.unsent = append(c.unsent, b...) // the rest of the same answer
	default:
		c.broken = c.writeAll(b, timed)
	}
}

func (c *conn) writeAll(b []byte, timed bool) error {
	c.sending, c.sent, c.sentErr = b, 0, nil
	err := c.raw.Write(c.send)
	c.sending = nil
	if err != nil {
		return err
	}
	if c.sentErr != nil {
		return c.sentErr
	}
	b = b[c.sent:]
	if len(b) == 0 {
		return nil
	}
	if timed {
		c.sock.SetWriteDeadline(time.Now().Add(c.server.replyTimeout()))
		defer c.sock.SetWriteDeadline(time.Time{})
	}
	if until, stopping := c.server.stopping(); stopping { // interrupt may have come before the deadline above
		c.sock.SetWriteDeadline(until)
	}
	n, err := c.sock.Write(b)
	switch {
	case !errors.Is(err, os.ErrDeadlineExceeded):
		return err
	case c.server.isSuspended():
		c.unsent, c.timed = append(c.unsent, b[n:]...), timed
		return nil
	}
	return errSlow
}

// tryWrite writes what the socket takes now. It never asks the poller to wait.
func (c *conn) tryWrite(fd uintptr) bool {
	n, err := writeNow(fd, c.sending)
	if err == nil {
		c.sent = n
	} else if err != unix.EAGAIN {
		c.sentErr = err
	}
	return true
}

// interrupt makes serve end soon: at once if it waits for input, otherwise after the batch, whose writes may take
// until a time. Called when the server is closed or suspended.
func (c *conn) interrupt(until time.Time) {
	c.sock.SetReadDeadline(longAgo)
	c.sock.SetWriteDeadline(until)
}

// close forgets the connection, and then lets the peer know.
func (c *conn) close() {
	c.sock.SetWriteDeadline(longAgo) // frees follow, and with it mu, from a write that waits
	c.mu.Lock()
	c.unfollow()
	c.forgetSubscriptions()
	c.in.start = c.in.end
	c.in.idle()
	c.mu.Unlock()
	s := c.server
	s.mu.Lock()
	delete(s.conns, c.id)
	s.mu.Unlock()
	c.sock.Close()
}

func (c *conn) name() string {
	c.about.mu.Lock()
	defer c.about.mu.Unlock()
	return c.about.name
}

// describe is the connection's line in CLIENT LIST: Redis's fields as far as they mean something, then the
// process.
func (c *conn) describe(b *strings.Builder) {
	c.about.mu.Lock()
	name, libName, libVer := c.about.name, c.about.libName, c.about.libVer
	c.about.mu.Unlock()
	channels, patterns, shards := c.subs.counts()
	flags := "U"
	if channels+patterns+shards > 0 {
		flags = "UP"
	}
	command := "NULL"
	if last := c.last.Load(); last != nil {
		command = last.name
	}
	now := time.Now()
	path := oneLine(c.sock.LocalAddr().String())
	for _, f := range []Field{
		{"id", strconv.FormatInt(c.id, 10)},
		{"addr", strings.ReplaceAll(path, " ", "_") + ":0"},
		{"name", name},
		{"age", strconv.FormatInt(int64(now.Sub(c.since)/time.Second), 10)},
		{"idle", strconv.FormatInt(max(now.Unix()-max(c.active.Load(), c.since.Unix()), 0), 10)},
		{"flags", flags},
		{"db", "0"},
		{"sub", strconv.Itoa(channels)},
		{"psub", strconv.Itoa(patterns)},
		{"ssub", strconv.Itoa(shards)},
		{"cmd", command},
		{"user", "default"},
		{"lib-name", libName},
		{"lib-ver", libVer},
		{"pid", strconv.Itoa(c.peer.PID)},
		{"uid", strconv.FormatUint(uint64(c.peer.UID), 10)},
		{"gid", strconv.FormatUint(uint64(c.peer.GID), 10)},
	} {
		if f.Key != "id" {
			b.WriteByte(' ')
		}
		b.WriteString(f.Key + "=" + f.Value)
	}
	b.WriteByte('\n')
}
