package daemon

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// inheritor is set in a process that is started with descriptors, as systemd starts wscastd.
const inheritor = "WSCAST_TEST_INHERIT"

// inherit is what that process does: it takes its sockets, says what they are, one a line, and ends.
func inherit() int {
	if os.Getenv(inheritor) == "ours" { // LISTEN_PID is known only here
		os.Setenv("LISTEN_PID", strconv.Itoa(os.Getpid()))
	}
	s, ok, err := Inherited()
	if err != nil {
		fmt.Printf("error: %s\n", err)
	}
	if !ok {
		fmt.Println("none")
	}
	for _, f := range s.WebSocket {
		fmt.Println("websocket", f.Name())
		raw, _ := f.SyscallConn()
		_ = raw.Control(func(fd uintptr) {
			if flags, _ := unix.FcntlInt(fd, unix.F_GETFL, 0); flags&unix.O_NONBLOCK == 0 {
				fmt.Println("blocking")
			}
			if flags, _ := unix.FcntlInt(fd, unix.F_GETFD, 0); flags&unix.FD_CLOEXEC == 0 {
				fmt.Println("open in children")
			}
		})
	}
	for _, l := range s.Publish {
		fmt.Println("publish", l.Addr())
	}
	for _, c := range s.Datagrams {
		fmt.Println("publish-datagram", c.LocalAddr())
	}
	for _, name := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		if _, ok := os.LookupEnv(name); ok {
			fmt.Println(name, "is still set")
		}
	}
	if err := s.Close(); err != nil {
		fmt.Println("close:", err)
	}
	for fd := 3; fd < 20; fd++ {
		if target, _ := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd)); strings.HasPrefix(target, "socket:") {
			fmt.Println("still open:", fd)
		}
	}
	return 0
}

// passed is a descriptor with the name that its socket unit gives it.
type passed struct {
	name string
	file *os.File
}

// pass starts a process with descriptors and returns what it says about them.
func pass(t *testing.T, list ...passed) []string {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	var names []string
	for _, p := range list {
		names = append(names, p.name)
		cmd.ExtraFiles = append(cmd.ExtraFiles, p.file)
	}
	// A program with the race detector sleeps a second before it ends, for reports that are being written.
	cmd.Env = append(os.Environ(), "GORACE="+os.Getenv("GORACE")+" atexit_sleep_ms=0", inheritor+"=ours", "LISTEN_FDS="+strconv.Itoa(len(list)), "LISTEN_FDNAMES="+strings.Join(names, ":"))
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return strings.Split(strings.TrimSuffix(string(out), "\n"), "\n")
}

// open makes a socket of any kind; address may be nil.
func open(t *testing.T, domain, kind, protocol int, address unix.Sockaddr, listens bool) *os.File {
	t.Helper()
	fd, err := unix.Socket(domain, kind|unix.SOCK_CLOEXEC, protocol)
	if err == nil && address != nil {
		err = unix.Bind(fd, address)
	}
	if err == nil && listens {
		err = unix.Listen(fd, 10)
	}
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "socket")
	t.Cleanup(func() { f.Close() })
	return f
}

var loopback4 = &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}

func tcp(t *testing.T) *os.File {
	return open(t, unix.AF_INET, unix.SOCK_STREAM, 0, loopback4, true)
}

func unixStream(t *testing.T, path string) *os.File {
	return open(t, unix.AF_UNIX, unix.SOCK_STREAM, 0, &unix.SockaddrUnix{Name: path}, true)
}

func address(t *testing.T, f *os.File) string {
	t.Helper()
	_, address, err := examine(f)
	if err != nil {
		t.Fatal(err)
	}
	return address
}

func TestSocketsFromSystemd(t *testing.T) {
	dir := t.TempDir()
	v4 := tcp(t)
	v6 := open(t, unix.AF_INET6, unix.SOCK_STREAM, 0, &unix.SockaddrInet6{Addr: [16]byte{15: 1}}, true)
	local := unixStream(t, filepath.Join(dir, "websocket"))
	publish := unixStream(t, filepath.Join(dir, "publish"))
	datagrams := open(t, unix.AF_UNIX, unix.SOCK_DGRAM, 0, &unix.SockaddrUnix{Name: filepath.Join(dir, "datagrams")}, false)

	got := pass(t, passed{"websocket", v4}, passed{"publish-datagram", datagrams}, passed{"websocket", v6}, passed{"publish", publish}, passed{"websocket", local})
	want := []string{
		"websocket " + address(t, v4), "websocket " + address(t, v6), "websocket " + filepath.Join(dir, "websocket"),
		"publish " + filepath.Join(dir, "publish"), "publish-datagram " + filepath.Join(dir, "datagrams"),
	}
	if !slices.Equal(got, want) {
		t.Errorf("the process has\n%q\nwant\n%q", got, want)
	}
	if !strings.HasPrefix(want[0], "websocket 127.0.0.1:") || !strings.HasPrefix(want[1], "websocket [::1]:") {
		t.Errorf("addresses %q", want[:2])
	}
	for _, name := range []string{"websocket", "publish", "datagrams"} { // they are the socket unit's
		if _, err := os.Lstat(filepath.Join(dir, name)); err != nil {
			t.Error(err)
		}
	}
}

func TestNoSocketsFromSystemd(t *testing.T) {
	if got := pass(t); !slices.Equal(got, []string{"none"}) {
		t.Errorf("without any: %q", got)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), inheritor+"=others", "LISTEN_FDS=1", "LISTEN_PID=1", "LISTEN_FDNAMES=websocket")
	if out, err := cmd.CombinedOutput(); err != nil || string(out) != "none\n" {
		t.Errorf("with those of another process: %v %q", err, out)
	}
}

func TestSocketsFromSystemdThatAreWrong(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	bound := func(name string) unix.Sockaddr { return &unix.SockaddrUnix{Name: path(name)} }
	websocket, publish := passed{"websocket", tcp(t)}, passed{"publish", unixStream(t, path("publish"))}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	file, err := os.Create(path("file"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()

	const first = `error: socket 1 of those that systemd passed, named `
	for name, test := range map[string]struct {
		sockets []passed
		want    string
	}{
		"an unknown name": {[]passed{{"wscast.socket", tcp(t)}}, first + `"wscast.socket": unknown name: FileDescriptorName= is "websocket", "publish" or "publish-datagram"`},
		"no name":         {[]passed{{"", tcp(t)}}, first + `"LISTEN_FD_3": unknown name: FileDescriptorName= is "websocket", "publish" or "publish-datagram"`},
		"a pipe":          {[]passed{{"websocket", r}}, first + `"websocket": it is no socket: socket operation on non-socket`},
		"a regular file":  {[]passed{{"publish", file}}, first + `"publish": it is no socket: socket operation on non-socket`},
		"no websocket":    {[]passed{publish}, `error: systemd passed no socket named "websocket": a socket unit needs FileDescriptorName=websocket, and the service needs that unit in Sockets=`},
		"no publish":      {[]passed{websocket}, `error: systemd passed no socket named "publish": a socket unit needs FileDescriptorName=publish, and the service needs that unit in Sockets=`},
		"datagrams for websocket": {[]passed{{"websocket", open(t, unix.AF_INET, unix.SOCK_DGRAM, 0, loopback4, false)}},
			first + `"websocket": it is an IPv4 datagram socket, but has to be a listening TCP or Unix-domain stream socket: ListenStream= with Accept=no`},
		"a websocket that does not listen": {[]passed{{"websocket", open(t, unix.AF_INET6, unix.SOCK_STREAM, 0, nil, false)}},
			first + `"websocket": it is an IPv6 stream socket that does not listen, but has to be a listening TCP or Unix-domain stream socket: ListenStream= with Accept=no`},
		"packets for websocket": {[]passed{{"websocket", open(t, unix.AF_UNIX, unix.SOCK_SEQPACKET, 0, bound("packets"), true)}},
			first + `"websocket": it is a Unix-domain sequential-packet socket that listens, but has to be a listening TCP or Unix-domain stream socket: ListenStream= with Accept=no`},
		"TCP for publish": {[]passed{websocket, {"publish", tcp(t)}},
			`error: socket 2 of those that systemd passed, named "publish": it is an IPv4 stream socket that listens, but has to be a listening Unix-domain stream socket: ListenStream= with a path, and Accept=no`},
		"datagrams for publish": {[]passed{{"publish", open(t, unix.AF_UNIX, unix.SOCK_DGRAM, 0, bound("d1"), false)}},
			first + `"publish": it is a Unix-domain datagram socket, but has to be a listening Unix-domain stream socket: ListenStream= with a path, and Accept=no`},
		"a publish that does not listen": {[]passed{{"publish", open(t, unix.AF_UNIX, unix.SOCK_STREAM, 0, bound("s1"), false)}},
			first + `"publish": it is a Unix-domain stream socket that does not listen, but has to be a listening Unix-domain stream socket: ListenStream= with a path, and Accept=no`},
		"a stream for datagrams": {[]passed{{"publish-datagram", unixStream(t, path("s2"))}},
			first + `"publish-datagram": it is a Unix-domain stream socket that listens, but has to be a Unix-domain datagram socket: ListenDatagram= with a path`},
		"UDP for datagrams": {[]passed{{"publish-datagram", open(t, unix.AF_INET, unix.SOCK_DGRAM, 0, loopback4, false)}},
			first + `"publish-datagram": it is an IPv4 datagram socket, but has to be a Unix-domain datagram socket: ListenDatagram= with a path`},
		"datagrams without an address": {[]passed{{"publish-datagram", open(t, unix.AF_UNIX, unix.SOCK_DGRAM, 0, nil, false)}},
			first + `"publish-datagram": it has no address, so nobody can send to it: ListenDatagram= with a path`},
		"netlink": {[]passed{{"websocket", open(t, unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE, nil, false)}},
			first + `"websocket": it is an address family 16 type 3 socket, but has to be a listening TCP or Unix-domain stream socket: ListenStream= with Accept=no`},
		"two publish": {[]passed{websocket, publish, {"publish", unixStream(t, path("publish2"))}},
			`error: socket 3 of those that systemd passed, named "publish": there is another one of that name, and publish has to be one socket: write one Listen line and FileDescriptorName=publish in one socket unit only`},
		"two publish-datagram": {[]passed{websocket, publish, {"publish-datagram", open(t, unix.AF_UNIX, unix.SOCK_DGRAM, 0, bound("d2"), false)}, {"publish-datagram", open(t, unix.AF_UNIX, unix.SOCK_DGRAM, 0, bound("d3"), false)}},
			`error: socket 4 of those that systemd passed, named "publish-datagram": there is another one of that name, and publish-datagram has to be one socket: write one Listen line and FileDescriptorName=publish-datagram in one socket unit only`},
	} {
		if got := pass(t, test.sockets...); !slices.Equal(got, []string{test.want}) {
			t.Errorf("%s: the process says\n%s\nwant\n%s", name, strings.Join(got, "\n"), test.want)
		}
	}
}

func TestMultipathTCPFromSystemd(t *testing.T) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_MPTCP)
	if err != nil {
		return // a kernel that has none cannot pass one: CONFIG_MPTCP, net.mptcp.enabled
	}
	f := os.NewFile(uintptr(fd), "mptcp")
	defer f.Close()
	if err := errors.Join(unix.Bind(fd, loopback4), unix.Listen(fd, 1)); err != nil {
		t.Fatal(err)
	}
	want := `error: socket 1 of those that systemd passed, named "websocket": it is a Multipath TCP socket, of which the kernel does not count what was sent: leave out SocketProtocol=mptcp`
	if got := pass(t, passed{"websocket", f}); !slices.Equal(got, []string{want}) {
		t.Errorf("the process says\n%s\nwant\n%s", got, want)
	}
}

// byHand is a configuration of sockets in a new directory.
func byHand(t testing.TB, change ...func(c *Config, dir string)) (*Config, string) {
	dir := t.TempDir()
	c := Defaults()
	c.WebSocket.Listen = []string{"127.0.0.1:0"}
	c.Publish.Listen = []string{filepath.Join(dir, "publish.sock")}
	for _, f := range change {
		f(&c, dir)
	}
	return &c, dir
}

func TestBind(t *testing.T) {
	c, dir := byHand(t, func(c *Config, dir string) {
		c.WebSocket.Listen = []string{"127.0.0.1:0", "[::1]:0", filepath.Join(dir, "websocket.sock")}
		c.WebSocket.Mode, c.Publish.Mode = 0o606, 0o620
		c.Publish.Listen = append(c.Publish.Listen, filepath.Join(dir, "publish2.sock"))
		c.Publish.Datagrams = []string{filepath.Join(dir, "datagrams.sock"), filepath.Join(dir, "datagrams2.sock")}
	})
	mask := unix.Umask(0o077) // which is not to matter, and is to be the same afterwards
	s, err := Bind(c)
	if mask = unix.Umask(mask); mask != 0o077 {
		t.Errorf("the umask has become %#o", mask)
	}
	if err != nil {
		t.Fatal(err)
	}
	websocket, publish := s.Addresses()
	if len(websocket) != 3 || !slices.Equal(publish, c.Publish.Listen) || len(s.Datagrams) != 2 {
		t.Fatalf("sockets %q, %q, %d", websocket, publish, len(s.Datagrams))
	}
	for i, prefix := range []string{"127.0.0.1:", "[::1]:", filepath.Join(dir, "websocket.sock")} {
		network := "tcp"
		if i == 2 {
			network = "unix"
		}
		if conn, err := net.Dial(network, websocket[i]); err != nil || !strings.HasPrefix(websocket[i], prefix) {
			t.Errorf("%s: %v", websocket[i], err)
		} else {
			conn.Close()
		}
	}
	for name, mode := range map[string]os.FileMode{"websocket.sock": 0o606, "publish.sock": 0o620, "publish2.sock": 0o620, "datagrams.sock": 0o620} {
		if info, err := os.Lstat(filepath.Join(dir, name)); err != nil || info.Mode() != mode|os.ModeSocket {
			t.Errorf("%s: %v, %v, want mode %v", name, info, err, mode)
		}
	}
	for _, f := range s.WebSocket {
		if k, _, err := examine(f); err != nil || k.protocol == unix.IPPROTO_MPTCP || !k.listens {
			t.Errorf("%s: %v, protocol %d, %v", f.Name(), k, k.protocol, err)
		}
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("Close leaves %v", left)
	}
	if err := s.Close(); err != nil {
		t.Errorf("a second Close: %v", err)
	}
}

// Somebody may have cleaned up already.
func TestCloseOfSocketsWhosePathsAreGone(t *testing.T) {
	c, dir := byHand(t)
	s, err := Bind(c)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, "publish.sock")); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func TestBindReplacesWhatIsLeftOfAnEarlierProcess(t *testing.T) {
	c, dir := byHand(t, func(c *Config, dir string) {
		c.WebSocket.Listen = []string{filepath.Join(dir, "websocket.sock")}
		c.Publish.Datagrams = []string{filepath.Join(dir, "datagrams.sock")}
	})
	unixStream(t, filepath.Join(dir, "websocket.sock")).Close()
	// Of another type than the new one.
	unixStream(t, filepath.Join(dir, "datagrams.sock")).Close()
	open(t, unix.AF_UNIX, unix.SOCK_DGRAM, 0, &unix.SockaddrUnix{Name: filepath.Join(dir, "publish.sock")}, false).Close()
	s, err := Bind(c)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func TestBindThatFails(t *testing.T) {
	inUse := "\nanother process listens there, perhaps another wscastd: stop it, or choose another address"
	for name, test := range map[string]struct {
		prepare func(t *testing.T, c *Config, dir string)
		want    string // with DIR and PORT
	}{
		"a port in use": {func(t *testing.T, c *Config, dir string) {
			c.WebSocket.Listen = []string{address(t, tcp(t))}
		}, "cannot listen on 127.0.0.1:PORT: address already in use" + inUse},
		"a path in use": {func(t *testing.T, c *Config, dir string) {
			unixStream(t, filepath.Join(dir, "publish.sock"))
		}, "cannot listen on DIR/publish.sock: address already in use" + inUse},
		"a path in use whose backlog is full": {func(t *testing.T, c *Config, dir string) {
			path := filepath.Join(dir, "publish.sock")
			open(t, unix.AF_UNIX, unix.SOCK_STREAM, 0, &unix.SockaddrUnix{Name: path}, true)
			for {
				fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { unix.Close(fd) })
				if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err == unix.EAGAIN {
					return
				} else if err != nil {
					t.Fatal(err)
				}
			}
		}, "cannot listen on DIR/publish.sock: address already in use" + inUse},
		"a path in use by another type of socket": {func(t *testing.T, c *Config, dir string) {
			open(t, unix.AF_UNIX, unix.SOCK_DGRAM, 0, &unix.SockaddrUnix{Name: filepath.Join(dir, "publish.sock")}, false)
		}, "cannot listen on DIR/publish.sock: address already in use" + inUse},
		"the same path twice": {func(t *testing.T, c *Config, dir string) {
			c.Publish.Listen = append(c.Publish.Listen, c.Publish.Listen[0])
		}, "cannot listen on DIR/publish.sock: address already in use" + inUse},
		"a file that is no socket": {func(t *testing.T, c *Config, dir string) {
			writeFile(t, filepath.Join(dir, "publish.sock"), "precious")
		}, "cannot listen on DIR/publish.sock: address already in use\na file that is not a socket is there: remove it, or choose another path"},
		"a link to a socket": {func(t *testing.T, c *Config, dir string) {
			if err := os.Symlink("elsewhere.sock", filepath.Join(dir, "publish.sock")); err != nil {
				t.Fatal(err)
			}
		}, "cannot listen on DIR/publish.sock: address already in use\na file that is not a socket is there: remove it, or choose another path"},
		"a directory that is not there": {func(t *testing.T, c *Config, dir string) {
			c.Publish.Listen = []string{filepath.Join(dir, "wscast", "publish.sock")}
		}, "cannot listen on DIR/wscast/publish.sock: no such file or directory\nits directory is not there: make it, or choose another path, with --websocket or --publish"},
		"a file for a directory": {func(t *testing.T, c *Config, dir string) {
			writeFile(t, filepath.Join(dir, "file"), "")
			c.Publish.Datagrams = []string{filepath.Join(dir, "file", "a")}
		}, "cannot listen on DIR/file/a: not a directory\nits directory is not there: make it, or choose another path, with --websocket or --publish"},
		"an address of another machine": {func(t *testing.T, c *Config, dir string) {
			c.WebSocket.Listen = []string{"192.0.2.1:0"}
		}, "cannot listen on 192.0.2.1:0: cannot assign requested address\nthis machine does not have that address"},
	} {
		t.Run(name, func(t *testing.T) {
			before := descriptors()
			c, dir := byHand(t)
			test.prepare(t, c, dir)
			_, port, _ := strings.Cut(c.WebSocket.Listen[0], ":")
			want := strings.NewReplacer("DIR", dir, "PORT", port).Replace(test.want)
			held := descriptors()
			_, err := Bind(c)
			if err == nil || err.Error() != want {
				t.Errorf("got\n%v\nwant\n%s", err, want)
			}
			if now := descriptors(); !slices.Equal(now, held) {
				t.Errorf("it leaves %q, before it %q, at first %q", now, held, before)
			}
			if b, err := os.ReadFile(filepath.Join(dir, "publish.sock")); err == nil && string(b) != "precious" {
				t.Errorf("the file has become %q", b)
			}
		})
	}
}

func TestBindWithoutPermission(t *testing.T) {
	err := bindError("/etc/publish.sock", &net.OpError{Op: "listen", Err: os.NewSyscallError("bind", syscall.EACCES)})
	if want := "cannot listen on /etc/publish.sock: permission denied\nchoose an address that this user may bind, with --websocket or --publish"; err.Error() != want {
		t.Errorf("got\n%v\nwant\n%s", err, want)
	}
}

func TestWelcome(t *testing.T) {
	publish, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "p"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer publish.Close()
	line := "publish:    bin/wscast publish --socket " + publish.Addr().String() + " default hello\n"
	for address, page := range map[string]string{
		"127.0.0.1:7311": "http://127.0.0.1:7311/", "[::1]:80": "http://[::1]:80/", "0.0.0.0:7311": "http://localhost:7311/", "[::]:7311": "http://localhost:7311/", "/run/a.sock": "",
	} {
		f := os.NewFile(^uintptr(0)>>1, address)
		s := Sockets{WebSocket: []*os.File{os.NewFile(^uintptr(0)>>1, "/run/b.sock"), f}, Publish: []*net.UnixListener{publish}}
		want := line
		if page != "" {
			want = "demo page:  " + page + "\n" + line
		}
		if got := s.Welcome(true, "bin/wscast"); got != want {
			t.Errorf("%s: %q, want %q", address, got, want)
		}
		if got := s.Welcome(false, "bin/wscast"); got != line {
			t.Errorf("%s without --demo: %q, want %q", address, got, line)
		}
	}
}
