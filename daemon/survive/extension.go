package survive

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"sync/atomic"
	"unsafe"
)

// Some clients need more room than a record has: several subscriptions, a long answer that is half out, what they are allowed to do. They have
// it in extensions, which are taken from the same table. The first one is a directory of the others:
//
//	record ──> directory ── Subscriptions ──> extension ──> extension
//	           (the first ─ Overflow ───────> extension
//	        subscriptions) ─ Grant ──────────> extension
//
// An extension is filled before it is linked, and given back after it was taken from its chain: a process that is killed in between leaves
// one that nothing refers to, which the next one finds and frees. All of it is for the goroutine that the record belongs to.
//
// As a record's places, what is in extensions has sums, and links have check bits: a client whose extensions were damaged is given up, rather
// than sent what it has not subscribed to, or let do what it may not.

// Chain is what a chain of extensions is for.
type Chain uint8

// The chains of a client.
const (
	Subscriptions Chain = iota
	Overflow            // bytes for this client alone, when there are more of them than a record has room for
	Grant               // what the client is allowed to do
	chains
)

// extended is the state of an extension. It is none of a client.
const extended State = 0x100

// extension is a record that continues another one. 256 bytes.
type extension struct {
	state    atomic.Uint32
	gen      uint32
	owner    uint32        // slot
	ownerGen uint32        // of the slot, at that time
	next     atomic.Uint32 // link, 0: the last one
	_        uint32
	data     [extensionSize]byte
}

const extensionSize = 256 - 24

// directory is the data of the first extension.
type directory struct {
	heads         [chains]atomic.Uint32 // links
	address       uint32                // see SetAddress
	subscriptions [perDirectory]Subscription
}

// mostExtensions is how long a chain can be.
const mostExtensions = 1024

// MaxKept is how many bytes Keep takes.
const MaxKept = mostExtensions*extensionSize - keptHead

// keptHead is what stands before them: how many there are, and their sum.
const keptHead = 8

// Subscription is one channel of a client that has several. 32 bytes. The process can be killed between any two stores, so one field is changed at
// a time, and there are two sums: one is right for what is there before, the other one for what is there afterwards.
type Subscription struct {
	cursor  uint64
	until   uint64
	channel uint32
	used    atomic.Uint32
	sums    [2]uint32
}

const (
	perDirectory = 6
	perExtension = 7
)

// Both fit into an extension, and a record is as large as one.
const (
	_ = extensionSize - unsafe.Sizeof(directory{})
	_ = extensionSize - perExtension*unsafe.Sizeof(Subscription{})
	_ = recordSize - unsafe.Sizeof(extension{})
	_ = unsafe.Sizeof(extension{}) - recordSize
)

// Channel is its id in the log.
func (s *Subscription) Channel() uint32 { return s.channel }

// Cursor is the last message of the channel that is out as a whole; where Place.At says that it is this one, Place.Cursor is.
func (s *Subscription) Cursor() uint64 { return s.cursor }

// Until is the last message that is to be sent, 0: all that come.
func (s *Subscription) Until() uint64 { return s.until }

// Set sets all three.
func (s *Subscription) Set(channel uint32, cursor, until uint64) {
	s.about(s.cursor, s.until, channel, s.used.Load())
	s.channel = channel
	s.done()
	s.SetCursor(cursor)
	s.about(s.cursor, until, s.channel, s.used.Load())
	s.until = until
	s.done()
}

// SetCursor sets the cursor.
func (s *Subscription) SetCursor(cursor uint64) {
	s.about(cursor, s.until, s.channel, s.used.Load())
	s.cursor = cursor
	s.done()
}

// Use says that the subscription is one, from the moment on when the client's place says that it is done with more than that many bytes of
// input, which is what the place says now: the command that has asked for it is what comes next. Its fields are set before.
func (s *Subscription) Use(received uint64) { s.use(uint32(received)<<1 | 1) }

// Unuse says that it is none any more.
func (s *Subscription) Unuse() { s.use(0) }

func (s *Subscription) use(used uint32) {
	s.about(s.cursor, s.until, s.channel, used)
	s.used.Store(used)
	s.done()
}

// about makes the sum of what is about to be there. The other one is of what is there, also when a process was killed before done.
func (s *Subscription) about(cursor, until uint64, channel, used uint32) {
	s.sums[0] = sumOf(s.cursor, s.until, s.channel, s.used.Load())
	s.sums[1] = sumOf(cursor, until, channel, used)
}

// done has both sums be of what is there: no bit that is another one makes it what was before.
func (s *Subscription) done() { s.sums[0] = s.sums[1] }

// sumOf is a multilinear hash, as that of a record. It is 0 for a subscription that never was one.
func sumOf(cursor, until uint64, channel, used uint32) uint32 {
	h := cursor*0x9fb21c651e98df25 + until*0xd6e8feb86659fd93 + (uint64(channel)<<32|uint64(used))*0xa0761d6478bd642f
	return uint32(h>>32) ^ uint32(h)
}

// sound tells whether it is as it was left.
func (s *Subscription) sound() bool {
	sum := sumOf(s.cursor, s.until, s.channel, s.used.Load())
	return s.sums[0] == sum || s.sums[1] == sum
}

// Used tells whether it is one, or is to be one.
func (s *Subscription) Used() bool { return s.used.Load() != 0 }

// Holds tells whether it is one for a client that is done with that many bytes of input. Until its command is done with that is the number that
// Use was given, and never again: only a client that has sent a multiple of 2 GiB since then, to the byte, is mistaken for one that has not.
func (s *Subscription) Holds(received uint64) bool {
	used := s.used.Load()
	return used != 0 && uint32(received)&(1<<31-1) != used>>1
}

// A link is a slot plus 1, 0 for none, and check bits above it, one of which is always set: no link becomes another one, or none, by a bit that
// is another one.
const (
	slotBits = 21
	maxSlots = 1<<slotBits - 1
)

func (t *Table) link(owner, slot uint32) uint32 {
	h := (uint64(owner)<<32|uint64(slot))*0x9fb21c651e98df25 + uint64(t.recs[owner].gen)*0xd6e8feb86659fd93
	return (uint32(h>>32)|1<<slotBits)&^maxSlots | (slot + 1)
}

// slotOf is the slot of a link that is known to be one.
func slotOf(link uint32) uint32 { return link&maxSlots - 1 }

func (t *Table) extension(slot uint32) *extension { return (*extension)(unsafe.Pointer(&t.recs[slot])) }

func (x *extension) directory() *directory { return (*directory)(unsafe.Pointer(&x.data)) }

func (x *extension) subscriptions() []Subscription {
	return unsafe.Slice((*Subscription)(unsafe.Pointer(&x.data)), perExtension)
}

// extend takes an extension, which is not linked yet.
func (t *Table) extend(owner uint32) (slot uint32, x *extension, err error) {
	slot, r, err := t.Take(0)
	if err != nil {
		return 0, nil, err
	}
	x = t.extension(slot)
	x.owner, x.ownerGen = owner, t.recs[owner].gen
	x.next.Store(0)
	clear(x.data[:])
	r.state.Store(extended)
	return slot, x, nil
}

// broken is the head of what is not what this program leaves behind.
const broken = ^uint32(0)

var errChain = errors.New("implausible record: what it is continued by")

// follow is the extension that a link refers to, nil at the end.
func (t *Table) follow(owner, link uint32) (*extension, error) {
	if link == 0 {
		return nil, nil
	}
	slot := slotOf(link)
	if uint64(slot) >= uint64(len(t.recs)) || link != t.link(owner, slot) {
		return nil, errChain
	}
	x := t.extension(slot)
	if x.state.Load() != extended || x.owner != owner || x.ownerGen != t.recs[owner].gen {
		return nil, errChain
	}
	return x, nil
}

// directory of a client, nil if it has none.
func (t *Table) directory(owner uint32) (*directory, error) {
	x, err := t.follow(owner, t.recs[owner].more.Load())
	if x == nil {
		return nil, err
	}
	return x.directory(), nil
}

// chain are the slots of a chain. They are those of this client, or there is an error.
func (t *Table) chain(owner uint32, what Chain) (slots []uint32, err error) {
	d, err := t.directory(owner)
	if d == nil {
		return nil, err
	}
	for link := d.heads[what].Load(); ; {
		x, err := t.follow(owner, link)
		if err != nil || len(slots) > mostExtensions {
			return nil, errChain
		}
		if x == nil {
			return slots, nil
		}
		slots = append(slots, slotOf(link))
		link = x.next.Load()
	}
}

// needDirectory makes a directory where there is none.
func (t *Table) needDirectory(owner uint32) (*directory, error) {
	if d, err := t.directory(owner); d != nil || err != nil {
		return d, err
	}
	slot, x, err := t.extend(owner)
	if err != nil {
		return nil, err
	}
	t.recs[owner].more.Store(t.link(owner, slot))
	return x.directory(), nil
}

// Keep puts bytes into a chain, in place of what was there. A process that is killed meanwhile leaves the old ones or the new ones.
func (t *Table) Keep(owner uint32, what Chain, b []byte) error {
	if len(b) > MaxKept {
		return errors.New("too large for the connection table")
	}
	d, err := t.needDirectory(owner)
	if err != nil {
		return err
	}
	head := binary.LittleEndian.AppendUint32(make([]byte, 0, keptHead+len(b)), uint32(len(b)))
	b = append(binary.LittleEndian.AppendUint32(head, sumOfKept(what, b)), b...)
	// From the end: each one is linked when it is complete.
	first := uint32(0)
	for from := (len(b) - 1) / extensionSize * extensionSize; from >= 0; from -= extensionSize {
		slot, x, err := t.extend(owner)
		if err != nil {
			t.unlink(first)
			return err
		}
		copy(x.data[:], b[from:])
		x.next.Store(first)
		first = t.link(owner, slot)
	}
	t.unlink(d.heads[what].Swap(first))
	return nil
}

// sumOfKept is of the length, too, in which a bit more makes bytes of the extension's rest count.
func sumOfKept(what Chain, b []byte) uint32 {
	sum := crc32.ChecksumIEEE(binary.LittleEndian.AppendUint32([]byte{byte(what)}, uint32(len(b))))
	return crc32.Update(sum, crc32.IEEETable, b)
}

// Kept returns what Keep has put there, nil if there is nothing.
func (t *Table) Kept(owner uint32, what Chain) ([]byte, error) {
	slots, err := t.chain(owner, what)
	if err != nil || len(slots) == 0 {
		return nil, err
	}
	b := make([]byte, 0, len(slots)*extensionSize)
	for _, slot := range slots {
		b = append(b, t.extension(slot).data[:]...)
	}
	n, sum := binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint32(b[4:])
	if b = b[keptHead:]; uint64(n) > uint64(len(b)) || sumOfKept(what, b[:n]) != sum {
		return nil, errChain
	}
	return b[:n], nil
}

// SetAddress notes a number, not 0, that stands for the address that a client comes from. It is for the time before Answer.
func (t *Table) SetAddress(owner, address uint32) error {
	d, err := t.needDirectory(owner)
	if err == nil {
		d.address = address
	}
	return err
}

// Address is what SetAddress has noted, 0 if it has not.
func (t *Table) Address(owner uint32) uint32 {
	d, _ := t.directory(owner)
	if d == nil {
		return 0
	}
	return d.address
}

// Drop frees a chain.
func (t *Table) Drop(owner uint32, what Chain) {
	if d, _ := t.directory(owner); d != nil {
		t.unlink(d.heads[what].Swap(0))
	}
}

// Anew makes the record of a connection that has not been answered as it was when it was taken.
func (t *Table) Anew(slot uint32) {
	r := &t.recs[slot]
	t.dropAll(r)
	r.kind, r.channel = 0, NoChannel
	r.state.Store(Opening)
}

// dropAll frees all that continues a record.
func (t *Table) dropAll(r *Record) {
	link := r.more.Swap(0)
	if link == 0 || link == broken {
		return
	}
	d := t.extension(slotOf(link)).directory()
	for what := range d.heads {
		t.unlink(d.heads[what].Load())
	}
	t.Give(slotOf(link))
}

// unlink frees the extensions of a chain that nothing refers to any more.
func (t *Table) unlink(link uint32) {
	for link != 0 {
		slot := slotOf(link)
		link = t.extension(slot).next.Load()
		t.Give(slot)
	}
}

// MoreSubscriptions makes room for further subscriptions of a client. None of them is used yet.
func (t *Table) MoreSubscriptions(owner uint32) ([]*Subscription, error) {
	if d, err := t.directory(owner); d == nil {
		if err == nil {
			d, err = t.needDirectory(owner)
		}
		if err != nil {
			return nil, err
		}
		return pointers(nil, d.subscriptions[:]), nil
	}
	slots, err := t.chain(owner, Subscriptions)
	if err != nil {
		return nil, err
	}
	if len(slots) == mostExtensions {
		return nil, ErrFull
	}
	slot, x, err := t.extend(owner)
	if err != nil {
		return nil, err
	}
	if len(slots) > 0 {
		t.extension(slots[len(slots)-1]).next.Store(t.link(owner, slot))
	} else {
		d, _ := t.directory(owner)
		d.heads[Subscriptions].Store(t.link(owner, slot))
	}
	return pointers(nil, x.subscriptions()), nil
}

// Subscriptions is all the room that a client has for them, used or not, in the order in which MoreSubscriptions has made it. It is an error when
// one of them is damaged.
func (t *Table) Subscriptions(owner uint32) (all []*Subscription, err error) {
	d, err := t.directory(owner)
	if d == nil {
		return nil, err
	}
	all = pointers(nil, d.subscriptions[:])
	slots, err := t.chain(owner, Subscriptions)
	if err != nil {
		return nil, err
	}
	for _, slot := range slots {
		all = pointers(all, t.extension(slot).subscriptions())
	}
	for _, s := range all {
		if !s.sound() {
			return nil, errSum
		}
	}
	return all, nil
}

func pointers(to []*Subscription, s []Subscription) []*Subscription {
	for i := range s {
		to = append(to, &s[i])
	}
	return to
}

// mark marks the extensions of a client. One that is in two places is in none.
func (t *Table) mark(owner uint32, marks map[uint32]bool) {
	r := &t.recs[owner]
	link := r.more.Load()
	if link == 0 {
		return
	}
	all := []uint32{slotOf(link)}
	_, err := t.directory(owner)
	for what := range chains {
		if err == nil {
			var slots []uint32
			slots, err = t.chain(owner, what)
			all = append(all, slots...)
		}
	}
	mine := make(map[uint32]bool, len(all))
	for _, slot := range all {
		if marks[slot] || mine[slot] {
			err = errChain
		}
		mine[slot] = true
	}
	if err != nil {
		r.more.Store(broken)
		return
	}
	for slot := range mine {
		marks[slot] = true
	}
}
