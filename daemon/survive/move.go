package survive

// Moves tell what has become of the channels and the cursors of a log that was rearranged.
type Moves interface {
	// Channel returns the new id of a channel, and false for one that is none.
	Channel(id uint32) (uint32, bool)
	// Cursor returns the new cursor of a client of a channel, by its old id.
	Cursor(id uint32, cursor uint64) uint64
}

// noSuchChannel is the id of no channel of any log: whose client's channel is not known is refused, and closed.
const noSuchChannel = NoChannel - 1

// Moved returns a copy of the table that is about a log after it was rearranged. The table itself stays as it is, and goes on to
// be about the log before: a process that is killed leaves one of the two, or both, each true with its log. It is for the time
// before Recover, and believes as little as that does: what is not sound is copied as it is, for others to refuse.
func (t *Table) Moved(arrangement uint64, m Moves) (next *Table, err error) {
	if next, err = t.duplicate(); err != nil {
		return nil, err
	}
	next.head.arrangement = arrangement
	for slot := range min(t.head.used.Load(), uint32(len(t.recs))) {
		if s := next.recs[slot].state.Load(); s != Free && s <= Closing {
			next.move(slot, m)
		}
	}
	return next, nil
}

// move makes a record that is sound be about the log as it is now.
func (t *Table) move(slot uint32, m Moves) {
	r := &t.recs[slot]
	if !r.sound() {
		return
	}
	rooms, err := t.Subscriptions(slot)
	if err != nil {
		return
	}
	p, interrupted := r.Place()
	switch at := int(p.At); {
	case at == 0:
		r.channel, p.Cursor = move(m, r.channel, p.Cursor)
	case at <= len(rooms):
		_, p.Cursor = move(m, rooms[at-1].Channel(), p.Cursor)
		r.channel, _ = move(m, r.channel, 0)
	}
	for _, s := range rooms {
		if !s.Used() {
			continue
		}
		channel, cursor := move(m, s.Channel(), s.Cursor())
		until := s.Until()
		if until != 0 {
			_, until = move(m, s.Channel(), until)
		}
		s.Set(channel, cursor, until)
	}
	r.Stand(p) // nobody else sees this copy
	if interrupted {
		r.Writing()
	}
}

func move(m Moves, channel uint32, cursor uint64) (uint32, uint64) {
	if channel == NoChannel {
		return channel, cursor
	}
	to, ok := m.Channel(channel)
	if !ok {
		return noSuchChannel, cursor
	}
	return to, m.Cursor(channel, cursor)
}

// Arrangement of the log that channels and cursors are about; 0 for one that was never rearranged.
func (t *Table) Arrangement() uint64 { return t.head.arrangement }

// SetArrangement is for a table that has no clients yet.
func (t *Table) SetArrangement(arrangement uint64) { t.head.arrangement = arrangement }
