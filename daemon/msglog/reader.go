package msglog

import (
	"errors"
	"math/bits"
	"sync"
	"sync/atomic"

	"wscast/daemon/frame"
)

// MaxReaders is how many readers a log can have: there is a bit for each of them in every channel.
const MaxReaders = 64

// A Reader reads the log for the clients of one event loop. Its methods are for the goroutine of that loop.
type Reader struct {
	log  *Log
	bit  uint64
	wake func()

	// floor is the promise: none of the reader's clients needs an entry below it.
	floor atomic.Uint64

	mu   sync.Mutex
	news []*Channel
}

// NewReader adds a reader. wake is called, from any goroutine and under locks of the log, when a channel with
// clients of this reader has news or the reader should Release; it must not block or call the log.
func (l *Log) NewReader(wake func()) (*Reader, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.readers) == MaxReaders {
		return nil, errors.New("log: too many readers")
	}
	r := &Reader{log: l, bit: 1 << len(l.readers), wake: wake}
	r.floor.Store(l.edge.Load())
	l.readers = append(l.readers, r)
	return r, nil
}

func (l *Log) readerOf(bit uint64) *Reader { return l.readers[bits.TrailingZeros64(bit)] }

func (l *Log) lowestFloorLocked() uint64 {
	lowest := ^uint64(0)
	for _, r := range l.readers {
		lowest = min(lowest, r.floor.Load())
	}
	return lowest
}

// Join adds a client to a channel. What is appended from now on is after the returned cursor, and every Append counts
// the client.
func (r *Reader) Join(name []byte) (ch *Channel, cursor uint64, err error) {
	l := r.log
	l.mu.Lock()
	defer l.mu.Unlock()
	if ch, err = l.channelLocked(name); err != nil {
		return nil, 0, err
	}
	ch.clients++
	ch.readers |= r.bit
	return ch, ch.last.Load(), nil
}

// Leave takes a client from a channel; last says that it was this reader's last one there.
func (r *Reader) Leave(ch *Channel, last bool) {
	l := r.log
	l.mu.Lock()
	defer l.mu.Unlock()
	ch.clients--
	if last {
		ch.readers &^= r.bit
	}
	l.forgetLocked(ch)
}

// tell puts a channel on the list of channels with news. The bit in the channel spares the lock when it is there already.
func (r *Reader) tell(ch *Channel) {
	if ch.news.Or(r.bit)&r.bit != 0 {
		return
	}
	r.mu.Lock()
	r.news = append(r.news, ch)
	r.mu.Unlock()
	r.wake()
}

// News appends to buf the channels that got messages since the last call. A message that is appended afterwards brings its channel
// on the list again, so whoever serves up to Channel.Last after this call misses nothing.
func (r *Reader) News(buf []*Channel) []*Channel {
	r.mu.Lock()
	from := len(buf)
	buf = append(buf, r.news...)
	clear(r.news)
	r.news = r.news[:0]
	r.mu.Unlock()
	for _, ch := range buf[from:] {
		ch.news.And(^r.bit)
	}
	return buf
}

// HasNews tells whether News would return anything.
func (r *Reader) HasNews() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.news) > 0
}

// Released reports whether the reader's floor is at the edge already.
func (r *Reader) Released() bool { return r.floor.Load() >= r.log.edge.Load() }

// Release raises the floor: the reader has no client any more that needs a message older than the one with sequence
// number floor.
func (r *Reader) Release(floor uint64) {
	if floor <= r.floor.Load() {
		return
	}
	r.floor.Store(floor)
	if r.log.waiting.Load() > 0 {
		r.log.mu.Lock()
		r.log.room.Broadcast()
		r.log.mu.Unlock()
	}
}

// Next returns the sequence number of the channel's first message after the cursor, 0 if there is none. ok is false when the
// log has overwritten messages that came in between, which cannot happen to a cursor at or above the reader's floor,
// nor to one that was at the head of its channel when the floor was raised.
func (r *Reader) Next(ch *Channel, cursor uint64) (seq uint64, ok bool) {
	if cursor >= ch.last.Load() {
		return 0, true
	}
	if cursor < ch.evicted.Load() {
		return 0, false
	}
	first := ch.first.Load()
	if cursor < first {
		return first, true
	}
	seq = r.log.m.entry(cursor).next.Load()
	if r.log.m.head.tail.Load() > cursor {
		// The entry at the cursor, which may lie below the floor, is being overwritten. It was the channel's oldest.
		seq = ch.first.Load()
	}
	return seq, true
}

// Frame is the finished frame of a message at or above the floor: mapped memory, not to be written, and valid until
// the next Release.
func (r *Reader) Frame(seq uint64) []byte {
	e := r.log.m.entry(seq)
	return r.log.m.bytes(e.pos, uint64(e.size))
}

// Run is a stretch of consecutive messages of one channel after a cursor.
type Run struct {
	Slices   [][]byte // what there is to send, in order; frames that lie next to each other are one slice
	Bytes    int
	Messages int
	Last     uint64 // sequence number of the last message
	More     bool   // the channel has messages after Last
}

// Run collects the messages of a channel after the cursor, starting with byte skip of the first one, until a further
// one would make it more than limit bytes or slices slices. It reuses the memory of run. An empty run means that there is none.
// ok as with Next.
func (r *Reader) Run(run *Run, ch *Channel, cursor uint64, skip, limit, slices int) (ok bool) {
	run.Slices, run.Bytes, run.Messages, run.Last, run.More = run.Slices[:0], 0, 0, cursor, false
	var from, to uint64 // positions of the slice in the making
	for {
		seq, ok := r.Next(ch, run.Last)
		if !ok {
			return false
		}
		if seq == 0 {
			break
		}
		e := r.log.m.entry(seq)
		if run.Messages > 0 && (run.Bytes+int(e.size) > limit || e.pos != to && len(run.Slices)+1 == slices) {
			run.More = true
			break
		}
		switch {
		case run.Messages == 0:
			from, to = e.pos+uint64(skip), e.pos
			run.Bytes = -skip
		case e.pos != to:
			run.Slices = append(run.Slices, r.log.m.bytes(from, to-from))
			from = e.pos
		}
		to = e.pos + uint64(e.size)
		run.Bytes += int(e.size)
		run.Messages++
		run.Last = seq
	}
	if run.Messages > 0 {
		run.Slices = append(run.Slices, r.log.m.bytes(from, to-from))
	}
	return true
}

// Advance moves a cursor by n sent bytes: it returns the last message that is out as a whole, the bytes that are
// out of the one after it, and how many messages were completed.
func (r *Reader) Advance(ch *Channel, cursor uint64, skip, n int) (newCursor uint64, newSkip, completed int) {
	n += skip
	for {
		seq, ok := r.Next(ch, cursor)
		if !ok || seq == 0 {
			return cursor, n, completed
		}
		size := int(r.log.m.entry(seq).size)
		if n < size {
			return cursor, n, completed
		}
		n -= size
		cursor = seq
		completed++
	}
}

// A Follower reads all messages from the head on, at its own pace, for one goroutine.
type Follower struct {
	log    *Log
	next   uint64
	news   chan struct{}
	closed chan struct{}
	once   sync.Once
	batch  []followed
	at     int // batch[at:] are still to be looked at
	buf    []byte
}

type followed struct {
	seq, pos uint64
	size     uint32
	ch       *Channel
}

// Message as a Follower sees it.
type Message struct {
	Channel string
	Seq     uint64
	Op      frame.Opcode
	Data    []byte // valid until the next call of Next
}

// Errors of Follower.Next.
var (
	ErrBehind = errors.New("the log has overwritten messages that were not read yet")
	ErrClosed = errors.New("closed")
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
			if f.log.m.head.tail.Load() > n.seq { // overwritten while it was copied
				return Message{}, false, ErrBehind
			}
			op, data, _ := frame.Payload(f.buf)
			return Message{Channel: n.ch.name, Seq: n.seq, Op: op, Data: data}, true, nil
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
		f.batch = append(f.batch, followed{f.next, e.pos, e.size, l.byID[e.channel]})
	}
	return nil
}
