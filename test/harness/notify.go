package harness

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// notifySocket is the systemd side of sd_notify(3): a datagram socket whose messages say who sent them. It has a
// descriptor store (FDSTORE=1, FDSTOREREMOVE=1); descriptors that come with another message, as with BARRIER=1, or for which there is no
// room, are closed without a word, as systemd does.
type notifySocket struct {
	conn *net.UnixConn
	done chan struct{} // closed when the reader has ended

	mu      sync.Mutex
	lines   []notification
	changed chan struct{} // closed by the next message; nil when nobody waits
	room    int           // FileDescriptorStoreMax=
	stored  []*os.File    // by name
}

// store deals with the descriptors of a message.
func (n *notifySocket) store(text string, fds []int) {
	name, push, remove := "stored", false, false
	for line := range strings.Lines(text) {
		switch line = strings.TrimRight(line, "\n"); {
		case line == "FDSTORE=1":
			push = true
		case line == "FDSTOREREMOVE=1":
			remove = true
		case strings.HasPrefix(line, "FDNAME="):
			name = strings.TrimPrefix(line, "FDNAME=")
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if remove {
		n.stored = slices.DeleteFunc(n.stored, func(f *os.File) bool {
			if f.Name() == name {
				f.Close()
			}
			return f.Name() == name
		})
	}
	for _, fd := range fds {
		if push && len(n.stored) < n.room {
			n.stored = append(n.stored, os.NewFile(uintptr(fd), name))
		} else {
			unix.Close(fd)
		}
	}
}

// empty closes what is stored.
func (n *notifySocket) empty() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, f := range n.stored {
		f.Close()
	}
	n.stored = nil
}

// settle waits until it has dealt with all that was sent before, also by processes that have ended: systemd looks after a process's
// messages before it looks after its end.
func (n *notifySocket) settle() error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	_, _, err = n.conn.WriteMsgUnix([]byte("BARRIER=1"), unix.UnixRights(int(w.Fd())), n.conn.LocalAddr().(*net.UnixAddr))
	w.Close()
	if err == nil {
		err = r.SetReadDeadline(time.Now().Add(Patience))
	}
	if err == nil {
		_, err = r.Read(make([]byte, 1))
	}
	if err == io.EOF {
		err = nil
	}
	return err
}

// inStore are duplicates of what is stored, for the caller to close: the daemon that is started with them may at once have some of them removed.
func (n *notifySocket) inStore() (files []*os.File, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, f := range n.stored {
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return files, err
		}
		files = append(files, os.NewFile(uintptr(fd), f.Name()))
	}
	return files, nil
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
	n.empty()
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
		var fds []int
		messages, _ := unix.ParseSocketControlMessage(control[:controlSize])
		for i := range messages {
			if more, err := unix.ParseUnixRights(&messages[i]); err == nil {
				fds = append(fds, more...)
			}
			if credentials, err := unix.ParseUnixCredentials(&messages[i]); err == nil {
				sender = int(credentials.Pid)
			}
		}
		n.store(string(text[:size]), fds)
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
		if got.pid != pid && got.pid != os.Getpid() { // settle says BARRIER=1
			lines = append(lines, got.line)
		}
	}
	return strings.Join(lines, ", ")
}
