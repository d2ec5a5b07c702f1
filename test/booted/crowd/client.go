package crowd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

// stage is how far a client is: connecting -> asked -> joining -> open -> leaving.
type stage uint8

const (
	connecting stage = iota // connect(2) is under way, or will be
	asked                   // the request is sent, the answer is not here yet
	joining                 // it is answered, and not subscribed yet
	open
	leaving // a close frame or a FIN is sent
)

type client struct {
	number   int
	kind     Kind
	audience *audience
	fd       int
	stage    stage
	stays    bool
	rest     []byte // the front of an answer, of a frame or of an event, of which the end has not come

	at           int // of a stayer: its next turn
	talk         talk
	first        string   // the id with which its subscriptions began
	joined       int      // channels of which it was told so
	since        string   // the id that it has come back with
	judge        sequence // of a passer
	stayFor, got int      // messages
}

// subscribes tells whether a client subscribes with commands, and not by its URL. One that comes back does not: with a command for each channel
// it would be sent what it missed channel by channel.
func (cl *client) subscribes() bool { return cl.kind.json() && cl.number%4 >= 2 && cl.since == "" }

// connectMore lets clients come until as many are under way as are to be, those first that come back.
func (c *Crowd) connectMore() {
	c.away = slices.DeleteFunc(c.away, func(cl *client) bool {
		if c.answering >= atOnce || len(c.errs) > 0 || !c.knowsItsPlace(cl) {
			return false
		}
		c.begin(cl)
		return true
	})
	for c.answering < atOnce && len(c.errs) == 0 && (len(c.stayers) < c.wanted || c.passers < c.passing) {
		cl := &client{number: c.started, stays: len(c.stayers) < c.wanted}
		cl.kind = c.kinds[cl.number%len(c.kinds)]
		cl.audience = c.audienceOf(cl.kind, cl.number/len(c.kinds))
		if !cl.stays {
			cl.judge, cl.stayFor = sequence{}, rand.IntN(c.mostStay+1)
		}
		if !c.begin(cl) {
			return
		}
		c.started++
		if cl.stays {
			c.stayers = append(c.stayers, cl)
			cl.audience.members++
		} else {
			c.passers++
		}
	}
}

// begin starts to connect a client.
func (c *Crowd) begin(cl *client) bool {
	if err := c.connect(cl); err != nil {
		c.fail(fmt.Errorf("client %d: %w", cl.number, err))
		return false
	}
	c.answering++
	c.byFD[int32(cl.fd)] = cl
	return true
}

// connect starts to connect, and does not wait.
func (c *Crowd) connect(cl *client) (err error) {
	domain := unix.AF_UNIX
	if _, inet := c.to.(*unix.SockaddrInet4); inet {
		domain = unix.AF_INET
	}
	if cl.fd, err = unix.Socket(domain, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0); err != nil {
		return os.NewSyscallError("socket", err)
	}
	if domain == unix.AF_INET {
		// Without this, bind would reserve a port for this source address and every destination (ip(7)).
		err = unix.SetsockoptInt(cl.fd, unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
		if err == nil {
			err = unix.Bind(cl.fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, byte(1 + cl.number%addresses)}})
		}
	}
	if err == nil {
		err = unix.Connect(cl.fd, c.to)
	}
	if err == unix.EINPROGRESS {
		err = nil
	}
	if err == nil {
		err = c.watch(cl.fd, unix.EPOLL_CTL_ADD, unix.EPOLLOUT)
	}
	if err != nil {
		unix.Close(cl.fd)
		return fmt.Errorf("connect: %w", err)
	}
	return nil
}

// serve does what there is to do for a client of which epoll has told.
func (c *Crowd) serve(cl *client) {
	if cl.stage == connecting {
		code, err := unix.GetsockoptInt(cl.fd, unix.SOL_SOCKET, unix.SO_ERROR)
		if err == nil && code != 0 {
			err = fmt.Errorf("connect: %w", syscall.Errno(code))
		}
		if err == nil {
			err = c.watch(cl.fd, unix.EPOLL_CTL_MOD, unix.EPOLLIN)
		}
		if err == nil {
			cl.stage = asked
			err = send(cl.fd, c.request(cl, cl.since))
		}
		if err != nil {
			c.over(cl, err)
		}
		return
	}
	n, err := unix.Read(cl.fd, c.buffer)
	switch {
	case err == unix.EAGAIN || err == unix.EINTR:
		return
	case err == nil && n == 0:
		err = io.EOF
	case err == nil:
		err = c.take(cl, c.buffer[:n])
	}
	if err != nil {
		c.over(cl, err)
	}
}

// closeError is a close frame from the server.
type closeError struct {
	code   int
	reason string
}

func (e *closeError) Error() string { return fmt.Sprintf("closed with %d %q", e.code, e.reason) }

// errLeft is the end of a passer as it wants it.
var errLeft = errors.New("left")

// over ends a client's connection, and judges why.
func (c *Crowd) over(cl *client, err error) {
	closed := &closeError{code: abnormal}
	ended := errors.As(err, &closed) || err == io.EOF || errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE)
	who := fmt.Sprintf("client %d (%s)", cl.number, cl.kind)
	if cl.stage < open {
		c.answering--
	}
	delete(c.byFD, int32(cl.fd))
	reset(cl.fd)
	if cl.stays && c.returning && ended && closed.code == abnormal {
		c.comeBack(cl)
		return
	}
	switch {
	case cl.stays:
		switch {
		case !ended || cl.stage != open && !c.tolerated[0]:
			c.fail(fmt.Errorf("%s: %w", who, err))
		case !c.tolerated[closed.code]:
			c.fail(fmt.Errorf("%s, which stays and has %d messages: %w", who, cl.at, err))
		default:
			c.closed[closed.code]++
			c.ends[closed.code] = append(c.ends[closed.code], end{cl.number, cl.at, cl.audience})
		}
		is := func(s *client) bool { return s == cl }
		c.stayers, c.talkers = slices.DeleteFunc(c.stayers, is), slices.DeleteFunc(c.talkers, is)
		c.wanted--
		cl.audience.members--
		for i := cl.at; i < len(cl.audience.order); i++ {
			cl.audience.order[i].left--
		}
		cl.audience.advance()
	case cl.stage == asked && ended && len(cl.rest) == 0:
		c.passed.Reset++
	case err != errLeft && !(cl.stage == leaving && ended):
		c.fail(fmt.Errorf("%s: %w; it is a passer with %d messages", who, err, cl.got))
	}
	if !cl.stays {
		c.passers--
	}
}

// reset closes with a RST: a FIN would leave the port in TIME_WAIT.
func reset(fd int) {
	_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	unix.Close(fd)
}

func send(fd int, b []byte) error {
	n, err := unix.SendmsgN(fd, b, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	if err == nil && n < len(b) {
		err = unix.EAGAIN
	}
	return err
}

// take takes bytes as they come: the answer to the request, then frames or events.
func (c *Crowd) take(cl *client, data []byte) error {
	if len(cl.rest) > 0 {
		cl.rest = append(cl.rest, data...)
		data = cl.rest
	}
	if cl.stage == asked {
		n, err := cl.kind.answer(data)
		if err != nil {
			return err
		}
		if n > 0 {
			data = data[n:]
			cl.stage = joining
			if !cl.kind.json() {
				c.opened(cl)
			}
		}
	}
	for cl.stage >= joining {
		if cl.stage == open && !cl.stays && cl.got >= cl.stayFor {
			if err := c.leave(cl); err != nil {
				return err
			}
		}
		n, err := c.takeOne(cl, data)
		if err != nil {
			return err
		}
		if n == 0 {
			break
		}
		data = data[n:]
	}
	// append copies down within cl.rest where data is its tail (memmove semantics).
	cl.rest = append(cl.rest[:0], data...)
	return nil
}

// opened is what there is to do when a client has its subscriptions.
func (c *Crowd) opened(cl *client) {
	cl.stage = open
	c.answering--
	if !cl.stays {
		c.passed.Opened++
	}
}

// takeOne takes one frame or event off the front of data, and returns its length, or 0.
func (c *Crowd) takeOne(cl *client, data []byte) (n int, err error) {
	if !cl.kind.webSocket() {
		block, n, err := splitEvent(data)
		if err == nil && n > 0 {
			err = c.event(cl, block)
		}
		return n, err
	}
	f, n, err := split(data, cl.kind.deflates())
	if err != nil || n == 0 {
		return 0, err
	}
	switch f.opcode {
	case textFrame, binaryFrame:
		err = c.frame(cl, &f)
	case pingFrame:
		if cl.stage == open {
			err = cl.send(clientFrame(pongFrame, f.payload))
		}
	case pongFrame:
		err = cl.talk.pong(f.payload)
	case closeFrame:
		err = &closeError{code: 1005}
		if len(f.payload) >= 2 {
			err = &closeError{int(binary.BigEndian.Uint16(f.payload)), string(f.payload[2:])}
			_ = cl.send(clientFrame(closeFrame, f.payload[:2]))
		}
	}
	return n, err
}

// frame is a message, or an answer.
func (c *Crowd) frame(cl *client, f *frame) error {
	if c.known(cl, f.payload) {
		return c.taken(cl)
	}
	payload := f.payload
	if f.deflated {
		c.inflated++
		var err error
		if payload, err = inflate(payload); err != nil {
			return err
		}
	}
	if !cl.kind.json() {
		h, err := rawMessage(f.opcode, payload)
		if err == nil {
			err = c.message(cl, h, f.payload)
		}
		return err
	}
	if f.opcode != textFrame {
		return errors.New("a binary frame of wscast.v1.json")
	}
	s, err := parseSaid(payload)
	if err != nil {
		return err
	}
	if s.Reply != "" || s.Error != "" {
		return c.reply(cl, &s)
	}
	h, err := s.envelope(c.channelOf)
	if err == nil {
		err = c.message(cl, h, f.payload)
	}
	return err
}

// event is one of an event stream: a message, or something about the stream.
func (c *Crowd) event(cl *client, block []byte) error {
	if c.known(cl, block) {
		return c.taken(cl)
	}
	e, err := parseEvent(block)
	switch {
	case err != nil:
		return err
	case e.kind == "incomplete":
		return fmt.Errorf("it is told that messages of %q are gone", e.data)
	case e.lines > 0:
		h, err := e.message(cl.kind, c.channelOf)
		if err == nil {
			err = c.message(cl, h, block)
		}
		return err
	case e.name != "":
		cl.first = e.name
	}
	return nil
}

// known tells whether bytes are those by which another client of the kind has got the message that is next.
func (c *Crowd) known(cl *client, b []byte) bool {
	if !cl.stays || cl.at >= len(cl.audience.order) {
		return false
	}
	as := cl.audience.order[cl.at].as[cl.kind]
	return as != nil && bytes.Equal(as, b)
}

// message is one that has come as these bytes.
func (c *Crowd) message(cl *client, h heard, as []byte) error {
	if !cl.audience.has(c.channelOf(h.id)) {
		return fmt.Errorf("%v is of another channel", h.id)
	}
	if !cl.stays {
		cl.got++
		return cl.judge.take(h.id, true)
	}
	if err := cl.audience.next(cl.at, h); err != nil {
		return err
	}
	cl.audience.order[cl.at].as[cl.kind] = bytes.Clone(as)
	return c.taken(cl)
}

// taken moves a client on behind the message that was next.
func (c *Crowd) taken(cl *client) error {
	t := &cl.audience.order[cl.at]
	t.left--
	cl.at++
	cl.got++
	c.heardItself(cl, t.id)
	cl.audience.advance()
	return nil
}

// leave ends a passer's connection, in one of three ways; an event stream in one of two.
func (c *Crowd) leave(cl *client) error {
	cl.stage = leaving
	switch way := rand.IntN(3); {
	case way == 0 && cl.kind.webSocket():
		return send(cl.fd, clientFrame(closeFrame, binary.BigEndian.AppendUint16(nil, 1000)))
	case way == 1:
		return unix.Shutdown(cl.fd, unix.SHUT_WR)
	default:
		return errLeft // which is a RST
	}
}
