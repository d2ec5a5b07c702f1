package daemon

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"wscast/daemon/failpoint"
	"wscast/daemon/frame"
	"wscast/daemon/loop"
	"wscast/daemon/msglog"
	"wscast/ipc"
)

// Options of a daemon.
type Options struct {
	Config  Config
	Sockets Sockets // the daemon's from New on
	Version string
	Demo    bool // serve the demo page
	Log     *slog.Logger
	Level   *slog.LevelVar         // of Log, set by daemon.log_level
	Reload  func() (Config, error) // reads the configuration once more; nil: there is no file
}

// Daemon is a running wscastd.
type Daemon struct {
	log     *slog.Logger
	level   *slog.LevelVar
	sockets Sockets
	reload  func() (Config, error)
	config  atomic.Pointer[Config]

	survival   *survival
	store      *msglog.Log // survival.log
	loops      *loop.Loops
	handshaker *handshaker
	server     *ipc.Server
	notify     notifier
	rates      atomic.Pointer[rates]
}

// statusEvery is how often STATUS= is brought up to date, and over how long rates are measured. Tests make it shorter.
var statusEvery = 5 * time.Second

// At a stop clients are told good-bye one after the other, or they all come back at the same moment, to wherever nginx
// leads them then. TimeoutStopSec= of the unit is longer than all of it together.
const (
	// between two good-byes, as long as that takes no longer than mostSpread.
	between    = time.Millisecond
	mostSpread = 10 * time.Second
	// goodbye is how long clients have to take what the log has for them and to close, when the last one is told.
	goodbye = 5 * time.Second
	// leaveTaking is how long those have that end with the process although the others do not.
	leaveTaking = 2 * time.Second
)

// New makes a daemon that serves nobody yet. It takes the sockets over, also when it fails.
func New(o Options) (*Daemon, error) {
	d := &Daemon{log: o.Log, level: o.Level, sockets: o.Sockets, reload: o.Reload, notify: notifier{o.Log}}
	d.handshaker = &handshaker{demo: o.Demo, append: d.upstream}
	if _, publish := o.Sockets.Addresses(); len(publish) > 0 {
		d.handshaker.publish = publish[0]
	}
	auth, bad := newAuth(&o.Config.Auth)
	if bad != nil {
		return nil, errors.Join(bad, o.Sockets.Close())
	}
	rules, bad := allowRules(o.Config.Publish.Allow)
	if bad != nil {
		return nil, errors.Join(bad, d.sockets.Close())
	}
	s, err := takeOver(&o)
	d.sockets = o.Sockets
	if err != nil {
		return nil, errors.Join(err, d.sockets.Close())
	}
	d.survival, d.store = s, s.log
	d.handshaker.secret = s.keep.Table.Nonce()
	d.server = &ipc.Server{
		Broker: d, Log: o.Log, Version: o.Version,
		ReplyTimeout: time.Duration(o.Config.Publish.ReplyTimeout), MaxConns: o.Config.Publish.MaxConnections,
		CommandTimeout: time.Duration(o.Config.Publish.CommandTimeout),
	}
	n := o.Config.Daemon.Loops
	if n == 0 {
		// One loop for each processor. On two, with as many loops, a client of 10,000 gets a message after 29 ms at the median and 79 ms at
		// the 99th percentile; with one loop it is 46 and 116 ms. Rates are higher (115k and 86k deliveries/s with one message in flight),
		// and a delivery costs no more CPU (0.98 and 1.06 times the floor). doc/performance.md, "One loop or several", has all of it.
		n = min(runtime.GOMAXPROCS(0), msglog.MaxReaders)
	}
	if d.loops, err = loop.New(s.log, s.keep, n, d.handshaker, o.Config.loopConfig(), o.Log); err != nil {
		return nil, errors.Join(err, s.close(), d.sockets.Close())
	}
	d.rates.Store(&rates{at: time.Now()})
	d.apply(&o.Config, rules, auth)
	return d, nil
}

// apply puts a configuration into force, with the rules of its publish.allow and its auth.
func (d *Daemon) apply(c *Config, rules []ipc.Rule, auth *auth) {
	level, _ := level(c.Daemon.LogLevel) // check has
	d.level.Set(level)
	d.server.SetMaxMessage(int(c.Publish.MaxMessage))
	d.server.SetMemory(c.Publish.memory())
	d.server.SetPublishRate(c.Publish.Rate)
	d.server.SetRules(rules)
	d.handshaker.configure(c, auth)
	d.loops.Configure(c.loopConfig())
	d.config.Store(c)
}

// Run serves until SIGTERM or SIGINT comes over signals, or a listening socket fails. SIGHUP reloads the configuration.
func (d *Daemon) Run(signals <-chan os.Signal) error {
	d.survival.adopt(d.loops, d.log)
	d.survival.resume(d.server, d.log)
	ctx, cancel := context.WithCancel(context.Background())
	var watching sync.WaitGroup
	watching.Go(func() { d.survival.watch(ctx) })
	failed := make(chan error, len(d.sockets.Publish)+len(d.sockets.Datagrams))
	err := d.serve(failed)
	if err == nil {
		websocket, publish := d.sockets.Addresses()
		d.log.Info("serving", "websocket", websocket, "publish", publish, "loops", d.loops.Len())
		d.notify.ready(d.status())
		err = d.wait(signals, failed)
	}
	cancel()
	watching.Wait() // what it looks after is closed
	return errors.Join(err, d.stop())
}

func (d *Daemon) serve(failed chan<- error) error {
	serve := func(f func() error) {
		go func() {
			if err := f(); err != nil {
				failed <- err
			}
		}()
	}
	for _, l := range d.sockets.Publish {
		serve(func() error { return d.server.Serve(l) })
	}
	for _, c := range d.sockets.Datagrams {
		serve(func() error { return d.server.ServeDatagrams(c, d.config.Load().Publish.DatagramChannel) })
	}
	for _, f := range d.sockets.WebSocket {
		if err := d.loops.Serve(f); err != nil {
			return err
		}
	}
	return nil
}

func (d *Daemon) wait(signals <-chan os.Signal, failed <-chan error) error {
	status := time.NewTicker(statusEvery)
	defer status.Stop()
	watchdog, every := d.notify.watchdog(), trusted/4
	if watchdog > 0 {
		every = min(every, watchdog)
	}
	health := time.NewTicker(every)
	defer health.Stop()
	d.loops.Turning() // the first question, to be answered at the first tick
	began, lived := time.Now(), false
	shown := ""
	for {
		select {
		case s := <-signals:
			if s != syscall.SIGHUP {
				d.log.Info("stopping", "signal", s)
				return nil
			}
			d.reloadNow()
		case err := <-failed:
			return err
		case <-status.C:
			d.survival.hurry()
			if now := d.status(); now != shown {
				d.notify.status(now)
				shown = now
			}
		case <-health.C:
			turning := d.loops.Turning()
			switch {
			case !turning:
				d.log.Error("an event loop stands still: the watchdog, if there is one, is not told that all is well")
			case watchdog > 0:
				d.notify.alive()
			}
			lived = lived || d.survival.judge(turning, time.Since(began))
		}
	}
}

// reloadNow reads the configuration again. A bad file changes nothing.
func (d *Daemon) reloadNow() {
	d.notify.reloading()
	defer func() { d.notify.ready(d.status()) }()
	if d.reload == nil {
		d.log.Warn("nothing to reload: started without --config")
		return
	}
	c, err := d.reload()
	if err != nil {
		d.notReloaded(err)
		return
	}
	old := *d.config.Load()
	for _, key := range FixedChanges(old, c) {
		d.log.Warn("a changed key takes effect at the next restart", "key", key)
	}
	c.keepFixed(old)
	if err := c.Check(); err != nil { // a new publish.max_message can be too large for the log as it is
		d.notReloaded(err)
		return
	}
	auth, bad := newAuth(&c.Auth)
	if bad != nil {
		d.notReloaded(bad)
		return
	}
	rules, bad := allowRules(c.Publish.Allow)
	if bad != nil {
		d.notReloaded(bad)
		return
	}
	d.apply(&c, rules, auth)
	d.log.Info("configuration reloaded")
}

func (d *Daemon) notReloaded(err error) {
	text, hint, _ := strings.Cut(err.Error(), "\n")
	d.log.Error("the configuration was not reloaded, nothing has changed", "error", text, "hint", hint)
}

// stop ends everything in the order of a message's way, so that what is published is still delivered. With an heir to
// come no client is closed, and nothing more is written to them either: the heir goes on.
func (d *Daemon) stop() error {
	code, reason := uint16(frame.CloseServiceRestart), loop.RestartReason
	heir := d.survival.standing().off == ""
	if heir {
		stop, err := forGood()
		if err != nil {
			d.log.Warn("cannot ask systemd whether this is a restart: it is taken for one", "error", err)
		}
		if stop {
			heir, code, reason = false, frame.CloseGoingAway, "the server stops"
		}
	}
	d.notify.stopping()
	d.loops.StopAccepting()
	var err error
	if heir {
		suspended := d.server.Suspend()
		failpoint.Pass("suspend.publishers")
		d.survival.hand(suspended, d.log)
		failpoint.Pass("suspend.handed")
		ctx, cancel := context.WithTimeout(context.Background(), leaveTaking)
		defer cancel()
		d.loops.Suspend(ctx)
		failpoint.Pass("suspend.all")
		d.survival.keep.Table.Lived()
	} else {
		err = d.server.Close()
		clients := d.loops.Stats().Clients
		spread := min(time.Duration(clients)*between, mostSpread)
		if clients > 0 {
			d.log.Info("closing all clients", "clients", clients, "code", code, "within", spread)
		}
		ctx, cancel := context.WithTimeout(context.Background(), spread+goodbye)
		defer cancel()
		d.loops.Close(ctx, code, reason, spread)
		err = errors.Join(err, d.store.Finish())
	}
	return errors.Join(err, d.survival.close(), d.sockets.Close())
}
