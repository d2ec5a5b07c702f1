package daemon

import (
	"context"
	"log/slog"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestServiceManagerIsTold(t *testing.T) {
	m := newManager(t)
	r := start(t)
	said := m.expect(t, "READY=1")
	if !strings.Contains(said, "\nSTATUS=0 clients, 0 channels, 0 messages/s in, 0 messages/s out") {
		t.Errorf("at the start it says %q", said)
	}

	var before, after unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &before); err != nil {
		t.Fatal(err)
	}
	r.reload = func() (Config, error) { return *r.d.config.Load(), nil }
	r.signals <- syscall.SIGHUP
	said = m.expect(t, "RELOADING=1")
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &after); err != nil {
		t.Fatal(err)
	}
	_, usec, _ := strings.Cut(strings.TrimSuffix(said, "\n"), "\nMONOTONIC_USEC=")
	if n, err := strconv.ParseInt(usec, 10, 64); err != nil || n < before.Nano()/1000 || n > after.Nano()/1000 {
		t.Errorf("%q, which is not between %d and %d µs", said, before.Nano()/1000, after.Nano()/1000)
	}
	m.expect(t, "READY=1")

	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	m.expect(t, "STOPPING=1")
}

// A reload that fails is over as well: systemd waits for READY=1.
func TestReadyAfterAReloadThatFails(t *testing.T) {
	m := newManager(t)
	r := start(t)
	m.expect(t, "READY=1")
	r.reload = func() (Config, error) { return Load(r.dir + "/nowhere") }
	r.signals <- syscall.SIGHUP
	m.expect(t, "RELOADING=1")
	m.expect(t, "READY=1")
}

func TestWatchdogIsToldWhileLoopsTurn(t *testing.T) {
	m := newManager(t)
	t.Setenv("WATCHDOG_USEC", "200000")
	t.Setenv("WATCHDOG_PID", strconv.Itoa(os.Getpid()))
	start(t)
	m.expect(t, "READY=1")
	for range 3 {
		m.expect(t, "WATCHDOG=1")
	}
}

// A loop that stands still, here in the log, ends the WATCHDOG=1 until it turns again.
func TestWatchdogIsNotToldWhileALoopStandsStill(t *testing.T) {
	m := newManager(t)
	t.Setenv("WATCHDOG_USEC", "200000")
	t.Setenv("WATCHDOG_PID", strconv.Itoa(os.Getpid()))
	obstacle := &obstacle{message: "client open", there: make(chan struct{}), gone: make(chan struct{})}
	r := start(t, func(o *Options, _ string) {
		o.Config.Daemon.Loops, o.Config.Daemon.LogLevel = 1, "debug"
		obstacle.Handler = o.Log.Handler()
		o.Log = slog.New(obstacle)
	})
	conn, err := net.Dial("tcp", r.address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte(request("GET /websocket HTTP/1.1"))); err != nil {
		t.Fatal(err)
	}
	<-obstacle.there
	r.log.expect(t, "stands still")
	m.drain()
	r.log.clear()
	r.log.expect(t, "stands still") // once more
	if said := m.drain(); slices.Contains(said, "WATCHDOG=1") {
		t.Errorf("the daemon says %q", said)
	}
	close(obstacle.gone)
	m.expect(t, "WATCHDOG=1")
}

// obstacle is a log that holds up the first one with a certain message.
type obstacle struct {
	slog.Handler
	message     string
	once        sync.Once
	there, gone chan struct{}
}

func (o *obstacle) Handle(ctx context.Context, r slog.Record) error {
	if r.Message == o.message {
		o.once.Do(func() {
			close(o.there)
			<-o.gone
		})
	}
	return o.Handler.Handle(ctx, r)
}

func TestStatusIsKeptUpToDate(t *testing.T) {
	was := statusEvery
	statusEvery = 20 * time.Millisecond
	t.Cleanup(func() { statusEvery = was }) // after the daemon has ended
	m := newManager(t)
	r := start(t)
	m.expect(t, "READY=1")
	r.open("a")
	r.open("b")
	for said := ""; !strings.HasPrefix(said, "STATUS=2 clients, 2 channels, "); {
		select {
		case said = <-m.said:
		case <-time.After(patience):
			t.Fatalf("the last status is %q", said)
		}
	}
}

func TestWatchdogInterval(t *testing.T) {
	pid := strconv.Itoa(os.Getpid())
	for _, test := range []struct {
		usec, pid string
		want      time.Duration
	}{
		{"", "", 0}, {"20000000", pid, 5 * time.Second}, {"20000000", "", 5 * time.Second}, {"20000000", "1", 0}, {"soon", pid, 0}, {"-1", pid, 0},
	} {
		t.Setenv("WATCHDOG_USEC", test.usec)
		t.Setenv("WATCHDOG_PID", test.pid)
		if got := (notifier{slog.New(slog.DiscardHandler)}).watchdog(); got != test.want {
			t.Errorf("WATCHDOG_USEC=%s WATCHDOG_PID=%s: every %v, want %v", test.usec, test.pid, got, test.want)
		}
	}
}

// A manager that is not there is worth a warning, and no more.
func TestServiceManagerThatIsGone(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", t.TempDir()+"/nobody")
	r := start(t)
	r.log.expect(t, `level=WARN msg="cannot notify the service manager"`)
	r.open("news")
}
