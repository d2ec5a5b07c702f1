package harness

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// stopPatience is how long a daemon may take to end on SIGTERM.
const stopPatience = 20 * time.Second

// A Daemon is a service: its sockets, its configuration, and the wscastd process that serves them, if one is running. Used by one goroutine.
type Daemon struct {
	t       testing.TB
	program string
	dir     string
	config  string // text of the configuration file
	args    []string
	sockets []*socket
	room    int // of the descriptor store
	notify  *notifySocket
	doom    string // in the environment of the next process
	under   []string

	process *process  // nil while stopped
	heard   int       // position in notify behind what has been awaited
	failed  *process  // the last one that did not become ready
	logs    []*output // of all its processes
}

// An Option changes what [Start] starts.
type Option func(*Daemon)

// Config is the text of the configuration file; without it the file is empty.
func Config(toml string) Option { return func(d *Daemon) { d.config = toml } }

// Demo serves the demo page.
func Demo() Option { return Args("--demo") }

// Args are further arguments for wscastd.
func Args(args ...string) Option { return func(d *Daemon) { d.args = append(d.args, args...) } }

// Socket gives the daemon another socket of this name; network is tcp, unix or unixgram. Without it
// a daemon has websocket (tcp) and publish (unix).
func Socket(name, network string) Option {
	return func(d *Daemon) { d.sockets = append(d.sockets, &socket{name: name, network: network}) }
}

// FDStore gives the daemon a store for that many descriptors (FileDescriptorStoreMax=), which every further process of it
// gets with its sockets.
func FDStore(room int) Option { return func(d *Daemon) { d.room = room } }

// Under has further processes started by a program and its arguments, which has to execute the command that follows them.
func (d *Daemon) Under(words ...string) { d.under = words }

// EmptyStore closes what is stored, as systemd does when a service is stopped.
func (d *Daemon) EmptyStore() {
	d.t.Helper()
	if err := d.notify.settle(); err != nil {
		d.t.Fatal(err)
	}
	d.notify.empty()
}

// NoSockets replaces all sockets so far, those of every daemon included, by none.
func NoSockets() Option { return func(d *Daemon) { d.sockets = nil } }

// Start starts a daemon and returns when it has said READY=1. It is stopped and judged when the test ends.
func Start(t testing.TB, options ...Option) *Daemon {
	t.Helper()
	d := newDaemon(t, Program(t, "wscastd"), options)
	d.Start()
	return d
}

// Refused starts a daemon that must not become ready, and returns its exit code and its log.
func Refused(t testing.TB, options ...Option) (code int, log string) {
	t.Helper()
	d := newDaemon(t, Program(t, "wscastd"), options)
	if err := d.start(); err == nil {
		t.Fatalf("wscastd became ready, and should have refused\n%s", d.Log())
	}
	code = d.failed.cmd.ProcessState.ExitCode()
	if code == -1 {
		t.Fatalf("wscastd did not end by itself, and should have refused: %v\n%s", d.failed.cmd.ProcessState, d.Log())
	}
	return code, d.Log()
}

func newDaemon(t testing.TB, program string, options []Option) *Daemon {
	t.Helper()
	d := &Daemon{t: t, program: program, dir: tempDir(t)}
	Socket("websocket", "tcp")(d)
	Socket("publish", "unix")(d)
	for _, o := range options {
		o(d)
	}
	var err error
	if d.notify, err = openNotifySocket(filepath.Join(d.dir, "notify")); err != nil {
		t.Fatal(err)
	}
	d.notify.room = d.room
	t.Cleanup(d.end)
	for i, s := range d.sockets {
		if s.network == "tcp" {
			s.port = reservePort(t)
			s.address = local(s.port)
		} else {
			s.address = filepath.Join(d.dir, fmt.Sprintf("%s-%d.sock", s.name, i))
		}
	}
	d.OpenSockets()
	return d
}

// Start starts a process after [Daemon.Stop] or [Daemon.Kill], on the same sockets.
func (d *Daemon) Start() {
	d.t.Helper()
	if err := d.start(); err != nil {
		d.t.Fatal(err)
	}
}

// Stop ends the process as systemctl stop does, and judges it: exit code 0, no data race, nobody left behind. The sockets
// stay open, so that connections wait in them.
func (d *Daemon) Stop() {
	d.t.Helper()
	if err := d.stop(syscall.SIGTERM); err != nil {
		d.t.Error(err)
	}
}

// Kill ends the process with SIGKILL. The sockets stay open.
func (d *Daemon) Kill() {
	d.t.Helper()
	if err := d.stop(syscall.SIGKILL); err != nil {
		d.t.Error(err)
	}
}

// Signal sends the process a signal.
func (d *Daemon) Signal(sig syscall.Signal) {
	d.t.Helper()
	if err := d.process.cmd.Process.Signal(sig); err != nil {
		d.t.Fatal(err)
	}
}

// PID is that of the running process.
func (d *Daemon) PID() int { return d.process.cmd.Process.Pid }

// CloseSockets closes the sockets of a stopped daemon: connecting to them is refused until [Daemon.OpenSockets].
func (d *Daemon) CloseSockets() {
	for _, s := range d.sockets {
		s.close()
	}
}

// OpenSockets opens the sockets again, at their old addresses.
func (d *Daemon) OpenSockets() {
	d.t.Helper()
	for _, s := range d.sockets {
		if err := s.open(); err != nil {
			d.t.Fatal(err)
		}
	}
}

// Configure replaces the configuration file; the daemon reads it at the next SIGHUP or start.
func (d *Daemon) Configure(toml string) {
	d.t.Helper()
	d.config = toml
	writeFile(d.t, d.dir, "wscast.toml", toml)
}

// ConfigFile is the path of the configuration file.
func (d *Daemon) ConfigFile() string { return filepath.Join(d.dir, "wscast.toml") }

// Address is the address of the first socket of that name: host:port, or a path.
func (d *Daemon) Address(socketName string) string {
	d.t.Helper()
	return d.Addresses(socketName)[0]
}

// Addresses are those of all sockets of that name, in the order in which they were asked for.
func (d *Daemon) Addresses(socketName string) (addresses []string) {
	d.t.Helper()
	for _, s := range d.sockets {
		if s.name == socketName {
			addresses = append(addresses, s.address)
		}
	}
	if len(addresses) == 0 {
		d.t.Fatalf("the daemon has no socket %q", socketName)
	}
	return addresses
}

// WebSocketURL is the ws:// URL of a channel at the first websocket socket, which must be tcp. "" is the URL without
// a channel.
func (d *Daemon) WebSocketURL(channel string) string {
	d.t.Helper()
	return "ws://" + d.Address("websocket") + WebSocketPath(channel)
}

// WebSocketPath is the path of a channel's URL.
func WebSocketPath(channel string) string {
	if channel == "" {
		return "/websocket"
	}
	return "/websocket/" + (&url.URL{Path: channel}).EscapedPath()
}

// PublishSocket is the path of the publish socket.
func (d *Daemon) PublishSocket() string {
	d.t.Helper()
	return d.Address("publish")
}

// Log is what its processes have written to standard error, oldest first.
func (d *Daemon) Log() string {
	var text strings.Builder
	for _, l := range d.logs {
		text.WriteString(l.String())
	}
	return text.String()
}

// AwaitLog returns when the running process has logged text.
func (d *Daemon) AwaitLog(text string) {
	d.t.Helper()
	d.process.awaitLog(d.t, strconv.Quote(text), func(log string) bool { return strings.Contains(log, text) })
}

// Notifications are the lines that the running process has sent to systemd (sd_notify(3)), as READY=1.
func (d *Daemon) Notifications() []string { return d.notify.all(d.PID()) }

// AwaitNotification returns the next line for which match is true. Every call goes on behind the line that the last
// one returned; the first after a start, behind READY=1.
func (d *Daemon) AwaitNotification(match func(line string) bool) string {
	d.t.Helper()
	line, heard, err := d.notify.await(d.PID(), d.heard, match, d.process.done)
	if err != nil {
		d.t.Fatalf("wscastd did not notify: %v; it sent %q\n%s", err, d.Notifications(), d.Log())
	}
	d.heard = heard
	return line
}

func (d *Daemon) start() error {
	if d.process != nil {
		return errors.New("wscastd is running: stop it first")
	}
	config := writeFile(d.t, d.dir, "wscast.toml", d.config)
	// systemd sets LISTEN_PID to the process it executes, which is known before exec only in that process. $0 and
	// $@ are the program and its arguments.
	cmd := exec.Command("sh", slices.Concat([]string{"-c", `export LISTEN_PID=$$; exec "$0" "$@"`}, d.under, []string{d.program, "--config", config}, d.args)...)
	cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool {
		name, _, _ := strings.Cut(v, "=")
		return strings.HasPrefix(name, "LISTEN_") || strings.HasPrefix(name, "WATCHDOG_") || name == "JOURNAL_STREAM" || name == "NOTIFY_SOCKET"
	})
	// A program with the race detector sleeps a second before it ends, for reports that are being written.
	cmd.Env = append(cmd.Env, "NOTIFY_SOCKET="+filepath.Join(d.dir, "notify"), "GORACE="+os.Getenv("GORACE")+" atexit_sleep_ms=100")
	if d.doom != "" {
		cmd.Env = append(cmd.Env, d.doom)
	}
	if len(d.sockets) > 0 {
		var names []string
		for _, s := range d.sockets {
			names = append(names, s.name)
			cmd.ExtraFiles = append(cmd.ExtraFiles, s.file)
		}
		if err := d.notify.settle(); err != nil {
			return err
		}
		stored, err := d.notify.inStore()
		for _, f := range stored {
			defer f.Close()
			names = append(names, f.Name())
			cmd.ExtraFiles = append(cmd.ExtraFiles, f)
		}
		if err != nil {
			return err
		}
		cmd.Env = append(cmd.Env, "LISTEN_FDS="+strconv.Itoa(len(names)), "LISTEN_FDNAMES="+strings.Join(names, ":"))
	}
	p, err := startProcess(cmd, syscall.SIGKILL)
	if err != nil {
		return err
	}
	d.process = p
	d.logs = append(d.logs, p.log)
	ready := func(line string) bool { return line == "READY=1" }
	if _, d.heard, err = d.notify.await(d.PID(), 0, ready, p.done); err != nil {
		err = fmt.Errorf("wscastd should have said READY=1: %w", err)
		if others := d.notify.fromOthers(d.PID()); others != "" {
			err = fmt.Errorf("%w (another process said %s)", err, others)
		}
		d.process, d.failed = nil, p
		if ended := p.stop(syscall.SIGKILL, stopPatience); ended != nil {
			err = fmt.Errorf("%w: %w", err, ended)
		}
		return fmt.Errorf("%w\n%s", err, p.log)
	}
	return nil
}

func (d *Daemon) stop(sig syscall.Signal) error {
	p := d.process
	if p == nil {
		return nil
	}
	d.process = nil
	err := p.stop(sig, stopPatience)
	if strings.Contains(p.log.String(), "DATA RACE") {
		err = errors.Join(err, errors.New("it reports a data race"))
	}
	if err != nil {
		return fmt.Errorf("wscastd after %v: %w\n%s", sig, err, p.log)
	}
	return nil
}

func (d *Daemon) end() {
	d.Stop()
	d.CloseSockets()
	d.notify.close()
	if d.t.Failed() {
		d.t.Logf("log of wscastd:\n%s", d.Log())
	}
}
