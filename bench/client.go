package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// One source address has about 28,000 ports to one server (ip_local_port_range), and a
// connection that is over may keep its port for a minute: clients come from this many
// addresses, from 127.0.0.1 on, in turn.
const (
	sourceAddresses   = 16
	clientsPerAddress = 20_000
)

// The key of the example in RFC 6455, section 1.3, and the answer to it. Every client uses
// it: a server has no way to profit from that.
const (
	handshakeKey    = "dGhlIHNhbXBsZSBub25jZQ=="
	handshakeAccept = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
)

// maxFrame bounds what a client holds of a frame that has not arrived whole.
const maxFrame = 64 << 10

// stage is how far a client is: connecting -> asked -> open.
type stage uint8

const (
	connecting stage = iota // connect(2) is under way
	asked                   // the request is sent, the answer is not here yet
	open
)

// A client is one WebSocket connection of the load process.
type client struct {
	order
	number  int
	reading reading
	path    string // of the request
	fd      int
	stage   stage
	rest    []byte // the front of an answer or of a frame of which the end has not come
}

// connect starts to connect client number i to a server, and does not wait. Options are set before.
func connect(i int, path string, to netip.AddrPort, options ...func(fd int) error) (*client, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	c := &client{number: i, path: path, fd: fd}
	// Without this, bind would reserve a port for this source address and every destination
	// (ip(7)).
	err = unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
	for _, set := range options {
		err = errors.Join(err, set(fd))
	}
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrInet4{Addr: sourceAddress(i)})
	}
	if err == nil {
		err = unix.Connect(fd, &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())})
	}
	if err != nil && err != unix.EINPROGRESS {
		unix.Close(fd)
		return nil, fmt.Errorf("connect to %s: %w", to, err)
	}
	return c, nil
}

func sourceAddress(i int) [4]byte { return [4]byte{127, 0, 0, byte(1 + i%sourceAddresses)} }

// ask sends the opening handshake, once the connection is made.
func (c *client) ask(host string) error {
	if code, err := unix.GetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_ERROR); err != nil || code != 0 {
		return fmt.Errorf("connect to %s: %w", host, errors.Join(err, syscall.Errno(code)))
	}
	request := "GET " + c.path + " HTTP/1.1\r\nHost: " + host + "\r\n" + c.reading.request()
	c.stage = asked
	return c.send([]byte(request))
}

// send writes b, which always fits into an empty send buffer.
func (c *client) send(b []byte) error {
	n, err := unix.SendmsgN(c.fd, b, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	if err == nil && n < len(b) {
		err = unix.EAGAIN
	}
	return os.NewSyscallError("send", err)
}

// close resets the connection: a FIN would leave the port in TIME_WAIT, and a later round
// would find none free.
func (c *client) close() {
	// Failing to set it costs a port for a minute and nothing else.
	_ = unix.SetsockoptLinger(c.fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1, Linger: 0})
	unix.Close(c.fd)
}

// take takes bytes as they come from the server: first the answer to the handshake, then
// frames or events. It calls message for every message. The client is open once the answer is whole.
func (c *client) take(data []byte, message func(c *client, payload []byte) error) error {
	if len(c.rest) > 0 {
		c.rest = append(c.rest, data...)
		data = c.rest
	}
	if c.stage == asked {
		n, err := answer(data, c.reading)
		if err != nil {
			return err
		}
		if n > 0 {
			c.stage = open
			data = data[n:]
		}
	}
	for c.stage == open && c.reading.events() {
		text, n, err := c.reading.splitEvent(data)
		if err == nil && text != nil {
			err = message(c, text)
		}
		if err != nil {
			return err
		}
		if n == 0 {
			break
		}
		data = data[n:]
	}
	for c.stage == open && !c.reading.events() {
		opcode, payload, n, err := split(data)
		if err != nil {
			return err
		}
		if n == 0 {
			break
		}
		data = data[n:]
		switch opcode {
		case 0x1:
			if payload, err = c.reading.text(payload); err == nil && payload != nil {
				err = message(c, payload)
			}
		case 0x2:
			err = errors.New("a text message came as a binary frame")
		case 0x9:
			err = c.pong(payload)
		case 0xA:
		case 0x8:
			err = fmt.Errorf("%w: %s", errClosed, closeReason(payload))
		}
		if err != nil {
			return err
		}
	}
	// append copies down within c.rest where data is its tail (memmove semantics).
	c.rest = append(c.rest[:0], data...)
	return nil
}

// answer returns the length of the server's answer at the front of b, or 0 when its end has
// not come.
func answer(b []byte, r reading) (int, error) {
	end := bytes.Index(b, []byte("\r\n\r\n"))
	switch {
	case end < 0 && len(b) > 4096:
		return 0, errors.New("the answer to the handshake is longer than 4096 bytes")
	case end < 0:
		return 0, nil
	}
	head := b[:end+2]
	status, _, _ := bytes.Cut(head, []byte("\r\n"))
	if r.events() && bytes.HasPrefix(status, []byte("HTTP/1.1 200 ")) && bytes.Contains(head, []byte("\r\nContent-Type: text/event-stream\r\n")) {
		return end + 4, nil
	}
	if r.events() || !bytes.HasPrefix(status, []byte("HTTP/1.1 101 ")) {
		return 0, fmt.Errorf("the handshake was answered with %q", status)
	}
	if !bytes.Contains(bytes.ToLower(head), bytes.ToLower([]byte("\r\nSec-WebSocket-Accept: "+handshakeAccept+"\r\n"))) {
		return 0, errors.New("the answer to the handshake has not the right Sec-WebSocket-Accept")
	}
	return end + 4, nil
}

// split takes one frame off the front of b: its opcode, its payload, which lies in b, and its
// length. The length is 0 when the end of the frame has not come. Fragments are refused: no
// server has a reason to send such short messages in pieces.
func split(b []byte) (opcode byte, payload []byte, n int, err error) {
	if len(b) < 2 {
		return 0, nil, 0, nil
	}
	opcode = b[0] & 0xf
	head, length := 2, uint64(b[1])
	switch {
	case b[0]&0x70 != 0:
		return 0, nil, 0, fmt.Errorf("a frame begins with %#02x: reserved bits", b[0])
	case b[0]&0x80 == 0 || opcode == 0:
		return 0, nil, 0, fmt.Errorf("a frame begins with %#02x: a fragment", b[0])
	case opcode != 0x1 && opcode != 0x2 && opcode != 0x8 && opcode != 0x9 && opcode != 0xA:
		return 0, nil, 0, fmt.Errorf("a frame begins with %#02x: an unknown opcode", b[0])
	case b[1]&0x80 != 0:
		return 0, nil, 0, errors.New("a frame from the server is masked")
	case opcode >= 0x8 && length > 125:
		return 0, nil, 0, errors.New("a control frame is longer than 125 bytes")
	case length == 126:
		head = 4
		if len(b) < head {
			return 0, nil, 0, nil
		}
		length = uint64(binary.BigEndian.Uint16(b[2:]))
	case length == 127:
		head = 10
		if len(b) < head {
			return 0, nil, 0, nil
		}
		length = binary.BigEndian.Uint64(b[2:])
	}
	if length > maxFrame {
		return 0, nil, 0, fmt.Errorf("a frame of %d bytes: at most %d are published", length, maxFrame)
	}
	n = head + int(length)
	if len(b) < n {
		return 0, nil, 0, nil
	}
	return opcode, b[head:n], n, nil
}

// pong answers a ping. The masking key is zero, which leaves the payload as it is: it is
// there to confuse proxies that look into the stream (RFC 6455, section 10.3), and there are
// none.
func (c *client) pong(payload []byte) error {
	frame := append([]byte{0x8A, 0x80 | byte(len(payload)), 0, 0, 0, 0}, payload...)
	return c.send(frame)
}

// errClosed is the end of a connection that a server brings about.
var errClosed = errors.New("the server closed the connection")

func closeReason(payload []byte) string {
	if len(payload) < 2 {
		return "no code"
	}
	return fmt.Sprintf("%d %q", binary.BigEndian.Uint16(payload), payload[2:])
}
