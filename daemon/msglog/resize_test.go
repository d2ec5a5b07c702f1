package msglog

import (
	"math/rand/v2"
	"testing"

	"wscast/daemon/frame"
)

func resized(t *testing.T, l *Log, o Options) *Log {
	t.Helper()
	next, _, err := l.Resized(o)
	if err != nil {
		t.Fatal(err)
	}
	if next != l {
		t.Cleanup(func() {
			if err := next.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	return next
}

// A log in another size has the newest messages that fit, and goes on as the old one would have.
func TestResized(t *testing.T) {
	const channels = 2000
	for _, n := range []int{0, 1, 9000} {
		for _, from := range []int64{MinSize, 4 * MinSize} {
			for _, to := range []int64{MinSize, MinSize + 1, 6 * MinSize} {
				random := rand.New(rand.NewPCG(uint64(n), uint64(to)))
				l := create(t, Options{Size: from, Channels: channels})
				var p published
				p.appendSome(t, l, random, n)
				next := resized(t, l, Options{Size: to, Channels: channels})
				if next.Epoch() != l.Epoch() || next.rings[0].m.size != roundUp(uint64(to)) {
					t.Fatalf("epoch %x, was %x; %d bytes", next.Epoch(), l.Epoch(), next.rings[0].m.size)
				}
				tail, was := next.rings[0].m.head.tail.Load(), l.rings[0].m.head.tail.Load()
				switch {
				case tail < was || to >= from && tail != was:
					t.Fatalf("%d messages, from %d to %d bytes: the tail is at %d, was at %d", n, from, to, tail, was)
				case n > 0:
					p.check(t, next, tail)
				}
				if to < from && n == 9000 && 2*(next.rings[0].pos-next.rings[0].m.entry(tail).pos) < uint64(to) {
					t.Errorf("from %d to %d bytes: only %d are kept", from, to, next.rings[0].pos-next.rings[0].m.entry(tail).pos)
				}
				p.appendSome(t, next, random, 5000)
				p.check(t, next, next.rings[0].m.head.tail.Load())
				p.goesOn(t, next)
			}
		}
	}
}

func TestResizedToTheSame(t *testing.T) {
	l := small(t)
	if next := resized(t, l, Options{Size: MinSize, Channels: 8}); next != l {
		t.Error("it was copied")
	}
	if _, _, err := l.Resized(Options{Size: 1, Channels: 8}); err == nil {
		t.Error("a size that is too small was taken")
	}
}

// Channels that have had a number keep it, also those without messages: clients refer to them.
func TestResizedKeepsChannels(t *testing.T) {
	l := create(t, Options{Size: MinSize, Channels: 8})
	r := reader(t, l)
	for _, name := range []string{"a", "b", "c"} {
		ch, _ := join(t, r, name)
		defer r.Leave(ch, true)
	}
	next := resized(t, l, Options{Size: MinSize, Channels: 1})
	if len(next.rings[0].m.cells) != 3 {
		t.Errorf("there is place for %d channels", len(next.rings[0].m.cells))
	}
	ch, err := reader(t, next).Adopt(2, 0)
	if err != nil || ch.Name() != "c" {
		t.Errorf("%v, %v", ch, err)
	}
	more := resized(t, next, Options{Size: MinSize, Channels: 50})
	if len(more.rings[0].m.cells) != 50 {
		t.Errorf("there is place for %d channels", len(more.rings[0].m.cells))
	}
}

func TestResizedBelowTheNewestMessage(t *testing.T) {
	l := create(t, Options{Size: 4 * MinSize, Channels: 8})
	var p published
	p.append(t, l, "a", make([]byte, MinSize/4), frame.Binary)
	if next, _, err := l.Resized(Options{Size: MinSize, Channels: 8}); err == nil {
		next.Close()
		t.Error("the newest message is gone")
	}
	p.check(t, l, 1)
	p.append(t, l, "a", make([]byte, 10), frame.Binary)
	next := resized(t, l, Options{Size: MinSize, Channels: 8})
	p.check(t, next, 2)
}
