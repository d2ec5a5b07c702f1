package booted_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"wscast/test/booted"
	"wscast/test/booted/crowd"
	"wscast/test/harness"
)

// What can happen to a service besides a restart, seen by this many clients with messages flowing.
const few = 300

var flow = crowd.Flow{Publishers: 2, Size: 200, Window: 20}

// gather boots a machine and lets clients and publishers begin.
func gather(t *testing.T, options ...booted.Option) (*booted.Machine, *crowd.Crowd) {
	t.Helper()
	m := booted.Boot(t, options...)
	c := crowd.Gather(t, "tcp", m.Address(), few)
	c.Publish(m.PublishSocket(), flow)
	c.AwaitMessages(10)
	return m, c
}

func TestClientsSurviveTheManager(t *testing.T) {
	t.Parallel()
	m, c := gather(t)
	for _, command := range []string{"daemon-reload", "daemon-reexec", "daemon-reload"} {
		m.Systemctl(command)
		c.AwaitMessages(10)
		m.Systemctl("restart", "wscast.service")
		c.AwaitMessages(10)
		kill(m, "")
		c.AwaitMessages(10)
	}
	c.Finish()
}

// The limit on starts that systemd has by default is 5 in 10 s.
func TestClientsSurviveManyKillsInARow(t *testing.T) {
	t.Parallel()
	m, c := gather(t)
	last := ""
	for range 7 {
		last = kill(m, last)
		m.Await("wscast.service", "MainPID", func(pid string) bool { return pid != "0" && pid != last })
		m.AwaitValue("wscast.service", "ActiveState", "active")
	}
	c.AwaitMessages(10)
	c.Finish()
	expectValue(t, m, "wscast.service", "NRestarts", "7")
}

func TestClientsSurviveAProgramThatCannotStart(t *testing.T) {
	t.Parallel()
	m, c := gather(t)
	program := m.Path("/usr/sbin/wscastd")
	if err := os.Rename(program, program+".away"); err != nil {
		t.Fatal(err)
	}
	kill(m, "")
	m.Await("wscast.service", "NRestarts", func(v string) bool {
		n, _ := strconv.Atoi(v)
		return n >= 10
	})
	if err := os.Rename(program+".away", program); err != nil {
		t.Fatal(err)
	}
	c.AwaitMessages(10)
	c.Finish()
}

func TestClientsSurviveTheWatchdog(t *testing.T) {
	t.Parallel()
	m, c := gather(t, booted.WithDropIn("wscast.service", "[Service]\nWatchdogSec=2s\n"))
	m.KillMain("wscast.service", syscall.SIGSTOP)
	m.AwaitJournal("wscast.service", "the watchdog", contains("Watchdog timeout"))
	m.AwaitValue("wscast.service", "NRestarts", "1")
	c.AwaitMessages(10)
	c.Finish()
}

// Without a store that keeps what it is given clients do not survive. They are told so at a restart, and the operator is told before.
func TestStoreThatIsTooSmall(t *testing.T) {
	for _, room := range []int{0, 1, 3} {
		t.Run(fmt.Sprint(room), func(t *testing.T) {
			t.Parallel()
			m := booted.Boot(t, booted.WithDropIn("wscast.service", fmt.Sprintf("[Service]\nFileDescriptorStoreMax=%d\n", room)))
			c := crowd.Gather(t, "tcp", m.Address(), few)
			e := m.AwaitJournal("wscast.service", "the warning", contains("clients will not survive a restart"))
			if e["PRIORITY"] != "4" {
				t.Errorf("the warning has PRIORITY=%s", e["PRIORITY"])
			}
			if status := m.Status(); !strings.Contains(status, "clients will not survive a restart") || !strings.Contains(status, "FileDescriptorStoreMax=") {
				t.Errorf("STATUS=%s", status)
			}
			if i := info(t, m); i["survival"] != "off" || !strings.Contains(i["survival_off_because"], "FileDescriptorStoreMax=") {
				t.Errorf("INFO has %q", i)
			}
			c.Tolerate(1012)
			m.Systemctl("restart", "wscast.service")
			c.AwaitClosed(1012, few)
			harness.Dial(t, m.WebSocketURL("news"))
		})
	}
}

// A store that gets room while the service runs is used from then on, and holds each thing once.
func TestStoreThatGetsRoom(t *testing.T) {
	t.Parallel()
	m, c := gather(t, booted.WithDropIn("wscast.service", "[Service]\nFileDescriptorStoreMax=3\n"))
	m.AwaitJournal("wscast.service", "the warning", contains("clients will not survive a restart"))
	m.DropIn("wscast.service", "")
	m.AwaitJournal("wscast.service", "the end of it", contains("clients will survive a restart again"))
	m.Await("wscast.service", "StatusText", func(status string) bool { return !strings.Contains(status, "survive") })
	if i := info(t, m); i["survival"] != "on" || i["parked"] != fmt.Sprint(few) || i["not_parked"] != "0" {
		t.Errorf("INFO has %q", i)
	}
	m.Systemctl("restart", "wscast.service")
	c.AwaitMessages(10)
	kill(m, "")
	c.AwaitMessages(10)
	c.Finish()
	m.AwaitValue("wscast.service", "NFileDescriptorStore", info(t, m)["stored_descriptors"])
}

// A stop is the end: clients are told, and nothing is left.
func TestStopLeavesNothing(t *testing.T) {
	t.Parallel()
	m, c := gather(t)
	m.Systemctl("restart", "wscast.service") // the one that stops has adopted its clients
	c.AwaitMessages(10)
	c.Finish()
	c.Tolerate(1001)
	m.Systemctl("stop", "wscast.service")
	c.AwaitClosed(1001, few)
	expectValue(t, m, "wscast.service", "NFileDescriptorStore", "0")
	m.Systemctl("start", "wscast.service")
	if i := info(t, m); i["parked"] != "0" || i["adopted"] != "0" || i["survival"] != "on" {
		t.Errorf("INFO has %q after a stop", i)
	}
	news := harness.Dial(t, m.WebSocketURL("news"))
	publish(m, "news", "one")
	news.ExpectText("one")
}

// Whoever is there when the service stops gets what was published, and then a close frame, and systemd does not have to kill anybody.
func TestStopServesEverybody(t *testing.T) {
	const clients = 1000
	m := booted.Boot(t)
	c := crowd.Gather(t, "tcp", m.Address(), clients)
	c.Publish(m.PublishSocket(), crowd.Flow{Publishers: 4, Size: 2000, Window: 400})
	c.AwaitMessages(50)
	c.Silence()
	c.Tolerate(1001)
	m.Systemctl("stop", "wscast.service")
	c.AwaitClosed(1001, clients)
	c.EndedWithAll(1001)
	for property, want := range map[string]string{"ActiveState": "inactive", "Result": "success", "ExecMainStatus": "0"} {
		expectValue(t, m, "wscast.service", property, want) // not "timeout": it ended within TimeoutStopSec=
	}
	m.AwaitJournal("wscast.service", "the good-byes", contains(fmt.Sprintf("closing all clients clients=%d code=1001", clients)))
}

// The kernel counts descriptors in flight against the limit of open files as well, those of a user together: of all machines here, so this test
// runs alone. A client that cannot be parked is served as all others, and its connection ends with the process.
func TestLowLimitOfFiles(t *testing.T) {
	const limit = 900
	m := booted.Boot(t, booted.WithDropIn("wscast.service", fmt.Sprintf("[Service]\nLimitNOFILE=%d\n", limit)))
	c := crowd.Gather(t, "tcp", m.Address(), few)
	c.Publish(m.PublishSocket(), flow)
	c.AwaitMessages(10)
	// Those who have left are in flight still, until their segment is given up.
	visitors := crowd.Gather(t, "tcp", m.Address(), 0)
	visitors.Pass(20, 0)
	visitors.AwaitPassed(10_000)
	visitors.Finish()
	lost, err := strconv.Atoi(info(t, m)["not_parked"])
	if err != nil {
		t.Fatal(err)
	}
	c.Tolerate(1006)
	c.Tolerate(1012)
	m.Systemctl("restart", "wscast.service")
	c.AwaitMessages(10)
	kill(m, "")
	c.AwaitMessages(10)
	c.Finish()
	closed := c.Closed(1006) + c.Closed(1012)
	t.Logf("%d were not parked, %d closed", lost, closed)
	if closed > lost {
		t.Errorf("%d clients were not parked, and %d were closed", lost, closed)
	}
}

// closeWait is how many connections of a port the other side has closed, and ours has not.
func closeWait(t *testing.T, port string) int {
	t.Helper()
	text, err := os.ReadFile("/proc/self/net/tcp")
	if err != nil {
		t.Fatal(err)
	}
	n, _ := strconv.Atoi(port)
	local, count := fmt.Sprintf(":%04X", n), 0
	for line := range strings.Lines(string(text)) {
		// proc_pid_net(5): number, local address, remote address, state; 08 is CLOSE_WAIT in net/tcp_states.h.
		if f := strings.Fields(line); strings.HasSuffix(f[1], local) && f[3] == "08" {
			count++
		}
	}
	return count
}

// openFiles is how many descriptors the service's main process has.
func openFiles(t *testing.T, m *booted.Machine) int {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join("/proc", strconv.Itoa(m.MainPID("wscast.service")), "fd"))
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// memory of the service's main process, in KiB, of a kind: RssAnon is its own, RssShmem what it maps of the log and the table (proc_pid_status(5)).
func memory(t *testing.T, m *booted.Machine, kind string) int {
	t.Helper()
	status, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(m.MainPID("wscast.service")), "status"))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "\n"+kind+":")
	size, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		t.Fatal(err)
	}
	return size
}

// Clients that have left leave nothing, and neither do restarts. WSCAST_TEST_VISITS sets how many come and go, WSCAST_TEST_RESTARTS how many
// restarts there are meanwhile.
func TestNothingIsLeftOfThoseWhoLeave(t *testing.T) {
	t.Parallel()
	m := booted.Boot(t)
	visits := fromEnvironment(t, "WSCAST_TEST_VISITS", 10_000)
	rounds := fromEnvironment(t, "WSCAST_TEST_RESTARTS", 5)
	c := crowd.Gather(t, "tcp", m.Address(), 100)
	c.Publish(m.PublishSocket(), flow)
	c.AwaitMessages(10)
	m.Systemctl("restart", "wscast.service")
	c.AwaitMessages(10)
	files, own := openFiles(t, m), memory(t, m, "RssAnon")
	before := info(t, m)
	c.Pass(100, 0)
	for range rounds {
		for left := visits / rounds; left > 0; left -= 1000 { // in pieces, each with its patience
			c.AwaitPassed(min(left, 1000))
		}
		m.Systemctl("restart", "wscast.service")
	}
	passed := c.Finish()
	if passed.Reset != 0 {
		t.Errorf("%d connections ended without an answer", passed.Reset)
	}
	after := info(t, m)
	filesNow, ownNow := openFiles(t, m), memory(t, m, "RssAnon")
	t.Logf("%+v; before: %d files, %d KiB, %q; after: %d files, %d KiB, %q", passed, files, own, before, filesNow, ownNow, after)
	if after["parked"] != "100" || before["parked"] != "100" {
		t.Errorf("%s parked, and %s before; expected 100", after["parked"], before["parked"])
	}
	// A tail and a bulk segment, and one more bulk segment until it is worth giving up.
	if stored, _ := strconv.Atoi(after["stored_descriptors"]); stored > 2+3*2 {
		t.Errorf("%d descriptors are stored", stored)
	}
	if n := closeWait(t, m.Address()[strings.LastIndexByte(m.Address(), ':')+1:]); n != 0 {
		t.Errorf("%d connections are closed by their clients and not by wscastd", n)
	}
	if most := files + 8; filesNow > most { // segments, a connection of a publisher
		t.Errorf("wscastd has %d files open, and had %d", filesNow, files)
	}
	if most := own + 16<<10; ownNow > most {
		t.Errorf("wscastd has %d KiB of memory, and had %d", ownNow, own)
	}
}
