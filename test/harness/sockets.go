package harness

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

// A socket is what a .socket unit stands for: bound by the harness, given to every wscastd it starts.
type socket struct {
	name    string   // FileDescriptorName=
	network string   // tcp, unix or unixgram
	address string   // host:port or path
	port    int      // of tcp, reserved
	file    *os.File // nil while closed
}

func (s *socket) open() error {
	var family, kind int
	var bound unix.Sockaddr
	switch s.network {
	case "tcp":
		family, kind, bound = unix.AF_INET, unix.SOCK_STREAM, loopback(s.port)
	case "unix":
		family, kind, bound = unix.AF_UNIX, unix.SOCK_STREAM, &unix.SockaddrUnix{Name: s.address}
	case "unixgram":
		family, kind, bound = unix.AF_UNIX, unix.SOCK_DGRAM, &unix.SockaddrUnix{Name: s.address}
	default:
		return fmt.Errorf("socket %s: no network %q: use tcp, unix or unixgram", s.name, s.network)
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	file := os.NewFile(uintptr(fd), s.name)
	if family == unix.AF_INET {
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	} else {
		os.Remove(s.address)
	}
	if err == nil {
		err = unix.Bind(fd, bound)
	}
	if err == nil && kind == unix.SOCK_STREAM {
		err = unix.Listen(fd, 4096)
	}
	if err != nil {
		file.Close()
		return fmt.Errorf("socket %s: %s: %w", s.name, s.address, err)
	}
	s.file = file
	return nil
}

func (s *socket) close() {
	if s.file == nil {
		return
	}
	s.file.Close()
	s.file = nil
	if s.network != "tcp" {
		os.Remove(s.address)
	}
}

// reservePort returns a loopback TCP port that is this test's until it ends, whether somebody listens on it or not. The port is held
// by a socket that is bound and does not listen: connecting to it is refused, it is given to nobody who asks for any
// port, and yet a server can bind it, as both sockets have SO_REUSEADDR and only one of them listens (socket(7)).
func reservePort(t testing.TB) int {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(os.NewSyscallError("socket", err))
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		t.Fatal(os.NewSyscallError("setsockopt", err))
	}
	if err := unix.Bind(fd, loopback(0)); err != nil {
		t.Fatal(os.NewSyscallError("bind", err))
	}
	bound, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(os.NewSyscallError("getsockname", err))
	}
	return bound.(*unix.SockaddrInet4).Port
}

func loopback(port int) unix.Sockaddr {
	return &unix.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}}
}

// tempDir is a directory with a path short enough for a socket in it (sun_path has 108 bytes, unix(7)); that of t.TempDir has the
// name of the test in it.
func tempDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "wscast-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func writeFile(t testing.TB, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func local(port int) string { return "127.0.0.1:" + strconv.Itoa(port) }
