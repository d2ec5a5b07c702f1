package survive

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"unsafe"
)

// What is kept is there in the next process, however long it is, and nothing of it is left when the client is gone.
func TestKeep(t *testing.T) {
	table := newTable(t, 3000)
	owner, _, err := table.Take(1)
	if err != nil {
		t.Fatal(err)
	}
	for _, size := range []int{0, 1, extensionSize - keptHead - 1, extensionSize - keptHead, extensionSize - keptHead + 1, 2*extensionSize - keptHead, 2*extensionSize - keptHead + 1, 64 << 10, MaxKept, 1} {
		b := bytes.Repeat([]byte{byte(size), 1, 2}, size/3+1)[:size]
		if err := table.Keep(owner, Grant, b); err != nil {
			t.Fatal(size, err)
		}
		if err := table.Keep(owner, Overflow, b[:size/2]); err != nil && size/2 < MaxKept/2 {
			t.Fatal(size, err)
		}
		next := reopen(t, table)
		if got, err := next.Kept(owner, Grant); err != nil || !bytes.Equal(got, b) {
			t.Fatalf("%d bytes: %d, %v", size, len(got), err)
		}
	}
	if err := table.Keep(owner, Grant, make([]byte, MaxKept+1)); err == nil {
		t.Error("more than MaxKept is kept")
	}
	table.Drop(owner, Overflow)
	if got, err := table.Kept(owner, Overflow); got != nil || err != nil {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	table.Give(owner)
	if used := usedSlots(table); used != 0 {
		t.Errorf("%d records are left", used)
	}
}

func usedSlots(table *Table) (n int) {
	for slot := range table.head.used.Load() {
		if table.recs[slot].state.Load() != Free {
			n++
		}
	}
	return n
}

// A full table says so, and is as it was.
func TestKeepInAFullTable(t *testing.T) {
	table := newTable(t, 5)
	owner, _, _ := table.Take(1)
	if err := table.Keep(owner, Grant, []byte("what was")); err != nil {
		t.Fatal(err)
	}
	if err := table.Keep(owner, Grant, make([]byte, 3*extensionSize)); err == nil {
		t.Fatal("there is room")
	}
	if got, err := table.Kept(owner, Grant); string(got) != "what was" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	if used := usedSlots(table); used != 3 {
		t.Errorf("%d records are used, want 3", used)
	}
}

// Whether a subscription is one follows from what its client is done with, for as long as the connection lives.
func TestHolds(t *testing.T) {
	for _, at := range []uint64{0, 1, 1<<31 - 1, 1 << 31, 1<<31 + 1, 1<<32 - 1, 1 << 32, 1<<40 + 12345} {
		var s Subscription
		if s.Used() || s.Holds(at) {
			t.Fatal("of none")
		}
		s.Use(at)
		if !s.Used() || s.Holds(at) {
			t.Errorf("%d: it holds before its command is done with", at)
		}
		for _, more := range []uint64{1, 100, 1 << 20, 1<<30 - 1, 1 << 30, 1<<30 + 1, 1<<31 - 1, 1<<31 + 1, 3 << 30, 1<<40 + 1} {
			if !s.Holds(at + more) {
				t.Errorf("%d: it does not hold %d bytes later", at, more)
			}
		}
		s.Unuse()
		if s.Used() || s.Holds(at+1) {
			t.Errorf("%d: it is used after Unuse", at)
		}
	}
}

func TestMoreSubscriptions(t *testing.T) {
	table := newTable(t, 200)
	owner, _, _ := table.Take(1)
	var all []*Subscription
	for len(all) < 1000 {
		more, err := table.MoreSubscriptions(owner)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, more...)
	}
	for i, s := range all {
		s.Set(uint32(i), uint64(i), uint64(i%2))
		s.Use(5)
	}
	next := reopen(t, table)
	got, err := next.Subscriptions(owner)
	if err != nil || len(got) != len(all) {
		t.Fatal(len(got), err)
	}
	for i, s := range got {
		if s.Cursor() != uint64(i) || s.Channel() != uint32(i) || s.Until() != uint64(i%2) || !s.Holds(6) {
			t.Fatalf("%d: %+v", i, s)
		}
	}
	next.forget([]Found{{Slot: owner}})
	if again, err := next.Subscriptions(owner); err != nil || len(again) != len(all) {
		t.Errorf("%d, %v: after what is nobody's was freed", len(again), err)
	}
	next.forget(nil)
	if used := usedSlots(next); used != 0 {
		t.Errorf("%d records are left", used)
	}
}

// Whatever is in the memory, nothing panics, nothing goes on for ever, and no record is used twice.
func FuzzExtensions(f *testing.F) {
	f.Add(uint64(1), []byte{})
	f.Add(uint64(2), bytes.Repeat([]byte{0xff, 3, 0}, 20))
	f.Add(uint64(3), []byte("\x00\x14\x01\x02\x10\x03\x04\x05\x06"))
	f.Fuzz(func(t *testing.T, seed uint64, damage []byte) {
		const slots = 24
		table, err := NewTable(slots, 1)
		if err != nil {
			t.Fatal(err)
		}
		defer table.Close()
		random := rand.New(rand.NewPCG(seed, 1))
		var owners []Found
		for i := range 3 {
			slot, _, _ := table.Take(uint64(i))
			owners = append(owners, Found{Slot: slot})
			for range random.IntN(3) {
				_, _ = table.MoreSubscriptions(slot)
			}
			_ = table.Keep(slot, Chain(random.IntN(int(chains))), make([]byte, random.IntN(600)))
		}
		// Links and states are hit more often than other words.
		memory := unsafe.Slice((*byte)(unsafe.Pointer(&table.recs[0])), slots*int(recordSize))
		for len(damage) >= 3 {
			slot, what, value := int(damage[0])%slots, damage[1], damage[2]
			at := slot * int(recordSize)
			link := table.link(owners[value%3].Slot, uint32(value)%slots) // its check bits are right
			if value%7 == 0 {
				link = uint32(value)
			}
			switch what % 4 {
			case 0:
				at += int(unsafe.Offsetof(extension{}.next)) &^ 3
				binary.NativeEndian.PutUint32(memory[at:], link)
			case 1:
				at += int(unsafe.Offsetof(Record{}.more))
				binary.NativeEndian.PutUint32(memory[at:], link)
			case 2:
				at += int(unsafe.Offsetof(extension{}.data)) + 4*int(value%4)
				binary.NativeEndian.PutUint32(memory[at:], link)
			case 3:
				memory[at+int(what)%int(recordSize)] = value
			}
			damage = damage[3:]
		}
		next := reopen(t, table)
		next.forget(owners)
		seen := map[uint32]uint32{}
		for _, owner := range owners {
			subs, err := next.Subscriptions(owner.Slot)
			if err == nil && len(subs) > slots*perExtension {
				t.Fatalf("%d subscriptions", len(subs))
			}
			for what := range chains {
				_, _ = next.Kept(owner.Slot, what)
				slots, err := next.chain(owner.Slot, what)
				for _, slot := range slots {
					if other, used := seen[slot]; used && err == nil {
						t.Fatalf("record %d is of %d and of %d", slot, owner.Slot, other)
					}
					seen[slot] = owner.Slot
				}
			}
		}
		for _, owner := range owners {
			_ = next.Keep(owner.Slot, Grant, make([]byte, 300))
			_, _ = next.MoreSubscriptions(owner.Slot)
			next.Drop(owner.Slot, Overflow)
			next.Give(owner.Slot)
		}
		free := map[uint32]bool{}
		for _, slot := range next.free {
			if free[slot] {
				t.Fatalf("record %d is free twice", slot)
			}
			free[slot] = true
		}
	})
}

// A bit that is another one in what continues a record is noticed, or changes nothing of what the client is to get and may do.
func TestDamagedExtensions(t *testing.T) {
	table := newTable(t, 200)
	owner, _, _ := table.Take(1)
	var rooms []*Subscription
	for range 3 {
		more, err := table.MoreSubscriptions(owner)
		if err != nil {
			t.Fatal(err)
		}
		rooms = append(rooms, more...)
	}
	for i, s := range rooms[:len(rooms)-3] {
		s.Set(uint32(i), uint64(10*i), uint64(i%3))
		s.Use(uint64(i % 2)) // 0: a single bit says that it is used
		s.SetCursor(uint64(10*i + 1))
		if i%5 == 4 {
			s.Unuse()
		}
	}
	grant, overflow := bytes.Repeat([]byte("grant"), 100), []byte("overflow")
	for what, b := range map[Chain][]byte{Grant: grant, Overflow: overflow} {
		if err := table.Keep(owner, what, b); err != nil {
			t.Fatal(err)
		}
	}
	slots := []uint32{slotOf(table.recs[owner].more.Load())}
	for what := range chains {
		more, err := table.chain(owner, what)
		if err != nil {
			t.Fatal(err)
		}
		slots = append(slots, more...)
	}
	type shown struct {
		channel       uint32
		cursor, until uint64
		used          bool
	}
	show := func() (all []shown, failed bool) {
		got, err := table.Subscriptions(owner)
		if err != nil {
			return nil, true
		}
		for _, s := range got {
			all = append(all, shown{s.Channel(), s.Cursor(), s.Until(), s.Used()})
		}
		for what, want := range map[Chain][]byte{Grant: grant, Overflow: overflow} {
			got, err := table.Kept(owner, what)
			if err != nil {
				return nil, true
			}
			if !bytes.Equal(got, want) {
				t.Fatalf("kept are %q, want %q", got, want)
			}
		}
		return all, false
	}
	want, failed := show()
	if failed || len(slots) != 1+2+1+3 {
		t.Fatal(len(slots), failed)
	}
	noticed, flips := 0, 0
	flip := func(what string, b *byte) {
		for bit := range 8 {
			*b ^= 1 << bit
			if got, failed := show(); failed {
				noticed++
			} else if !slices.Equal(got, want) {
				t.Fatalf("%s, bit %d: %v, want %v", what, bit, got, want)
			}
			*b ^= 1 << bit
			flips++
		}
	}
	for _, slot := range slots {
		memory := unsafe.Slice((*byte)(unsafe.Pointer(&table.recs[slot])), recordSize)
		for at := range memory {
			flip(fmt.Sprintf("byte %d of slot %d", at, slot), &memory[at])
		}
	}
	more := unsafe.Slice((*byte)(unsafe.Pointer(&table.recs[owner].more)), 4)
	for at := range more {
		flip(fmt.Sprintf("byte %d of the link to the directory", at), &more[at])
	}
	t.Logf("%d of %d flips were noticed", noticed, flips)
	if got, failed := show(); failed || !slices.Equal(got, want) {
		t.Error("the table is not as it was")
	}
}

// A process that is killed while a subscription changes leaves one that is sound, and as it was or as it was to be.
func TestSubscriptionIsChangedByHalves(t *testing.T) {
	for name, change := range map[string]func(s *Subscription, half bool){
		"before": func(s *Subscription, half bool) {
			s.about(7, s.until, s.channel, s.used.Load())
			if !half {
				s.cursor = 7
				s.done()
			}
		},
		"after": func(s *Subscription, half bool) {
			s.about(7, s.until, s.channel, s.used.Load())
			s.cursor = 7
			if !half {
				s.done()
			}
		},
	} {
		for _, half := range []bool{true, false} {
			var s Subscription
			s.Set(5, 6, 0)
			s.Use(0)
			change(&s, half)
			if !s.sound() {
				t.Errorf("%s, half %v: %+v", name, half, &s)
			}
			s.about(8, s.until, s.channel, s.used.Load()) // by the next process, which is killed as well
			if !s.sound() || s.cursor == 8 {
				t.Errorf("%s, half %v, and half of another change: %+v", name, half, &s)
			}
			s.SetCursor(9)
			if !s.sound() || s.Cursor() != 9 || s.Channel() != 5 || !s.Holds(1) {
				t.Errorf("%s, half %v, and others: %+v", name, half, &s)
			}
		}
	}
}
