package booted_test

import (
	"math/rand/v2"
	"os"
	"regexp"
	"strconv"
	"testing"

	"wscast/ipc"
	"wscast/test/booted"
	"wscast/test/booted/crowd"
)

// fromEnvironment is a number that an environment variable replaces: the proofs of this file can be made larger than the default.
func fromEnvironment(t *testing.T, name string, otherwise int) int {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("%s=%s: not a number from 1 on", name, text)
	}
	return n
}

// kill kills the main process of wscast.service, which is another one than the last that was killed, and returns it (as systemd numbers it).
func kill(m *booted.Machine, last string) string {
	pid := m.Await("wscast.service", "MainPID", func(pid string) bool { return pid != "0" && pid != last })
	m.Run("sh", "-c", "kill -KILL "+pid) // the one of the shell: there is no other
	return pid
}

// comers is how many clients come and go at a time.
const comers = 20

var takenOver = regexp.MustCompile(`clients taken over adopted=(\d+) repaired=(\d+) lost=(\d+) took=(\S+)`)

// adoptions are what the journal says of all of them: how many there were, and the sums.
func adoptions(t *testing.T, m *booted.Machine) (times, adopted, repaired, lost int) {
	t.Helper()
	for _, match := range takenOver.FindAllStringSubmatch(m.Journal("wscast.service"), -1) {
		var n [3]int
		for i := range n {
			n[i], _ = strconv.Atoi(match[i+1])
		}
		times, adopted, repaired, lost = times+1, adopted+n[0], repaired+n[1], lost+n[2]
	}
	return times, adopted, repaired, lost
}

// info is what INFO says, of all sections.
func info(t *testing.T, m *booted.Machine) map[string]string {
	t.Helper()
	c, err := ipc.Dial(m.PublishSocket())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	sections, err := c.Info()
	if err != nil {
		t.Fatal(err)
	}
	fields := map[string]string{}
	for _, s := range sections {
		for _, f := range s.Fields {
			fields[f.Key] = f.Value
		}
	}
	return fields
}

// Clients are there throughout while others come and go, several publishers publish, and the service is restarted and killed at random moments.
// WSCAST_TEST_CLIENTS sets how many clients.
func TestClientsSurviveRestartsAndKills(t *testing.T) {
	m := booted.Boot(t)
	clients := fromEnvironment(t, "WSCAST_TEST_CLIENTS", 1000)
	c := crowd.Gather(t, "tcp", m.Address(), clients)
	c.Publish(m.PublishSocket(), crowd.Flow{Publishers: 4, Size: 200, Window: 40})
	c.Pass(comers, 10)
	c.AwaitMessages(20)
	const restarts, kills = 20, 50
	ends := append(make([]bool, restarts), make([]bool, kills)...)
	for i := range kills {
		ends[restarts+i] = true
	}
	rand.Shuffle(len(ends), func(i, j int) { ends[i], ends[j] = ends[j], ends[i] })
	last := ""
	for _, killed := range ends {
		if killed {
			last = kill(m, last)
		} else {
			m.Systemctl("restart", "wscast.service")
		}
		c.AwaitMessages(rand.IntN(40))
	}
	c.AwaitMessages(20)
	c.AwaitPassed(20)
	passed := c.Finish()
	times, adopted, repaired, lost := adoptions(t, m)
	t.Logf("%d clients, %d messages, %+v; %d adoptions: %d adopted, %d repaired, %d lost", clients, c.Messages(), passed, times, adopted, repaired, lost)
	if c.Stayers() != clients {
		t.Errorf("%d of %d clients are still there", c.Stayers(), clients)
	}
	// A connection is parked by the system call that follows the one that accepts it. Only one that is between the two when the process is killed
	// ends with it.
	if passed.Reset > kills {
		t.Errorf("%d connections ended without an answer, expected at most %d", passed.Reset, kills)
	}
}

// Connections that come while the service restarts wait in the socket, which systemd holds, and a request that the old process has not answered is
// answered by the new one: none is refused, none reset, and none answered with anything but 101.
func TestNewClientsDoNotNoticeRestarts(t *testing.T) {
	m := booted.Boot(t)
	c := crowd.Gather(t, "tcp", m.Address(), 10)
	c.Publish(m.PublishSocket(), crowd.Flow{Publishers: 1, Size: 200, Window: 40})
	c.Pass(200, 0)
	for range 10 {
		c.AwaitPassed(rand.IntN(200))
		m.Systemctl("restart", "wscast.service")
	}
	c.AwaitPassed(200)
	passed := c.Finish()
	t.Logf("%+v", passed)
	if passed.Reset != 0 {
		t.Errorf("%d connections ended without an answer", passed.Reset)
	}
}

// At a kill at most one connection is between the system call that accepts it and the one that parks it. All others that have come are answered by
// the next process.
func TestNewClientsSurviveKills(t *testing.T) {
	m := booted.Boot(t)
	c := crowd.Gather(t, "tcp", m.Address(), 10)
	c.Pass(200, 0)
	const kills = 50
	last := ""
	for range kills {
		c.AwaitPassed(rand.IntN(200))
		last = kill(m, last)
	}
	c.AwaitPassed(200)
	passed := c.Finish()
	t.Logf("%+v", passed)
	if passed.Reset > kills {
		t.Errorf("%d connections ended without an answer, expected at most %d", passed.Reset, kills)
	}
}

// Kills hit writes of messages that do not fit into the send buffers of sockets. There are more of them until one has been in the middle of such a write.
// WSCAST_TEST_LARGE sets how many clients.
func TestLargeMessagesAreNotBroken(t *testing.T) {
	m := booted.Boot(t)
	clients := fromEnvironment(t, "WSCAST_TEST_LARGE", 200)
	const least, most = 12, 100
	c := crowd.Gather(t, "tcp", m.Address(), clients)
	c.Publish(m.PublishSocket(), crowd.Flow{Publishers: 2, Size: 100_000, Window: 30})
	last, repaired := "", 0
	for kills := 0; kills < least || repaired == 0 && kills < most; kills++ {
		c.AwaitMessages(1 + rand.IntN(20))
		last = kill(m, last)
		if kills >= least-2 {
			c.AwaitMessages(1)
			_, _, repaired, _ = adoptions(t, m)
		}
	}
	c.AwaitMessages(20)
	c.Finish()
	times, _, repaired, lost := adoptions(t, m)
	t.Logf("%d clients, %d messages, %d adoptions: %d repaired, %d lost", clients, c.Messages(), times, repaired, lost)
	if repaired == 0 {
		t.Error("no client was in the middle of a write")
	}
	if lost != 0 {
		t.Errorf("%d clients were not taken over", lost)
	}
}
