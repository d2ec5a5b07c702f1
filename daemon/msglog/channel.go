package msglog

import (
	"errors"
	"fmt"
	"sync/atomic"
)

// MaxName is the longest name of a channel, in bytes.
const MaxName = 128

// ErrChannels: every cell of the table of channels is in use.
var ErrChannels = errors.New("too many channels: each of them has clients or messages in the log; log.channels sets the limit")

var errName = errors.New("invalid channel: a name has 1 to 128 bytes")

// checkName asks only what the log needs. What a name is made of is for those who take it from outside (ipc.ValidChannel).
func checkName(name []byte) error {
	if len(name) == 0 || len(name) > MaxName {
		return errName
	}
	return nil
}

// A Channel has its place in the log as long as it has clients or messages there.
type Channel struct {
	name string
	id   uint32
	ring *ring

	// Written under Log.mu in the order that Reader.Next relies on, read without it.
	first   atomic.Uint64 // ordinal of its oldest message in the log, 0: none
	last    atomic.Uint64 // of its newest message, be it in the log or not, 0: none since the channel has its place
	evicted atomic.Uint64 // of its newest message that the log has overwritten, 0: none

	number atomic.Uint64 // the number of the one at last, or of one after it, where numbers are not ordinals

	news atomic.Uint64 // bits of the readers that have it on their list of channels with news

	// Guarded by Log.mu.
	kept    uint64 // messages in the log
	clients int
	readers uint64 // bits of the readers with clients
}

// Name of the channel.
func (ch *Channel) Name() string { return ch.name }

// ID is the channel's number in this log: that of its ring in the upper 8 bits, and one smaller than Options.Channels below.
// It is another channel's once this one is forgotten.
func (ch *Channel) ID() uint32 { return ch.id }

// Ring is the number of the ring that the channel's messages are in.
func (ch *Channel) Ring() int { return ch.ring.index }

// Cell is the channel's number in its ring, smaller than Options.Channels.
func (ch *Channel) Cell() int { return int(cellOf(ch.id)) }

// Last is the ordinal of the channel's newest message, which the log may have overwritten; 0 if there was none
// since the channel has its place in the log.
func (ch *Channel) Last() uint64 { return ch.last.Load() }

// channelLocked finds or makes a channel.
func (l *Log) channelLocked(name []byte) (*Channel, error) {
	if ch := l.byName[string(name)]; ch != nil {
		return ch, nil
	}
	if err := checkName(name); err != nil {
		return nil, err
	}
	g := l.ringFor(name)
	var cell uint32
	for len(g.free) > 0 && g.byID[g.free[len(g.free)-1]] != nil {
		g.free = g.free[:len(g.free)-1] // taken by adopt
	}
	switch {
	case len(g.free) > 0:
		cell = g.free[len(g.free)-1]
		g.free = g.free[:len(g.free)-1]
	case len(g.byID) < len(g.m.cells):
		cell = uint32(len(g.byID))
		g.byID = append(g.byID, nil)
	default:
		return nil, ErrChannels
	}
	g.m.cells[cell].put(name)
	return g.addLocked(string(name), cell), nil
}

// addLocked makes a channel of a cell.
func (g *ring) addLocked(name string, cell uint32) *Channel {
	ch := &Channel{name: name, id: g.id(cell), ring: g}
	g.log.byName[name], g.byID[cell] = ch, ch
	g.channels++
	return ch
}

// adoptLocked finds a channel by its number, for a client that an earlier process has served: with no message in the log that process alone
// knew that the channel was there. Names stay in the table until their cell is used anew.
func (l *Log) adoptLocked(id uint32) (*Channel, error) {
	g, cell := l.ringOf(id), cellOf(id)
	if g != nil && uint64(cell) < uint64(len(g.byID)) && g.byID[cell] != nil {
		return g.byID[cell], nil
	}
	if g == nil || uint64(cell) >= uint64(len(g.m.cells)) {
		return nil, fmt.Errorf("log: there is no channel %d", id)
	}
	name, ok := g.m.cells[cell].get()
	if !ok || l.byName[string(name)] != nil {
		return nil, fmt.Errorf("log: the name of channel %d is damaged", id)
	}
	for uint64(len(g.byID)) <= uint64(cell) {
		if next := uint32(len(g.byID)); next != cell {
			g.free = append(g.free, next)
		}
		g.byID = append(g.byID, nil)
	}
	return g.addLocked(string(name), cell), nil
}

// forgetLocked gives up the place of a channel without clients and messages.
func (l *Log) forgetLocked(ch *Channel) {
	g, cell := ch.ring, cellOf(ch.id)
	if ch.clients > 0 || ch.kept > 0 || g.byID[cell] != ch {
		return
	}
	delete(l.byName, ch.name)
	g.byID[cell] = nil
	g.channels--
	g.free = append(g.free, cell)
}

// Clients is the number of clients of the channel.
func (l *Log) Clients(name string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.clientsLocked([]byte(name))
}

func (l *Log) clientsLocked(name []byte) int {
	if ch := l.byName[string(name)]; ch != nil {
		return ch.clients
	}
	return 0
}

// Channels are the names of the channels that have clients, in no order. It looks at some of them at a time, so that
// publishers need not wait for a long list: what gets or loses its only clients meanwhile may be there or not.
func (l *Log) Channels() (names []string) {
	const most = 1024
	for _, g := range l.rings {
		for from, more := 0, true; more; from += most {
			l.mu.Lock()
			to := min(from+most, len(g.byID))
			more = to < len(g.byID)
			for _, ch := range g.byID[min(from, to):to] {
				if ch != nil && ch.clients > 0 {
					names = append(names, ch.name)
				}
			}
			l.mu.Unlock()
		}
	}
	return names
}
