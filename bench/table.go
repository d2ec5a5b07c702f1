package main

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"text/tabwriter"
)

// A row is a kind of figure; its text is what the table calls it.
type row string

const (
	latencyP50    row = "publish→client p50, ms"
	latencyP99    row = "publish→client p99, ms"
	latencyMax    row = "publish→client max, ms"
	latencyLast   row = "publish→last client p50, ms"
	memoryPSS     row = "KiB per idle client (PSS)"
	memoryRSS     row = "KiB per idle client (RSS)"
	handshakeCPU  row = "CPU µs per handshake"
	handshakeRate row = "handshakes/s (more is better)"
	publishRate   row = "publishes/s (more is better)"
	publishCPU    row = "CPU µs per publish"

	// How undisturbed the round was. They make no ratios.
	resentSegments row = "(TCP segments sent again)"
	othersShare    row = "(cores used by others, %)"
)

func deliveryCPU(w int) row  { return row(fmt.Sprintf("CPU µs per delivery, W=%d", w)) }
func deliveryRate(w int) row { return row(fmt.Sprintf("deliveries/s, W=%d (more is better)", w)) }

// clientRows are the rows of a table with clients, in order.
func clientRows(windows []int) []row {
	var rows []row
	for _, w := range windows {
		rows = append(rows, deliveryCPU(w), deliveryRate(w))
	}
	return append(rows, latencyP50, latencyP99, latencyMax, latencyLast, memoryPSS, memoryRSS, handshakeCPU, handshakeRate, resentSegments, othersShare)
}

var publishRows = []row{publishRate, publishCPU, othersShare}

// figures are what one plan measured on one server.
type figures map[row]float64

// results are the figures of every server, one per round.
type results map[string][]figures

// table prints one line per row with a column per server, and after it the subject's ratios
// to the others, each formed within a round.
func table(w io.Writer, title string, columns []string, rows []row, r results) error {
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	fmt.Fprintf(t, "%s\t%s\n", title, strings.Join(columns, "\t"))
	for _, row := range rows {
		fmt.Fprint(t, row)
		for _, c := range columns {
			fmt.Fprint(t, "\t", summary(column(r[c], row)))
		}
		fmt.Fprintln(t)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	others := slices.DeleteFunc(slices.Clone(columns), func(c string) bool { return c == subject })
	if len(r[subject]) == 0 || len(others) == 0 {
		return nil
	}
	fmt.Fprintf(t, "\n%s, as a multiple of\t%s\n", subject, strings.Join(others, "\t"))
	for _, row := range rows {
		if row == resentSegments || row == othersShare {
			continue
		}
		fmt.Fprint(t, row)
		for _, c := range others {
			fmt.Fprint(t, "\t", summary(ratios(column(r[subject], row), column(r[c], row))))
		}
		fmt.Fprintln(t)
	}
	return t.Flush()
}

func column(rounds []figures, row row) []float64 {
	values := make([]float64, len(rounds))
	for i, f := range rounds {
		values[i] = f[row]
	}
	return values
}

// ratios divides round by round. A divisor of almost nothing makes no ratio: the floor needs
// less than a tenth of a KiB for a client.
func ratios(values, divisors []float64) []float64 {
	var quotients []float64
	for i := range min(len(values), len(divisors)) {
		if divisors[i] >= 0.1 {
			quotients = append(quotients, values[i]/divisors[i])
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
		return short(sorted[0])
	}
	return fmt.Sprintf("%s [%s–%s]", short(median(sorted)), short(sorted[0]), short(sorted[len(sorted)-1]))
}

func median(sorted []float64) float64 {
	middle := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[middle]
	}
	return (sorted[middle-1] + sorted[middle]) / 2
}

// short writes a number with three digits, or without decimals from 100 on.
func short(v float64) string {
	switch size := math.Abs(v); {
	case size >= 99_950:
		return fmt.Sprintf("%.0fk", v/1000)
	case size >= 99.95:
		return fmt.Sprintf("%.0f", v)
	case size >= 9.995:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}
