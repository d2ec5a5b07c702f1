package msglog

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

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
}

// ErrTooLarge: the frame is larger than an eighth of the log. A larger one could not be appended without overwriting what
// readers may still need.
var ErrTooLarge = errors.New("message too large for the log; log.size sets its size, a message can have an eighth of it")

// Log is the ring. See the package's documentation for who may do what.
type Log struct {
	file *os.File
	m    *mapping

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
	readers   []*Reader
	followers map[*Follower]struct{}
	bytes     uint64 // payload bytes appended by this process
	messages  uint64 // messages appended by this process
}

// Create makes an empty log in a new memfd.
func Create(o Options) (*Log, error) {
	var random [8]byte
	_, _ = rand.Read(random[:]) // never fails since Go 1.24
	f, err := makeFile(o, binary.LittleEndian.Uint64(random[:]))
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

// makeFile makes the file of an empty log.
func makeFile(o Options, epoch uint64) (*os.File, error) {
	if o.Size < MinSize || o.Size > MaxSize {
		return nil, fmt.Errorf("log: a size of %d bytes is outside %d to %d", o.Size, int64(MinSize), int64(MaxSize))
	}
	if o.Channels < 1 || o.Channels > MaxChannels {
		return nil, fmt.Errorf("log: %d channels are outside 1 to %d", o.Channels, MaxChannels)
	}
	fd, err := unix.MemfdCreate("wscast-log", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|unix.MFD_NOEXEC_SEAL)
	if errors.Is(err, unix.EINVAL) { // MFD_NOEXEC_SEAL came with Linux 6.3
		fd, err = unix.MemfdCreate("wscast-log", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return nil, fmt.Errorf("log: memfd_create: %w", err)
	}
	f := os.NewFile(uintptr(fd), "wscast-log")
	data := roundUp(uint64(o.Size))
	err = writeHeader(fd, uint32(o.Channels), data/bytesPerEntry, data, epoch)
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
	return l, nil
}

// Close unmaps the log. No reader, follower or appender may be at work.
func (l *Log) Close() error {
	return errors.Join(l.m.unmap(), l.file.Close())
}

// File is the memfd.
func (l *Log) File() *os.File { return l.file }

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
	size := uint64(frame.HeaderSize(len(message)) + len(message))
	if size > l.m.size/reserve {
		return 0, ErrTooLarge
	}
	now := time.Now().UnixNano()

	l.mu.Lock()
	defer l.mu.Unlock()
	if l.byName[string(channel)] == nil {
		if err := checkName(channel); err != nil { // before anything is overwritten for it
			return 0, err
		}
	}
	l.makeRoomLocked(size)
	// After the room was made: waiting for it lets go of mu, and a channel can be forgotten meanwhile.
	ch, err := l.channelLocked(channel)
	if err != nil {
		return 0, err
	}

	seq := l.m.head.head.Load() + 1
	b := l.m.bytes(l.pos, size)
	copy(b[frame.PutHeader(b, op, len(message)):], message)
	e := l.m.entry(seq)
	e.seq, e.pos, e.size, e.channel, e.time = seq, l.pos, uint32(size), ch.id, now
	e.prev = ch.last.Load()
	e.next.Store(0)
	l.m.head.head.Store(seq) // from here on the message exists
	l.pos += size
	l.messages++
	l.bytes += uint64(len(message))

	l.linkLocked(ch, seq)
	for readers := ch.readers; readers != 0; readers &= readers - 1 {
		l.readerOf(readers).tell(ch)
	}
	if l.pos >= l.nudgePos || seq >= l.nudgeSeq {
		l.nudgeLocked()
	}
	for f := range l.followers {
		f.kick()
	}
	return ch.clients, nil
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
	l.m.head.tail.Add(1) // not Store: see Follower.TryNext
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
	}
	if u.Messages > 0 {
		u.Bytes = l.pos - l.m.entry(tail).pos
		u.Oldest = time.Unix(0, l.m.entry(tail).time)
	}
	return u
}
