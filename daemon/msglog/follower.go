package msglog

import (
	"errors"
	"sync"

	"wscast/daemon/frame"
)

// A Follower reads all messages from the head on, at its own pace, for one goroutine.
type Follower struct {
	log    *Log
	next   []uint64      // by ring: ordinal of the first message that is not in batch, nor was before; 0: it is gone
	seen   uint64        // number of the newest message that was in a batch before
	news   chan struct{} // has a token after every Append
	closed chan struct{}
	once   sync.Once
	batch  []followed
	at     int // batch[at:] are still to be looked at
	buf    []byte
}

// followed is what is known about a message without looking at its frame.
type followed struct {
	number   uint64
	seq, pos uint64
	time     int64
	size     uint32
	ch       *Channel
}

// Message as a Follower sees it.
type Message struct {
	Channel string
	Number  uint64
	Time    int64 // of Append, Unix time in nanoseconds
	Op      frame.Opcode
	Data    []byte // valid until the next call of Next or TryNext
}

// Errors of Follower.Next. Once one of them was returned it is returned for ever.
var (
	ErrBehind = errors.New("the log has overwritten messages that were not read yet")
	ErrClosed = errors.New("the follower is closed")
)

// Follow makes a follower that sees every message appended after this call.
func (l *Log) Follow() *Follower {
	f := &Follower{log: l, news: make(chan struct{}, 1), closed: make(chan struct{})}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.followLocked(f)
	for _, g := range l.rings {
		f.next = append(f.next, g.m.head.head.Load()+1)
	}
	return f
}

// FollowFrom makes a follower that sees every message after the one with that number. Where it is above the head, the
// follower is behind from the beginning: the number is of another log.
func (l *Log) FollowFrom(number uint64) *Follower {
	f := &Follower{log: l, news: make(chan struct{}, 1), closed: make(chan struct{})}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.followLocked(f)
	for _, g := range l.rings {
		next, tail := uint64(0), g.m.head.tail.Load()
		if number <= f.seen && number >= g.gone(tail) {
			next = g.above(tail, number)
		}
		f.next = append(f.next, next)
	}
	f.seen = number
	return f
}

func (l *Log) followLocked(f *Follower) {
	f.seen = l.Head()
	l.followers[f] = struct{}{}
}

// Seen is the number up to which every message was returned or not wanted. It is for the goroutine that calls
// Next, also after Close.
func (f *Follower) Seen() uint64 {
	if f.at > 0 {
		return f.batch[f.at-1].number
	}
	return f.seen
}

func (f *Follower) kick() {
	select {
	case f.news <- struct{}{}:
	default:
	}
}

// Close ends a call of Next in another goroutine with ErrClosed, and all further ones.
func (f *Follower) Close() {
	f.once.Do(func() {
		f.log.mu.Lock()
		delete(f.log.followers, f)
		f.log.mu.Unlock()
		close(f.closed)
	})
}

// Next waits for the next message of a channel that want accepts.
//
// Errors: ErrBehind, ErrClosed.
func (f *Follower) Next(want func(channel string) bool) (Message, error) {
	for {
		if m, ok, err := f.TryNext(want); ok || err != nil {
			return m, err
		}
		select {
		case <-f.news:
		case <-f.closed:
		}
	}
}

// TryNext is Next, but ok is false when there is no such message yet.
func (f *Follower) TryNext(want func(channel string) bool) (m Message, ok bool, err error) {
	for {
		select {
		case <-f.closed:
			return Message{}, false, ErrClosed
		default:
		}
		for f.at < len(f.batch) {
			n := f.batch[f.at]
			f.at++
			if !want(n.ch.name) {
				continue
			}
			g := n.ch.ring
			f.buf = append(f.buf[:0], g.m.bytes(n.pos, uint64(n.size))...)
			// Overwritten while it was copied? Adding 0, and evictLocked's adding 1, puts the copy before or after the move
			// of the tail. With a load and a store a processor with weak ordering could still be copying here.
			if g.m.head.tail.Add(0) > n.seq {
				f.at--
				f.seen = f.Seen()
				f.batch, f.at, f.next[g.index] = f.batch[:0], 0, 0
				return Message{}, false, ErrBehind
			}
			op, data, _ := frame.Payload(f.buf)
			return Message{Channel: n.ch.name, Number: n.number, Time: n.time, Op: op, Data: data}, true, nil
		}
		if err := f.fill(); err != nil || len(f.batch) == 0 {
			return Message{}, false, err
		}
	}
}

// fill notes what comes next, of all rings in the order of the numbers, under the lock and without copying frames.
func (f *Follower) fill() error {
	const most = 128
	l := f.log
	l.mu.Lock()
	defer l.mu.Unlock()
	f.seen = f.Seen()
	f.batch, f.at = f.batch[:0], 0
	for _, g := range l.rings {
		if f.next[g.index] < g.m.head.tail.Load() {
			return ErrBehind
		}
	}
	for len(f.batch) < most {
		var oldest *ring
		first := uint64(Gone)
		for _, g := range l.rings {
			if next := f.next[g.index]; next <= g.m.head.head.Load() && g.m.number(next) < first {
				oldest, first = g, g.m.number(next)
			}
		}
		if oldest == nil {
			break
		}
		seq := f.next[oldest.index]
		f.next[oldest.index]++
		e := oldest.m.entry(seq)
		f.batch = append(f.batch, followed{first, seq, e.pos, e.time, e.size, oldest.byID[e.channel]})
	}
	return nil
}
