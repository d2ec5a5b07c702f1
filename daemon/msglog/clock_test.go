package msglog

import (
	"testing"
	"testing/synctest"
	"time"

	"wscast/daemon/frame"
)

// A clock that jumps loses nothing: who asks for what is younger than an age gets at least what has come since the jump, in order, each once. The clock of a
// synctest bubble stands in the year 2000, which is a jump of decades.
func TestSinceWhenTheClockJumps(t *testing.T) {
	for name, jump := range map[string]struct{ before, after bool }{ // whether the message is appended, and asked for, in the past
		"back": {false, true}, "forth": {true, false}, "not at all": {false, false},
	} {
		t.Run(name, func(t *testing.T) {
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
			const old, young = 30, 20
			put := func(n int) {
				for range n {
					if _, err := l.Append([]byte("news"), []byte("x"), frame.Text); err != nil {
						t.Error(err)
					}
				}
			}
			count := func(age time.Duration) (n int) {
				cursor, _ := r.Seek(ch, From{How: Since, Age: age})
				for last := uint64(0); ; n++ {
					next, ok := r.Next(ch, cursor)
					if !ok || next != 0 && next <= last {
						t.Errorf("message %d after %d, %t", next, last, ok)
					}
					if next == 0 {
						return n
					}
					cursor, last = next, next
				}
			}
			at(t, jump.before, func() { put(old) })
			at(t, jump.after, func() {
				put(young)
				if n := count(time.Minute); n < young || n > old+young {
					t.Errorf("%d messages of the last minute, and there are %d", n, young)
				}
				if n := count(0); n > old+young {
					t.Errorf("%d messages that are no older than now", n)
				}
			})
			at(t, jump.before, func() { // and back again
				if n := count(time.Minute); n > old+young {
					t.Errorf("%d messages", n)
				}
				put(1)
				if n := count(time.Minute); n < 1 {
					t.Error("the newest message is not of the last minute")
				}
			})
		})
	}
}

// at calls f now, or in the year 2000.
func at(t *testing.T, past bool, f func()) {
	if !past {
		f()
		return
	}
	synctest.Test(t, func(*testing.T) { f() })
}
