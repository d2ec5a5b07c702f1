package crowd

import (
	"fmt"
	"slices"
	"time"

	"wscast/ipc"
)

// Flow is what publishers do.
type Flow struct {
	Publishers int
	Size       int // of a message, in bytes
	Large      int // of every seventh message; 0: as all others
	Window     int // messages that are acknowledged and have not come to every stayer
}

// Publish starts publishers, which are dealt over the channels, each on connections of its own to the socket of that path, until Finish. It is called once.
func (c *Crowd) Publish(socket string, f Flow) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f.Publishers < c.channels {
		c.t.Fatalf("%d publishers cannot publish on %d channels", f.Publishers, c.channels)
	}
	c.quiet, c.flow = false, f
	c.publish = make([]*ipc.Client, f.Publishers)
	c.publishing = f.Publishers
	for i := range f.Publishers {
		c.ended.Go(func() {
			c.publisher(socket, uint8(i))
			c.mu.Lock()
			c.publishing--
			c.announce()
			c.mu.Unlock()
		})
	}
}

// Silence stops the publishers, and returns when all that they have published is acknowledged. It may not have come to anybody yet.
func (c *Crowd) Silence() {
	c.t.Helper()
	c.mu.Lock()
	c.stopped, c.quiet = true, true
	c.announce()
	c.mu.Unlock()
	c.await("the publishers to end", func() bool { return c.publishing == 0 })
}

// EndedWithAll fails the test unless every stayer that was closed with a tolerated code had got everything that was acknowledged.
func (c *Crowd) EndedWithAll(code int) {
	c.t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	for publisher, number := range c.last {
		for _, a := range c.audiences {
			if got := a.judge[publisher].number; a.has(c.channelOf(id{publisher: publisher})) && len(a.order) > 0 && got < number {
				c.t.Errorf("publisher %d was told of its message %d, and clients got those up to %d", publisher, number, got)
			}
		}
	}
	for _, end := range c.ends[code] {
		if all := len(end.audience.order); end.messages != all {
			c.t.Errorf("client %d was closed with %d after %d messages of %d", end.client, code, end.messages, all)
		}
	}
}

func (c *Crowd) publisher(socket string, publisher uint8) {
	m := id{publisher: publisher, number: 1, try: 1}
	var message []byte
	var p *ipc.Client
	defer func() {
		if p != nil {
			p.Close()
		}
	}()
	for c.mayPublish() {
		var err error
		if p == nil {
			if p, err = ipc.Dial(socket); err == nil {
				c.mu.Lock()
				c.publish[publisher] = p
				closing := c.closing
				c.mu.Unlock()
				if closing {
					return
				}
			}
		}
		if err == nil {
			size := c.flow.Size
			if c.flow.Large > 0 && m.number%7 == 0 {
				size = c.flow.Large
			}
			message = m.appendTo(message[:0], size)
			_, err = p.Publish(channelName(c.channelOf(m)), message)
		}
		c.mu.Lock()
		closing := c.closing
		if err == nil {
			c.acknowledged(m)
			m.number, m.try = m.number+1, 1
		} else {
			m.try++
			if m.try == 0 {
				c.fail(fmt.Errorf("publisher %d: %w, in every one of 65,535 tries", publisher, err))
			}
		}
		c.mu.Unlock()
		if err != nil {
			if p != nil {
				p.Close()
				p = nil
			}
			if closing {
				return
			}
			time.Sleep(retry)
		}
	}
}

// retry keeps a publisher that finds no socket from using up a processor.
const retry = time.Millisecond

// mayPublish waits until the next message may be published. A publisher whose last message is not acknowledged stays in the window.
func (c *Crowd) mayPublish() bool {
	for {
		c.mu.Lock()
		stopped := c.stopped
		room := c.room()
		if c.changed == nil {
			c.changed = make(chan struct{})
		}
		changed := c.changed
		c.mu.Unlock()
		if stopped || room {
			return !stopped
		}
		<-changed
	}
}

// acknowledged counts a message that its publisher knows to be in the log.
func (c *Crowd) acknowledged(m id) {
	c.last[m.publisher] = m.number
	c.published++
	for _, a := range c.audiences {
		if a.has(c.channelOf(m)) {
			a.published++
		}
	}
}

// room tells whether the window has room for another message.
func (c *Crowd) room() bool {
	return !slices.ContainsFunc(c.audiences, func(a *audience) bool {
		return a.members > 0 && a.published >= uint64(a.complete+c.flow.Window)
	})
}
