package booted_test

import (
	"fmt"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/gorilla/websocket"
	"golang.org/x/sys/unix"

	"wscast/ipc"
	"wscast/test/booted"
	"wscast/test/harness"
)

// occupy puts descriptors in flight as another user, of whom the kernel counts them, until the one function returned is called.
func occupy(t *testing.T, uid, descriptors int) (release func()) {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	release = sync.OnceFunc(func() {
		unix.Close(pair[0])
		unix.Close(pair[1])
	})
	t.Cleanup(release)
	done := make(chan error)
	go func() {
		// The system call, unlike the function of package syscall, changes this thread alone, which ends with its goroutine.
		runtime.LockOSThread()
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); errno != 0 {
			done <- errno
			return
		}
		var err error
		for sent := 0; sent < descriptors && err == nil; sent += 250 {
			fds := make([]int, 250)
			for i := range fds {
				fds[i] = pair[0]
			}
			err = unix.Sendmsg(pair[0], []byte{1}, unix.UnixRights(fds...), nil, unix.MSG_DONTWAIT)
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	return release
}

// The kernel lets a user have so many descriptors in flight and no more (ETOOMANYREFS), whoever has put them there. Who comes then is served as all
// others, ends with the process, and is parked when there is room again. Those who were there before notice nothing. Users are those of the host, so this test runs alone.
func TestNothingMoreMayBeInFlight(t *testing.T) {
	const limit, late = 1500, 20
	m, c := gather(t, booted.WithDropIn("wscast.service", fmt.Sprintf("[Service]\nLimitNOFILE=%d\n", limit)))
	uid, err := strconv.Atoi(strings.TrimSpace(m.Run("id", "-u", "wscast")))
	if err != nil {
		t.Fatal(err)
	}
	come := func() (clients []*harness.Client) {
		for range late {
			clients = append(clients, harness.Dial(t, m.WebSocketURL("late")))
		}
		publish(m, "late", "you are served")
		for _, cl := range clients {
			cl.ExpectText("you are served")
		}
		return clients
	}
	release := occupy(t, uid, limit+250)
	first := come()
	e := m.AwaitJournal("wscast.service", "the warning", contains("some clients will not survive a restart"))
	if e["PRIORITY"] != "4" || !strings.Contains(e["WSCAST_CAUSE"], "LimitNOFILE=") {
		t.Errorf("the warning is %q", e)
	}
	m.Await("wscast.service", "StatusText", func(status string) bool {
		return strings.Contains(status, fmt.Sprintf("%d clients will not survive a restart: ", late)) && strings.Contains(status, "LimitNOFILE=")
	})
	if i := info(t, m); i["not_parked"] != strconv.Itoa(late) || !strings.Contains(i["not_parked_because"], "LimitNOFILE=") {
		t.Errorf("INFO has %q", i)
	}
	m.Systemctl("restart", "wscast.service")
	for _, cl := range first {
		cl.ExpectClose(websocket.CloseServiceRestart)
	}
	c.AwaitMessages(10)

	second := come()
	m.AwaitJournal("wscast.service", "the warning", contains("some clients will not survive a restart"))
	release()
	m.AwaitJournal("wscast.service", "that it is over", contains("all clients will survive a restart again"))
	m.Await("wscast.service", "StatusText", func(status string) bool { return !strings.Contains(status, "survive") })
	if i := info(t, m); i["not_parked"] != "0" || i["survival"] != "on" {
		t.Errorf("INFO has %q", i)
	}
	kill(m, "")
	c.AwaitMessages(10)
	publish(m, "late", "you are still there")
	for _, cl := range second {
		cl.ExpectText("you are still there")
	}
	c.Finish()
}

// Who comes when the process has as many connections as the next one could take over waits in the socket until others leave. A restart meanwhile closes nobody
// of those who were there before, and refuses nobody who waits. In flight there is as much as allowed as well, so this test runs alone, too.
func TestNoMoreDescriptors(t *testing.T) {
	const limit, guests = 1000, 900
	m, c := gather(t, booted.WithDropIn("wscast.service", fmt.Sprintf("[Service]\nLimitNOFILE=%d\n", limit)))
	url, path := m.WebSocketURL("guests"), m.PublishSocket()
	visit, release := newHammer(), newHammer()
	stopVisits, stopRelease := sync.OnceValue(visit.stop), sync.OnceValue(release.stop)
	// A guest stays until there is a message, or the end of the connection: it may be one of those that could not be parked.
	letGo := func() {
		release.start("a message", func() error {
			p, err := ipc.Dial(path)
			if err != nil {
				return err
			}
			defer p.Close()
			_, err = p.Publish("guests", []byte("time to leave"))
			return err
		})
	}
	defer stopRelease()
	defer stopVisits()
	letGo = sync.OnceFunc(letGo)
	defer letGo()
	for range guests {
		visit.start("a guest", func() error {
			g, _, err := (&websocket.Dialer{HandshakeTimeout: harness.Patience}).Dial(url, nil)
			if err != nil {
				return err
			}
			_, _, _ = g.ReadMessage()
			return g.Close()
		})
	}
	e := m.AwaitJournal("wscast.service", "that nobody is accepted", contains("cannot accept connections, they wait"))
	if e["PRIORITY"] != "3" || !strings.Contains(e["MESSAGE"], "LimitNOFILE=") {
		t.Errorf("the journal has %q", e)
	}
	for range 3 {
		c.AwaitMessages(10)
		m.Systemctl("restart", "wscast.service")
	}
	c.AwaitMessages(10)
	if log := m.Journal("wscast.service"); strings.Contains(log, "there are no descriptors for them") {
		t.Errorf("clients were closed for want of descriptors\n%s", log)
	}
	letGo()
	visit.await(t, guests, "a guest")
	for _, err := range stopVisits() {
		t.Error(err)
	}
	c.Finish()
}
