package daemon

import (
	"errors"
	"unicode/utf8"

	"wscast/daemon/failpoint"
	"wscast/daemon/frame"
	"wscast/daemon/msglog"
	"wscast/ipc"
)

// The publish socket's names of channels and ids fit into the log.
const (
	_ = uint(msglog.MaxName - ipc.MaxChannel)
	_ = uint(msglog.MaxID - ipc.MaxID)
)

var errNotText = errors.New("the message is not UTF-8 and the channel is one of text frames: publish text, or configure frames = " +
	`"auto" or "binary"`)

// Publish implements ipc.Broker: it appends a message to the log.
func (d *Daemon) Publish(channel, message, id []byte) (clients int, again bool, err error) {
	op, err := opcode(d.config.Load(), channel, message)
	if err != nil {
		return 0, false, err
	}
	clients, again, err = d.store.Put(channel, message, id, op)
	failpoint.Pass("publish.unanswered")
	return clients, again, err
}

// Flush implements ipc.Broker.
func (d *Daemon) Flush() { d.store.Flush() }

// opcode is the kind of frame that a message goes out as.
func opcode(c *Config, channel, message []byte) (frame.Opcode, error) {
	frames := framesAuto
	if len(c.Channel) > 0 {
		frames = c.frames(string(channel))
	}
	switch {
	case frames == framesBinary:
		return frame.Binary, nil
	case utf8.Valid(message):
		return frame.Text, nil
	case frames == framesText:
		return 0, errNotText // a browser would close the connection (RFC 6455 section 8.1)
	}
	return frame.Binary, nil
}

// Clients implements ipc.Broker.
func (d *Daemon) Clients(channel string) int { return d.store.Clients(channel) }

// Channels implements ipc.Broker.
func (d *Daemon) Channels() []string { return d.store.Channels() }

// Head implements ipc.Broker.
func (d *Daemon) Head() uint64 { return d.store.Head() }

// Tail implements ipc.Broker.
func (d *Daemon) Tail() ipc.Tail { return tail{d.store.Follow()} }

// TailFrom implements ipc.Broker.
func (d *Daemon) TailFrom(seq uint64) ipc.Tail { return tail{d.store.FollowFrom(seq)} }

// tail shows a follower of the log to the publish socket.
type tail struct{ *msglog.Follower }

func (t tail) Next(want func(channel string) bool) (ipc.Message, error) {
	m, err := t.Follower.Next(want)
	return message(m), errorOf(err)
}

func (t tail) TryNext(want func(channel string) bool) (ipc.Message, bool, error) {
	m, ok, err := t.Follower.TryNext(want)
	return message(m), ok, errorOf(err)
}

func message(m msglog.Message) ipc.Message {
	return ipc.Message{Channel: m.Channel, Data: m.Data, Seq: m.Number}
}

func errorOf(err error) error {
	switch err {
	case msglog.ErrBehind:
		return ipc.ErrBehind
	case msglog.ErrClosed:
		return ipc.ErrClosed
	}
	return err
}
