package loop

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"wscast/daemon/survive"
)

// Accepting is a goroutine for each listening socket. It is not done in the loops, because a socket in several epoll
// instances gives nearly all connections to one of them. What is accepted is parked on the spot (survive.Keep.Admit), one
// by one: that takes two system calls more than a batch would, and of those that come when the process is killed, one
// is in hand instead of a batch.

const (
	// burst is how many connections are accepted before the loops get a chance to see them.
	burst = 64
	// pause is how long accepting rests when the process or the machine has no descriptors or memory left; the
	// connections wait in the socket's backlog.
	pause = 100 * time.Millisecond
	// userTimeout is how long sent data may stay unacknowledged, or the peer's window closed, until the kernel gives
	// the connection up (TCP_USER_TIMEOUT): above the retransmissions of a short outage, below what a dead peer
	// should cost.
	userTimeout = 30 * time.Second
	// receiveBuffer is SO_RCVBUF, in bytes. The beginning of a frame that is left in a TCP socket keeps the whole
	// segment there that it came in, 64 KiB on loopback, and with the kernel's own 128 KiB no window is left for the
	// end of the frame. Only what is unread takes memory. Below net.core.rmem_max, 208 KiB by default.
	receiveBuffer = 6 * MaxMessage
	// unsent is how many bytes a TCP socket takes beyond what it can send at once (TCP_NOTSENT_LOWAT, tcp_notsent_lowat in the
	// kernel's ip-sysctl.rst). Without it a client that does not read is given as much as the socket's buffer has room for,
	// 2.6 MB on loopback: the loop that copies it keeps the others waiting, and it is taken from what the machine has for all of
	// TCP (tcp_mem). What a client is offered at once fits into it.
	unsent = runBytes
)

// listener is a listening stream socket.
type listener struct {
	file *os.File
	raw  syscall.RawConn
	done chan struct{}

	uncounted bool // Unix-domain
}

// Serve accepts the connections of a listening stream socket until StopAccepting is called. The file has to be
// non-blocking, as os.NewFile leaves it for a non-blocking descriptor; it stays the caller's. What is set on the
// listening socket here, its connections inherit.
func (g *Loops) Serve(file *os.File) error {
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var set error
	var domain int
	err = raw.Control(func(fd uintptr) {
		var err error
		domain, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_DOMAIN)
		if err == nil && domain != unix.AF_UNIX {
			// A frame goes out when it is written.
			err = errors.Join(unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer),
				unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NODELAY, 1),
				unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(userTimeout/time.Millisecond)),
				unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, unsent))
		}
		set = err
	})
	if err = errors.Join(err, set); err != nil {
		return fmt.Errorf("%s: setting socket options: %w", file.Name(), err)
	}
	ln := &listener{file: file, raw: raw, uncounted: domain == unix.AF_UNIX, done: make(chan struct{})}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return errors.New("the loops do not accept any more")
	}
	g.listeners = append(g.listeners, ln)
	g.accepts.Go(func() { g.accept(ln) })
	return nil
}

// admit takes a connection of a listening socket.
func (g *Loops) admit(listener int) (survive.Admitted, syscall.Errno) {
	return g.keep.Admit(func() (int, syscall.Errno) { return g.loops[0].sys.accept(listener) })
}

func (ln *listener) stop() {
	close(ln.done)
	_ = ln.file.SetReadDeadline(past)
}

func (g *Loops) accept(ln *listener) {
	short := false // it has been said that descriptors or memory are short
	fruitless := 0 // calls of accept in a row that gave neither a connection nor EAGAIN
	arrivals := make([]newcomer, 0, burst)
	defer func() { _ = ln.file.SetReadDeadline(time.Time{}) }() // the socket is left as it came
	var errno syscall.Errno
	take := func(listener uintptr) bool {
		for len(arrivals) < burst {
			var a survive.Admitted
			if a, errno = g.admit(int(listener)); errno != 0 {
				break
			}
			arrivals = append(arrivals, newcomer{Admitted: a, uncounted: ln.uncounted})
		}
		return len(arrivals) > 0 || errno != unix.EAGAIN
	}
	for {
		errno = 0
		arrivals = arrivals[:0]
		err := ln.raw.Read(take)
		for _, n := range arrivals {
			g.add(n)
		}
		select {
		case <-ln.done:
			return
		default:
		}
		if fruitless++; len(arrivals) > 0 || errno == unix.EAGAIN {
			fruitless = 0
		}
		switch {
		case err != nil:
			g.log.Error("accepting has ended: restart the socket unit", "socket", ln.file.Name(), "error", err)
			return
		case errno == unix.EBADF, errno == unix.EINVAL, errno == unix.ENOTSOCK:
			// It listens no more: somebody has shut it down. Its connections would never come.
			g.log.Error("accepting has ended: restart the socket unit", "socket", ln.file.Name(), "error", errno)
			return
		case errno == 0 || errno == unix.EAGAIN:
			if short && len(arrivals) > 0 {
				short = false
				g.log.Info("accepting connections again", "socket", ln.file.Name())
			}
		case errno == unix.EMFILE, errno == unix.ENFILE, errno == unix.ENOBUFS, errno == unix.ENOMEM, fruitless >= burst:
			if !short {
				short = true
				g.log.Error("cannot accept connections, they wait: raise LimitNOFILE= or memory",
					"socket", ln.file.Name(), "error", errno)
			}
			select {
			case <-time.After(pause):
			case <-ln.done:
				return
			}
		default:
			// An error of the connection that was waiting (accept(2), "Error handling"): the next one is tried.
		}
	}
}
