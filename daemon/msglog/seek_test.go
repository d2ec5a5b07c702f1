package msglog

import (
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"wscast/daemon/frame"
)

// kept is a message of the model.
type kept struct {
	seq     uint64
	channel string
}

// A seeker against a plain list of all messages that ever were.
func TestSeekAgainstAList(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 30 {
		l, err := Create(Options{Size: MinSize, Channels: 20})
		if err != nil {
			t.Fatal(err)
		}
		r, err := l.NewReader(func() {})
		if err != nil {
			t.Fatal(err)
		}
		names := []string{"busy", "quiet", "early", "never", "other"}
		channels := map[string]*Channel{}
		for _, name := range names {
			ch, _, err := r.Join([]byte(name))
			if err != nil {
				t.Fatal(err)
			}
			channels[name] = ch
		}
		var all []kept
		message := []byte(strings.Repeat("x", 1000+random.IntN(20_000)))
		for n := range 400 {
			name := "busy"
			switch {
			case n < 20 && random.IntN(2) == 0:
				name = "early"
			case random.IntN(40) == 0:
				name = "quiet"
			case n%100 > 60:
				name = "other"
			}
			if _, err := l.Append([]byte(name), message, frame.Text); err != nil {
				t.Fatal(err)
			}
			all = append(all, kept{l.Head(), name})
			// Some way behind, and before an appender would wait for it.
			if random.IntN(3) == 0 || n%4 == 0 {
				r.News(nil)
				r.Release()
			}
			if n%10 == 0 {
				seekAll(t, random, r, channels, all)
			}
		}
		seekAll(t, random, r, channels, all)
		r.Retire()
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// seekAll asks for a few places in each channel.
func seekAll(t *testing.T, random *rand.Rand, r *Reader, channels map[string]*Channel, all []kept) {
	t.Helper()
	floor := max(r.Floor(0), 1)
	for name, ch := range channels {
		var there []uint64 // of the channel that can be sent
		var before uint64  // the last one of it that cannot
		for _, k := range all {
			if k.channel == name && k.seq >= floor {
				there = append(there, k.seq)
			} else if k.channel == name {
				before = k.seq
			}
		}
		check := func(from From, want []uint64, complete bool) {
			t.Helper()
			cursor, is := r.Seek(ch, from)
			if is != complete {
				t.Fatalf("%s, %+v: complete %v, floor %d, gone %d, there %v", name, from, is, floor, before, there)
			}
			for _, seq := range want {
				next, ok := r.Next(ch, cursor)
				if !ok || next != seq {
					t.Fatalf("%s, %+v: %d (%v) after %d, want %d; floor %d, there %v", name, from, next, ok, cursor, seq, floor, there)
				}
				cursor = next
			}
			if next, ok := r.Next(ch, cursor); !ok || next != 0 {
				t.Fatalf("%s, %+v: %d (%v) at the end", name, from, next, ok)
			}
		}
		for range 4 {
			seq := uint64(random.IntN(len(all) + 1))
			var want []uint64
			for _, s := range there {
				if s > seq {
					want = append(want, s)
				}
			}
			// Of a channel that had no message before the floor it is not known that there was none.
			check(From{How: After, Seq: seq}, want, seq+1 >= floor || before != 0 && before <= seq)
		}
		n := 1 + random.IntN(2*len(there)+2)
		check(From{How: Last, Last: n}, there[max(0, len(there)-n):], n <= len(there) || floor == 1)
		check(From{How: Since, Age: time.Hour}, there, floor == 1)
		check(From{}, nil, true)
	}
}

// Since begins with the first message that is as young.
func TestSeekSince(t *testing.T) {
	l, err := Create(Options{Size: MinSize, Channels: 20})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	r, err := l.NewReader(func() {})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Retire()
	ch, _, err := r.Join([]byte("news"))
	if err != nil {
		t.Fatal(err)
	}
	for range 10 {
		for _, name := range []string{"news", "other"} {
			if _, err := l.Append([]byte(name), []byte("x"), frame.Text); err != nil {
				t.Fatal(err)
			}
		}
	}
	for seq := range uint64(20) { // one each hour, the last one half an hour ago
		l.rings[0].m.entry(seq + 1).time = time.Now().Add(-30*time.Minute - time.Duration(19-seq)*time.Hour).UnixNano()
	}
	for hours := range 25 {
		cursor, complete := r.Seek(ch, From{How: Since, Age: time.Duration(hours) * time.Hour})
		count := 0
		for at := cursor; ; count++ {
			next, ok := r.Next(ch, at)
			if !ok {
				t.Fatal(next)
			}
			if next == 0 {
				break
			}
			at = next
		}
		if want := min(hours, 20) / 2; count != want || !complete {
			t.Errorf("%d hours: %d messages, %v, want %d", hours, count, complete, want)
		}
	}
}

// What is older than the age of its ring is not brought to who comes back, who is told so; it is still there, and in other rings it is brought.
func TestAge(t *testing.T) {
	a := &Arrangement{
		Rings:   []Options{{Size: MinSize, Channels: 20}, {Size: MinSize, Channels: 20, Match: "short", Age: time.Hour}},
		Matches: func(pattern, name string) bool { return pattern == name },
	}
	l, err := CreateAll(a)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	r := reader(t, l)
	channels := map[string]*Channel{}
	for _, name := range []string{"short", "long"} {
		ch, _ := join(t, r, name)
		channels[name] = ch
		for range 10 {
			if _, err := l.Append([]byte(name), []byte("x"), frame.Text); err != nil {
				t.Fatal(err)
			}
		}
		for i := range uint64(10) { // every ten minutes, the last one five minutes ago
			ch.ring.m.entry(ch.last.Load() - i).time = time.Now().Add(-5*time.Minute - time.Duration(i)*10*time.Minute).UnixNano()
		}
	}
	for _, one := range []struct {
		from     From
		name     string
		n        int
		complete bool
	}{
		{From{How: After, Seq: 0}, "short", 6, false},
		{From{How: After, Seq: 3}, "short", 6, false},
		{From{How: After, Seq: 4}, "short", 6, true},
		{From{How: After, Seq: 8}, "short", 2, true},
		{From{How: Last, Last: 5}, "short", 5, true},
		{From{How: Last, Last: 10}, "short", 6, false},
		{From{How: Since, Age: 30 * time.Minute}, "short", 3, true},
		{From{How: Since, Age: 2 * time.Hour}, "short", 6, false},
		{From{How: After, Seq: 0}, "long", 10, true},
		{From{How: Last, Last: 10}, "long", 10, true},
		{From{How: Since, Age: 2 * time.Hour}, "long", 10, true},
	} {
		ch := channels[one.name]
		at, complete := r.Seek(ch, one.from)
		n := 0
		for {
			next, ok := r.Next(ch, at)
			if !ok {
				t.Fatal("slow")
			}
			if next == 0 {
				break
			}
			at, n = next, n+1
		}
		if n != one.n || complete != one.complete {
			t.Errorf("%s, %+v: %d messages, complete %v", one.name, one.from, n, complete)
		}
	}
	if u := l.Usage(); u[1].Messages != 10 {
		t.Errorf("%+v", u[1])
	}
}
