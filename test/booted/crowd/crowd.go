package crowd

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"wscast/ipc"
	"wscast/test/harness"
)

const (
	// Channel is where everybody is who has one channel, where there are no more.
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

// Mix is which clients there are.
type Mix struct {
	Clients  int
	Kinds    []Kind // in turn; none: Raw
	Channels int    // over which those with one channel are dealt; 0: one
}

// Crowd is the clients, the publishers, and what they have found out. Its methods are for the test's goroutine.
type Crowd struct {
	t      testing.TB
	to     unix.Sockaddr
	epoll  int
	wakeup int // an eventfd
	buffer []byte
	ended  sync.WaitGroup // the goroutines

	kinds    []Kind
	channels int

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
	audiences []*audience // those of one channel, and at the end the one of all
	inflated  int         // compressed messages that were decoded
	talkers   []*client   // with half a frame
	speakers  []*client   // those that publish
	quiet     bool        // nobody says anything

	returning bool      // stayers come back
	away      []*client // those that are to
	returned  [kinds]int

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
type end struct {
	client, messages int
	audience         *audience
}

// Passed is how passers have fared.
type Passed struct {
	Opened int // answered with 101
	Reset  int // the connection ended before a byte of an answer, and was not refused
}

// Gather connects clients of raw frames that stay, and returns when all are open. The network is tcp, with host:port, or unix, with a path. The
// connections end with the test.
func Gather(t testing.TB, network, address string, clients int) *Crowd {
	t.Helper()
	return GatherMix(t, network, address, Mix{Clients: clients})
}

// GatherMix is Gather for clients of several kinds, and for several channels.
func GatherMix(t testing.TB, network, address string, mix Mix) *Crowd {
	t.Helper()
	c := &Crowd{
		t: t, epoll: -1, buffer: make([]byte, 1<<18), byFD: map[int32]*client{}, wanted: mix.Clients,
		kinds: mix.Kinds, channels: max(1, mix.Channels),
		tolerated: map[int]bool{}, closed: map[int]int{}, ends: map[int][]end{}, last: map[uint8]uint64{}, quiet: true,
	}
	if c.kinds == nil {
		c.kinds = []Kind{Raw}
	}
	all := &audience{judge: sequence{}}
	for channel := range c.channels {
		all.channels = append(all.channels, channel)
		if c.channels > 1 {
			c.audiences = append(c.audiences, &audience{channels: []int{channel}, judge: sequence{}})
		}
	}
	c.audiences = append(c.audiences, all)
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
		return len(c.stayers) == mix.Clients && c.allOpen()
	})
	return c
}

func (c *Crowd) allOpen() bool {
	return !slices.ContainsFunc(c.stayers, func(cl *client) bool { return cl.stage != open })
}

// audienceOf is that of the client of a kind with that number among them.
func (c *Crowd) audienceOf(k Kind, number int) *audience {
	if k.allChannels() {
		return c.audiences[len(c.audiences)-1]
	}
	return c.audiences[number%c.channels]
}

// channelOf is the channel of a message: each publisher has one.
func (c *Crowd) channelOf(m id) int { return int(m.publisher) % c.channels }

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
	missing := func(cl *client) int { return len(cl.audience.order) - cl.at }
	for _, cl := range c.stayers {
		stages[cl.stage]++
		if behind == nil || missing(cl) > missing(behind) {
			behind = cl
		}
	}
	text := fmt.Sprintf("stayers: %d connecting, %d of them waiting for an id, %d without an answer, %d without subscriptions, %d open; %d messages acknowledged; passers: %d there, %+v",
		stages[connecting], len(c.away), stages[asked], stages[joining], stages[open], c.published, c.passers, c.passed)
	for _, a := range c.audiences {
		text += fmt.Sprintf("; channels %v: %d clients, %d acknowledged, %d have come, %d of them to all", a.channels, a.members, a.published, len(a.order), a.complete)
	}
	if behind != nil {
		text += fmt.Sprintf("; client %d (%s) is at %d, with %+v", behind.number, behind.kind, behind.at, behind.talk)
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

// Pass keeps that many clients coming and going, from now on until Finish. Each stays for at most that many messages.
func (c *Crowd) Pass(clients, messages int) {
	c.mu.Lock()
	c.passing, c.mostStay = clients, messages
	c.mu.Unlock()
	c.wake()
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
	return c.complete()
}

func (c *Crowd) complete() int {
	least := -1
	for _, a := range c.audiences {
		if a.members > 0 && (least < 0 || a.complete < least) {
			least = a.complete
		}
	}
	return max(least, 0)
}

// Inflated is how many messages came compressed, each counted once for a kind.
func (c *Crowd) Inflated() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.inflated
}

// AwaitMessages waits until n more messages have come to every stayer.
func (c *Crowd) AwaitMessages(n int) {
	c.t.Helper()
	target := c.Messages() + n
	c.await(fmt.Sprint(n, " more messages"), func() bool { return c.complete() >= target })
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
	c.wake()
	c.await("all that was acknowledged", func() bool {
		return c.allOpen() && !slices.ContainsFunc(c.audiences, func(a *audience) bool { return !c.hasAll(a) }) &&
			!slices.ContainsFunc(c.speakers, func(cl *client) bool { return cl.talk.speaking })
	})
	c.mu.Lock()
	all := c.audiences[len(c.audiences)-1]
	for _, a := range c.audiences[:len(c.audiences)-1] {
		if a.members > 0 && all.members > 0 {
			if err := a.agrees(all, c.channelOf); err != nil {
				c.fail(err)
			}
		}
	}
	for _, cl := range c.byFD {
		if !cl.stays && cl.stage == open {
			cl.stage = leaving
			_ = unix.Shutdown(cl.fd, unix.SHUT_WR)
		}
	}
	for _, cl := range c.stayers {
		if !cl.kind.webSocket() {
			continue
		}
		if cl.talk.half != nil {
			c.trouble(cl, cl.finish())
		}
		for range 2 {
			c.trouble(cl, cl.unread(cl.send(cl.ping())))
		}
	}
	c.mu.Unlock()
	c.await("the pongs, and the passers to be gone", func() bool {
		return c.passers == 0 && !slices.ContainsFunc(c.stayers, func(cl *client) bool { return !cl.talk.done() })
	})
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.passed
}

// hasAll tells whether all that was acknowledged has come to all of an audience.
func (c *Crowd) hasAll(a *audience) bool {
	if a.members == 0 {
		return true
	}
	for publisher, number := range c.last {
		if a.has(c.channelOf(id{publisher: publisher})) && a.judge[publisher].number < number {
			return false
		}
	}
	return a.complete == len(a.order)
}
