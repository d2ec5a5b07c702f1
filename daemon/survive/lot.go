package survive

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	// perMessage is how many descriptors one message carries at most (SCM_MAX_FD in net/scm.h).
	perMessage = 253
	// dead is how many of a segment have to have left before its living are parked anew.
	enoughDead = 1024
)

// parked is what stands beside each descriptor in a message: 8 bytes, so that a full message is no larger than what the kernel
// allocates for it anyway.
type parked struct{ slot, gen uint32 }

const parkedSize = 8

// Keeper is where segments are kept: the fd store.
type Keeper interface {
	Push(name string, fd int) error
	Remove(name string) error
}

// Lot is where connections are parked. Its methods are safe for concurrent use.
type Lot struct {
	keeper Keeper
	table  *Table

	mu       sync.Mutex
	segments map[uint32]*segment
	tail     *segment // of newcomers
	bulk     *segment // where full messages go
	next     uint32   // id of the next segment
	where    []place  // by slot
	buf      []byte
}

// place is where a slot's connection is parked.
type place struct {
	segment uint32 // 0: nowhere
	fd      int32  // of this process; open as long as segment is not 0
}

// segment is a socketpair in the store.
type segment struct {
	id       uint32
	tail     bool
	tx, rx   int
	messages int
	parked   int // descriptors in it
	live     int // of them, connections that live and are parked nowhere later
}

func (s *segment) name(end string) string {
	kind := "b"
	if s.tail {
		kind = "t"
	}
	return "park." + kind + "." + strconv.FormatUint(uint64(s.id), 10) + "." + end
}

// parseName is the opposite of segment.name.
func parseName(name string) (id uint32, tail bool, end string, ok bool) {
	f := strings.Split(name, ".")
	if len(f) != 4 || f[0] != "park" || f[1] != "b" && f[1] != "t" || f[3] != "tx" && f[3] != "rx" {
		return 0, false, "", false
	}
	n, err := strconv.ParseUint(f[2], 10, 32)
	return uint32(n), f[1] == "t", f[3], err == nil && n > 0
}

// NewLot makes an empty lot.
func NewLot(keeper Keeper, table *Table) *Lot {
	return &Lot{keeper: keeper, table: table, segments: make(map[uint32]*segment), next: 1}
}

func (l *Lot) newSegment(tail bool) (*segment, error) {
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("parking: socketpair: %w", err)
	}
	s := &segment{id: l.next, tail: tail, tx: p[0], rx: p[1]}
	l.next++
	// Both ends: with one of them closed, the queue is thrown away.
	err = l.keeper.Push(s.name("tx"), s.tx)
	if err == nil {
		err = l.keeper.Push(s.name("rx"), s.rx)
	}
	if err != nil {
		unix.Close(p[0])
		unix.Close(p[1])
		return nil, err
	}
	l.segments[s.id] = s
	return s, nil
}

func (l *Lot) remove(s *segment) {
	delete(l.segments, s.id)
	_ = l.keeper.Remove(s.name("tx"))
	_ = l.keeper.Remove(s.name("rx"))
	unix.Close(s.tx)
	unix.Close(s.rx)
}

// Park parks the connection of a slot. After it returns without an error the connection outlives the process. The descriptor has to
// stay open until Leave.
func (l *Lot) Park(slot uint32, fd int) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for int(slot) >= len(l.where) {
		l.where = append(l.where, place{})
	}
	if l.tail == nil {
		s, err := l.newSegment(true)
		if err != nil {
			return err
		}
		l.tail = s
	}
	if l.tail.messages >= perMessage {
		if err := l.merge(); err != nil {
			return err
		}
	}
	p := parked{slot, l.table.At(slot).gen}
	err := l.send(l.tail, []parked{p}, []int{fd})
	if err == unix.EAGAIN { // a smaller send buffer than usual
		if err = l.merge(); err == nil {
			err = l.send(l.tail, []parked{p}, []int{fd})
		}
	}
	if err != nil {
		return fmt.Errorf("parking: %w", err)
	}
	l.where[slot] = place{l.tail.id, int32(fd)}
	l.tail.live++
	return nil
}

// Leave says that the connection of a slot is over. It is called before its descriptor is closed.
func (l *Lot) Leave(slot uint32) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if int(slot) >= len(l.where) || l.where[slot].segment == 0 {
		return
	}
	s := l.segments[l.where[slot].segment]
	l.where[slot] = place{}
	s.live--
	if s != l.tail && s.parked-s.live >= max(enoughDead, s.live) {
		l.compact(s)
	}
}

// send parks descriptors in a segment as one message.
func (l *Lot) send(s *segment, ps []parked, fds []int) error {
	l.buf = l.buf[:0]
	for _, p := range ps {
		l.buf = binary.NativeEndian.AppendUint32(l.buf, p.slot)
		l.buf = binary.NativeEndian.AppendUint32(l.buf, p.gen)
	}
	if err := unix.Sendmsg(s.tx, l.buf, unix.UnixRights(fds...), nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL); err != nil {
		return err
	}
	s.messages++
	s.parked += len(fds)
	return nil
}

// merge parks the living of the tail once more, as one message in a bulk segment, and empties the tail.
func (l *Lot) merge() error {
	if err := l.move(l.tail); err != nil {
		return err
	}
	// Received without room for descriptors, they are dropped by the kernel.
	var b [parkedSize]byte
	for l.tail.messages > 0 {
		if _, _, _, _, err := unix.Recvmsg(l.tail.rx, b[:], nil, unix.MSG_DONTWAIT); err != nil {
			return fmt.Errorf("parking: emptying the tail: %w", err)
		}
		l.tail.messages--
		l.tail.parked--
	}
	return nil
}

// compact parks the living of a segment elsewhere and removes it. If that fails it is tried again with the next one that leaves.
func (l *Lot) compact(s *segment) {
	if l.bulk == s {
		l.bulk = nil
	}
	if l.move(s) == nil {
		l.remove(s)
	}
}

// move parks the living of a segment in the bulk segment.
func (l *Lot) move(from *segment) error {
	var ps []parked
	var fds []int
	flush := func() error {
		if len(ps) == 0 {
			return nil
		}
		if err := l.sendBulk(ps, fds); err != nil {
			return err
		}
		for _, p := range ps {
			l.where[p.slot].segment = l.bulk.id
			l.bulk.live++
			from.live--
		}
		ps, fds = ps[:0], fds[:0]
		return nil
	}
	if from.live > 0 {
		for slot := range l.where {
			if l.where[slot].segment != from.id {
				continue
			}
			ps = append(ps, parked{uint32(slot), l.table.At(uint32(slot)).gen})
			fds = append(fds, int(l.where[slot].fd))
			if len(fds) == perMessage {
				if err := flush(); err != nil {
					return err
				}
			}
		}
	}
	return flush()
}

func (l *Lot) sendBulk(ps []parked, fds []int) error {
	for range 2 {
		if l.bulk != nil {
			err := l.send(l.bulk, ps, fds)
			if !errors.Is(err, unix.EAGAIN) {
				return err
			}
		}
		s, err := l.newSegment(false)
		if err != nil {
			return err
		}
		l.bulk = s
	}
	return errors.New("parking: an empty segment is full")
}

// Found is a connection in the lot that an earlier process has parked.
type Found struct {
	Slot uint32
	FD   int
}

// Recover takes over the segments among the stored files, which it consumes, and returns a descriptor for each connection whose record says that
// it lives. Nothing is taken out of the queues: a process that is killed while it recovers leaves all as it was.
func Recover(keeper Keeper, table *Table, stored []*os.File) (*Lot, []Found, error) {
	l := NewLot(keeper, table)
	for _, f := range stored {
		id, tail, end, ok := parseName(f.Name())
		if !ok {
			continue
		}
		s := l.segments[id]
		if s == nil {
			s = &segment{id: id, tail: tail, tx: -1, rx: -1}
			l.segments[id] = s
		}
		fd, err := takeFd(f)
		if err != nil {
			return nil, nil, err
		}
		if end == "tx" && s.tx < 0 {
			s.tx = fd
		} else if end == "rx" && s.rx < 0 {
			s.rx = fd
		} else {
			unix.Close(fd)
		}
		l.next = max(l.next, id+1)
	}
	var found []Found
	for _, s := range l.segments {
		if s.tx < 0 || s.rx < 0 { // killed between storing the one and the other: nothing was parked in it
			l.remove(s)
			continue
		}
		if err := l.peek(s, &found); err != nil {
			return nil, nil, err
		}
		switch {
		case s.tail && l.tail == nil:
			l.tail = s
		case !s.tail && (l.bulk == nil || s.messages < l.bulk.messages):
			l.bulk = s
		}
	}
	table.forget(found)
	return l, found, nil
}

// IsSegment tells whether a stored descriptor of that name is of a lot.
func IsSegment(name string) bool { return strings.HasPrefix(name, "park.") }

// Parked is how many connections that live are parked, Stored how many descriptors the store has for them.
func (l *Lot) Parked() (parked, stored int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.segments {
		parked += s.live
	}
	return parked, 2 * len(l.segments)
}

// GiveUp closes all connections of a lot: those found, in good order if it is known that no frame of theirs is half out.
func (l *Lot) GiveUp(found []Found, goodbye []byte) {
	for _, f := range found {
		r := l.table.At(f.Slot)
		if s, err := r.Stands(f.FD); err == nil && s.State == Open && !s.Repaired() {
			_ = unix.Sendto(f.FD, goodbye, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, nil)
		}
		_ = unix.Shutdown(f.FD, unix.SHUT_RDWR)
		l.Leave(f.Slot)
		l.table.Give(f.Slot)
		unix.Close(f.FD)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.segments {
		l.remove(s)
	}
	l.tail, l.bulk = nil, nil
}

// CloseAll closes every connection in segments of which nothing else is known, and removes them.
func CloseAll(keeper Keeper, stored []*os.File) {
	for _, f := range stored {
		if id, _, end, ok := parseName(f.Name()); ok && id > 0 && end == "rx" {
			if fd, err := takeFd(f); err == nil {
				l := &Lot{}
				_ = l.read(fd, func(_ []byte, fd int) bool {
					_ = unix.Shutdown(fd, unix.SHUT_RDWR)
					return false
				}, new(segment))
				unix.Close(fd)
			}
		} else {
			f.Close()
		}
		_ = keeper.Remove(f.Name())
	}
}

// Close closes this process's descriptors of the segments. What is parked stays parked as long as somebody keeps them.
func (l *Lot) Close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.segments {
		unix.Close(s.tx)
		unix.Close(s.rx)
	}
	l.segments, l.tail, l.bulk = nil, nil, nil
}

// takeFd makes a descriptor of one's own out of a file, and closes the file.
func takeFd(f *os.File) (fd int, err error) {
	defer f.Close()
	raw, err := f.SyscallConn()
	if err != nil {
		return -1, err
	}
	cerr := raw.Control(func(old uintptr) { fd, err = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 3) })
	return fd, errors.Join(err, cerr)
}

// peek reads a segment's queue without emptying it.
func (l *Lot) peek(s *segment, found *[]Found) error {
	err := l.read(s.rx, func(b []byte, fd int) bool { return l.claim(s, b, fd, found) }, s)
	if err != nil {
		return fmt.Errorf("parking: %s: %w", s.name("rx"), err)
	}
	return nil
}

// read calls take for each descriptor in a queue, with what stands beside it, and closes those that it does not take. It leaves the queue as it
// was, and counts what is in it.
func (l *Lot) read(rx int, take func(b []byte, fd int) bool, s *segment) error {
	if err := unix.SetsockoptInt(rx, unix.SOL_SOCKET, unix.SO_PEEK_OFF, 0); err != nil {
		return fmt.Errorf("SO_PEEK_OFF: %w", err)
	}
	b := make([]byte, perMessage*parkedSize+1)
	oob := make([]byte, unix.CmsgSpace(perMessage*4))
	for {
		n, on, flags, _, err := unix.Recvmsg(rx, b, oob, unix.MSG_PEEK|unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
		if err == unix.EAGAIN || err == nil && n == 0 {
			break // the end, or the other end is closed
		}
		if err != nil {
			return err
		}
		fds, err := rights(oob[:on])
		if err != nil {
			return err
		}
		s.messages++
		s.parked += len(fds)
		for i, fd := range fds {
			if (i+1)*parkedSize > n || !take(b[i*parkedSize:(i+1)*parkedSize], fd) {
				unix.Close(fd)
			}
		}
		if flags&unix.MSG_CTRUNC != 0 {
			return errors.New("no descriptors left to take connections over: raise LimitNOFILE=")
		}
	}
	// A later process counts from the beginning, as does emptying.
	return unix.SetsockoptInt(rx, unix.SOL_SOCKET, unix.SO_PEEK_OFF, -1)
}

func rights(oob []byte) (fds []int, err error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	for _, m := range messages {
		if m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SCM_RIGHTS {
			more, err := unix.ParseUnixRights(&m)
			if err != nil {
				return nil, err
			}
			fds = append(fds, more...)
		}
	}
	return fds, nil
}

// claim takes a connection if its record is about it and it was not found before.
func (l *Lot) claim(s *segment, b []byte, fd int, found *[]Found) bool {
	slot, gen := binary.NativeEndian.Uint32(b), binary.NativeEndian.Uint32(b[4:])
	if int(slot) >= len(l.table.recs) {
		return false
	}
	r := l.table.At(slot)
	if r.State() == Free || r.State() > Closing || r.gen != gen {
		return false
	}
	if cookie, err := Cookie(fd); err != nil || cookie != r.cookie {
		return false
	}
	for int(slot) >= len(l.where) {
		l.where = append(l.where, place{})
	}
	if l.where[slot].segment != 0 {
		return false
	}
	l.where[slot] = place{s.id, int32(fd)}
	s.live++
	*found = append(*found, Found{slot, fd})
	return true
}

// Cookie is the kernel's number of a socket, never used again until the machine is started anew (SO_COOKIE, socket(7)).
func Cookie(fd int) (uint64, error) {
	return unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
}
