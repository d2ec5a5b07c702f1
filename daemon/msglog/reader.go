package msglog

import (
	"errors"
	"fmt"
	"math/bits"
	"sync"
	"sync/atomic"
)

// MaxReaders is how many readers a log can have: there is a bit for each of them in every channel.
const MaxReaders = 64

// Gone is above every number and every ordinal.
const Gone = ^uint64(0)

// A Reader reads the log for the clients of one event loop. Its methods are for the goroutine of that loop.
//
// A round of the loop is: News, then every client of these channels is sent what there is (Run) and moved on (Advance),
// then those that could not take all are compared with Edge, then Release.
//
// A cursor is the ordinal of the last message of its channel that a client was served, as Join, Run, Advance and
// Channel.Last return it.
type Reader struct {
	log  *Log
	bit  uint64
	wake func()

	at []stand // by ring

	mu   sync.Mutex
	news []*Channel
}

// stand is how far a reader is in a ring.
type stand struct {
	// floor is the promise: none of the reader's clients needs an entry below it. Written by the reader's goroutine.
	floor atomic.Uint64
	// served is what the floor can be raised to: the edge before the last call of News. Clients of channels that have had
	// news since then were not served yet, and may need messages below the edge as it is now.
	served uint64
}

// NewReader adds a reader. wake is called, from any goroutine and perhaps under locks of the log, when a channel with clients
// of this reader has news, or the reader should Release; it must not block or call the log.
func (l *Log) NewReader(wake func()) (*Reader, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.readers) == MaxReaders {
		return nil, errors.New("log: too many readers")
	}
	r := &Reader{log: l, bit: 1 << len(l.readers), wake: wake, at: make([]stand, len(l.rings))}
	for i, g := range l.rings {
		g.nudgeLocked() // without readers the tail can have passed the edge
		r.at[i].served = g.edge.Load()
		r.at[i].floor.Store(r.at[i].served)
	}
	l.byBit[len(l.readers)] = r
	l.readers = l.byBit[:len(l.readers)+1]
	return r, nil
}

func (l *Log) readerOf(bit uint64) *Reader { return l.byBit[bits.TrailingZeros64(bit)] }

func (g *ring) lowestFloorLocked() uint64 {
	lowest := Gone
	for _, r := range g.log.readers {
		lowest = min(lowest, r.at[g.index].floor.Load())
	}
	return lowest
}

// Join adds a client to a channel. What is appended from now on is after the returned cursor, and every Append counts the
// client.
//
// Errors: a name that is empty or longer than MaxName, ErrChannels.
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

// Adopt adds a client to the channel with that number, which an earlier process has served up to the cursor. It refuses a cursor at which no
// client of the channel can have stood.
func (r *Reader) Adopt(id uint32, cursor uint64) (*Channel, error) {
	l := r.log
	l.mu.Lock()
	defer l.mu.Unlock()
	ch, err := l.adoptLocked(id)
	if err != nil {
		return nil, err
	}
	g := ch.ring
	tail, head := g.m.head.tail.Load(), g.m.head.head.Load()
	if cursor > head || cursor >= tail && g.m.entry(cursor).channel != cellOf(id) {
		l.forgetLocked(ch)
		return nil, fmt.Errorf("log: message %d is not one of channel %d", cursor, id)
	}
	ch.clients++
	ch.readers |= r.bit
	// Everything that is kept is there for it, until the next Release.
	floor := &r.at[g.index].floor
	floor.Store(min(floor.Load(), tail))
	return ch, nil
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

// tell puts a channel on the list of channels with news. The bit in the channel spares the lock when it is there already;
// then it returns false, and whoever has set it has woken the reader, or has left that to Flush.
func (r *Reader) tell(ch *Channel) bool {
	if ch.news.Or(r.bit)&r.bit != 0 {
		return false
	}
	r.mu.Lock()
	r.news = append(r.news, ch)
	r.mu.Unlock()
	return true
}

// News appends to buf the channels that got messages since the last call. A message that is appended afterwards brings its
// channel on the list again, so whoever serves up to Channel.Last after this call misses nothing.
func (r *Reader) News(buf []*Channel) []*Channel {
	// Before the list: whoever moved the edge has told us of all messages below it.
	for i, g := range r.log.rings {
		r.at[i].served = g.edge.Load()
	}
	r.mu.Lock()
	from := len(buf)
	buf = append(buf, r.news...)
	clear(r.news)
	r.news = r.news[:0]
	r.mu.Unlock()
	// A message that finds the bit still set is linked already, and is found by whoever looks after this.
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

// Floor is the promise in a ring as it is.
func (r *Reader) Floor(ring int) uint64 { return r.at[ring].floor.Load() }

// Released reports whether the reader's floors are at the edges already.
func (r *Reader) Released() bool {
	for i, g := range r.log.rings {
		if r.at[i].floor.Load() < g.edge.Load() {
			return false
		}
	}
	return true
}

// Edge of a channel's ring, as it was before the last call of News: clients that were served since then and need a message
// below it are slow.
func (r *Reader) Edge(ch *Channel) uint64 { return r.at[ch.ring.index].served }

// Release raises the floors to the edges as they were before the last call of News: the reader has no client any more that
// needs a message below them. What has come since is for the next round, and Released says whether there is one to do.
func (r *Reader) Release() {
	for i := range r.at {
		r.raise(i, r.at[i].served)
	}
}

// Retire raises the floors for ever, of a reader that has no clients and will have none any more.
func (r *Reader) Retire() {
	for i := range r.at {
		r.raise(i, Gone)
	}
}

func (r *Reader) raise(ring int, floor uint64) {
	at := &r.at[ring]
	if floor <= at.floor.Load() {
		return
	}
	at.floor.Store(floor)
	if r.log.rings[ring].waiting.Load() > 0 {
		r.log.mu.Lock()
		r.log.room.Broadcast()
		r.log.mu.Unlock()
	}
}

// Next returns the ordinal of the channel's first message after the cursor, 0 if there is none. ok is false when
// there were messages in between that the log has overwritten, or may overwrite at any time, because they are below the
// reader's floor. What is returned is at or above the floor, and stays what it is until the next Release.
func (r *Reader) Next(ch *Channel, cursor uint64) (seq uint64, ok bool) {
	if cursor >= ch.last.Load() {
		return 0, true
	}
	g := ch.ring
	floor := r.at[g.index].floor.Load()
	if cursor >= floor {
		return g.m.entry(cursor).next.Load(), true
	}
	// The cursor's own message may be overwritten at this moment: the client is up to date but for what was appended
	// since the floor was raised, or it is slow. next is loaded before tail, and Append moves the tail before it
	// overwrites: if the tail has not passed the cursor, next was right.
	if seq = ch.first.Load(); seq <= cursor {
		seq = g.m.entry(cursor).next.Load()
		if g.m.head.tail.Load() > cursor {
			seq = ch.first.Load()
		}
	}
	// evicted is loaded after first, and evictLocked stores it before: a message that was passed over is noticed.
	return seq, seq >= floor && ch.evicted.Load() <= cursor
}

// Number of the message of a channel with that ordinal, at or above the floor: what orders it among those of other
// channels, and is in its id.
func (r *Reader) Number(ch *Channel, seq uint64) uint64 { return ch.ring.m.number(seq) }

// Seen is the number of the newest message of a channel up to a cursor, 0 if none is known: who comes back with it is brought what
// is after the cursor. The cursor is that of a client that is not slow.
func (r *Reader) Seen(ch *Channel, cursor uint64) uint64 {
	if ch.ring.m.numbers == nil {
		return cursor
	}
	r.log.mu.Lock() // so that nothing comes between the two
	defer r.log.mu.Unlock()
	if next, _ := r.Next(ch, cursor); next != 0 {
		return ch.ring.m.before(next)
	}
	return ch.Newest()
}

// Frame is the finished frame of a message at or above the floor: mapped memory, not to be written, and valid until the next
// Release.
func (r *Reader) Frame(ch *Channel, seq uint64) []byte {
	e := ch.ring.m.entry(seq)
	return ch.ring.m.bytes(e.pos, uint64(e.size))
}

// Run is a stretch of consecutive messages of one channel after a cursor.
type Run struct {
	Slices   [][]byte // what there is to send, in order; frames that lie next to each other are one slice
	Bytes    int      // in all slices
	Messages int      // whose frames end in the slices
	Last     uint64   // ordinal of the last message, the cursor if there is none
	More     bool     // the channel has messages after Last
}

// Run collects the messages of a channel after the cursor, starting with byte skip of the first one, which must be smaller
// than that frame. It takes the first message whatever its size, and stops before one with which there would be
// more than limit bytes or slices slices. It reuses the memory of run. An empty run means that there is nothing to send.
// The slices are mapped memory, not to be written, and valid until the next Release. ok is as with Next; when it is
// false the run is of no use.
func (r *Reader) Run(run *Run, ch *Channel, cursor uint64, skip, limit, slices int) (ok bool) {
	run.Slices, run.Bytes, run.Messages, run.Last, run.More = run.Slices[:0], 0, 0, cursor, false
	m := ch.ring.m
	var from, to uint64 // positions of the slice in the making
	for {
		seq, ok := r.Next(ch, run.Last)
		if !ok {
			return false
		}
		if seq == 0 {
			break
		}
		e := m.entry(seq)
		if run.Messages > 0 && (run.Bytes+int(e.size) > limit || e.pos != to && len(run.Slices)+1 >= slices) {
			run.More = true
			break
		}
		switch {
		case run.Messages == 0:
			from = e.pos + uint64(skip)
			run.Bytes = -skip
		case e.pos != to:
			run.Slices = append(run.Slices, m.bytes(from, to-from))
			from = e.pos
		}
		to = e.pos + uint64(e.size)
		run.Bytes += int(e.size)
		run.Messages++
		run.Last = seq
	}
	if run.Messages > 0 {
		run.Slices = append(run.Slices, m.bytes(from, to-from))
	}
	return true
}

// Advance moves a cursor, of which skip bytes of the next message were out already, by n sent bytes. It returns the last
// message that is out as a whole, the bytes that are out of the one after it, and how many messages were completed.
func (r *Reader) Advance(ch *Channel, cursor uint64, skip, n int) (newCursor uint64, newSkip, completed int) {
	m := ch.ring.m
	n += skip
	for n > 0 {
		seq, ok := r.Next(ch, cursor)
		if !ok || seq == 0 {
			break
		}
		size := int(m.entry(seq).size)
		if n < size {
			break
		}
		n -= size
		cursor = seq
		completed++
	}
	return cursor, n, completed
}
