package ipc

import (
	"os"
	"time"
)

// paceBurst is how much of what a publisher has not used it can use at once, as time.
const paceBurst = time.Second

// pace holds one connection to a number of messages a second. What is over it waits in the socket, which a
// publisher notices as an answer that comes late, or a write that blocks: it needs no code for that, and loses nothing.
type pace struct {
	due time.Time // when so many messages as there were would have been sent, one every interval
}

// took counts a message and returns how long the next one has to wait.
func (p *pace) took(interval time.Duration, now time.Time) time.Duration {
	if earliest := now.Add(-max(paceBurst, interval)); p.due.Before(earliest) {
		p.due = earliest
	}
	p.due = p.due.Add(interval)
	return p.due.Add(interval).Sub(now)
}

// SetPublishRate sets how many messages a second each connection may publish, in the long run; 0, as at the beginning, is
// any number. As many may come at once. More are read later, with everything behind them. It holds from the next
// message on. Datagrams are not held to it.
func (s *Server) SetPublishRate(perSecond int) {
	if perSecond <= 0 {
		s.interval.Store(0)
		return
	}
	s.interval.Store(int64(time.Second / time.Duration(perSecond)))
}

// hold is called for each message, with mu held.
func (c *conn) hold() {
	if interval := time.Duration(c.server.interval.Load()); interval > 0 {
		c.held = max(c.pace.took(interval, time.Now()), 0)
	}
}

// answer executes what has been read, and takes its time for that where it has to.
func (c *conn) answer() error {
	err := c.batch()
	for err == nil && c.held > 0 {
		if c.in.pending() {
			c.server.count.held.Add(1)
		}
		if err = c.wait(); err == nil {
			err = c.batch()
		}
	}
	return err
}

// wait waits without mu. When the server is suspended, what has not been executed goes on to the next one.
func (c *conn) wait() error {
	t := time.NewTimer(c.held)
	defer t.Stop()
	select {
	case <-t.C:
		c.held = 0
		return nil
	case <-c.server.closing:
		return os.ErrDeadlineExceeded
	}
}
