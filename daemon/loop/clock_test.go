package loop

import (
	"testing"
	"testing/synctest"
	"time"
)

// until is a grant with an end.
type until time.Time

func (u until) Identity() string   { return "alice" }
func (u until) Expires() time.Time { return time.Time(u) }
func (u until) Bytes() []byte      { return nil }

// A grant ends at a time of day, not after so long: it goes by the clock of now, wherever that has jumped to. In a synctest bubble the clock stands in the
// year 2000.
func TestGrantsGoByTheClock(t *testing.T) {
	for _, c := range []struct {
		end        time.Time
		past, here bool // whether it has ended in 2000, and today
	}{
		{time.Time{}, false, false},
		{time.Now().Add(time.Hour), false, false},
		{time.Now().Add(-time.Second), false, true},
		{time.Unix(0, 0), true, true},
	} {
		cl := &client{session: &session{grant: until(c.end)}}
		synctest.Test(t, func(t *testing.T) {
			if cl.expired(time.Now()) != c.past {
				t.Errorf("%v has ended in the past: %t", c.end, !c.past)
			}
		})
		if cl.expired(time.Now()) != c.here {
			t.Errorf("%v has ended: %t", c.end, !c.here)
		}
	}
}

// A client has so many frames in each second: those of one do not count in the next, and each client has its own.
func TestFramesOfASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &loop{config: &Config{FrameRate: 10}}
		c, other := &client{slot: 1}, &client{slot: 2}
		expect := func(c *client, frames int, want bool) {
			t.Helper()
			if l.crowded(c, frames) != want {
				t.Errorf("%d more frames of client %d: too many is %t, want %t", frames, c.slot, !want, want)
			}
		}
		for range 3 {
			expect(c, 9, false)
			expect(other, 10, false)
			time.Sleep(time.Second - 1)
			expect(c, 1, false)
			expect(c, 1, true)
			expect(other, 0, false)
			expect(other, 1, true)
			time.Sleep(time.Nanosecond)
		}
		l.config = &Config{}
		expect(c, 1000, false)
	})
}
