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

	// Written under Log.mu in the order that Reader.Next relies on, read without it.
	first   atomic.Uint64 // sequence number of its oldest message in the log, 0: none
	last    atomic.Uint64 // of its newest message, be it in the log or not, 0: none since the channel has its place
	evicted atomic.Uint64 // of its newest message that the log has overwritten, 0: none

	news atomic.Uint64 // bits of the readers that have it on their list of channels with news

	// Guarded by Log.mu.
	kept    uint64 // messages in the log
	clients int
	readers uint64 // bits of the readers with clients
}

// Name of the channel.
func (ch *Channel) Name() string { return ch.name }

// ID is the channel's number in this log, smaller than Options.Channels. It is another channel's once this one is
// forgotten.
func (ch *Channel) ID() uint32 { return ch.id }

// Last is the sequence number of the channel's newest message, which the log may have overwritten; 0 if there was none
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
	var id uint32
	for len(l.free) > 0 && l.byID[l.free[len(l.free)-1]] != nil {
		l.free = l.free[:len(l.free)-1] // taken by adopt
	}
	switch {
	case len(l.free) > 0:
		id = l.free[len(l.free)-1]
		l.free = l.free[:len(l.free)-1]
	case len(l.byID) < len(l.m.cells):
		id = uint32(len(l.byID))
		l.byID = append(l.byID, nil)
	default:
		return nil, ErrChannels
	}
	l.m.cells[id].put(name)
	ch := &Channel{name: string(name), id: id}
	l.byName[ch.name], l.byID[id] = ch, ch
	return ch, nil
}

// adoptLocked finds a channel by its number, for a client that an earlier process has served: with no message in the log that process alone
// knew that the channel was there. Names stay in the table until their cell is used anew.
func (l *Log) adoptLocked(id uint32) (*Channel, error) {
	if uint64(id) < uint64(len(l.byID)) && l.byID[id] != nil {
		return l.byID[id], nil
	}
	if uint64(id) >= uint64(len(l.m.cells)) {
		return nil, fmt.Errorf("log: there is no channel %d", id)
	}
	name, ok := l.m.cells[id].get()
	if !ok || l.byName[string(name)] != nil {
		return nil, fmt.Errorf("log: the name of channel %d is damaged", id)
	}
	for uint64(len(l.byID)) <= uint64(id) {
		if next := uint32(len(l.byID)); next != id {
			l.free = append(l.free, next)
		}
		l.byID = append(l.byID, nil)
	}
	ch := &Channel{name: string(name), id: id}
	l.byName[ch.name], l.byID[id] = ch, ch
	return ch, nil
}

// forgetLocked gives up the place of a channel without clients and messages.
func (l *Log) forgetLocked(ch *Channel) {
	if ch.clients > 0 || ch.kept > 0 || l.byID[ch.id] != ch {
		return
	}
	delete(l.byName, ch.name)
	l.byID[ch.id] = nil
	l.free = append(l.free, ch.id)
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
	for from, more := 0, true; more; from += most {
		l.mu.Lock()
		to := min(from+most, len(l.byID))
		more = to < len(l.byID)
		for _, ch := range l.byID[min(from, to):to] {
			if ch != nil && ch.clients > 0 {
				names = append(names, ch.name)
			}
		}
		l.mu.Unlock()
	}
	return names
}
