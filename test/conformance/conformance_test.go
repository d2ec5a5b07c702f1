package conformance

import (
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"testing"

	"wscast/test/harness"
)

// configuration of the daemon that the cases are run against, and of the one for clients that cannot publish.
const configuration = deafConfiguration + `
[[channel]]
match = "echo/*"
upstream = "clients"
`

const deafConfiguration = `
[websocket]
max_message = "32KiB"
compression = true
ping = "0s"
upstream_rate = 0
`

func startDaemon(t *testing.T) *harness.Daemon { t.Helper(); return start(t, configuration) }

func start(t *testing.T, configuration string) *harness.Daemon {
	t.Helper()
	return harness.Start(t, harness.Socket("websocket", "unix"), harness.Config(configuration))
}

// addressOf is where clients of a mode connect.
func addressOf(d *harness.Daemon, m *mode) string {
	if m.network == "unix" {
		return d.Addresses("websocket")[1]
	}
	return d.Address("websocket")
}

const (
	atOnce = 16 // cases that are run at the same time: a case is mostly waiting
	enough = 50 // failures after which no more cases are run: each may wait for something that does not come
)

// TestConformance runs all cases with all kinds of clients that they fit.
func TestConformance(t *testing.T) {
	d, deaf := startDaemon(t), start(t, deafConfiguration)
	cases := allCases()
	if len(cases) < 500 {
		t.Fatalf("there are %d cases", len(cases))
	}
	var mu sync.Mutex
	var ran, failed, nonStrict int
	var all sync.WaitGroup
	free := make(chan struct{}, atOnce)
	for i := range cases {
		for _, m := range modes {
			c := &cases[i]
			if !c.fits(m) {
				continue
			}
			free <- struct{}{}
			mu.Lock()
			bad := failed
			mu.Unlock()
			if bad >= enough {
				<-free
				continue
			}
			server := d
			if m.deaf {
				server = deaf
			}
			all.Go(func() {
				defer func() { <-free }()
				verdict, what := run(c, m, addressOf(server, m))
				mu.Lock()
				defer mu.Unlock()
				ran++
				switch verdict {
				case fails:
					failed++
				case lenient:
					nonStrict++
				default:
					return
				}
				t.Errorf("%s %s (%s): %s", c.number, c.name, m.name, what)
			})
		}
	}
	all.Wait()
	t.Logf("%d cases, %d runs with %d kinds of clients: %d failed, %d non-strict", len(cases), ran, len(modes), failed, nonStrict)
}

type verdict int

const (
	passes verdict = iota
	lenient
	fails
)

// run runs a case with one client.
func run(c *testCase, m *mode, address string) (verdict, string) {
	w, err := dial(m, address, m.channel())
	if err != nil {
		return fails, err.Error()
	}
	defer w.Close()
	if conn, ok := w.Conn.(*net.TCPConn); ok {
		_ = conn.SetNoDelay(true) // the default; a segment for each write
	}
	want := m.told(c.want)
	sent := make(chan struct{})
	go func() { // beside reading: what comes back of much is much
		defer close(sent)
		for _, b := range c.send {
			if _, err := io.WriteString(w, b); err != nil {
				return // closed meanwhile, as may be wanted
			}
		}
	}()
	got, err := w.hears(want, sent)
	w.Close()
	<-sent
	if err != nil {
		return fails, fmt.Sprintf("%v after %v, want %v", err, got, want)
	}
	if judge(got, want) {
		return passes, ""
	}
	for _, also := range c.lenient {
		if judge(got, m.told(also)) {
			return lenient, fmt.Sprintf("got %v, which is allowed, want %v", got, want)
		}
	}
	return fails, fmt.Sprintf("got %v, want %v", got, want)
}

// judge compares what a client was told with what it was to be told. An echo goes another way than what a loop answers by
// itself, so that messages and control frames are each in order, but not to one another; a close frame is the last of both.
func judge(got, want []event) bool {
	if !slices.ContainsFunc(want, func(e event) bool { return e.what == "close" }) {
		want = append(slices.Clone(want), closed("1000")) // our own good-bye is answered
	}
	want = append(slices.Clone(want), event{"end", ""})
	split := func(events []event) (data, control []event) {
		for _, e := range events {
			if e.isData() {
				data = append(data, e)
			} else {
				control = append(control, e)
			}
		}
		return data, control
	}
	gotData, gotControl := split(got)
	wantData, wantControl := split(want)
	last := slices.IndexFunc(got, func(e event) bool { return e.what == "close" })
	return slices.Equal(gotData, wantData) && slices.Equal(gotControl, wantControl) && last == len(got)-2
}

// The judge is held against itself: what is missing, too much, or in another order is found.
func TestJudge(t *testing.T) {
	end := event{"end", ""}
	for _, c := range []struct {
		got, want []event
		good      bool
	}{
		{[]event{text("a"), closed("1000"), end}, []event{text("a")}, true},
		{[]event{text("a"), pong("p"), closed("1000"), end}, []event{pong("p"), text("a")}, true},
		{[]event{text("a"), end}, []event{text("a")}, false},
		{[]event{closed("1000"), end}, []event{text("a")}, false},
		{[]event{closed("1000"), text("a"), end}, []event{text("a")}, false},
		{[]event{text("b"), text("a"), closed("1000"), end}, []event{text("a"), text("b")}, false},
		{[]event{text("a"), text("a"), closed("1000"), end}, []event{text("a")}, false},
		{[]event{binaryMessage("a"), closed("1000"), end}, []event{text("a")}, false},
		{[]event{closed("1002"), end}, nil, false},
		{[]event{closed("1007"), end}, []event{closed("1002")}, false},
	} {
		if judge(c.got, c.want) != c.good {
			t.Errorf("%v for %v: should be %v", c.got, c.want, c.good)
		}
	}
}
