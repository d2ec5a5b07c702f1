package ipc

import (
	"errors"
	"strings"
)

// Broker is what the publish socket speaks for. All methods are safe for concurrent use.
type Broker interface {
	// Publish appends one message; when err is nil the message is in the log. It returns the
	// number of WebSocket clients it goes to. Whoever waits for messages may be left to wait until Flush.
	//
	// id is empty, or what the publisher has named the message by, 1 to MaxID bytes. If the log has a message of the
	// channel with this id, nothing is appended, again is true, and clients are those that the channel has now.
	//
	// The arguments are only valid during the call; channel is a valid name (ValidChannel) and message is
	// not over the limit. The error's text is sent after "-ERR ".
	Publish(channel, message, id []byte) (clients int, again bool, err error)
	// Flush wakes all who wait for what was published up to now. The server calls it before it answers, once
	// for messages that came together.
	Flush()
	// Clients is the number of WebSocket clients subscribed to the channel now.
	Clients(channel string) int
	// Channels are the names of the channels that have at least one WebSocket client now.
	Channels() []string
	// Info is what INFO says: sections of ordered fields. A section that the server has as well
	// (Server, Publishers) is continued with these fields.
	Info() []Section
	// Tail is a reader at the head of the log: it sees every message appended after the call.
	Tail() Tail
	// TailFrom is a reader of every message after seq. Where some of them are gone, or seq is above Head, its first
	// Next returns ErrBehind.
	TailFrom(seq uint64) Tail
	// Head is the sequence number of the newest message; 0 if there has been none.
	Head() uint64
}

// Tail reads the log in order. It is used by one goroutine, except Close.
//
// A Tail may also have the method
//
//	TryNext(want func(channel string) bool) (m Message, ok bool, err error)
//
// which is Next, but returns ok = false instead of blocking. The server then writes what is there to a
// subscriber in one go; without it each message is a write of its own.
type Tail interface {
	// Next blocks until a message arrives for whose channel want returns true. The message's Data
	// and Channel are valid until the next call. want is quick and calls nothing of the Broker.
	// ErrBehind: the log has overwritten messages not yet read. ErrClosed after Close.
	Next(want func(channel string) bool) (Message, error)
	// Seen is the sequence number up to which Next has come: every message up to it was returned or not wanted. It is
	// called by the goroutine that calls Next, also after Close.
	Seen() uint64
	Close()
}

// Message is one message of the log.
type Message struct {
	Channel string
	Data    []byte
	Seq     uint64 // its place in the log, from 1; 0 where it is not known
}

// Section is a part of INFO.
type Section struct {
	Name   string
	Fields []Field
}

// Field is one "key:value" line of INFO.
type Field struct{ Key, Value string }

var (
	// ErrBehind is a reader's place in the log having been overwritten.
	ErrBehind = errors.New("slow: the log has moved on")
	// ErrClosed is the use of what has been closed.
	ErrClosed = errors.New("closed")
)

// MaxChannel is the longest name of a channel, in bytes.
const MaxChannel = 128

// MaxID is the longest id of a message, in bytes.
const MaxID = 128

// UpstreamPrefix begins the names of the channels in which local processes get what WebSocket clients publish. They can be subscribed to, and
// are never published to over the socket.
const UpstreamPrefix = "@"

// ValidSubscription reports whether name can be subscribed to: a channel, or what clients publish to one.
func ValidSubscription(name string) bool {
	return ValidChannel(strings.TrimPrefix(name, UpstreamPrefix))
}

// ValidChannel reports whether name can be a channel: 1 to MaxChannel bytes, each an ASCII letter, a digit
// or one of . _ - : /
func ValidChannel[T string | []byte](name T) bool {
	if len(name) == 0 || len(name) > MaxChannel {
		return false
	}
	for i := 0; i < len(name); i++ {
		if !channelByte[name[i]] {
			return false
		}
	}
	return true
}

var channelByte = func() (ok [256]bool) {
	for _, c := range "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-:/" {
		ok[c] = true
	}
	return ok
}()
