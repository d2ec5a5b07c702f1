package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// retryAfter is when a client connects again that was refused. After an end of its connection it
// does so at once.
const retryAfter = 100 * time.Millisecond

// control is how a load process is told, and tells, what happens while it publishes at a fixed
// rate: the bytes of command on standard input, an observed on standard output for each.
type control struct {
	in  *os.File
	out io.Writer
}

// The commands. Everything between mark and report is observed.
const (
	mark   = 'm'
	report = 'r'
)

// observed is what clients noticed. The first one is written when all clients are there and
// messages flow.
type observed struct {
	Figures figures
}

// A witness is what one client notices: over all of its connections.
type witness struct {
	*client // the connection that there is
	due     uint64
	try     uint8 // of the last message

	pause                    int64 // the longest, in nanoseconds
	missed, repeated, closed int
}

// survivors is the state of a load process whose server is restarted and killed.
type survivors struct {
	*load
	witnesses []witness
	start     time.Time     // when the first message is due
	interval  time.Duration // between two messages, whatever their channels
	refused   int
	later     []later // in the order in which they are due
	publisher *steadyPublisher
}

// later is a connection to be made.
type later struct {
	at     time.Time
	number int
}

// survive connects the clients, publishes at a fixed rate, and observes what becomes of them
// until standard input ends. Message k is due a fixed time after message k-1, and goes to
// channel k modulo the number of channels, so that something is always about to come.
func (l *load) survive(c *control) error {
	if err := l.connect(l.Clients); err != nil {
		return err
	}
	s := &survivors{load: l, witnesses: make([]witness, l.Clients), interval: time.Second / time.Duration(l.Rate)}
	for i, c := range l.clients {
		s.witnesses[i] = witness{client: c, due: 1}
		if err := stamped(c.fd); err != nil {
			return err
		}
	}
	defer func() {
		l.clients = l.clients[:0]
		for _, w := range s.witnesses {
			if w.client != nil {
				l.clients = append(l.clients, w.client)
			}
		}
	}()
	if err := l.awaitStamps(); err != nil {
		return err
	}
	if err := l.watch(int(c.in.Fd()), unix.EPOLL_CTL_ADD, unix.EPOLLIN); err != nil {
		return err
	}
	s.start = time.Now()
	s.publisher = publishSteadily(l.plan, s.start, s.interval)
	defer s.publisher.stop()
	said := json.NewEncoder(c.out)
	if err := s.awaitAll(time.Now().Add(l.Settle)); err != nil {
		return err
	}
	if err := said.Encode(observed{}); err != nil {
		return err
	}
	command := make([]byte, 1)
	for {
		commanded, err := s.turn(int(c.in.Fd()))
		if err != nil {
			return err
		}
		if !commanded {
			continue
		}
		if _, err := c.in.Read(command); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		switch command[0] {
		case mark:
			for i := range s.witnesses {
				w := &s.witnesses[i]
				w.pause, w.missed, w.repeated, w.closed = 0, 0, 0, 0
			}
			s.refused = 0
			s.publisher.again.Store(0)
			err = said.Encode(observed{})
		case report:
			if err = s.awaitAll(time.Now()); err == nil {
				err = said.Encode(observed{s.figures()})
			}
		}
		if err != nil {
			return err
		}
	}
}

// dueAt is when a message is to be published, in nanoseconds since 1970.
func (s *survivors) dueAt(source uint32, sequence uint64) int64 {
	k := int64(sequence-1)*int64(s.Channels) + int64(source)
	return s.start.UnixNano() + k*int64(s.interval)
}

// awaitAll turns until every client has a message that was due after a time.
func (s *survivors) awaitAll(after time.Time) error {
	for end := time.Now().Add(s.Stall); ; {
		behind := slices.IndexFunc(s.witnesses, func(w witness) bool {
			return w.client == nil || s.dueAt(w.order.first, w.due-1) < after.UnixNano()
		})
		if behind < 0 {
			return nil
		}
		if time.Now().After(end) {
			w := s.witnesses[behind]
			return fmt.Errorf("client %d has had no message for %s: message %d is due, and the connection was closed %d times", behind, s.Stall, w.due, w.closed)
		}
		// Looking at every client takes a moment, and is not for every message.
		for pause := time.Now().Add(10 * time.Millisecond); time.Now().Before(pause); {
			if _, err := s.turn(-1); err != nil {
				return err
			}
		}
	}
}

// turn takes what comes within a few milliseconds, and reports whether a command has. It is
// not looked for with a negative fd.
func (s *survivors) turn(command int) (commanded bool, err error) {
	if err := s.publisher.failed(); err != nil {
		return false, err
	}
	for len(s.later) > 0 && !time.Now().Before(s.later[0].at) {
		number := s.later[0].number
		s.later = s.later[1:]
		if err := s.connect(number); err != nil {
			return false, err
		}
	}
	n, err := unix.EpollWait(s.epoll, s.events, 5)
	if err == unix.EINTR {
		return false, nil
	}
	if err != nil {
		return false, os.NewSyscallError("epoll_wait", err)
	}
	for _, e := range s.events[:n] {
		c := s.byFD[e.Fd]
		if c == nil { // standard input
			commanded = true
			continue
		}
		if err := s.serve(c); err != nil {
			return false, fmt.Errorf("client %d: %w", c.number, err)
		}
	}
	return commanded && command >= 0, nil
}

// serve takes what has come for one client, and connects it again when its connection has
// ended.
func (s *survivors) serve(c *client) error {
	if c.stage == connecting {
		err := c.ask(s.Address)
		if err != nil {
			return s.over(c, true)
		}
		return s.watch(c.fd, unix.EPOLL_CTL_MOD, unix.EPOLLIN)
	}
	n, now, err := 0, int64(0), error(nil)
	if c.stage == asked {
		n, err = receive(c.fd, s.buffer)
		now = time.Now().UnixNano()
	} else {
		n, now, err = receiveStamped(c.fd, s.buffer)
		if err == errNoStamp { // what came before it was asked for has none
			now, err = time.Now().UnixNano(), nil
		}
	}
	switch {
	case err == unix.EAGAIN:
		return nil
	case errors.Is(err, unix.ECONNRESET) || err == nil && n == 0:
		return s.over(c, c.stage == asked)
	case err != nil:
		return os.NewSyscallError("recv", err)
	}
	was := c.stage
	err = c.take(s.buffer[:n], func(c *client, payload []byte) error {
		return s.witnesses[c.number].message(s, payload, now)
	})
	switch {
	case errors.Is(err, errClosed):
		return s.over(c, false)
	case err == nil && was == asked && c.stage == open:
		return stamped(c.fd)
	}
	return err
}

// message notes one message that came.
func (w *witness) message(s *survivors, payload []byte, now int64) error {
	m, err := parseMessage(payload)
	if err != nil {
		return err
	}
	if m.source != w.order.first {
		return fmt.Errorf("message %d of source %d came: %w", m.sequence, m.source, errForeign)
	}
	switch {
	case m.sequence+1 == w.due && m.try > w.try && s.Protocol != resp:
		// A publisher that got no answer has published it again, as it says. With ids nobody
		// may notice.
	case m.sequence < w.due:
		w.repeated++
		return nil
	default:
		w.pause = max(w.pause, now-s.dueAt(m.source, w.due))
		w.missed += int(m.sequence - w.due)
		w.due = m.sequence + 1
	}
	w.try = m.try
	return nil
}

// over ends a connection, and makes another.
func (s *survivors) over(c *client, refused bool) error {
	w := &s.witnesses[c.number]
	s.byFD[c.fd] = nil
	c.close()
	w.client = nil
	if refused {
		s.refused++
		s.later = append(s.later, later{time.Now().Add(retryAfter), c.number})
		return nil
	}
	w.closed++
	return s.connect(c.number)
}

// connect starts to connect a client again.
func (s *survivors) connect(number int) error {
	c, err := s.comer(number)
	if err == nil {
		s.witnesses[number].client = c
		return nil
	}
	if errors.Is(err, unix.ECONNREFUSED) {
		s.refused++
		s.later = append(s.later, later{time.Now().Add(retryAfter), number})
		return nil
	}
	return err
}

// figures are what was noticed since the last mark.
func (s *survivors) figures() figures {
	pauses := make([]int64, len(s.witnesses))
	var missed, repeated, closed int
	for i, w := range s.witnesses {
		pauses[i] = w.pause
		missed, repeated, closed = missed+w.missed, repeated+w.repeated, closed+w.closed
	}
	slices.Sort(pauses)
	return figures{
		pauseP50: millis(quantile(pauses, 0.50)), pauseP99: millis(quantile(pauses, 0.99)), pauseMax: millis(quantile(pauses, 1)),
		lostMessages: float64(missed), repeatedMessages: float64(repeated),
		closedConnections: float64(closed), refusedConnections: float64(s.refused), publishedAgain: float64(s.publisher.again.Load()),
	}
}

// A steadyPublisher publishes one message after another, each when it is due or as soon as
// it can. One whose connection ends before the answer makes another and publishes the message
// again, marked as another try, and with the same id where the server takes ids.
type steadyPublisher struct {
	again   atomic.Int64 // messages published more than once
	ended   chan error
	stopped atomic.Bool
	done    bool
}

func publishSteadily(p plan, start time.Time, interval time.Duration) *steadyPublisher {
	s := &steadyPublisher{ended: make(chan error, 1)}
	go func() { s.ended <- s.run(p, start, interval) }()
	return s
}

// failed is why it has ended, if it has.
func (s *steadyPublisher) failed() error {
	select {
	case err := <-s.ended:
		s.done = true
		return err
	default:
		return nil
	}
}

func (s *steadyPublisher) stop() {
	s.stopped.Store(true)
	if !s.done {
		<-s.ended
	}
}

func (s *steadyPublisher) run(p plan, start time.Time, interval time.Duration) error {
	var to *publisher
	defer func() {
		if to != nil {
			to.close()
		}
	}()
	for k := 0; ; k++ {
		time.Sleep(time.Until(start.Add(time.Duration(k) * interval)))
		m := message{source: uint32(k % p.Channels), sequence: uint64(1 + k/p.Channels)}
		for began := time.Now(); ; {
			if s.stopped.Load() {
				return nil
			}
			var err error
			if to == nil {
				if to, err = dialPublisher(p.Publish, p.Protocol, p.Stall); err == nil {
					to.clients, to.ids = -1, true // some may be away
				}
			}
			if err == nil {
				to.add(int(m.source), m)
				err = to.flush()
				for err == nil && to.unanswered() > 0 {
					err = to.read()
				}
				if err == nil {
					break
				}
				to.close()
				to = nil
				m.try++
				s.again.Add(1)
			}
			if time.Since(began) > p.Stall {
				return fmt.Errorf("message %d could not be published for %s: %w", m.sequence, p.Stall, err)
			}
			time.Sleep(time.Millisecond)
		}
	}
}
