package msglog

import (
	"fmt"
	"testing"

	"wscast/daemon/frame"
)

// BenchmarkAppend is what a publisher pays, the wake-up of loops excepted, in a log that is full and evicts.
func BenchmarkAppend(b *testing.B) {
	for _, size := range []int{16, 128, 1 << 10, 64 << 10} {
		for _, channels := range []int{1, 1000, 50000} {
			if channels > 1 && size != 128 {
				continue
			}
			b.Run(fmt.Sprintf("size=%d/channels=%d", size, channels), func(b *testing.B) {
				l := create(b, Options{Size: 64 << 20, Channels: channels})
				names := make([][]byte, channels)
				for i := range names {
					names[i] = fmt.Appendf(nil, "channel-%d", i)
				}
				message := make([]byte, size)
				for i := range 2 * (64 << 20) / max(size, bytesPerEntry) {
					appendTo(b, l, names[i%channels], message)
				}
				b.SetBytes(int64(size))
				b.ReportAllocs()
				b.ResetTimer()
				for i := 0; b.Loop(); i++ {
					if _, err := l.Append(names[i%channels], message, frame.Binary); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// BenchmarkAppendFile is BenchmarkAppend with a log in a file: it makes checksums, and the pages are written to the disk
// meanwhile.
func BenchmarkAppendFile(b *testing.B) {
	for _, size := range []int{16, 128, 1 << 10, 64 << 10} {
		b.Run(fmt.Sprintf("size=%d", size), func(b *testing.B) {
			o := home(b)
			o.Size = 64 << 20
			l, _ := load(b, o)
			defer shut(b, l)
			name, message := []byte("channel"), make([]byte, size)
			for range 2 * (64 << 20) / max(size, bytesPerEntry) {
				appendTo(b, l, name, message)
			}
			b.SetBytes(int64(size))
			b.ReportAllocs()
			b.ResetTimer()
			for b.Loop() {
				appendTo(b, l, name, message)
			}
		})
	}
}

// BenchmarkLoad reads a log of 64 MiB after a power failure, from the page cache.
func BenchmarkLoad(b *testing.B) {
	o := home(b)
	o.Size = 64 << 20
	l, _ := load(b, o)
	message := make([]byte, 1000)
	for range (64 << 20) / 1000 {
		appendTo(b, l, []byte("channel"), message)
	}
	shut(b, l)
	for b.Loop() {
		l, _ := load(b, o)
		shut(b, l)
	}
}

// BenchmarkAppendRead appends to one of several channels and lets a reader take every message at once, as a loop does.
func BenchmarkAppendRead(b *testing.B) {
	l := create(b, Options{Size: 64 << 20, Channels: 16})
	r := reader(b, l)
	var channels [16]*Channel
	var cursors [16]uint64
	for i := range channels {
		channels[i], cursors[i] = join(b, r, fmt.Sprint("channel-", i))
	}
	message := make([]byte, 128)
	var run Run
	var news []*Channel
	b.ReportAllocs()
	b.ResetTimer()
	for i := 0; b.Loop(); i++ {
		if _, err := l.Append([]byte(channels[i%16].name), message, frame.Binary); err != nil {
			b.Fatal(err)
		}
		news = r.News(news[:0])
		for _, ch := range news {
			r.Run(&run, ch, cursors[ch.id], 0, 64<<10, 64)
			cursors[ch.id], _, _ = r.Advance(ch, cursors[ch.id], 0, run.Bytes)
		}
		r.Release()
	}
}

// BenchmarkRun collects 256 KiB of a channel, alone in the log or one of two in turn.
func BenchmarkRun(b *testing.B) {
	for _, channels := range []int{1, 2} {
		b.Run(fmt.Sprintf("channels=%d", channels), func(b *testing.B) {
			l := create(b, Options{Size: 4 << 20, Channels: 2})
			r := reader(b, l)
			ch, cursor := join(b, r, "channel-0")
			message := make([]byte, 128)
			for i := range 2 * channels * 1024 {
				appendTo(b, l, fmt.Appendf(nil, "channel-%d", i%channels), message)
			}
			var run Run
			b.ReportAllocs()
			b.ResetTimer()
			for b.Loop() {
				r.Run(&run, ch, cursor, 0, 256<<10, 1024)
			}
			b.SetBytes(int64(run.Bytes))
			b.ReportMetric(float64(run.Messages), "messages")
		})
	}
}

// BenchmarkFollow is a publisher with one local process that reads along.
func BenchmarkFollow(b *testing.B) {
	l := create(b, Options{Size: 64 << 20, Channels: 1})
	f := l.Follow()
	defer f.Close()
	message := make([]byte, 128)
	all := func(string) bool { return true }
	b.ReportAllocs()
	b.ResetTimer()
	for b.Loop() {
		appendTo(b, l, []byte("news"), message)
		if _, ok, err := f.TryNext(all); !ok || err != nil {
			b.Fatal(ok, err)
		}
	}
}

// BenchmarkOpen takes over a full log of the default size.
func BenchmarkOpen(b *testing.B) {
	l := create(b, Options{Size: 64 << 20, Channels: 1000})
	message := make([]byte, 128)
	for i := range 64 << 20 / bytesPerEntry {
		appendTo(b, l, fmt.Appendf(nil, "channel-%d", i%1000), message)
	}
	b.ResetTimer()
	for b.Loop() {
		again, err := Open(duplicate(b, l.rings[0].file))
		if err != nil {
			b.Fatal(err)
		}
		if err := again.Close(); err != nil {
			b.Fatal(err)
		}
	}
}
