package msglog

import (
	"errors"
	"sync"

	"wscast/daemon/frame"
)

// A Follower reads all messages from the head on, at its own pace, for one goroutine.
type Follower struct {
	log    *Log
	next   uint64        // sequence number of the message after batch
	news   chan struct{} // has a token after every Append
	closed chan struct{}
	once   sync.Once
	batch  []followed
	at     int // batch[at:] are still to be looked at
	buf    []byte
}

// followed is what is known about a message without looking at its frame.
type followed struct {
	seq, pos uint64
	time     int64
	size     uint32
	ch       *Channel
}

// Message as a Follower sees it.
type Message struct {
	Channel string
	Seq     uint64
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
	f.next = l.m.head.head.Load() + 1
	l.followers[f] = struct{}{}
	return f
}

// FollowFrom makes a follower that sees every message after seq. Where seq is above the head, it is behind from the
// beginning: seq is of another log.
func (l *Log) FollowFrom(seq uint64) *Follower {
	f := l.Follow() // f.next is head + 1
	if seq < f.next {
		f.next = seq + 1
	} else {
		f.next = 0 // below any tail
	}
	return f
}

// Seen is the sequence number up to which every message was returned or not wanted. It is for the goroutine that calls
// Next, also after Close.
func (f *Follower) Seen() uint64 { return f.next - 1 - uint64(len(f.batch)-f.at) }

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
			f.buf = append(f.buf[:0], f.log.m.bytes(n.pos, uint64(n.size))...)
			// Overwritten while it was copied? Adding 0, and evictLocked's adding 1, puts the copy before or after the move
			// of the tail. With a load and a store a processor with weak ordering could still be copying here.
			if f.log.m.head.tail.Add(0) > n.seq {
				f.batch, f.at, f.next = f.batch[:0], 0, n.seq
				return Message{}, false, ErrBehind
			}
			op, data, _ := frame.Payload(f.buf)
			return Message{Channel: n.ch.name, Seq: n.seq, Time: n.time, Op: op, Data: data}, true, nil
		}
		if err := f.fill(); err != nil || len(f.batch) == 0 {
			return Message{}, false, err
		}
	}
}

// fill notes what comes next, under the lock and without copying frames.
func (f *Follower) fill() error {
	const most = 128
	l := f.log
	l.mu.Lock()
	defer l.mu.Unlock()
	f.batch, f.at = f.batch[:0], 0
	if f.next < l.m.head.tail.Load() {
		return ErrBehind
	}
	for head := l.m.head.head.Load(); f.next <= head && len(f.batch) < most; f.next++ {
		e := l.m.entry(f.next)
		f.batch = append(f.batch, followed{f.next, e.pos, e.time, e.size, l.byID[e.channel]})
	}
	return nil
}
