package survive

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// counters are what the kernel knows about a TCP connection.
type counters struct {
	written uint64 // bytes ever written to it
	read    uint64 // bytes ever read from it
}

var errUncounted = errors.New("not a TCP connection")

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
		if before.Bytes_acked == after.Bytes_acked && before.Bytes_received == after.Bytes_received {
			return counters{written: after.Bytes_acked + uint64(out), read: after.Bytes_received - uint64(in)}, nil
		}
	}
	return c, errors.New("the connection does not come to rest")
}
