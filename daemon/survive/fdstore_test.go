package survive

import (
	"context"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// manager is a service manager with a store for a few descriptors.
type manager struct {
	conn *net.UnixConn
	room int
	mute bool // it closes nothing, not even what comes with BARRIER=1
	done chan struct{}
	told func(text string) // called for each message before it is dealt with, nil: nobody

	mu    sync.Mutex
	said  []string
	kept  map[string][]int
	hoard []int
}

func newManager(t *testing.T, room int, mute bool) (*manager, *Store) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	m := &manager{conn: conn, room: room, mute: mute, done: make(chan struct{}), kept: make(map[string][]int)}
	go m.serve()
	t.Setenv("NOTIFY_SOCKET", path)
	s, err := OpenStore(nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.Close()
		conn.Close()
		<-m.done
		for _, fds := range m.kept {
			m.hoard = append(m.hoard, fds...)
		}
		for _, fd := range m.hoard {
			unix.Close(fd)
		}
	})
	return m, s
}

func (m *manager) serve() {
	defer close(m.done)
	b, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(perMessage*4))
	for {
		n, on, _, _, err := m.conn.ReadMsgUnix(b, oob)
		if err != nil {
			return
		}
		fds, _ := rights(oob[:on])
		m.mu.Lock()
		told := m.told
		m.mu.Unlock()
		if told != nil {
			told(string(b[:n]))
		}
		m.deal(string(b[:n]), fds)
	}
}

func (m *manager) deal(text string, fds []int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.said = append(m.said, text)
	_, name, _ := strings.Cut(text, "FDNAME=")
	switch {
	case m.mute:
		m.hoard = append(m.hoard, fds...)
		return
	case strings.HasPrefix(text, "FDSTORE=1\n"):
		for len(fds) > 0 && m.room > 0 {
			m.kept[name] = append(m.kept[name], fds[0])
			fds, m.room = fds[1:], m.room-1
		}
	case strings.HasPrefix(text, "FDSTOREREMOVE=1\n"):
		fds = append(fds, m.kept[name]...)
		m.room += len(m.kept[name])
		delete(m.kept, name)
	}
	for _, fd := range fds {
		unix.Close(fd)
	}
}

func TestPushAndRemove(t *testing.T) {
	m, s := newManager(t, 10, false)
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(p[0])
	defer unix.Close(p[1])
	want, _ := Cookie(p[1])
	if err := s.Push("park.t.1.rx", p[1]); err != nil {
		t.Fatal(err)
	}
	if err := s.Barrier(t.Context()); err != nil {
		t.Fatal(err)
	}
	m.mu.Lock()
	if fds := m.kept["park.t.1.rx"]; len(fds) != 1 {
		t.Errorf("kept: %v", m.kept)
	} else if got, _ := Cookie(fds[0]); got != want {
		t.Error("another socket is stored")
	}
	if m.said[0] != "FDSTORE=1\nFDPOLL=0\nFDNAME=park.t.1.rx" {
		t.Errorf("%q", m.said[0])
	}
	m.mu.Unlock()
	if err := s.Remove("park.t.1.rx"); err != nil {
		t.Fatal(err)
	}
	if err := s.Barrier(t.Context()); err != nil {
		t.Fatal(err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.kept) != 0 {
		t.Errorf("kept: %v", m.kept)
	}
}

// settled waits until the manager has dealt with all that was said, and returns how many descriptors it keeps.
func (m *manager) settled(t *testing.T, s *Store) (kept int) {
	t.Helper()
	if err := s.Barrier(t.Context()); err != nil {
		t.Fatal(err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, fds := range m.kept {
		kept += len(fds)
	}
	return kept
}

func TestProbe(t *testing.T) {
	for _, c := range []struct{ room, found int }{{0, 0}, {1, 1}, {Enough - 1, Enough - 1}, {Enough, Enough}, {100, Enough}} {
		m, s := newManager(t, c.room, false)
		room, err := s.Probe(t.Context(), 1)
		if err != nil || room != c.found {
			t.Errorf("room for %d: %v, %v", c.room, room, err)
		}
		if kept := m.settled(t, s); kept != 0 {
			t.Errorf("%d are left behind", kept)
		}
	}
}

// What does not fit is not sent, and a place that is given up is there for the next one.
func TestRoomIsAccountedFor(t *testing.T) {
	m, s := newManager(t, 3, false)
	event, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(event)
	if room, err := s.Probe(t.Context(), 1); room != 3 || err != nil {
		t.Fatal(room, err)
	}
	for _, c := range []struct {
		push, remove string
		want         error
		kept         int
	}{
		{"a", "", nil, 1}, {"b", "", nil, 2}, {"c", "", nil, 3}, {"d", "", ErrNoRoom, 3},
		{"", "never stored", nil, 3}, {"e", "", ErrNoRoom, 3},
		{"", "b", nil, 2}, {"f", "", nil, 3}, {"g", "", ErrNoRoom, 3},
	} {
		if c.push == "" {
			err = s.Remove(c.remove)
		} else {
			err = s.Push(c.push, event)
		}
		if err != c.want {
			t.Fatalf("%+v: %v", c, err)
		}
		if kept := m.settled(t, s); kept != c.kept {
			t.Fatalf("%+v: %d are kept", c, kept)
		}
	}
	select {
	case <-s.Low():
	default:
		t.Error("it is full, and does not say so")
	}
	m.mu.Lock()
	m.room = 5
	m.mu.Unlock()
	if room, err := s.Probe(t.Context(), 6); room != 5 || err != nil {
		t.Fatal(room, err)
	}
	if err := s.Push("h", event); err != ErrNoRoom {
		t.Errorf("with less than the least: %v", err)
	}
	if room, err := s.Probe(t.Context(), 5); room != 5 || err != nil {
		t.Fatal(room, err)
	}
	if err := s.Push("h", event); err != nil {
		t.Error(err)
	}
}

// A manager that does not answer leaves it at what was known.
func TestSilentManager(t *testing.T) {
	_, s := newManager(t, 100, true)
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if room, err := s.Probe(ctx, 1); room != 0 || err != errPatience {
		t.Errorf("%v, %v", room, err)
	}
	event, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(event)
	if err := s.Push("a", event); err != nil {
		t.Error(err)
	}
}

// A manager that takes no messages does not hold anybody up for long, and what it was not told to remove it is told later.
func TestManagerThatTakesNothing(t *testing.T) {
	m, s := newManager(t, 1000, false)
	event, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(event)
	if err := s.Push("a", event); err != nil {
		t.Fatal(err)
	}
	m.settled(t, s)
	m.mu.Lock() // it reads one more, and waits
	for err = nil; err == nil; {
		err = s.Remove("nothing")
	}
	if err != errPatience {
		t.Errorf("removing: %v", err)
	}
	if err := s.Remove("a"); err != errPatience {
		t.Errorf("removing: %v", err)
	}
	if err := s.Push("b", event); err != errPatience {
		t.Errorf("pushing: %v", err)
	}
	m.mu.Unlock()
	if kept := m.settled(t, s); kept != 1 {
		t.Errorf("%d are kept", kept)
	}
	if _, err := s.Probe(t.Context(), 1); err != nil {
		t.Error(err)
	}
	if kept := m.settled(t, s); kept != 0 {
		t.Errorf("%d are kept", kept)
	}
}

func TestNoManager(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	if s, err := OpenStore(nil); s != nil || err != nil {
		t.Errorf("%v, %v", s, err)
	}
	t.Setenv("NOTIFY_SOCKET", filepath.Join(t.TempDir(), "nobody"))
	s, err := OpenStore(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Remove("log"); err == nil {
		t.Error("nobody is there, and nothing is said")
	}
}

// What is pushed while the store is being probed is stored, even when the probe has taken its place: once the probe is gone.
func TestPushWhileProbing(t *testing.T) {
	m, s := newManager(t, 3, false)
	null, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(null)
	m.mu.Lock()
	m.told = func(text string) {
		if strings.HasSuffix(text, "FDNAME="+ProbeName) && strings.HasPrefix(text, "FDSTORE=1") {
			if err := s.Push("late", null); err != nil { // comes behind the probe, which takes all that there is
				t.Error(err)
			}
		}
	}
	m.mu.Unlock()
	if room, err := s.Probe(t.Context(), 1); room != 2 || err != nil {
		t.Errorf("room for %d, %v; want 2", room, err)
	}
	if err := s.Barrier(t.Context()); err != nil {
		t.Fatal(err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.kept) != 1 || len(m.kept["late"]) != 1 {
		t.Errorf("kept: %v", m.kept)
	}
}
