package daemon

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"golang.org/x/sys/unix"

	"wscast/daemon/frame"
	"wscast/daemon/survive"
)

// A damage is what has happened to what one process leaves to the next: a few steps of 8 bytes each, a kind, a target, an offset and a value.
const (
	flipRecord = iota // a bit of a record
	setRecord         // a byte of a record
	fillRecord        // four bytes
	tearRecord        // some bytes are as they were a while ago
	flipTable         // a bit of the table's header
	setTable          // a byte of it
	flipLog           // a bit of the log's header
	setLog            // a byte of it
	flipCell          // a bit of a channel's name
	flipEntry         // a bit of an entry
	setEntry          // a byte of an entry
	flipFrame         // a bit of a frame
	cut               // a file is shorter
	swap              // one has the other's name
	double            // one has the other's name as well
	drop              // one is not there
	foreign           // something else has its name
	strangers         // a segment has something else, too
	damages           // how many there are
)

const (
	damageSize = 8
	mostDamage = 6
	mostSlots  = 24
)

// FuzzAdopt has a daemon take over what another one has left, after it was damaged. Whatever it is, there is no panic, the daemon serves, and a
// client is either closed or gets the messages of its channel that it has not got yet: no byte that does not follow what it has.
func FuzzAdopt(f *testing.F) {
	step := func(kind, target byte, offset uint16, value ...byte) []byte {
		return append(binary.LittleEndian.AppendUint16([]byte{kind, target}, offset), append(value, 0, 0, 0, 0)[:4]...)
	}
	f.Add([]byte{})
	for offset := uint16(0); offset < 256; offset += 8 { // of a client that is blocked, and of one that is up to date
		f.Add(step(flipRecord, byte(offset/8%2), offset, byte(offset/8)))
	}
	for slot := range byte(8) { // of clients of two channels, and of what continues their records
		for offset := uint16(40); offset < 104; offset += 8 {
			f.Add(step(flipRecord, 6+slot, offset+2*uint16(slot%4), 1+slot%2))
		}
	}
	for offset := uint16(0); offset < 64; offset += 8 {
		f.Add(step(flipTable, 0, offset, byte(offset)))
		f.Add(step(flipLog, 0, offset*4, byte(offset)))
		f.Add(step(flipEntry, byte(offset), offset, byte(offset)))
	}
	for target := range byte(4) {
		f.Add(append(step(tearRecord, target, 30, 60), step(tearRecord, target+1, 32, 96)...))
		f.Add(step(flipCell, target, uint16(target)))
		f.Add(step(flipFrame, target, uint16(target)))
		f.Add(step(setRecord, target, 24+8*uint16(target), 0xff))
		f.Add(step(fillRecord, target, 40, 1, 2, 3, 4))
	}
	for target := range byte(8) {
		f.Add(step(cut, target, 4096))
		f.Add(step(swap, target, uint16(target)+1))
		f.Add(step(double, target, uint16(target)+1))
		f.Add(step(drop, target, 0))
		for kind := range uint16(len(foreigners)) {
			if kind%4 == uint16(target)%4 {
				f.Add(step(foreign, target, kind))
			}
		}
		f.Add(step(strangers, target, uint16(target), target%2))
	}
	f.Fuzz(func(t *testing.T, steps []byte) {
		k := newKeeper(t, 40)
		r := k.reign(t, logSize)
		s := &stage{t: t, daemon: r, shows: map[string][]int{}}
		// Connections inherit a send buffer that is soon full.
		listener, err := r.d.sockets.WebSocket[0].SyscallConn()
		if err == nil {
			cerr := listener.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF, 64<<10) })
			err = errors.Join(err, cerr)
		}
		if err != nil {
			t.Fatal(err)
		}
		// In the order of their records.
		behind := s.connect("news", 4096)
		up := s.connect("news", 0)
		private := s.connect("private", 0)
		talks := s.connect("news", 0)
		leaves := s.connect("news", 0)
		late := s.connect("", 0)
		gone := s.connect("news", 0)
		gone.conn.Close()
		// One of them is behind.
		sessions := []*spectator{s.converse(Subprotocol, 0), s.converse("events", 32<<10)}
		if len(steps) > 4 && steps[4]%2 == 1 {
			sessions = []*spectator{s.converse("events", 0), s.converse(Subprotocol, 32<<10)}
		}
		publisher, err := net.Dial("unix", filepath.Join(r.dir, "publish.sock"))
		if err != nil {
			t.Fatal(err)
		}
		defer publisher.Close()
		for _, c := range s.clients {
			if c != behind {
				go c.read()
			}
		}
		go sessions[0].hear()
		s.publish("news", 300, 400)
		s.publish("private", 301)
		up.await(400)
		talks.send("\x89\x85\x01\x02\x03\x04\x05\x06\x07\x0c\x0d") // a ping
		talks.await(0)
		before := k.records(t)
		s.publish("news", 500, 60_000, 61_000, 62_000, 63_000, 64_000, 59_000, 58_000, 57_000, 56_000, 55_000, 54_000, 53_000)
		s.publish("more", 70_001, 65_000, 64_001)
		s.publish("private", 501)
		up.await(53_000)
		leaves.await(53_000)
		private.await(501)
		sessions[0].await(501)
		talks.send("\x89\x85\x01\x02\x03\x04\x05")      // half a ping
		leaves.send("\x88\x82\x00\x00\x00\x00\x03\xe8") // a close frame
		late.send("GET /websocket/news")
		if answer := ask(publisher, "PUBLISH others one\r\n", false); answer != ":0\r\n" {
			t.Fatal(answer)
		}
		k.end(r)

		damaged := len(steps) >= damageSize
		for n := 0; len(steps) >= damageSize && n < mostDamage; n++ {
			k.damage(t, steps[:damageSize], before)
			s.mu.Lock()
			s.frames = s.frames || int(steps[0])%damages == flipFrame
			s.mu.Unlock()
			steps = steps[damageSize:]
		}

		heir := k.reign(t, logSize)
		s.daemon = heir
		if log := heir.log.String(); !damaged && !regexp.MustCompile(`repaired=[1-9]`).MatchString(log) {
			t.Errorf("no client was in the middle of a message\n%s", log)
		}
		newcomer := heir.connect(t)
		talks.send("\x06\x07\x0c\x0d")
		late.send(asking)
		go behind.read()
		go sessions[1].hear()
		s.publish("news", 600, 601)
		s.publish("private", 602)
		heir.hear(t, newcomer, 600, 601)
		for _, c := range s.clients[:4] {
			c.await(map[string]int{"news": 601, "private": 602}[c.channel])
		}
		for _, c := range sessions {
			c.await(602)
		}
		for _, c := range append(s.clients[:4:4], sessions...) {
			if !damaged && c.over {
				t.Errorf("client %d was closed, and nothing was damaged\n%s", c.number, heir.log)
			}
			c.conn.Close()
			for !c.over {
				c.await(-1)
			}
		}
		// That nobody has a publisher's connection is not said: its descriptor can be under any name.
		if answer := ask(publisher, "PUBLISH others two\r\n", damaged); answer != ":0\r\n" && (!damaged || answer != "") {
			t.Errorf("the publisher got %q", answer)
		}
		k.end(heir)
	})
}

// ask returns "" when the connection is over, and, if that may be, when there is no answer.
func ask(conn net.Conn, command string, forsaken bool) string {
	if _, err := conn.Write([]byte(command)); err != nil {
		return ""
	}
	wait := patience
	if forsaken {
		wait = time.Second
	}
	_ = conn.SetReadDeadline(time.Now().Add(wait))
	answer, err := bufio.NewReader(conn).ReadString('\n')
	if !forsaken && err != nil {
		return err.Error()
	}
	return answer
}

func (r *running) hear(t *testing.T, conn *websocket.Conn, sizes ...int) {
	t.Helper()
	for _, size := range sizes {
		_ = conn.SetReadDeadline(time.Now().Add(patience))
		if _, b, err := conn.ReadMessage(); err != nil || len(b) != size {
			t.Fatalf("a newcomer got %d bytes, %v, where %d were published\n%s", len(b), err, size, r.log)
		}
	}
}

// stage is what was published, and to whom. The messages of a channel are told by their sizes.
type stage struct {
	t       *testing.T
	daemon  *running
	clients []*spectator

	mu     sync.Mutex
	shows  map[string][]int // sizes, by channel
	frames bool             // frames in the log are not what was published
}

func content(size int) []byte {
	return bytes.Repeat([]byte{byte(size), byte(size >> 8), 'x'}, size/3+1)[:size]
}

func (s *stage) publish(channel string, sizes ...int) {
	s.t.Helper()
	for _, size := range sizes {
		s.mu.Lock()
		s.shows[channel] = append(s.shows[channel], size)
		s.mu.Unlock()
		if _, _, err := s.daemon.d.Publish([]byte(channel), content(size), nil); err != nil {
			s.t.Fatal(err)
		}
		s.daemon.d.Flush()
	}
}

// spectator is a client that looks at all that it gets.
type spectator struct {
	stage   *stage
	number  int
	channel string
	asked   bool
	conn    net.Conn
	in      *bufio.Reader
	got     chan int // sizes of messages, 0 for a pong; closed when reading has ended
	over    bool     // it has
}

// dial connects, with a receive buffer of that size.
func (s *stage) dial(buffer int) net.Conn {
	s.t.Helper()
	dialer := net.Dialer{Control: func(_, _ string, raw syscall.RawConn) (set error) {
		if buffer == 0 {
			return nil
		}
		err := raw.Control(func(fd uintptr) { set = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, buffer) })
		return errors.Join(err, set)
	}}
	conn, err := dialer.Dial("tcp", s.daemon.address)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { conn.Close() })
	return conn
}

// converse connects a client of two channels: one that speaks a subprotocol, or of events.
func (s *stage) converse(what string, buffer int) *spectator {
	s.t.Helper()
	conn := s.dial(buffer)
	c := &spectator{stage: s, number: len(s.clients), channel: what, conn: conn, in: bufio.NewReader(conn), got: make(chan int, 100)}
	ask, status := strings.Replace(asking, "\r\n\r\n", "\r\nSec-WebSocket-Protocol: "+what+"\r\n\r\n", 1), http.StatusSwitchingProtocols
	if what == "events" {
		ask, status = " HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n", http.StatusOK
	}
	c.send("GET /websocket?channel=more&channel=private" + ask)
	_ = c.conn.SetReadDeadline(time.Now().Add(patience))
	if answer, err := http.ReadResponse(c.in, nil); err != nil || answer.StatusCode != status {
		s.t.Fatal(answer, err)
	}
	return c
}

// connect connects a client; without a channel it does not ask for one.
func (s *stage) connect(channel string, buffer int) *spectator {
	s.t.Helper()
	conn := s.dial(buffer)
	c := &spectator{stage: s, number: len(s.clients), channel: channel, asked: channel != "", conn: conn, in: bufio.NewReader(conn), got: make(chan int, 100)}
	s.clients = append(s.clients, c)
	if c.asked {
		c.send("GET /websocket/" + channel + asking)
		if !c.answered() {
			s.t.Fatal("no answer")
		}
	} else {
		c.channel = "news"
	}
	return c
}

const asking = " HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" +
	"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"

func (c *spectator) send(b string) { _, _ = c.conn.Write([]byte(b)) }

func (c *spectator) answered() bool {
	_ = c.conn.SetReadDeadline(time.Now().Add(patience))
	answer, err := http.ReadResponse(c.in, nil)
	return err == nil && answer.StatusCode == http.StatusSwitchingProtocols
}

// read looks at what the client gets, to the end of the connection.
func (c *spectator) read() {
	defer close(c.got)
	if !c.asked && !c.answered() {
		return
	}
	_ = c.conn.SetReadDeadline(time.Now().Add(patience))
	for next, known := 0, c.asked; ; {
		opcode, payload, size, err := c.frame()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			c.stage.t.Errorf("client %d waits", c.number)
		}
		if err != nil && payload == nil {
			return
		}
		whole := len(payload) == size
		switch {
		case opcode == frame.Close && size >= 2 && size < 126:
			if whole {
				c.judge(slices.Contains([]uint16{1000, 1002, 1012, 1013}, binary.BigEndian.Uint16(payload)), "it is closed with %q", payload)
			}
			_, err := c.in.ReadByte()
			c.judge(err != nil, "it gets something after a close frame")
			return
		case opcode == frame.Ping && size == 0:
		case opcode == frame.Pong && (size == 0 || size == 5):
			c.judge(bytes.HasPrefix([]byte{4, 4, 4, 8, 12}, payload), "it gets the pong %x", payload)
			if whole {
				c.got <- 0
			}
		case opcode == frame.Text || opcode == frame.Binary:
			c.stage.mu.Lock()
			shows, frames := c.stage.shows[c.channel], c.stage.frames
			c.stage.mu.Unlock()
			if !known {
				next, known = max(0, slices.Index(shows, size)), true
			}
			if !c.judge(next < len(shows) && shows[next] == size, "it gets a message of %d bytes as number %d of %d", size, next, shows) ||
				!c.judge(frames || bytes.HasPrefix(content(size), payload), "the message of %d bytes is another one", size) {
				return
			}
			if next++; whole {
				c.got <- size
			}
		default:
			c.judge(false, "it gets a frame with opcode %d and %d bytes", opcode, size)
			return
		}
		if !whole {
			return
		}
	}
}

// hear is read for a client of two channels. Half of a message that comes before the end of the connection is not looked at.
func (c *spectator) hear() {
	defer close(c.got)
	_ = c.conn.SetReadDeadline(time.Now().Add(patience))
	next := map[string]int{}
	for {
		text, err := c.text()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			c.stage.t.Errorf("client %d, %s, waits", c.number, c.channel)
		}
		if err != nil {
			return
		}
		var envelope struct {
			Channel, Data, Reply string
			Base64               []byte
		}
		err = json.Unmarshal(text, &envelope)
		if envelope.Reply != "" && err == nil {
			continue
		}
		c.stage.mu.Lock()
		sizes, frames := c.stage.shows[envelope.Channel], c.stage.frames
		c.stage.mu.Unlock()
		message, n := append([]byte(envelope.Data), envelope.Base64...), next[envelope.Channel]
		if !c.judge(frames || err == nil, "it gets %.100q: %v", text, err) {
			return
		}
		if !c.judge(frames || n < len(sizes) && sizes[n] == len(message) && bytes.Equal(message, content(len(message))),
			"it gets a message of %q with %d bytes as number %d of %d", envelope.Channel, len(message), n, sizes) {
			return
		}
		next[envelope.Channel]++
		c.got <- len(message)
	}
}

// text is the next object that a client of two channels gets.
func (c *spectator) text() ([]byte, error) {
	if c.channel == "events" {
		for {
			line, err := c.in.ReadBytes('\n')
			if data, is := bytes.CutPrefix(line, []byte("data: ")); err != nil || is {
				return data, err
			}
		}
	}
	for {
		opcode, payload, size, err := c.frame()
		switch {
		case err != nil || len(payload) < size || opcode == frame.Close:
			return nil, cmp.Or(err, io.ErrUnexpectedEOF)
		case opcode == frame.Text:
			return payload, nil
		case opcode != frame.Ping || size != 0:
			c.judge(false, "it gets a frame with opcode %d and %d bytes", opcode, size)
		}
	}
}

// frame reads a frame, as far as it comes. The payload is nil when not even its header does.
func (c *spectator) frame() (opcode frame.Opcode, payload []byte, size int, err error) {
	head := make([]byte, 2)
	if _, err = io.ReadFull(c.in, head); err != nil {
		return 0, nil, 0, err
	}
	size = int(head[1])
	if more := map[int]int{126: 2, 127: 8}[size]; more > 0 {
		long := make([]byte, 8)
		if _, err = io.ReadFull(c.in, long[8-more:]); err != nil {
			return 0, nil, 0, err
		}
		size = int(binary.BigEndian.Uint64(long))
	}
	payload = make([]byte, max(0, min(size, 1<<20)))
	n, err := io.ReadFull(c.in, payload)
	if head[0]&0xf0 != 0x80 {
		return 0xff, payload[:n], size, err
	}
	return frame.Opcode(head[0] & 0xf), payload[:n], size, err
}

func (c *spectator) judge(right bool, format string, args ...any) bool {
	if !right {
		c.stage.t.Errorf("client %d: "+format, append([]any{c.number}, args...)...)
	}
	return right
}

// await waits until the client has got something, or its connection is over.
func (c *spectator) await(what int) {
	for !c.over {
		got, ok := <-c.got
		if c.over = !ok; got == what {
			return
		}
	}
}

// records are the bytes of the first records.
func (k *keeper) records(t *testing.T) []byte {
	b := make([]byte, mostSlots*recordSize)
	k.at(t, survive.TableName, func(fd int) error {
		_, err := unix.Pread(fd, b, tableRecords)
		return err
	})
	return b
}

// Where things are in the files; a wrong number makes the damage less interesting, and nothing else.
const (
	recordSize   = 256
	tableRecords = 4096
	logCells     = 64 << 10
	cellSize     = 136
	entrySize    = 64
)

func (k *keeper) at(t *testing.T, name string, do func(fd int) error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, one := range k.kept {
		if one.name == name {
			if err := do(one.fd); err != nil {
				t.Fatal(err)
			}
			return
		}
	}
}

// change changes a byte of what is kept under a name.
func (k *keeper) change(t *testing.T, name string, at int64, to func(byte) byte) {
	k.at(t, name, func(fd int) error {
		b := make([]byte, 1)
		if n, err := unix.Pread(fd, b, at); n == 0 || err != nil {
			return nil // by now it is something else
		}
		b[0] = to(b[0])
		_, _ = unix.Pwrite(fd, b, at)
		return nil
	})
}

// foreigners are what is none of ours, whatever its name.
var foreigners = []func() (int, error){
	func() (int, error) {
		var p [2]int
		err := unix.Pipe2(p[:], unix.O_CLOEXEC)
		unix.Close(p[1])
		return p[0], err
	},
	func() (int, error) {
		var p [2]int
		err := unix.Pipe2(p[:], unix.O_CLOEXEC)
		unix.Close(p[0])
		return p[1], err
	},
	func() (int, error) { return unix.Open(os.DevNull, unix.O_RDWR|unix.O_CLOEXEC, 0) },
	func() (int, error) { return unix.Open("/proc/self/exe", unix.O_RDONLY|unix.O_CLOEXEC, 0) },
	func() (int, error) { return unix.Open("/", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0) },
	func() (int, error) { return unix.EpollCreate1(unix.EPOLL_CLOEXEC) },
	func() (int, error) { return unix.Eventfd(1, unix.EFD_CLOEXEC) },
	func() (int, error) { return unix.MemfdCreate("foreign", unix.MFD_CLOEXEC) },
	func() (int, error) { // listens
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err == nil {
			err = unix.Listen(fd, 1)
		}
		return fd, err
	},
	func() (int, error) { return halfPair(unix.SOCK_STREAM, false) },
	func() (int, error) { return halfPair(unix.SOCK_DGRAM, true) },
	func() (int, error) { return halfPair(unix.SOCK_SEQPACKET, false) },
	func() (int, error) { return halfPair(unix.SOCK_SEQPACKET, true) },
	func() (int, error) { return halfPair(unix.SOCK_STREAM, true) },
}

// halfPair is a socket whose other end has sent something.
func halfPair(kind int, message bool) (int, error) {
	p, err := unix.Socketpair(unix.AF_UNIX, kind|unix.SOCK_CLOEXEC, 0)
	if err == nil && message {
		err = unix.Send(p[1], make([]byte, 24), unix.MSG_NOSIGNAL)
	}
	unix.Close(p[1])
	return p[0], err
}

// damage carries out one step.
func (k *keeper) damage(t *testing.T, step, before []byte) {
	kind, target, offset, value := int(step[0])%damages, int(step[1]), int64(binary.LittleEndian.Uint16(step[2:])), step[4:]
	k.settle()
	k.mu.Lock()
	var names []string
	for _, one := range k.kept {
		names = append(names, one.name)
	}
	k.mu.Unlock()
	if len(names) == 0 {
		return
	}
	slices.Sort(names)
	name, other := names[target%len(names)], names[int(offset)%len(names)]
	flip := func(b byte) byte { return b ^ 1<<(value[0]%8) }
	set := func(b byte) byte { return value[0] }
	record := tableRecords + int64(target%mostSlots)*recordSize
	index := int64(logCells + (int64(Defaults().Log.Channels)*cellSize+logCells-1)/logCells*logCells)
	switch kind {
	case flipRecord:
		k.change(t, survive.TableName, record+offset%recordSize, flip)
	case setRecord:
		k.change(t, survive.TableName, record+offset%recordSize, set)
	case fillRecord:
		for i, b := range value {
			k.change(t, survive.TableName, record+offset%recordSize+int64(i), func(byte) byte { return b })
		}
	case tearRecord:
		from := offset % recordSize
		for at := from; at < min(from+int64(value[0]), recordSize); at++ {
			k.change(t, survive.TableName, record+at, func(byte) byte { return before[int64(target%mostSlots)*recordSize+at] })
		}
	case flipTable:
		k.change(t, survive.TableName, offset%64, flip)
	case setTable:
		k.change(t, survive.TableName, offset%64, set)
	case flipLog:
		k.change(t, logNames[0], offset%256, flip)
	case setLog:
		k.change(t, logNames[0], offset%256, set)
	case flipCell:
		k.change(t, logNames[0], logCells+int64(target%4)*cellSize+offset%cellSize, flip)
	case flipEntry:
		k.change(t, logNames[0], index+int64(target%32)*entrySize+offset%entrySize, flip)
	case setEntry:
		k.change(t, logNames[0], index+int64(target%32)*entrySize+offset%entrySize, set)
	case flipFrame:
		k.change(t, logNames[0], index+(logSize/256*entrySize+logCells-1)/logCells*logCells+int64(target)<<12+offset%4096, flip)
	case cut:
		k.at(t, name, func(fd int) error {
			to, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
			if err != nil {
				return err
			}
			b := make([]byte, offset<<4)
			n, _ := unix.Pread(fd, b, 0)
			_, _ = unix.Write(to, b[:max(0, n)])
			return errors.Join(unix.Dup3(to, fd, unix.O_CLOEXEC), unix.Close(to))
		})
	case swap:
		k.double(name, other)
	case double:
		k.at(t, name, func(fd int) error {
			d, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
			k.kept = append(k.kept, kept{other, d})
			return err
		})
	case drop:
		k.drop(name)
	case foreign:
		fd, err := foreigners[int(offset)%len(foreigners)]()
		if err != nil {
			t.Fatal(err)
		}
		k.put(name, fd)
		unix.Close(fd)
	case strangers:
		fd, err := foreigners[int(offset)%len(foreigners)]()
		if err != nil {
			t.Fatal(err)
		}
		k.at(t, name, func(tx int) error {
			_ = unix.Sendmsg(tx, []byte{value[0], value[1], 0, 0, value[2], 0, 0, 0}, unix.UnixRights(fd), nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
			return nil
		})
		unix.Close(fd)
	}
}
