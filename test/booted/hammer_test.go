package booted_test

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"wscast/test/harness"
)

// hammer does things over and over, each in a goroutine of its own, until it is stopped. A failure is kept and the next try follows.
type hammer struct {
	stopped chan struct{}
	workers sync.WaitGroup

	mu      sync.Mutex
	count   map[string]int // successes of each kind
	changed chan struct{}  // closed by the next success or failure
	errs    []error
}

// mostErrors keeps a server that refuses everything from filling the memory.
const mostErrors = 100

func newHammer() *hammer {
	return &hammer{stopped: make(chan struct{}), count: map[string]int{}, changed: make(chan struct{})}
}

// start repeats do, which is one of a kind.
func (h *hammer) start(kind string, do func() error) {
	h.workers.Go(func() {
		for {
			select {
			case <-h.stopped:
				return
			default:
			}
			err := do()
			h.mu.Lock()
			if err != nil {
				h.errs = append(h.errs[:min(len(h.errs), mostErrors)], fmt.Errorf("%s, after %d: %w", kind, h.count[kind], err))
			} else {
				h.count[kind]++
			}
			close(h.changed)
			h.changed = make(chan struct{})
			h.mu.Unlock()
		}
	})
}

// await returns when n more of each kind have succeeded.
func (h *hammer) await(t *testing.T, n int, kinds ...string) {
	t.Helper()
	timer := time.NewTimer(harness.Patience)
	defer timer.Stop()
	want := map[string]int{}
	for first := true; ; first = false {
		h.mu.Lock()
		done := true
		for _, kind := range kinds {
			if first {
				want[kind] = h.count[kind] + n
			}
			done = done && h.count[kind] >= want[kind]
		}
		changed := h.changed
		h.mu.Unlock()
		if done {
			return
		}
		select {
		case <-changed:
		case <-timer.C:
			h.mu.Lock()
			defer h.mu.Unlock()
			t.Fatalf("not %d more of each of %q in %v; errors: %v", n, kinds, harness.Patience, h.errs)
		}
	}
}

// stop ends the hammering and returns what has failed.
func (h *hammer) stop() []error {
	close(h.stopped)
	h.workers.Wait()
	return h.errs
}
