package survive

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"wscast/daemon/failpoint"
)

// layoutVersion changes with every change of tableHeader, Record or Place.
const layoutVersion = 3

var magic = [8]byte{'w', 's', 'c', 'a', 's', 't', 't', 'b'}

// tableHeader is the first page of the table.
type tableHeader struct {
	magic  [8]byte
	layout uint32
	slots  uint32 // records in the table
	epoch  uint64 // of the log that cursors are about
	nonce  uint64 // random, made with the table

	used     atomic.Uint32 // no record at or above it was ever used
	begun    atomic.Uint32 // adoptions in a row that did not come to their end
	crashed  atomic.Uint32 // crashes in a row after adoptions that did
	encoders atomic.Uint32 // see Encoders

	arrangement uint64 // of the log, as the epoch
}

// State of a record.
type State = uint32

// The states of a client, see package loop. Answering is between Opening and Open: the answer is about to be written.
const (
	Free State = iota
	Opening
	Answering
	Open
	Closing
)

// Record is what outlives the process of one client. 256 bytes. It is written by the loop that owns the client, and only the methods of this
// file touch it.
type Record struct {
	state   atomic.Uint32
	gen     uint32
	cookie  uint64
	channel uint32        // id in the log
	which   atomic.Uint32 // of the places: the one that holds; with writing set, a write to a socket that does not count is under way
	kind    uint32        // of client, for package loop
	more    atomic.Uint32 // link to its directory, 0: none
	places  [2]stored
	extra   [MaxExtra]byte
}

// Place is where a client stands, in both directions.
type Place struct {
	Cursor   uint64 // the last message that is out as a whole
	Base     uint64 // bytes written to the socket up to the end of that message
	Extra    uint32 // bytes for this client alone that come at Base, before the next message
	Marks    Marks
	At       uint16 // which of the client's subscriptions Cursor is about: its number plus 1; 0: Record.channel
	Out      uint64 // bytes written altogether; what is over Base is of the extra bytes and then of the next messages
	In       uint64 // frame.Parser
	Received uint64 // bytes of input that are done with, read from the socket or not
}

// Marks of a Place.
type Marks uint16

const (
	Held    Marks = 1 << iota // input that is not done with may have been read, of a socket that does not count
	Goodbye                   // closing: the close frame is among the extra bytes, or out
	Awaited                   // closing: the other side's close frame is to come
	Rest                      // the extra bytes begin with the rest of a message that the log has overwritten
)

// MaxExtra is how many bytes of control frames a record has room for.
const MaxExtra = 256 - 32 - 2*int(unsafe.Sizeof(stored{}))

const writing = 2

// NoChannel is the channel of a client that has none.
const NoChannel = ^uint32(0)

const recordSize = unsafe.Sizeof(Record{})

// Table is the connection table.
type Table struct {
	file *os.File
	base unsafe.Pointer
	size uintptr
	head *tableHeader
	recs []Record

	mu   sync.Mutex
	free []uint32
}

const headerSize = 4096

// NewTable makes an empty table with place for that many clients. Memory that is never used costs nothing.
func NewTable(slots int, epoch uint64) (*Table, error) {
	fd, err := unix.MemfdCreate("wscast-table", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("table: memfd_create: %w", err)
	}
	f := os.NewFile(uintptr(fd), "wscast-table")
	size := int64(headerSize + slots*int(recordSize))
	h := &tableHeader{magic: magic, layout: layoutVersion, slots: uint32(slots), epoch: epoch, nonce: rand.Uint64()}
	err = unix.Ftruncate(fd, size)
	if err == nil {
		_, err = unix.Pwrite(fd, unsafe.Slice((*byte)(unsafe.Pointer(h)), unsafe.Sizeof(*h)), 0)
	}
	if err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("table: making a file of %d bytes: %w", size, err)
	}
	t, err := OpenTable(f)
	if err != nil {
		f.Close()
	}
	return t, err
}

var errLayout = errors.New("table: not a connection table of this version")

// OpenTable maps a table, which becomes the owner of the file. It believes nothing but the size of the file.
func OpenTable(f *os.File) (*Table, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	t := &Table{file: f}
	if cerr := raw.Control(func(fd uintptr) { err = t.mapFd(int(fd)) }); cerr != nil {
		return nil, cerr
	}
	if err != nil {
		return nil, err
	}
	used := min(t.head.used.Load(), uint32(len(t.recs)))
	for slot := used; slot > 0; slot-- {
		if t.recs[slot-1].state.Load() == Free {
			t.free = append(t.free, slot-1)
		}
	}
	return t, nil
}

func (t *Table) mapFd(fd int) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("table: fstat: %w", err)
	}
	if st.Size < headerSize {
		return errLayout
	}
	base, err := unix.MmapPtr(fd, 0, nil, uintptr(st.Size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("table: mapping %d bytes: %w", st.Size, err)
	}
	h := (*tableHeader)(base)
	if h.magic != magic || h.layout != layoutVersion || uint64(st.Size) != headerSize+uint64(h.slots)*uint64(recordSize) {
		_ = unix.MunmapPtr(base, uintptr(st.Size))
		return errLayout
	}
	t.base, t.size, t.head = base, uintptr(st.Size), h
	t.recs = unsafe.Slice((*Record)(unsafe.Add(base, headerSize)), h.slots)
	return nil
}

// duplicate is a table in a file of its own with all that this one has.
func (t *Table) duplicate() (*Table, error) {
	fd, err := unix.MemfdCreate("wscast-table", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("table: memfd_create: %w", err)
	}
	f := os.NewFile(uintptr(fd), "wscast-table")
	// No further than it was used: what was never written to costs no memory.
	used := unsafe.Slice((*byte)(t.base), headerSize+uintptr(min(t.head.used.Load(), uint32(len(t.recs))))*recordSize)
	if err = unix.Ftruncate(fd, int64(t.size)); err == nil {
		_, err = io.NewOffsetWriter(f, 0).Write(used)
	}
	if err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("table: copying %d bytes: %w", len(used), err)
	}
	next, err := OpenTable(f)
	if err != nil {
		f.Close()
	}
	return next, err
}

// MakeRoom prepares the process for as many descriptors as Recover can find. It returns when that is done, which can take
// tens of milliseconds, and is not needed for anything but speed.
//
// The kernel doubles the table of a process's descriptors each time that it is full, and in a process of several threads it
// waits then until each processor has been idle or elsewhere (synchronize_rcu in expand_fdtable, fs/file.c): 10 ms, and
// seven times on the way to 10,000 connections. With one descriptor of a high number it is done at once, and while other
// things are.
func (t *Table) MakeRoom() {
	raw, err := t.file.SyscallConn()
	if err != nil {
		return
	}
	most := int(min(t.head.used.Load(), uint32(len(t.recs)))) + spare
	_ = raw.Control(func(fd uintptr) {
		if high, err := unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, min(most, descriptorLimit()-1)); err == nil {
			unix.Close(high)
		}
	})
}

// Close unmaps the table; what it holds stays in the store.
func (t *Table) Close() error {
	return errors.Join(unix.MunmapPtr(t.base, t.size), t.file.Close())
}

// ErrFull: the table has no record left.
var ErrFull = errors.New("too many clients: the connection table is full")

// Take makes a record for a connection in state Opening.
func (t *Table) Take(cookie uint64) (slot uint32, r *Record, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := len(t.free); n > 0 {
		slot = t.free[n-1]
		t.free = t.free[:n-1]
	} else {
		if slot = t.head.used.Load(); int(slot) >= len(t.recs) {
			return 0, nil, ErrFull
		}
		t.head.used.Store(slot + 1)
	}
	r = &t.recs[slot]
	r.gen++
	r.cookie, r.channel = cookie, NoChannel
	r.which.Store(holds[0])
	r.kind = 0
	r.more.Store(0)
	failpoint.Pass("record.taken")
	r.state.Store(Opening)
	return slot, r, nil
}

// Give frees a record, and what continues it.
func (t *Table) Give(slot uint32) {
	r := &t.recs[slot]
	if r.state.Swap(Free) != extended {
		t.dropAll(r)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.free = append(t.free, slot)
}

// Epoch of the log that cursors are about.
func (t *Table) Epoch() uint64 { return t.head.epoch }

// Encoders is the version of those who have encoded what clients may have half of; 0: none has.
func (t *Table) Encoders() uint32 { return t.head.encoders.Load() }

// SetEncoders sets it, when all that an earlier one has encoded is either taken over or given up.
func (t *Table) SetEncoders(version uint32) { t.head.encoders.Store(version) }

// Nonce is the random number of this table. With it and a record's Cookie a connection is told apart from those of all times.
func (t *Table) Nonce() uint64 { return t.head.nonce }

// An adoption that does not go well can be the fault of what is adopted, and then the next one does not go well either. It counts as failed
// from Begin until one comes to its end (Adopted), and when the process crashes by itself afterwards, until one has Lived. A process that is killed
// from outside between Adopted and Lived says nothing about it.

// Begin says that an adoption begins, and returns how many before it, in a row, have failed.
func (t *Table) Begin() (failed int) {
	return int(min(t.head.begun.Add(1)-1, 1<<16) + min(t.head.crashed.Load(), 1<<16))
}

// Adopted says that everything is taken over.
func (t *Table) Adopted() { t.head.begun.Store(0) }

// Crashed says that the process is about to crash.
func (t *Table) Crashed() { t.head.crashed.Add(1) }

// GoesOn takes back what Crashed has said: it has not.
func (t *Table) GoesOn() { t.head.crashed.Add(^uint32(0)) }

// Lived says that the process has lived long enough, or is ending in good order.
func (t *Table) Lived() {
	t.head.begun.Store(0)
	t.head.crashed.Store(0)
}

// forget frees the records for which no connection was found.
func (t *Table) forget(found []Found) {
	there := make(map[uint32]bool, len(found))
	for _, f := range found {
		there[f.Slot] = true
	}
	used := min(t.head.used.Load(), uint32(len(t.recs)))
	for slot := range used {
		if s := t.recs[slot].state.Load(); s != Free && s != extended && !there[slot] {
			t.recs[slot].more.Store(0) // what it was continued by is found below
			t.Give(slot)
			failpoint.Pass("recover.forgotten")
		}
	}
	marks := make(map[uint32]bool)
	for slot := range there {
		t.mark(slot, marks)
	}
	for slot := range used {
		if t.recs[slot].state.Load() == extended && !marks[slot] {
			t.Give(slot)
		}
	}
}

// TableName is the name of the table in the store, and MovedName that of one that was moved, by turns.
const (
	TableName = "table"
	MovedName = "table.2"
)

// File is the memfd.
func (t *Table) File() *os.File { return t.file }

// At is the record of a slot.
func (t *Table) At(slot uint32) *Record { return &t.recs[slot] }

// Cookie of the socket (SO_COOKIE in socket(7)).
func (r *Record) Cookie() uint64 { return r.cookie }

// State of the record.
func (r *Record) State() State { return r.state.Load() }

// Kind is what SetKind has set, 0 in the beginning.
func (r *Record) Kind() uint32 { return r.kind }

// SetKind sets what package loop has to know of a client before anything else. It is for the time before Answer.
func (r *Record) SetKind(kind uint32) { r.kind = kind }

// SetState changes it.
func (r *Record) SetState(s State) { r.state.Store(s) }

// Answer notes where the client will stand when its answer of that many bytes is out; its request is received bytes long.
func (r *Record) Answer(channel uint32, p Place) {
	r.channel = channel
	r.Stand(p)
	r.state.Store(Answering)
}

// Stand notes where the client stands. The other place is filled and then made the one that holds, by one store.
func (r *Record) Stand(p Place) {
	next := (r.which.Load() ^ 1) & 1
	r.put(next, &p)
	r.which.Store(holds[next])
}

// Writing notes that a write to a socket that does not count its bytes, a Unix-domain one, is under way. Stand ends it.
func (r *Record) Writing() { r.which.Store(r.which.Load() | writing) }

// Place is where the client stands.
func (r *Record) Place() (p Place, writingNow bool) {
	w := r.which.Load()
	return r.places[w&1].place(), w&writing != 0
}
