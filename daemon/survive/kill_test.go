package survive

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// parkerEnv makes the test program the child of TestKilled: the names of the files that it gets.
const parkerEnv = "WSCAST_TEST_PARKER"

func init() {
	if names, ok := os.LookupEnv(parkerEnv); ok {
		fmt.Fprintln(os.Stderr, parkAndLeave(strings.Fields(names)))
		os.Exit(1)
	}
}

// What the child says of a connection, on descriptor 3.
const (
	isParked = iota + 1
	isLeaving
)

type report struct{ What, Slot, Cookie uint64 }

// parkAndLeave is the child: it takes over the table on descriptor 4 and the segments on those that follow, and has connections come and go as fast as it
// can. It ends by being killed.
func parkAndLeave(names []string) error {
	reports := os.NewFile(3, "reports")
	table, err := OpenTable(os.NewFile(4, TableName))
	if err != nil {
		return err
	}
	store, err := OpenStore(names)
	if err != nil {
		return err
	}
	if _, err := store.Probe(context.Background(), Enough); err != nil {
		return err
	}
	var stored []*os.File
	for i, name := range names {
		stored = append(stored, os.NewFile(uintptr(5+i), name))
	}
	lot, here, err := Recover(store, table, stored)
	if err != nil {
		return err
	}
	say := func(what uint64, slot uint32, cookie uint64) error {
		return binary.Write(reports, binary.NativeEndian, report{what, uint64(slot), cookie})
	}
	for {
		if len(here) > 0 && (rand.IntN(100) < 49 || len(here) > 600) {
			i := rand.IntN(len(here))
			gone := here[i]
			here[i] = here[len(here)-1]
			here = here[:len(here)-1]
			if err := say(isLeaving, gone.Slot, table.At(gone.Slot).Cookie()); err != nil {
				return err
			}
			lot.Leave(gone.Slot)
			table.Give(gone.Slot)
			unix.Close(gone.FD)
			continue
		}
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		cookie, err := Cookie(fd)
		if err != nil {
			return err
		}
		slot, r, err := table.Take(cookie)
		if err != nil {
			return err
		}
		if err := lot.Park(slot, fd); err != nil {
			return err
		}
		r.SetState(Open)
		here = append(here, Found{slot, fd})
		if err := say(isParked, slot, cookie); err != nil {
			return err
		}
	}
}

// A process that parks, merges and compacts is killed again and again: every connection that was parked is found, none of them twice, and the store
// has nothing but what the next process knows of.
func TestKilled(t *testing.T) {
	m, s := newManager(t, 100, false)
	table, err := NewTable(10_000, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { table.Close() }()
	parked := map[uint64]uint64{} // slots, by cookie
	total := 0
	for round := range 40 {
		parked = killed(t, m, table, parked, 1+rand.IntN(3000), &total)
		// The next process, which looks at what there is, and leaves it as it is.
		table = reopen(t, table)
		names, files := m.files(t, s)
		lot, found, err := Recover(s, table, files)
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		there := map[uint64]bool{}
		for _, f := range found {
			cookie, err := Cookie(f.FD)
			if err != nil || there[cookie] || table.At(f.Slot).Cookie() != cookie {
				t.Fatalf("round %d: slot %d is found twice, or is another one: %v", round, f.Slot, err)
			}
			there[cookie] = true
			unix.Close(f.FD)
		}
		for cookie, slot := range parked {
			if !there[cookie] {
				t.Errorf("round %d: slot %d was parked, and is not found", round, slot)
			}
		}
		live, stored := lot.Parked()
		if live != len(found) {
			t.Errorf("round %d: %d live, %d are found", round, live, len(found))
		}
		if now, files := m.files(t, s); len(now) != stored {
			t.Errorf("round %d: %q are stored, %q were; the lot knows of %d", round, now, names, stored)
		} else {
			for _, f := range files {
				f.Close()
			}
		}
		lot.Close()
		parked = map[uint64]uint64{}
		for _, f := range found {
			parked[table.At(f.Slot).Cookie()] = uint64(f.Slot)
		}
		if t.Failed() {
			return
		}
	}
	t.Logf("%d connections were parked", total)
	if total < 10_000 {
		t.Errorf("%d connections were parked: too few to merge and compact", total)
	}
}

// killed lets a child work until it has said so much, and returns what is parked for sure then.
func killed(t *testing.T, m *manager, table *Table, parked map[uint64]uint64, words int, total *int) map[uint64]uint64 {
	t.Helper()
	reports, theirs, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer reports.Close()
	names, files := m.files(t, nil)
	raw, err := table.File().SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var d int
	if cerr := raw.Control(func(fd uintptr) { d, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) }); cerr != nil || err != nil {
		t.Fatal(cerr, err)
	}
	files = append([]*os.File{theirs, os.NewFile(uintptr(d), TableName)}, files...)
	child := exec.CommandContext(t.Context(), os.Args[0])
	child.Env = append(os.Environ(), parkerEnv+"="+strings.Join(names, " "))
	child.ExtraFiles, child.Stderr = files, os.Stderr
	err = child.Start()
	for _, f := range files {
		f.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	next := func() bool {
		var r report
		if err := binary.Read(reports, binary.NativeEndian, &r); err != nil {
			if err != io.EOF {
				t.Error(err)
			}
			return false
		}
		delete(parked, r.Cookie)
		if r.What == isParked {
			parked[r.Cookie] = r.Slot
			*total++
		}
		return true
	}
	for range words {
		if !next() {
			break // it has ended: Wait says how
		}
	}
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := child.Wait(); child.ProcessState.Exited() {
		t.Fatal("the child has ended by itself:", err)
	}
	for next() { // what it has said before it died
	}
	return parked
}

// files are the segments in the store, once all that was said before has been dealt with.
func (m *manager) files(t *testing.T, s *Store) (names []string, files []*os.File) {
	t.Helper()
	if s != nil {
		if err := s.Barrier(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for name, fds := range m.kept {
		if !IsSegment(name) {
			continue // of a probe that was interrupted
		}
		if len(fds) != 1 {
			t.Errorf("%d descriptors are stored as %s", len(fds), name)
		}
		d, err := unix.FcntlInt(uintptr(fds[0]), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		names, files = append(names, name), append(files, os.NewFile(uintptr(d), name))
	}
	return names, files
}
