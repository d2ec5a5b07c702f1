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
	Server   int // process id, whose CPU time and memory are read

	Clients int
	Windows []int         // numbers of messages in flight, one phase each
	Rate    int           // messages a second in the latency phase
	Phase   time.Duration // how long each phase publishes
	Settle  time.Duration // how long clients are idle before memory is read
	Stall   time.Duration // how long nothing may come while something is due
}

const (
	// atOnce is how many clients connect at the same time.
	atOnce = 128
	// pipeline and batch: a publisher that is measured alone has up to pipeline messages
	// unanswered, and writes batch of them at a time.
	pipeline, batch = 256, 64
)

// A load is the state of one load process: all clients and the publisher, on one thread.
type load struct {
	plan
	to        netip.AddrPort
	epoll     int
	events    []unix.EpollEvent
	buffer    []byte
	clients   []*client
	byFD      []*client
	open      int
	publisher *publisher
	figures   figures

	// The phase under way.
	next       uint64  // number of the next message to publish
	first      uint64  // number of the first message of this phase
	received   []int32 // by message of this phase: clients that have it
	complete   int     // messages of this phase that all clients have
	deliveries int
	latency    *latency // only in the latency phase
}

// latency collects the time from publish to each client, in nanoseconds.
type latency struct {
	now     int64   // receive stamp of the read that is being taken apart
	samples []int64 // every delivery
	last    []int64 // by message: the last client
}

// serveLoad is the load process: a plan in, figures out.
func serveLoad(in io.Reader, out io.Writer) error {
	var p plan
	if err := json.NewDecoder(in).Decode(&p); err != nil {
		return fmt.Errorf("plan: %w", err)
	}
	f, err := run(p)
	if err != nil {
		return err
	}
	return json.NewEncoder(out).Encode(f)
}

// run carries out a plan.
func run(p plan) (figures, error) {
	// The loop's raw calls assume its own thread, and a collection in the middle of a phase
	// would take the server's core: what a plan allocates is small and bounded.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer debug.SetGCPercent(debug.SetGCPercent(-1))

	l := &load{plan: p, figures: make(figures), next: 1, first: 1, events: make([]unix.EpollEvent, 512), buffer: make([]byte, 64<<10)}
	var err error
	if l.publisher, err = dialPublisher(p.Publish, p.Protocol, p.Stall); err != nil {
		return nil, err
	}
	defer l.publisher.close()
	if p.Address == "" {
		return l.figures, l.publishAlone()
	}
	if l.to, err = netip.ParseAddrPort(p.Address); err != nil {
		return nil, err
	}
	if l.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	defer unix.Close(l.epoll)
	defer func() {
		for _, c := range l.clients {
			c.close()
		}
	}()
	if p.Protocol == resp {
		if err := l.watch(l.publisher.fd, unix.EPOLL_CTL_ADD, unix.EPOLLIN); err != nil {
			return nil, err
		}
	}

	if err := l.connectAll(); err != nil {
		return nil, err
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
	return l.figures, nil
}

// connectAll connects the clients: the first few to warm the server up, and from there on
// CPU time and memory are taken.
func (l *load) connectAll() error {
	warm := min(100, l.Clients/10)
	if err := l.connect(warm); err != nil {
		return err
	}
	if err := l.idle(l.Settle); err != nil {
		return err
	}
	pss, rss, err := memory(l.Server)
	if err != nil {
		return err
	}
	used, err := cpuTime(l.Server)
	if err != nil {
		return err
	}
	start := time.Now()
	if err := l.connect(l.Clients); err != nil {
		return err
	}
	taken := time.Since(start)
	// What the server has still to do for them, a short while after the last answer.
	if err := l.idle(20 * time.Millisecond); err != nil {
		return err
	}
	usedAfter, err := cpuTime(l.Server)
	if err != nil {
		return err
	}
	if err := l.idle(l.Settle); err != nil {
		return err
	}
	pssAfter, rssAfter, err := memory(l.Server)
	if err != nil {
		return err
	}
	n := float64(l.Clients - warm)
	l.figures[handshakeCPU] = micros(usedAfter-used) / n
	l.figures[handshakeRate] = n / taken.Seconds()
	l.figures[memoryPSS] = (pssAfter - pss) / n
	l.figures[memoryRSS] = (rssAfter - rss) / n
	return nil
}

// connect brings the number of clients to n, and returns when all are open.
func (l *load) connect(n int) error {
	for l.open < n {
		for len(l.clients) < n && len(l.clients)-l.open < atOnce {
			c, err := connect(len(l.clients), l.to)
			if err != nil {
				return fmt.Errorf("client %d: %w", len(l.clients), err)
			}
			c.due = l.next
			l.clients = append(l.clients, c)
			for len(l.byFD) <= c.fd {
				l.byFD = append(l.byFD, nil)
			}
			l.byFD[c.fd] = c
			if err := l.watch(c.fd, unix.EPOLL_CTL_ADD, unix.EPOLLOUT); err != nil {
				return err
			}
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
	// A millisecond more, so that what is left of a wait is never rounded down to none.
	n, err := unix.EpollWait(l.epoll, l.events, int(d.Milliseconds())+1)
	if err == unix.EINTR {
		return true, nil
	}
	if err != nil {
		return false, os.NewSyscallError("epoll_wait", err)
	}
	for _, e := range l.events[:n] {
		if int(e.Fd) == l.publisher.fd {
			if err := l.publisher.read(l.open); err != nil {
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
			return false, fmt.Errorf("client %d: %w", slices.Index(l.clients, c), err)
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
	if c.stage == open {
		l.open++
	}
	return err
}

// message checks and counts one message that a client got.
func (l *load) message(c *client, payload []byte) error {
	sequence, stamp, err := parseMessage(payload)
	if err != nil {
		return err
	}
	if err := c.order.take(sequence); err != nil {
		return err
	}
	if sequence >= l.next {
		return fmt.Errorf("message %d came and was never published", sequence)
	}
	at := sequence - l.first
	l.deliveries++
	l.received[at]++
	// Clients get messages in order, so messages become complete in order.
	if int(l.received[at]) == len(l.clients) {
		l.complete++
	}
	if l.latency != nil {
		took := l.latency.now - stamp
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
	behind := 0
	for i, c := range l.clients {
		if c.due < l.clients[behind].due {
			behind = i
		}
	}
	if due := l.clients[behind].due; due < l.next {
		return fmt.Errorf("client %d: message %d of %d has not come for %s: lost", behind, due, l.next-1, l.Stall)
	}
	return fmt.Errorf("all messages came, but answers to the publisher have been due for %s", l.Stall)
}

// window publishes with w messages in flight for a phase: the next is published when all
// clients have the one w before it.
func (l *load) window(w int) error {
	l.begin()
	used, err := cpuTime(l.Server)
	if err != nil {
		return err
	}
	start := time.Now()
	for time.Since(start) < l.Phase {
		for len(l.received)-l.complete < w {
			l.publisher.add(l.next, 0)
			l.received = append(l.received, 0)
			l.next++
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
	usedAfter, err := cpuTime(l.Server)
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
		if err := unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1); err != nil {
			return fmt.Errorf("SO_TIMESTAMPNS: %w", err)
		}
	}
	// The kernel turns its stamps on in the background (net_enable_timestamp).
	if err := l.idle(50 * time.Millisecond); err != nil {
		return err
	}
	n := max(1, int(l.Phase.Seconds()*float64(l.Rate)))
	l.begin()
	l.next += uint64(n)
	l.received = append(l.received, make([]int32, n)...)
	l.latency = &latency{samples: make([]int64, 0, n*len(l.clients)), last: make([]int64, n)}
	sent := l.publisher.sent + uint64(n)

	published := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		start := time.Now()
		for i := range n {
			time.Sleep(time.Until(start.Add(time.Duration(i) * time.Second / time.Duration(l.Rate))))
			l.publisher.add(l.first+uint64(i), time.Now().UnixNano())
			if err := l.publisher.flush(); err != nil {
				published <- err
				return
			}
		}
		published <- nil
	}()
	var err error
	for err == nil && (l.complete < n || l.Protocol == resp && l.publisher.answered < sent) {
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

// publishAlone publishes for a phase to a server without clients, pipelined.
func (l *load) publishAlone() error {
	used, err := cpuTime(l.Server)
	if err != nil {
		return err
	}
	start := time.Now()
	for time.Since(start) < l.Phase {
		for l.publisher.unanswered() <= pipeline-batch {
			for range batch {
				l.publisher.add(l.next, 0)
				l.next++
			}
			if err := l.publisher.flush(); err != nil {
				return err
			}
		}
		if err := l.publisher.read(0); err != nil {
			return err
		}
	}
	for l.publisher.unanswered() > 0 {
		if err := l.publisher.read(0); err != nil {
			return err
		}
	}
	taken := time.Since(start)
	usedAfter, err := cpuTime(l.Server)
	if err != nil {
		return err
	}
	l.figures[publishRate] = float64(l.publisher.answered) / taken.Seconds()
	l.figures[publishCPU] = micros(usedAfter-used) / float64(l.publisher.answered)
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
		return 0, 0, errors.New("no receive stamp came with the data")
	}
	return int(r), control.Nano(), nil
}

func micros(d time.Duration) float64 { return float64(d) / 1e3 }

func millis(ns int64) float64 { return float64(ns) / 1e6 }

// quantile returns the value below or at which a part q of the sorted samples lies.
func quantile(sorted []int64, q float64) int64 {
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}
