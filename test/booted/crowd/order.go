package crowd

import (
	"fmt"
	"slices"
)

// audience is the clients that have the same subscriptions, and the order in which messages come to them.
type audience struct {
	channels  []int  // numbers of its channels
	members   int    // stayers
	published uint64 // messages of its channels that are acknowledged
	order     []turn
	complete  int // turns that every stayer has had
	judge     sequence
}

// turn is a message in its place of the order.
type turn struct {
	id
	left int           // stayers that have not got it
	name string        // the id of the log, as clients get it; "" until one has that is told ids
	as   [kinds][]byte // how it came to clients of each kind, until all have it: the next one need not be decoded
}

func (a *audience) has(channel int) bool { return slices.Contains(a.channels, channel) }

func (a *audience) advance() {
	for a.complete < len(a.order) && a.order[a.complete].left == 0 {
		a.order[a.complete].as = [kinds][]byte{}
		a.complete++
	}
}

// next takes what has come to one that was at that place of the order, and returns an error where others have got something else.
func (a *audience) next(at int, m heard) error {
	if at == len(a.order) {
		if err := a.judge.take(m.id, false); err != nil {
			return fmt.Errorf("after %d messages: %w", at, err)
		}
		a.order = append(a.order, turn{id: m.id, left: a.members})
	}
	t := &a.order[at]
	switch {
	case t.id != m.id:
		return fmt.Errorf("%v came as number %d, where others got %v", m.id, at, t.id)
	case m.name == "":
	case t.name == "":
		t.name = m.name
		for before := at - 1; before >= 0; before-- {
			if name := a.order[before].name; name != "" {
				return ascending(name, m.name)
			}
		}
	case t.name != m.name:
		return fmt.Errorf("%v has the id %s, where others got %s", m.id, m.name, t.name)
	}
	return nil
}

// agrees returns an error where those with all channels were told another order than those with one.
func (a *audience) agrees(all *audience, of func(id) int) error {
	i := 0
	for _, t := range all.order {
		if !a.has(of(t.id)) || i == len(a.order) {
			continue
		}
		if a.order[i].id != t.id {
			return fmt.Errorf("those with one channel got %v, and those with all of them %v in its place", a.order[i].id, t.id)
		}
		if got := a.order[i].name; got != "" && t.name != "" && got != t.name {
			return fmt.Errorf("%v has the ids %s and %s", t.id, got, t.name)
		}
		i++
	}
	return nil
}

// sequence judges the messages of all publishers: those of each come in order, a later try of a message only right behind it.
type sequence map[uint8]id // the last of each

// take judges the next message. With late, any message may be a publisher's first one.
func (s sequence) take(m id, late bool) error {
	last, known := s[m.publisher]
	switch {
	case !known && late:
	case m.number == last.number+1:
	case m.number == last.number && m.try > last.try:
	default:
		return fmt.Errorf("%v came after %v", m, last)
	}
	s[m.publisher] = m
	return nil
}
