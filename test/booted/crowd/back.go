package crowd

import "fmt"

// Return lets stayers whose connection ends without a close frame come back from now on, with the id of the last message that they have got: what
// they are sent then has to be what comes next in the order. A client of raw frames is told no ids; its comes from others that have got the message.
func (c *Crowd) Return() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.returning = true
}

// Returned is how often clients of a kind have come back.
func (c *Crowd) Returned(k Kind) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.returned[k]
}

// comeBack is what there is to do when a stayer has lost its connection.
func (c *Crowd) comeBack(cl *client) {
	if cl.stage == open {
		c.returned[cl.kind]++
	}
	cl.stage, cl.rest, cl.joined = connecting, nil, 0
	t := &cl.talk
	t.half, t.pinged, t.ponged, t.asked, t.answered = nil, 0, 0, 0, 0
	if t.speaker.number > 0 {
		// What it has published may be on its way still, and come behind what it would publish then.
		c.fail(fmt.Errorf("client %d (%s), which publishes, is to come back: one that does cannot", cl.number, cl.kind))
	}
	c.away = append(c.away, cl)
}

// knowsItsPlace finds the id with which a client comes back. One that has got no message has that of its beginning, or comes as if for the first time.
func (c *Crowd) knowsItsPlace(cl *client) bool {
	if cl.at == 0 {
		cl.since = cl.first
		return true
	}
	cl.since = cl.audience.order[cl.at-1].name
	return cl.since != ""
}
