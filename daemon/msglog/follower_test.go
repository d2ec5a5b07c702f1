package msglog

import (
	"fmt"
	"sync"
	"testing"

	"wscast/daemon/frame"
)

func everything(string) bool { return true }

func TestFollow(t *testing.T) {
	l := small(t)
	appendTo(t, l, []byte("news"), []byte("before"))
	f := l.Follow()
	defer f.Close()
	if m, ok, err := f.TryNext(everything); ok || err != nil {
		t.Fatalf("%+v, %v", m, err)
	}
	for i := range 300 { // more than a batch
		op := frame.Text
		if i%2 == 1 {
			op = frame.Binary
		}
		if _, err := l.Append(fmt.Appendf(nil, "channel %d", i%3), fmt.Appendf(nil, "message %d", i), op); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 300 {
		if i%3 == 1 {
			continue
		}
		m, err := f.Next(func(channel string) bool { return channel != "channel 1" })
		if err != nil || m.Channel != fmt.Sprint("channel ", i%3) || string(m.Data) != fmt.Sprint("message ", i) ||
			m.Number != uint64(i+2) || m.Op != frame.Text+frame.Opcode(i%2) {
			t.Fatalf("message %d: %+v, %v", i, m, err)
		}
	}
	if m, ok, err := f.TryNext(everything); ok || err != nil {
		t.Fatalf("%+v, %v", m, err)
	}
}

// What want says is asked anew for every message.
func TestFollowWant(t *testing.T) {
	l := create(t, Options{Size: MinSize, Channels: 10})
	f := l.Follow()
	defer f.Close()
	for i := range 10 {
		appendTo(t, l, fmt.Appendf(nil, "%d", i), nil)
	}
	for _, name := range []string{"0", "3", "4", "9"} {
		if m, ok, err := f.TryNext(func(channel string) bool { return channel == name }); !ok || err != nil || m.Channel != name {
			t.Fatalf("%s: %+v, %v, %v", name, m, ok, err)
		}
	}
	if m, ok, err := f.TryNext(everything); ok || err != nil {
		t.Fatalf("%+v, %v", m, err)
	}
}

// A follower holds nobody up; what it missed is said, and again and again.
func TestFollowBehind(t *testing.T) {
	const entries = MinSize / bytesPerEntry
	for _, read := range []int{0, 1, 5} {
		t.Run(fmt.Sprint("read=", read), func(t *testing.T) {
			l := small(t)
			f := l.Follow()
			defer f.Close()
			for range 10 {
				appendTo(t, l, []byte("news"), nil)
			}
			for range read { // and the rest is in the batch
				if _, ok, err := f.TryNext(everything); !ok || err != nil {
					t.Fatal(ok, err)
				}
			}
			for range entries - 10 + read {
				appendTo(t, l, []byte("news"), nil)
			}
			// What comes next is the oldest in the log: not yet behind.
			if read > 0 {
				if m, ok, err := f.TryNext(everything); !ok || err != nil || m.Number != uint64(read+1) {
					t.Fatalf("%+v, %v, %v", m, ok, err)
				}
			}
			appendTo(t, l, []byte("news"), nil)
			appendTo(t, l, []byte("news"), nil)
			for range 3 {
				if m, err := f.Next(everything); err != ErrBehind {
					t.Fatalf("%+v, %v", m, err)
				}
			}
			f.Close()
			if _, err := f.Next(everything); err != ErrClosed {
				t.Fatal(err)
			}
		})
	}
}

func TestFollowClose(t *testing.T) {
	l := small(t)
	f := l.Follow()
	asked := make(chan struct{})
	done := make(chan struct{})
	appendTo(t, l, []byte("news"), nil)
	go func() {
		defer close(done)
		if m, err := f.Next(func(string) bool { close(asked); return false }); err != ErrClosed {
			t.Errorf("%+v, %v", m, err)
		}
	}()
	event(t, "a look at the message", asked)
	f.Close()
	event(t, "the end of Next", done)
	f.Close()
	if len(l.followers) != 0 {
		t.Error("the log still knows the follower")
	}
}

// A follower that keeps up with writers who wait for it sees everything; one that does not sees whole messages in order,
// and then ErrBehind.
func TestFollowConcurrent(t *testing.T) {
	const writers, messages = 3, 20000
	l := small(t)
	credit := make(chan struct{}, 500) // fewer than the log has room for
	var done sync.WaitGroup
	follow := func(f *Follower, wanted uint32, until uint64) (behind bool) {
		next := map[uint32]uint64{}
		for next[wanted] < until {
			m, err := f.Next(func(channel string) bool { return channel != "noise" })
			if err != nil {
				if err != ErrBehind {
					t.Error(err)
				}
				return true
			}
			writer, n, ok := open(m.Data)
			if !ok || n != next[writer] {
				t.Errorf("message %d: writer %d, number %d after %d, whole: %v", m.Number, writer, n, int64(next[writer])-1, ok)
				return true
			}
			next[writer]++
			if wanted == 0 {
				<-credit
			}
		}
		return false
	}
	keepsUp := l.Follow()
	defer keepsUp.Close()
	done.Go(func() {
		if follow(keepsUp, 0, messages) {
			t.Error("a follower that keeps up is behind")
		}
	})
	done.Go(func() {
		var buf []byte
		for n := range uint64(messages) {
			credit <- struct{}{}
			buf = letter(buf, 0, n, 1000)
			if _, err := l.Append([]byte("news"), buf, frame.Binary); err != nil {
				t.Error(err)
			}
			if n%10 == 0 {
				if _, err := l.Append([]byte("noise"), nil, frame.Text); err != nil {
					t.Error(err)
				}
			}
		}
	})
	finish(t, &done)

	behind := 0
	for behind < 3 {
		f := l.Follow()
		stop := make(chan struct{})
		for w := range uint32(writers) {
			done.Go(func() {
				var buf []byte
				for n := uint64(0); ; n++ {
					select {
					case <-stop:
						return
					default:
					}
					buf = letter(buf, w, n, 10000)
					if _, err := l.Append([]byte("news"), buf, frame.Binary); err != nil {
						t.Error(err)
					}
				}
			})
		}
		if follow(f, writers, 1) {
			behind++
		}
		close(stop)
		finish(t, &done)
		f.Close()
		if t.Failed() {
			return
		}
	}
}

// A follower from a place sees what came after it; from a place that the log has overwritten, or has not come to, it is behind.
// Seen tells how far it has looked, wanted or not.
func TestFollowFrom(t *testing.T) {
	l := small(t)
	for range 5 {
		appendTo(t, l, []byte("news"), []byte("x"))
	}
	f := l.FollowFrom(2)
	defer f.Close()
	if n := f.Seen(); n != 2 {
		t.Errorf("at the beginning it has seen %d", n)
	}
	if m, ok, err := f.TryNext(everything); !ok || err != nil || m.Number != 3 || f.Seen() != 3 {
		t.Fatalf("%+v, %v, %v, seen %d", m, ok, err, f.Seen())
	}
	if m, ok, err := f.TryNext(func(string) bool { return false }); ok || err != nil || f.Seen() != 5 {
		t.Fatalf("%+v, %v, %v, seen %d", m, ok, err, f.Seen())
	}
	f.Close()
	if _, err := f.Next(everything); err != ErrClosed || f.Seen() != 5 {
		t.Fatalf("%v, seen %d", err, f.Seen())
	}
	head := l.FollowFrom(5)
	defer head.Close()
	if m, ok, err := head.TryNext(everything); ok || err != nil {
		t.Fatalf("from the head: %+v, %v, %v", m, ok, err)
	}
	for _, seq := range []uint64{7, 1 << 63, ^uint64(0)} {
		f := l.FollowFrom(seq)
		defer f.Close()
		appendTo(t, l, []byte("news"), []byte("x"))
		if m, err := f.Next(everything); err != ErrBehind {
			t.Fatalf("from %d: %+v, %v", seq, m, err)
		}
	}
	for l.rings[0].m.head.tail.Load() < 3 {
		appendTo(t, l, []byte("news"), []byte("x"))
	}
	old := l.FollowFrom(1)
	defer old.Close()
	if m, err := old.Next(everything); err != ErrBehind {
		t.Fatalf("from what is gone: %+v, %v", m, err)
	}
}
