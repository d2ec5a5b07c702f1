package main

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// pipeline and batch: a publisher that is measured alone has up to pipeline messages
// unanswered, and writes batch of them at a time.
const pipeline, batch = 256, 64

// alone is a phase in which publishers are measured, each on a connection of its own and with
// messages of its own, dealt over the channels in turn.
type alone struct {
	Publishers, Clients, Channels int // Clients is 0 or 1, and with 1 there is one channel
}

func (a alone) String() string {
	text := fmt.Sprintf("%d publishers", a.Publishers)
	if a.Publishers == 1 {
		text = "1 publisher"
	}
	if a.Clients == 1 {
		return text + ", 1 client"
	}
	if a.Channels > 1 {
		return text + ", no client, " + strconv.Itoa(a.Channels) + " channels"
	}
	return text + ", no client"
}

func (a alone) rate() row { return row("publishes/s, " + a.String() + more) }
func (a alone) cpu() row  { return row("CPU µs per publish, " + a.String()) }

// A listener is the one client of such a phase.
type listener struct {
	client
	redis bool // it has subscribed on the publish socket, and gets pushes instead of frames
	got   int
}

// publishAlone publishes for a phase, pipelined. A client gets every message before the next
// ones are published, or those of a server that answers first would pile up.
func (l *load) publishAlone(a alone) (err error) {
	publishers := make([]*publisher, a.Publishers)
	for i := range publishers {
		p, err := dialPublisher(l.Publish, l.Protocol, l.Stall)
		if err != nil {
			return err
		}
		defer p.close()
		p.clients, p.channels = a.Clients, a.Channels
		publishers[i] = p
	}
	var listening *listener
	if a.Clients > 0 {
		listening, err = l.listen(a.Publishers)
		if listening != nil {
			defer func() {
				listening.close()
				if err == nil {
					err = gone(publishers[0], l.Stall)
				}
			}()
		}
		if err != nil {
			return err
		}
	}
	used, err := cpuTime(l.Servers...)
	if err != nil {
		return err
	}
	sent, answered := 0, uint64(0)
	start := time.Now()
	for open := true; open; {
		open = time.Since(start) < l.Phase
		for i, p := range publishers {
			for p.unanswered() <= pipeline-batch && open {
				for range batch {
					p.add(int(p.sent)%a.Channels, message{source: uint32(i), sequence: p.sent + 1})
				}
				sent += batch
				if err := p.flush(); err != nil {
					return err
				}
			}
			for first := true; p.unanswered() > 0 && (first || !open); first = false {
				if err := p.read(); err != nil {
					return err
				}
			}
		}
		for listening != nil && (listening.got < sent-pipeline*a.Publishers || !open && listening.got < sent) {
			if err := listening.read(l.buffer, l.Stall); err != nil {
				return err
			}
		}
	}
	taken := time.Since(start)
	usedAfter, err := cpuTime(l.Servers...)
	if err != nil {
		return err
	}
	for _, p := range publishers {
		answered += p.answered
	}
	l.figures[a.rate()] = float64(answered) / taken.Seconds()
	l.figures[a.cpu()] = micros(usedAfter-used) / float64(answered)
	return nil
}

// gone returns when the server no longer counts the client that has left.
func gone(p *publisher, stall time.Duration) error {
	p.clients = -1
	for end := time.Now().Add(stall); ; time.Sleep(time.Millisecond) {
		p.add(0, message{})
		if err := p.flush(); err != nil {
			return err
		}
		for p.unanswered() > 0 {
			if err := p.read(); err != nil {
				return err
			}
		}
		if p.last == 0 {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("the client has left, and %s later there are %d", stall, p.last)
		}
	}
}

// listen connects the client, which is due the messages of so many publishers.
func (l *load) listen(publishers int) (*listener, error) {
	li := &listener{redis: l.Address == ""}
	if li.redis {
		fd, err := subscribe(l.Publish)
		if err != nil {
			return nil, err
		}
		li.client = client{fd: fd, stage: asked}
	} else {
		to, err := netip.ParseAddrPort(l.Address)
		if err != nil {
			return nil, err
		}
		c, err := connect(0, clientPath(0), to)
		if err != nil {
			return nil, err
		}
		li.client = *c
		if err := await(c.fd, unix.POLLOUT, l.Stall); err != nil {
			return li, err
		}
		if err := li.ask(l.Address); err != nil {
			return li, err
		}
	}
	li.order = newOrder(0, publishers, 1)
	for li.stage == asked {
		if err := li.read(l.buffer, l.Stall); err != nil {
			return li, err
		}
	}
	return li, nil
}

// subscribe connects to the Unix socket of a Redis server, and asks for the channel.
func subscribe(path string) (fd int, err error) {
	if fd, err = unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	if err = unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err == nil {
		_, err = unix.Write(fd, []byte("SUBSCRIBE "+channel(0)+"\r\n"))
	}
	if err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("subscribe at %s: %w", path, err)
	}
	return fd, nil
}

// await waits until there is something to do at a socket.
func await(fd int, events int16, stall time.Duration) error {
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: events}}, int(stall.Milliseconds()))
		switch {
		case err == unix.EINTR:
		case err != nil:
			return os.NewSyscallError("poll", err)
		case n == 0:
			return fmt.Errorf("nothing has come for the client for %s", stall)
		default:
			return nil
		}
	}
}

// read waits for something to come, and takes it.
func (li *listener) read(buffer []byte, stall time.Duration) error {
	if err := await(li.fd, unix.POLLIN, stall); err != nil {
		return err
	}
	n, err := receive(li.fd, buffer)
	if err != nil {
		return os.NewSyscallError("recv", err)
	}
	if n == 0 {
		return errors.New("the server closed the client's connection")
	}
	if li.redis {
		return li.takePushes(buffer[:n])
	}
	return li.take(buffer[:n], li.message)
}

func (li *listener) message(_ *client, payload []byte) error {
	m, err := parseMessage(payload)
	if err != nil {
		return err
	}
	li.got++
	return li.order.take(m)
}

// What a Redis server sends to a subscriber (RESP2): the answer to SUBSCRIBE, and every
// message between a head and a tail that are always the same.
var (
	subscribed = []byte("*3\r\n$9\r\nsubscribe\r\n$" + strconv.Itoa(len(channel(0))) + "\r\n" + channel(0) + "\r\n:1\r\n")
	pushHead   = []byte("*3\r\n$7\r\nmessage\r\n$" + strconv.Itoa(len(channel(0))) + "\r\n" + channel(0) + "\r\n$" + strconv.Itoa(messageSize) + "\r\n")
	pushTail   = []byte("\r\n")
)

// takePushes takes bytes as they come: first the answer, then messages.
func (li *listener) takePushes(data []byte) error {
	if len(li.rest) > 0 {
		li.rest = append(li.rest, data...)
		data = li.rest
	}
	if li.stage == asked && len(data) >= len(subscribed) {
		if !bytes.HasPrefix(data, subscribed) {
			return fmt.Errorf("SUBSCRIBE was answered with %.100q", data)
		}
		data = data[len(subscribed):]
		li.stage = open
	}
	for size := len(pushHead) + messageSize + len(pushTail); li.stage == open && len(data) >= size; data = data[size:] {
		if !bytes.HasPrefix(data, pushHead) || !bytes.HasSuffix(data[:size], pushTail) {
			return fmt.Errorf("a subscriber got %.200q", data)
		}
		if err := li.message(nil, data[len(pushHead):][:messageSize]); err != nil {
			return err
		}
	}
	li.rest = append(li.rest[:0], data...)
	return nil
}
