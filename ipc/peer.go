package ipc

import (
	"encoding/binary"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// Peer is the process at the other end of a connection, as the kernel noted it when it connected
// (SO_PEERCRED, unix(7)). It may have ended or handed the connection on since. PID is 0 where the
// process is not in this PID namespace.
type Peer struct {
	PID int
	UID uint32
	GID uint32
}

func peerOf(sock *net.UnixConn) (Peer, error) {
	raw, err := sock.SyscallConn()
	if err != nil {
		return Peer{}, err
	}
	var cred *unix.Ucred
	var failed error
	err = raw.Control(func(fd uintptr) {
		cred, failed = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err == nil {
		err = failed
	}
	if err != nil {
		return Peer{}, err
	}
	return Peer{PID: int(cred.Pid), UID: cred.Uid, GID: cred.Gid}, nil
}

// groupsOf are the supplementary groups that the peer had when it connected (SO_PEERGROUPS, since Linux 4.13). There can
// be 65,536 of them; most have few.
func groupsOf(raw syscall.RawConn) (gids []uint32, err error) {
	failed := raw.Control(func(fd uintptr) {
		b := make([]byte, 4*32)
		n := 0
		if n, err = getsockopt(fd, unix.SOL_SOCKET, unix.SO_PEERGROUPS, b); err == unix.ERANGE {
			b = make([]byte, n)
			n, err = getsockopt(fd, unix.SOL_SOCKET, unix.SO_PEERGROUPS, b)
		}
		if err == nil {
			for i := 0; i+4 <= n; i += 4 {
				gids = append(gids, binary.NativeEndian.Uint32(b[i:]))
			}
		}
	})
	if failed != nil {
		err = failed
	}
	return gids, os.NewSyscallError("getsockopt SO_PEERGROUPS", err)
}

// A sender's credentials come with each datagram (SCM_CREDENTIALS, unix(7)). credentials is exactly as large as they are, so
// that there is no room for descriptors: the kernel closes those that somebody sends.
var credentials = unix.CmsgSpace(unix.SizeofUcred)

// passCredentials asks for them. Datagrams that were sent before may come without.
func passCredentials(sock *net.UnixConn) error {
	raw, err := sock.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	if err = raw.Control(func(fd uintptr) { failed = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSCRED, 1) }); err == nil {
		err = os.NewSyscallError("setsockopt SO_PASSCRED", failed)
	}
	return err
}

// nobody is who the kernel says has sent a datagram without credentials, with no process: overflowuid of user_namespaces(7).
const nobody = 65534

// senderOf returns the sender of a datagram; ok is false when it is not known.
func senderOf(control []byte) (peer Peer, ok bool) {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil || len(messages) != 1 || len(messages[0].Data) < unix.SizeofUcred { // which ParseUnixCredentials does not look at
		return Peer{}, false
	}
	cred, err := unix.ParseUnixCredentials(&messages[0])
	if err != nil || cred.Pid == 0 && cred.Uid == nobody {
		return Peer{}, false
	}
	return Peer{PID: int(cred.Pid), UID: cred.Uid, GID: cred.Gid}, true
}
