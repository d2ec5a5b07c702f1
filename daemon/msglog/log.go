package msglog

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"wscast/daemon/failpoint"
	"wscast/daemon/frame"
)

// Limits of Options.
const (
	MinSize     = 1 << 20
	MaxSize     = 1 << 40
	MaxChannels = 1 << 24
)

// bytesPerEntry: the index has an entry for so many bytes of frames. With smaller messages the log is full when it
// runs out of entries.
const bytesPerEntry = 256

// reserve is the share of the log, one part in so many, between its tail and the edge below which a client is slow.
const reserve = 8

// Options of a new log, or of one of its rings.
type Options struct {
	Size     int64 // bytes of frames, MinSize to MaxSize, rounded up to 64 KiB
	Channels int   // how many channels can have clients or messages in the log at the same time
	// Path of the file of Load and Resized. With "" a log is in memory: it outlives the process, but not the machine's run.
	Path string
	// Match is the pattern of the ring's channels; "" for the one that has all that no other one has, the first one.
	Match string
	Age   time.Duration // messages that are older are not brought by Seek; 0: all are
}

// ErrTooLarge: the frame is larger than an eighth of its ring. A larger one could not be appended without overwriting what
// readers may still need.
var ErrTooLarge = errors.New("message too large for the log; log.size, or size of the channel's [[log.own]], sets its size, a message can have an eighth of it")

// Log is the rings. See the package's documentation for who may do what.
type Log struct {
	rings   []*ring
	routes  []*ring // those with patterns, in the order in which they are tried
	matches func(pattern, name string) bool

	number atomic.Uint64 // of the newest message, where numbers are not ordinals
	now    atomic.Int64  // time of the messages that are put, 0: it is to be asked for

	mu        sync.Mutex
	room      *sync.Cond // a reader has raised one of its floors; uses mu
	byName    map[string]*Channel
	readers   []*Reader // the beginning of byBit
	byBit     [MaxReaders]*Reader
	followers map[*Follower]struct{}
	once      map[onceHash]struct{} // of the ids of the messages in the log
	bytes     uint64                // payload bytes appended by this process
	messages  uint64                // messages appended by this process

	// Who is to be woken by the next Flush. Set under mu.
	untold          atomic.Uint64 // bits of the readers with news that they were not woken for
	untoldFollowers atomic.Bool
}

// Create makes an empty log in memory.
func Create(o Options) (*Log, error) {
	h, err := o.header()
	if err != nil {
		return nil, err
	}
	h.epoch = newEpoch()
	f, err := makeMemory(h)
	if err != nil {
		return nil, err
	}
	l, err := Open(f)
	if err != nil {
		f.Close()
		return nil, err
	}
	return l, nil
}

// header of an empty log, but for the epoch.
func (o Options) header() (*header, error) {
	if o.Size < MinSize || o.Size > MaxSize {
		return nil, fmt.Errorf("log: a size of %d bytes is outside %d to %d", o.Size, int64(MinSize), int64(MaxSize))
	}
	if o.Channels < 1 || o.Channels > MaxChannels {
		return nil, fmt.Errorf("log: %d channels are outside 1 to %d", o.Channels, MaxChannels)
	}
	data := roundUp(uint64(o.Size))
	if len(o.Match) > MaxMatch {
		return nil, fmt.Errorf("log: a pattern of %d bytes is longer than %d", len(o.Match), MaxMatch)
	}
	h := &header{channels: uint32(o.Channels), entries: data / bytesPerEntry, data: data}
	h.tail.Store(1)
	return h, nil
}

// makeMemory makes the memfd of an empty log.
func makeMemory(h *header) (*os.File, error) {
	fd, err := unix.MemfdCreate("wscast-log", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|unix.MFD_NOEXEC_SEAL)
	if errors.Is(err, unix.EINVAL) { // MFD_NOEXEC_SEAL came with Linux 6.3
		fd, err = unix.MemfdCreate("wscast-log", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return nil, fmt.Errorf("log: memfd_create: %w", err)
	}
	f := os.NewFile(uintptr(fd), "wscast-log")
	if err = f.Truncate(int64(h.end())); err != nil {
		err = fmt.Errorf("log: making a file of %d bytes: %w", h.end(), err)
	}
	if err == nil {
		err = initialize(f, h)
	}
	if err == nil {
		// Nobody can cut off the mapped memory under our feet (SIGBUS).
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// Open takes over a log, by the files of its rings in any order: an empty one, or one that another process has written and
// was, perhaps, killed in the middle of it. It refuses a log in which anything is not as Append can have left it, but cannot
// know a time or a payload that is wrong. The log owns the files from then on; when Open fails the caller still does.
//
// A file may be one that Load has opened in that other process, which has locked it then. It must not have been out of
// memory since: Load is for a file that was on a disk only.
func Open(files ...*os.File) (*Log, error) {
	l := newLog()
	err := l.open(files)
	if err == nil {
		err = l.lockFiles()
	}
	if err != nil {
		for _, g := range l.rings {
			if g != nil {
				err = errors.Join(err, g.m.unmap())
			}
		}
		return nil, err
	}
	for _, g := range l.rings {
		if g.m.head.sums != 0 {
			g.startWriter()
		}
	}
	return l, nil
}

func newLog() *Log {
	l := &Log{byName: make(map[string]*Channel), followers: make(map[*Follower]struct{})}
	l.room = sync.NewCond(&l.mu)
	return l
}

// open maps the files and makes the channels of what they have.
func (l *Log) open(files []*os.File) error {
	l.rings = make([]*ring, len(files))
	for _, f := range files {
		m, err := mapFile(f)
		if err != nil {
			return err
		}
		p := &m.head.part
		if max(1, int(p.count)) != len(files) || l.rings[p.index] != nil {
			return errors.Join(damaged("there are %d of %d rings, and one of them is number %d", len(files), p.count, p.index), m.unmap())
		}
		l.rings[p.index] = &ring{log: l, file: f, m: m, index: int(p.index), match: p.pattern()}
	}
	first := l.rings[0].m.head
	for _, g := range l.rings {
		if h := g.m.head; h.epoch != first.epoch || h.part.arrangement != first.part.arrangement {
			return damaged("its rings are of different logs")
		}
		if err := g.rebuild(); err != nil {
			return err
		}
		l.number.Store(max(l.number.Load(), g.m.newest()))
	}
	l.routes = l.rings[1:]
	return nil
}

// lockFiles is for rings with files on a disk.
func (l *Log) lockFiles() error {
	for _, g := range l.rings {
		if g.m.head.sums == 0 {
			continue
		}
		g.path = pathOf(g.file)
		if err := lock(g.file); err != nil { // no effect on a lock that came along
			return fileError(g.path, err)
		}
		// Nothing may be appended as long as the disk says that the log is closed.
		if g.m.head.closed.Swap(0) != 0 {
			if err := dataSync(g.file); err != nil {
				return err
			}
		}
	}
	return nil
}

// Close unmaps the log. No reader, follower or appender may be at work. Another process may go on with the files; without
// one, Finish comes first.
func (l *Log) Close() error {
	var errs []error
	for _, g := range l.rings { // all of them first: they look at the log as a whole
		if g.writer != nil {
			g.writer.stop()
		}
	}
	for _, g := range l.rings {
		errs = append(errs, g.m.unmap(), g.file.Close())
	}
	return errors.Join(errs...)
}

// Rings is how many rings the log has.
func (l *Log) Rings() int { return len(l.rings) }

// File of a ring: the memfd, or the file on the disk.
func (l *Log) File(ring int) *os.File { return l.rings[ring].file }

// Path of a ring's file, "" in memory.
func (l *Log) Path(ring int) string { return l.rings[ring].path }

// Arrangement is what the rings of a log have in common, and those of another one have not; 0 for a log that has always
// been one ring.
func (l *Log) Arrangement() uint64 { return l.rings[0].m.head.part.arrangement }

// Sequence tells whether an id, an epoch and a number, is that of a message of this log, be it kept or not, as far as one of
// its rings knows, and returns the number that the message has here. Ids of earlier epochs are, up to where the ring was cut
// when it got a new one.
func (l *Log) Sequence(ring int, epoch, number uint64) (uint64, bool) {
	h := l.rings[ring].m.head
	if epoch == h.epoch {
		return number, number <= l.Head()
	}
	for _, g := range h.earlier {
		if g.epoch == epoch && g.epoch != 0 {
			return number, number <= g.last && g.last > 0
		}
	}
	return 0, false
}

// Epoch is the random number of this log. An id that clients see is the epoch and the number of a message.
func (l *Log) Epoch() uint64 { return l.rings[0].m.head.epoch }

// Head is the number of the newest message, 0 if there was none.
func (l *Log) Head() uint64 {
	if m := l.rings[0].m; m.numbers == nil {
		return m.head.head.Load()
	}
	return l.number.Load()
}

// Edge is the ordinal below which a client of a channel of that ring is slow.
func (l *Log) Edge(ring int) uint64 { return l.rings[ring].edge.Load() }

// Starved tells whether an appender waits for readers to raise their floors.
func (l *Log) Starved() bool {
	for _, g := range l.rings {
		if g.waiting.Load() > 0 {
			return true
		}
	}
	return false
}

// Append puts one message at the head of the log as a frame with the given opcode and returns to how many clients it
// goes. When it returns without an error the message is in the log, also for a process that takes the log over.
// Readers with clients of the channel are woken.
//
// Errors: a name that is empty or longer than MaxName, ErrChannels, ErrTooLarge.
func (l *Log) Append(channel, message []byte, op frame.Opcode) (clients int, err error) {
	clients, _, err = l.Put(channel, message, nil, op)
	l.Flush()
	return clients, err
}

// Put is Append for one of several messages: readers and followers that wait for news are not woken before the next
// Flush, whoever calls it. Those that do not wait find the message already. What is put between two calls of Flush has one time.
//
// With an id, which is up to MaxID bytes, nothing is put if the log has a message of the channel with that id: again is true, and
// clients are those that the channel has now. Where several put the same id at once, one of them does.
//
// Errors: as Append, and an id that is too long.
func (l *Log) Put(channel, message, id []byte, op frame.Opcode) (clients int, again bool, err error) {
	size := uint64(frame.HeaderSize(len(message)) + len(message))
	var once onceHash
	if len(id) > 0 {
		if err := checkName(channel); err != nil {
			return 0, false, err
		}
		if len(id) > MaxID {
			return 0, false, errID
		}
		once = hashID(channel, id)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	var g *ring
	if ch := l.byName[string(channel)]; ch != nil {
		g = ch.ring
	} else if err := checkName(channel); err != nil { // before anything is overwritten for it
		return 0, false, err
	} else {
		g = l.ringFor(channel)
	}
	if size > g.m.size/reserve {
		return 0, false, ErrTooLarge
	}
	if l.hasLocked(once) { // before room is made: the room could be that message's
		return l.clientsLocked(channel), true, nil
	}
	g.makeRoomLocked(size)
	// After the room was made: waiting for it lets go of mu, and meanwhile a channel can be forgotten, and somebody else can
	// put the id.
	if l.hasLocked(once) {
		return l.clientsLocked(channel), true, nil
	}
	ch, err := l.channelLocked(channel)
	if err != nil {
		return 0, false, err
	}

	seq, number := g.m.head.head.Load()+1, l.Head()+1
	b := g.m.bytes(g.pos, size)
	copy(b[frame.PutHeader(b, op, len(message)):], message)
	failpoint.Pass("append.framed")
	e := g.m.entry(seq)
	e.seq, e.pos, e.size, e.channel, e.time = seq, g.pos, uint32(size), cellOf(ch.id), l.nowLocked()
	e.prev = ch.last.Load()
	e.next.Store(0)
	e.once = once
	g.m.setNumber(seq, number, ch.Newest())
	if g.writer != nil {
		e.sum = g.m.sum(e)
	}
	l.rememberLocked(once)
	failpoint.Pass("append.entered")
	g.m.head.head.Store(seq) // from here on the message exists, with its id
	if g.m.numbers != nil {
		l.number.Store(number) // before anybody is told of it
	}
	failpoint.Pass("append.head")
	g.pos += size
	l.messages++
	l.bytes += uint64(len(message))

	g.linkLocked(ch, seq, number)
	failpoint.Pass("append.linked")
	for readers := ch.readers; readers != 0; readers &= readers - 1 {
		if r := l.readerOf(readers); r.tell(ch) {
			l.untold.Or(r.bit)
		}
	}
	if g.pos >= g.nudgePos || seq >= g.nudgeSeq {
		g.nudgeLocked()
	}
	if len(l.followers) > 0 {
		l.untoldFollowers.Store(true)
	}
	if g.writer != nil {
		g.writer.tell()
	}
	return ch.clients, false, nil
}

// nowLocked is the time of the messages that are put until the next Flush: to ask the clock for each of them would be a tenth of what
// publishing costs.
func (l *Log) nowLocked() int64 {
	now := l.now.Load()
	if now == 0 {
		now = time.Now().UnixNano()
		l.now.Store(now)
	}
	return now
}

// Flush wakes the readers and followers that wait for what was put, by whomever: so nobody's message waits for the end of
// another one's batch. Readers are woken without mu, since every message comes by here.
func (l *Log) Flush() {
	l.now.Store(0)
	l.wakeUntold()
	if l.untoldFollowers.Load() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.kickUntoldLocked()
	}
}

// wakeUntold may be called with mu held or not: byBit is written before anybody can set the bit.
func (l *Log) wakeUntold() {
	if l.untold.Load() == 0 {
		return
	}
	for untold := l.untold.Swap(0); untold != 0; untold &= untold - 1 {
		l.readerOf(untold).wake()
	}
}

func (l *Log) kickUntoldLocked() {
	if l.untoldFollowers.Swap(false) {
		for f := range l.followers {
			f.kick()
		}
	}
}

// linkLocked makes an entry the last one of its channel. Reader.Next loads last before anything else, so last is stored
// last.
func (g *ring) linkLocked(ch *Channel, seq, number uint64) {
	if ch.first.Load() == 0 {
		ch.first.Store(seq)
	} else {
		g.m.entry(ch.last.Load()).next.Store(seq)
	}
	ch.kept++
	if g.m.numbers != nil {
		ch.number.Store(number) // before: Seek reads it after last
	}
	ch.last.Store(seq)
}

// makeRoomLocked moves the tail until there is place for a frame of size bytes and an entry. It lets go of mu while it
// waits for readers.
func (g *ring) makeRoomLocked(size uint64) {
	for {
		tail, head := g.m.head.tail.Load(), g.m.head.head.Load()
		if tail > head ||
			g.pos+size-g.m.entry(tail).pos <= g.m.size && head+1-tail < uint64(len(g.m.index)) {
			return
		}
		if tail < g.lowestFloorLocked() {
			g.evictLocked(tail)
			continue
		}
		// First waiting, then the floors: Release does it the other way round, so that one of the two sees the other.
		// The edge that is given out here is above the tail, and no further away than what size needs: it is an eighth of
		// the ring above it, and no frame is larger.
		g.waiting.Add(1)
		g.nudgeLocked()
		g.log.wakeUntold() // what was put before is not to wait as well
		g.log.kickUntoldLocked()
		if tail >= g.lowestFloorLocked() {
			g.log.room.Wait()
			g.log.now.Store(0)
		}
		g.waiting.Add(-1)
	}
}

// evictLocked gives up the oldest message. Reader.Next and Follower.TryNext rely on the order: evicted, first, tail, and
// overwriting after that.
func (g *ring) evictLocked(tail uint64) {
	e := g.m.entry(tail)
	ch := g.byID[e.channel]
	ch.evicted.Store(tail)
	ch.first.Store(e.next.Load())
	ch.kept--
	g.log.forgetIDLocked(e.once)
	if g.m.numbers != nil {
		g.m.head.gone.Store(g.m.number(tail))
	}
	g.m.head.tail.Add(1) // not Store: see Follower.TryNext
	failpoint.Pass("append.evicted")
	g.log.forgetLocked(ch)
}

// nudgeLocked moves the edge to an eighth of the data, or of the index, above the place where the log is overwritten, and
// wakes the readers below it. It is done in steps of a quarter of that eighth, not with every message, because readers
// look through their blocked clients each time.
func (g *ring) nudgeLocked() {
	head := g.m.head.head.Load()
	data, entries := g.m.size, uint64(len(g.m.index))
	edge := max(g.edge.Load(), g.m.head.tail.Load())
	for edge <= head && (g.pos-g.m.entry(edge).pos > data-data/reserve || head+1-edge > entries-entries/reserve) {
		edge++
	}
	g.edge.Store(edge)
	g.nudgePos, g.nudgeSeq = g.pos+data/reserve/4, head+entries/reserve/4
	for _, r := range g.log.readers {
		if r.at[g.index].floor.Load() < edge {
			r.wake()
		}
	}
}

// Usage says how full a ring is.
type Usage struct {
	Messages, Entries uint64 // kept, and place for
	Bytes, Size       uint64 // of frames kept, and place for
	Channels          int    // with clients or messages
	Places            int    // for channels
	Oldest            time.Time
	Published         uint64 // messages appended by this process
	PublishedBytes    uint64 // their payload
	Epoch, Head       uint64 // of the log, as are the published ones
	Path              string // of its file, "" in memory
	Match             string // pattern of its channels
}

// Usage of the rings now: first that of the channels which no pattern matches, then in the order of the arrangement.
func (l *Log) Usage() (all []Usage) {
	l.mu.Lock()
	defer l.mu.Unlock()
	all = append(all, l.rings[0].usageLocked())
	for _, g := range l.routes {
		all = append(all, g.usageLocked())
	}
	return all
}

func (g *ring) usageLocked() Usage {
	tail, head := g.m.head.tail.Load(), g.m.head.head.Load()
	u := Usage{
		Messages: head + 1 - tail, Entries: uint64(len(g.m.index)), Size: g.m.size,
		Channels: g.channels, Places: len(g.m.cells),
		Published: g.log.messages, PublishedBytes: g.log.bytes, Epoch: g.m.head.epoch, Head: g.log.Head(),
		Path: g.path, Match: g.match,
	}
	if u.Messages > 0 {
		u.Bytes = g.pos - g.m.entry(tail).pos
		u.Oldest = time.Unix(0, g.m.entry(tail).time)
	}
	return u
}
