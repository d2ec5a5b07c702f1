package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"wscast/bench/plot"
)

// A row is a kind of figure; its text is what the table calls it.
type row string

// more ends the name of a row whose figures are the better, the larger they are.
const more = " (more is better)"

const (
	latencyP50    row = "publish→client p50, ms"
	latencyP99    row = "publish→client p99, ms"
	latencyMax    row = "publish→client max, ms"
	latencyLast   row = "publish→last client p50, ms"
	memoryPSS     row = "KiB per idle client (PSS)"
	memoryRSS     row = "KiB per idle client (RSS)"
	handshakeCPU  row = "CPU µs per handshake"
	handshakeRate row = "handshakes/s" + more
	churnCPU      row = "CPU µs per connect and disconnect"
	churnRate     row = "connects and disconnects/s" + more

	pauseP50           row = "longest pause, p50 of clients, ms"
	pauseP99           row = "longest pause, p99 of clients, ms"
	pauseMax           row = "longest pause, max of clients, ms"
	closedConnections  row = "connections closed"
	refusedConnections row = "connects refused"
	lostMessages       row = "messages missed, all clients"
	repeatedMessages   row = "messages repeated, all clients"
	publishedAgain     row = "messages published again for want of an answer"
	managerCPU         row = "CPU of PID 1, ms"
	stopTook           row = "until the old process is replaced, ms"
	startTook          row = "from exec to READY=1, ms"
	adoptionTook       row = "of that, taking the clients over, ms"

	// How undisturbed the round was. They make no ratios.
	resentSegments row = "(TCP segments sent again)"
	othersShare    row = "(cores used by others, %)"
)

func deliveryCPU(w int) row  { return row(fmt.Sprintf("CPU µs per delivery, W=%d", w)) }
func deliveryRate(w int) row { return row(fmt.Sprintf("deliveries/s, W=%d", w) + more) }

// compared tells whether a row makes ratios: counts of what should not happen do not.
func (r row) compared() bool {
	return !slices.Contains([]row{resentSegments, othersShare, closedConnections, refusedConnections, lostMessages,
		repeatedMessages, publishedAgain, managerCPU, stopTook, startTook, adoptionTook}, r)
}

// figures are what one plan measured on one server.
type figures map[row]float64

// results are the figures of every server, one per round.
type results map[string][]figures

// A sheet is a table: a line per row with a column per server.
type sheet struct {
	title   string
	columns []string
	rows    []row
	results
	// bases are the servers of which the others are shown as multiples, each ratio formed
	// within a round.
	bases []string
}

// print writes the sheet. Rows that nobody has a figure for are left out.
func (s *sheet) print(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	fmt.Fprintf(t, "%s\t%s\n", s.title, strings.Join(s.columns, "\t"))
	for _, row := range s.measured() {
		fmt.Fprint(t, row)
		for _, c := range s.columns {
			fmt.Fprint(t, "\t", summary(column(s.results[c], row)))
		}
		fmt.Fprintln(t)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, base := range s.bases {
		others := slices.DeleteFunc(slices.Clone(s.columns), func(c string) bool { return c == base })
		if len(s.results[base]) == 0 || len(others) == 0 {
			continue
		}
		fmt.Fprintf(t, "\nas a multiple of %s\t%s\n", base, strings.Join(others, "\t"))
		for _, row := range s.measured() {
			if !row.compared() {
				continue
			}
			fmt.Fprint(t, row)
			for _, c := range others {
				fmt.Fprint(t, "\t", summary(ratios(s.results[c], s.results[base], row)))
			}
			fmt.Fprintln(t)
		}
		if err := t.Flush(); err != nil {
			return err
		}
	}
	return nil
}

// measured are the rows for which there is a figure.
func (s *sheet) measured() []row {
	return slices.DeleteFunc(slices.Clone(s.rows), func(row row) bool {
		return !slices.ContainsFunc(s.columns, func(c string) bool { return len(column(s.results[c], row)) > 0 })
	})
}

func column(rounds []figures, row row) (values []float64) {
	for _, f := range rounds {
		if v, ok := f[row]; ok {
			values = append(values, v)
		}
	}
	return values
}

// ratios divides round by round. A divisor of almost nothing makes no ratio: the floor needs
// less than a tenth of a KiB for a client.
func ratios(rounds, bases []figures, row row) (quotients []float64) {
	for i := range min(len(rounds), len(bases)) {
		value, ok := rounds[i][row]
		if divisor := bases[i][row]; ok && divisor >= 0.1 {
			quotients = append(quotients, value/divisor)
		}
	}
	return quotients
}

// summary is the median and, of several values, the lowest and the highest.
func summary(values []float64) string {
	if len(values) == 0 {
		return "–"
	}
	sorted := slices.Sorted(slices.Values(values))
	if len(sorted) == 1 {
		return plot.Short(sorted[0])
	}
	return fmt.Sprintf("%s [%s–%s]", plot.Short(median(sorted)), plot.Short(sorted[0]), plot.Short(sorted[len(sorted)-1]))
}

func median(sorted []float64) float64 {
	middle := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[middle]
	}
	return (sorted[middle-1] + sorted[middle]) / 2
}
