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

// count asks the kernel. The sum for written is of two calls: it is taken again until no acknowledgement has come in
// between.
func count(fd int) (c counters, err error) {
	domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		return c, err
	}
	if domain == unix.AF_UNIX {
		return c, errUncounted
	}
	for range 100 {
		before, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		if err != nil {
			return c, fmt.Errorf("TCP_INFO: %w", err)
		}
		out, err := unix.IoctlGetInt(fd, unix.SIOCOUTQ)
		if err != nil {
			return c, fmt.Errorf("SIOCOUTQ: %w", err)
		}
		in, err := unix.IoctlGetInt(fd, unix.SIOCINQ)
		if err != nil {
			return c, fmt.Errorf("SIOCINQ: %w", err)
		}
		after, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		if err != nil {
			return c, fmt.Errorf("TCP_INFO: %w", err)
		}
		if before.State != after.State || before.Bytes_acked != after.Bytes_acked || before.Bytes_received != after.Bytes_received {
			continue
		}
		c = counters{written: after.Bytes_acked + uint64(out), read: after.Bytes_received - uint64(in)}
		// Our end takes a number in the sequence (tcp_send_fin), theirs as well, and SIOCINQ leaves it out (tcp_inq).
		switch after.State {
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
