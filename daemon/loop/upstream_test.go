package loop

import (
	"testing"
	"time"

	"wscast/daemon/frame"
)

// What a client publishes is appended once and answered once, whenever the process is killed.
func TestPublishingKilledAtEveryCall(t *testing.T) {
	t.Run("commands", func(t *testing.T) {
		killedOver(t, 1, true, func(t *testing.T, d *dynasty) {
			c := d.tcp(0)
			c.send(request("json=news"))
			c.expect(upgraded)
			c.hearReply("subscribed", "news", nil)
			c.send(masked(text, `{"command":"ping","ref":0}`), masked(text, `{"command":"publish","channel":"news","data":"one","ref":1}`),
				masked(text, `{"command":"publish","channel":"news","data":"two","ref":2}`), masked(text, `{"command":"publish","channel":"silent","data":"","ref":3}`))
			c.ask(`{"command":"ping","ref":4}`)
			var replies, messages string
			for range 7 {
				s := c.hear()
				replies += s.Reply + s.Error
				messages += s.Data
			}
			if replies != "pongpublishedpublishednot_allowedpong" || messages != "onetwo" {
				t.Fatal(replies, messages)
			}
		})
	})
	t.Run("raw", func(t *testing.T) {
		killedOver(t, 1, true, func(t *testing.T, d *dynasty) {
			c := d.tcp(0).join("news")
			c.send(masked(text, "one"), masked(byte(frame.Text), "tw"), masked(fin|byte(frame.Continuation), "o"))
			c.expectText("one")
			c.expectText("two")
			c.send(masked(text, "three"))
			c.expectText("three")
			c.send(closeFrame(frame.CloseNormal, ""))
			c.expectClose(frame.CloseNormal)
		})
	})
}

// More clients publish than messages can be under way, in all loops: each is answered.
func TestManyPublishAtOnce(t *testing.T) {
	entered, release := newSignal(), make(chan struct{})
	config := patient
	config.Upstream = true
	r := start(t, loopsOf(2), with(config), entrance(&door{publish: func(*Upstream) (int, Refusal) {
		entered.give()
		<-release
		return 7, Refusal{}
	}}))
	t.Cleanup(func() {
		select {
		case <-release:
		default:
			close(release)
		}
	})
	var clients []*wire
	var ofOne, ofTheOther []*wire // loops, to which connections are given in turn
	for i := range 2 * (mostPosts + 10) {
		c := r.pair(0)
		c.send(request("json="))
		c.expect(upgraded)
		if clients = append(clients, c); i%2 == 0 {
			ofOne = append(ofOne, c)
		} else {
			ofTheOther = append(ofTheOther, c)
		}
	}
	// All places are taken by clients of one loop when those of the other come.
	for _, clients := range [][]*wire{ofOne, ofTheOther} {
		for _, c := range clients {
			c.send(masked(text, `{"command":"publish","channel":"news","data":"x"}`))
		}
		entered.wait(t, "the first message")
		r.turned()
	}
	close(release)
	for _, c := range clients {
		if s := c.hearReply("published", "news", nil); s.Clients != 7 {
			t.Fatalf("%+v", s)
		}
	}
}

func TestUpstreamRate(t *testing.T) {
	s, now := new(session), time.Now()
	posts := func(most int) (n int) {
		for range most {
			if s.mayPost(10, now) {
				n++
			}
		}
		return n
	}
	if n := posts(20); n != 10 {
		t.Errorf("%d at once, want 10", n)
	}
	now = now.Add(99 * time.Millisecond)
	if n := posts(1); n != 0 {
		t.Errorf("%d too early", n)
	}
	now = now.Add(2 * time.Millisecond)
	if n := posts(2); n != 1 {
		t.Errorf("%d after a tenth of a second, want 1", n)
	}
	now = now.Add(time.Hour)
	if n := posts(20); n != 10 {
		t.Errorf("%d after a rest, want 10", n)
	}
	for range 1000 {
		if !s.mayPost(0, now) {
			t.Fatal("0 is no limit")
		}
	}
}
