package loop

import (
	"net/http"
	"strconv"
	"sync"
	"time"

	"wscast/daemon/frame"
)

// population counts the clients of all loops, and those of each address, from before their 101 on until they have their good-bye or are gone. Who is
// taken over is counted and never refused: limits are for newcomers.
type population struct {
	mu   sync.Mutex
	all  int
	from map[uint32]int // by Admission.From
}

// overLimit is the answer to a request for which there is no place.
type overLimit struct {
	status int
	line   string
}

// enter takes a place for a client, or says why there is none.
func (p *population) enter(from uint32, config *Config) *overLimit {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case config.MaxClients > 0 && p.all >= config.MaxClients:
		return &overLimit{http.StatusServiceUnavailable, "there are " + strconv.Itoa(config.MaxClients) + " clients, as many as there may be: come back later"}
	case from != 0 && config.MaxPerAddress > 0 && p.from[from] >= config.MaxPerAddress:
		return &overLimit{http.StatusTooManyRequests, "your address has " + strconv.Itoa(config.MaxPerAddress) + " connections, as many as it may: close others first"}
	}
	p.addLocked(from)
	return nil
}

// add counts a client that is taken over.
func (p *population) add(from uint32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.addLocked(from)
}

func (p *population) addLocked(from uint32) {
	p.all++
	if from == 0 {
		return
	}
	if p.from == nil {
		p.from = make(map[uint32]int)
	}
	p.from[from]++
}

// leave gives a place back.
func (p *population) leave(from uint32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.all--
	if n := p.from[from]; n > 1 {
		p.from[from] = n - 1
	} else {
		delete(p.from, from)
	}
}

// settleIn takes a place for a client whose request has been found good, and leaves word of it for an heir.
func (l *loop) settleIn(c *client, from uint32) *overLimit {
	if from != 0 {
		if err := l.keep.Table.SetAddress(c.slotted, from); err != nil {
			return &overLimit{http.StatusServiceUnavailable, err.Error()}
		}
	}
	if no := l.group.population.enter(from, l.config); no != nil {
		l.count.Turned++
		return no
	}
	c.flags |= resident
	return nil
}

// moveOut gives back a client's place, if it has one. Its record is still its own.
func (l *loop) moveOut(c *client) {
	if c.flags&resident != 0 {
		c.flags &^= resident
		l.group.population.leave(l.keep.Table.Address(c.slotted))
	}
}

var errTooManyFrames = &frame.Error{Code: frame.ClosePolicyViolation, Reason: "too many frames: websocket.frame_rate"}

// crowded counts frames of a client, and tells whether there have been more of them in a second than Config.FrameRate. Only those who have sent some in
// this second are counted at all.
func (l *loop) crowded(c *client, frames int) bool {
	if l.config.FrameRate == 0 || frames == 0 {
		return false
	}
	if now := time.Now(); now.Sub(l.second) >= time.Second {
		l.second = now
		clear(l.talkers)
	}
	if l.talkers == nil {
		l.talkers = make(map[uint32]int)
	}
	l.talkers[c.slot] += frames
	return l.talkers[c.slot] > l.config.FrameRate
}
