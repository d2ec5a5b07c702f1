package ipc

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// ServeDatagrams publishes what comes on a datagram socket until Close, and then returns nil; the socket stays
// open and is the caller's. Each datagram is one message, of exactly its bytes, for the given channel; where
// channel is "", its first line, up to a line feed, names the channel and the message is what follows. There are
// no answers: what cannot be published (longer than MaxMessage, a bad channel, refused by the Broker) is dropped,
// counted, and logged at most once a minute. Rules (SetRules) go by the user and group that the sender has when it sends
// (SCM_CREDENTIALS); its other groups are not known. An error is the socket's, and fatal.
func (s *Server) ServeDatagrams(sock *net.UnixConn, channel string) error {
	if channel != "" && !ValidChannel(channel) {
		return fmt.Errorf("datagram channel %q: a channel is 1 to %d letters, digits and . _ - : /", channel, MaxChannel)
	}
	if _, ok := s.begin(sock); !ok {
		return nil
	}
	defer s.end(sock)
	if err := passCredentials(sock); err != nil {
		return fmt.Errorf("datagram socket %s: %w", sock.LocalAddr(), err)
	}
	control := make([]byte, credentials)
	drops := dropLog{server: s}
	defer drops.log()
	var buf []byte
	for {
		// The longest datagram that can be published, and one byte to know a longer one by. The pages of a buffer
		// that long datagrams never reach are never touched.
		if n := s.MaxMessage() + MaxChannel + 2; len(buf) != n {
			buf = make([]byte, n)
		}
		n, controls, flags, _, err := sock.ReadMsgUnix(buf, control)
		if err != nil {
			if s.isClosed() {
				return nil
			}
			if errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.ENOMEM) {
				drops.add("cannot be received: " + err.Error())
				continue
			}
			return fmt.Errorf("datagram socket %s: %w", sock.LocalAddr(), err)
		}
		s.count.datagrams.Add(1)
		if err := s.publishDatagram(buf[:n], channel, control[:controls], flags&unix.MSG_TRUNC != 0); err != nil {
			s.count.datagramsDropped.Add(1)
			drops.add(err.Error())
			continue
		}
		s.count.published.Add(1)
	}
}

func (s *Server) publishDatagram(message []byte, channel string, control []byte, truncated bool) error {
	name := []byte(channel)
	if channel == "" {
		var ok bool
		if name, message, ok = bytes.Cut(message, []byte("\n")); !ok {
			return errors.New("no first line with a channel")
		}
		if !ValidChannel(name) {
			return errors.New("bad channel " + quoteArgument(name))
		}
	}
	if limit := s.MaxMessage(); truncated || len(message) > limit {
		return fmt.Errorf("longer than %d bytes (publish.max_message)", limit)
	}
	if err := s.maySend(control, name); err != nil {
		s.count.denied.Add(1)
		return err
	}
	_, _, err := s.Broker.Publish(name, message, nil)
	s.Broker.Flush()
	return err
}

func (s *Server) maySend(control, channel []byte) error {
	rules := s.rules.Load()
	if rules == nil {
		return nil
	}
	sender, known := senderOf(control)
	mine := rulesFor(*rules, sender.UID, func() []uint32 { return []uint32{sender.GID} })
	if !known {
		mine = slices.DeleteFunc(mine, func(r *Rule) bool { return !r.Everyone })
	}
	switch {
	case publishAllowed(mine, channel):
		return nil
	case !known:
		return errors.New("its sender is not known, and there are rules ([[publish.allow]]): set PassCredentials=yes in the socket unit")
	}
	return &deniedError{sender.UID, "publish on", string(channel)}
}

// dropLog tells of the first datagram dropped, then of what has come together once a minute, as drops come, and
// of the rest at the end.
type dropLog struct {
	server *Server
	count  int
	cause  string // of the last one
	last   time.Time
}

func (d *dropLog) add(cause string) {
	d.count++
	d.cause = cause
	if time.Since(d.last) >= logEvery {
		d.log()
	}
}

func (d *dropLog) log() {
	if d.count > 0 {
		d.server.log().Warn("datagrams dropped", "count", d.count, "cause", d.cause)
		d.count, d.last = 0, time.Now()
	}
}
