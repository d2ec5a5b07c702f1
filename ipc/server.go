package ipc

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// DefaultMaxMessage is the longest message in bytes unless SetMaxMessage says otherwise.
const DefaultMaxMessage = 1 << 20

const (
	defaultReplyTimeout = 10 * time.Second
	defaultMaxConns     = 10000 // as Redis's maxclients
	defaultCommandTime  = 30 * time.Second

	// closeGrace is how long Close and Suspend wait for peers to take their last answers.
	closeGrace = time.Second
	// logEvery is how often at most one kind of trouble is logged.
	logEvery = time.Minute
)

// Server serves the publish socket. Its exported fields are set before Serve and not changed then.
type Server struct {
	Broker  Broker
	Log     *slog.Logger // nil: nothing is logged
	Version string       // of wscastd, for INFO

	// ReplyTimeout is how long a publisher may leave its answers unread before it is closed; 0: 10 s.
	ReplyTimeout time.Duration
	// MaxConns is how many connections there may be; more are answered with an error and closed. 0: 10,000.
	MaxConns int
	// CommandTimeout is how long a command may take to arrive whole once a part of it has; 0: 30 s.
	CommandTimeout time.Duration

	maxMessage  atomic.Int64
	interval    atomic.Int64 // between two messages of a publisher, in nanoseconds; 0: any
	rules       atomic.Pointer[[]Rule]
	memory      memory
	refusals    refusals
	started     atomic.Int64 // Unix time of the first Serve or Resume, for uptime
	subscribers index
	count       counts

	mu        sync.Mutex
	closed    bool                   // by Close or Suspend
	suspended bool                   // by Suspend
	until     time.Time              // once closed: how long peers have to take their last answers
	closing   chan struct{}          // made by the first Serve or Resume, closed with the server
	waiting   map[deadliner]struct{} // listeners and datagram sockets
	conns     map[int64]*conn        // by id
	lastID    int64                  // of a connection, here or in an earlier server
	rested    []*conn                // suspended
	running   sync.WaitGroup         // every goroutine of the server, and every Serve; Add only with mu held and closed false, or by one of them
}

// deadliner is what stop wakes.
type deadliner interface{ SetReadDeadline(time.Time) error }

// listener gives net.UnixListener's deadline the name that it has elsewhere.
type listener struct{ *net.UnixListener }

func (l listener) SetReadDeadline(t time.Time) error { return l.SetDeadline(t) }

var longAgo = time.Unix(1, 0)

type counts struct {
	commands, published, again, errors, refused, slow atomic.Uint64
	denied, unfinished, held                          atomic.Uint64
	datagrams, datagramsDropped                       atomic.Uint64
}

// Stats are the server's figures; the counters start with the process.
type Stats struct {
	Publishers       int    // connections now
	Subscribers      int    // of them, those that subscribe
	Commands         uint64 // answered, with or without an error
	Published        uint64 // messages that came over connections and datagrams and are in the log
	Again            uint64 // messages that were not published, as the log has one with their id
	Errors           uint64 // answers that were errors, protocol errors among them
	Refused          uint64 // connections over MaxConns
	Slow             uint64 // connections closed because their answers were not read, or a subscriber fell behind the log
	Denied           uint64 // messages and subscriptions that no rule allows
	Unfinished       uint64 // connections closed because a command did not arrive whole
	Memory           int64  // bytes that hold commands which are not whole, see SetMemory
	NoMemory         uint64 // commands refused for want of it
	Held             uint64 // times that a publisher had to wait for SetPublishRate
	Datagrams        uint64 // received
	DatagramsDropped uint64 // of them, those too long, with a bad channel or denied
}

// Stats returns the figures of now.
func (s *Server) Stats() Stats {
	st := Stats{
		Commands:         s.count.commands.Load(),
		Published:        s.count.published.Load(),
		Again:            s.count.again.Load(),
		Errors:           s.count.errors.Load(),
		Refused:          s.count.refused.Load(),
		Slow:             s.count.slow.Load(),
		Denied:           s.count.denied.Load(),
		Unfinished:       s.count.unfinished.Load(),
		Memory:           s.memory.taken.Load(),
		NoMemory:         s.memory.refused.Load(),
		Held:             s.count.held.Load(),
		Datagrams:        s.count.datagrams.Load(),
		DatagramsDropped: s.count.datagramsDropped.Load(),
	}
	conns := s.connections()
	st.Publishers = len(conns)
	for _, c := range conns {
		if c.subscribed() {
			st.Subscribers++
		}
	}
	return st
}

// SetMaxMessage sets the longest message in bytes, 0 for DefaultMaxMessage. It holds at once, on every connection.
func (s *Server) SetMaxMessage(n int) { s.maxMessage.Store(int64(n)) }

// MaxMessage is the longest message in bytes.
func (s *Server) MaxMessage() int {
	if n := int(s.maxMessage.Load()); n > 0 {
		return min(n, maxBulk)
	}
	return DefaultMaxMessage
}

// Serve accepts and serves connections until Close, and then returns nil; the listener stays open and is the
// caller's. Several listeners may be served at once. An error is the listener's, and fatal; running out of file
// descriptors is not: Serve waits and goes on.
func (s *Server) Serve(l *net.UnixListener) error {
	closing, ok := s.begin(listener{l})
	if !ok {
		return nil
	}
	defer s.end(listener{l})
	var pause time.Duration
	for {
		sock, err := l.AcceptUnix()
		switch {
		case err == nil:
			pause = 0
			s.accepted(sock)
		case s.isClosed():
			return nil
		case outOfResources(err):
			if pause == 0 {
				s.log().Warn("cannot accept publishers for now", "cause", err.Error(), "hint", "raise LimitNOFILE= of the service")
			}
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			select {
			case <-time.After(pause):
			case <-closing:
			}
		default:
			return fmt.Errorf("publish socket %s: %w", l.Addr(), err)
		}
	}
}

// outOfResources reports errors of accept(2) that pass.
func outOfResources(err error) bool {
	for _, e := range []syscall.Errno{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func (s *Server) accepted(sock *net.UnixConn) {
	peer, err := peerOf(sock)
	if err != nil {
		s.log().Warn("publisher turned away: its credentials cannot be read", "cause", err.Error())
		sock.Close()
		return
	}
	maxConns := s.MaxConns
	if maxConns <= 0 {
		maxConns = defaultMaxConns
	}
	c, err := newConn(s, sock, peer)
	if err != nil {
		sock.Close()
		return
	}
	s.mu.Lock()
	if s.closed && !s.suspended {
		s.mu.Unlock()
		sock.Close()
		return
	}
	if len(s.conns)+len(s.rested) >= maxConns {
		s.mu.Unlock()
		s.count.refused.Add(1)
		// A new socket's buffer is empty: this does not block.
		sock.Write([]byte("-ERR max number of publishers reached\r\n"))
		sock.Close()
		return
	}
	s.lastID++
	c.id = s.lastID
	if s.suspended { // while the connection was being accepted: Suspend waits for Serve
		s.rested = append(s.rested, c)
		s.mu.Unlock()
		return
	}
	s.conns[c.id] = c
	s.running.Add(1)
	s.mu.Unlock()
	go c.serve()
}

// Close stops serving: what has been read is answered, connections are closed, and all goroutines have ended
// when it returns, which takes at most about a second (a peer that does not take its answers). A publisher
// whose command was not answered does not know whether it was taken. It always returns nil.
func (s *Server) Close() error {
	s.stop(false)
	return nil
}

// stop ends all goroutines, and reports whether it was this call that did.
func (s *Server) stop(suspend bool) bool {
	s.mu.Lock()
	first := !s.closed
	if first {
		s.closed, s.suspended, s.until = true, suspend, time.Now().Add(closeGrace)
		if s.closing != nil {
			close(s.closing)
		}
		for w := range s.waiting {
			w.SetReadDeadline(longAgo)
		}
		for _, c := range s.conns {
			c.interrupt(s.until)
		}
	}
	s.mu.Unlock()
	s.running.Wait()
	s.refusals.end(s)
	return first
}

// begin registers what stop has to wake; ok is false after it.
func (s *Server) begin(w deadliner) (closing <-chan struct{}, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, false
	}
	s.openLocked()
	s.waiting[w] = struct{}{}
	s.running.Add(1)
	return s.closing, true
}

func (s *Server) openLocked() {
	if s.closing == nil {
		s.closing = make(chan struct{})
		s.waiting = make(map[deadliner]struct{})
		s.conns = make(map[int64]*conn)
		s.started.Store(time.Now().Unix())
	}
}

// end undoes begin: the socket can be served by another Server.
func (s *Server) end(w deadliner) {
	s.mu.Lock()
	delete(s.waiting, w)
	s.mu.Unlock()
	w.SetReadDeadline(time.Time{})
	s.running.Done()
}

func (s *Server) isClosed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

func (s *Server) isSuspended() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.suspended
}

// stopping reports whether the server is closed or suspended, and until when peers can take what they are sent.
func (s *Server) stopping() (until time.Time, stopping bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.until, s.closed
}

func (s *Server) log() *slog.Logger {
	if s.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return s.Log
}

func (s *Server) commandTimeout() time.Duration {
	if s.CommandTimeout > 0 {
		return s.CommandTimeout
	}
	return defaultCommandTime
}

func (s *Server) replyTimeout() time.Duration {
	if s.ReplyTimeout > 0 {
		return s.ReplyTimeout
	}
	return defaultReplyTimeout
}
