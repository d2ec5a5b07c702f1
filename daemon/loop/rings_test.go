package loop

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"wscast/daemon/encode"
	"wscast/daemon/msglog"
)

// ringsOf is a log of so many rings. Which one a channel has is told by the last letter of its name.
func ringsOf(n int, o msglog.Options) *msglog.Arrangement {
	a := &msglog.Arrangement{Rings: []msglog.Options{o}, Matches: func(letter, name string) bool {
		return letter == string('a'+name[len(name)-1]%byte(n))
	}}
	for i := 1; i < n; i++ {
		o.Match = string(rune('a' + i))
		a.Rings = append(a.Rings, o)
	}
	return a
}

// overRings runs a test with a log of one ring, and with one of several: nothing that a client sees tells which it is.
func overRings(t *testing.T, name string, test func(t *testing.T, rings int)) {
	for _, rings := range []int{1, 3} {
		t.Run(fmt.Sprintf("%s, rings: %d", name, rings), func(t *testing.T) { test(t, rings) })
	}
}

// A reader of an event stream of channels of several rings that is cut off again and again, and comes back with the last id:
// every message comes once, and in order.
func TestEventsResumeOverRings(t *testing.T) {
	r := start(t, splitOver(3))
	const messages = 300
	names := []string{"a", "b", "c", "d"}
	from := ""
	random := rand.New(rand.NewPCG(1, 1))
	next, published := 0, 0
	for next < messages {
		for range min(random.IntN(20), messages-published) {
			r.publish(names[random.IntN(len(names))], fmt.Sprint(published))
			published++
		}
		c := r.dial()
		c.send(request("events=" + strings.Join(names, ",") + from))
		c.expect(upgraded)
		if from == "" {
			id, _ := c.event()
			next, from = published, "!"+id // from here on
		}
		for range random.IntN(published - next + 1) {
			from = "!" + c.expectEvents(fmt.Sprint("data: ", next))[0]
			next++
		}
		if next == published && published < messages { // what comes goes on where what was there has ended
			r.publish(names[random.IntN(len(names))], fmt.Sprint(published))
			published++
			from = "!" + c.expectEvents(fmt.Sprint("data: ", next))[0]
			next++
		}
		c.Close()
	}
}

// A busy channel pushes out what is in its own ring. Who comes back to a quiet one of another ring is brought everything, and is
// told so; nobody there is slow, and neither is a client of both that reads.
func TestBusyBesideQuiet(t *testing.T) {
	r := start(t, splitOver(3), loopsOf(1))
	both := r.dial()
	both.send(request("json=a,b"))
	both.expect(upgraded)
	both.hearReply("subscribed", "a", nil)
	both.hearReply("subscribed", "b", nil)
	r.publish("a", "zero")
	start := both.hearData("a zero")[0]
	r.publish("a", "one")
	both.hearData("a one")
	big := strings.Repeat("x", 50_000)
	for range 3 * msglog.MinSize / len(big) {
		r.publish("b", big)
		both.hearData("b " + big)
	}
	r.publish("a", "two")
	both.hearData("a two")
	for channel, complete := range map[string]bool{"a": true, "b": false} {
		c := r.dial()
		c.send(request("json=" + channel + "!" + start))
		c.expect(upgraded)
		if s := c.hearReply("subscribed", channel, nil); *s.Complete != complete {
			t.Errorf("%s: %+v", channel, s)
		}
		if complete {
			c.hearData("a one", "a two")
		}
	}
	if s := r.loops.Stats(); s.Slow != 0 {
		t.Errorf("%+v", s)
	}
}

// Who has taken half of a message of one ring is slow there, and not where others of its channels are.
func TestSlowInOneRing(t *testing.T) {
	r := start(t, splitOver(3), loopsOf(1))
	c := r.pair(4096)
	c.send(request("json=a,b"))
	c.expect(upgraded)
	c.hearReply("subscribed", "a", nil)
	c.hearReply("subscribed", "b", nil)
	message := strings.Repeat("m", 100_000)
	r.publish("a", message)
	r.until("it is blocked", func(s Stats) bool { return s.Blocked == 1 })
	for range 3 * msglog.MinSize / len(message) { // of a ring in which it has no channel
		r.publish("c", message)
	}
	r.turned()
	if s := r.loops.Stats(); s.Slow != 0 {
		t.Fatalf("%+v: for what happens in another ring", s)
	}
	for range 3 * msglog.MinSize / len(message) {
		r.publish("b", message)
	}
	r.until("it is slow", func(s Stats) bool { return s.Slow == 1 })
	c.hearData("a " + message) // what is half out is completed
	c.expectClose(1013)
}

// The id in the answer to subscribe is good for coming back, wherever the channel stands.
func TestIDsOfAnswersOverRings(t *testing.T) {
	r := start(t, splitOver(3))
	random := rand.New(rand.NewPCG(3, 1))
	names := []string{"a", "b", "c"}
	all := map[string][]string{}
	ids := map[string][]encode.ID{}
	for i := range 60 {
		name := names[random.IntN(3)]
		all[name] = append(all[name], fmt.Sprint(name, " ", i))
		r.publish(name, fmt.Sprint(i))
		ids[name] = append(ids[name], encode.ID{Epoch: r.store.Epoch(), Seq: uint64(i + 1)})
	}
	for _, name := range names {
		for i, id := range slices.Concat(ids["a"], ids["b"], ids["c"]) {
			c := r.dial()
			c.send(request("json=" + name + "!" + id.String()))
			c.expect(upgraded)
			answer := c.hearReply("subscribed", name, nil)
			after := 0
			for after < len(ids[name]) && ids[name][after].Seq <= id.Seq {
				after++
			}
			if !*answer.Complete {
				t.Fatalf("%s after %v: %+v", name, id, answer)
			}
			c.hearData(all[name][after:]...)
			c.Close()
			if i%7 == 0 { // and with the answer's
				c := r.dial()
				c.send(request("json=" + name + "!" + answer.ID))
				c.expect(upgraded)
				c.hearReply("subscribed", name, nil)
				c.hearData(all[name][after:]...)
				c.Close()
			}
		}
	}
}
