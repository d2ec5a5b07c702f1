package main

import (
	"testing"
	"time"
)

// A server that loses its clients is found out: all are closed, and come back.
func TestObserveAServerThatLosesItsClients(t *testing.T) {
	m := &measurement{options: options{names: []string{gorilla}}, dir: t.TempDir(), progress: t.Output()}
	if err := m.build(t.Context()); err != nil {
		t.Fatal(err)
	}
	p, err := m.patient(t.Context(), m.chosen[0])
	if err != nil {
		t.Fatal(err)
	}
	defer p.stop()
	const clients, times = 5, 2
	for _, what := range []strike{restarted, killed} {
		all, err := observe(t.Context(), p, plan{Clients: clients, Rate: steadyRate, Settle: time.Millisecond, Stall: 30 * time.Second, Survive: true}, what, times)
		if err != nil {
			t.Fatal(err)
		}
		if len(all) != times {
			t.Fatalf("%s: observed %d times, want %d", what, len(all), times)
		}
		for _, f := range all {
			if f[closedConnections] != clients || f[repeatedMessages] != 0 || f[pauseMax] <= 0 || f[pauseMax] < f[pauseP50] {
				t.Errorf("%s: %v", what, f)
			}
		}
	}
}
