package booted_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"wscast/bench/plot"
	"wscast/test/booted"
	"wscast/test/booted/crowd"
)

// A soak is a service that is disturbed all the time, and looked at between two disturbances.
type soak struct {
	t     *testing.T
	m     *booted.Machine
	crowd *crowd.Crowd
	last  string // main process that was killed last

	begun   time.Time
	done    map[string]int // disturbances
	slow    []int          // sockets of clients that never read
	ended   int            // of those, as slow: known up to the last look
	samples []sample
}

// A sample is what a service has.
type sample struct {
	after                time.Duration
	own, mapped          float64 // MiB: memory of wscastd alone; what it maps of the log and the connection table
	open, stored, parked int     // descriptors: of wscastd, in the store, in flight
	clients, halfClosed  int
	slow, published      int
}

// TestSoak keeps clients of every kind coming and going, publishers and some of the clients publishing, and clients that never read, while the service
// is restarted, killed, and told to reload. Every client that stays gets every message once and in order; nothing grows. WSCAST_SOAK_TIME sets how long, WSCAST_SOAK_CLIENTS how many
// stay, and WSCAST_SOAK_FIGURES the directory that the courses are drawn in.
func TestSoak(t *testing.T) {
	patience := 5 * time.Second
	if text := os.Getenv("WSCAST_SOAK_TIME"); text != "" {
		var err error
		if patience, err = time.ParseDuration(text); err != nil {
			t.Fatalf("WSCAST_SOAK_TIME: %v", err)
		}
	}
	clients := fromEnvironment(t, "WSCAST_SOAK_CLIENTS", few)
	m := booted.Boot(t, booted.Config("[log]\nsize = \"2MiB\"\n[publish]\nmax_message = \"64KiB\"\n"+sociable))
	s := &soak{t: t, m: m, begun: time.Now(), done: map[string]int{}}
	s.crowd = crowd.GatherMix(t, "tcp", m.Address(), crowd.Mix{Clients: clients, Kinds: crowd.Kinds, Channels: 3})
	defer s.leaveSlow()
	s.crowd.Speak(crowd.Raw, crowd.JSON, crowd.JSONDeflated)
	s.crowd.Publish(m.PublishSocket(), crowd.Flow{Publishers: 4, Size: 4000, Window: 40})
	s.crowd.Pass(comers, 10)
	s.crowd.AwaitMessages(20)
	disturbances := []struct {
		name string
		do   func()
	}{
		{"restarts", func() { m.Systemctl("restart", "wscast.service") }},
		{"kills", func() { s.last = kill(m, s.last) }},
		{"reloads", func() { m.Systemctl("reload", "wscast.service") }},
		{"reloads of systemd", func() { m.Systemctl("daemon-reload") }},
		{"stops for a moment", s.pause},
		{"groups of slow clients", s.comeSlow},
	}
	for round := 0; round == 0 || time.Since(s.begun) < patience; round++ {
		for _, i := range rand.Perm(len(disturbances)) {
			d := disturbances[i]
			d.do()
			s.done[d.name]++
			s.crowd.AwaitMessages(20 + rand.IntN(80))
			s.crowd.AwaitPassed(rand.IntN(50))
			s.look()
		}
	}
	s.leaveSlow()
	s.crowd.Pass(0, 0)
	passed := s.crowd.Finish()
	m.Await("wscast.service", "StatusText", func(string) bool {
		i := info(t, m)
		return i["parked"] == strconv.Itoa(clients)
	})
	s.look()
	first, end := s.samples[0], s.samples[len(s.samples)-1]
	t.Logf("%v, %d clients, %d messages, %+v, %v; %d clients were slow; first %+v, last %+v", time.Since(s.begun).Round(time.Second), clients,
		s.crowd.Messages(), passed, s.done, s.ended, first, end)
	s.draw()
	if s.crowd.Stayers() != clients {
		t.Errorf("%d of %d clients are still there", s.crowd.Stayers(), clients)
	}
	if end.clients != clients || end.halfClosed != 0 {
		t.Errorf("%d clients are connected and %d half closed, expected %d and 0", end.clients, end.halfClosed, clients)
	}
	if end.stored > 3+3*2 { // log and table, and what is sent a command in hand; a tail and two bulk segments
		t.Errorf("%d descriptors are stored", end.stored)
	}
	if most := clients + 40; end.open > most {
		t.Errorf("wscastd has %d files open with %d clients", end.open, clients)
	}
	if patience >= time.Minute {
		s.expectFlat()
		if s.ended == 0 {
			t.Error("no client was slow")
		}
	}
}

// pause holds the process up, for less than the watchdog's patience.
func (s *soak) pause() {
	pid := s.m.MainPID("wscast.service")
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		s.t.Fatal(err)
	}
	defer unix.Kill(pid, unix.SIGCONT)
	s.m.Systemctl("is-system-running")
}

// comeSlow replaces the clients that never read.
func (s *soak) comeSlow() {
	s.leaveSlow()
	host, port, _ := strings.Cut(s.m.Address(), ":")
	n, _ := strconv.Atoi(port)
	for range 20 {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			s.t.Fatal(err)
		}
		s.slow = append(s.slow, fd)
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 4096) // before it connects: the window does not shrink
		if err := unix.Connect(fd, &unix.SockaddrInet4{Port: n, Addr: [4]byte{127, 0, 0, 1}}); err != nil {
			s.t.Fatal(err)
		}
		request := "GET /websocket/" + crowd.Channel + " HTTP/1.1\r\nHost: " + host + "\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" +
			"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
		if _, err := unix.Write(fd, []byte(request)); err != nil {
			s.t.Fatal(err)
		}
	}
}

func (s *soak) leaveSlow() {
	for _, fd := range s.slow {
		unix.Close(fd)
	}
	s.slow = nil
}

// look takes a sample. Nothing disturbs the service meanwhile.
func (s *soak) look() {
	s.m.AwaitValue("wscast.service", "ActiveState", "active")
	now := sample{after: time.Since(s.begun), open: openFiles(s.t, s.m)}
	now.own = float64(memory(s.t, s.m, "RssAnon")) / 1024
	now.mapped = float64(memory(s.t, s.m, "RssShmem")) / 1024
	i := info(s.t, s.m)
	number := func(key string) int {
		n, err := strconv.Atoi(i[key])
		if err != nil {
			s.t.Fatalf("INFO has %s=%q", key, i[key])
		}
		return n
	}
	now.stored, now.parked, now.clients = number("stored_descriptors"), number("parked"), number("connected_clients")
	now.slow, now.published = number("slow"), number("messages")
	now.halfClosed = closeWait(s.t, s.m.Address()[strings.LastIndexByte(s.m.Address(), ':')+1:])
	// The counts begin anew with each process.
	before := 0
	if len(s.samples) > 0 {
		if last := s.samples[len(s.samples)-1]; last.slow <= now.slow {
			before = last.slow
		}
	}
	s.ended += now.slow - before
	s.samples = append(s.samples, now)
}

// expectFlat compares the second quarter of the time with the last one: the first one is for what fills once.
func (s *soak) expectFlat() {
	n := len(s.samples)
	for what, of := range map[string]func(sample) float64{
		"wscastd's own memory, MiB": func(s sample) float64 { return s.own },
		"log and table, MiB":        func(s sample) float64 { return s.mapped },
		"open files":                func(s sample) float64 { return float64(s.open) },
		"stored descriptors":        func(s sample) float64 { return float64(s.stored) },
		"parked connections":        func(s sample) float64 { return float64(s.parked) },
	} {
		before, after := median(s.samples[n/4:n/2], of), median(s.samples[n*3/4:], of)
		s.t.Logf("%s: %.1f, then %.1f", what, before, after)
		if after > 1.25*before+8 {
			s.t.Errorf("%s grew from %.1f to %.1f", what, before, after)
		}
	}
}

func median(samples []sample, of func(sample) float64) float64 {
	var all []float64
	for _, s := range samples {
		all = append(all, of(s))
	}
	slices.Sort(all)
	return all[len(all)/2]
}

// draw draws the courses of what should be flat.
func (s *soak) draw() {
	dir := os.Getenv("WSCAST_SOAK_FIGURES")
	if dir == "" {
		return
	}
	course := func(name string, of func(sample) float64) plot.Series {
		line := plot.Series{Name: name}
		for _, at := range s.samples {
			line.Points = append(line.Points, plot.Point{X: at.after.Minutes(), Y: of(at)})
		}
		return line
	}
	minutes := fmt.Sprintf("minutes: %d restarts, %d kills, %d groups of slow clients", s.done["restarts"], s.done["kills"], s.done["groups of slow clients"])
	for file, chart := range map[string]*plot.Chart{
		"soak-memory.svg": {Title: "Memory in a soak", X: minutes, Y: "MiB", Series: []plot.Series{
			course("wscastd's own", func(s sample) float64 { return s.own }),
			course("log and connection table, mapped", func(s sample) float64 { return s.mapped }),
		}},
		"soak-descriptors.svg": {Title: "Connections and descriptors in a soak", X: minutes, Y: "number", Series: []plot.Series{
			course("open in wscastd", func(s sample) float64 { return float64(s.open) }),
			course("parked", func(s sample) float64 { return float64(s.parked) }),
			course("clients", func(s sample) float64 { return float64(s.clients) }),
			course("stored", func(s sample) float64 { return float64(s.stored) }),
		}},
	} {
		chart.Course = true
		var picture strings.Builder
		if err := chart.SVG(&picture); err != nil {
			s.t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, file), []byte(picture.String()), 0o644); err != nil {
			s.t.Fatal(err)
		}
	}
}
