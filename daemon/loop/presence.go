package loop

import (
	"fmt"
	"slices"
	"sync"

	"wscast/daemon/encode"
)

// presence is who is on which channel, as far as it is known. It has nothing of clients without an identity.
type presence struct {
	mu       sync.Mutex
	channels map[string]map[string]int // connections by channel and identity
}

// mostIdentities is how many of them presence answers with, of so many bytes altogether.
const (
	mostIdentities    = 100
	mostIdentityBytes = 8 << 10
)

// count adds connections of a client to a channel, or takes them away.
func (p *presence) count(channel string, g Grant, by int) {
	if g == nil || g.Identity() == "" {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.channels == nil {
		p.channels = make(map[string]map[string]int)
	}
	there := p.channels[channel]
	if there == nil {
		there = make(map[string]int)
		p.channels[channel] = there
	}
	if there[g.Identity()] += by; there[g.Identity()] == 0 {
		delete(there, g.Identity())
	}
	if len(there) == 0 {
		delete(p.channels, channel)
	}
}

// present are the members of the answer to presence: the number of clients, and the identities; some of them where there are many, since
// looking at all would keep other loops waiting.
func (p *presence) present(channel string, clients int) string {
	var identities []string
	p.mu.Lock()
	room := mostIdentityBytes
	for identity := range p.channels[channel] {
		if room -= len(identity); room < 0 || len(identities) == mostIdentities {
			break
		}
		identities = append(identities, identity)
	}
	p.mu.Unlock()
	slices.Sort(identities)
	b := fmt.Appendf(nil, `,"clients":%d,"identities":[`, clients)
	for i, identity := range identities {
		if i > 0 {
			b = append(b, ',')
		}
		b = encode.AppendString(b, []byte(identity))
	}
	return string(append(b, ']'))
}
