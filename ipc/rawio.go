package ipc

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// readNow and writeNow are read(2) and write(2) on a non-blocking socket without telling the scheduler, which for the
// ordinary calls counts the thread as blocked and may hand its processor to another. They never block, and copy
// at most a buffer. Measured with redis-benchmark (50 publishers, one message in flight each, and 10 with 64):
// a third less processor time for the server.
func readNow(fd uintptr, b []byte) (int, error) { return rawIO(unix.SYS_READ, fd, b) }

func writeNow(fd uintptr, b []byte) (int, error) { return rawIO(unix.SYS_WRITE, fd, b) }

// getsockopt is getsockopt(2) for options that x/sys/unix does not know the type of. It returns how much of b was
// filled; with ERANGE, how much it would take.
func getsockopt(fd uintptr, level, name int, b []byte) (int, error) {
	n := uint32(len(b))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, fd, uintptr(level), uintptr(name),
		uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(unsafe.Pointer(&n)), 0)
	if errno != 0 {
		return int(n), errno
	}
	return int(n), nil
}

func rawIO(call, fd uintptr, b []byte) (int, error) {
	for {
		n, _, errno := unix.RawSyscall(call, fd, uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			return 0, errno
		}
		return int(n), nil
	}
}
