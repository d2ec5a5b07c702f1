package loop

import (
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"wscast/daemon/encode"
	"wscast/daemon/frame"
	"wscast/daemon/msglog"
	"wscast/daemon/survive"
)

// scratchSize has room for the largest frame of a client: a full scratch buffer always has a whole frame.
const scratchSize = 2 * MaxMessage

// loop is one event loop. Without a comment fields belong to its goroutine.
type loop struct {
	sys    *system
	log    *slog.Logger
	store  *msglog.Log
	reader *msglog.Reader
	keep   survive.Keep
	host   Handshaker
	group  *Loops
	posts  chan<- *post
	ticks  *atomic.Uint32 // the clock that all loops share

	epfd   int
	file   *os.File // of epfd, for Go's poller
	raw    syscall.RawConn
	polled func(uintptr) bool

	config   *Config
	tick     uint32
	slab     slab
	channels [][]*subscribers // by the ring and the cell of the channel
	blocked  []*client
	again    []*client
	crowd    []waiter           // clients whose messages wait for others to be appended
	deferred []waiter           // clients that are not read before all are taken over
	held     map[uint32][]byte  // by slot: beginnings of frames of clients that are marked held
	rests    map[halfOut][]byte // in sweep
	second   time.Time          // in which talkers have sent frames,
	talkers  map[uint32]int     // by slot: so many
	count    Stats
	ending   *ending
	parted   uint32    // slots below it have had their good-bye, or get it when they have caught up
	leaving  []parting // of those that are to be gone before a suspended loop is at its end

	// Room to work in, used again and again.
	scratch  []byte
	events   [256]unix.EpollEvent
	iovecs   [runSlices]unix.Iovec
	news     []*msglog.Channel
	arrived  []newcomer
	agains   []*client
	run      run
	encoder  encode.Encoder
	encoded  []byte  // what run has, where it is not the log's own frames
	whole    []byte  // one message,
	wholeIs  halfOut // which one, and how
	message  []byte  // of a client, of several frames
	inflated []byte  // of a client, uncompressed
	welcome  []byte  // the answer to a request like nearly all
	spare    pending // of the client that something is said to
	writes   uint64
	ready    int // events[:ready] are to be handled

	gathering bool        // news are left until gathered
	gatherer  *time.Timer // sets it
	gathered  atomic.Bool

	asleep atomic.Bool // the goroutine waits, or is about to, and whoever has something for it must call wake
	asked  atomic.Bool // to turn, by the watchdog
	crowds atomic.Bool // crowd has somebody
	turns  atomic.Uint64
	load   atomic.Int64 // clients, newcomers included
	next   atomic.Pointer[Config]

	mu        sync.Mutex
	newcomers []newcomer
	results   []*post
	order     *ending // to come to an end
	shown     Stats   // count, as of the end of the last turn
	done      bool    // the goroutine is at its end: it takes no newcomers
}

// ending is the order to close all clients, or to leave those that are parked as they are for an heir, and come to an end.
type ending struct {
	suspend  bool // leave them
	code     uint16
	reason   string
	deadline <-chan struct{} // closed: what is left is dropped
	due      atomic.Uint32   // for what part of all clients it is time to be closed, if not suspend
}

// all of due.
const all = 1 << 16

// parting is a client on its way out.
type parting struct {
	c   *client
	gen uint32
}

func newLoop(g *Loops, config *Config, sys *system) (*loop, error) {
	epfd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("epoll_create1: %w", err)
	}
	// With O_NONBLOCK set os.NewFile registers the descriptor with Go's poller: an epoll instance is itself pollable,
	// and the loop waits for it as a parked goroutine, without a thread of its own.
	if err := unix.SetNonblock(epfd, true); err != nil {
		unix.Close(epfd)
		return nil, fmt.Errorf("epoll: %w", err)
	}
	l := &loop{
		sys: sys, log: g.log, store: g.store, keep: g.keep, host: g.host, group: g, posts: g.posts, ticks: &g.ticks,
		epfd: epfd, file: os.NewFile(uintptr(epfd), "epoll"),
		config: config, channels: make([][]*subscribers, g.store.Rings()), rests: make(map[halfOut][]byte), held: make(map[uint32][]byte), scratch: make([]byte, scratchSize),
	}
	l.polled = func(uintptr) bool {
		l.ready = epollWait(l.epfd, l.events[:])
		return l.ready > 0
	}
	if l.raw, err = l.file.SyscallConn(); err == nil {
		l.reader, err = g.store.NewReader(l.wake)
	}
	if err != nil {
		l.file.Close()
		return nil, err
	}
	l.next.Store(config)
	return l, nil
}

// serve turns until it is told to end.
func (l *loop) serve() {
	crashed := true
	defer func() {
		if crashed {
			l.keep.Table.Crashed() // perhaps for what was taken over
		}
	}()
	for !l.ended() {
		l.wait()
		l.turn()
	}
	crashed = false
	l.file.Close()
}

// wait returns when there is something to do: l.ready events, or something that others have left.
//
// Waiting is a read on the epoll instance that parks the goroutine in Go's poller. Whoever wakes the loop sets the
// read's deadline to the past, which makes the goroutine runnable without a system call. Nothing is lost: who wakes
// leaves what there is to do first and looks at asleep then; the loop sets asleep first and looks at what there is to
// do then. A deadline that is set late, when the loop has long been woken by something else, costs one turn for
// nothing.
func (l *loop) wait() {
	if l.ready = epollWait(l.epfd, l.events[:]); l.ready > 0 || len(l.again) > 0 {
		// Raw system calls do not tell the scheduler: a loop that is never idle would keep publishers waiting until it
		// is preempted.
		runtime.Gosched()
		return
	}
	l.asleep.Store(true)
	if !l.called() {
		if err := l.raw.Read(l.polled); err != nil {
			_ = l.file.SetReadDeadline(time.Time{})
		}
	}
	l.asleep.Store(false)
}

var past = time.Unix(1, 0)

// wake makes the loop turn once more. It can be called from anywhere.
func (l *loop) wake() {
	if l.asleep.Swap(false) {
		_ = l.file.SetReadDeadline(past)
	}
}

// called tells whether others have left something to do.
func (l *loop) called() bool {
	if l.asked.Load() || l.recalled() || l.reader.HasNews() && !l.waitsForMore() || !l.reader.Released() ||
		l.tick != l.ticks.Load() || l.next.Load() != l.config {
		return true
	}
	if l.ending != nil {
		select {
		case <-l.ending.deadline:
			return true
		default:
		}
		if !l.ending.suspend && l.parted < l.partedBy() {
			return true
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.newcomers) > 0 || len(l.results) > 0 || l.order != l.ending
}

// turn does everything that there is to do, once.
func (l *loop) turn() {
	l.asked.Store(false)
	// The clock comes first: a loop without clients is not woken for a tick, and newcomers count from now on.
	ticked := l.tick
	l.tick = l.ticks.Load()
	l.configure(l.next.Load())

	if !l.gather() {
		l.deliverNews()
	}
	l.recall()

	for i := range l.ready {
		l.handle(&l.events[i])
	}
	l.ready = 0

	l.goOnWith(turnful)

	l.mu.Lock()
	l.arrived, l.newcomers = l.newcomers, l.arrived[:0]
	results := l.results
	l.results = nil
	order := l.order
	l.mu.Unlock()
	for _, p := range results {
		l.posted(p)
	}
	for _, n := range l.arrived {
		if n.adopted {
			l.adopt(n)
		} else {
			l.add(n)
		}
	}
	if order != l.ending {
		l.ending = order
		if order.suspend {
			l.closeUnparked()
		} else {
			l.refuseAll()
		}
	}
	if l.ending != nil && !l.ending.suspend {
		l.closeDue()
	}
	if l.tick != ticked {
		l.lookAfter()
	}
	l.sweep()

	l.show()
	l.turns.Add(1)
}

// show lets others see how the loop stands.
func (l *loop) show() {
	l.mu.Lock()
	l.shown = l.count
	l.load.Store(int64(l.count.Clients) + int64(len(l.newcomers)))
	l.mu.Unlock()
}

// configure takes a configuration into use. Ticks that have another length now are not comparable with those that were
// counted before, and everybody starts anew.
func (l *loop) configure(config *Config) {
	if config.tick() != l.config.tick() {
		for _, block := range l.slab.blocks {
			for i := range block {
				block[i].heard, block[i].told = l.tick, l.tick
			}
		}
	}
	l.config = config
}

// gather tells whether news are left for the moment, so that what comes within Config.Gather goes out with one write. An appender does not wait for
// that: where the log moves on or has no room, and at the end, all of it is delivered at once.
func (l *loop) gather() bool {
	if l.config.Gather == 0 || l.ending != nil || l.gathered.Load() || !l.reader.Released() || l.store.Starved() {
		l.gathered.Store(false)
		l.gathering = false
		return false
	}
	if !l.reader.HasNews() {
		return false
	}
	if !l.gathering {
		l.gathering = true
		if l.gatherer == nil {
			l.gatherer = time.AfterFunc(l.config.Gather, func() {
				l.gathered.Store(true)
				l.wake()
			})
		} else {
			l.gatherer.Reset(l.config.Gather)
		}
	}
	return true
}

// waitsForMore tells whether there is nothing to do about news until the gatherer calls.
func (l *loop) waitsForMore() bool {
	return l.gathering && !l.gathered.Load() && !l.store.Starved()
}

// deliverNews delivers what has come into the log up to now.
func (l *loop) deliverNews() {
	l.news = l.reader.News(l.news[:0])
	for _, ch := range l.news {
		if subs := l.listOf(ch); subs != nil {
			l.deliver(subs)
			if len(subs.feeds) > 0 {
				l.deliverFeeds(subs)
			}
		}
	}
	clear(l.news)
}

// turnful is with how many of the clients that have more to do a turn goes on, as many as a turn handles events: what
// they cost, up to runBytes of output and patience times scratchSize of input each, delays what the next turn
// delivers.
const turnful = len(loop{}.events)

// goOnWith goes on with the clients that have waited longest.
func (l *loop) goOnWith(most int) {
	n := min(len(l.again), most)
	if n == 0 {
		return
	}
	l.agains = append(l.agains[:0], l.again[:n]...)
	l.again = append(l.again[:0], l.again[n:]...)
	for _, c := range l.agains {
		if c.flags&again != 0 { // and not dropped meanwhile
			c.flags &^= again
			l.goOn(c)
		}
	}
}

// handle deals with one event of a client's socket.
func (l *loop) handle(event *unix.EpollEvent) {
	c := l.slab.at(uint32(event.Fd))
	gen := uint32(event.Pad)
	if c.fd < 0 || c.gen != gen {
		return // of a client that was dropped in this turn
	}
	if event.Events&unix.EPOLLOUT != 0 && c.block != 0 {
		l.flush(c)
	}
	if c.gen != gen {
		return
	}
	if event.Events&(unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		c.flags |= over
	}
	if event.Events&unix.EPOLLIN != 0 || c.flags&over != 0 {
		l.read(c)
	}
}

// read takes what there is to read from a client, in whichever state it is.
func (l *loop) read(c *client) {
	gen := c.gen
	switch c.state {
	case opening:
		l.handshake(c)
	case open:
		switch {
		case c.session == nil || !c.fed() && !c.session.talks:
			l.input(c)
		case c.encoding().WebSocket():
			l.commands(c)
		default:
			l.ignore(c)
		}
	case closing:
		if c.flags&awaited != 0 {
			l.input(c)
		} else {
			l.discard(c)
		}
	}
	if c.gen == gen && c.flags&(over|again) == over && c.state != closing {
		// What came before the end has been read, but for a request or a frame that will never be whole.
		l.drop(c, "closed without a close frame")
	}
}

// goOn continues what was left off for the sake of others.
func (l *loop) goOn(c *client) {
	gen := c.gen
	if c.block == 0 && c.state != opening {
		l.flush(c)
	}
	if c.gen == gen {
		l.read(c)
	}
}

var (
	pingFrame = frame.AppendPing(nil, nil)
	keepAlive = []byte(encode.KeepAlive)
)

// lookAfter goes through all clients once a tick: who was silent for too long is pinged, who does not answer is
// dropped. Counting ticks instead of reading the clock makes "when was it last heard" one store of four bytes.
//
// A blocked client is not pinged, since nothing would reach it, and needs no ping as long as it takes something. It is
// dropped when it has neither taken nor sent anything for as long as an unanswered ping is waited for.
func (l *loop) lookAfter() {
	now := time.Now()
	ping, handshake, closed := l.config.pingTicks(), l.config.handshakeTicks(), l.config.closeTicks()
	for _, block := range l.slab.blocks {
		for i := range block {
			c := &block[i]
			if c.fd < 0 {
				continue
			}
			silent, untold := l.tick-c.heard, l.tick-c.told
			switch c.state {
			case opening:
				if silent > handshake {
					l.count.TimedOut++
					l.refuse(c, http.StatusRequestTimeout, "the request did not arrive in time")
				}
			case closing:
				if silent > closed {
					l.drop(c, "close timeout")
				}
			case open:
				switch blocked := c.block != 0; {
				case c.expired(now):
					l.close(c, closeExpired, CloseExpired, ExpiredReason)
				case !c.encoding().WebSocket():
					// Nothing ever comes from it: what it takes is the sign of life.
					if blocked && untold > 2*ping && ping != 0 {
						l.count.TimedOut++
						l.drop(c, "no sign of life")
					} else if !blocked && untold >= ping && ping != 0 {
						l.count.Pings++
						l.say(c, keepAlive)
					}
				case c.flags&partial != 0 && silent > 1 && l.mustHold(c): // a whole tick: the one that it came in may be just over
					l.hold(c)
				case ping == 0:
				case silent > 2*ping && (c.flags&pinged != 0 && !blocked || blocked && untold > 2*ping):
					l.count.TimedOut++
					l.drop(c, "no sign of life")
				case !blocked && (silent >= ping && c.flags&pinged == 0 || untold >= ping):
					c.flags |= pinged
					l.count.Pings++
					l.say(c, pingFrame)
				}
			}
		}
	}
}

// refuseAll refuses those that have not been answered, and delivers for the last time.
func (l *loop) refuseAll() {
	l.deliverNews() // what was appended before the order was given, and after this turn began
	for _, block := range l.slab.blocks {
		for i := range block {
			if c := &block[i]; c.fd >= 0 && c.state == opening {
				l.refuse(c, http.StatusServiceUnavailable, l.ending.reason)
			}
		}
	}
}

// partedBy is the slot below which all are to have their good-bye by now.
func (l *loop) partedBy() uint32 {
	return uint32(uint64(len(l.slab.blocks)*slabBlock) * uint64(l.ending.due.Load()) / all)
}

// closeDue says good-bye to those for whom it is time and who have been sent what the log has for them. The others
// follow one by one when they have (caughtUp).
func (l *loop) closeDue() {
	for to := l.partedBy(); l.parted < to; l.parted++ {
		if c := l.slab.at(l.parted); c.fd >= 0 && c.state == open && c.block == 0 && c.flags&again == 0 {
			l.close(c, closeStopped, l.ending.code, l.ending.reason)
		}
	}
}

// ended tells whether the loop has been ordered to end and has come to it.
func (l *loop) ended() bool {
	if l.ending == nil {
		return false
	}
	if l.count.Clients > 0 && !l.ending.suspend || l.anyLeaving() {
		select {
		case <-l.ending.deadline:
		default:
			return false
		}
	}
	l.mu.Lock()
	l.done = true
	newcomers := l.newcomers
	l.newcomers = nil
	l.mu.Unlock()
	for _, n := range newcomers {
		l.reject(n)
	}
	for _, block := range l.slab.blocks {
		for i := range block {
			switch c := &block[i]; {
			case c.fd < 0:
			case l.ending.suspend: // see Suspend
				l.settle(c)
			default:
				l.drop(c, "the daemon stops")
			}
		}
	}
	l.reader.Retire()
	l.show()
	return true
}
