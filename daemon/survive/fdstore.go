package survive

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"wscast/daemon/failpoint"
)

// Store is systemd's file descriptor store of this service (sd_notify(3), FileDescriptorStoreMax=). What is in it comes back
// by name, with the sockets, to the next process. Every method only sends: systemd does not answer.
type Store struct {
	conn *net.UnixConn
	addr *net.UnixAddr
}

// OpenStore connects to the service manager. It returns nil without one.
func OpenStore() (*Store, error) {
	name := os.Getenv("NOTIFY_SOCKET")
	if name == "" {
		return nil, nil
	}
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram"}) // autobound, unconnected
	if err != nil {
		return nil, fmt.Errorf("fd store: %w", err)
	}
	return &Store{conn: conn, addr: &net.UnixAddr{Name: name, Net: "unixgram"}}, nil
}

// Close ends the connection to the service manager. What is stored stays.
func (s *Store) Close() error { return s.conn.Close() }

func (s *Store) send(state string, fds ...int) error {
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	if _, _, err := s.conn.WriteMsgUnix([]byte(state), rights, s.addr); err != nil {
		return fmt.Errorf("fd store: %s: %w", strings.ReplaceAll(state, "\n", " "), err)
	}
	return nil
}

// Push stores a duplicate of a descriptor under a name. FDPOLL=0: systemd would take a socketpair for dead, and drop it, when
// its other end hangs up.
func (s *Store) Push(name string, fd int) error {
	return s.send("FDSTORE=1\nFDPOLL=0\nFDNAME="+name, fd)
}

// Remove drops all descriptors of that name from the store.
func (s *Store) Remove(name string) error { return s.send("FDSTOREREMOVE=1\nFDNAME=" + name) }

// Barrier waits until systemd has dealt with everything sent before (BARRIER=1): it closes the descriptor that comes along.
func (s *Store) Barrier(patience time.Duration) error {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return err
	}
	defer unix.Close(p[0])
	err := s.send("BARRIER=1", p[1])
	unix.Close(p[1])
	if err != nil {
		return err
	}
	return hungUp(p[0], patience)
}

var errPatience = errors.New("fd store: the service manager has not answered")

func hungUp(fd int, patience time.Duration) error {
	deadline := time.Now().Add(patience)
	for {
		left := time.Until(deadline)
		if left <= 0 {
			return errPatience
		}
		p := []unix.PollFd{{Fd: int32(fd)}}
		n, err := unix.Poll(p, int(left.Milliseconds())+1)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return err
		case n > 0 && p[0].Revents&unix.POLLHUP != 0:
			return nil
		}
	}
}

// ProbeName is the name under which Probe stores its descriptor; a process that is killed meanwhile leaves it behind.
const ProbeName = "probe"

// enough is how many descriptors there has to be room for: the log, the table, a tail and a bulk segment with two ends each, and what a new bulk
// segment takes before the old one is removed.
const enough = 8

// Probe finds out whether the store takes enough descriptors: a store that is full, or that there is none of, says nothing and closes
// what it is sent. One end of a socketpair is pushed, behind others to take up room, and closed here; when systemd has dealt with it, the other end
// hangs up if it was closed there as well.
func (s *Store) Probe(patience time.Duration) (kept bool, err error) {
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false, err
	}
	defer unix.Close(p[0])
	for i := 1; i < enough && err == nil; i++ {
		var fd int // each another one: a store takes no duplicates
		if fd, err = unix.Eventfd(0, unix.EFD_CLOEXEC); err == nil {
			err = s.Push(ProbeName, fd)
			unix.Close(fd)
		}
	}
	if err == nil {
		err = s.Push(ProbeName, p[1])
	}
	unix.Close(p[1])
	failpoint.Pass("probe.pushed")
	if err == nil {
		err = s.Barrier(patience)
	}
	if err != nil {
		return false, err
	}
	poll := []unix.PollFd{{Fd: int32(p[0])}}
	if _, err := unix.Poll(poll, 0); err != nil && err != unix.EINTR {
		return false, err
	}
	kept = poll[0].Revents&unix.POLLHUP == 0
	return kept, s.Remove(ProbeName)
}
