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

// Options of a new log.
type Options struct {
	Size     int64 // bytes of frames, MinSize to MaxSize, rounded up to 64 KiB
	Channels int   // how many channels can have clients or messages in the log at the same time
	// Path of the file of Load and Resized. With "" a log is in memory: it outlives the process, but not the machine's run.
	Path string
}

// ErrTooLarge: the frame is larger than an eighth of the log. A larger one could not be appended without overwriting what
// readers may still need.
var ErrTooLarge = errors.New("message too large for the log; log.size sets its size, a message can have an eighth of it")

// Log is the ring. See the package's documentation for who may do what.
type Log struct {
	file   *os.File
	path   string // "" in memory
	m      *mapping
	writer *writer // nil in memory

	edge    atomic.Uint64 // sequence number: readers should not need anything below it
	waiting atomic.Int32  // appenders waiting for readers to raise their floors

	mu        sync.Mutex
	room      *sync.Cond // a reader has raised its floor; uses mu
	byName    map[string]*Channel
	byID      []*Channel
	free      []uint32 // ids below len(byID) that are not in use
	pos       uint64   // of the next frame
	nudgePos  uint64   // when pos or head gets there, readers are asked to raise their floors
	nudgeSeq  uint64
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

// Open takes over a log: an empty one, or one that another process has written and was, perhaps, killed in the middle of
// it. It refuses a log in which anything is not as Append can have left it, but cannot know a time or a payload that is
// wrong. The log owns the file from then on; when Open fails the caller still does.
//
// The file may be one that Load has opened in that other process, which has locked it then. It must not have been out of
// memory since: Load is for a file that was on a disk only.
func Open(f *os.File) (*Log, error) {
	m, err := mapFile(f)
	if err != nil {
		return nil, err
	}
	l := &Log{file: f, m: m, byName: make(map[string]*Channel), followers: make(map[*Follower]struct{})}
	l.room = sync.NewCond(&l.mu)
	if err := l.rebuild(); err != nil {
		return nil, errors.Join(err, m.unmap())
	}
	if m.head.sums != 0 {
		l.path = pathOf(f)
		if err := lock(f); err != nil { // no effect on a lock that came along
			return nil, errors.Join(fileError(l.path, err), m.unmap())
		}
		// Nothing may be appended as long as the disk says that the log is closed.
		if m.head.closed.Swap(0) != 0 {
			if err := dataSync(f); err != nil {
				return nil, errors.Join(err, m.unmap())
			}
		}
		l.startWriter()
	}
	return l, nil
}

// Close unmaps the log. No reader, follower or appender may be at work. Another process may go on with the file; without
// one, Finish comes first.
func (l *Log) Close() error {
	if l.writer != nil {
		l.writer.stop()
	}
	return errors.Join(l.m.unmap(), l.file.Close())
}

// File is the memfd, or the file on the disk.
func (l *Log) File() *os.File { return l.file }

// Path of the log's file, "" for a log in memory.
func (l *Log) Path() string { return l.path }

// Sequence tells whether an id, an epoch and a sequence number, is that of a message of this log, be it kept or not, and returns
// the number that the message has here. Ids of earlier epochs are, up to where the log was cut when it got a new one.
func (l *Log) Sequence(epoch, seq uint64) (uint64, bool) {
	if epoch == l.m.head.epoch {
		return seq, seq <= l.Head()
	}
	for _, g := range l.m.head.earlier {
		if g.epoch == epoch && g.epoch != 0 {
			return seq, seq <= g.last && g.last > 0
		}
	}
	return 0, false
}

// Epoch is the random number of this log. An id that clients see is the epoch and the sequence number of a message.
func (l *Log) Epoch() uint64 { return l.m.head.epoch }

// Head is the sequence number of the newest message, 0 if there was none.
func (l *Log) Head() uint64 { return l.m.head.head.Load() }

// Edge is the sequence number below which a client is slow. A reader calls Release with it when none of its clients
// needs an older message any more.
func (l *Log) Edge() uint64 { return l.edge.Load() }

// Starved tells whether an appender waits for readers to raise their floors.
func (l *Log) Starved() bool { return l.waiting.Load() > 0 }

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
// Flush, whoever calls it. Those that do not wait find the message already.
//
// With an id, which is up to MaxID bytes, nothing is put if the log has a message of the channel with that id: again is true, and
// clients are those that the channel has now. Where several put the same id at once, one of them does.
//
// Errors: as Append, and an id that is too long.
func (l *Log) Put(channel, message, id []byte, op frame.Opcode) (clients int, again bool, err error) {
	size := uint64(frame.HeaderSize(len(message)) + len(message))
	if size > l.m.size/reserve {
		return 0, false, ErrTooLarge
	}
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
	now := time.Now().UnixNano()

	l.mu.Lock()
	defer l.mu.Unlock()
	if l.byName[string(channel)] == nil {
		if err := checkName(channel); err != nil { // before anything is overwritten for it
			return 0, false, err
		}
	}
	if l.hasLocked(once) { // before room is made: the room could be that message's
		return l.clientsLocked(channel), true, nil
	}
	l.makeRoomLocked(size)
	// After the room was made: waiting for it lets go of mu, and meanwhile a channel can be forgotten, and somebody else can
	// put the id.
	if l.hasLocked(once) {
		return l.clientsLocked(channel), true, nil
	}
	ch, err := l.channelLocked(channel)
	if err != nil {
		return 0, false, err
	}

	seq := l.m.head.head.Load() + 1
	b := l.m.bytes(l.pos, size)
	copy(b[frame.PutHeader(b, op, len(message)):], message)
	failpoint.Pass("append.framed")
	e := l.m.entry(seq)
	e.seq, e.pos, e.size, e.channel, e.time = seq, l.pos, uint32(size), ch.id, now
	e.prev = ch.last.Load()
	e.next.Store(0)
	e.once = once
	if l.writer != nil {
		e.sum = l.m.sum(e)
	}
	l.rememberLocked(once)
	failpoint.Pass("append.entered")
	l.m.head.head.Store(seq) // from here on the message exists, with its id
	failpoint.Pass("append.head")
	l.pos += size
	l.messages++
	l.bytes += uint64(len(message))

	l.linkLocked(ch, seq)
	failpoint.Pass("append.linked")
	for readers := ch.readers; readers != 0; readers &= readers - 1 {
		if r := l.readerOf(readers); r.tell(ch) {
			l.untold.Or(r.bit)
		}
	}
	if l.pos >= l.nudgePos || seq >= l.nudgeSeq {
		l.nudgeLocked()
	}
	if len(l.followers) > 0 {
		l.untoldFollowers.Store(true)
	}
	if l.writer != nil {
		l.writer.tell()
	}
	return ch.clients, false, nil
}

// Flush wakes the readers and followers that wait for what was put, by whomever: so nobody's message waits for the end of
// another one's batch. Readers are woken without mu, since every message comes by here.
func (l *Log) Flush() {
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
func (l *Log) linkLocked(ch *Channel, seq uint64) {
	if ch.first.Load() == 0 {
		ch.first.Store(seq)
	} else {
		l.m.entry(ch.last.Load()).next.Store(seq)
	}
	ch.kept++
	ch.last.Store(seq)
}

// makeRoomLocked moves the tail until there is place for a frame of size bytes and an entry. It lets go of mu while it
// waits for readers.
func (l *Log) makeRoomLocked(size uint64) {
	for {
		tail, head := l.m.head.tail.Load(), l.m.head.head.Load()
		if tail > head ||
			l.pos+size-l.m.entry(tail).pos <= l.m.size && head+1-tail < uint64(len(l.m.index)) {
			return
		}
		if tail < l.lowestFloorLocked() {
			l.evictLocked(tail)
			continue
		}
		// First waiting, then the floors: Release does it the other way round, so that one of the two sees the other.
		// The edge that is given out here is above the tail, and no further away than what size needs: it is an eighth of
		// the log above it, and no frame is larger.
		l.waiting.Add(1)
		l.nudgeLocked()
		l.wakeUntold() // what was put before is not to wait as well
		l.kickUntoldLocked()
		if tail >= l.lowestFloorLocked() {
			l.room.Wait()
		}
		l.waiting.Add(-1)
	}
}

// evictLocked gives up the oldest message. Reader.Next and Follower.TryNext rely on the order: evicted, first, tail, and
// overwriting after that.
func (l *Log) evictLocked(tail uint64) {
	e := l.m.entry(tail)
	ch := l.byID[e.channel]
	ch.evicted.Store(tail)
	ch.first.Store(e.next.Load())
	ch.kept--
	l.forgetIDLocked(e.once)
	l.m.head.tail.Add(1) // not Store: see Follower.TryNext
	failpoint.Pass("append.evicted")
	l.forgetLocked(ch)
}

// nudgeLocked moves the edge to an eighth of the data, or of the index, above the place where the log is overwritten, and
// wakes the readers below it. It is done in steps of a quarter of that eighth, not with every message, because readers
// look through their blocked clients each time.
func (l *Log) nudgeLocked() {
	head := l.m.head.head.Load()
	data, entries := l.m.size, uint64(len(l.m.index))
	edge := max(l.edge.Load(), l.m.head.tail.Load())
	for edge <= head && (l.pos-l.m.entry(edge).pos > data-data/reserve || head+1-edge > entries-entries/reserve) {
		edge++
	}
	l.edge.Store(edge)
	l.nudgePos, l.nudgeSeq = l.pos+data/reserve/4, head+entries/reserve/4
	for _, r := range l.readers {
		if r.floor.Load() < edge {
			r.wake()
		}
	}
}

// Usage says how full the log is.
type Usage struct {
	Messages, Entries uint64 // kept, and place for
	Bytes, Size       uint64 // of frames kept, and place for
	Channels          int    // with clients or messages
	Places            int    // for channels
	Oldest            time.Time
	Published         uint64 // messages appended by this process
	PublishedBytes    uint64 // their payload
	Epoch, Head       uint64
	Path              string // of its file, "" in memory
}

// Usage of the log now.
func (l *Log) Usage() Usage {
	l.mu.Lock()
	defer l.mu.Unlock()
	tail, head := l.m.head.tail.Load(), l.m.head.head.Load()
	u := Usage{
		Messages: head + 1 - tail, Entries: uint64(len(l.m.index)), Size: l.m.size,
		Channels: len(l.byName), Places: len(l.m.cells),
		Published: l.messages, PublishedBytes: l.bytes, Epoch: l.m.head.epoch, Head: head,
		Path: l.path,
	}
	if u.Messages > 0 {
		u.Bytes = l.pos - l.m.entry(tail).pos
		u.Oldest = time.Unix(0, l.m.entry(tail).time)
	}
	return u
}
