package daemon

import (
	"io"
	"net"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"golang.org/x/sys/unix"

	"wscast/daemon/survive"
)

// hurried makes the daemon look after the store all the time, until the test ends.
func hurried(t *testing.T) {
	every, trouble, patient, status := storeEvery, troubleEvery, managerPatience, statusEvery
	storeEvery, troubleEvery, managerPatience, statusEvery = 50*time.Millisecond, 10*time.Millisecond, time.Second, 20*time.Millisecond
	t.Cleanup(func() { storeEvery, troubleEvery, managerPatience, statusEvery = every, trouble, patient, status })
}

// survival is a field of INFO's section.
func (r *running) survival(key string) string {
	s := r.d.loops.Stats()
	for _, f := range r.d.survival.info(&s).Fields {
		if f.Key == key {
			return f.Value
		}
	}
	return "no such field"
}

// A store that has no room at the start can have some later.
func TestStoreThatComesLater(t *testing.T) {
	hurried(t)
	k := newKeeper(t, survive.Enough-1)
	r := k.reign(t, logSize)
	conn := r.connect(t)
	r.log.expect(t, "clients will not survive a restart")
	if on, because, status := r.survival("survival"), r.survival("survival_off_because"), r.d.status(); on != "off" ||
		!strings.Contains(because, "FileDescriptorStoreMax=") || !strings.Contains(status, because) {
		t.Errorf("survival is %q because %q; STATUS=%s", on, because, status)
	}
	if names := k.names(); len(names) != 0 {
		t.Errorf("kept: %v", names)
	}
	k.become(20, false)
	r.log.expect(t, "clients will survive a restart again")
	if on, status := r.survival("survival"), r.d.status(); on != "on" || strings.Contains(status, "survive") {
		t.Errorf("survival is %q; STATUS=%s", on, status)
	}
	k.end(r)
	r = k.reign(t, logSize)
	r.tell(t, conn, "after")
}

// More clients come than the store has room for. They are served, and when the daemon restarts those that were parked
// notice nothing, while the others are told; with room again nobody is.
func TestStoreThatFills(t *testing.T) {
	for _, again := range []bool{false, true} {
		hurried(t)
		k := newKeeper(t, survive.Enough)
		r := k.reign(t, logSize)
		conns := []*websocket.Conn{r.connect(t)} // there is a tail
		k.settle()
		k.become(4, false)
		r.log.expect(t, "further clients may not survive a restart")
		for range 259 { // a tail has 253, and is merged into a bulk segment then
			conns = append(conns, r.connect(t))
		}
		r.log.expect(t, "some clients will not survive a restart")
		said := regexp.MustCompile(`; (\d+) clients will not survive a restart: .*FileDescriptorStoreMax=`)
		for deadline := time.Now().Add(patience); said.FindString(r.d.status()) == ""; {
			if time.Now().After(deadline) {
				t.Fatal(r.d.status())
			}
		}
		homeless, _ := strconv.Atoi(r.survival("not_parked"))
		if on, because := r.survival("survival"), r.survival("not_parked_because"); homeless != 7 || on != "on" ||
			!strings.Contains(because, "FileDescriptorStoreMax=") {
			t.Errorf("survival is %s, %d are not parked because %q", on, homeless, because)
		}
		if again {
			k.become(20, false)
			r.log.expect(t, "all clients will survive a restart again")
			if n, status := r.survival("not_parked"), r.d.status(); n != "0" || strings.Contains(status, "survive") {
				t.Errorf("%s are not parked; STATUS=%s", n, status)
			}
			homeless = 0
		}
		if n, _, err := r.d.Publish([]byte("news"), []byte("before"), nil); n != 260 || err != nil {
			t.Fatal(n, err)
		}
		got := make(chan error, len(conns))
		for _, conn := range conns {
			go func() { got <- read(conn, "before", "after") }()
		}
		k.end(r)
		k.become(20, false)
		r = k.reign(t, logSize)
		if n, _, err := r.d.Publish([]byte("news"), []byte("after"), nil); n != 260-homeless || err != nil {
			t.Fatal(n, err)
		}
		told := 0
		for range conns {
			if err := <-got; websocket.IsCloseError(err, websocket.CloseServiceRestart) {
				told++
			} else if err != nil {
				t.Error(err)
			}
		}
		if told != homeless {
			t.Errorf("%d clients were told, %d were not parked", told, homeless)
		}
		k.end(r)
		for _, conn := range conns {
			conn.Close()
		}
	}
}

// read reads messages up to the last.
func read(conn *websocket.Conn, messages ...string) error {
	for _, want := range messages {
		_ = conn.SetReadDeadline(time.Now().Add(patience))
		if _, b, err := conn.ReadMessage(); err != nil || string(b) != want {
			return err
		}
	}
	return nil
}

// A service manager that is too busy to answer takes nothing away.
func TestManagerThatIsBusy(t *testing.T) {
	hurried(t)
	managerPatience = 200 * time.Millisecond
	k := newKeeper(t, 20)
	r := k.reign(t, logSize)
	conn := r.connect(t)
	r.tell(t, conn, "one")
	k.settle()
	k.end(r)
	files := k.files()
	k.become(20, true)
	r = k.reignWith(t, files, logSize)
	r.log.expect(t, "it is not known whether clients will survive a restart")
	r.tell(t, conn, "two")
	if on, status := r.survival("survival"), r.d.status(); on != "on" || !strings.Contains(status, "does not answer") {
		t.Errorf("survival is %q; STATUS=%s", on, status)
	}
	k.become(20, false)
	r.log.expect(t, "the service manager answers again")
	if status := r.d.status(); strings.Contains(status, "survive") {
		t.Errorf("STATUS=%s", status)
	}
	k.end(r)
	r = k.reign(t, logSize)
	r.tell(t, conn, "three")
}

// What is lost in the store is stored once more.
func TestStoreThatLoses(t *testing.T) {
	hurried(t)
	k := newKeeper(t, 20)
	r := k.reign(t, logSize)
	conn := r.connect(t)
	k.settle()
	k.drop("log")
	k.drop("table")
	for deadline := time.Now().Add(patience); len(k.names()) < 2; {
		if time.Now().After(deadline) {
			t.Fatalf("kept: %v", k.names())
		}
	}
	k.end(r)
	r = k.reign(t, logSize)
	r.tell(t, conn, "after")
}

// A version that has other things to store does not keep an earlier one from starting: what it has left is closed.
func TestStoredByALaterVersion(t *testing.T) {
	k := newKeeper(t, 20)
	r := k.reign(t, logSize)
	conn := r.connect(t)
	k.end(r)
	file, err := unix.MemfdCreate("later", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(file)
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	var clients []net.Conn
	accept := func() (fd int) {
		client, err := net.Dial("tcp4", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { client.Close() })
		server, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer server.Close()
		clients = append(clients, client)
		raw, _ := server.(*net.TCPConn).SyscallConn()
		_ = raw.Control(func(s uintptr) { fd, err = unix.FcntlInt(s, unix.F_DUPFD_CLOEXEC, 0) })
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		_, _ = client.Write([]byte("unread"))
		return fd
	}
	queue, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(queue[0])
	defer unix.Close(queue[1])
	alone, odd := accept(), accept()
	if err := unix.Sendmsg(queue[0], []byte("?"), unix.UnixRights(accept(), accept()), nil, 0); err != nil {
		t.Fatal(err)
	}
	k.put("later.file", file)
	k.put("later.connection", alone)
	k.put("later.queue", queue[1])
	k.put("park.t.7.tx.later", odd)
	r = k.reignWith(t, inherited(t, k.files()), logSize)
	for _, name := range []string{"later.file", "later.connection", "later.queue"} {
		r.log.expect(t, "name="+name)
	}
	if names := k.names(); len(names) != 2 {
		t.Errorf("kept: %v", names)
	}
	for i, client := range clients {
		_ = client.SetReadDeadline(time.Now().Add(patience))
		if n, err := client.Read(make([]byte, 1)); n != 0 || err != io.EOF {
			t.Errorf("client %d reads %d, %v", i, n, err)
		}
	}
	r.tell(t, conn, "after")
}

// inherited are the files that Sockets takes for stored ones.
func inherited(t *testing.T, files []*os.File) []*os.File {
	t.Helper()
	var s Sockets
	for _, f := range files {
		if err := s.adopt(f); err != nil {
			t.Errorf("%s: %v", f.Name(), err)
		}
		f.Close()
	}
	return s.stored
}

// A process has lived when its loops still turn. One whose loops do not has failed, unless they go on.
func TestAdoptionIsJudged(t *testing.T) {
	for name, c := range map[string]struct {
		turning []bool
		failed  int // as the next one counts
	}{
		"it lives":            {[]bool{true, true}, 0},
		"it stands still":     {[]bool{true, false, false}, 3},
		"it goes on":          {[]bool{false, true}, 0},
		"it has to catch up":  {[]bool{true, false, true, false}, 3},
		"it stands from then": {[]bool{false}, 3},
	} {
		table, err := survive.NewTable(1, 1)
		if err != nil {
			t.Fatal(err)
		}
		s := &survival{keep: survive.Keep{Table: table}}
		table.Crashed()
		table.Crashed()
		table.Begin()
		table.Adopted()
		for i, turning := range c.turning {
			age := time.Duration(0)
			if i == len(c.turning)-1 {
				age = trusted
			}
			if lived := s.judge(turning, age); lived != (turning && age > 0) {
				t.Errorf("%s: turn %d: %v", name, i, lived)
			}
		}
		if failed := table.Begin(); failed != c.failed {
			t.Errorf("%s: %d have failed, want %d", name, failed, c.failed)
		}
		if err := table.Close(); err != nil {
			t.Error(err)
		}
	}
}

// What a stop can take is less than systemd waits for it.
func TestStopFitsTheUnit(t *testing.T) {
	unit, err := os.ReadFile("../systemd/wscast.service")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^TimeoutStopSec=(\d+)s$`).FindSubmatch(unit)
	if m == nil {
		t.Fatal("the unit has no TimeoutStopSec= in seconds")
	}
	seconds, _ := strconv.Atoi(string(m[1]))
	const publishers = time.Second // ipc.Server.Close
	if most := jobPatience + publishers + mostSpread + goodbye; most+time.Second > time.Duration(seconds)*time.Second {
		t.Errorf("a stop can take %s, and TimeoutStopSec= is %s", most, m[1])
	}
}
