package loop

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"wscast/daemon/encode"
	"wscast/daemon/msglog"
	"wscast/daemon/survive"
)

// Config is what a reload can change. The durations are rounded up to ticks, a fifth of the shortest of them.
type Config struct {
	Ping             time.Duration // a client that was silent, or was sent nothing, for so long is pinged; 0: never
	HandshakeTimeout time.Duration // for a whole request to arrive
	CloseTimeout     time.Duration // for the other side to close after our close frame
	MaxMessage       int           // bytes of a client's message, at most MaxMessage
	Gather           time.Duration // how long what is published waits for more, so that all of it goes out with one write; 0: not at all
	SkipSlow         bool          // a slow client skips ahead instead of being closed
	MaxSubscriptions int           // of one connection
	Upstream         bool          // clients may publish, in some channels: Handshaker.MayPublish
	UpstreamRate     int           // messages a second that one client may publish; 0: as many as it likes
	MaxClients       int           // 0: as many as there are descriptors for
	MaxPerAddress    int           // of them from the same address (Admission.From); 0: any number
	FrameRate        int           // frames, of whatever kind, that one client may send in a second; 0: as many as it likes
	MaxRequest       int           // bytes of a request head, at most MaxRequest; 0: defaultRequest
}

// Ticks are long enough that an idle daemon sleeps. The shortest is for tests: with the durations that make sense it
// is never reached.
const (
	shortestTick = 10 * time.Millisecond
	longestTick  = 5 * time.Second
)

// tick is how long a tick is: short enough that rounding up to ticks does not matter.
func (c *Config) tick() time.Duration {
	d := min(c.HandshakeTimeout, c.CloseTimeout)
	if c.Ping > 0 {
		d = min(d, c.Ping)
	}
	return max(shortestTick, min(d/5, longestTick))
}

func (c *Config) ticks(d time.Duration) uint32 {
	tick := c.tick()
	return uint32((d + tick - 1) / tick)
}

func (c *Config) maxRequest() int {
	if c.MaxRequest == 0 {
		return defaultRequest
	}
	return c.MaxRequest
}

func (c *Config) pingTicks() uint32      { return c.ticks(c.Ping) }
func (c *Config) handshakeTicks() uint32 { return c.ticks(c.HandshakeTimeout) }
func (c *Config) closeTicks() uint32     { return c.ticks(c.CloseTimeout) }

// Loops are the event loops of a daemon.
type Loops struct {
	log   *slog.Logger
	store *msglog.Log
	keep  survive.Keep
	host  Handshaker
	loops []*loop
	ticks atomic.Uint32

	presence   presence
	population population
	posts      chan *post
	adopting   atomic.Bool // clients are being taken over: what they ask for has to wait
	encoders   uint32      // of those who have encoded what clients have half of that are taken over

	turning  sync.WaitGroup // the loops
	posting  sync.WaitGroup // appendPosts
	ticking  sync.WaitGroup // the clock
	accepts  sync.WaitGroup // one for each listener
	stopping chan struct{}
	retick   chan time.Duration

	configuring sync.Mutex // held by Configure: the loops and the clock get the same one

	mu        sync.Mutex
	listeners []*listener
	closed    bool
	turned    []uint64 // by Turning, at its last call
}

// New starts n loops, 1 to msglog.MaxReaders, that serve the log's messages to clients.
func New(store *msglog.Log, keep survive.Keep, n int, host Handshaker, config Config, log *slog.Logger) (*Loops, error) {
	return newLoops(store, keep, n, host, config, log, &linux)
}

func newLoops(store *msglog.Log, keep survive.Keep, n int, host Handshaker, config Config, log *slog.Logger, sys *system) (*Loops, error) {
	g := &Loops{
		log: log, store: store, keep: keep, host: host,
		posts: make(chan *post, mostPosts), stopping: make(chan struct{}), retick: make(chan time.Duration), turned: make([]uint64, n),
	}
	for range n {
		l, err := newLoop(g, &config, sys)
		if err != nil {
			for _, l := range g.loops {
				l.reader.Retire()
				l.file.Close()
			}
			return nil, err
		}
		g.loops = append(g.loops, l)
	}
	if keep.Table.Encoders() == 0 {
		keep.Table.SetEncoders(encode.Version())
	}
	for _, l := range g.loops {
		g.turning.Go(l.serve)
	}
	g.ticking.Go(func() { g.clock(config.tick()) })
	g.posting.Go(g.appendPosts)
	return g, nil
}

// clock counts ticks. A loop without clients is not woken for one.
func (g *Loops) clock(tick time.Duration) {
	t := time.NewTicker(tick)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			g.ticks.Add(1)
			for _, l := range g.loops {
				if l.load.Load() > 0 {
					l.wake()
				}
			}
		case tick = <-g.retick:
			t.Reset(tick)
		case <-g.stopping:
			return
		}
	}
}

// Configure replaces the configuration. Waits that were going on when the length of a tick changes start anew.
func (g *Loops) Configure(config Config) {
	g.configuring.Lock()
	defer g.configuring.Unlock()
	for _, l := range g.loops {
		l.next.Store(&config)
		l.wake()
	}
	select {
	case g.retick <- config.tick():
	case <-g.stopping:
	}
}

// add gives a connection, a non-blocking stream socket, to the loop with the fewest clients. The descriptor is the
// loops' from here on.
func (g *Loops) add(n newcomer) {
	least := g.loops[0]
	for _, l := range g.loops[1:] {
		if l.load.Load() < least.load.Load() {
			least = l
		}
	}
	least.mu.Lock()
	if least.done {
		least.mu.Unlock()
		least.reject(n)
		return
	}
	least.newcomers = append(least.newcomers, n)
	least.load.Add(1)
	least.mu.Unlock()
	least.wake()
}

// Turning tells whether every loop has turned since the last call, and makes each of them turn until the next one.
// The first call, and one that comes too soon, can be false for healthy loops: it is for a watchdog that calls it
// every few seconds.
func (g *Loops) Turning() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	turning := true
	for i, l := range g.loops {
		turns := l.turns.Load()
		if turns == g.turned[i] {
			turning = false
		}
		g.turned[i] = turns
		l.asked.Store(true)
		l.wake()
	}
	return turning
}

// StopAccepting ends accepting and waits until no connection is in hand. Connections that nobody has accepted stay
// with the listening sockets.
func (g *Loops) StopAccepting() {
	g.mu.Lock()
	g.closed = true
	for _, ln := range g.listeners {
		ln.stop()
	}
	g.listeners = nil
	g.mu.Unlock()
	g.accepts.Wait()
}

// Close stops accepting, says good-bye to all clients with a close code and a reason, each when it has been sent what
// the log has for it, and waits until they are gone. The good-byes are spread evenly over a time: clients come back when
// they are told, all at once if they are told at once. Those that are left when ctx ends are dropped. It is called
// once, and when nobody appends to the log any more: clients that are behind are closed when they have caught up.
func (g *Loops) Close(ctx context.Context, code uint16, reason string, spread time.Duration) {
	g.StopAccepting()
	order := &ending{code: code, reason: reason, deadline: ctx.Done()}
	if spread <= 0 {
		order.due.Store(all)
	}
	g.end(order)
	over := make(chan struct{})
	var pacing sync.WaitGroup
	pacing.Go(func() { g.pace(ctx, order, spread, over) })
	g.turning.Wait()
	close(over)
	pacing.Wait()
	g.wait()
}

// pulse is how often some clients are told good-bye.
const pulse = 20 * time.Millisecond

// pace says for how many clients it is time, until all loops are over.
func (g *Loops) pace(ctx context.Context, order *ending, spread time.Duration, over <-chan struct{}) {
	began := time.Now()
	t := time.NewTicker(pulse)
	defer t.Stop()
	for {
		select {
		case <-over:
			return
		case <-ctx.Done():
			g.wake()
			return
		case <-t.C:
		}
		if order.due.Load() < all {
			order.due.Store(uint32(all * min(time.Since(began), spread) / spread))
			g.wake()
		}
	}
}

func (g *Loops) wake() {
	for _, l := range g.loops {
		l.wake()
	}
}

func (g *Loops) end(order *ending) {
	for _, l := range g.loops {
		l.mu.Lock()
		l.order = order
		l.mu.Unlock()
		l.wake()
	}
}

func (g *Loops) wait() {
	g.turning.Wait()
	// The clock goes last: close timeouts are counted in ticks.
	close(g.stopping)
	g.ticking.Wait()
	g.posting.Wait()
}
