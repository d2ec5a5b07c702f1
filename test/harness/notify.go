package harness

import (
	"bytes"
	"errors"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// notifySocket is the systemd side of sd_notify(3): a datagram socket whose messages say who sent them. Descriptors that
// come with a message are closed, as systemd does with those of BARRIER=1 and, for a service whose fd store is
// full, of FDSTORE=1.
type notifySocket struct {
	conn *net.UnixConn
	done chan struct{} // closed when the reader has ended

	mu      sync.Mutex
	lines   []notification
	changed chan struct{} // closed by the next message; nil when nobody waits
}

type notification struct {
	pid  int
	line string // NAME=value
}

func openNotifySocket(path string) (*notifySocket, error) {
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return nil, err
	}
	raw, err := conn.SyscallConn()
	if err == nil {
		raw.Control(func(fd uintptr) {
			err = os.NewSyscallError("setsockopt", unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSCRED, 1))
		})
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	n := &notifySocket{conn: conn, done: make(chan struct{})}
	go n.read()
	return n, nil
}

func (n *notifySocket) close() {
	n.conn.Close()
	<-n.done
}

func (n *notifySocket) read() {
	defer close(n.done)
	// systemd takes messages up to 4096 bytes, the kernel 253 descriptors.
	text := make([]byte, 4096)
	control := make([]byte, unix.CmsgSpace(4*253)+unix.CmsgSpace(unix.SizeofUcred))
	for {
		size, controlSize, _, _, err := n.conn.ReadMsgUnix(text, control)
		if err != nil {
			return
		}
		sender := 0
		messages, _ := unix.ParseSocketControlMessage(control[:controlSize])
		for i := range messages {
			if fds, err := unix.ParseUnixRights(&messages[i]); err == nil {
				for _, fd := range fds {
					unix.Close(fd)
				}
			}
			if credentials, err := unix.ParseUnixCredentials(&messages[i]); err == nil {
				sender = int(credentials.Pid)
			}
		}
		n.mu.Lock()
		for line := range bytes.Lines(text[:size]) {
			n.lines = append(n.lines, notification{sender, string(bytes.TrimRight(line, "\n"))})
		}
		if n.changed != nil {
			close(n.changed)
			n.changed = nil
		}
		n.mu.Unlock()
	}
}

// await returns the first line from position on that pid sent and match is true for, and the position behind it.
func (n *notifySocket) await(pid, position int, match func(line string) bool, ended <-chan struct{}) (string, int, error) {
	timer := time.NewTimer(Patience)
	defer timer.Stop()
	for over := error(nil); ; {
		n.mu.Lock()
		for ; position < len(n.lines); position++ {
			if got := n.lines[position]; got.pid == pid && match(got.line) {
				n.mu.Unlock()
				return got.line, position + 1, nil
			}
		}
		if n.changed == nil {
			n.changed = make(chan struct{})
		}
		changed := n.changed
		n.mu.Unlock()
		if over != nil {
			return "", position, over
		}
		select {
		case <-changed:
		case <-ended:
			// What it said last may still be on its way through the reader, but it is not waited for: an
			// ended process is not ready whatever it said.
			over = errors.New("it ended")
		case <-timer.C:
			over = errors.New("it did not in " + Patience.String())
		}
	}
}

func (n *notifySocket) all(pid int) (lines []string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, got := range n.lines {
		if got.pid == pid {
			lines = append(lines, got.line)
		}
	}
	return lines
}

// fromOthers are the senders other than pid, for the message of a failure.
func (n *notifySocket) fromOthers(pid int) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	var lines []string
	for _, got := range n.lines {
		if got.pid != pid {
			lines = append(lines, got.line)
		}
	}
	return strings.Join(lines, ", ")
}
