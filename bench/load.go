package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A plan is what one load process does to one server.
type plan struct {
	Address  string // host:port of the WebSocket listener; empty: publish only
	Publish  string // path of the publish socket
	Protocol protocol
	Servers  []int // process ids, whose CPU time and memory are read and added up

	Clients  int
	Reading  reading       // of all clients
	Channels int           // of them, over which the clients are dealt in turn; 0 is 1
	Windows  []int         // numbers of messages in flight, one phase each
	Rate     int           // messages a second in the latency phase; 0: there is none
	Idle     bool          // read memory before and after the clients have come
	Churn    bool          // a phase in which others come and go
	Slow     int           // clients besides, that never read (slow.go)
	Fill     bool          // publish for those, there or not, and read the whole memory after the phases
	Alone    []alone       // phases in which publishers are measured, with one client or none
	Survive  bool          // see survive.go
	Phase    time.Duration // how long each phase lasts
	Settle   time.Duration // how long clients are idle before memory is read
	Stall    time.Duration // how long nothing may come while something is due
}

const (
	// atOnce is how many clients connect at the same time.
	atOnce = 128
	// chunk is how many messages are written before what comes is taken: a server that waits
	// for its answers to be read would not read on. nchan stands still for good with many more
	// requests in flight than windows has.
	chunk = 32
)

// A load is the state of one load process: all clients and the publisher, on one thread.
type load struct {
	plan
	to        netip.AddrPort
	epoll     int
	events    []unix.EpollEvent
	buffer    []byte
	clients   []*client
	slow      []*client
	byFD      []*client
	open      int
	publisher *publisher
	figures   figures
	churning  bool                 // clients that become open leave at once
	comers    map[*client]struct{} // clients that have not become open while that is so
	churned   int                  // how many have

	// The phase under way.
	next       uint64  // number of the next message to publish, the same on every channel
	first      uint64  // number of the first message of this phase
	received   []int32 // by number of this phase: clients that have their channel's message of it
	complete   int     // numbers of this phase that all clients have
	deliveries int
	latency    *latency // only in the latency phase
}

// latency collects the time from publish to each client, in nanoseconds.
type latency struct {
	now     int64   // receive stamp of the read that is being taken apart
	samples []int64 // every delivery
	last    []int64 // by number: the last client
}

// serveLoad is the load process: a plan in, figures out. With Survive it goes on from there
// (survive.go).
func serveLoad(in *os.File, out io.Writer) error {
	line, err := readLine(in)
	if err != nil {
		return fmt.Errorf("plan: %w", err)
	}
	var p plan
	if err := json.Unmarshal(line, &p); err != nil {
		return fmt.Errorf("plan: %w", err)
	}
	f, err := run(p, &control{in, out})
	if err != nil || p.Survive {
		return err
	}
	return json.NewEncoder(out).Encode(f)
}

// readLine reads a line and not a byte more: epoll watches what comes behind it.
func readLine(r io.Reader) (line []byte, err error) {
	b := make([]byte, 1)
	for {
		if _, err := io.ReadFull(r, b); err != nil {
			return nil, err
		}
		if b[0] == '\n' {
			return line, nil
		}
		line = append(line, b[0])
	}
}

// run carries out a plan. The control is for a plan with Survive.
func run(p plan, control *control) (figures, error) {
	// The loop's raw calls assume its own thread, and a collection in the middle of a phase
	// would take the server's core: what a plan allocates is small and bounded.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer debug.SetGCPercent(debug.SetGCPercent(-1))

	p.Channels = max(1, p.Channels)
	l := &load{plan: p, figures: make(figures), next: 1, first: 1, events: make([]unix.EpollEvent, 512), buffer: make([]byte, 64<<10)}
	for _, a := range p.Alone {
		if err := l.publishAlone(a); err != nil {
			return nil, fmt.Errorf("%s: %w", a, err)
		}
	}
	if p.Clients == 0 {
		return l.figures, nil
	}
	var err error
	if l.to, err = netip.ParseAddrPort(p.Address); err != nil {
		return nil, err
	}
	if l.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	defer unix.Close(l.epoll)
	defer func() {
		for _, c := range append(l.clients, l.slow...) {
			c.close()
		}
	}()
	if p.Survive {
		return nil, l.survive(control)
	}
	if l.publisher, err = dialPublisher(p.Publish, p.Protocol, p.Stall); err != nil {
		return nil, err
	}
	defer l.publisher.close()
	l.publisher.clients, l.publisher.channels = p.Clients, p.Channels
	if p.Protocol == post || p.Fill {
		l.publisher.clients = -1 // nchan's workers learn of each other's clients a while later; slow ones are closed
	}
	if p.Protocol.answers() {
		if err := l.watch(l.publisher.fd, unix.EPOLL_CTL_ADD, unix.EPOLLIN); err != nil {
			return nil, err
		}
	}

	if err := l.connectAll(); err != nil {
		return nil, err
	}
	if p.Fill {
		if err := l.connectSlow(); err != nil {
			return nil, err
		}
		if err := l.fill(firstBallast); err != nil {
			return nil, err
		}
	}
	if p.Protocol == post {
		if err := l.idle(joining); err != nil {
			return nil, err
		}
	}
	before, err := resent()
	if err != nil {
		return nil, err
	}
	for _, w := range p.Windows {
		if err := l.window(w); err != nil {
			return nil, fmt.Errorf("with %d in flight: %w", w, err)
		}
	}
	if p.Rate > 0 {
		if err := l.paced(); err != nil {
			return nil, fmt.Errorf("at %d messages/s: %w", p.Rate, err)
		}
	}
	after, err := resent()
	if err != nil {
		return nil, err
	}
	l.figures[resentSegments] = after - before
	if p.Fill {
		if err := l.weigh(); err != nil {
			return nil, err
		}
	}
	if p.Churn {
		if err := l.churn(); err != nil {
			return nil, fmt.Errorf("with clients coming and going: %w", err)
		}
	}
	return l.figures, nil
}

// connectAll connects the clients: the first few to warm the server up, and from there on
// CPU time and memory are taken.
func (l *load) connectAll() error {
	warm := min(100, l.Clients/10)
	if err := l.connect(warm); err != nil {
		return err
	}
	pss, rss, err := l.settled()
	if err != nil {
		return err
	}
	used, err := cpuTime(l.Servers...)
	if err != nil {
		return err
	}
	start := time.Now()
	if err := l.connect(l.Clients); err != nil {
		return err
	}
	taken := time.Since(start)
	if err := l.idle(afterwards); err != nil {
		return err
	}
	usedAfter, err := cpuTime(l.Servers...)
	if err != nil {
		return err
	}
	pssAfter, rssAfter, err := l.settled()
	if err != nil {
		return err
	}
	n := float64(l.Clients - warm)
	l.figures[handshakeCPU] = micros(usedAfter-used) / n
	l.figures[handshakeRate] = n / taken.Seconds()
	if l.Idle {
		l.figures[memoryPSS] = (pssAfter - pss) / n
		l.figures[memoryRSS] = (rssAfter - rss) / n
	}
	return nil
}

// joining is how long nchan's workers have for telling each other of their clients.
const joining = 300 * time.Millisecond

// afterwards is for what a server has still to do for clients that have come or gone.
const afterwards = 20 * time.Millisecond

// settled returns the servers' memory once clients have been idle, where that is asked for.
func (l *load) settled() (pss, rss float64, err error) {
	if !l.Idle {
		return 0, 0, nil
	}
	if err := l.idle(l.Settle); err != nil {
		return 0, 0, err
	}
	return memory(l.Servers...)
}

// churn has clients come and go for a phase, beside those that are there: each leaves with a
// RST as soon as it is answered, and another one comes. A RST leaves nothing behind at either
// end, where a FIN would leave a port in TIME_WAIT, and a round would find none free.
func (l *load) churn() error {
	used, err := cpuTime(l.Servers...)
	if err != nil {
		return err
	}
	l.churning, l.comers = true, make(map[*client]struct{}, atOnce)
	start := time.Now()
	for time.Since(start) < l.Phase || l.churned == 0 {
		for len(l.comers) < atOnce {
			c, err := l.comer(l.Clients + l.churned + len(l.comers))
			if err != nil {
				return err
			}
			l.comers[c] = struct{}{}
		}
		some, err := l.turn(l.Stall)
		if err != nil {
			return err
		}
		if !some {
			return fmt.Errorf("%d clients have come and gone, and nothing has come for %s", l.churned, l.Stall)
		}
	}
	n, taken := float64(l.churned), time.Since(start)
	if err := l.idle(afterwards); err != nil {
		return err
	}
	usedAfter, err := cpuTime(l.Servers...)
	if err != nil {
		return err
	}
	for c := range l.comers {
		c.close()
	}
	l.figures[churnRate] = n / taken.Seconds()
	l.figures[churnCPU] = micros(usedAfter-used) / n
	return nil
}

// connect brings the number of clients to n, and returns when all are open.
func (l *load) connect(n int) error {
	for l.open < n {
		for len(l.clients) < n && len(l.clients)-l.open < atOnce {
			c, err := l.comer(len(l.clients))
			if err != nil {
				return err
			}
			l.clients = append(l.clients, c)
		}
		some, err := l.turn(l.Stall)
		if err != nil {
			return err
		}
		if !some {
			return fmt.Errorf("%d of %d clients are connected, and nothing has come for %s", l.open, n, l.Stall)
		}
	}
	return nil
}

// comer starts to connect client number i, which is due what is published next.
func (l *load) comer(i int) (*client, error) {
	on := i % l.Channels
	c, err := connect(i, l.Reading.target(clientPath(on)), l.to)
	if err != nil {
		return nil, fmt.Errorf("client %d: %w", i, err)
	}
	c.order, c.reading = newOrder(uint32(on), 1, l.next), l.Reading
	for len(l.byFD) <= c.fd {
		l.byFD = append(l.byFD, nil)
	}
	l.byFD[c.fd] = c
	return c, l.watch(c.fd, unix.EPOLL_CTL_ADD, unix.EPOLLOUT)
}

func (l *load) watch(fd, operation int, events uint32) error {
	err := unix.EpollCtl(l.epoll, operation, fd, &unix.EpollEvent{Events: events, Fd: int32(fd)})
	return os.NewSyscallError("epoll_ctl", err)
}

// idle lets the server be, and answers its pings.
func (l *load) idle(d time.Duration) error {
	for end := time.Now().Add(d); ; {
		left := time.Until(end)
		if left <= 0 {
			return nil
		}
		if _, err := l.turn(left); err != nil {
			return err
		}
	}
}

// turn waits for something to come, at most for d, and takes it. It reports whether anything
// came.
func (l *load) turn(d time.Duration) (bool, error) {
	// A millisecond more, so that what is left of a wait is never rounded down to none. Less
	// than that is no wait.
	n, err := unix.EpollWait(l.epoll, l.events, int(d.Milliseconds())+1)
	if err == unix.EINTR {
		return true, nil
	}
	if err != nil {
		return false, os.NewSyscallError("epoll_wait", err)
	}
	for _, e := range l.events[:n] {
		if l.publisher != nil && int(e.Fd) == l.publisher.fd {
			if err := l.publisher.read(); err != nil {
				return false, err
			}
			continue
		}
		c := l.byFD[e.Fd]
		if c.stage == connecting {
			err = c.ask(l.Address)
			if err == nil {
				err = l.watch(c.fd, unix.EPOLL_CTL_MOD, unix.EPOLLIN)
			}
		} else {
			err = l.read(c)
		}
		if err != nil {
			return false, fmt.Errorf("client %d: %w", c.number, err)
		}
	}
	return n > 0, nil
}

// read reads once from a client.
func (l *load) read(c *client) error {
	var n int
	var err error
	if l.latency != nil {
		n, l.latency.now, err = receiveStamped(c.fd, l.buffer)
	} else {
		n, err = receive(c.fd, l.buffer)
	}
	switch {
	case err == unix.EAGAIN:
		return nil
	case err != nil:
		return os.NewSyscallError("recv", err)
	case n == 0:
		return errors.New("the server closed the connection without a close frame")
	}
	if c.stage == open {
		return c.take(l.buffer[:n], l.message)
	}
	err = c.take(l.buffer[:n], l.message)
	switch {
	case c.stage != open:
	case l.churning:
		c.close()
		delete(l.comers, c)
		l.churned++
	default:
		l.open++
	}
	return err
}

// message checks and counts one message that a client got.
func (l *load) message(c *client, payload []byte) error {
	m, err := parseMessage(payload)
	if err != nil {
		return err
	}
	if err := c.order.take(m); err != nil {
		return err
	}
	if m.sequence >= l.next {
		return fmt.Errorf("message %d came and was never published", m.sequence)
	}
	at := m.sequence - l.first
	l.deliveries++
	l.received[at]++
	// Clients get messages in order, so numbers become complete in order.
	if int(l.received[at]) == len(l.clients) {
		l.complete++
	}
	if l.latency != nil {
		took := l.latency.now - m.stamp
		l.latency.samples = append(l.latency.samples, took)
		l.latency.last[at] = max(l.latency.last[at], took)
	}
	return nil
}

// begin begins a phase.
func (l *load) begin() {
	l.first = l.next
	l.received = l.received[:0]
	l.complete, l.deliveries = 0, 0
}

// await turns until every message of the phase has come to every client, and every answer to
// the publisher.
func (l *load) await() error {
	for l.complete < len(l.received) || l.publisher.unanswered() > 0 {
		if err := l.progress(); err != nil {
			return err
		}
	}
	return nil
}

// progress takes what comes, and fails when nothing does.
func (l *load) progress() error {
	some, err := l.turn(l.Stall)
	if err != nil || some {
		return err
	}
	// The one that is furthest behind is the one to name: others may be waiting for it.
	behind := l.clients[0]
	for _, c := range l.clients {
		if c.due[0] < behind.due[0] {
			behind = c
		}
	}
	if due := behind.due[0]; due < l.next {
		return fmt.Errorf("client %d: message %d of %d has not come for %s: lost", behind.number, due, l.next-1, l.Stall)
	}
	return fmt.Errorf("all messages came, but answers to the publisher have been due for %s", l.Stall)
}

// pass writes what is to be published, and takes what there is meanwhile: of nchan, all answers.
func (l *load) pass() error {
	if err := l.publisher.flush(); err != nil {
		return err
	}
	for l.Protocol == post && l.publisher.unanswered() > 0 {
		if err := l.progress(); err != nil {
			return err
		}
	}
	for {
		if some, err := l.turn(-time.Millisecond); err != nil || !some {
			return err
		}
	}
}

// window publishes with w messages in flight for a phase: the next is published when all
// clients have the one w before it. With several channels a message is one on each of them.
func (l *load) window(w int) error {
	l.begin()
	used, err := cpuTime(l.Servers...)
	if err != nil {
		return err
	}
	start := time.Now()
	for time.Since(start) < l.Phase {
		for len(l.received)-l.complete < w {
			number := l.next
			l.received = append(l.received, 0)
			l.next++
			for on := range l.Channels {
				l.publisher.add(on, message{source: uint32(on), sequence: number})
				if on%chunk == chunk-1 {
					if err := l.pass(); err != nil {
						return err
					}
				}
			}
		}
		if err := l.publisher.flush(); err != nil {
			return err
		}
		before := l.complete
		for l.complete == before {
			if err := l.progress(); err != nil {
				return err
			}
		}
	}
	if err := l.await(); err != nil {
		return err
	}
	taken := time.Since(start)
	usedAfter, err := cpuTime(l.Servers...)
	if err != nil {
		return err
	}
	l.figures[deliveryCPU(w)] = micros(usedAfter-used) / float64(l.deliveries)
	l.figures[deliveryRate(w)] = float64(l.deliveries) / taken.Seconds()
	return nil
}

// paced publishes at a fixed rate for a phase, from a thread of its own, and takes the
// latency of every delivery.
func (l *load) paced() error {
	for _, c := range l.clients {
		if err := stamped(c.fd); err != nil {
			return err
		}
	}
	if err := l.awaitStamps(); err != nil {
		return err
	}
	n := max(1, int(l.Phase.Seconds()*float64(l.Rate)))
	l.begin()
	l.next += uint64(n)
	l.received = append(l.received, make([]int32, n)...)
	l.latency = &latency{samples: make([]int64, 0, n*len(l.clients)), last: make([]int64, n)}
	sent := l.publisher.sent + uint64(n)
	if l.Fill {
		sent += uint64(n * ballasts)
	}

	published := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		start := time.Now()
		for i := range n {
			time.Sleep(time.Until(start.Add(time.Duration(i) * time.Second / time.Duration(l.Rate))))
			if l.Fill {
				l.publisher.fill(ballasts)
			}
			l.publisher.add(0, message{sequence: l.first + uint64(i), stamp: time.Now().UnixNano()})
			if err := l.publisher.flush(); err != nil {
				published <- err
				return
			}
		}
		published <- nil
	}()
	var err error
	for err == nil && (l.complete < n || l.Protocol.answers() && l.publisher.answered < sent) {
		err = l.progress()
	}
	if err != nil {
		// The server is of no use any more, and the publisher may be waiting for it.
		_ = unix.Shutdown(l.publisher.fd, unix.SHUT_RDWR)
	}
	if publishing := <-published; err == nil {
		err = publishing
	}
	if err != nil {
		return err
	}
	slices.Sort(l.latency.samples)
	slices.Sort(l.latency.last)
	l.figures[latencyP50] = millis(quantile(l.latency.samples, 0.50))
	l.figures[latencyP99] = millis(quantile(l.latency.samples, 0.99))
	l.figures[latencyMax] = millis(quantile(l.latency.samples, 1))
	l.figures[latencyLast] = millis(quantile(l.latency.last, 0.50))
	l.latency = nil
	return nil
}

// receive is recv(2), raw: the scheduler's wrapper around a system call would cost the load
// process as much as the call itself, and the machine has few cores. It cannot block.
func receive(fd int, b []byte) (int, error) {
	n, _, e := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), unix.MSG_DONTWAIT, 0, 0)
	if e != 0 {
		return 0, e
	}
	return int(n), nil
}

// stamped asks for receive stamps.
func stamped(fd int) error {
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1); err != nil {
		return fmt.Errorf("SO_TIMESTAMPNS: %w", err)
	}
	return nil
}

// awaitStamps returns when there are stamps. The kernel turns them on in the background, for
// all sockets at once (net_enable_timestamp), so a connection of our own tells.
func (l *load) awaitStamps() error {
	listener, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(listener)
	at := &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}
	err = errors.Join(unix.Bind(listener, at), unix.Listen(listener, 1))
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	bound, err := unix.Getsockname(listener)
	if err != nil {
		return os.NewSyscallError("getsockname", err)
	}
	c, err := connect(0, "", netip.AddrPortFrom(netip.AddrFrom4(at.Addr), uint16(bound.(*unix.SockaddrInet4).Port)))
	if err != nil {
		return err
	}
	defer c.close()
	accepted, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("accept", err)
	}
	defer unix.Close(accepted)
	if err := stamped(accepted); err != nil {
		return err
	}
	for end := time.Now().Add(l.Stall); time.Now().Before(end); {
		if err := c.send([]byte{0}); err != nil {
			return err
		}
		if err := l.idle(time.Millisecond); err != nil {
			return err
		}
		if _, _, err := receiveStamped(accepted, l.buffer); err != errNoStamp && err != unix.EAGAIN {
			return os.NewSyscallError("recvmsg", err)
		}
	}
	return fmt.Errorf("no receive stamps for %s", l.Stall)
}

var errNoStamp = errors.New("no receive stamp came with the data")

// receiveStamped is recvmsg(2), raw, with the time at which the kernel got the last of the
// bytes, in nanoseconds since 1970.
func receiveStamped(fd int, b []byte) (n int, stamp int64, err error) {
	var control struct {
		unix.Cmsghdr
		unix.Timespec
		_ [32]byte
	}
	vector := unix.Iovec{Base: &b[0]}
	vector.SetLen(len(b))
	header := unix.Msghdr{Iov: &vector, Control: (*byte)(unsafe.Pointer(&control))}
	header.SetIovlen(1)
	header.SetControllen(int(unsafe.Sizeof(control)))
	r, _, e := unix.RawSyscall(unix.SYS_RECVMSG, uintptr(fd), uintptr(unsafe.Pointer(&header)), unix.MSG_DONTWAIT)
	if e != 0 {
		return 0, 0, e
	}
	if r > 0 && (header.Controllen == 0 || control.Level != unix.SOL_SOCKET || control.Type != unix.SO_TIMESTAMPNS) {
		return int(r), 0, errNoStamp
	}
	return int(r), control.Nano(), nil
}

func micros(d time.Duration) float64 { return float64(d) / 1e3 }

func millis(ns int64) float64 { return float64(ns) / 1e6 }

// quantile returns the value below or at which a part q of the sorted samples lies.
func quantile(sorted []int64, q float64) int64 {
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}
