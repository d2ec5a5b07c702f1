package ipc

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// How a connection gets from one server to the next:
//
//	serving --Suspend--> the batch in hand is answered --rest--> at rest --state--> FD and State
//	   ^                     '-- the peer does not take it: unsent
//	   '---restart: unsent goes out, follow starts, what was read is executed <--Resume-- '
//
// Nothing is read once the batch is done, so what the peer sends in between waits in the socket.

// Suspended is a connection between two servers.
type Suspended struct {
	FD    int    // the caller's; non-blocking, not shut down
	State []byte // for Resume; opaque
}

// Suspend stops serving as Close does, but closes no connection: each is given back, to be resumed by another Server,
// in this process or one that is sent the descriptor. The peer sees a pause and no error. All goroutines have
// ended when it returns, which takes at most about a second.
//
// Every command that was read whole has been answered, but for those that SetPublishRate holds back. A peer that does not take its
// answers in time gets the rest from the next server, which then executes what is left of that peer's commands. A local subscriber goes on with the message after the last
// one that it was sent.
//
// The connections are in the order in which to resume them, subscribers first, so that no publisher misses one in its
// answers. What is not resumed is the caller's to close. After Close, or a second time, it returns nil.
func (s *Server) Suspend() []Suspended {
	if !s.stop(true) {
		return nil
	}
	// All goroutines have ended: the connections are ours alone.
	slices.SortFunc(s.rested, func(a, b *conn) int {
		if x, y := a.subs.total() > 0, b.subs.total() > 0; x != y {
			if x {
				return -1
			}
			return 1
		}
		return int(a.id - b.id)
	})
	all := make([]Suspended, 0, len(s.rested))
	for _, c := range s.rested {
		fd, err := c.detach()
		if err != nil {
			s.log().Warn("publisher closed: its connection cannot be kept", "cause", err.Error(), "pid", c.peer.PID, "uid", c.peer.UID, "name", c.name())
			continue
		}
		all = append(all, Suspended{FD: fd, State: c.state().encode()})
	}
	s.rested = nil
	return all
}

// detach takes the descriptor away from the runtime. It is a duplicate: net.UnixConn does not let go of its own, but
// closes it without a shutdown(2).
func (c *conn) detach() (fd int, err error) {
	failed := c.raw.Control(func(own uintptr) { fd, err = unix.FcntlInt(own, unix.F_DUPFD_CLOEXEC, 0) })
	c.sock.Close()
	return fd, errors.Join(failed, err)
}

// Resume goes on with a connection that another Server suspended, with the same log behind its Broker. It may be called
// before and after Serve; only before it is sure that the connection keeps its number (CLIENT ID), and connections
// to come get higher ones. MaxConns does not hold for it.
//
// The descriptor is the Server's from now on; with an error it is closed, and the peer has to connect again. The error
// says what is wrong with the descriptor or the state, which may be any bytes; ErrClosed after Close or Suspend.
func (s *Server) Resume(fd int, state []byte) error {
	sock, err := adopt(fd)
	if err != nil {
		return err
	}
	if err := s.resume(sock, state); err != nil {
		sock.Close()
		return err
	}
	return nil
}

func (s *Server) resume(sock *net.UnixConn, encoded []byte) error {
	st, err := decodeState(encoded)
	if err != nil {
		return err
	}
	peer, err := peerOf(sock)
	if err != nil {
		return fmt.Errorf("credentials of a suspended connection: %w", err)
	}
	c, err := newConn(s, sock, peer)
	if err != nil {
		return err
	}
	c.restore(st, s.Broker.Head())
	for _, k := range []*kind{byName, byPattern, byShard} {
		for name := range *c.subs.of(k) {
			s.subscribers.add(k, name, 1)
		}
	}

	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed { // and its index of subscribers is of no use any more
		return ErrClosed
	}
	s.openLocked()
	s.lastID = max(s.lastID, st.lastID)
	if s.conns[c.id] != nil { // accepted before the first Resume
		s.lastID++
		c.id = s.lastID
	}
	s.conns[c.id] = c
	s.running.Add(1)
	go c.serve()
	return nil
}

// adopt makes a connection of a descriptor, and takes it over also when it fails.
func adopt(fd int) (*net.UnixConn, error) {
	if fd < 0 {
		return nil, fmt.Errorf("descriptor %d is none", fd)
	}
	f := os.NewFile(uintptr(fd), "suspended connection")
	defer f.Close() // FileConn has its own
	if _, err := unix.Getpeername(fd); err != nil {
		return nil, fmt.Errorf("descriptor %d is no connection of the publish socket: %w", fd, err)
	}
	conn, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("descriptor %d of a suspended connection: %w", fd, err)
	}
	sock, ok := conn.(*net.UnixConn)
	if !ok || sock.LocalAddr().Network() != "unix" {
		conn.Close()
		return nil, fmt.Errorf("descriptor %d is a socket of %s: want a Unix stream connection", fd, conn.LocalAddr().Network())
	}
	return sock, nil
}

// rest is the end of serve when the server is suspended and err, which ended serve, leaves a connection to go on
// with: then it is at rest, and not closed.
func (c *conn) rest(err error) bool {
	s := c.server
	if !s.isSuspended() {
		return false
	}
	c.mu.Lock() // a write of follow's ends in time
	atBoundary := errors.Is(err, os.ErrDeadlineExceeded) && !c.ending
	if c.broken != nil || !atBoundary && len(c.unsent) == 0 {
		c.mu.Unlock()
		return false
	}
	if c.tail != nil {
		c.comeToRest()
	}
	c.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c.id)
	s.rested = append(s.rested, c)
	return true
}

// comeToRest makes follow end and note its place. The caller holds mu.
func (c *conn) comeToRest() {
	c.resting = c.tail
	c.unfollow()
}

// restart does first what an earlier server could not finish.
func (c *conn) restart() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if b := c.unsent; len(b) > 0 {
		c.unsent = nil
		if c.write(b, c.timed); c.broken != nil {
			return c.broken
		}
		if len(c.unsent) > 0 {
			return errRest
		}
	}
	if c.ending {
		return errEnded
	}
	if c.subs.total() > 0 {
		c.startFollow(c.server.Broker.TailFrom(c.at))
	}
	return nil
}

// state is for another server. Nobody else uses the connection any more.
func (c *conn) state() *state {
	st := &state{
		id: c.id, lastID: c.server.lastID, since: c.since.UnixNano(), active: c.active.Load(),
		name: c.about.name, libName: c.about.libName, libVer: c.about.libVer,
		resp3: c.out.resp3, quiet: c.quiet, skip: int64(c.skip), track: c.track, ending: c.ending,
		channels: c.subs.channels, patterns: c.subs.patterns, shards: c.subs.shards, at: c.at,
		unsent: c.unsent, timed: c.timed,
		in: c.in.state(),
	}
	if last := c.last.Load(); last != nil {
		st.last = last.name
	}
	return st
}

// restore is the reverse. head is the newest message of the log.
func (c *conn) restore(st *state, head uint64) {
	c.id, c.since = st.id, time.Unix(0, st.since)
	c.active.Store(st.active)
	c.last.Store(commandsByName[st.last])
	c.about.name, c.about.libName, c.about.libVer = st.name, st.libName, st.libVer
	c.out.resp3, c.quiet, c.skip, c.track, c.ending = st.resp3, st.quiet, int(st.skip), st.track, st.ending
	c.unsent, c.timed = st.unsent, st.timed
	c.subs.channels, c.subs.patterns, c.subs.shards, c.at = st.channels, st.patterns, st.shards, st.at
	// One that counts from a message which the log has not got would wait for it in silence. It is told instead that it is
	// behind, as TailFrom does above Head.
	for _, set := range []map[string]uint64{st.channels, st.patterns, st.shards} {
		for _, since := range set {
			if since > head {
				c.at = max(c.at, since)
			}
		}
	}
	c.in.restore(st.in)
}

// state is the input in hand. What is not dropped is read again from the command's beginning, under the limits of the
// next server.
func (q *requests) state() inputState {
	var in inputState
	if q.skipping {
		in = inputState{
			skipping: true, left: int64(q.left), size: int64(q.size), skip: int64(q.skip),
			argument: q.skipped.argument, skippedSize: int64(q.skipped.size), skippedLimit: int64(q.skipped.limit),
		}
	}
	if q.buf != nil {
		from := q.at // before it: what was executed or dropped
		if q.left > 0 && !q.skipping {
			from = q.start
		}
		in.bytes = q.buf.b[from:q.end]
	}
	return in
}

func (q *requests) restore(in inputState) {
	if len(in.bytes) > 0 {
		q.buf = getBuffer(len(in.bytes))
		q.share.need(len(q.buf.b))
		q.end = copy(q.buf.b, in.bytes)
	}
	if in.skipping {
		q.skipping, q.left, q.size, q.skip = true, int(in.left), int(in.size), int(in.skip)
		q.skipped = skippedError{size: int(in.skippedSize), limit: int(in.skippedLimit), argument: in.argument}
	}
}
