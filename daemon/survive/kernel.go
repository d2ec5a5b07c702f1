package survive

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// counters are what the kernel knows about a TCP connection. The end of a stream, which it counts as a byte, is not counted here.
type counters struct {
	written uint64 // bytes ever written to it
	read    uint64 // bytes ever read from it
	shut    bool   // our side of it is shut down
}

var errUncounted = errors.New("not a TCP connection")

// ErrGone: the connection is over, and nobody waits for anything.
var ErrGone = errors.New("the connection is over")

// States of a connection, from include/net/tcp_states.h.
const (
	tcpFinWait1  = 4
	tcpFinWait2  = 5
	tcpClose     = 7
	tcpCloseWait = 8
	tcpLastAck   = 9
	tcpClosing   = 11
)

// count asks the kernel. What it answers is of several calls, between which acknowledgements and input can come; nobody
// writes or reads. It is asked again until nothing has, or what has makes no difference: with nothing unacknowledged no
// acknowledgement can come any more, and what came after the counters were taken would be unread now.
func count(fd int) (c counters, err error) {
	for range 100 {
		out, err := unix.IoctlGetInt(fd, unix.SIOCOUTQ)
		if err != nil {
			return c, fmt.Errorf("SIOCOUTQ: %w", err)
		}
		at, err := tcpInfo(fd)
		if err != nil {
			return c, err
		}
		in, err := unix.IoctlGetInt(fd, unix.SIOCINQ)
		if err != nil {
			return c, fmt.Errorf("SIOCINQ: %w", err)
		}
		if out > 0 {
			if still, err := unix.IoctlGetInt(fd, unix.SIOCOUTQ); err != nil || still != out {
				continue
			}
		}
		if in > 0 {
			if now, err := tcpInfo(fd); err != nil || now.State != at.State || now.Bytes_received != at.Bytes_received {
				continue
			}
		}
		c = counters{written: at.Bytes_acked + uint64(out), read: at.Bytes_received - uint64(in)}
		// Our end takes a number in the sequence (tcp_send_fin), theirs as well, and SIOCINQ leaves it out (tcp_inq).
		switch at.State {
		case tcpClose:
			return c, ErrGone
		case tcpFinWait1, tcpFinWait2:
			c.written, c.shut = c.written-1, true
		case tcpCloseWait:
			c.read--
		case tcpLastAck, tcpClosing:
			c.written, c.shut, c.read = c.written-1, true, c.read-1
		}
		return c, nil
	}
	return c, errors.New("the connection does not come to rest")
}

func tcpInfo(fd int) (*unix.TCPInfo, error) {
	info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err == nil {
		return info, nil
	}
	if domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN); err == nil && domain == unix.AF_UNIX {
		return nil, errUncounted
	}
	return nil, fmt.Errorf("TCP_INFO: %w", err)
}
