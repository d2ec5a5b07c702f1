package ipc

import "sync"

// Limits of a Stream: with so much on its way, Publish waits.
const (
	streamWindow = 8192      // messages without an answer yet
	streamBuffer = 256 << 10 // bytes not yet given to the kernel
)

// Answer is what became of one message of a Stream.
type Answer struct {
	Index     uint64 // of the message in the stream, from 0
	Receivers int
	Err       error // nil: the message is in the log. *ReplyError: refused. Otherwise: not known
}

// A Stream publishes many messages over one connection without waiting for each answer. What comes slowly
// is sent at once, what comes fast is gathered into few writes, and what is not answered yet is bounded.
// Its methods may be called from several goroutines.
type Stream struct {
	c        *Client
	answered func(Answer)
	started  bool
	done     sync.WaitGroup // writer and reader

	mu      sync.Mutex
	changed sync.Cond // any of the fields below
	buf     []byte    // commands that the writer has not taken yet
	sent    uint64    // messages given to Publish
	got     uint64    // answers received
	closing bool
	err     error // first failure, of the connection or of a message
	broken  error // failure of the connection
}

// Publish hands one message over; it is copied. It waits only while too much is unanswered.
// The error is the connection's: then nothing more can be published. What became of the message comes
// as an Answer.
func (s *Stream) Publish(channel string, message []byte) error {
	return s.publish(channel, message, "")
}

// PublishOnce is Publish with an id, as Client.PublishOnce. A Stream does not connect again by itself: who does, and publishes
// again, with the same ids and in the same order, what has no answer, has published each message once, and in order.
func (s *Stream) PublishOnce(channel string, message []byte, id string) error {
	if id == "" || len(id) > MaxID {
		return errID
	}
	return s.publish(channel, message, id)
}

func (s *Stream) publish(channel string, message []byte, id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.broken == nil && !s.closing && (s.sent-s.got >= streamWindow || len(s.buf) >= streamBuffer) {
		s.changed.Wait()
	}
	switch {
	case s.broken != nil:
		return s.broken
	case s.closing:
		return ErrClosed
	}
	s.buf = appendPublish(s.buf, channel, message, id)
	s.sent++
	s.changed.Broadcast()
	return nil
}

// Close waits until every message has its answer, and returns the first error there was, be it of a
// message or of the connection. Then the Client can be used again. To give up at once instead, close
// the Client.
func (s *Stream) Close() error {
	s.mu.Lock()
	first := !s.closing && s.started
	s.closing = true
	s.changed.Broadcast()
	s.mu.Unlock()
	s.done.Wait()
	if first {
		s.c.mu.Lock()
		s.c.busy = ""
		s.c.mu.Unlock()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.err = s.broken
	}
	return s.err
}

func startStream(c *Client, answered func(Answer), err error) *Stream {
	s := &Stream{c: c, answered: answered, err: err, broken: err}
	s.changed.L = &s.mu
	if err == nil {
		s.started = true
		s.done.Add(2)
		go s.write()
		go s.read()
	}
	return s
}

// write gives the kernel everything that has gathered while the write before was under way.
func (s *Stream) write() {
	defer s.done.Done()
	var out []byte
	for {
		s.mu.Lock()
		for len(s.buf) == 0 && !s.closing && s.broken == nil {
			s.changed.Wait()
		}
		if len(s.buf) == 0 || s.broken != nil {
			s.mu.Unlock()
			return
		}
		out, s.buf = s.buf, out[:0]
		s.changed.Broadcast()
		s.mu.Unlock()
		if _, err := s.c.conn.Write(out); err != nil {
			// The reader still takes the answers that came before the connection ended.
			s.mu.Lock()
			s.broken = s.c.failed(err)
			s.changed.Broadcast()
			s.mu.Unlock()
			return
		}
		if cap(out) > 2*streamBuffer {
			out = nil
		}
	}
}

// read takes the answers as they come, and ends when all have come after Close, or none can come any more.
func (s *Stream) read() {
	defer s.done.Done()
	var in reply
	var lost error // set once the connection is at its end: the answer to all that is unanswered
	for {
		s.mu.Lock()
		for s.sent == s.got && !s.closing && s.broken == nil {
			s.changed.Wait()
		}
		due, index := s.sent > s.got, s.got
		s.mu.Unlock()
		if !due {
			return
		}
		a := Answer{Index: index, Err: lost}
		if lost == nil {
			a.Receivers, a.Err = readReceivers(s.c.r, &in)
			if a.Err != nil && !refused(a.Err) {
				s.c.mu.Lock()
				lost = s.c.fail(a.Err)
				s.c.mu.Unlock()
				a.Err = lost
			}
		}
		if s.answered != nil {
			s.answered(a)
		}
		s.mu.Lock()
		s.got++
		if s.err == nil {
			s.err = a.Err
		}
		if s.broken == nil {
			s.broken = lost
		}
		s.changed.Broadcast()
		s.mu.Unlock()
	}
}
