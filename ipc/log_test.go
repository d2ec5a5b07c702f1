package ipc

import (
	"slices"
	"sync"
)

// testLog is a Broker that keeps every message: the log in its simplest form, without clients but for those that a
// test adds.
type testLog struct {
	mu       sync.Mutex
	messages []Message
	forgot   uint64 // messages up to here have been overwritten
	clients  map[string]int
	ids      map[string]bool        // by channel, a zero byte and the id
	refuse   error                  // of Publish
	flushed  []uint64               // the newest message, for each Flush
	changed  chan struct{}          // closed and made anew by each Flush
	plain    bool                   // tails without TryNext
	tails    map[*testTail]struct{} // open ones
}

func newTestLog() *testLog {
	return &testLog{clients: make(map[string]int), ids: make(map[string]bool), tails: make(map[*testTail]struct{}), changed: make(chan struct{})}
}

// set changes a field while the server runs.
func (l *testLog) set(change func(l *testLog)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	change(l)
}

func (l *testLog) Publish(channel, message, id []byte) (clients int, again bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.refuse != nil {
		return 0, false, l.refuse
	}
	if key := string(channel) + "\x00" + string(id); len(id) > 0 {
		again = l.ids[key]
		l.ids[key] = true
	}
	if !again {
		l.messages = append(l.messages, Message{string(channel), slices.Clone(message), uint64(len(l.messages) + 1)})
	}
	return l.clients[string(channel)], again, nil
}

func (l *testLog) Flush() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.flushed = append(l.flushed, uint64(len(l.messages)))
	close(l.changed)
	l.changed = make(chan struct{})
}

// publish is what another connection does.
func (l *testLog) publish(channel, message string) {
	_, _, _ = l.Publish([]byte(channel), []byte(message), nil)
	l.Flush()
}

func (l *testLog) Clients(channel string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.clients[channel]
}

func (l *testLog) Channels() (names []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for name := range l.clients {
		names = append(names, name)
	}
	return names
}

func (l *testLog) Info() []Section {
	return []Section{
		{"Server", []Field{{"hostname", "test"}}},
		{"Clients", []Field{{"connected_clients", "3"}}},
		{"Log", []Field{{"head", "7"}, {"note", "two\r\nlines"}}},
	}
}

func (l *testLog) Head() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return uint64(len(l.messages))
}

// forget overwrites what there is.
func (l *testLog) forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.forgot = uint64(len(l.messages))
}

// published are the messages so far.
func (l *testLog) published() []Message {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.messages)
}

func (l *testLog) Tail() Tail { return l.TailFrom(l.Head()) }

func (l *testLog) TailFrom(seq uint64) Tail {
	t := &testTail{log: l, at: seq, closed: make(chan struct{})}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tails[t] = struct{}{}
	if l.plain {
		return struct{ Tail }{t}
	}
	return t
}

type testTail struct {
	log    *testLog
	at     uint64
	closed chan struct{}
}

func (t *testTail) Close() {
	close(t.closed)
	t.log.set(func(l *testLog) { delete(l.tails, t) })
}

// following is the number of open tails.
func (l *testLog) following() (n int) {
	l.set(func(l *testLog) { n = len(l.tails) })
	return n
}

func (t *testTail) Next(want func(string) bool) (Message, error) {
	for {
		m, ok, changed, err := t.next(want)
		if ok || err != nil {
			return m, err
		}
		select {
		case <-t.closed:
			return Message{}, ErrClosed
		case <-changed:
		}
	}
}

func (t *testTail) Seen() uint64 {
	t.log.mu.Lock()
	defer t.log.mu.Unlock()
	return t.at
}

// seen is how far all of the open tails have come.
func (l *testLog) seen() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	at := uint64(len(l.messages))
	for t := range l.tails {
		at = min(at, t.at)
	}
	return at
}

func (t *testTail) TryNext(want func(string) bool) (Message, bool, error) {
	m, ok, _, err := t.next(want)
	return m, ok, err
}

func (t *testTail) next(want func(string) bool) (m Message, ok bool, changed chan struct{}, err error) {
	t.log.mu.Lock()
	defer t.log.mu.Unlock()
	if t.at < t.log.forgot || t.at > uint64(len(t.log.messages)) {
		return m, false, nil, ErrBehind
	}
	for t.at < uint64(len(t.log.messages)) {
		m := t.log.messages[t.at]
		t.at++
		if want(m.Channel) {
			return m, true, nil, nil
		}
	}
	return m, false, t.log.changed, nil
}
