package survive

import (
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
	s, err := OpenStore()
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
	if err := s.Barrier(patience); err != nil {
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
	if err := s.Barrier(patience); err != nil {
		t.Fatal(err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.kept) != 0 {
		t.Errorf("kept: %v", m.kept)
	}
}

func TestProbe(t *testing.T) {
	for _, c := range []struct {
		room int
		kept bool
	}{{0, false}, {1, false}, {enough - 1, false}, {enough, true}, {100, true}} {
		m, s := newManager(t, c.room, false)
		kept, err := s.Probe(patience)
		if err != nil || kept != c.kept {
			t.Errorf("room for %d: %v, %v", c.room, kept, err)
		}
		if err := s.Barrier(patience); err != nil {
			t.Fatal(err)
		}
		m.mu.Lock()
		if len(m.kept) != 0 {
			t.Errorf("left behind: %v", m.kept)
		}
		m.mu.Unlock()
	}
}

func TestSilentManager(t *testing.T) {
	_, s := newManager(t, 100, true)
	if kept, err := s.Probe(time.Millisecond); kept || err != errPatience {
		t.Errorf("%v, %v", kept, err)
	}
}

func TestNoManager(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	if s, err := OpenStore(); s != nil || err != nil {
		t.Errorf("%v, %v", s, err)
	}
	t.Setenv("NOTIFY_SOCKET", filepath.Join(t.TempDir(), "nobody"))
	s, err := OpenStore()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Remove("log"); err == nil {
		t.Error("nobody is there, and nothing is said")
	}
}
