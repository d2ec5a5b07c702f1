package survive

import (
	"bytes"
	"errors"
	"os"
	"strconv"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

func newTable(t testing.TB, slots int) *Table {
	t.Helper()
	table, err := NewTable(slots, 77)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { table.Close() })
	return table
}

// After MakeRoom the kernel has places for as many descriptors as there were clients, and some more.
func TestMakeRoom(t *testing.T) {
	const clients = 3000
	table := newTable(t, 10_000)
	for range clients {
		if _, _, err := table.Take(1); err != nil {
			t.Fatal(err)
		}
	}
	table.MakeRoom()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := bytes.Cut(status, []byte("\nFDSize:\t")) // proc_pid_status(5)
	size, _, _ := bytes.Cut(rest, []byte("\n"))
	if n, err := strconv.Atoi(string(size)); err != nil || n < clients+spare {
		t.Errorf("there are places for %s descriptors, %v", size, err)
	}
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if n, _ := strconv.Atoi(e.Name()); n >= clients {
			t.Errorf("descriptor %d is left open", n)
		}
	}
}

// reopen is the table as the next process finds it.
func reopen(t testing.TB, table *Table) *Table {
	t.Helper()
	raw, err := table.File().SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var fd int
	_ = raw.Control(func(old uintptr) { fd, err = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0) })
	if err != nil {
		t.Fatal(err)
	}
	next, err := OpenTable(os.NewFile(uintptr(fd), TableName))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { next.Close() })
	return next
}

func TestTableIsFound(t *testing.T) {
	table := newTable(t, 3)
	var slots []uint32
	for i := range uint64(3) {
		slot, r, err := table.Take(100 + i)
		if err != nil {
			t.Fatal(err)
		}
		r.Answer(uint32(i), Place{Cursor: i})
		slots = append(slots, slot)
	}
	if _, _, err := table.Take(1); !errors.Is(err, ErrFull) {
		t.Fatal(err)
	}
	table.Give(slots[1])
	next := reopen(t, table)
	if next.Epoch() != 77 || next.At(slots[0]).State() != Answering || next.At(slots[1]).State() != Free {
		t.Fatal("another table")
	}
	if p, writing := next.At(slots[2]).Place(); p.Cursor != 2 || writing {
		t.Fatalf("%+v", p)
	}
	slot, r, err := next.Take(5)
	if err != nil || slot != slots[1] || r.State() != Opening || r.channel != NoChannel {
		t.Fatal(slot, r, err)
	}
	if _, _, err := next.Take(6); !errors.Is(err, ErrFull) {
		t.Fatal(err)
	}
}

// Of two places one holds, whatever of the other is written.
func TestStandIsOneStore(t *testing.T) {
	var r Record
	for i := range uint64(10) {
		r.Stand(Place{Cursor: i})
		other := &r.places[(r.which.Load()^1)&1]
		*other = stored{cursor: 99}
		if p, _ := r.Place(); p.Cursor != i {
			t.Fatalf("%+v", p)
		}
		r.Writing()
		if p, writing := r.Place(); p.Cursor != i || !writing {
			t.Fatalf("%+v", p)
		}
	}
	if unsafe.Sizeof(r) != 256 {
		t.Errorf("a record has %d bytes", unsafe.Sizeof(r))
	}
	if MaxExtra < 2+125 {
		t.Errorf("there is room for %d bytes, and not for a control frame", MaxExtra)
	}
}

// Adoptions that fail are counted, those after which somebody else has killed the process are not.
func TestFailedAdoptions(t *testing.T) {
	table := newTable(t, 1)
	begin := func(want int) {
		t.Helper()
		table = reopen(t, table)
		if got := table.Begin(); got != want {
			t.Errorf("%d have failed, want %d", got, want)
		}
	}
	begin(0)
	begin(1)
	table.Adopted() // what was here before can be taken over
	begin(0)
	table.Adopted()
	table.Crashed()
	begin(1)
	begin(2)
	table.Adopted()
	begin(1) // which does not say that it does no harm later
	table.Adopted()
	table.Crashed()
	begin(2)
	table.Adopted()
	table.Lived()
	begin(0)
}

// What is no table of this version is refused.
func TestForeignTables(t *testing.T) {
	image := make([]byte, headerSize+int(recordSize))
	*(*tableHeader)(unsafe.Pointer(&image[0])) = tableHeader{magic: magic, layout: layoutVersion, slots: 1}
	head := func(change func(*tableHeader)) []byte {
		b := append([]byte(nil), image...)
		change((*tableHeader)(unsafe.Pointer(&b[0])))
		return b
	}
	open := func(b []byte) error {
		f, err := os.CreateTemp(t.TempDir(), "")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write(b); err != nil {
			t.Fatal(err)
		}
		table, err := OpenTable(f)
		if err != nil {
			f.Close()
			return err
		}
		return table.Close()
	}
	if err := open(image); err != nil {
		t.Error(err)
	}
	for name, b := range map[string][]byte{
		"nothing": nil, "a byte": {0}, "cut off": image[:len(image)-1], "longer": append(image[:len(image):len(image)], 0),
		"another version": head(func(h *tableHeader) { h.layout++ }),
		"another file":    head(func(h *tableHeader) { h.magic[0]++ }),
		"no slots":        head(func(h *tableHeader) { h.slots = 0 }),
		"all slots":       head(func(h *tableHeader) { h.slots = ^uint32(0) }),
	} {
		if err := open(b); err == nil {
			t.Errorf("%s: opened", name)
		}
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	if _, err := OpenTable(null); err == nil {
		t.Error("a device was opened")
	}
}
