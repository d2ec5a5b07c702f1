package survive

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"wscast/daemon/survive/shelf"
)

// connection is a client's socket and the client.
type connection struct {
	slot   uint32
	fd     int
	client net.Conn
}

type scene struct {
	t      *testing.T
	shelf  *shelf.Shelf
	table  *Table
	lot    *Lot
	ln     *net.TCPListener
	conns  map[uint32]*connection
	random *rand.Rand
}

func newScene(t *testing.T) *scene {
	t.Helper()
	table, err := NewTable(100_000, 1)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	s := &scene{t: t, shelf: shelf.New(t), table: table, ln: ln, conns: make(map[uint32]*connection), random: rand.New(rand.NewPCG(1, 2))}
	s.lot = NewLot(s.shelf, table)
	t.Cleanup(func() {
		ln.Close()
		for _, c := range s.conns {
			unix.Close(c.fd)
			if c.client != nil {
				c.client.Close()
			}
		}
		s.crash()
		table.Close()
	})
	return s
}

// connect parks a socketpair's end (cheap) or a TCP connection.
func (s *scene) connect(tcp bool) *connection {
	s.t.Helper()
	c := &connection{}
	if tcp {
		client, err := net.Dial("tcp", s.ln.Addr().String())
		if err != nil {
			s.t.Fatal(err)
		}
		server, err := s.ln.AcceptTCP()
		if err != nil {
			s.t.Fatal(err)
		}
		c.client = client
		raw, _ := server.SyscallConn()
		raw.Control(func(fd uintptr) { c.fd, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) })
		server.Close()
		if err != nil {
			s.t.Fatal(err)
		}
	} else {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			s.t.Fatal(err)
		}
		c.fd = fd
	}
	cookie, err := Cookie(c.fd)
	if err != nil {
		s.t.Fatal(err)
	}
	slot, r, err := s.table.Take(cookie)
	if err != nil {
		s.t.Fatal(err)
	}
	c.slot = slot
	if err := s.lot.Park(slot, c.fd); err != nil {
		s.t.Fatal(err)
	}
	r.SetState(Open)
	s.conns[slot] = c
	return c
}

func (s *scene) leave(c *connection) {
	s.lot.Leave(c.slot)
	s.table.Give(c.slot)
	unix.Close(c.fd)
	if c.client != nil {
		c.client.Close()
	}
	delete(s.conns, c.slot)
}

// crash closes what the process has, and nothing else.
func (s *scene) crash() {
	for _, seg := range s.lot.segments {
		unix.Close(seg.tx)
		unix.Close(seg.rx)
	}
	s.lot.segments = nil
}

// recover is the next process.
func (s *scene) recover() {
	s.t.Helper()
	before := make(map[uint32]uint64)
	for slot, c := range s.conns {
		before[slot], _ = Cookie(c.fd)
		unix.Close(c.fd)
	}
	s.crash()
	lot, found, err := Recover(s.shelf, s.table, s.shelf.Next())
	if err != nil {
		s.t.Fatal(err)
	}
	s.lot = lot
	if len(found) != len(s.conns) {
		s.t.Fatalf("%d connections are found, %d live", len(found), len(s.conns))
	}
	for _, f := range found {
		c := s.conns[f.Slot]
		if c == nil {
			s.t.Fatalf("slot %d is found, which does not live", f.Slot)
		}
		if cookie, _ := Cookie(f.FD); cookie != before[f.Slot] {
			s.t.Fatalf("slot %d is another connection", f.Slot)
		}
		c.fd = f.FD
	}
	s.check()
}

// check holds the lot's own figures against each other.
func (s *scene) check() {
	s.t.Helper()
	live := make(map[uint32]int)
	for slot, p := range s.lot.where {
		if p.segment == 0 {
			continue
		}
		live[p.segment]++
		if s.conns[uint32(slot)] == nil {
			s.t.Errorf("slot %d is parked and has left", slot)
		}
	}
	for id, seg := range s.lot.segments {
		if seg.live != live[id] {
			s.t.Errorf("segment %d says %d live, there are %d", id, seg.live, live[id])
		}
	}
	if want := 2 * len(s.lot.segments); s.shelf.Len() != want {
		s.t.Errorf("%d descriptors are stored, %d belong to segments", s.shelf.Len(), want)
	}
}

func TestParkedConnectionsAreFound(t *testing.T) {
	for _, n := range []int{1, 252, 253, 254, 506, 1000} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			s := newScene(t)
			for range n {
				s.connect(false)
			}
			s.check()
			s.recover()
			s.recover() // once more: reading has taken nothing out
			for range n {
				s.connect(false)
			}
			s.recover()
		})
	}
}

// A connection goes on where it was: what was in flight both ways is there.
func TestParkedConnectionWorks(t *testing.T) {
	s := newScene(t)
	c := s.connect(true)
	c.client.Write([]byte("asked before"))
	unix.Write(c.fd, []byte("told before,"))
	s.recover()
	b := make([]byte, 64)
	if n, err := unix.Read(c.fd, b); err != nil || string(b[:n]) != "asked before" {
		t.Fatalf("read %q, %v", b[:n], err)
	}
	unix.Write(c.fd, []byte("told after."))
	unix.Shutdown(c.fd, unix.SHUT_WR)
	var got []byte
	for {
		n, err := c.client.Read(b)
		got = append(got, b[:n]...)
		if err != nil {
			break
		}
	}
	if string(got) != "told before,told after." {
		t.Fatalf("the client got %q", got)
	}
}

// Any order of coming, leaving and crashing keeps exactly those that live, and no more than a few stored descriptors.
func TestComingAndLeaving(t *testing.T) {
	s := newScene(t)
	for round := range 40 {
		for range 300 {
			if len(s.conns) > 0 && (s.random.IntN(100) < 45 || len(s.conns) > 3000) {
				for _, c := range s.conns { // any
					s.leave(c)
					break
				}
				continue
			}
			s.connect(false)
		}
		if round%5 == 4 {
			s.recover()
		}
	}
	s.check()
	slots := make([]uint32, 0, len(s.conns))
	for slot := range s.conns {
		slots = append(slots, slot)
	}
	slices.Sort(slots)
	for _, slot := range slots {
		s.leave(s.conns[slot])
	}
	s.check()
	s.recover()
}

// Thousands that come and leave do not pile up in the lot.
func TestTheDeadAreForgotten(t *testing.T) {
	s := newScene(t)
	var old []*connection
	for i := range 8000 {
		old = append(old, s.connect(false))
		if i >= 1500 {
			s.leave(old[i-1500])
		}
	}
	parked := 0
	for _, seg := range s.lot.segments {
		parked += seg.parked
	}
	if parked > 2*1500+2*enoughDead+2*perMessage {
		t.Errorf("%d descriptors are parked for %d connections", parked, len(s.conns))
	}
	s.recover()
}

func TestForeignFilesUnderOurNames(t *testing.T) {
	s := newScene(t)
	s.connect(false)
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	for _, name := range []string{"park.t.9.tx", "park.b.x.tx", "park.t.1.zz", "park", "park.t.0.rx"} {
		if err := s.shelf.Push(name, int(null.Fd())); err != nil {
			t.Fatal(err)
		}
	}
	s.crash()
	lot, found, err := Recover(s.shelf, s.table, s.shelf.Next())
	if err == nil || len(found) != 1 {
		t.Fatalf("%d found, %v", len(found), err)
	}
	unix.Close(found[0].FD)
	s.lot = lot
	s.check() // what is not ours is thrown out
}

// What has no record is nobody's: its process was killed in the middle of forgetting it.
func TestOrphansAreClosed(t *testing.T) {
	s := newScene(t)
	c, other := s.connect(true), s.connect(true)
	s.table.Give(c.slot)
	unix.Close(c.fd)
	delete(s.conns, c.slot)
	s.recover()
	defer c.client.Close()
	_ = c.client.SetReadDeadline(time.Now().Add(patience))
	if n, err := c.client.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the orphan reads %d, %v", n, err)
	}
	s.leave(other)
}

// Without a place to park one is tried again, and not forgotten.
func TestParkedLater(t *testing.T) {
	s := newScene(t)
	s.shelf.Refuse(errors.New("no store"))
	var homeless []*connection
	for range 3 {
		c := &connection{}
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		c.fd = fd
		cookie, _ := Cookie(fd)
		slot, r, err := s.table.Take(cookie)
		if err != nil {
			t.Fatal(err)
		}
		r.SetState(Open)
		c.slot = slot
		s.conns[slot] = c
		if err := s.lot.Park(slot, fd); err == nil {
			t.Fatal("parked nowhere")
		}
		homeless = append(homeless, c)
	}
	s.leave(homeless[0])
	s.shelf.Refuse(nil)
	s.lot.House()
	s.connect(false)
	if parked, _ := s.lot.Parked(); parked != 3 {
		t.Errorf("%d are parked", parked)
	}
	s.recover()
}

// A send buffer of another size than usual changes nothing but how many a segment holds.
func TestSmallSegments(t *testing.T) {
	s := newScene(t)
	for range 600 {
		s.connect(false)
		for _, seg := range s.lot.segments {
			if err := unix.SetsockoptInt(seg.tx, unix.SOL_SOCKET, unix.SO_SNDBUF, 8<<10); err != nil {
				t.Fatal(err)
			}
		}
	}
	s.check()
	s.recover()
}

// Near the limit of descriptors in flight the dead make room at once, and never is much more in flight than there was.
func TestRoomInFlight(t *testing.T) {
	s := newScene(t)
	s.lot.limit = 2000 + margin
	for range 1500 {
		s.connect(false)
	}
	for range 5000 {
		for _, c := range s.conns {
			s.leave(c)
			break
		}
		s.connect(false)
		inFlight := 0
		for _, seg := range s.lot.segments {
			inFlight += seg.parked
		}
		if inFlight > s.lot.limit {
			t.Fatalf("%d are in flight for %d connections", inFlight, len(s.conns))
		}
	}
	s.check()
	s.recover()
}

// A process that can have fewer descriptors than the one before takes over as many as it can, and closes the rest.
func TestFewerDescriptors(t *testing.T) {
	s := newScene(t)
	for range 700 {
		s.connect(true)
	}
	for _, c := range s.conns {
		unix.Close(c.fd)
	}
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	defer unix.Setrlimit(unix.RLIMIT_NOFILE, &old)
	s.crash()
	stored := s.shelf.Next()
	// The clients are in this process as well: what is free below their numbers is what the connections had.
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(freeBelow(t)), Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	lot, found, err := Recover(s.shelf, s.table, stored)
	if err == nil {
		t.Error("nothing is said of those who were closed")
	}
	if len(found) < 100 || len(found) == 700 {
		t.Errorf("%d were taken over: %v", len(found), err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	s.lot = lot
	there := make(map[uint32]int)
	for _, f := range found {
		there[f.Slot] = f.FD
	}
	for slot, c := range s.conns {
		if fd, ok := there[slot]; ok {
			c.fd = fd
			continue
		}
		_ = c.client.SetReadDeadline(time.Now().Add(patience))
		if n, err := c.client.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("who was not taken over reads %d, %v", n, err)
		}
		c.client.Close()
		delete(s.conns, slot)
	}
	s.check()
}

// freeBelow is the first descriptor above which all are free.
func freeBelow(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	highest := 0
	for _, e := range entries {
		if n, err := strconv.Atoi(e.Name()); err == nil {
			highest = max(highest, n)
		}
	}
	return highest + 1
}

func TestGiveUp(t *testing.T) {
	s := newScene(t)
	whole, half, opening := s.connect(true), s.connect(true), s.connect(true)
	unix.Write(whole.fd, []byte("frame"))
	unix.Write(half.fd, []byte("fra"))
	s.table.At(whole.slot).Stand(Place{Base: 5})
	s.table.At(half.slot).Stand(Place{})
	s.table.At(opening.slot).SetState(Opening)
	whole.client.Write([]byte("unread"))
	unread(t, whole.fd, 6)
	s.recover()
	var found []Found
	for _, c := range s.conns {
		found = append(found, Found{c.slot, c.fd})
	}
	s.lot.GiveUp(found, []byte("bye"))
	for c, want := range map[*connection]string{whole: "framebye", half: "fra", opening: ""} {
		_ = c.client.SetReadDeadline(time.Now().Add(patience))
		if got, err := io.ReadAll(c.client); string(got) != want || err != nil {
			t.Errorf("got %q, %v; want %q", got, err, want)
		}
		c.client.Close()
		delete(s.conns, c.slot)
	}
	s.check()
	if s.shelf.Len() != 0 {
		t.Errorf("%d are still stored", s.shelf.Len())
	}
}

func TestCloseAll(t *testing.T) {
	s := newScene(t)
	var clients []net.Conn
	for range 300 {
		clients = append(clients, s.connect(true).client)
	}
	for slot, c := range s.conns {
		unix.Close(c.fd)
		delete(s.conns, slot)
	}
	s.crash()
	CloseAll(s.shelf, s.shelf.Next())
	for _, c := range clients {
		_ = c.SetReadDeadline(time.Now().Add(patience))
		if n, err := c.Read(make([]byte, 1)); err != io.EOF {
			t.Fatalf("read %d, %v", n, err)
		}
		c.Close()
	}
	if s.shelf.Len() != 0 {
		t.Errorf("%d are still stored", s.shelf.Len())
	}
}

// What has just been accepted, and nothing else done with, is there for the next process.
func TestAdmittedIsParked(t *testing.T) {
	s := newScene(t)
	keep := Keep{s.table, s.lot}
	fd, client := tcpPair(t)
	fd, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	a, errno := keep.Admit(func() (int, syscall.Errno) { return -1, unix.EAGAIN })
	if errno != unix.EAGAIN {
		t.Fatal(a, errno)
	}
	a, errno = keep.Admit(func() (int, syscall.Errno) { return fd, 0 })
	if errno != 0 || a.Err != nil || a.Unparked != nil || a.FD != fd {
		t.Fatal(a, errno)
	}
	if a.Slot != 0 {
		t.Errorf("a record was lost: this is number %d", a.Slot)
	}
	s.conns[a.Slot] = &connection{slot: a.Slot, fd: fd, client: client}
	s.recover()
	if st := s.table.At(a.Slot).State(); st != Opening {
		t.Errorf("state %d", st)
	}

	s.shelf.Refuse(ErrNoRoom)
	s.crash()
	s.lot = NewLot(s.shelf, s.table)
	other, _ := tcpPair(t)
	a, errno = Keep{s.table, s.lot}.Admit(func() (int, syscall.Errno) { return other, 0 })
	if errno != 0 || a.Err != nil || a.Unparked != ErrNoRoom {
		t.Error(a, errno)
	}
	if n, why := s.lot.Homeless(); n != 1 || why != ErrNoRoom || s.lot.IsParked(a.Slot) {
		t.Error(n, why)
	}
	s.shelf.Refuse(nil)
	if n, why := s.lot.House(); n != 0 || why != nil || !s.lot.IsParked(a.Slot) {
		t.Error(n, why)
	}
}

func TestNoRecordLeft(t *testing.T) {
	table, err := NewTable(1, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer table.Close()
	keep := Keep{Table: table}
	for _, full := range []bool{false, true} {
		fd, _ := tcpPair(t)
		a, errno := keep.Admit(func() (int, syscall.Errno) { return fd, 0 })
		if errno != 0 || a.FD != fd || (a.Err == ErrFull) != full {
			t.Error(a, errno)
		}
	}
}

// Again, a store that has lost something has it.
func TestStoredAgain(t *testing.T) {
	s := newScene(t)
	for range 300 {
		s.connect(false)
	}
	var names []string
	for _, f := range s.shelf.Next() {
		names = append(names, f.Name())
		f.Close()
	}
	for _, name := range names {
		_ = s.shelf.Remove(name)
	}
	if err := s.lot.Again(); err != nil {
		t.Fatal(err)
	}
	s.recover()
}
