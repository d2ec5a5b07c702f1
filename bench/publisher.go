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
	// frames: finished WebSocket frames, not answered.
	frames protocol = "frames"
	// lengths: each message behind its length in four bytes, big-endian, not answered.
	lengths protocol = "lengths"
)

const channel = "default"

// A publisher writes messages to a server's Unix socket. One thread may write while another
// reads answers.
type publisher struct {
	fd       int
	protocol protocol

	// The writing side.
	out     []byte // what flush will write
	message []byte // scratch
	sent    uint64 // messages added

	// The reading side.
	in       []byte
	rest     []byte // the front of an answer of which the end has not come
	answered uint64
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
	return &publisher{fd: fd, protocol: p, in: make([]byte, 64<<10)}, nil
}

func (p *publisher) close() { unix.Close(p.fd) }

// add adds a message to what flush will write.
func (p *publisher) add(sequence uint64, stamp int64) {
	p.message = appendMessage(p.message[:0], sequence, stamp)
	switch p.protocol {
	case resp:
		p.out = append(p.out, "*3\r\n$7\r\nPUBLISH\r\n$"...)
		p.out = strconv.AppendInt(p.out, int64(len(channel)), 10)
		p.out = append(p.out, "\r\n"+channel+"\r\n$"...)
		p.out = strconv.AppendInt(p.out, messageSize, 10)
		p.out = append(p.out, "\r\n"...)
		p.out = append(p.out, p.message...)
		p.out = append(p.out, "\r\n"...)
	case frames:
		// RFC 6455, section 5.2: final, text, not masked; from 126 bytes on the length
		// takes two more.
		p.out = append(p.out, 0x81, 126)
		p.out = binary.BigEndian.AppendUint16(p.out, messageSize)
		p.out = append(p.out, p.message...)
	case lengths:
		p.out = binary.BigEndian.AppendUint32(p.out, messageSize)
		p.out = append(p.out, p.message...)
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
func (p *publisher) read(clients int) error {
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
	for {
		count, n, err := splitAnswer(data)
		if err != nil {
			return err
		}
		if n == 0 {
			break
		}
		if count != clients {
			return fmt.Errorf("publish was answered with %d clients: there are %d", count, clients)
		}
		data = data[n:]
		p.answered++
	}
	p.rest = append(p.rest[:0], data...)
	return nil
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

// unanswered is how many answers are still to come. Only for the one thread that does both.
func (p *publisher) unanswered() uint64 {
	if p.protocol != resp {
		return 0
	}
	return p.sent - p.answered
}
