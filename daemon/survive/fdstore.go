package survive

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"wscast/daemon/failpoint"
)

// Store is systemd's file descriptor store of this service (sd_notify(3), FileDescriptorStoreMax=). What is in it comes
// back by name, with the sockets, to the next process.
//
// systemd does not answer: it closes what it has no room for, and says nothing. So Store keeps account of the room.
// Probe finds out how much there is, Push and Remove count on from there, and what would not fit is not sent. Until the
// first Probe there is taken to be enough.
//
// Methods are safe for concurrent use, but for Probe, which is for one goroutine at a time.
type Store struct {
	conn *net.UnixConn
	addr *net.UnixAddr
	low  chan struct{}

	mu      sync.Mutex
	held    map[string]bool // names of what is stored
	owed    map[string]bool // names of what could not be removed
	room    int             // for descriptors, as far as is known
	enough  int             // as Enough, and what else is expected
	probing bool            // what is pushed now can find its place taken by the probe,
	during  map[string]int  // and is stored once more afterwards: descriptors of ours, by name
}

const (
	// Enough is for how many descriptors there has to be room: the log, the table, a tail and a bulk segment with two
	// ends each, and what a new bulk segment takes before the old one is removed.
	Enough = 8
	// scarce is how much room is left when Low says so: two segments can still be made while somebody looks for more.
	scarce = 4
	// sendPatience is how long a message waits when the service manager's queue is full (net.unix.max_dgram_qlen):
	// loops wait with it.
	sendPatience = 100 * time.Millisecond
)

var (
	// ErrNoRoom: the store is full, or there is none.
	ErrNoRoom = errors.New("the descriptor store has no room: raise FileDescriptorStoreMax= of the unit")
	// ErrInFlight: the kernel lets a user have no more descriptors in flight, in messages that nobody has received, than
	// a process may have open (too_many_unix_fds in net/core/scm.c).
	ErrInFlight = errors.New("too many descriptors are in flight: raise LimitNOFILE= of the unit")
)

// OpenStore connects to the service manager. It returns nil without one. held are the names of what this process has
// got from the store.
func OpenStore(held []string) (*Store, error) {
	name := os.Getenv("NOTIFY_SOCKET")
	if name == "" {
		return nil, nil
	}
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram"}) // autobound, unconnected
	if err != nil {
		return nil, fmt.Errorf("fd store: %w", err)
	}
	s := &Store{
		conn: conn, addr: &net.UnixAddr{Name: name, Net: "unixgram"}, low: make(chan struct{}, 1),
		held: make(map[string]bool), owed: make(map[string]bool), room: Enough, enough: Enough,
	}
	for _, name := range held {
		s.held[name] = true
	}
	return s, nil
}

// Expect says that there will be more descriptors than those that Enough is for. It is for the time before anything else.
func (s *Store) Expect(more int) {
	s.enough += more
	s.room += more
}

// Close ends the connection to the service manager. What is stored stays.
func (s *Store) Close() error { return s.conn.Close() }

// Low gives a value when there is little room left, or none: it is time to Probe.
func (s *Store) Low() <-chan struct{} { return s.low }

// Full tells whether there is no room for a segment.
func (s *Store) Full() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.room < 2
}

func (s *Store) sayLow() {
	select {
	case s.low <- struct{}{}:
	default:
	}
}

func (s *Store) send(state string, fds ...int) error {
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	_ = s.conn.SetWriteDeadline(time.Now().Add(sendPatience))
	_, _, err := s.conn.WriteMsgUnix([]byte(state), rights, s.addr)
	switch {
	case errors.Is(err, unix.ETOOMANYREFS):
		return ErrInFlight
	case errors.Is(err, os.ErrDeadlineExceeded):
		return errPatience
	case err != nil:
		return fmt.Errorf("fd store: %s: %w", strings.ReplaceAll(state, "\n", " "), err)
	}
	return nil
}

// Push stores a duplicate of a descriptor under a name of its own. It fails with ErrNoRoom or ErrInFlight, among others.
func (s *Store) Push(name string, fd int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.room < 1 {
		s.sayLow()
		return ErrNoRoom
	}
	if err := s.store(name, fd); err != nil {
		s.sayLow()
		return err
	}
	s.held[name] = true
	if s.probing {
		if d, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0); err == nil {
			s.during[name] = d
		}
	}
	if s.room--; s.room < scarce {
		s.sayLow()
	}
	return nil
}

// Again stores what Push has stored once more: systemd keeps one of a kind, so it makes a difference only where systemd
// does not have it.
func (s *Store) Again(name string, fd int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.store(name, fd)
}

// store: FDPOLL=0, since systemd would take a socketpair for dead, and drop it, when its other end hangs up.
func (s *Store) store(name string, fds ...int) error {
	return s.send("FDSTORE=1\nFDPOLL=0\nFDNAME="+name, fds...)
}

// Remove drops the descriptor of that name from the store. After an error it is tried again by Probe.
func (s *Store) Remove(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.send("FDSTOREREMOVE=1\nFDNAME=" + name); err != nil {
		s.owed[name] = true
		return err
	}
	if s.held[name] {
		delete(s.held, name)
		s.room++
	}
	return nil
}

// Barrier waits until systemd has dealt with everything sent before (BARRIER=1): it closes the descriptor that comes
// along.
func (s *Store) Barrier(ctx context.Context) error {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return err
	}
	r := os.NewFile(uintptr(p[0]), "barrier")
	defer r.Close()
	err := s.send("BARRIER=1", p[1])
	unix.Close(p[1])
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = r.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	switch _, err = r.Read(make([]byte, 1)); {
	case err == io.EOF:
		return nil
	case ctx.Err() != nil:
		return errPatience
	}
	return err
}

var errPatience = errors.New("the service manager does not answer")

// ProbeName is the name under which Probe stores its descriptor; a process that is killed meanwhile leaves it behind.
const ProbeName = "probe"

// Probe finds out for how many descriptors the store has room, up to Enough and what is expected besides. With less than least nothing can be pushed
// until the next Probe. After an error nothing is known, and what was taken to be so still is.
//
// As many ends of pipes are pushed, and closed here. When systemd has dealt with them, the other ends of those that it
// has not kept hang up.
func (s *Store) Probe(ctx context.Context, least int) (room int, err error) {
	s.mu.Lock()
	s.probing, s.during = true, make(map[string]int)
	owed := s.owed
	s.owed = make(map[string]bool)
	s.mu.Unlock()
	for name := range owed {
		_ = s.Remove(name)
	}
	room, err = s.probe(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.probing = false
	for name, fd := range s.during {
		if s.held[name] { // it was not removed meanwhile
			_ = s.store(name, fd)
		}
		unix.Close(fd)
	}
	if err != nil {
		return 0, err
	}
	room = max(0, room-len(s.during)) // they can have come when it was found out already
	if s.room = room; room < least {
		s.room = 0
	}
	return room, nil
}

func (s *Store) probe(ctx context.Context) (room int, err error) {
	var ours, theirs []int
	defer func() {
		for _, fd := range ours {
			unix.Close(fd)
		}
	}()
	for range s.enough {
		var p [2]int
		if err = unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
			break
		}
		ours, theirs = append(ours, p[0]), append(theirs, p[1])
	}
	if err == nil {
		err = s.store(ProbeName, theirs...)
	}
	for _, fd := range theirs {
		unix.Close(fd)
	}
	failpoint.Pass("probe.pushed")
	if err != nil {
		return 0, err
	}
	err = s.Barrier(ctx)
	for _, fd := range ours {
		p := []unix.PollFd{{Fd: int32(fd)}}
		if _, e := unix.Poll(p, 0); e != nil {
			err = errors.Join(err, e)
		}
		if p[0].Revents&unix.POLLHUP == 0 {
			room++
		}
	}
	// Not before, and whatever has happened: it may still come to store them.
	if e := s.send("FDSTOREREMOVE=1\nFDNAME=" + ProbeName); err == nil {
		err = e
	}
	return room, err
}
