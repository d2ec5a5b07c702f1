package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/coreos/go-systemd/v22/activation"
	"golang.org/x/sys/unix"
)

// Sockets are what the daemon serves on. It never opens one itself once it runs: they come from systemd by name, or are
// bound before it starts.
//
// There can be several WebSocket sockets either way: nginx runs out of ports to one address at about 28,000 clients. From
// systemd there is one socket for publishers and one for datagrams, because publishers are told one path, and a second
// unit with the same FileDescriptorName= is a mistake. By hand there can be several (--publish is repeatable), for
// instance one that a container sees.
type Sockets struct {
	WebSocket []*os.File          // stream listeners, TCP or Unix-domain
	Publish   []*net.UnixListener // Unix-domain stream listeners
	Datagrams []*net.UnixConn     // Unix-domain datagram sockets

	stored []*os.File // not sockets to serve on, but what an earlier process has left with systemd, perhaps a later version
	paths  []string   // of Unix-domain sockets that were bound here, removed by Close
}

// Names of sockets: FileDescriptorName= of the socket units.
const (
	nameWebSocket = "websocket"
	namePublish   = "publish"
	nameDatagrams = "publish-datagram"
)

// Inherited takes the sockets that systemd has handed over (sd_listen_fds(3)). ok is false when there are none. Each is
// checked for its kind, since a socket of a wrong kind would be found out only by its first client. An error names the
// socket; all of them are closed then.
func Inherited() (s Sockets, ok bool, err error) {
	files := activation.Files(true)
	if len(files) == 0 {
		return s, false, nil
	}
	defer func() {
		for _, f := range files {
			f.Close()
		}
		if err != nil {
			_ = s.Close() // the error says what to do; this one would not
		}
	}()
	for i, f := range files {
		if err := s.adopt(f); err != nil {
			return s, true, fmt.Errorf("socket %d of those that systemd passed, named %q: %w", i+1, f.Name(), err)
		}
	}
	switch {
	case len(s.WebSocket) == 0:
		return s, true, missing(nameWebSocket)
	case len(s.Publish) == 0:
		return s, true, missing(namePublish)
	}
	return s, true, nil
}

func missing(name string) error {
	return fmt.Errorf("systemd passed no socket named %q: a socket unit needs FileDescriptorName=%s, and the service needs that unit in Sockets=", name, name)
}

func doubled(name string) error {
	return fmt.Errorf("there is another one of that name, and %s has to be one socket: write one Listen line and FileDescriptorName=%s in one socket unit only", name, name)
}

func (s *Sockets) adopt(f *os.File) error {
	if isStored(f.Name()) {
		return s.keep(f)
	}
	k, address, err := examine(f)
	switch known := slices.Contains([]string{nameWebSocket, namePublish, nameDatagrams}, f.Name()); {
	case err != nil && !known:
		return s.keep(f)
	case err != nil:
		return fmt.Errorf("it is no socket: %w", err)
	}
	switch f.Name() {
	case nameWebSocket:
		internet := k.domain == unix.AF_INET || k.domain == unix.AF_INET6
		if !k.listens || k.kind != unix.SOCK_STREAM || !internet && k.domain != unix.AF_UNIX {
			return fmt.Errorf("it is %s, but has to be a listening TCP or Unix-domain stream socket: ListenStream= with Accept=no", k)
		}
		if k.protocol == unix.IPPROTO_MPTCP {
			return errors.New("it is a Multipath TCP socket, of which the kernel does not count what was sent: leave out SocketProtocol=mptcp")
		}
		file, err := duplicate(f, address)
		if err != nil {
			return err
		}
		s.WebSocket = append(s.WebSocket, file)
	case namePublish:
		if k.domain != unix.AF_UNIX || k.kind != unix.SOCK_STREAM || !k.listens {
			return fmt.Errorf("it is %s, but has to be a listening Unix-domain stream socket: ListenStream= with a path, and Accept=no", k)
		}
		if len(s.Publish) > 0 {
			return doubled(namePublish)
		}
		ln, err := net.FileListener(f)
		if err != nil {
			return err
		}
		s.Publish = append(s.Publish, ln.(*net.UnixListener))
	case nameDatagrams:
		if k.domain != unix.AF_UNIX || k.kind != unix.SOCK_DGRAM {
			return fmt.Errorf("it is %s, but has to be a Unix-domain datagram socket: ListenDatagram= with a path", k)
		}
		if address == "" || address == "@" { // an unnamed socket, as package unix shows it
			return errors.New("it has no address, so nobody can send to it: ListenDatagram= with a path")
		}
		if len(s.Datagrams) > 0 {
			return doubled(nameDatagrams)
		}
		conn, err := net.FilePacketConn(f)
		if err != nil {
			return err
		}
		s.Datagrams = append(s.Datagrams, conn.(*net.UnixConn))
	default:
		if !k.listens && (k.kind != unix.SOCK_DGRAM || address == "" || address == "@") {
			return s.keep(f) // no socket unit makes such a socket: it was stored
		}
		return fmt.Errorf("unknown name: FileDescriptorName= is %q, %q or %q", nameWebSocket, namePublish, nameDatagrams)
	}
	return nil
}

// keep takes a descriptor from the fd store.
func (s *Sockets) keep(f *os.File) error {
	file, err := duplicate(f, f.Name())
	if err == nil {
		s.stored = append(s.stored, file)
	}
	return err
}

// kind of a socket.
type kind struct {
	domain, kind, protocol int
	listens                bool
}

// String is a noun phrase with its article.
func (k kind) String() string {
	domain, ok := map[int]string{unix.AF_UNIX: "a Unix-domain", unix.AF_INET: "an IPv4", unix.AF_INET6: "an IPv6"}[k.domain]
	if !ok {
		domain = fmt.Sprintf("an address family %d", k.domain)
	}
	kind, ok := map[int]string{unix.SOCK_STREAM: "stream", unix.SOCK_DGRAM: "datagram", unix.SOCK_SEQPACKET: "sequential-packet"}[k.kind]
	if !ok {
		kind = fmt.Sprintf("type %d", k.kind)
	}
	phrase := domain + " " + kind + " socket"
	if k.kind == unix.SOCK_STREAM || k.kind == unix.SOCK_SEQPACKET {
		if k.listens {
			return phrase + " that listens"
		}
		return phrase + " that does not listen"
	}
	return phrase
}

// examine asks the kernel what a descriptor is, and for the address it is bound to.
func examine(f syscall.Conn) (k kind, address string, err error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return k, "", err
	}
	option := func(fd uintptr, name int) int {
		v, e := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, name)
		err = errors.Join(err, e)
		return v
	}
	cerr := raw.Control(func(fd uintptr) {
		if k.kind = option(fd, unix.SO_TYPE); err != nil {
			return // no socket: one error says it
		}
		k.domain = option(fd, unix.SO_DOMAIN)
		k.protocol = option(fd, unix.SO_PROTOCOL)
		k.listens = option(fd, unix.SO_ACCEPTCONN) == 1
		sa, e := unix.Getsockname(int(fd))
		err = errors.Join(err, e)
		switch sa := sa.(type) {
		case *unix.SockaddrInet4:
			address = (&net.TCPAddr{IP: sa.Addr[:], Port: sa.Port}).String()
		case *unix.SockaddrInet6:
			address = (&net.TCPAddr{IP: sa.Addr[:], Port: sa.Port}).String()
		case *unix.SockaddrUnix:
			address = sa.Name
		}
	})
	return k, address, errors.Join(err, cerr)
}

// duplicate makes a file with a name of its own, for Go's poller: os.NewFile takes it for pollable when it is
// non-blocking. That is a property of the description that the duplicates share: systemd clears it without NonBlocking=.
func duplicate(f syscall.Conn, name string) (*os.File, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	var file *os.File
	cerr := raw.Control(func(fd uintptr) {
		var d int
		if d, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0); err != nil {
			return
		}
		if err = unix.SetNonblock(d, true); err != nil {
			unix.Close(d)
			return
		}
		file = os.NewFile(uintptr(d), name)
	})
	return file, errors.Join(err, cerr)
}

// Bind makes the sockets that the configuration names, for a daemon that is started by hand. An error names the address,
// and none of the sockets is left then.
func Bind(c *Config) (s Sockets, err error) {
	defer func() {
		if err != nil {
			_ = s.Close() // the error says what to do; this one would not
		}
	}()
	for _, address := range c.WebSocket.Listen {
		if err := s.bindWebSocket(address, c.WebSocket.Mode); err != nil {
			return s, err
		}
	}
	for _, path := range c.Publish.Listen {
		ln, err := s.listenUnix(path, c.Publish.Mode)
		if err != nil {
			return s, err
		}
		s.Publish = append(s.Publish, ln)
	}
	for _, path := range c.Publish.Datagrams {
		err := s.bound(path, c.Publish.Mode, "unixgram", func() error {
			conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
			if err == nil {
				s.Datagrams = append(s.Datagrams, conn)
			}
			return err
		})
		if err != nil {
			return s, err
		}
	}
	return s, nil
}

func (s *Sockets) bindWebSocket(address string, mode Mode) error {
	var ln interface {
		net.Listener
		syscall.Conn
	}
	if strings.Contains(address, "/") {
		u, err := s.listenUnix(address, mode)
		if err != nil {
			return err
		}
		ln = u
	} else {
		var config net.ListenConfig
		config.SetMultipathTCP(false) // its connections do not tell how much was sent
		l, err := config.Listen(context.Background(), "tcp", address)
		if err != nil {
			return bindError(address, err)
		}
		ln = l.(*net.TCPListener)
	}
	defer ln.Close()
	file, err := duplicate(ln, ln.Addr().String())
	if err != nil {
		return bindError(address, err)
	}
	s.WebSocket = append(s.WebSocket, file)
	return nil
}

func (s *Sockets) listenUnix(path string, mode Mode) (ln *net.UnixListener, err error) {
	err = s.bound(path, mode, "unix", func() error {
		if ln, err = net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"}); err != nil {
			return err
		}
		ln.SetUnlinkOnClose(false) // Close of Sockets does
		return nil
	})
	return ln, err
}

// umask is the process's: nothing else makes files while it is changed.
var umask sync.Mutex

// bound binds a Unix-domain socket so that it has its mode from the beginning. A socket that an earlier process has left
// behind is replaced; one that a process still has, and a file that is no socket, are not.
func (s *Sockets) bound(path string, mode Mode, network string, bind func() error) error {
	umask.Lock()
	defer umask.Unlock()
	old := unix.Umask(int(0o777 &^ mode))
	defer unix.Umask(old)
	err := bind()
	if errors.Is(err, unix.EADDRINUSE) {
		switch info, e := os.Lstat(path); {
		case e == nil && info.Mode().Type() != os.ModeSocket:
			return &bindFailure{path, unix.EADDRINUSE, "a file that is not a socket is there: remove it, or choose another path"}
		case e == nil && abandoned(network, path) && os.Remove(path) == nil:
			err = bind()
		}
	}
	if err != nil {
		return bindError(path, err)
	}
	s.paths = append(s.paths, path)
	return nil
}

// abandoned tells whether no process has the socket any more: the kernel refuses only then. One whose backlog is full, or of
// another type, or that we may not connect to, is in use.
func abandoned(network, path string) bool {
	conn, err := net.Dial(network, path)
	if err == nil {
		conn.Close()
	}
	return errors.Is(err, unix.ECONNREFUSED)
}

// bindFailure is an address that cannot be bound: a line with the cause, and one with what to do.
type bindFailure struct {
	address string
	cause   error
	hint    string // may be empty
}

func (e *bindFailure) Error() string {
	text := fmt.Sprintf("cannot listen on %s: %s", e.address, e.cause)
	if e.hint != "" {
		text += "\n" + e.hint
	}
	return text
}

func (e *bindFailure) Unwrap() error { return e.cause }

// bindError finds out what to do about an error of package net.
func bindError(address string, err error) error {
	e := &bindFailure{address: address, cause: err}
	var op *net.OpError
	if errors.As(err, &op) {
		e.cause = op.Err
	}
	var sys *os.SyscallError
	if errors.As(err, &sys) {
		e.cause = sys.Err
	}
	var unknown *net.DNSError
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		e.hint = "another process listens there, perhaps another wscastd: stop it, or choose another address"
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		e.hint = "choose an address that this user may bind, with --websocket or --publish"
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		e.hint = "its directory is not there: make it, or choose another path, with --websocket or --publish"
	case errors.Is(err, unix.EADDRNOTAVAIL), errors.As(err, &unknown):
		e.hint = "this machine does not have that address"
	}
	return e
}

// Close closes the sockets and removes the paths of those that were bound here.
func (s *Sockets) Close() error {
	var errs []error
	for _, f := range s.WebSocket {
		errs = append(errs, f.Close())
	}
	for _, l := range s.Publish {
		errs = append(errs, l.Close())
	}
	for _, c := range s.Datagrams {
		errs = append(errs, c.Close())
	}
	for _, path := range s.paths {
		errs = append(errs, os.Remove(path))
	}
	for _, f := range s.stored {
		errs = append(errs, f.Close())
	}
	*s = Sockets{}
	return errors.Join(slices.DeleteFunc(errs, func(err error) bool {
		return errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrNotExist) // done already, by whomever
	})...)
}

// Addresses are where WebSocket clients and publishers connect: host:port, or a path.
func (s *Sockets) Addresses() (websocket, publish []string) {
	for _, f := range s.WebSocket {
		websocket = append(websocket, f.Name())
	}
	for _, l := range s.Publish {
		publish = append(publish, l.Addr().String())
	}
	return websocket, publish
}

// Welcome is what a person who has started the daemon in a terminal wants to know: where the demo page is, if it is served
// over TCP, and how to publish. tool is the command wscast.
func (s *Sockets) Welcome(demo bool, tool string) string {
	websocket, publish := s.Addresses()
	text := ""
	for _, address := range websocket {
		if host, port, err := net.SplitHostPort(address); demo && err == nil && text == "" {
			if ip := net.ParseIP(host); ip.IsUnspecified() { // not what a browser connects to
				host = "localhost"
			}
			text = fmt.Sprintf("demo page:  http://%s/\n", net.JoinHostPort(host, port))
		}
	}
	for _, path := range publish[:min(1, len(publish))] {
		text += fmt.Sprintf("publish:    %s publish --socket %s default hello\n", tool, path)
	}
	return text
}
