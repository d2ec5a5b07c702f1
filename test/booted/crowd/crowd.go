package crowd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"wscast/ipc"
	"wscast/test/harness"
)

const (
	// Channel is where everybody is.
	Channel = "crowd"
	// atOnce is how many handshakes are under way at the same time.
	atOnce = 128
	// mostErrors keeps a server that does everything wrong from filling the memory.
	mostErrors = 20
	// addresses is how many loopback addresses clients connect from: one has about 28,000 ports to one server (ip_local_port_range), and those of
	// connections that are over stay taken for a minute.
	addresses = 16
	// abnormal stands for the end of a connection without a close frame (RFC 6455, section 7.4.1).
	abnormal = 1006
)

// Crowd is the clients, the publishers, and what they have found out. Its methods are for the test's goroutine.
type Crowd struct {
	t      testing.TB
	to     unix.Sockaddr
	epoll  int
	wakeup int // an eventfd
	buffer []byte
	ended  sync.WaitGroup // the goroutines

	mu        sync.Mutex
	changed   chan struct{} // closed when something has happened; nil when nobody waits
	closing   bool
	byFD      map[int32]*client
	started   int // connections so far
	answering int // handshakes under way
	errs      []error

	stayers   []*client
	wanted    int // stayers
	tolerated map[int]bool
	closed    map[int]int // stayers that are gone, by close code
	ends      map[int][]end
	order     []turn
	complete  int // turns that every stayer has had
	judge     sequence
	talkers   []*client // with half a ping
	quiet     bool      // no pings

	passing   int // passers at a time
	mostStay  int // messages that one stays for
	passers   int // there now
	passed    Passed
	flow      Flow
	stopped   bool // publishers stop
	published uint64
	last      map[uint8]uint64 // acknowledged, by publisher
	publish   []*ipc.Client

	publishing int // publishers
}

// end of a stayer.
type end struct{ client, messages int }

// Passed is how passers have fared.
type Passed struct {
	Opened int // answered with 101
	Reset  int // the connection ended before a byte of an answer, and was not refused
}

// turn is a message in its place of the order.
type turn struct {
	id
	left int // stayers that have not got it
}

// stage is how far a client is: connecting -> asked -> open -> leaving.
type stage uint8

const (
	connecting stage = iota // connect(2) is under way
	asked                   // the request is sent, the answer is not here yet
	open
	leaving // a close frame or a FIN is sent
)

type client struct {
	number int
	fd     int
	stage  stage
	stays  bool
	rest   []byte // the front of an answer or of a frame of which the end has not come

	at           int    // of a stayer: its next turn
	half         []byte // of a ping that is not sent yet
	pinged       uint64
	ponged       uint64
	judge        sequence // of a passer
	stayFor, got int      // messages
}

// Gather connects clients that stay, and returns when all are open. The network is tcp, with host:port, or unix, with a path. The connections end with
// the test.
func Gather(t testing.TB, network, address string, clients int) *Crowd {
	t.Helper()
	c := &Crowd{
		t: t, epoll: -1, buffer: make([]byte, 1<<18), byFD: map[int32]*client{}, wanted: clients,
		tolerated: map[int]bool{}, closed: map[int]int{}, ends: map[int][]end{}, judge: sequence{}, last: map[uint8]uint64{}, quiet: true,
	}
	if network == "unix" {
		c.to = &unix.SockaddrUnix{Name: address}
	} else {
		a, err := netip.ParseAddrPort(address)
		if err != nil {
			t.Fatal(err)
		}
		c.to = &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
	}
	var err error
	if c.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		t.Fatal(os.NewSyscallError("epoll_create1", err))
	}
	if c.wakeup, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		unix.Close(c.epoll)
		t.Fatal(os.NewSyscallError("eventfd", err))
	}
	err = c.watch(c.wakeup, unix.EPOLL_CTL_ADD, unix.EPOLLIN)
	t.Cleanup(c.end)
	if err != nil {
		t.Fatal(err)
	}
	c.ended.Go(c.run)
	c.wake()
	c.await("the clients to be open", func() bool {
		return len(c.stayers) == clients && !slices.ContainsFunc(c.stayers, func(cl *client) bool { return cl.stage != open })
	})
	return c
}

// end closes everything at the end of the test.
func (c *Crowd) end() {
	c.mu.Lock()
	c.closing, c.stopped = true, true
	for _, p := range c.publish {
		p.Close()
	}
	c.announce()
	c.mu.Unlock()
	c.wake()
	c.ended.Wait()
	for _, cl := range c.byFD {
		reset(cl.fd)
	}
	unix.Close(c.wakeup)
	unix.Close(c.epoll)
	c.report()
}

// report fails the test for what has gone wrong, each thing once.
func (c *Crowd) report() {
	c.t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, err := range c.errs {
		c.t.Error(err)
	}
	c.errs = nil
}

func (c *Crowd) fail(err error) {
	if len(c.errs) < mostErrors {
		c.errs = append(c.errs, err)
	}
}

// await waits until done, which is called with c.mu held, and ends the test when something has gone wrong before.
func (c *Crowd) await(what string, done func() bool) {
	c.t.Helper()
	timer := time.NewTimer(harness.Patience)
	defer timer.Stop()
	for {
		c.mu.Lock()
		failed, ok := len(c.errs) > 0, done()
		state := c.state()
		if c.changed == nil {
			c.changed = make(chan struct{})
		}
		changed := c.changed
		c.mu.Unlock()
		if failed {
			c.report()
			c.t.FailNow()
		}
		if ok {
			return
		}
		select {
		case <-changed:
		case <-timer.C:
			c.t.Fatalf("waited %v for %s: %s", harness.Patience, what, state)
		}
	}
}

// state is for people to read.
func (c *Crowd) state() string {
	var stages [leaving + 1]int
	var behind *client
	for _, cl := range c.stayers {
		stages[cl.stage]++
		if behind == nil || cl.at < behind.at {
			behind = cl
		}
	}
	text := fmt.Sprintf("stayers: %d connecting, %d without an answer, %d open; %d messages acknowledged, %d have come, %d of them to all; passers: %d there, %+v",
		stages[connecting], stages[asked], stages[open], c.published, len(c.order), c.complete, c.passers, c.passed)
	if behind != nil {
		text += fmt.Sprintf("; client %d is at %d", behind.number, behind.at)
	}
	return text
}

// announce tells those that wait that something has happened.
func (c *Crowd) announce() {
	if c.changed != nil {
		close(c.changed)
		c.changed = nil
	}
}

func (c *Crowd) wake() {
	_, _ = unix.Write(c.wakeup, binary.NativeEndian.AppendUint64(nil, 1)) // EAGAIN: it is awake
}

func (c *Crowd) watch(fd, operation int, events uint32) error {
	return os.NewSyscallError("epoll_ctl", unix.EpollCtl(c.epoll, operation, fd, &unix.EpollEvent{Events: events, Fd: int32(fd)}))
}

// run is the goroutine of all clients.
func (c *Crowd) run() {
	events := make([]unix.EpollEvent, 512)
	for {
		n, err := unix.EpollWait(c.epoll, events, -1)
		c.mu.Lock()
		if err != nil && err != unix.EINTR {
			c.fail(os.NewSyscallError("epoll_wait", err))
			c.closing = true
		}
		for _, e := range events[:max(n, 0)] {
			if int(e.Fd) == c.wakeup {
				_, _ = unix.Read(c.wakeup, make([]byte, 8))
			} else if cl := c.byFD[e.Fd]; cl != nil {
				c.serve(cl)
			}
		}
		if !c.closing {
			c.connectMore()
			c.chat()
		}
		c.announce()
		closing := c.closing
		c.mu.Unlock()
		if closing {
			return
		}
	}
}

func (c *Crowd) connectMore() {
	for c.answering < atOnce && len(c.errs) == 0 && (len(c.stayers) < c.wanted || c.passers < c.passing) {
		cl := &client{number: c.started, stays: len(c.stayers) < c.wanted}
		if !cl.stays {
			cl.judge, cl.stayFor = sequence{}, rand.IntN(c.mostStay+1)
		}
		if err := c.connect(cl); err != nil {
			c.fail(fmt.Errorf("client %d: %w", cl.number, err))
			return
		}
		c.started++
		c.answering++
		c.byFD[int32(cl.fd)] = cl
		if cl.stays {
			c.stayers = append(c.stayers, cl)
		} else {
			c.passers++
		}
	}
}

// connect starts to connect, and does not wait.
func (c *Crowd) connect(cl *client) (err error) {
	domain := unix.AF_UNIX
	if _, inet := c.to.(*unix.SockaddrInet4); inet {
		domain = unix.AF_INET
	}
	if cl.fd, err = unix.Socket(domain, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0); err != nil {
		return os.NewSyscallError("socket", err)
	}
	if domain == unix.AF_INET {
		// Without this, bind would reserve a port for this source address and every destination (ip(7)).
		err = unix.SetsockoptInt(cl.fd, unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
		if err == nil {
			err = unix.Bind(cl.fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, byte(1 + cl.number%addresses)}})
		}
	}
	if err == nil {
		err = unix.Connect(cl.fd, c.to)
	}
	if err == unix.EINPROGRESS {
		err = nil
	}
	if err == nil {
		err = c.watch(cl.fd, unix.EPOLL_CTL_ADD, unix.EPOLLOUT)
	}
	if err != nil {
		unix.Close(cl.fd)
		return fmt.Errorf("connect: %w", err)
	}
	return nil
}

// serve does what there is to do for a client of which epoll has told.
func (c *Crowd) serve(cl *client) {
	if cl.stage == connecting {
		code, err := unix.GetsockoptInt(cl.fd, unix.SOL_SOCKET, unix.SO_ERROR)
		if err == nil && code != 0 {
			err = fmt.Errorf("connect: %w", syscall.Errno(code))
		}
		if err == nil {
			err = c.watch(cl.fd, unix.EPOLL_CTL_MOD, unix.EPOLLIN)
		}
		if err == nil {
			cl.stage = asked
			err = send(cl.fd, request("/websocket/"+Channel))
		}
		if err != nil {
			c.over(cl, err)
		}
		return
	}
	n, err := unix.Read(cl.fd, c.buffer)
	switch {
	case err == unix.EAGAIN || err == unix.EINTR:
		return
	case err == nil && n == 0:
		err = io.EOF
	case err == nil:
		err = c.take(cl, c.buffer[:n])
	}
	if err != nil {
		c.over(cl, err)
	}
}

// closeError is a close frame from the server.
type closeError struct {
	code   int
	reason string
}

func (e *closeError) Error() string { return fmt.Sprintf("closed with %d %q", e.code, e.reason) }

// errLeft is the end of a passer as it wants it.
var errLeft = errors.New("left")

// over ends a client's connection, and judges why.
func (c *Crowd) over(cl *client, err error) {
	closed := &closeError{code: abnormal}
	ended := errors.As(err, &closed) || err == io.EOF || errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE)
	where := fmt.Errorf("client %d: %w", cl.number, err)
	switch {
	case cl.stays:
		switch {
		case !ended || cl.stage != open && !c.tolerated[0]:
			c.fail(where)
		case !c.tolerated[closed.code]:
			c.fail(fmt.Errorf("client %d, which stays and has %d messages: %w", cl.number, cl.at, err))
		default:
			c.closed[closed.code]++
			c.ends[closed.code] = append(c.ends[closed.code], end{cl.number, cl.at})
		}
		is := func(s *client) bool { return s == cl }
		c.stayers, c.talkers = slices.DeleteFunc(c.stayers, is), slices.DeleteFunc(c.talkers, is)
		c.wanted--
		for i := cl.at; i < len(c.order); i++ {
			c.order[i].left--
		}
		c.advance()
	case cl.stage == asked && ended && len(cl.rest) == 0:
		c.passed.Reset++
	case err != errLeft && !(cl.stage == leaving && ended):
		c.fail(fmt.Errorf("%w; it is a passer with %d messages", where, cl.got))
	}
	if cl.stage == connecting || cl.stage == asked {
		c.answering--
	}
	if !cl.stays {
		c.passers--
	}
	delete(c.byFD, int32(cl.fd))
	reset(cl.fd)
}

// reset closes with a RST: a FIN would leave the port in TIME_WAIT.
func reset(fd int) {
	_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	unix.Close(fd)
}

func send(fd int, b []byte) error {
	n, err := unix.SendmsgN(fd, b, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	if err == nil && n < len(b) {
		err = unix.EAGAIN
	}
	return err
}

// take takes bytes as they come: the answer to the handshake, then frames.
func (c *Crowd) take(cl *client, data []byte) error {
	if len(cl.rest) > 0 {
		cl.rest = append(cl.rest, data...)
		data = cl.rest
	}
	if cl.stage == asked {
		n, err := answer(data)
		if err != nil {
			return err
		}
		if n > 0 {
			data = data[n:]
			cl.stage = open
			c.answering--
			if !cl.stays {
				c.passed.Opened++
			}
		}
	}
	for cl.stage >= open {
		if cl.stage == open && !cl.stays && cl.got >= cl.stayFor {
			if err := c.leave(cl); err != nil {
				return err
			}
		}
		opcode, payload, n, err := split(data)
		if err != nil {
			return err
		}
		if n == 0 {
			break
		}
		data = data[n:]
		switch opcode {
		case binaryFrame:
			err = c.message(cl, payload)
		case pingFrame:
			if cl.stage == open {
				err = c.frame(cl, clientFrame(pongFrame, payload))
			}
		case pongFrame:
			err = cl.pong(payload)
		case closeFrame:
			err = &closeError{code: 1005}
			if len(payload) >= 2 {
				err = &closeError{int(binary.BigEndian.Uint16(payload)), string(payload[2:])}
				_ = c.frame(cl, clientFrame(closeFrame, payload[:2]))
			}
		}
		if err != nil {
			return err
		}
	}
	// append copies down within cl.rest where data is its tail (memmove semantics).
	cl.rest = append(cl.rest[:0], data...)
	return nil
}

func (c *Crowd) message(cl *client, payload []byte) error {
	m, err := parse(payload)
	if err != nil {
		return err
	}
	cl.got++
	if !cl.stays {
		return cl.judge.take(m, true)
	}
	if cl.at == len(c.order) {
		if err := c.judge.take(m, false); err != nil {
			return fmt.Errorf("after %d messages: %w", cl.at, err)
		}
		c.order = append(c.order, turn{m, len(c.stayers)})
	}
	if want := c.order[cl.at]; want.id != m {
		return fmt.Errorf("%v came as number %d, where others got %v", m, cl.at, want.id)
	}
	c.order[cl.at].left--
	cl.at++
	c.advance()
	return nil
}

func (c *Crowd) advance() {
	for c.complete < len(c.order) && c.order[c.complete].left == 0 {
		c.complete++
	}
}

// frame sends a frame, behind the half of one that is still to be sent.
func (c *Crowd) frame(cl *client, frame []byte) error {
	frame = append(cl.half, frame...)
	cl.half = nil
	return send(cl.fd, frame)
}

// ping sends one of two halves.
func (c *Crowd) ping(cl *client) {
	var err error
	if cl.half != nil {
		err = c.frame(cl, nil)
	} else {
		cl.pinged++
		frame := clientFrame(pingFrame, binary.BigEndian.AppendUint64(nil, cl.pinged))
		cut := 1 + rand.IntN(len(frame)-1)
		err = send(cl.fd, frame[:cut])
		cl.half = frame[cut:]
	}
	if err != nil && err != unix.EAGAIN { // a reset is judged when it is read
		cl.half = nil
	}
}

func (cl *client) pong(payload []byte) error {
	if len(payload) != 8 {
		return fmt.Errorf("a pong of %d bytes", len(payload))
	}
	// RFC 6455, section 5.5.3: a server may answer only the newest ping. A process that was killed between its answer and its note of that leaves
	// the ping to the next one, which answers it again; nobody minds a pong too many.
	n := binary.BigEndian.Uint64(payload)
	if n == 0 || n > cl.pinged {
		return fmt.Errorf("pong %d came, and %d pings were sent", n, cl.pinged)
	}
	cl.ponged = max(cl.ponged, n)
	return nil
}

// chat lets a few stayers send something, and those of the last time the rest of it. wscastd leaves a frame that is not whole in the socket for a second;
// later on it takes the beginning into its memory, and closes the client when it is killed then.
func (c *Crowd) chat() {
	for _, cl := range c.talkers {
		if cl.half != nil && cl.stage == open {
			c.ping(cl)
		}
	}
	c.talkers = c.talkers[:0]
	for range min(4, len(c.stayers)) {
		if cl := c.stayers[rand.IntN(len(c.stayers))]; cl.stage == open && cl.half == nil && !c.quiet {
			c.ping(cl)
			c.talkers = append(c.talkers, cl)
		}
	}
}

// leave ends a passer's connection, in one of three ways.
func (c *Crowd) leave(cl *client) error {
	cl.stage = leaving
	switch rand.IntN(3) {
	case 0:
		return send(cl.fd, clientFrame(closeFrame, binary.BigEndian.AppendUint16(nil, 1000)))
	case 1:
		return unix.Shutdown(cl.fd, unix.SHUT_WR)
	default:
		return errLeft // which is a RST
	}
}

// Pass keeps that many clients coming and going, from now on until Finish. Each stays for at most that many messages.
func (c *Crowd) Pass(clients, messages int) {
	c.mu.Lock()
	c.passing, c.mostStay = clients, messages
	c.mu.Unlock()
	c.wake()
}

// Flow is what publishers do.
type Flow struct {
	Publishers int
	Size       int // of a message, in bytes
	Window     int // messages that are acknowledged and have not come to every stayer
}

// Publish starts publishers, each on connections of its own to the socket of that path, until Finish. It is called once.
func (c *Crowd) Publish(socket string, f Flow) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.quiet, c.flow = false, f
	c.publish = make([]*ipc.Client, f.Publishers)
	c.publishing = f.Publishers
	for i := range f.Publishers {
		c.ended.Go(func() {
			c.publisher(socket, uint8(i))
			c.mu.Lock()
			c.publishing--
			c.announce()
			c.mu.Unlock()
		})
	}
}

// Silence stops the publishers, and returns when all that they have published is acknowledged. It may not have come to anybody yet.
func (c *Crowd) Silence() {
	c.t.Helper()
	c.mu.Lock()
	c.stopped, c.quiet = true, true
	c.announce()
	c.mu.Unlock()
	c.await("the publishers to end", func() bool { return c.publishing == 0 })
}

// EndedWithAll fails the test unless every stayer that was closed with a tolerated code had got everything that was acknowledged.
func (c *Crowd) EndedWithAll(code int) {
	c.t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	for publisher, number := range c.last {
		if got := c.judge[publisher].number; got < number {
			c.t.Errorf("publisher %d was told of its message %d, and clients got those up to %d", publisher, number, got)
		}
	}
	for _, end := range c.ends[code] {
		if end.messages != len(c.order) {
			c.t.Errorf("client %d was closed with %d after %d messages of %d", end.client, code, end.messages, len(c.order))
		}
	}
}

func (c *Crowd) publisher(socket string, publisher uint8) {
	m := id{publisher: publisher, number: 1, try: 1}
	var message []byte
	var p *ipc.Client
	defer func() {
		if p != nil {
			p.Close()
		}
	}()
	for c.mayPublish() {
		var err error
		if p == nil {
			if p, err = ipc.Dial(socket); err == nil {
				c.mu.Lock()
				c.publish[publisher] = p
				closing := c.closing
				c.mu.Unlock()
				if closing {
					return
				}
			}
		}
		if err == nil {
			message = m.appendTo(message[:0], c.flow.Size)
			_, err = p.Publish(Channel, message)
		}
		c.mu.Lock()
		closing := c.closing
		if err == nil {
			c.last[publisher] = m.number
			c.published++
			m.number, m.try = m.number+1, 1
		} else {
			m.try++
			if m.try == 0 {
				c.fail(fmt.Errorf("publisher %d: %w, in every one of 65,535 tries", publisher, err))
			}
		}
		c.mu.Unlock()
		if err != nil {
			if p != nil {
				p.Close()
				p = nil
			}
			if closing {
				return
			}
			time.Sleep(retry)
		}
	}
}

// retry keeps a publisher that finds no socket from using up a processor.
const retry = time.Millisecond

// mayPublish waits until the next message may be published. A publisher whose last message is not acknowledged stays in the window.
func (c *Crowd) mayPublish() bool {
	for {
		c.mu.Lock()
		stopped := c.stopped
		room := c.published < uint64(c.complete+c.flow.Window)
		if c.changed == nil {
			c.changed = make(chan struct{})
		}
		changed := c.changed
		c.mu.Unlock()
		if stopped || room {
			return !stopped
		}
		<-changed
	}
}

// Tolerate says that from now on stayers may be closed with this code; 1006 is an end without a close frame.
func (c *Crowd) Tolerate(code int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tolerated[code] = true
}

// Closed is how many stayers were closed with a tolerated code.
func (c *Crowd) Closed(code int) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closed[code]
}

// AwaitClosed waits until that many stayers are closed with that code.
func (c *Crowd) AwaitClosed(code, stayers int) {
	c.t.Helper()
	c.await(fmt.Sprintf("%d clients to be closed with %d", stayers, code), func() bool { return c.closed[code] >= stayers })
}

// Stayers is how many are there.
func (c *Crowd) Stayers() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.stayers)
}

// Messages is how many messages every stayer has had.
func (c *Crowd) Messages() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.complete
}

// AwaitMessages waits until n more messages have come to every stayer.
func (c *Crowd) AwaitMessages(n int) {
	c.t.Helper()
	target := c.Messages() + n
	c.await(fmt.Sprint(n, " more messages"), func() bool { return c.complete >= target })
}

// AwaitPassed waits until n more passers were answered.
func (c *Crowd) AwaitPassed(n int) {
	c.t.Helper()
	c.mu.Lock()
	target := c.passed.Opened + n
	c.mu.Unlock()
	c.await(fmt.Sprint(n, " more passers"), func() bool { return c.passed.Opened >= target })
}

// Finish stops the publishers and the passers, and waits until every stayer has every acknowledged message and every passer was answered. Then every
// stayer sends a ping, and gets its pong. It returns how the passers have fared.
func (c *Crowd) Finish() Passed {
	c.t.Helper()
	c.mu.Lock()
	c.passing, c.mostStay, c.stopped, c.quiet = 0, 0, true, true
	for _, cl := range c.byFD {
		cl.stayFor = 0
	}
	c.announce()
	c.mu.Unlock()
	c.await("all that was acknowledged", func() bool {
		for publisher, number := range c.last {
			if c.judge[publisher].number < number {
				return false
			}
		}
		return c.complete == len(c.order)
	})
	c.mu.Lock()
	for _, cl := range c.byFD {
		if !cl.stays && cl.stage == open {
			cl.stage = leaving
			_ = unix.Shutdown(cl.fd, unix.SHUT_WR)
		}
	}
	for _, cl := range c.stayers {
		if cl.half != nil {
			c.ping(cl)
		}
		c.ping(cl)
		c.ping(cl)
	}
	c.mu.Unlock()
	c.await("the pongs, and the passers to be gone", func() bool {
		return c.passers == 0 && !slices.ContainsFunc(c.stayers, func(cl *client) bool { return cl.ponged != cl.pinged })
	})
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.passed
}
