package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/signal"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"wscast/test/booted"
)

// System is the first line.
type System struct {
	Address string // host:port of wscast.socket
	Publish string // path of the publish socket
	PID1    int
}

// Start is the last start of wscastd. The times are of CLOCK_MONOTONIC, in microseconds, which the host shares.
type Start struct {
	Left  int64 // wscast.service was no longer active
	Exec  int64 // the main process was started
	Ready int64 // it said READY=1
	// What it says of the clients that it took over; 0 and nothing when it has not.
	Adopted int
	Took    time.Duration
}

func main() {
	if len(os.Args) != 1 {
		fmt.Fprintln(os.Stderr, "boot: takes no arguments: see its documentation")
		os.Exit(2)
	}
	// Who started this may die, which ends the input; a signal is for people.
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer cancel()
	code := run(ctx, os.Stdin, os.Stdout)
	booted.RemoveLayers()
	os.Exit(code)
}

// run serves in a goroutine of its own, which Fatal ends, and returns the exit code.
func run(ctx context.Context, in io.Reader, out io.Writer) (code int) {
	t := &bench{}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer t.cleanup()
		serve(ctx, t, in, out)
	}()
	<-done
	if t.Failed() {
		return 1
	}
	return 0
}

func serve(ctx context.Context, t *bench, in io.Reader, out io.Writer) {
	m := booted.Boot(t)
	m.AwaitValue("wscast.service", "ActiveState", "active")
	say := json.NewEncoder(out)
	answer := func(v any) {
		if err := say.Encode(v); err != nil {
			t.Fatal(err)
		}
	}
	answer(System{m.Address(), m.PublishSocket(), m.Leader()})
	lines := make(chan string)
	go func() {
		defer close(lines)
		for s := bufio.NewScanner(in); s.Scan(); {
			lines <- s.Text()
		}
	}()
	for {
		var command string
		var more bool
		select {
		case <-ctx.Done():
			return
		case command, more = <-lines:
		}
		if !more {
			return
		}
		switch command {
		case "restart":
			m.Systemctl("restart", "wscast.service")
			answer(struct{}{})
		case "main":
			m.AwaitValue("wscast.service", "ActiveState", "active")
			answer(struct{ Main int }{m.MainPID("wscast.service")})
		case "start":
			m.AwaitValue("wscast.service", "ActiveState", "active")
			answer(start(t, m))
		default:
			t.Fatalf("there is no command %q: see the documentation of this program", command)
		}
	}
}

var takenOver = regexp.MustCompile(`clients taken over adopted=(\d+) .*took=(\S+)`)

func start(t *bench, m *booted.Machine) (s Start) {
	at := func(property string) int64 {
		v, err := strconv.ParseInt(m.Show("wscast.service", property), 10, 64)
		if err != nil {
			t.Fatalf("%s: %v", property, err)
		}
		return v
	}
	s.Left, s.Exec, s.Ready = at("ActiveExitTimestampMonotonic"), at("ExecMainStartTimestampMonotonic"), at("ActiveEnterTimestampMonotonic")
	all := takenOver.FindAllStringSubmatch(m.Journal("wscast.service"), -1)
	if len(all) == 0 {
		return s
	}
	last := all[len(all)-1]
	var err error
	s.Adopted, _ = strconv.Atoi(last[1])
	if s.Took, err = time.ParseDuration(strings.Trim(last[2], `"`)); err != nil {
		t.Fatal(err)
	}
	return s
}

// bench is what booted wants of a test. The interface it embeds is nil: what is not here is not called.
type bench struct {
	testing.TB
	cleanups []func()
	failed   bool
}

func (b *bench) Helper()          {}
func (b *bench) Failed() bool     { return b.failed }
func (b *bench) Cleanup(f func()) { b.cleanups = append(b.cleanups, f) }

func (b *bench) Log(args ...any)                 { fmt.Fprintln(os.Stderr, args...) }
func (b *bench) Logf(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }

func (b *bench) Error(args ...any) {
	b.failed = true
	b.Log(args...)
}

func (b *bench) Errorf(format string, args ...any) {
	b.failed = true
	b.Logf(format, args...)
}

func (b *bench) FailNow() {
	b.failed = true
	runtime.Goexit()
}

func (b *bench) Fatal(args ...any) {
	b.Log(args...)
	b.FailNow()
}

func (b *bench) Fatalf(format string, args ...any) {
	b.Logf(format, args...)
	b.FailNow()
}

// cleanup does, last first, what was asked for.
func (b *bench) cleanup() {
	for _, f := range slices.Backward(b.cleanups) {
		func() {
			done := make(chan struct{})
			go func() { // since f may end its goroutine
				defer close(done)
				f()
			}()
			<-done
		}()
	}
}
