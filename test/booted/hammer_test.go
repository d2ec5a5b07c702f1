package booted_test

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"wscast/test/harness"
)

// hammer does things over and over, each in a goroutine of its own, until it is stopped or one fails.
type hammer struct {
	stopped chan struct{}
	workers sync.WaitGroup

	mu      sync.Mutex
	count   map[string]int // successes of each kind
	changed chan struct{}  // closed by the next success or failure
	errs    []error
}

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
				h.errs = append(h.errs, fmt.Errorf("%s, after %d: %w", kind, h.count[kind], err))
			} else {
				h.count[kind]++
			}
			close(h.changed)
			h.changed = make(chan struct{})
			h.mu.Unlock()
		}
	})
}

// await returns when n more of each kind have succeeded, or something has failed.
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
		changed, failed := h.changed, len(h.errs) > 0
		h.mu.Unlock()
		if done || failed {
			return
		}
		select {
		case <-changed:
		case <-timer.C:
			t.Fatalf("not %d more of each of %q in %v", n, kinds, harness.Patience)
		}
	}
}

// stop ends the hammering and returns what has failed.
func (h *hammer) stop() []error {
	close(h.stopped)
	h.workers.Wait()
	return h.errs
}
