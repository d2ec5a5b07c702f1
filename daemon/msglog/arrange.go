package msglog

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"slices"

	"wscast/daemon/failpoint"
)

// Which channels have which ring is told by an Arrangement, and changes between two processes only. A log that does not fit
// the one that is asked for is copied, message by message in the order of their numbers, into rings that do. A ring that is
// copied that way begins with new ordinals, so what others know of cursors and of channels has to be moved as well: Moves.

// Arrangement says which rings a log is to have.
type Arrangement struct {
	// Rings are 1 to MaxRings; the first one has no Match, all others have different ones. A channel has the first one
	// that matches it.
	Rings []Options
	// Matches tells whether a pattern matches a channel's name. It is called under locks of the log.
	Matches func(pattern, name string) bool
}

// ringFor is the index of the ring of a channel.
func (a *Arrangement) ringFor(name string) int {
	for i, o := range a.Rings[1:] {
		if a.Matches(o.Match, name) {
			return i + 1
		}
	}
	return 0
}

// alone tells whether there is but one ring.
func (a *Arrangement) alone() bool { return len(a.Rings) == 1 }

// A RingError is about one ring of an arrangement, of which there can be no such file.
type RingError struct {
	Ring int
	Err  error
}

func (e *RingError) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *RingError) Unwrap() error { return e.Err }

// CreateAll makes an empty log in memory.
func CreateAll(a *Arrangement) (*Log, error) {
	if a.alone() {
		l, err := Create(a.Rings[0])
		if err == nil {
			l.arrange(a)
		}
		return l, err
	}
	c := newCopy(a, nil)
	defer c.discard()
	return c.finish()
}

// Fits tells whether a log has the rings that are asked for, and nothing in any of them that belongs to another one. If so
// it uses the order and the ages of the arrangement from now on.
func (l *Log) Fits(a *Arrangement) bool {
	if len(l.rings) != len(a.Rings) {
		return false
	}
	for i := range a.Rings {
		if g := l.ringWith(a.Rings[i].Match); g == nil || !g.fits(a, i) {
			return false
		}
	}
	l.arrange(a)
	return true
}

// ringWith is the ring with that pattern.
func (l *Log) ringWith(match string) *ring {
	for i, g := range l.rings {
		if g.match == match && (i == 0) == (match == "") {
			return g
		}
	}
	return nil
}

// arrange has a log that fits use an arrangement.
func (l *Log) arrange(a *Arrangement) {
	l.matches, l.routes = a.Matches, nil
	for i, o := range a.Rings {
		g := l.ringWith(o.Match)
		g.age = o.Age
		if o.Path != "" {
			g.path = o.Path // a descriptor from elsewhere does not say it exactly
		}
		if i > 0 {
			l.routes = append(l.routes, g)
		}
	}
}

// Keep has a log go on with the rings that it has, as far as an arrangement does not say anything else of them.
func (l *Log) Keep(a *Arrangement) {
	l.matches, l.routes = a.Matches, nil
	for i, o := range a.Rings {
		if g := l.ringWith(o.Match); g != nil {
			if g.age = o.Age; i > 0 {
				l.routes = append(l.routes, g)
			}
		}
	}
	for _, g := range l.rings[1:] {
		if !slices.Contains(l.routes, g) {
			l.routes = append(l.routes, g)
		}
	}
}

// fits tells whether a ring is as the arrangement wants that one.
func (g *ring) fits(a *Arrangement, i int) bool {
	o := &a.Rings[i]
	if g.match != o.Match || g.m.numbers == nil && !a.alone() || g.m.size != roundUp(uint64(o.Size)) || g.inMemory() != (o.Path == "") ||
		o.Path != "" && !isAt(g.file, o.Path) {
		return false
	}
	cells := o.Channels
	for id := range g.m.cells {
		if g.m.cells[id].size == 0 {
			continue
		}
		if name, ok := g.m.cells[id].get(); ok && a.ringFor(string(name)) != i {
			return false
		}
		cells = max(cells, id+1)
	}
	return cells == len(g.m.cells)
}

func (g *ring) inMemory() bool { return g.m.head.sums == 0 }

// Rearranged returns a copy of the log in the rings that are asked for, with the same epoch and the same numbers, and as many
// of the newest messages of each ring as fit. The log itself stays as it is, also where a file of it has lost its path to a
// new one. It must not be in use: there are no readers, followers or appenders yet.
//
// What is at a path, and is not of this log, is moved aside; the new paths are returned. An error that is about one ring is
// a RingError.
func (l *Log) Rearranged(a *Arrangement) (next *Log, moves *Moves, aside []string, err error) {
	c := newCopy(a, l.rings)
	defer c.discard()
	c.epoch, c.given = l.Epoch(), l.Head()
	if next, err = c.finish(); err != nil {
		return nil, nil, c.aside, err
	}
	return next, &Moves{c: c, from: l, to: next}, c.aside, nil
}

// Moves tell where in a rearranged log it is what was somewhere in the log before. They are of use as long as both are open.
type Moves struct {
	c        *copying
	from, to *Log
}

// Channel returns the new id of a channel, and false for one that never was.
func (m *Moves) Channel(id uint32) (uint32, bool) {
	name, ok := m.name(id)
	if !ok {
		return 0, false
	}
	ring := m.c.a.ringFor(name)
	cell, ok := m.c.names[ring][name]
	return uint32(ring)<<cellBits | cell, ok
}

func (m *Moves) name(id uint32) (string, bool) {
	g, cell := m.from.ringOf(id), cellOf(id)
	if g == nil || uint64(cell) >= uint64(len(g.m.cells)) {
		return "", false
	}
	name, ok := g.m.cells[cell].get()
	return string(name), ok
}

// Cursor returns the new cursor of a client of a channel, by its old id.
func (m *Moves) Cursor(id uint32, cursor uint64) uint64 {
	name, ok := m.name(id)
	if !ok {
		return Gone
	}
	g, to := m.from.ringOf(id), m.to.rings[m.c.a.ringFor(name)]
	oldest := m.c.oldest[to.index]
	after := uint64(0) // the channel's first message after the cursor
	if cursor >= g.m.head.tail.Load() {
		switch {
		case cursor > g.m.head.head.Load() || g.m.entry(cursor).channel != cellOf(id):
			return Gone // Adopt refuses it, here as there
		case g.m.number(cursor) >= oldest:
			return to.above(rearranged, g.m.number(cursor)-1)
		}
		after = g.m.entry(cursor).next.Load()
	} else if ch := m.from.byName[name]; ch != nil {
		if after = ch.first.Load(); cursor < ch.evicted.Load() {
			return passed
		}
	}
	if after != 0 && g.m.number(after) < oldest {
		return passed
	}
	return upToDate
}

// copying is a log in the making.
type copying struct {
	a       *Arrangement
	sources []*ring
	epoch   uint64
	given   uint64
	lost    bool // there were rings that are not among the sources

	files  []*os.File
	maps   []*mapping
	names  []map[string]uint32 // cells
	oldest []uint64            // numbers of the oldest messages that are taken along, Gone: none
	inUse  bool                // the files are those of a log
	aside  []string
}

func newCopy(a *Arrangement, sources []*ring) *copying {
	n := len(a.Rings)
	c := &copying{a: a, sources: sources, epoch: newEpoch(), files: make([]*os.File, n), maps: make([]*mapping, n), names: make([]map[string]uint32, n), oldest: make([]uint64, n)}
	for i := range n {
		c.names[i] = make(map[string]uint32)
		c.oldest[i] = Gone
	}
	return c
}

// discard removes what was made for nothing.
func (c *copying) discard() {
	for i, m := range c.maps {
		if m != nil {
			_ = m.unmap()
			c.maps[i] = nil
		}
	}
	for i, f := range c.files {
		if f != nil && !c.inUse {
			f.Close()
			if path := c.a.Rings[i].Path; path != "" {
				_ = os.Remove(beside(path))
			}
		}
	}
}

// finish makes the log.
func (c *copying) finish() (*Log, error) {
	c.collectNames()
	arrangement := newArrangement()
	for i := range c.a.Rings {
		if err := c.makeRing(i, arrangement); err != nil {
			return nil, &RingError{i, err}
		}
	}
	if err := c.choose(); err != nil {
		return nil, err
	}
	c.copyAll()
	for i, m := range c.maps {
		if err := m.unmap(); err != nil {
			return nil, err
		}
		c.maps[i] = nil
	}
	failpoint.Pass("rearrange.copied")
	l, err := Open(c.files...)
	if err != nil {
		return nil, err
	}
	c.inUse = true
	// The first one last: it may be where all of them have been until now.
	for i, o := range slices.Backward(c.a.Rings) {
		if err == nil && o.Path != "" {
			if err = c.putInPlace(o.Path, c.files[i]); err != nil {
				err = &RingError{i, err}
			}
		}
	}
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	l.arrange(c.a)
	return l, nil
}

func newArrangement() uint64 {
	var random [8]byte
	_, _ = rand.Read(random[:])
	return binary.LittleEndian.Uint64(random[:]) | 1
}

func (c *copying) putInPlace(path string, f *os.File) error {
	if !slices.ContainsFunc(c.sources, func(g *ring) bool { return isAt(g.file, path) }) { // else it is locked
		aside, err := clearPath(path, func(m *mapping) bool { return m.head.epoch == c.epoch && m.newest() == c.given })
		if aside != "" {
			c.aside = append(c.aside, aside)
		}
		if err != nil {
			return err
		}
	}
	return putInPlace(path, f)
}

// collectNames gives every channel its cell: first those with messages, then all others whose names are there, since a
// client that was not taken over yet can refer to any of them.
func (c *copying) collectNames() {
	add := func(name string) {
		names := c.names[c.a.ringFor(name)]
		if _, ok := names[name]; !ok && len(names) < MaxChannels {
			names[name] = uint32(len(names))
		}
	}
	for _, g := range c.sources {
		for _, ch := range g.byID {
			if ch != nil {
				add(ch.name)
			}
		}
	}
	for _, g := range c.sources {
		for cell := range g.m.cells {
			if name, ok := g.m.cells[cell].get(); ok {
				add(string(name))
			}
		}
	}
}

func (c *copying) makeRing(i int, arrangement uint64) error {
	o := c.a.Rings[i]
	o.Channels = max(o.Channels, len(c.names[i]))
	h, err := o.header()
	if err != nil {
		return err
	}
	h.epoch = c.epoch
	h.part = c.a.part(i, arrangement)
	h.head.Store(rearranged - 1)
	h.tail.Store(rearranged)
	h.given.Store(c.given)
	gone := uint64(0)
	gone, h.earlier = c.past(o.Match)
	h.gone.Store(gone)
	h.holes.Store(gone)
	if o.Path == "" {
		c.files[i], err = makeMemory(h)
	} else {
		h.sums = 1
		c.files[i], err = makeBeside(o.Path, h)
	}
	if err != nil {
		return err
	}
	if c.maps[i], err = mapFile(c.files[i]); err != nil {
		return err
	}
	for name, cell := range c.names[i] {
		c.maps[i].cells[cell].put([]byte(name))
	}
	return nil
}

// part of the header of a ring.
func (a *Arrangement) part(i int, arrangement uint64) part {
	p := part{arrangement: arrangement, index: uint32(i), count: uint32(len(a.Rings)), patterns: a.patterns(), length: uint32(len(a.Rings[i].Match))}
	copy(p.match[:], a.Rings[i].Match)
	return p
}

// past is what a ring knows of what is not there any more. Where channels may have changed their rings it is what is true of
// all of them.
func (c *copying) past(match string) (gone uint64, earlier [generations]generation) {
	if c.sameRings() {
		for _, g := range c.sources {
			if g.match == match {
				return g.gone(g.m.head.tail.Load()), g.m.head.earlier
			}
		}
		return c.given, earlier
	}
	for _, g := range c.sources {
		gone = max(gone, g.gone(g.m.head.tail.Load()))
	}
	if c.lost || len(c.sources) == 0 {
		return max(gone, c.given), earlier
	}
	n := 0
	for _, was := range c.sources[0].m.head.earlier {
		in := true
		for _, g := range c.sources[1:] {
			last, ok := uint64(0), false
			for _, other := range g.m.head.earlier {
				if other.epoch == was.epoch {
					last, ok = other.last, true
				}
			}
			in = in && ok
			was.last = min(was.last, last)
		}
		if in && was.epoch != 0 {
			earlier[n] = was
			n++
		}
	}
	return gone, earlier
}

// sameRings tells whether every channel has the ring that it had.
func (c *copying) sameRings() bool {
	for _, g := range c.sources {
		if g.m.head.part.patterns != c.a.patterns() || g.m.numbers == nil && !c.a.alone() {
			return false
		}
	}
	return len(c.sources) > 0
}

// patterns is the checksum of all patterns.
func (a *Arrangement) patterns() (sum uint32) {
	for _, o := range a.Rings[1:] {
		sum = crc32.Update(sum, castagnoli, append([]byte(o.Match), 0))
	}
	return sum
}

// choose finds out how many messages of each ring have room, the newest ones of each.
func (c *copying) choose() error {
	full := make([]bool, len(c.a.Rings))
	places := make([]uint64, len(c.sources)) // ordinals
	bytes, count := make([]uint64, len(c.a.Rings)), make([]uint64, len(c.a.Rings))
	for i, g := range c.sources {
		places[i] = g.m.head.head.Load()
	}
	for {
		newest, number := -1, uint64(0)
		for i, g := range c.sources {
			if places[i] >= g.m.head.tail.Load() && (newest < 0 || g.m.number(places[i]) > number) {
				newest, number = i, g.m.number(places[i])
			}
		}
		if newest < 0 {
			return nil
		}
		g := c.sources[newest]
		e := g.m.entry(places[newest])
		places[newest]--
		to := c.a.ringFor(g.byID[e.channel].name)
		m, size := c.maps[to], uint64(e.size)
		if full[to] || c.oldest[to] == number { // it is in two of the sources
			continue
		}
		bytes[to] += size
		count[to]++
		if size > m.size/reserve || bytes[to] > m.size || count[to] >= uint64(len(m.index)) {
			if full[to] = true; c.oldest[to] == Gone {
				return &RingError{to, fmt.Errorf("log: a size of %d bytes is too small for the newest message, which has %d bytes: an eighth of it is for one message", m.size, size)}
			}
			m.head.gone.Store(max(m.head.gone.Load(), number))
			continue
		}
		c.oldest[to] = number
	}
}

// copyAll copies the messages that were chosen.
func (c *copying) copyAll() {
	places := make([]uint64, len(c.sources))
	pos, newest := make([]uint64, len(c.a.Rings)), make([]uint64, len(c.a.Rings))
	last := make(map[string]uint64) // by channel
	for i, g := range c.sources {
		places[i] = g.m.head.tail.Load()
	}
	for {
		oldest, number := -1, uint64(Gone)
		for i, g := range c.sources {
			if places[i] <= g.m.head.head.Load() && g.m.number(places[i]) < number {
				oldest, number = i, g.m.number(places[i])
			}
		}
		if oldest < 0 {
			break
		}
		g := c.sources[oldest]
		from, before := g.m.entry(places[oldest]), g.m.before(places[oldest])
		places[oldest]++
		name := g.byID[from.channel].name
		t := c.a.ringFor(name)
		m := c.maps[t]
		if number < c.oldest[t] || number == newest[t] {
			continue
		}
		newest[t] = number
		prev := last[name]
		switch {
		case prev != 0:
			before = m.number(prev)
		case from.prev != 0:
			prev = upToDate
		}
		seq := m.head.head.Load() + 1
		to := m.entry(seq)
		to.seq, to.pos, to.time, to.prev, to.size, to.channel = seq, pos[t], from.time, prev, from.size, c.names[t][name]
		to.once = from.once
		to.next.Store(0)
		m.setNumber(seq, number, before)
		if prev >= rearranged {
			m.entry(prev).next.Store(seq)
		}
		copy(m.bytes(pos[t], uint64(from.size)), g.m.bytes(from.pos, uint64(from.size)))
		if m.head.sums != 0 {
			to.sum = m.sum(to)
		}
		pos[t] += uint64(from.size)
		last[name] = seq
		m.head.head.Store(seq)
	}
	for _, m := range c.maps {
		if head := m.head.head.Load(); head >= rearranged {
			m.head.gone.Store(min(m.head.gone.Load(), m.number(rearranged)-1))
			m.head.synced.Store(head) // true once the copy has its path
		}
	}
}
