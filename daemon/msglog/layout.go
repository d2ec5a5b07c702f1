package msglog

import (
	"fmt"
	"hash/crc32"
	"math"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// This file is the one place that knows where things lie in the mapped file. It uses unsafe to see structures in memory
// that the garbage collector does not own; they contain no pointers.

// The layouts change with every change of the structures in this file. A log of one ring is as it was before there were
// several: its ordinals are the numbers, and it has no area and no part of the header that says so.
const (
	layoutAlone  = 2
	layoutOfMany = 3
)

// align is the granularity of the areas: the largest page size of the machines that Linux runs on.
const align = 64 << 10

var magic = [8]byte{'w', 's', 'c', 'a', 's', 't', 'l', 'g'}

// A generation is an epoch that the log has had until newer messages may have been lost (scan.go), and the last of its
// sequence numbers that names the message that it was given to.
type generation struct{ epoch, last uint64 }

// generations are remembered: as many power failures may lie between two visits of a client.
const generations = 4

// header is the first area of the file. head and tail have a cache line each: every Append writes head, and every eviction
// and every Follower tail.
type header struct {
	magic    [8]byte
	layout   uint32
	channels uint32                  // cells in the table of channel names
	entries  uint64                  // entries in the index
	data     uint64                  // bytes of frames
	epoch    uint64                  // random, made with the log: sequence numbers of different logs are not comparable
	earlier  [generations]generation // the newest first; epoch 0: none
	sums     uint32                  // 1: entries have checksums, since this is a file on a disk
	sum      uint32                  // checksum of all of the above
	_        [16]byte

	// What follows changes while the log is used.
	head atomic.Uint64 // ordinal of the newest message, 0 before the first one
	_    [56]byte
	tail atomic.Uint64 // ordinal of the oldest message that is kept, 1 before the first one
	_    [56]byte

	// Of a log with a file, see writeback.go.
	synced atomic.Uint64 // every message up to this one was on the disk when this was written
	closed atomic.Uint64 // closedMark, when everything was on the disk and nothing has changed since; or 0

	// Of a ring of several. They are bounds that hold whenever they are read.
	given atomic.Uint64 // numbers up to this one may have been given, in whichever ring
	gone  atomic.Uint64 // number of the newest message that was given up; those that are kept have greater ones
	holes atomic.Uint64 // number up to which some are missing among those that are kept, since they come from several rings
	_     [24]byte

	part part
}

// part says which ring of a log this is; all zero: the log is this ring alone.
type part struct {
	arrangement uint64 // random, the same in all rings of a log: those of another one are not mixed up with them
	index       uint32 // of the ring, 0 is the one for all channels that no other one has
	count       uint32 // rings of the log
	patterns    uint32 // checksum of the patterns of all rings, in their order
	length      uint32 // of match
	sum         uint32 // checksum of all of this, taken with 0 here
	_           uint32
	match       [MaxMatch]byte
}

// checksum of the part.
func (p *part) checksum() uint32 {
	other := *p
	other.sum = 0
	return checksum(unsafe.Slice((*byte)(unsafe.Pointer(&other)), unsafe.Sizeof(other)))
}

// pattern of the channels.
func (p *part) pattern() string { return string(p.match[:min(p.length, MaxMatch)]) }

// numbered is what an entry of a ring of several has besides: 16 bytes, in an area of their own, so that nothing that a
// ring alone does touches them. They belong to the entry, and are covered by its checksum.
type numbered struct {
	number atomic.Uint64 // of the message
	prev   atomic.Uint64 // of the previous message of the channel, 0: none
}

func (n *numbered) bytes() []byte { return unsafe.Slice((*byte)(unsafe.Pointer(n)), unsafe.Sizeof(*n)) }

// cell is the name of a channel. Its index in the table is the lower part of the channel's id. It means something only while an entry that is
// kept refers to it: a cell that is given up is left as it is, and written anew before the next entry refers to it.
type cell struct {
	size uint32 // bytes of the name
	sum  uint32 // checksum of the name: a wrong one would send messages to strangers
	name [MaxName]byte
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func checksum(b []byte) uint32 { return crc32.Checksum(b, castagnoli) }

func (c *cell) put(name []byte) {
	copy(c.name[:], name)
	c.size, c.sum = uint32(len(name)), checksum(name)
}

// get returns the name, in mapped memory; ok is false when it is damaged.
func (c *cell) get() (name []byte, ok bool) {
	if c.size == 0 || c.size > MaxName {
		return nil, false
	}
	name = c.name[:c.size]
	return name, c.sum == checksum(name)
}

// entry describes one message. One cache line.
type entry struct {
	seq     uint64   // ordinal of the message in its ring
	pos     uint64   // of the frame: bytes of frames written before it since the log was made
	time    int64    // of Append, Unix time in nanoseconds
	prev    uint64   // ordinal of the previous message of the channel when this one was appended, 0: none
	size    uint32   // bytes of the frame
	channel uint32   // its cell
	once    [12]byte // hash of the id that its publisher has given the message, zero: none
	sum     uint32   // checksum of all of the above, of the channel's name and of the frame (mapping.sum); 0 in memory

	// Changes when the channel's next message is appended, and follows from the entries: a scan makes it anew.
	next atomic.Uint64 // ordinal of the next message of the channel, 0: none yet
}

// fixed is the part that does not change any more. It is mapped memory.
func (e *entry) fixed() []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(e)), unsafe.Offsetof(e.sum))
}

const (
	headerSize   = align
	cellSize     = unsafe.Sizeof(cell{})
	entrySize    = unsafe.Sizeof(entry{})
	numberedSize = unsafe.Sizeof(numbered{})

	_ = 512 - unsafe.Sizeof(header{}) // a sector: see writeHeader
)

func roundUp(n uint64) uint64 { return (n + align - 1) &^ (align - 1) }

// areas are the offsets of the areas in the file.
type areas struct{ cells, index, numbers, data, end uint64 }

func (h *header) areas() areas {
	var a areas
	a.cells = headerSize
	a.index = a.cells + roundUp(uint64(h.channels)*uint64(cellSize))
	a.numbers = a.index + roundUp(h.entries*uint64(entrySize))
	a.data = a.numbers
	if h.ofMany() {
		a.data += roundUp(h.entries * uint64(numberedSize))
	}
	a.end = a.data + h.data
	return a
}

// ofMany tells whether the log has, or had, more rings than this one.
func (h *header) ofMany() bool { return h.part.arrangement != 0 }

// mapping is the file in memory.
type mapping struct {
	base   unsafe.Pointer
	length uintptr // mapped bytes, the mirror included
	size   uint64  // bytes of the data area, as they were checked

	head    *header
	cells   []cell
	index   []entry
	numbers []numbered // beside index; nil: the numbers are the ordinals
	data    []byte     // twice as long as the data area: its second half is the first one again
}

// mapFile maps a log file that has a header in place.
func mapFile(f *os.File) (*mapping, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	m := new(mapping)
	// Not f.Fd(): it makes the description blocking, which every holder of it would see.
	if cerr := raw.Control(func(fd uintptr) { err = m.mapFd(int(fd)) }); cerr != nil {
		return nil, cerr
	}
	if err != nil {
		return nil, err
	}
	return m, nil
}

func (m *mapping) mapFd(fd int) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("log: fstat: %w", err)
	}
	if st.Size < headerSize {
		return damaged("the file has %d bytes, less than a header", st.Size)
	}
	h, err := readHeader(fd)
	if err != nil {
		return err
	}
	if err := h.check(st.Size); err != nil {
		return err
	}
	a := h.areas()

	// Reserve the address space, then put the file and the mirror of its data over the reservation.
	if a.end+h.data > math.MaxInt {
		return fmt.Errorf("log: %d bytes do not fit into the address space; log.size sets the size", a.end+h.data)
	}
	length := uintptr(a.end + h.data)
	base, err := unix.MmapPtr(-1, 0, nil, length, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return fmt.Errorf("log: reserving %d bytes of address space: %w", length, err)
	}
	const prot, flags = unix.PROT_READ | unix.PROT_WRITE, unix.MAP_SHARED | unix.MAP_FIXED
	_, err = unix.MmapPtr(fd, 0, base, uintptr(a.end), prot, flags)
	if err == nil {
		_, err = unix.MmapPtr(fd, int64(a.data), unsafe.Add(base, a.end), uintptr(h.data), prot, flags)
	}
	if err != nil {
		_ = unix.MunmapPtr(base, length)
		return fmt.Errorf("log: mapping %d bytes: %w", a.end, err)
	}
	m.base, m.length, m.size = base, length, h.data
	m.head = (*header)(base)
	m.cells = unsafe.Slice((*cell)(unsafe.Add(base, a.cells)), h.channels)
	m.index = unsafe.Slice((*entry)(unsafe.Add(base, a.index)), h.entries)
	if h.ofMany() {
		m.numbers = unsafe.Slice((*numbered)(unsafe.Add(base, a.numbers)), h.entries)
	}
	m.data = unsafe.Slice((*byte)(unsafe.Add(base, a.data)), 2*h.data)
	return nil
}

// all is the header as it is in the file.
func (h *header) all() []byte { return unsafe.Slice((*byte)(unsafe.Pointer(h)), unsafe.Sizeof(*h)) }

// fixed is the part of it that the checksum is about.
func (h *header) fixed() []byte { return h.all()[:unsafe.Offsetof(h.sum)] }

// check is about what does not change any more, and about the size of the file.
func (h *header) check(size int64) error {
	if h.magic != magic {
		return damaged("the file is not a message log")
	}
	if h.layout != layoutAlone && h.layout != layoutOfMany {
		return damaged("the file has layout %d, this program knows %d and %d", h.layout, layoutAlone, layoutOfMany)
	}
	if h.sum != checksum(h.fixed()) || h.layout == layoutOfMany != h.ofMany() {
		return damaged("the header is damaged")
	}
	if p := &h.part; h.ofMany() && (p.sum != p.checksum() || p.length > MaxMatch || p.index >= p.count || p.count > MaxRings) {
		return damaged("the header is damaged: its part about several logs")
	}
	// The bounds keep every product below in range whatever the header says.
	if h.channels == 0 || h.channels > MaxChannels || h.data < MinSize || h.data > MaxSize || h.data%align != 0 ||
		h.entries != h.data/bytesPerEntry || h.sums > 1 {
		return damaged("implausible header: %d channels, %d entries, %d bytes", h.channels, h.entries, h.data)
	}
	if end := h.end(); uint64(size) != end {
		return damaged("the file has %d bytes, its header says %d", size, end)
	}
	return nil
}

// A damagedError is about what a file contains, as against what the system refuses: the file cannot be used now or later.
type damagedError string

func (e damagedError) Error() string { return "log: " + string(e) }

func damaged(format string, args ...any) error { return damagedError(fmt.Sprintf(format, args...)) }

// readHeader copies the header.
func readHeader(fd int) (*header, error) {
	h := new(header)
	n, err := unix.Pread(fd, h.all(), 0)
	if err == nil && n < len(h.all()) {
		err = fmt.Errorf("it has %d of %d bytes", n, len(h.all()))
	}
	if err != nil {
		return nil, fmt.Errorf("log: reading the header: %w", err)
	}
	return h, nil
}

// end is the size of the file.
func (h *header) end() uint64 { return h.areas().end }

// initialize writes the header of an empty log.
func initialize(f *os.File, h *header) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	if cerr := raw.Control(func(fd uintptr) { err = writeHeader(int(fd), h) }); cerr != nil {
		return cerr
	}
	return err
}

// writeHeader writes the header in one go: a process that is killed leaves the old one or the new one, and so does a disk,
// which writes whole sectors.
func writeHeader(fd int, h *header) error {
	h.magic, h.layout = magic, layoutAlone
	if h.ofMany() {
		h.layout = layoutOfMany
		h.part.sum = h.part.checksum()
	}
	h.sum = checksum(h.fixed())
	if _, err := unix.Pwrite(fd, h.all(), 0); err != nil {
		return fmt.Errorf("log: writing the header: %w", err)
	}
	return nil
}

func (m *mapping) unmap() error {
	err := unix.MunmapPtr(m.base, m.length)
	*m = mapping{}
	return err
}

func (m *mapping) entry(seq uint64) *entry { return &m.index[seq%uint64(len(m.index))] }

// number of the message with that ordinal. The numbers of a ring ascend with the ordinals, and are no smaller.
func (m *mapping) number(seq uint64) uint64 {
	if m.numbers == nil {
		return seq
	}
	return m.numbers[seq%uint64(len(m.numbers))].number.Load()
}

// before is the number of the message that the channel had before the one with that ordinal, 0 if none.
func (m *mapping) before(seq uint64) uint64 {
	if m.numbers == nil {
		return m.entry(seq).prev
	}
	return m.numbers[seq%uint64(len(m.numbers))].prev.Load()
}

// setNumber is for the writer of the entry.
func (m *mapping) setNumber(seq, number, prev uint64) {
	if m.numbers != nil {
		n := &m.numbers[seq%uint64(len(m.numbers))]
		n.number.Store(number)
		n.prev.Store(prev)
	}
}

// bytes are the n bytes of frames from position pos, n at most the size of the data area.
func (m *mapping) bytes(pos, n uint64) []byte {
	at := pos % m.size
	return m.data[at : at+n : at+n]
}

// sum is the checksum of a message, by its entry: of everything that a client, or one that looks for it, is told.
func (m *mapping) sum(e *entry) uint32 {
	c := &m.cells[e.channel]
	sum := crc32.Update(0, castagnoli, e.fixed())
	if m.numbers != nil {
		sum = crc32.Update(sum, castagnoli, m.numbers[e.seq%uint64(len(m.numbers))].bytes())
	}
	sum = crc32.Update(sum, castagnoli, c.name[:min(c.size, MaxName)])
	return crc32.Update(sum, castagnoli, m.bytes(e.pos, uint64(e.size)))
}
