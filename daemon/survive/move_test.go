package survive

import (
	"testing"

	"golang.org/x/sys/unix"
)

// shift has channels below 100 a thousand further, their cursors ten, and knows no others.
type shift struct{}

func (shift) Channel(id uint32) (uint32, bool)       { return id + 1000, id < 100 }
func (shift) Cursor(id uint32, cursor uint64) uint64 { return cursor + 10*uint64(id) }

// A moved table is what the table was, but for channels and cursors; and the table is not changed.
func TestMovedTable(t *testing.T) {
	table, err := NewTable(100, 7)
	if err != nil {
		t.Fatal(err)
	}
	defer table.Close()
	take := func(channel uint32, p Place) uint32 {
		slot, r, err := table.Take(uint64(channel))
		if err != nil {
			t.Fatal(err)
		}
		r.Answer(channel, p)
		r.SetState(Open)
		return slot
	}
	plain := take(1, Place{Cursor: 5, Base: 70, Out: 90, In: 3, Received: 4})
	stranger := take(100, Place{Cursor: 6})
	damaged := take(2, Place{Cursor: 5})
	table.At(damaged).places[table.At(damaged).which.Load()&1].cursor++
	writing := take(3, Place{Cursor: 9})
	table.At(writing).Writing()
	session := take(NoChannel, Place{Cursor: 20, At: 2})
	rooms, err := table.MoreSubscriptions(session)
	if err != nil {
		t.Fatal(err)
	}
	for i, room := range rooms[:3] {
		room.Set(uint32(4+i), uint64(30+i), 0)
		room.Use(9)
	}
	rooms[2].Set(6, 32, 40)
	rooms[3].Set(8, 8, 0) // not in use
	if table.Begin() != 0 {
		t.Fatal("adoptions have failed")
	}

	next, err := table.Moved(77, shift{})
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	if next.Arrangement() != 77 || table.Arrangement() != 0 || next.Epoch() != 7 || next.Nonce() != table.Nonce() || next.Begin() != 1 {
		t.Errorf("the header: arrangement %d, before %d", next.Arrangement(), table.Arrangement())
	}
	for _, want := range []struct {
		slot, channel uint32
		cursor        uint64
		sound         bool
	}{{plain, 1001, 15, true}, {stranger, noSuchChannel, 6, true}, {damaged, 2, 6, false}, {writing, 1003, 39, true}, {session, NoChannel, 20 + 50, true}} {
		r := next.At(want.slot)
		was, _ := table.At(want.slot).Place()
		p, interrupted := r.Place()
		if r.channel != want.channel || p.Cursor != want.cursor || r.sound() != want.sound || interrupted != (want.slot == writing) {
			t.Errorf("slot %d: channel %d, %+v, sound %v, interrupted %v; want %+v", want.slot, r.channel, p, r.sound(), interrupted, want)
		}
		if was.Cursor = p.Cursor; p != was || r.State() != Open || r.Cookie() != table.At(want.slot).Cookie() {
			t.Errorf("slot %d has changed: %+v, was %+v", want.slot, p, was)
		}
	}
	moved, err := next.Subscriptions(session)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []*Subscription{{channel: 1004, cursor: 70}, {channel: 1005, cursor: 81}, {channel: 1006, cursor: 92, until: 100}, {channel: 8, cursor: 8}} {
		s := moved[i]
		if s.channel != want.channel || s.cursor != want.cursor || s.until != want.until || s.Used() != (i < 3) {
			t.Errorf("subscription %d: %+v, want %+v", i, s, want)
		}
		if rooms[i].channel == s.channel != (i == 3) {
			t.Errorf("subscription %d of the table has changed", i)
		}
	}
	// It can be used, and its size is sealed as that of the first one.
	if slot, _, err := next.Take(1); err != nil || table.recs[slot].state.Load() != Free {
		t.Errorf("slot %d: %v", slot, err)
	}
	if err := unix.Ftruncate(int(next.file.Fd()), 0); err != unix.EPERM {
		t.Errorf("cutting it off: %v", err)
	}
}
