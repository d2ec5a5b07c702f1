package daemon

import (
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"golang.org/x/sys/unix"

	"wscast/daemon/msglog"
	"wscast/daemon/survive"
)

// keeper is a service manager that keeps descriptors.
type keeper struct {
	testing.TB
	mu    sync.Mutex
	room  int
	kept  []kept
	mute  bool // it does not answer
	hoard []int
}

type kept struct {
	name string
	fd   int
}

func newKeeper(t *testing.T, room int) *keeper {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	k := &keeper{TB: t, room: room}
	done := make(chan struct{})
	go func() {
		defer close(done)
		b, oob := make([]byte, 4096), make([]byte, 4096)
		for {
			n, on, _, _, err := conn.ReadMsgUnix(b, oob)
			if err != nil {
				return
			}
			var fds []int
			messages, _ := unix.ParseSocketControlMessage(oob[:on])
			for _, m := range messages {
				more, _ := unix.ParseUnixRights(&m)
				fds = append(fds, more...)
			}
			k.deal(string(b[:n]), fds)
		}
	}()
	t.Setenv("NOTIFY_SOCKET", path)
	t.Cleanup(func() {
		conn.Close()
		<-done
		k.become(0, false)
		k.remove(func(string) bool { return true })
	})
	return k
}

func (k *keeper) deal(text string, fds []int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	_, name, _ := strings.Cut(text, "FDNAME=")
	switch {
	case k.mute && text == "BARRIER=1":
		k.hoard = append(k.hoard, fds...)
		return
	case strings.HasPrefix(text, "FDSTORE=1\n"):
		for len(fds) > 0 && len(k.kept) < k.room {
			if slices.ContainsFunc(k.kept, func(one kept) bool { return sameFile(one.fd, fds[0]) }) {
				unix.Close(fds[0]) // as systemd does
			} else {
				k.kept = append(k.kept, kept{name, fds[0]})
			}
			fds = fds[1:]
		}
	case strings.HasPrefix(text, "FDSTOREREMOVE=1\n"):
		k.remove(func(n string) bool { return n == name })
	}
	for _, fd := range fds {
		unix.Close(fd)
	}
}

// sameFile tells whether two descriptors are of one socket, or file in memory.
func sameFile(a, b int) bool {
	var x, y unix.Stat_t
	return unix.Fstat(a, &x) == nil && unix.Fstat(b, &y) == nil && x.Dev == y.Dev && x.Ino == y.Ino
}

// become changes how much it keeps, and whether it answers.
func (k *keeper) become(room int, mute bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.room, k.mute = room, mute
	if !mute {
		for _, fd := range k.hoard {
			unix.Close(fd)
		}
		k.hoard = nil
	}
}

func (k *keeper) remove(which func(string) bool) {
	k.kept = slices.DeleteFunc(k.kept, func(one kept) bool {
		if which(one.name) {
			unix.Close(one.fd)
			return true
		}
		return false
	})
}

// settle waits until it has dealt with all that was said.
func (k *keeper) settle() {
	k.Helper()
	store, err := survive.OpenStore(nil)
	if err != nil {
		k.Fatal(err)
	}
	defer store.Close()
	if err := store.Barrier(k.Context()); err != nil {
		k.Fatal(err)
	}
}

// drop loses what is kept under a name.
func (k *keeper) drop(name string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.remove(func(n string) bool { return n == name })
}

// files are what the next process is started with.
func (k *keeper) files() (files []*os.File) {
	k.settle()
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, one := range k.kept {
		fd, err := unix.FcntlInt(uintptr(one.fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			k.Fatal(err)
		}
		files = append(files, os.NewFile(uintptr(fd), one.name))
	}
	return files
}

func (k *keeper) names() (names []string) {
	k.settle()
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, one := range k.kept {
		if survive.IsSegment(one.name) || one.name == survive.ProbeName { // which come and go
			continue
		}
		names = append(names, one.name)
	}
	slices.Sort(names)
	return names
}

// put replaces what is kept under a name.
func (k *keeper) put(name string, fd int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	d, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		k.Fatal(err)
	}
	k.remove(func(n string) bool { return n == name })
	k.kept = append(k.kept, kept{name, d})
}

// double keeps what has one of two names under the other one as well.
func (k *keeper) double(a, b string) {
	for _, f := range k.files() {
		if name := f.Name(); name == a || name == b {
			other := a
			if name == a {
				other = b
			}
			raw, _ := f.SyscallConn()
			_ = raw.Control(func(fd uintptr) { k.put(other, int(fd)) })
		}
		f.Close()
	}
}

// reign starts a daemon with what is kept.
func (k *keeper) reign(t *testing.T, size int64, path ...string) *running {
	t.Helper()
	return k.reignWith(t, k.files(), size, path...)
}

// reignWith starts it with these files from the store.
func (k *keeper) reignWith(t *testing.T, stored []*os.File, size int64, path ...string) *running {
	t.Helper()
	return k.reignAs(t, stored, func(c *Config) {
		c.Log.Size = Size(size)
		if len(path) > 0 {
			c.Log.Path = path[0]
		}
	})
}

// reignAs starts it with another configuration.
func (k *keeper) reignAs(t *testing.T, stored []*os.File, change func(*Config)) *running {
	t.Helper()
	c, dir := byHand(t)
	c.Publish.MaxMessage = 64 << 10
	c.Log.Size = logSize
	change(c)
	r := &running{t: t, dir: dir, log: &record{grown: make(chan struct{})}, signals: make(chan os.Signal, 1), ended: make(chan error, 1)}
	o := Options{Config: *c, Level: new(slog.LevelVar), Log: slog.New(slog.NewTextHandler(r.log, nil))}
	var err error
	if o.Sockets, err = Bind(&o.Config); err != nil {
		t.Fatal(err)
	}
	o.Sockets.stored = stored
	if r.d, err = New(o); err != nil {
		t.Fatal(err)
	}
	addresses, _ := r.d.sockets.Addresses()
	r.address = addresses[0]
	go func() { r.ended <- r.d.Run(r.signals) }()
	t.Cleanup(func() { k.end(r) })
	r.log.expect(t, "msg=serving")
	return r
}

// end is a restart's first half.
func (k *keeper) end(r *running) {
	k.Helper()
	if r.stopped {
		return
	}
	r.stopped = true
	r.signals <- syscall.SIGTERM
	select {
	case err := <-r.ended:
		if err != nil {
			k.Errorf("Run: %v\n%s", err, r.log)
		}
	case <-time.After(patience):
		k.Fatal("the daemon does not end")
	}
}

func (r *running) connect(t *testing.T) *websocket.Conn {
	t.Helper()
	conn, _, err := websocket.DefaultDialer.Dial("ws://"+r.address+"/websocket/news", nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func (r *running) tell(t *testing.T, conn *websocket.Conn, message string) {
	t.Helper()
	n, _, err := r.d.Publish([]byte("news"), []byte(message), nil)
	if r.d.Flush(); n != 1 || err != nil {
		t.Fatalf("%d clients, %v\n%s", n, err, r.log)
	}
	_ = conn.SetReadDeadline(time.Now().Add(patience))
	if _, b, err := conn.ReadMessage(); err != nil || string(b) != message {
		t.Fatalf("read %q, %v\n%s", b, err, r.log)
	}
}

func expectClosed(t *testing.T, conn *websocket.Conn, code int) {
	t.Helper()
	_ = conn.SetReadDeadline(time.Now().Add(patience))
	if _, b, err := conn.ReadMessage(); !websocket.IsCloseError(err, code) {
		t.Fatalf("read %q, %v; want close code %d", b, err, code)
	}
}

const logSize = 2 << 20

func TestNextDaemonGoesOn(t *testing.T) {
	k := newKeeper(t, 20)
	r := k.reign(t, logSize)
	conn, epoch := r.connect(t), r.d.store.Epoch()
	for _, message := range []string{"one", "two", "three"} {
		r.tell(t, conn, message)
		k.end(r)
		r = k.reign(t, logSize)
	}
	r.tell(t, conn, "four")
	if r.d.store.Epoch() != epoch || r.d.store.Head() != 4 {
		t.Error("another log")
	}
	if names := k.names(); !slices.Equal(names, []string{"log", "table"}) {
		t.Errorf("kept: %v", names)
	}
}

// A log of another size is taken over without losing a client or a message.
func TestLogSizeChanges(t *testing.T) {
	k := newKeeper(t, 20)
	r := k.reign(t, logSize)
	conn, epoch := r.connect(t), r.d.store.Epoch()
	for i, size := range []int64{2 * logSize, logSize, 4 * logSize, 4 * logSize} {
		r.tell(t, conn, "before")
		k.end(r)
		if i == 2 { // a process was killed when the new log was stored and the old one was not removed
			k.double("log", "log.2")
		}
		r = k.reign(t, size)
		if u := r.d.store.Usage()[0]; u.Size != uint64(size) || u.Epoch != epoch || u.Head != uint64(2*i+1) || u.Messages != u.Head {
			t.Fatalf("%+v", u)
		}
		r.tell(t, conn, "after")
		if names := k.names(); len(names) != 2 {
			t.Errorf("kept: %v", names)
		}
	}
}

// What has made two processes fail in taking it over is not tried a third time.
func TestPoisonedStateStartsClean(t *testing.T) {
	for _, failed := range []int{1, 2, 3} {
		k := newKeeper(t, 20)
		r := k.reign(t, logSize)
		conn, epoch := r.connect(t), r.d.store.Epoch()
		r.tell(t, conn, "before")
		k.end(r)
		for _, f := range k.files() {
			if f.Name() != survive.TableName {
				f.Close()
				continue
			}
			table, err := survive.OpenTable(f)
			if err != nil {
				t.Fatal(err)
			}
			for range failed {
				table.Begin()
			}
			table.Close()
		}
		r = k.reign(t, logSize)
		switch failed {
		case 1:
			r.tell(t, conn, "after")
			continue
		case 2:
			expectClosed(t, conn, websocket.CloseServiceRestart)
		case 3: // the records are not looked at any more
			expectClosed(t, conn, websocket.CloseAbnormalClosure)
		}
		r.log.expect(t, "starting clean")
		if r.d.store.Epoch() == epoch {
			t.Error("it did not start clean")
		}
		again := r.connect(t)
		r.tell(t, again, "after")
		k.end(r)
		r = k.reign(t, logSize)
		r.tell(t, again, "and after that")
	}
}

// A log and a table that do not belong together, one without the other, and what is neither: clients are closed, and the daemon serves.
func TestForeignDescriptors(t *testing.T) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	other, err := msglog.Create(msglog.Options{Size: logSize, Channels: 10})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	for name, c := range map[string]struct {
		spoil func(k *keeper)
		code  int
	}{
		"another log": {func(k *keeper) {
			raw, _ := other.File(0).SyscallConn()
			_ = raw.Control(func(fd uintptr) { k.put("log", int(fd)) })
		}, websocket.CloseServiceRestart},
		"no log":            {func(k *keeper) { k.drop("log") }, websocket.CloseServiceRestart},
		"a device as log":   {func(k *keeper) { k.put("log", int(null.Fd())) }, websocket.CloseServiceRestart},
		"no table":          {func(k *keeper) { k.drop("table") }, websocket.CloseAbnormalClosure},
		"a device as table": {func(k *keeper) { k.put("table", int(null.Fd())) }, websocket.CloseAbnormalClosure},
	} {
		t.Run(name, func(t *testing.T) {
			k := newKeeper(t, 20)
			r := k.reign(t, logSize)
			conn := r.connect(t)
			r.tell(t, conn, "before")
			k.end(r)
			k.settle()
			c.spoil(k)
			r = k.reign(t, logSize)
			expectClosed(t, conn, c.code)
			again := r.connect(t)
			r.tell(t, again, "after")
			k.end(r)
			r = k.reign(t, logSize)
			r.tell(t, again, "and after that")
			if names := k.names(); !slices.Equal(names, []string{"log", "table"}) {
				t.Errorf("kept: %v", names)
			}
		})
	}
}

// Without a store clients are told when the daemon ends.
func TestNoStore(t *testing.T) {
	k := newKeeper(t, 0)
	r := k.reign(t, logSize)
	r.log.expect(t, "clients will not survive a restart")
	if s := r.d.status(); !strings.Contains(s, "clients will not survive a restart") {
		t.Error(s)
	}
	conn := r.connect(t)
	r.tell(t, conn, "before")
	r.stopped = true
	r.signals <- syscall.SIGTERM
	expectClosed(t, conn, websocket.CloseServiceRestart)
	conn.Close()
	if err := <-r.ended; err != nil {
		t.Error(err)
	}
}
