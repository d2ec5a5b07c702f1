package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// A keeper stands in for systemd where wscastd is started by hand: it keeps the descriptors that the daemon stores
// (sd_notify(3), FDSTORE=1), so that every connection is parked as it is in a service. What it does is charged to the bench.
type keeper struct {
	path  string // of its socket, for NOTIFY_SOCKET
	fd    int
	ended sync.WaitGroup
}

// keep listens in a directory until close.
func keep(dir string) (*keeper, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	k := &keeper{path: filepath.Join(dir, "notify.sock"), fd: fd}
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: k.path}); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("bind", err)
	}
	k.ended.Go(k.serve)
	return k, nil
}

// close forgets everything.
func (k *keeper) close() {
	_ = unix.Shutdown(k.fd, unix.SHUT_RDWR)
	k.ended.Wait()
	unix.Close(k.fd)
	_ = os.Remove(k.path)
}

// mostRights is how many descriptors a message can have (SCM_MAX_FD, unix(7)).
const mostRights = 253

func (k *keeper) serve() {
	stored := make(map[string][]int)
	defer func() {
		for _, fds := range stored {
			closeAll(fds)
		}
	}()
	text, rights := make([]byte, 4096), make([]byte, unix.CmsgSpace(4*mostRights))
	for {
		n, size, _, _, err := unix.Recvmsg(k.fd, text, rights, unix.MSG_CMSG_CLOEXEC)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n == 0 { // a datagram is never empty: close has been called
			return
		}
		fds := received(rights[:size])
		lines := strings.Split(string(text[:n]), "\n")
		name := ""
		for _, line := range lines {
			if of, ok := strings.CutPrefix(line, "FDNAME="); ok {
				name = of
			}
		}
		switch lines[0] {
		case "FDSTORE=1":
			stored[name] = append(stored[name], fds...)
			continue
		case "FDSTOREREMOVE=1":
			closeAll(stored[name])
			delete(stored, name)
		}
		closeAll(fds) // BARRIER=1 wants nothing else
	}
}

// received are the descriptors that came with a message.
func received(rights []byte) (fds []int) {
	messages, _ := unix.ParseSocketControlMessage(rights)
	for _, m := range messages {
		more, _ := unix.ParseUnixRights(&m)
		fds = append(fds, more...)
	}
	return fds
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}
