package msglog

import (
	"os"
	"sort"
	"sync/atomic"
	"time"
)

// Limits of a log of several rings.
const (
	// MaxRings is how many rings a log can have. Each is a descriptor in the service manager's store, two while they are
	// rearranged.
	MaxRings = 16
	// MaxMatch is the longest pattern of a ring's channels, in bytes.
	MaxMatch = 128

	cellBits = 24 // of a channel's id; the others are its ring
)

// MaxChannels is how many cells the ids have bits for.
const _ = uint(1<<cellBits - MaxChannels)

// A ring has the messages of some channels: its own file, with an order and a place of its own, so that what is written
// there overwrites nothing anywhere else. A log has one for all channels, or several. Where nothing else is said what
// belongs to it is guarded by Log.mu.
//
// A message has two numbers. The ordinal counts the messages of the ring, and tells where the entry is; cursors and links
// are ordinals. The number counts those of the log; ids and the order of a client's messages are made of it.
type ring struct {
	log    *Log
	file   *os.File
	path   string // "" in memory
	m      *mapping
	writer *writer // nil in memory
	index  int     // in Log.rings
	match  string  // pattern of its channels; "" for those of no other ring
	age    time.Duration

	edge    atomic.Uint64 // ordinal: readers should not need anything below it
	waiting atomic.Int32  // appenders waiting for readers to raise their floors

	byID     []*Channel // by cell
	channels int        // in byID
	free     []uint32   // cells below len(byID) that are not in use
	pos      uint64     // of the next frame
	nudgePos uint64     // when pos or head gets there, readers are asked to raise their floors
	nudgeSeq uint64
}

// id of the channel of a cell.
func (g *ring) id(cell uint32) uint32 { return uint32(g.index)<<cellBits | cell }

// cellOf is the cell of an id.
func cellOf(id uint32) uint32 { return id & (1<<cellBits - 1) }

// ringOf is the ring of an id, nil if there is none.
func (l *Log) ringOf(id uint32) *ring {
	if index := int(id >> cellBits); index < len(l.rings) {
		return l.rings[index]
	}
	return nil
}

// ringFor is the ring of a channel that is to be made: the first one whose pattern matches.
func (l *Log) ringFor(name []byte) *ring {
	for _, g := range l.routes {
		if l.matches(g.match, string(name)) {
			return g
		}
	}
	return l.rings[0]
}

// above is the first ordinal from floor on whose message has a greater number than that; the one after the head if none.
func (g *ring) above(floor, number uint64) uint64 {
	head := g.m.head.head.Load()
	if g.m.numbers == nil {
		return max(floor, min(number, head)+1)
	}
	if floor > head {
		return floor
	}
	return floor + uint64(sort.Search(int(head+1-floor), func(i int) bool { return g.m.number(floor+uint64(i)) > number }))
}

// gone is the number of the newest message that is missing below an ordinal that is the tail or above it, or among what is kept;
// 0 if there is none.
func (g *ring) gone(floor uint64) uint64 {
	switch {
	case g.m.numbers == nil:
		return max(floor, 1) - 1
	case floor <= 1:
		return g.m.head.holes.Load()
	}
	number := g.m.number(floor - 1)
	// It may be overwritten at this moment. evictLocked notes it before it moves the tail.
	if g.m.head.tail.Load() >= floor {
		number = g.m.head.gone.Load()
	}
	return max(number, g.m.head.holes.Load())
}

// newest number that the ring knows to have been given.
func (m *mapping) newest() uint64 {
	head := m.head.head.Load()
	if m.numbers == nil {
		return head
	}
	newest := max(m.head.given.Load(), m.head.gone.Load())
	if head >= m.head.tail.Load() {
		newest = max(newest, m.number(head))
	}
	return newest
}

// fresh is the first ordinal above the age of the ring, at or above the floor. What is older is in the ring until its place
// is needed, and is not brought any more.
func (g *ring) fresh(floor uint64) uint64 {
	if g.age == 0 {
		return floor
	}
	return g.since(floor, time.Now().Add(-g.age))
}

// since is the first ordinal from floor on of a message that is not older than that time.
func (g *ring) since(floor uint64, t time.Time) uint64 {
	since, head := t.UnixNano(), g.m.head.head.Load()
	return floor + uint64(sort.Search(int(head+1-min(floor, head+1)), func(i int) bool { return g.m.entry(floor+uint64(i)).time >= since }))
}

// rearranged is the first ordinal of a ring that was made out of others. Below it are two that stand for what was not taken
// along: cursors that were before that, see Moves.
const (
	passed     = 1 // there are messages after it that were not taken along
	upToDate   = 2 // all that comes after it was
	rearranged = 3
)
