package loop

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// system is what a loop asks of the kernel for each client, in one place so that tests can make a write short, a
// socket say EAGAIN or a call fail.
//
// They are raw system calls, without a word to the scheduler: on a non-blocking socket they return at once, and the
// two handshakes with the scheduler around syscall.Write cost as much again as the write (8.1 against 4.5 µs a
// delivery). None of them may ever block: every socket is non-blocking, and MSG_DONTWAIT says it once more. EINTR
// does not happen to calls that do not wait.
type system struct {
	accept   func(listener int) (fd int, errno syscall.Errno)
	send     func(fd int, b []byte) (n int, errno syscall.Errno)
	sendAll  func(fd int, slices [][]byte, v []unix.Iovec) (n int, errno syscall.Errno) // v has room for the slices
	peek     func(fd int, b []byte) (n int, errno syscall.Errno)
	receive  func(fd int, b []byte) (n int, errno syscall.Errno)
	shutdown func(fd, how int) syscall.Errno
	close    func(fd int) syscall.Errno
	room     func(fd int) (free, all int) // bytes of a TCP socket's receive buffer, with the kernel's own part
}

const sendFlags = unix.MSG_DONTWAIT | unix.MSG_NOSIGNAL

var linux = system{
	accept: func(listener int) (int, syscall.Errno) {
		const flags = unix.SOCK_NONBLOCK | unix.SOCK_CLOEXEC
		fd, _, errno := syscall.RawSyscall6(unix.SYS_ACCEPT4, uintptr(listener), 0, 0, flags, 0, 0)
		return int(fd), errno
	},
	send: func(fd int, b []byte) (int, syscall.Errno) {
		n, _, errno := syscall.RawSyscall6(unix.SYS_SENDTO, uintptr(fd),
			uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), sendFlags, 0, 0)
		return took(n, errno)
	},
	sendAll: func(fd int, slices [][]byte, v []unix.Iovec) (int, syscall.Errno) {
		for i, b := range slices {
			v[i].Base = unsafe.SliceData(b)
			v[i].SetLen(len(b))
		}
		msg := unix.Msghdr{Iov: &v[0]}
		msg.SetIovlen(len(slices))
		n, _, errno := syscall.RawSyscall(unix.SYS_SENDMSG, uintptr(fd), uintptr(unsafe.Pointer(&msg)), sendFlags)
		return took(n, errno)
	},
	peek: func(fd int, b []byte) (int, syscall.Errno) {
		return receive(fd, b, unix.MSG_DONTWAIT|unix.MSG_PEEK)
	},
	receive: func(fd int, b []byte) (int, syscall.Errno) {
		return receive(fd, b, unix.MSG_DONTWAIT)
	},
	shutdown: func(fd, how int) syscall.Errno {
		_, _, errno := syscall.RawSyscall(unix.SYS_SHUTDOWN, uintptr(fd), uintptr(how), 0)
		return errno
	},
	close: func(fd int) syscall.Errno {
		_, _, errno := syscall.RawSyscall(unix.SYS_CLOSE, uintptr(fd), 0, 0)
		return errno
	},
	room: func(fd int) (free, all int) {
		var info [unix.SK_MEMINFO_VARS]uint32
		size := uint32(unsafe.Sizeof(info))
		_, _, errno := syscall.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_MEMINFO,
			uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0)
		if errno != 0 || info[unix.SK_MEMINFO_RMEM_ALLOC] > info[unix.SK_MEMINFO_RCVBUF] {
			return 0, int(info[unix.SK_MEMINFO_RCVBUF])
		}
		return int(info[unix.SK_MEMINFO_RCVBUF] - info[unix.SK_MEMINFO_RMEM_ALLOC]), int(info[unix.SK_MEMINFO_RCVBUF])
	},
}

func receive(fd int, b []byte, flags uintptr) (int, syscall.Errno) {
	n, _, errno := syscall.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd),
		uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), flags, 0, 0)
	return took(n, errno)
}

// took: a failed call has moved no bytes. Where it fails the kernel returns -1.
func took(n uintptr, errno syscall.Errno) (int, syscall.Errno) {
	if errno != 0 {
		return 0, errno
	}
	return int(n), 0
}

// epollWait never waits: who waits for an epoll instance is Go's own poller, see loop.wait.
func epollWait(epfd int, events []unix.EpollEvent) int {
	n, _, errno := syscall.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(epfd),
		uintptr(unsafe.Pointer(&events[0])), uintptr(len(events)), 0, 0, 0)
	if errno != 0 {
		return 0
	}
	return int(n)
}
