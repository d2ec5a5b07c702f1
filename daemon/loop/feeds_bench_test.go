package loop

import (
	"fmt"
	"io"
	"strings"
	"testing"

	"wscast/daemon/frame"
)

// fed is a rig whose only loop stands still, with clients of one kind, and a way to have it deliver a message.
func fed(t testing.TB, kind string, clients int) (deliver func()) {
	r := start(t, loopsOf(1))
	for range clients {
		c := r.pair(0)
		c.send(request(kind))
		c.expect(upgraded)
		go func() { _, _ = io.Copy(io.Discard, c.in) }()
	}
	r.until("all are open", func(s Stats) bool { return s.Opening == 0 && int(s.Clients) == clients })
	r.turned()
	channel, message := []byte("news"), []byte(strings.Repeat("some text\n", 30))
	entered, left := newSignal(), newSignal()
	r.door.inside <- func() { entered.give(); left.wait(r, "the end of the test") }
	c := r.pair(0)
	c.send(request("no/inside"))
	entered.wait(t, "a turn")
	t.Cleanup(left.give)
	l := r.loops.loops[0]
	return func() {
		if _, err := r.store.Append(channel, message, frame.Text); err != nil {
			t.Fatal(err)
		}
		l.deliverNews()
		l.reader.Release()
	}
}

// A delivery allocates nothing, in whatever encoding and for however many clients.
func TestDeliveryAllocatesNothing(t *testing.T) {
	for _, kind := range []string{"news", "raw-deflate=news", "json=news", "json-deflate=news", "events=news", "json-events=news", "json=news,other,third"} {
		deliver := fed(t, kind, 5)
		deliver()
		// Appending has its own tests; the runtime's own goroutines may allocate now and then, and AllocsPerRun rounds that down.
		if allocations := testing.AllocsPerRun(200, deliver); allocations != 0 {
			t.Errorf("%s: %v allocations a message", kind, allocations)
		}
	}
}

// BenchmarkEncodings is a delivery to 100 clients.
func BenchmarkEncodings(b *testing.B) {
	for _, kind := range []string{"news", "raw-deflate=news", "json=news", "json-deflate=news", "events=news", "json-events=news", "json=news,other"} {
		b.Run(fmt.Sprint(strings.ReplaceAll(kind, "=", " ")), func(b *testing.B) {
			deliver := fed(b, kind, 100)
			deliver()
			b.ReportAllocs()
			for b.Loop() {
				deliver()
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/100, "ns/delivery")
		})
	}
}
