package test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"golang.org/x/sys/unix"

	"wscast/test/harness"
)

// user is who connects.
type user struct {
	uid, gid uint32
	groups   []uint32
}

// as runs do on a thread that is the user's, which ends with it: to the kernel, users are those of threads (nptl(7)).
func (u user) as(t *testing.T, do func() error) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test connects as other users: run it as root")
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocks it
		for _, call := range []struct {
			number        uintptr
			a, b, c, size uintptr
		}{{number: unix.SYS_SETGROUPS}, {unix.SYS_SETRESGID, uintptr(u.gid), uintptr(u.gid), uintptr(u.gid), 0}, {unix.SYS_SETRESUID, uintptr(u.uid), uintptr(u.uid), uintptr(u.uid), 0}} {
			var errno syscall.Errno
			if call.number == unix.SYS_SETGROUPS {
				errno = setgroups(u.groups)
			} else {
				_, _, errno = unix.RawSyscall(call.number, call.a, call.b, call.c)
			}
			if errno != 0 {
				done <- errno
				return
			}
		}
		done <- do()
	}()
	if err := <-done; err != nil {
		t.Fatalf("as user %d: %v", u.uid, err)
	}
}
