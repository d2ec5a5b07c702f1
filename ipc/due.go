package ipc

import (
	"sync/atomic"
	"time"
)

// due is the time by which the command in hand has to be whole. What has been read of it takes memory, as much as a
// message may have; without an end to that, publishers that stop in the middle could take that much each, for ever.
//
// The timer ends the wait for input by a deadline in the past, and never sets another one: there are others who do the same.
// It runs only while a part of a command is there.
type due struct {
	timer   *time.Timer
	running bool
	late    atomic.Bool
}

// start is called each time that there is nothing more to read; the first one counts.
func (d *due) start(c *conn) {
	switch {
	case d.running:
		return
	case d.timer == nil:
		d.timer = time.AfterFunc(c.server.commandTimeout(), func() {
			d.late.Store(true)
			c.sock.SetReadDeadline(longAgo)
			c.sock.SetWriteDeadline(time.Now().Add(closeGrace)) // for follow, which has mu while the peer does not read
		})
	default:
		d.timer.Reset(c.server.commandTimeout())
	}
	d.running = true
}

func (d *due) stop() {
	if d.running {
		d.timer.Stop()
		d.running = false
	}
}

// missed is asked once the connection waits for nothing more.
func (d *due) missed() bool { return d.late.Load() }

// giveUp is the end of a connection whose command has not become whole.
func (c *conn) giveUp() {
	c.server.count.unfinished.Add(1)
	c.server.log().Warn("publisher closed: it has begun a command and not finished it", "pid", c.peer.PID, "uid", c.peer.UID, "name", c.name())
	c.mu.Lock()
	defer c.mu.Unlock()
	c.begin()
	c.out.error("ERR Protocol error: the command is not complete after " + c.server.commandTimeout().String())
	c.flush()
}
