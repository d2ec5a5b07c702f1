package ipc

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// readNow and writeNow are read(2) and write(2) on a non-blocking socket without telling the scheduler. The ordinary
// calls let another thread take over the processor when they return late, which costs more than
// the call itself: a publisher with one message in flight is served in two thirds of the time (BenchmarkPublishOneByOne).
// They never block, and copy at most a buffer.
func readNow(fd uintptr, b []byte) (int, error) { return rawIO(unix.SYS_READ, fd, b) }

func writeNow(fd uintptr, b []byte) (int, error) { return rawIO(unix.SYS_WRITE, fd, b) }

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
