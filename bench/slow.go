package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// The rows of clients that never read: what they cost the others. They have a channel of their own, on which there is more
// than the smallest log has room for, so that they become slow soon. It is published in all columns.
const (
	slowLog      = "1MiB"
	ballastSize  = 4 << 10
	ballasts     = 40  // with each message of the latency phase
	firstBallast = 100 // before all phases: more than the sockets on both sides take, and less than the log has

	slowClosed row = "clients closed as slow"
	memoryAll  row = "MiB of the daemon after the phases (RSS)"
)

// smallLog is how the subject is started there.
func smallLog(p programs, at place) ([]process, error) {
	config := filepath.Join(at.dir, "wscast.toml")
	if err := os.WriteFile(config, []byte("[log]\nsize = \""+slowLog+"\"\n[publish]\nmax_message = \"64KiB\"\n"), 0o600); err != nil {
		return nil, err
	}
	return []process{{p["wscastd"], []string{"--config", config, "--websocket", at.address, "--publish", at.publish}, 0}}, nil
}

// slowSection measures the subject with and without clients that never read, in turn within a round.
func (m *measurement) slowSection(ctx context.Context) (*section, error) {
	at := slices.IndexFunc(m.chosen, func(s server) bool { return s.name == subject })
	if at < 0 {
		fmt.Fprintf(m.progress, "bench: no rows of slow clients: they are about %s\n", subject)
		return nil, nil
	}
	of := m.chosen[at]
	of.processes = smallLog
	s := new(section)
	var sheets []*sheet
	for _, n := range m.clients {
		// As many read in both columns, so that both have the same to do for them.
		slow := n / 10
		all, some := "all read", fmt.Sprintf("%d more never read", slow)
		t := &sheet{title: fmt.Sprintf("%d clients that read, %d messages/s", n-slow, latencyRate(n)), columns: []string{all, some}, results: make(results), bases: []string{all},
			rows: []row{latencyP50, latencyP99, latencyMax, latencyLast, deliveryCPU(32), memoryAll, slowClosed, resentSegments, othersShare}}
		for round := range m.rounds {
			for i := range t.columns {
				column := t.columns[(round+i)%len(t.columns)]
				p := plan{Clients: n - slow, Windows: []int{32}, Rate: latencyRate(n), Fill: true}
				if column == some {
					p.Slow = slow
				}
				f, err := m.quietest(ctx, of, p, fmt.Sprintf("round %d of %d, %d clients, %s", round+1, m.rounds, n-slow, column))
				if err != nil {
					return nil, err
				}
				t.results[column] = append(t.results[column], f)
			}
		}
		sheets = append(sheets, t)
	}
	return s, s.print(sheets...)
}

// fill adds messages for those that do not read to what flush will write.
func (p *publisher) fill(n int) {
	name := channel(1)
	for range n {
		p.out = fmt.Appendf(p.out, "*3\r\n$7\r\nPUBLISH\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n", len(name), name, ballastSize, ballast)
		p.sent++
	}
}

var ballast = bytes.Repeat([]byte{'x'}, ballastSize)

// fill publishes some of them, and returns when they are answered.
func (l *load) fill(n int) error {
	l.publisher.fill(n)
	if err := l.publisher.flush(); err != nil {
		return err
	}
	for l.publisher.unanswered() > 0 {
		if err := l.progress(); err != nil {
			return err
		}
	}
	return nil
}

// connectSlow connects the clients that read nothing but the answer to their request. What else comes to them stays where
// it is: with the smallest receive buffer that there is, which has to be asked for before the connection is made.
func (l *load) connectSlow() error {
	for i := range l.Slow {
		c, err := connect(l.Clients+i, clientPath(1), l.to, withSmallBuffer)
		if err != nil {
			return fmt.Errorf("slow client %d: %w", i, err)
		}
		l.slow = append(l.slow, c)
		if err := await(c.fd, unix.POLLOUT, l.Stall); err != nil {
			return err
		}
		if err := c.ask(l.Address); err != nil {
			return err
		}
		for c.stage == asked {
			if err := await(c.fd, unix.POLLIN, l.Stall); err != nil {
				return fmt.Errorf("slow client %d: %w", i, err)
			}
			n, err := receive(c.fd, l.buffer)
			if err == nil {
				err = c.take(l.buffer[:n], func(*client, []byte) error { return nil })
			}
			if err != nil {
				return fmt.Errorf("slow client %d: %w", i, err)
			}
		}
	}
	return nil
}

func withSmallBuffer(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 1) }

// weigh takes the daemon's memory, and how many slow clients a message no longer goes to.
func (l *load) weigh() error {
	if err := l.idle(l.Settle); err != nil {
		return err
	}
	if err := l.fill(1); err != nil {
		return err
	}
	_, rss, err := memory(l.Servers...)
	if err != nil {
		return err
	}
	l.figures[memoryAll] = rss / 1024
	l.figures[slowClosed] = float64(l.Slow - l.publisher.last)
	return nil
}
