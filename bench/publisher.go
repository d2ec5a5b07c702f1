package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// A protocol is what a server wants to read on its publish socket.
type protocol string

const (
	// resp: PUBLISH commands of the Redis protocol, each answered with the number of clients.
	resp protocol = "resp"
	// post: HTTP requests, each answered with the number of clients among other things (nchan).
	post protocol = "post"
	// frames: finished WebSocket frames, not answered.
	frames protocol = "frames"
	// lengths: each message behind its length in four bytes, big-endian, not answered.
	lengths protocol = "lengths"
)

// answers: each message is answered.
func (p protocol) answers() bool { return p == resp || p == post }

// A channel is where messages of source number i go to. The first one's is the one that every
// server has; others are for servers that have any number.
func channel(i int) string {
	if i == 0 {
		return "default"
	}
	return "c" + strconv.Itoa(i)
}

// clientPath is the path of the URL of that channel.
func clientPath(i int) string {
	if i == 0 {
		return "/websocket"
	}
	return "/websocket/" + channel(i)
}

// A publisher writes messages to a server's Unix socket. One thread may write while another
// reads answers.
type publisher struct {
	fd       int
	protocol protocol

	// What answers have to say: message k goes to channel k modulo channels, to which every
	// client of that number modulo channels listens. Fewer than none is not compared.
	clients, channels int

	// Messages have ids, so that one that is published again is in the log once (resp of
	// wscastd).
	ids bool

	// The writing side.
	out  []byte // what flush will write
	text []byte // scratch
	id   []byte // scratch
	sent uint64 // messages added

	// The reading side.
	in       []byte
	rest     []byte // the front of an answer of which the end has not come
	answered uint64
	last     int // what the last answer said
}

// dialPublisher connects to the publish socket at path. A write or a read that takes longer
// than stall fails.
func dialPublisher(path string, p protocol, stall time.Duration) (*publisher, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	limit := unix.NsecToTimeval(stall.Nanoseconds())
	err = errors.Join(
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit),
		unix.Connect(fd, &unix.SockaddrUnix{Name: path}))
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("connect to %s: %w", path, err)
	}
	return &publisher{fd: fd, protocol: p, channels: 1, in: make([]byte, 64<<10)}, nil
}

func (p *publisher) close() { unix.Close(p.fd) }

// add adds a message to what flush will write, for channel number to.
func (p *publisher) add(to int, m message) {
	p.text = m.appendTo(p.text[:0])
	switch p.protocol {
	case resp:
		name := channel(to)
		arguments := "*3"
		if p.ids {
			arguments = "*5"
		}
		p.out = append(p.out, arguments...)
		p.out = append(p.out, "\r\n$7\r\nPUBLISH\r\n$"...)
		p.out = strconv.AppendInt(p.out, int64(len(name)), 10)
		p.out = append(p.out, "\r\n"...)
		p.out = append(p.out, name...)
		p.out = append(p.out, "\r\n$"...)
		p.out = strconv.AppendInt(p.out, messageSize, 10)
		p.out = append(p.out, "\r\n"...)
		p.out = append(p.out, p.text...)
		p.out = append(p.out, "\r\n"...)
		if p.ids {
			p.id = appendHex(p.id[:0], uint64(m.source), 8)
			p.id = appendHex(p.id, m.sequence, 16)
			p.out = append(p.out, "$2\r\nID\r\n$24\r\n"...)
			p.out = append(p.out, p.id...)
			p.out = append(p.out, "\r\n"...)
		}
	case post:
		p.out = append(p.out, "POST /publish?channel="...)
		p.out = append(p.out, clientPath(to)...)
		p.out = append(p.out, " HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\nContent-Length: "...)
		p.out = strconv.AppendInt(p.out, messageSize, 10)
		p.out = append(p.out, "\r\n\r\n"...)
		p.out = append(p.out, p.text...)
	case frames:
		// RFC 6455, section 5.2: final, text, not masked; from 126 bytes on the length
		// takes two more.
		p.out = append(p.out, 0x81, 126)
		p.out = binary.BigEndian.AppendUint16(p.out, messageSize)
		p.out = append(p.out, p.text...)
	case lengths:
		p.out = binary.BigEndian.AppendUint32(p.out, messageSize)
		p.out = append(p.out, p.text...)
	}
	p.sent++
}

// flush writes what was added, and blocks until the server's socket has taken it.
func (p *publisher) flush() error {
	b := p.out
	for len(b) > 0 {
		n, err := unix.SendmsgN(p.fd, b, nil, nil, unix.MSG_NOSIGNAL)
		if err == unix.EINTR {
			continue
		}
		if err == unix.EAGAIN {
			return errors.New("publish: the server has stopped reading its publish socket")
		}
		if err != nil {
			return fmt.Errorf("publish: %w", err)
		}
		b = b[n:]
	}
	p.out = p.out[:0]
	return nil
}

// read reads answers, and fails when one is not the number of clients that it must be. It
// blocks until something comes.
func (p *publisher) read() error {
	n, _, err := unix.Recvfrom(p.fd, p.in, 0)
	switch {
	case err == unix.EINTR:
		return nil
	case err == unix.EAGAIN:
		return errors.New("the server has stopped answering on the publish socket")
	case err != nil:
		return os.NewSyscallError("recv from the publish socket", err)
	case n == 0:
		return errors.New("the server closed the publish socket")
	}
	data := p.in[:n]
	if len(p.rest) > 0 {
		p.rest = append(p.rest, data...)
		data = p.rest
	}
	split := splitAnswer
	if p.protocol == post {
		split = splitPosted
	}
	for {
		count, n, err := split(data)
		if err != nil {
			return err
		}
		if n == 0 {
			break
		}
		if want := p.expected(); want >= 0 && count != want {
			return fmt.Errorf("publish was answered with %d clients: there are %d", count, want)
		}
		data = data[n:]
		p.answered++
		p.last = count
	}
	p.rest = append(p.rest[:0], data...)
	return nil
}

// expected is what the next answer has to say.
func (p *publisher) expected() int {
	if p.clients < 0 {
		return -1
	}
	n := p.clients / p.channels
	if int(p.answered%uint64(p.channels)) < p.clients%p.channels {
		n++
	}
	return n
}

// splitAnswer takes one RESP integer off the front of b: its value and its length, which is 0
// when the end has not come.
func splitAnswer(b []byte) (value, n int, err error) {
	end := bytes.IndexByte(b, '\n')
	if end < 0 {
		if len(b) > 512 {
			return 0, 0, fmt.Errorf("publish was answered with a line that does not end: %.80q", b)
		}
		return 0, 0, nil
	}
	line := bytes.TrimSuffix(b[:end], []byte("\r"))
	if len(line) < 2 || line[0] != ':' {
		return 0, 0, fmt.Errorf("publish was answered with %q", line)
	}
	value, err = strconv.Atoi(string(line[1:]))
	if err != nil {
		return 0, 0, fmt.Errorf("publish was answered with %q", line)
	}
	return value, end + 1, nil
}

// splitPosted takes one of nchan's answers off the front of b: its number of clients and its
// length, which is 0 when the end has not come.
func splitPosted(b []byte) (clients, n int, err error) {
	const most = 4096
	wrong := func() (int, int, error) {
		return 0, 0, fmt.Errorf("publish was answered with %.300q", b)
	}
	end := bytes.Index(b, []byte("\r\n\r\n"))
	if end < 0 {
		if len(b) > most {
			return wrong()
		}
		return 0, 0, nil
	}
	head := b[:end+2]
	// 201: there are clients; 202: there are none.
	if !bytes.HasPrefix(head, []byte("HTTP/1.1 201 ")) && !bytes.HasPrefix(head, []byte("HTTP/1.1 202 ")) {
		return wrong()
	}
	length, ok := numberBehind(head, "\r\nContent-Length: ")
	if !ok || length > most {
		return wrong()
	}
	n = end + 4 + length
	if len(b) < n {
		return 0, 0, nil
	}
	if clients, ok = numberBehind(b[end+4:n], "\nactive subscribers: "); !ok {
		return wrong()
	}
	return clients, n, nil
}

// numberBehind returns the decimal number behind a text, which ends with the line.
func numberBehind(b []byte, text string) (int, bool) {
	_, rest, ok := bytes.Cut(b, []byte(text))
	if !ok {
		return 0, false
	}
	line, _, _ := bytes.Cut(rest, []byte("\n"))
	n, err := strconv.Atoi(string(bytes.TrimSuffix(line, []byte("\r"))))
	return n, err == nil && n >= 0
}

// unanswered is how many answers are still to come. Only for the one thread that does both.
func (p *publisher) unanswered() uint64 {
	if !p.protocol.answers() {
		return 0
	}
	return p.sent - p.answered
}
