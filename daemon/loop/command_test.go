package loop

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"

	"wscast/daemon/encode"
	"wscast/daemon/frame"
	"wscast/daemon/msglog"
)

// What is not a whole command is refused, and says what it answers to where that can be read.
func TestCommandsThatAreNone(t *testing.T) {
	for what, want := range map[string]string{
		``:                                   "bad_command",
		`{`:                                  "bad_command",
		`[]`:                                 "bad_command",
		`{} {}`:                              "bad_command",
		`{}`:                                 "unknown_command",
		`{"command":"dance"}`:                "unknown_command",
		`{"command":"ping","x":1}`:           "bad_command",
		`{"command":"ping","ref":null}`:      "bad_command",
		`{"command":"ping","ref":[1]}`:       "bad_command",
		`{"command":"ping","ref":true}`:      "bad_command",
		`{"command":"ping","last":1}`:        "bad_command",
		`{"command":"history"}`:              "bad_command",
		`{"command":"history","last":-1}`:    "bad_command",
		`{"command":"history","last":1e99}`:  "bad_command",
		`{"command":"publish"}`:              "bad_command",
		`{"command":"publish","data":null}`:  "bad_command",
		`{"command":"publish","base64":"!"}`: "bad_command",
		`{"command":"publish","data":"","base64":""}`:                      "bad_command",
		`{"command":"presence","since":"1s"}`:                              "bad_command",
		`{"command":"ping","ref":"` + strings.Repeat("r", maxRef-1) + `"}`: "bad_command",
		`{"command":"ping","ref":"` + strings.Repeat("r", maxRef-2) + `"}`: "",
		`{"command":"ping","ref":-1.5e3}`:                                  "",
		` {"command" : "publish", "base64":""} `:                           "",
		`{"command":"publish","data":""}`:                                  "",
		`{"command":"history","last":1}`:                                   "",
	} {
		if _, refusal := parseCommand([]byte(what)); refusal.Code != want {
			t.Errorf("%s: %+v, want %q", what, refusal, want)
		}
	}
}

func FuzzCommand(f *testing.F) {
	for _, s := range []string{`{"command":"subscribe","channel":"a","since":"30s","ref":1}`, `{"command":"publish","channel":"a","base64":"aGk="}`,
		`{"command":"history","last":20}`, `{"ref":"\ud800"}`, `{"ref":{"a":[]}}`, `{"\u0000":1}`, `[[[[`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, what []byte) {
		m, refusal := parseCommand(what)
		answer := appendRefusal(nil, m.Ref, refusal)
		if refusal == (Refusal{}) {
			answer = appendReply(nil, m.Command, m.Ref, "channel", "")
		}
		_, payload, _ := frame.Payload(answer)
		if !json.Valid(payload) || !utf8.Valid(payload) && utf8.Valid(what) || len(payload) > 6*mostSentence+500 {
			t.Errorf("%q is answered with %q", what, payload)
		}
	})
}

// A ping in the middle of a message is answered once, when it comes, however often the message is looked at.
func TestPingInsideAMessage(t *testing.T) {
	for _, kind := range []string{"json", "json-deflate"} {
		r := start(t)
		c := r.dial()
		c.send(request(kind + "="))
		c.expect(upgraded)
		c.send(masked(byte(frame.Text), `{"command":`), masked(pingOp, "one"))
		c.expectFrame(frame.Pong, "one")
		c.send(masked(byte(frame.Continuation), `"pi`))
		c.send(masked(pingOp, "two"))
		c.expectFrame(frame.Pong, "two")
		c.send(masked(fin|byte(frame.Continuation), `ng"}`), masked(pingOp, "three"))
		if s := c.hear(); s.Reply != "pong" {
			t.Fatalf("%+v", s)
		}
		c.expectFrame(frame.Pong, "three")
		c.ask(`{"command":"ping","ref":2}`)
		if s := c.hear(); s.Reply != "pong" || s.Ref != 2.0 {
			t.Fatalf("%+v", s)
		}
	}
}

// Fragments without an end are not looked at for ever.
func TestTooManyFrames(t *testing.T) {
	r := start(t)
	c := r.dial()
	c.send(request("json="))
	c.expect(upgraded)
	c.send(masked(byte(frame.Text), ""), strings.Repeat(masked(byte(frame.Continuation), ""), scratchSize/6))
	c.expectClose(frame.CloseTooBig)
}

// Commands of which the beginning was taken out of the socket, several of them, and one in pieces.
func TestHeldCommands(t *testing.T) {
	config := patient
	config.HandshakeTimeout, config.CloseTimeout, config.Upstream = patientOfHeld, patientOfHeld, true
	var r *rig
	r = start(t, loopsOf(1), with(config), entrance(&door{publish: func(u *Upstream) (int, Refusal) { return appended(r.store, u) }}))
	for _, first := range []int{1, 7, 40} {
		c := r.pair(0)
		c.send(request("json=news"))
		c.expect(upgraded)
		c.hearReply("subscribed", "news", nil)
		whole := masked(byte(frame.Text), `{"command":"publish","channel":"silent",`) + masked(pingOp, "within") + masked(fin|byte(frame.Continuation), `"data":"x","ref":"first"}`)
		for i := range 3 * commandsAtOnce {
			whole += masked(text, fmt.Sprintf(`{"command":"subscribe","channel":"other","ref":%d}`, i))
		}
		whole += masked(text, `{"command":"publish","channel":"news","data":"own","ref":"own"}`)
		c.send(whole[:first])
		held := func() (n int) {
			r.inside(func(l *loop) { n = len(l.held) })
			return n
		}
		r.until("it is held", func(Stats) bool { return held() == 1 })
		c.send(whole[first:])
		hear := func() said {
			op, b := c.frame()
			if op == frame.Pong {
				op, b = c.frame()
			}
			var s said
			if err := json.Unmarshal(b, &s); op != frame.Text || err != nil {
				t.Fatal(op, string(b), err)
			}
			return s
		}
		if s := hear(); s.Error != "not_allowed" || s.Ref != "first" {
			t.Fatalf("%+v", s)
		}
		for i := range 3 * commandsAtOnce {
			if s := hear(); s.Reply != "subscribed" || s.Ref != float64(i) {
				t.Fatalf("%+v, want %d", s, i)
			}
		}
		var got []string
		for range 2 {
			s := hear()
			got = append(got, s.Reply+s.Data)
		}
		if s := strings.Join(got, " "); s != "published own" && s != "own published" {
			t.Fatal(got)
		}
		c.send(closeFrame(frame.CloseNormal, ""))
		c.expectClose(frame.CloseNormal)
		r.until("nothing is held", func(Stats) bool { return held() == 0 })
	}
}

// One that does not read its answers, and has not been sent a message of any channel yet, is slow like any other.
func TestSlowBeforeItsFirstMessage(t *testing.T) {
	r := start(t)
	c := r.tight(1)
	c.send(request("json=news"))
	c.expect(upgraded)
	c.hearReply("subscribed", "news", nil)
	ping := masked(text, `{"command":"ping","ref":"`+strings.Repeat("r", 50)+`"}`)
	for r.loops.Stats().Blocked == 0 {
		c.send(strings.Repeat(ping, commandsAtOnce))
		r.turned()
	}
	message := strings.Repeat("x", 50_000)
	for range 2 * msglog.MinSize / len(message) {
		r.publish("news", message)
	}
	for {
		op, b := c.frame()
		if op == frame.Text {
			continue // answers
		}
		if code, _, _ := frame.ParseClose(b); op != frame.Close || code != frame.CloseTryAgainLater {
			t.Fatalf("frame %d %q", op, b)
		}
		return
	}
}

// What history brings follows its answer with nothing in between, be there ever so much behind the command.
func TestHistoryFollowsItsAnswer(t *testing.T) {
	killed(t, func(t *testing.T, d *dynasty) {
		for i := range 3 {
			d.publish("a", fmt.Sprint("a", i))
			d.publish("b", fmt.Sprint("b", i))
		}
		c := d.tcp(0)
		c.send(request("json=a"))
		c.expect(upgraded)
		c.hearReply("subscribed", "a", nil)
		c.send(masked(text, `{"command":"history","channel":"a","last":2,"ref":1}`), masked(text, `{"command":"history","channel":"b","last":9,"ref":2}`),
			masked(text, `{"command":"ping","ref":3}`), masked(text, `{"command":"history","channel":"c","last":1,"ref":4}`))
		d.publish("a", "live")
		live := 0
		// The live one may come before or after each piece, not within.
		hear := func() said {
			s := c.hear()
			if s.Data == "live" {
				live++
				s = c.hear()
			}
			return s
		}
		s := hear()
		first := []string{"a a1", "a a2"}
		if s.Reply != "history" || s.Ref != 1.0 || s.Messages != 2 || !*s.Complete {
			t.Fatalf("%+v", s)
		}
		one := c.hear()
		if one.Data == "a2" { // it was published before the command was read
			c.hearData("a live")
		} else if one.Data != "a1" {
			t.Fatalf("%+v, want %q", one, first)
		} else {
			c.hearData("a a2")
		}
		if s := hear(); s.Reply != "history" || s.Ref != 2.0 || s.Messages != 3 || !*s.Complete {
			t.Fatalf("%+v", s)
		}
		c.hearData("b b0", "b b1", "b b2")
		if s := hear(); s.Reply != "pong" || s.Ref != 3.0 {
			t.Fatalf("%+v", s)
		}
		if s := hear(); s.Reply != "history" || s.Ref != 4.0 || s.Messages != 0 {
			t.Fatalf("%+v", s)
		}
		if live == 0 {
			c.hearData("a live")
		} else if live > 1 {
			t.Fatal(live)
		}
	})
}

// Limits at, below and above.
func TestMostSubscriptions(t *testing.T) {
	r := start(t)
	c := r.dial()
	c.send(request("json="))
	c.expect(upgraded)
	for i := range r.config.MaxSubscriptions {
		c.ask(fmt.Sprintf(`{"command":"subscribe","channel":"c%d"}`, i))
		c.hearReply("subscribed", fmt.Sprint("c", i), nil)
	}
	c.ask(`{"command":"subscribe","channel":"more","ref":1}`)
	if s := c.hear(); s.Error != "too_many_subscriptions" || s.Ref != 1.0 {
		t.Errorf("%+v", s)
	}
	c.ask(`{"command":"subscribe","channel":"c0"}`) // has it
	c.hearReply("subscribed", "c0", nil)
	c.ask(`{"command":"subscribe","channel":"c1","since":"1h"}`)
	c.hearReply("subscribed", "c1", nil)
	c.ask(`{"command":"unsubscribe","channel":"c0"}`)
	c.hearReply("unsubscribed", "c0", nil)
	c.ask(`{"command":"subscribe","channel":"more"}`)
	c.hearReply("subscribed", "more", nil)
}

// The id that answers subscribe is good to come back with before any message has come.
func TestComeBackWithTheIDOfTheAnswer(t *testing.T) {
	r := start(t)
	r.publish("other", "x")
	c := r.dial()
	c.send(request("json=news"))
	c.expect(upgraded)
	id := c.hearReply("subscribed", "news", nil).ID
	if want := (encode.ID{Epoch: r.store.Epoch(), Seq: 1}).String(); id != want {
		t.Errorf("%s, want %s", id, want)
	}
	c.Close()
	r.publish("news", "one")
	c = r.dial()
	c.send(request("json=news!" + id))
	c.expect(upgraded)
	if s := c.hearReply("subscribed", "news", nil); !*s.Complete {
		t.Errorf("%+v", s)
	}
	c.hearData("news one")
}
