package survive

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// System calls that are made for every connection. They are raw, without a word to the scheduler, as those of package loop, and for the same reason:
// none of them waits. Around package syscall's own the scheduler takes the processor away from a goroutine that was in one of them when sysmon
// looked, and gives it back.

// sendRights sends bytes with descriptors. oob is room for the control message.
func sendRights(fd int, b []byte, fds []int32, oob []byte) syscall.Errno {
	// One struct cmsghdr, and the descriptors behind it (cmsg(3), SCM_RIGHTS in unix(7)).
	h := (*unix.Cmsghdr)(unsafe.Pointer(&oob[0]))
	h.Level, h.Type = unix.SOL_SOCKET, unix.SCM_RIGHTS
	h.SetLen(unix.CmsgLen(4 * len(fds)))
	copy(unsafe.Slice((*int32)(unsafe.Pointer(&oob[unix.CmsgLen(0)])), len(fds)), fds)
	v := unix.Iovec{Base: unsafe.SliceData(b)}
	v.SetLen(len(b))
	msg := unix.Msghdr{Iov: &v, Control: &oob[0]}
	msg.SetIovlen(1)
	msg.SetControllen(unix.CmsgSpace(4 * len(fds)))
	const flags = unix.MSG_DONTWAIT | unix.MSG_NOSIGNAL
	_, _, errno := syscall.RawSyscall(unix.SYS_SENDMSG, uintptr(fd), uintptr(unsafe.Pointer(&msg)), flags)
	return errno
}

// mostDropped is how many messages one call of dropMessages takes.
const mostDropped = 64

// message is struct mmsghdr.
type message struct {
	unix.Msghdr
	size uint32 // of what has come
}

// dropMessages takes the first n messages, at most mostDropped, out of a queue, and returns how many there were and how many bytes they had. It gives them room
// for neither bytes nor descriptors: the kernel drops those, and says how many bytes there were (MSG_TRUNC).
func dropMessages(fd, n int) (messages, bytes int, errno syscall.Errno) {
	var m [mostDropped]message
	got, _, errno := syscall.RawSyscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(&m)), uintptr(min(n, len(m))),
		unix.MSG_DONTWAIT|unix.MSG_TRUNC, 0, 0)
	if errno != 0 {
		return 0, 0, errno
	}
	for i := range m[:got] {
		bytes += int(m[i].size)
	}
	return int(got), bytes, 0
}

// Cookie is the kernel's number of a socket, never used again until the machine is started anew (SO_COOKIE, socket(7)).
func Cookie(fd int) (cookie uint64, err error) {
	size := uint32(unsafe.Sizeof(cookie))
	_, _, errno := syscall.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_COOKIE,
		uintptr(unsafe.Pointer(&cookie)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return 0, errno
	}
	return cookie, nil
}
