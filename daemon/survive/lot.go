package survive

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"wscast/daemon/failpoint"
)

const (
	// margin is how far below the limit of descriptors in flight room is made: moving needs some, and beyond the limit nothing can be moved.
	margin = 4 * perMessage
	// spare is how many descriptors taking over leaves for everything else, and for looking at one message more.
	spare = 256
)

// parked is what stands beside each descriptor in a message: 8 bytes, so that a full message is no larger than what the kernel
// allocates for it anyway.
type parked struct{ slot, gen uint32 }

const parkedSize = 8

// Keeper is where segments are kept: the fd store.
type Keeper interface {
	Push(name string, fd int) error
	Again(name string, fd int) error // what was pushed, in case that it is not there any more
	Remove(name string) error
}

// Keep is what outlives the process of its clients.
type Keep struct {
	Table *Table
	Lot   *Lot // nil: there is nobody who keeps descriptors for us, and nothing is parked
}

// Admitted is a connection that Admit has let in.
type Admitted struct {
	FD       int
	Slot     uint32 // of its record, which is in state Opening
	Err      error  // there is no record for it: it has to be closed
	Unparked error  // why it does not outlive the process, yet; see Lot.Park
}

// Admit lets accept take a connection, and parks it before anything else is done: of those that come when the process is
// killed, only one that is between these two system calls ends with it. All that can take longer is done before. The
// descriptor has to stay open until Lot.Leave. It is ours whenever errno is 0. EMFILE is also for more connections than could be taken over.
func (k Keep) Admit(accept func() (fd int, errno syscall.Errno)) (a Admitted, errno syscall.Errno) {
	slot, r, full := k.Table.Take(0)
	if full != nil {
		a.Err = full
		a.FD, errno = accept()
		return a, errno
	}
	var ready error
	if k.Lot != nil {
		k.Lot.mu.Lock()
		defer k.Lot.mu.Unlock()
		ready = k.Lot.prepare(slot)
	}
	if k.Lot != nil && k.Lot.crowded() {
		errno = unix.EMFILE
	} else {
		a.FD, errno = accept()
	}
	if errno != 0 {
		k.Table.Give(slot)
		return a, errno
	}
	if r.cookie, a.Err = Cookie(a.FD); a.Err != nil {
		k.Table.Give(slot)
		return a, 0
	}
	a.Slot = slot
	failpoint.Pass("accept.recorded")
	if k.Lot != nil {
		a.Unparked = k.Lot.lodge(slot, int32(a.FD), ready)
	}
	return a, 0
}

// Lot is where connections are parked. Its methods are safe for concurrent use.
type Lot struct {
	keeper Keeper
	table  *Table

	mu       sync.Mutex
	segments map[uint32]*segment
	tail     *segment         // of newcomers
	bulk     *segment         // where full messages go
	next     uint32           // id of the next segment
	where    []place          // by slot
	homeless map[uint32]int32 // descriptors by slot: could not be parked, and are tried again
	why      error            // the last of them could not
	full     error            // why there can be no other segment, until one is removed or House is called
	limit    int              // of descriptors in flight (too_many_unix_fds in net/core/scm.c)
	tailed   []parked         // what is in the tail, in its order, while that is as many as it has messages: each has one
	buf      []byte
	oob      []byte
	ps       []parked // of ahead
	fds      []int32
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
	return &Lot{keeper: keeper, table: table, segments: make(map[uint32]*segment), next: 1, homeless: make(map[uint32]int32), limit: descriptorLimit(),
		oob: make([]byte, unix.CmsgSpace(perMessage*4))}
}

// descriptorLimit is the soft RLIMIT_NOFILE, which also limits the descriptors in flight of a user.
func descriptorLimit() int {
	var r unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &r); err != nil || r.Cur > 1<<30 {
		return 1 << 30
	}
	return int(r.Cur)
}

func (l *Lot) newSegment(tail bool) (s *segment, err error) {
	if l.full != nil {
		return nil, l.full
	}
	defer func() { l.full = err }()
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("parking: socketpair: %w", err)
	}
	s = &segment{id: l.next, tail: tail, tx: p[0], rx: p[1]}
	l.next++
	failpoint.Pass("store.none")
	// Both ends: with one of them closed, the queue is thrown away.
	err = l.keeper.Push(s.name("tx"), s.tx)
	failpoint.Pass("store.one")
	if err == nil {
		if err = l.keeper.Push(s.name("rx"), s.rx); err != nil {
			_ = l.keeper.Remove(s.name("tx"))
		}
	}
	if err != nil {
		unix.Close(p[0])
		unix.Close(p[1])
		return nil, err
	}
	l.segments[s.id] = s
	failpoint.Pass("store.both")
	return s, nil
}

func (l *Lot) remove(s *segment) {
	delete(l.segments, s.id)
	l.full = nil // it leaves its place to another one
	_ = l.keeper.Remove(s.name("tx"))
	failpoint.Pass("remove.one")
	_ = l.keeper.Remove(s.name("rx"))
	failpoint.Pass("remove.both")
	unix.Close(s.tx)
	unix.Close(s.rx)
}

// Park parks the connection of a slot. After it returns without an error the connection outlives the process. With one
// it does not, yet: it is tried again when others come and leave, and by House. The descriptor has to stay open until
// Leave.
func (l *Lot) Park(slot uint32, fd int) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lodge(slot, int32(fd), l.prepare(slot))
}

// prepare does what can take long of parking the connection of a slot: it makes room.
func (l *Lot) prepare(slot uint32) error {
	if int(slot) >= cap(l.where) { // append's steps are smaller, and what a crowd leaves behind would be four times as much
		l.where = slices.Grow(l.where, max(len(l.where), int(slot)+1-len(l.where), 512))
	}
	for int(slot) >= len(l.where) {
		l.where = append(l.where, place{})
	}
	l.house(8)
	return l.makeReady()
}

// crowded tells whether there are as many connections as an heir has descriptors for, which at its start has those of the segments twice.
func (l *Lot) crowded() bool {
	n := len(l.homeless)
	for _, s := range l.segments {
		n += s.live
	}
	return n >= l.limit-spare-64-4*len(l.segments)
}

// lodge parks a connection for which everything is prepared, with that result, or remembers it for later.
func (l *Lot) lodge(slot uint32, fd int32, ready error) error {
	err := ready
	if err == nil {
		err = l.park(slot, fd)
	}
	if err == nil {
		return nil
	}
	switch {
	case err == unix.ETOOMANYREFS:
		err = ErrInFlight
	case errors.As(err, new(syscall.Errno)):
		err = fmt.Errorf("parking: %w", err)
	}
	l.homeless[slot], l.why = fd, err
	return err
}

// makeReady sees to it that the tail can take one more.
func (l *Lot) makeReady() error {
	l.makeRoom()
	if l.tail != nil && l.tail.messages >= perMessage {
		if l.full != nil {
			return l.full // to find out that there is no segment to empty it into is not cheap
		}
		if err := l.empty(l.tail); err != nil {
			return err
		}
	}
	if l.tail != nil {
		return nil
	}
	s, err := l.newSegment(true)
	l.tail, l.tailed = s, l.tailed[:0]
	return err
}

// park parks a connection in the tail, which is ready.
func (l *Lot) park(slot uint32, fd int32) error {
	p, fds := [1]parked{{slot, l.table.At(slot).gen}}, [1]int32{fd}
	err := l.send(l.tail, p[:], fds[:])
	if err == unix.EAGAIN && l.tail.messages > 0 { // a smaller send buffer than usual
		if err = l.empty(l.tail); err == nil {
			err = l.makeReady()
		}
		if err == nil {
			err = l.send(l.tail, p[:], fds[:])
		}
	}
	if err == unix.EAGAIN {
		err = errors.New("parking: an empty segment is full")
	}
	if err == nil {
		l.where[slot] = place{l.tail.id, fd}
		l.tail.live++
		if len(l.tailed) == l.tail.messages-1 {
			l.tailed = append(l.tailed, p[0])
		}
	}
	return err
}

// house parks some of those that could not be parked when they came.
func (l *Lot) house(tries int) {
	for slot, fd := range l.homeless {
		if tries--; tries < 0 {
			return
		}
		if l.lodge(slot, fd, l.makeReady()) != nil {
			return
		}
		delete(l.homeless, slot)
	}
}

// House tries to park all that could not be parked before, and returns how many are left and why.
func (l *Lot) House() (left int, why error) {
	for {
		l.mu.Lock()
		l.full = nil
		before := len(l.homeless)
		l.house(perMessage) // and then lets others at it
		left, why = len(l.homeless), l.why
		l.mu.Unlock()
		switch left {
		case 0:
			return 0, nil
		case before:
			return left, why
		}
	}
}

// Homeless is how many connections are parked nowhere, and why the last of them is not.
func (l *Lot) Homeless() (n int, why error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.homeless) == 0 {
		return 0, nil
	}
	return len(l.homeless), l.why
}

// IsParked tells whether the connection of a slot is parked.
func (l *Lot) IsParked(slot uint32) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return int(slot) < len(l.where) && l.where[slot].segment != 0
}

// Again gives all segments to the keeper once more, for the case that it has lost one.
func (l *Lot) Again() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.segments {
		if err := errors.Join(l.keeper.Again(s.name("tx"), s.tx), l.keeper.Again(s.name("rx"), s.rx)); err != nil {
			return err
		}
	}
	return nil
}

// makeRoom gives up the dead of a segment when too much is in flight.
func (l *Lot) makeRoom() {
	inFlight := 0
	var worst *segment
	for _, s := range l.segments {
		inFlight += s.parked
		if s != l.tail && s.parked-s.live >= perMessage && (worst == nil || s.parked-s.live > worst.parked-worst.live) {
			worst = s
		}
	}
	if worst != nil && inFlight > l.limit-margin {
		l.compact(worst)
	}
}

// Leave says that the connection of a slot is over. It is called before its descriptor is closed.
func (l *Lot) Leave(slot uint32) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.homeless, slot)
	if int(slot) < len(l.where) && l.where[slot].segment != 0 {
		s := l.segments[l.where[slot].segment]
		l.where[slot] = place{}
		s.live--
		switch {
		case s == l.tail:
		case s.parked-s.live >= max(enoughDead, s.live):
			l.compact(s)
		case s.live == 0 && s != l.bulk:
			l.remove(s)
		}
	}
	l.house(8)
}

// send parks descriptors in a segment as one message.
func (l *Lot) send(s *segment, ps []parked, fds []int32) error {
	l.buf = l.buf[:0]
	for _, p := range ps {
		l.buf = binary.NativeEndian.AppendUint32(l.buf, p.slot)
		l.buf = binary.NativeEndian.AppendUint32(l.buf, p.gen)
	}
	failpoint.Pass("park.before")
	if errno := sendRights(s.tx, l.buf, fds, l.oob); errno != 0 {
		return errno
	}
	failpoint.Pass("park.sent")
	s.messages++
	s.parked += len(fds)
	return nil
}

// compact parks the living of a segment elsewhere and removes it. If that fails it is tried again with the next one that leaves.
func (l *Lot) compact(s *segment) {
	if l.bulk == s {
		l.bulk = nil
	}
	if l.empty(s) == nil && l.segments[s.id] == s {
		failpoint.Pass("compact.emptied")
		l.remove(s)
	}
}

var errQueue = errors.New("a segment does not have what was put into it")

// empty takes everything out of a segment, after its living have been parked in the bulk segment. It goes by what one message can take, so that never
// more than that is in flight twice. After an error what is left in the segment is as good as before.
func (l *Lot) empty(s *segment) error {
	for s.messages > 0 {
		ps, fds, messages, err := l.ahead(s)
		if err == nil && messages == 0 {
			err = errQueue
		}
		if err != nil {
			l.abandon(s)
			return err
		}
		if len(ps) > 0 {
			if err := l.sendBulk(ps, fds); err != nil {
				return err
			}
			for _, p := range ps {
				l.where[p.slot].segment = l.bulk.id
			}
			l.bulk.live += len(ps)
			s.live -= len(ps)
			failpoint.Pass("merge.sent")
		}
		if s == l.tail {
			l.tailed = l.tailed[:0]
		}
		for messages > 0 {
			n, bytes, errno := dropMessages(s.rx, messages)
			if errno != 0 {
				l.abandon(s)
				return errno
			}
			messages -= n
			s.messages -= n
			s.parked -= bytes / parkedSize
			failpoint.Pass("merge.taken")
		}
	}
	if s.live > 0 {
		l.abandon(s)
		return errQueue
	}
	return nil
}

// ahead looks at the first messages of a segment, as many as have no more living than fit into one message, and returns those.
func (l *Lot) ahead(s *segment) (ps []parked, fds []int32, messages int, err error) {
	ps, fds = l.ps[:0], l.fds[:0]
	defer func() { l.ps, l.fds = ps, fds }()
	if s == l.tail && len(l.tailed) == s.messages && s.messages <= perMessage {
		for _, p := range l.tailed {
			if l.where[p.slot].segment == s.id && l.table.At(p.slot).gen == p.gen {
				ps, fds = append(ps, p), append(fds, l.where[p.slot].fd)
			}
		}
		return ps, fds, s.messages, nil
	}
	if cap(l.buf) < perMessage*parkedSize {
		l.buf = make([]byte, perMessage*parkedSize)
	}
	b := l.buf[:cap(l.buf)]
	seen := make(map[uint32]bool) // what was parked twice in one segment by different processes
	err = walk(s.rx, func() (bool, error) {
		n, _, _, _, err := unix.Recvmsg(s.rx, b, nil, unix.MSG_PEEK|unix.MSG_DONTWAIT)
		if err != nil {
			return false, err
		}
		before := len(ps)
		for at := b[:n]; len(at) >= parkedSize; at = at[parkedSize:] {
			p := parked{binary.NativeEndian.Uint32(at), binary.NativeEndian.Uint32(at[4:])}
			if int(p.slot) < len(l.where) && l.where[p.slot].segment == s.id && l.table.At(p.slot).gen == p.gen && !seen[p.slot] {
				seen[p.slot] = true
				ps = append(ps, p)
				fds = append(fds, l.where[p.slot].fd)
			}
		}
		if len(ps) > perMessage {
			ps, fds = ps[:before], fds[:before]
			return false, nil
		}
		messages++
		return messages < s.messages, nil
	})
	return ps, fds, messages, err
}

// walk peeks through a queue: next is called for one message after the other until it returns false or EAGAIN. The queue stays as it is, and is peeked from
// its beginning again by others.
func walk(rx int, next func() (bool, error)) error {
	if err := unix.SetsockoptInt(rx, unix.SOL_SOCKET, unix.SO_PEEK_OFF, 0); err != nil {
		return fmt.Errorf("SO_PEEK_OFF: %w", err)
	}
	more, err := true, error(nil)
	for more && err == nil {
		more, err = next()
	}
	if err == unix.EAGAIN {
		err = nil
	}
	return errors.Join(err, unix.SetsockoptInt(rx, unix.SOL_SOCKET, unix.SO_PEEK_OFF, -1))
}

// abandon gives up a segment that does not do what it should; its living are parked anew.
func (l *Lot) abandon(s *segment) {
	for slot := range l.where {
		if l.where[slot].segment == s.id {
			l.homeless[uint32(slot)] = l.where[slot].fd
			l.where[slot] = place{}
		}
	}
	if l.tail == s {
		l.tail = nil
	}
	if l.bulk == s {
		l.bulk = nil
	}
	l.remove(s)
}

func (l *Lot) sendBulk(ps []parked, fds []int32) error {
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
// it lives. Nothing is taken out of the queues: a process that is killed while it recovers leaves all as it was. The error says what could not be
// taken over; the rest was.
func Recover(keeper Keeper, table *Table, stored []*os.File) (*Lot, []Found, error) {
	l := NewLot(keeper, table)
	var errs []error
	for _, f := range stored {
		id, tail, end, ok := parseName(f.Name())
		if !ok {
			errs = append(errs, fmt.Errorf("parking: %s: not the name of a segment", f.Name()))
			Discard(keeper, f)
			continue
		}
		l.next = max(l.next, id+1)
		s := l.segments[id]
		if s == nil {
			s = &segment{id: id, tail: tail, tx: -1, rx: -1}
			l.segments[id] = s
		}
		fd, err := takeFd(f)
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("parking: %s: %w", f.Name(), err))
		case s.tail != tail:
			unix.Close(fd)
		case end == "tx" && s.tx < 0:
			s.tx = fd
		case end == "rx" && s.rx < 0:
			s.rx = fd
		default:
			unix.Close(fd)
		}
	}
	a := &arrivals{lot: l, room: freeDescriptors() - spare}
	for _, s := range l.segments {
		if s.tx < 0 || s.rx < 0 { // a process was killed between storing the one and the other: nothing was parked in it
			l.remove(s)
			continue
		}
		err := soundSegment(s)
		if err == nil {
			err = s.closeStrays()
		}
		if err == nil {
			err = a.read(s)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("parking: %s: %w", s.name("rx"), err))
			if s.live == 0 {
				l.remove(s)
				continue
			}
		}
		switch {
		case s.tail && l.tail == nil:
			l.tail = s
		case !s.tail && (l.bulk == nil || s.messages < l.bulk.messages):
			l.bulk = s
		}
	}
	for _, s := range l.segments {
		if s.live == 0 && s != l.tail && s != l.bulk {
			l.remove(s)
		}
	}
	if a.surplus > 0 {
		errs = append(errs, fmt.Errorf("%d clients were closed, there are no descriptors for them: raise LimitNOFILE=", a.surplus))
	}
	table.forget(a.found)
	failpoint.Pass("recover.all")
	return l, a.found, errors.Join(errs...)
}

// freeDescriptors is how many descriptors the process can still have. All numbers below the limit count, whoever is at work beside.
func freeDescriptors() int {
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return descriptorLimit() // the kernel will tell
	}
	return descriptorLimit() - len(open)
}

// soundSegment: what else has the name of a segment could be read from for ever.
func soundSegment(s *segment) error {
	for _, fd := range []int{s.tx, s.rx} {
		domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
		if err != nil {
			return err
		}
		kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
		if err != nil {
			return err
		}
		if domain != unix.AF_UNIX || kind != unix.SOCK_SEQPACKET {
			return errors.New("not a segment")
		}
	}
	return nil
}

// closeStrays closes what is in the queue of the wrong end, as it is when the names of the two are exchanged: nobody would ever find it.
func (s *segment) closeStrays() error {
	return (&segment{rx: s.tx}).read(func(_ []byte, fd int) bool {
		_ = unix.Shutdown(fd, unix.SHUT_RDWR)
		return false
	})
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
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, f := range found {
		s, err := l.table.At(f.Slot).Stands(f.FD)
		if (err == nil || errors.Is(err, ErrInput)) && s.State == Open && !s.Repaired() {
			_ = unix.Sendto(f.FD, goodbye, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, nil)
		}
		hangUp(f.FD)
		l.table.Give(f.Slot)
		unix.Close(f.FD)
	}
	for _, s := range l.segments {
		l.remove(s)
	}
	l.tail, l.bulk, l.where = nil, nil, nil
	clear(l.homeless)
}

// CloseAll closes every connection in segments of which nothing else is known, and removes them.
func CloseAll(keeper Keeper, stored []*os.File) {
	for _, f := range stored {
		if id, _, end, ok := parseName(f.Name()); ok && id > 0 && end == "rx" {
			if fd, err := takeFd(f); err == nil {
				s := &segment{rx: fd, tx: fd}
				if soundSegment(s) == nil {
					_ = s.read(seeOff)
				}
				unix.Close(fd)
			}
		} else {
			f.Close()
		}
		_ = keeper.Remove(f.Name())
	}
}

// Discard closes a stored file of which this version knows nothing, and removes it from the store. The other side of a
// connection reads its end, if it is one, or if it is a queue that has some: what they are in the middle of is not known.
func Discard(keeper Keeper, f *os.File) {
	name := f.Name()
	if fd, err := takeFd(f); err == nil {
		if s := (&segment{rx: fd, tx: fd}); soundSegment(s) == nil {
			_ = s.read(seeOff)
		} else {
			hangUp(fd)
		}
		unix.Close(fd)
	}
	_ = keeper.Remove(name)
}

func seeOff(_ []byte, fd int) (taken bool) {
	hangUp(fd)
	return false
}

// hangUp ends a connection without a reset, which would take what is still on its way with it: a socket that is closed
// with unread input sends one. A parked duplicate is no hindrance.
func hangUp(fd int) {
	if unix.Shutdown(fd, unix.SHUT_WR) != nil {
		return // no connection, or none any more
	}
	var b [4096]byte
	for range 16 {
		if n, _, err := unix.Recvfrom(fd, b[:], unix.MSG_DONTWAIT); n <= 0 || err != nil {
			break
		}
	}
	_ = unix.Shutdown(fd, unix.SHUT_RDWR)
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

// arrivals are what Recover finds.
type arrivals struct {
	lot     *Lot
	room    int // for descriptors
	found   []Found
	surplus int // closed for want of room
}

func (a *arrivals) read(s *segment) error {
	return s.read(func(b []byte, fd int) bool { return a.claim(s, b, fd) })
}

// mostMessages is more than a segment can have with any send buffer that a system has.
const mostMessages = 1 << 20

var errShort = errors.New("there were no descriptors for all connections: raise LimitNOFILE=")

// read calls take for each descriptor in a segment, with what stands beside it, parkedSize bytes unless it is of another
// version, and closes those that it does not take. It leaves the queue as it was, and counts what is in it.
func (s *segment) read(take func(b []byte, fd int) bool) (err error) {
	b := make([]byte, perMessage*parkedSize)
	oob := make([]byte, unix.CmsgSpace(perMessage*4))
	short := false
	err = walk(s.rx, func() (bool, error) {
		n, on, flags, _, err := unix.Recvmsg(s.rx, b, oob, unix.MSG_PEEK|unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
		if err != nil || n == 0 { // the end, or the other end is closed
			return false, err
		}
		fds, err := rights(oob[:on])
		if err != nil {
			return false, err
		}
		s.messages++
		s.parked += n / parkedSize
		for i, fd := range fds {
			if !take(b[min(i*parkedSize, n):min((i+1)*parkedSize, n)], fd) {
				unix.Close(fd)
			}
		}
		short = short || flags&unix.MSG_CTRUNC != 0
		return s.messages < mostMessages, nil
	})
	if short {
		err = errors.Join(err, errShort)
	}
	return err
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

// claim takes a connection if its record is about it and it was not found before. One that no record is about is shut down: its process was killed
// in the middle of forgetting it, and nobody would ever serve it.
func (a *arrivals) claim(s *segment, b []byte, fd int) bool {
	l := a.lot
	if len(b) < parkedSize {
		hangUp(fd)
		return false
	}
	slot, gen := binary.NativeEndian.Uint32(b), binary.NativeEndian.Uint32(b[4:])
	if !l.table.lives(slot, gen, fd) {
		hangUp(fd)
		return false
	}
	for int(slot) >= len(l.where) {
		l.where = append(l.where, place{})
	}
	if l.where[slot].segment != 0 {
		return false
	}
	if len(a.found) >= a.room {
		hangUp(fd)
		a.surplus++
		return false
	}
	l.where[slot] = place{s.id, int32(fd)}
	s.live++
	a.found = append(a.found, Found{slot, fd})
	failpoint.Pass("recover.found")
	return true
}

// lives tells whether the record of a slot is about this connection.
func (t *Table) lives(slot, gen uint32, fd int) bool {
	if slot >= min(t.head.used.Load(), uint32(len(t.recs))) { // above, records are given to newcomers
		return false
	}
	r := t.At(slot)
	if r.State() == Free || r.State() > Closing || r.gen != gen {
		return false
	}
	cookie, err := Cookie(fd)
	return err == nil && cookie == r.cookie
}
