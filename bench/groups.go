package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"wscast/bench/plot"
)

// A group is the rows that are measured in one go: a section of the page.
type group struct {
	name    string   // of its place in the page
	rows    []string // names on the command line, any of which wants it
	title   string
	measure func(*measurement, context.Context) (*section, error)
}

var groups = []group{
	{"clients", []string{"delivery", "latency", "idle", "handshake", "churn"}, "Clients on one channel", (*measurement).clientSection},
	{"publish", []string{"publish"}, "Publishers", (*measurement).publishSection},
	{"nginx", []string{"nginx"}, "Behind nginx, the CPU and memory of all processes", (*measurement).nginxSection},
	{"encodings", []string{"encodings"}, "What clients read: raw frames, wscast.v1.json, event streams", (*measurement).encodingsSection},
	{"slow", []string{"slow"}, "Clients that never read, beside others", (*measurement).slowSection},
	{"growth", []string{"growth"}, "How cost grows", (*measurement).growthSection},
	{"survival", []string{"survival"}, "What clients notice of a restart and of a kill -9", (*measurement).survivalSection},
}

// allRows are the names on the command line, and quickRows those of a quick run.
var (
	allRows = func() (all []string) {
		for _, g := range groups {
			all = append(all, g.rows...)
		}
		return all
	}()
	quickRows = []string{"delivery", "latency", "idle", "handshake", "publish"}
)

func (g *group) wanted(o options) bool {
	return slices.ContainsFunc(g.rows, func(name string) bool { return slices.Contains(o.rows, name) })
}

// A measurement is one run of the bench.
type measurement struct {
	options
	dir      string
	programs programs
	chosen   []server
	progress io.Writer
}

// build builds or finds what the chosen servers need. A server is left out when a program
// that is not ours is not there.
func (m *measurement) build(ctx context.Context) error {
	m.programs = make(programs)
	missing := make(map[string]bool)
	for _, s := range servers {
		if !slices.Contains(m.names, s.name) {
			continue
		}
		found := true
		for _, name := range s.needs {
			if m.programs[name] == "" && !missing[name] {
				path, err := m.obtain(ctx, name)
				switch {
				case err == nil:
					m.programs[name] = path
				case name == "nginx" || name == "redis-server":
					missing[name] = true
					fmt.Fprintln(m.progress, "bench:", err)
				default:
					return fmt.Errorf("%s: %w", s.name, err)
				}
			}
			found = found && !missing[name]
		}
		if found {
			m.chosen = append(m.chosen, s)
		}
	}
	return nil
}

func (m *measurement) obtain(ctx context.Context, name string) (string, error) {
	if name == "wscastd" && m.program != "" {
		return filepath.Abs(m.program)
	}
	return builders[name](ctx, m.dir)
}

// visit measures every chosen server of these names, in every round.
func (m *measurement) visit(ctx context.Context, rounds int, p plan, names ...string) (results, error) {
	r := make(results)
	var visited []server
	for _, s := range m.chosen {
		if slices.Contains(names, s.name) {
			visited = append(visited, s)
		}
	}
	for round := range rounds {
		for i := range visited {
			s := visited[(round+i)%len(visited)]
			f, err := m.quietest(ctx, s, p, fmt.Sprintf("round %d of %d, %d clients", round+1, rounds, p.Clients))
			if err != nil {
				return nil, err
			}
			r[s.name] = append(r[s.name], f)
		}
	}
	return r, nil
}

// quietest measures a server until the machine was quiet meanwhile, or often enough, and returns the figures of the quietest time. What
// decides is what others did, and never the figures themselves.
func (m *measurement) quietest(ctx context.Context, s server, p plan, what string) (quietest figures, err error) {
	p.Phase, p.Settle, p.Stall = m.phase, m.settle, 10*time.Second
	for range attempts {
		f, err := m.once(ctx, s, p, what)
		if err != nil {
			return nil, err
		}
		if quietest == nil || f[othersShare] < quietest[othersShare] {
			quietest = f
		}
		if f[othersShare] <= m.quiet {
			break
		}
	}
	return quietest, nil
}

// once starts a server, measures it, and stops it.
func (m *measurement) once(ctx context.Context, s server, p plan, what string) (figures, error) {
	before, err := readMachineTime()
	if err != nil {
		return nil, err
	}
	r, err := start(ctx, s, m.programs, m.dir)
	if err != nil {
		return nil, err
	}
	if m.verbose {
		pids, _ := r.pids()
		fmt.Fprintf(m.progress, "%s: %s, processes %v\n", what, s.name, pids)
	}
	f, err := r.measure(ctx, p)
	r.stop()
	if ctx.Err() != nil {
		return nil, errors.New("interrupted")
	}
	if err != nil {
		return nil, err
	}
	// Only now is the server's time counted as the bench's own.
	after, err := readMachineTime()
	if err != nil {
		return nil, err
	}
	f[othersShare], _ = after.since(before)
	return f, nil
}

// columns are the servers for which there are figures, in their order.
func (m *measurement) columns(r results) (names []string) {
	for _, s := range m.chosen {
		if r[s.name] != nil {
			names = append(names, s.name)
		}
	}
	return names
}

// fewer is how many rounds there are of what takes long, or is steady.
func (m *measurement) fewer() int { return min(m.rounds, 3) }

// latencyRate is how many messages a second go to so many clients.
func latencyRate(clients int) int { return max(1, min(100, deliveriesPerSecond/clients)) }

// clientPlan is the plan that has the wanted rows of these.
func (m *measurement) clientPlan(n int, rows ...string) plan {
	p := plan{Clients: n}
	for _, row := range rows {
		switch row {
		case "delivery":
			p.Windows = windows
		case "latency":
			p.Rate = latencyRate(n)
		case "idle":
			p.Idle = true
		case "churn":
			p.Churn = true
		}
	}
	return p
}

// clientRows are the rows that such a plan may have, in their order.
func clientRows(windows []int) []row {
	var rows []row
	for _, w := range windows {
		rows = append(rows, deliveryCPU(w), deliveryRate(w))
	}
	return append(rows, latencyP50, latencyP99, latencyMax, latencyLast, memoryPSS, memoryRSS, handshakeCPU, handshakeRate,
		churnCPU, churnRate, resentSegments, othersShare)
}

func (m *measurement) clientSection(ctx context.Context) (*section, error) {
	s := new(section)
	var sheets []*sheet
	for _, n := range m.clients {
		p := m.clientPlan(n, m.rows...)
		r, err := m.visit(ctx, m.rounds, p, floorOne, floorTwo, gorilla, nchanOne, nchanTwo, subject)
		if err != nil {
			return nil, err
		}
		t := &sheet{title: fmt.Sprintf("%d clients, latency at %d messages/s", n, latencyRate(n)), columns: m.columns(r),
			rows: clientRows(windows), results: r, bases: []string{floorOne, floorTwo}}
		sheets = append(sheets, t)
	}
	var names []string
	for _, n := range m.clients {
		names = append(names, fmt.Sprintf("%d clients", n))
	}
	for _, w := range windows {
		title := "Server CPU per delivery, one message in flight"
		if w > 1 {
			title = fmt.Sprintf("Server CPU per delivery, %d messages in flight", w)
		}
		c := &picture{file: fmt.Sprintf("bench-delivery-%d", w), Chart: plot.Chart{Title: title, X: "server", Y: "CPU time per delivery, µs", Categories: sheets[0].columns}}
		for i, t := range sheets {
			c.add(names[i], t, func(int) row { return deliveryCPU(w) })
		}
		s.charts = append(s.charts, c)
	}
	c := &picture{file: "bench-latency", Chart: plot.Chart{Title: fmt.Sprintf("Publish to client, %d clients, %d messages/s", m.clients[0], latencyRate(m.clients[0])),
		X: "server", Y: "time, ms", Categories: sheets[0].columns}}
	c.add("p50", sheets[0], constant(latencyP50))
	c.add("p99", sheets[0], constant(latencyP99))
	c.add("last client, p50", sheets[0], constant(latencyLast))
	s.charts = append(s.charts, c)
	return s, s.print(sheets...)
}

func (m *measurement) publishSection(ctx context.Context) (*section, error) {
	var phases []alone
	var rows []row
	for _, clients := range []int{0, 1} {
		for _, publishers := range []int{1, 8} {
			a := alone{publishers, clients, 1}
			phases = append(phases, a)
			rows = append(rows, a.rate(), a.cpu())
		}
	}
	r, err := m.visit(ctx, m.rounds, plan{Alone: phases}, redis, subject)
	if err != nil {
		return nil, err
	}
	t := &sheet{title: fmt.Sprintf("each publisher with up to %d unanswered", pipeline), columns: m.columns(r),
		rows: append(rows, othersShare), results: r, bases: []string{redis}}
	c := &picture{file: "bench-publish", Chart: plot.Chart{Title: "Publishes per second", X: "publishers and clients", Y: "publishes/s"}}
	for _, a := range phases {
		c.Categories = append(c.Categories, a.String())
	}
	for _, name := range t.columns {
		c.addRows(name, t, name, func(i int) row { return phases[i].rate() })
	}
	s := &section{charts: []*picture{c}}
	return s, s.print(t)
}

func (m *measurement) nginxSection(ctx context.Context) (*section, error) {
	s := new(section)
	var sheets []*sheet
	for _, n := range m.clients {
		limit, err := openFiles()
		if err != nil {
			return nil, err
		}
		n = min(n, (limit-otherFDs)/2) // a client takes two descriptors of nginx
		r, err := m.visit(ctx, m.fewer(), m.clientPlan(n, "delivery", "latency", "idle", "handshake"), floorOne, nchanOne, nginxTCP, nginxUnix, subject)
		if err != nil {
			return nil, err
		}
		sheets = append(sheets, &sheet{title: fmt.Sprintf("%d clients, latency at %d messages/s", n, latencyRate(n)), columns: m.columns(r),
			rows: clientRows(windows), results: r, bases: []string{floorOne, nchanOne}})
	}
	c := &picture{file: "bench-nginx", Chart: plot.Chart{Title: fmt.Sprintf("CPU per delivery behind nginx, all processes, %s", strings.Fields(sheets[0].title)[0]+" clients"),
		X: "server", Y: "CPU time per delivery, µs", Categories: sheets[0].columns}}
	for _, w := range windows {
		c.add(fmt.Sprintf("%d in flight", w), sheets[0], constant(deliveryCPU(w)))
	}
	s.charts = []*picture{c}
	return s, s.print(sheets...)
}

// steps are numbers of clients or of channels, in steps of ten up to the most that are asked
// for.
func steps(from, most int) (all []int) {
	for n := from; n <= most; n *= 10 {
		all = append(all, n)
	}
	return all
}

// grown is a row of what is measured for several numbers, and grownFrom the last of them
// as a multiple of the first.
func grown(n int, of string) row { return row(fmt.Sprintf("%s: %d", of, n)) }

func grownFrom(all []int, of string) row {
	return row(fmt.Sprintf("%s: %d as a multiple of %d", of, all[len(all)-1], all[0]))
}

// growth measures one row for several numbers, a plan each.
func (m *measurement) growth(ctx context.Context, title, of string, numbers []int, row row, to func(int) plan, names ...string) (*sheet, error) {
	all := make(results)
	t := &sheet{title: title, results: all}
	for _, n := range numbers {
		p := to(n)
		r, err := m.visit(ctx, m.fewer(), p, names...)
		if err != nil {
			return nil, err
		}
		for name, rounds := range r {
			for i, f := range rounds {
				if len(all[name]) <= i {
					all[name] = append(all[name], make(figures))
				}
				from := row
				if len(p.Alone) > 0 {
					from = p.Alone[0].cpu()
				}
				all[name][i][grown(n, of)] = f[from]
			}
		}
		t.rows = append(t.rows, grown(n, of))
	}
	if len(numbers) > 1 {
		for _, rounds := range all {
			for _, f := range rounds {
				f[grownFrom(numbers, of)] = f[grown(numbers[len(numbers)-1], of)] / f[grown(numbers[0], of)]
			}
		}
		t.rows = append(t.rows, grownFrom(numbers, of))
	}
	t.columns = m.columns(all)
	return t, nil
}

func (m *measurement) growthSection(ctx context.Context) (*section, error) {
	most := slices.Max(m.clients)
	numbers := steps(100, most)
	deliveries, err := m.growth(ctx, "CPU µs per delivery, W=1, by clients", "clients", numbers, deliveryCPU(1), func(n int) plan {
		return plan{Clients: n, Windows: []int{1}}
	}, floorOne, floorTwo, subject)
	if err != nil {
		return nil, err
	}
	deliveries.bases = []string{floorOne, floorTwo}
	// From one channel to as many as clients.
	spread := []int{1}
	for n := 100; n <= most; n *= 100 {
		spread = append(spread, n)
	}
	channels, err := m.growth(ctx, fmt.Sprintf("CPU µs per delivery, W=1, %d clients, by channels", most), "channels", spread, deliveryCPU(1), func(n int) plan {
		return plan{Clients: most, Channels: n, Windows: []int{1}}
	}, nchanOne, subject)
	if err != nil {
		return nil, err
	}
	empty, err := m.growth(ctx, "CPU µs per publish, no client, by channels", "channels", steps(1, 10_000), "", func(n int) plan {
		return plan{Alone: []alone{{1, 0, n}}}
	}, redis, subject)
	if err != nil {
		return nil, err
	}
	c := &picture{file: "bench-growth", Chart: plot.Chart{Title: "Server CPU per delivery, one message in flight", X: "clients", Y: "CPU time per delivery, µs"}}
	for _, name := range deliveries.columns {
		c.addRows(name, deliveries, name, func(i int) row { return deliveries.rows[i] }, numbers...)
	}
	s := &section{charts: []*picture{c}}
	return s, s.print(deliveries, channels, empty)
}

// survivalRows are what a strike is observed by.
var survivalRows = []row{pauseP50, pauseP99, pauseMax, closedConnections, refusedConnections, lostMessages, repeatedMessages,
	publishedAgain, stopTook, startTook, adoptionTook, managerCPU}

// strikesOf is how often each server is struck: what loses all of its clients takes seconds to
// find them again.
func (m *measurement) strikesOf(name string) int {
	if name == subject {
		return m.rounds
	}
	return m.fewer()
}

// steadyRate is how many messages a second are due while a server is struck.
const steadyRate = 100

func (m *measurement) survivalSection(ctx context.Context) (*section, error) {
	if os.Geteuid() != 0 {
		fmt.Fprintln(m.progress, "bench: no rows of survival: they boot a systemd, which needs root")
		return nil, nil
	}
	s := new(section)
	c := &picture{file: "bench-survival", Chart: plot.Chart{Title: "Longest pause that any client sees", X: "what happens, and to how many clients", Y: "pause, ms"}}
	var sheets []*sheet
	for _, n := range m.clients {
		all := map[strike]results{restarted: {}, killed: {}}
		plans := make(map[string]plan)
		for _, of := range m.chosen {
			if !slices.Contains([]string{gorilla, nchanOne, subject}, of.name) {
				continue
			}
			p := plan{Clients: n, Rate: steadyRate, Settle: m.settle, Stall: time.Minute, Survive: true}
			if of.channels {
				p.Channels = (n*p.Rate + deliveriesPerSecond - 1) / deliveriesPerSecond
			} else {
				p.Rate = latencyRate(n)
			}
			plans[of.name] = p
			patient, err := m.patient(ctx, of)
			if err != nil {
				return nil, err
			}
			for _, what := range []strike{restarted, killed} {
				if m.verbose {
					fmt.Fprintf(m.progress, "%s, %d clients: %s\n", of.name, n, what)
				}
				f, err := observe(ctx, patient, p, what, m.strikesOf(of.name))
				if err != nil {
					patient.stop()
					if ctx.Err() != nil {
						err = errors.New("interrupted")
					}
					return nil, fmt.Errorf("%s: %s: %w", of.name, what, err)
				}
				all[what][of.name] = f
			}
			patient.stop()
		}
		for _, what := range []strike{restarted, killed} {
			t := &sheet{title: fmt.Sprintf("%d clients, %s", n, what), columns: m.columns(all[what]), rows: survivalRows, results: all[what], bases: []string{subject}}
			sheets = append(sheets, t)
			c.Categories = append(c.Categories, fmt.Sprintf("%s, %d", what, n))
		}
	}
	for _, name := range sheets[0].columns {
		one := plot.Series{Name: name}
		for i, t := range sheets {
			one.Points = append(one.Points, t.point(name, pauseMax, float64(i))...)
		}
		c.Series = append(c.Series, one)
	}
	s.charts = []*picture{c}
	return s, s.print(sheets...)
}

// patient starts a server to be struck: ours as it is installed, on a systemd of its own.
func (m *measurement) patient(ctx context.Context, s server) (patient, error) {
	if s.name == subject {
		return bootMachine(ctx, m.dir)
	}
	return start(ctx, s, m.programs, m.dir)
}

// print makes the section's text of sheets.
func (s *section) print(sheets ...*sheet) error {
	var b strings.Builder
	for i, t := range sheets {
		if i > 0 {
			fmt.Fprintln(&b)
		}
		if err := t.print(&b); err != nil {
			return err
		}
	}
	s.text = b.String()
	return nil
}

func constant(r row) func(int) row { return func(int) row { return r } }

// add adds a series with a point for each category, which are servers.
func (c *picture) add(name string, t *sheet, of func(int) row) {
	s := plot.Series{Name: name}
	for i, server := range c.Categories {
		s.Points = append(s.Points, t.point(server, of(i), float64(i))...)
	}
	c.Series = append(c.Series, s)
}

// addRows adds a series with a point of one server for each category, or each x.
func (c *picture) addRows(name string, t *sheet, server string, of func(int) row, xs ...int) {
	s := plot.Series{Name: name}
	for i := range max(len(c.Categories), len(xs)) {
		x := float64(i)
		if len(xs) > 0 {
			x = float64(xs[i])
		}
		s.Points = append(s.Points, t.point(server, of(i), x)...)
	}
	c.Series = append(c.Series, s)
}

// point is what a chart shows of a figure, or nothing.
func (t *sheet) point(server string, row row, x float64) []plot.Point {
	values := column(t.results[server], row)
	if len(values) == 0 {
		return nil
	}
	slices.Sort(values)
	return []plot.Point{{X: x, Y: median(values), Low: values[0], High: values[len(values)-1]}}
}
