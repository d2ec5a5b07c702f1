package booted_test

import (
	"math/rand/v2"
	"strings"
	"testing"

	"wscast/test/booted"
	"wscast/test/booted/crowd"
)

// sociable lets clients publish on the crowd's channels, and has messages compressed for those that offer it.
const sociable = "[websocket]\ncompression = true\nupstream_rate = 0\n[[channel]]\nmatch = 'crowd*'\nupstream = 'clients'\n"

// ownLogs are sections that the log gets, one after the other: some more, some less, larger and in a file.
var ownLogs = []string{
	"[[log.own]]\nmatch = 'crowd/1'\n",
	"[[log.own]]\nmatch = 'crowd/[12]'\nsize = '32MiB'\n[[log.own]]\nmatch = 'crowd/1'\n",
	"[[log.own]]\nmatch = 'crowd/?'\npath = 'some'\n[[log.own]]\nmatch = 'crowd'\npath = 'one'\n",
	"",
}

// Clients of every kind, of one channel and of several, some of which publish, are there throughout while others of every kind come and go, and the
// service is restarted, and killed, at random moments, some of which change which channels have which log. WSCAST_TEST_CLIENTS sets how many clients.
func TestEveryEncodingSurvives(t *testing.T) {
	t.Parallel()
	m := booted.Boot(t, booted.Config(sociable))
	clients := fromEnvironment(t, "WSCAST_TEST_CLIENTS", 150)
	c := crowd.GatherMix(t, "tcp", m.Address(), crowd.Mix{Clients: clients, Kinds: crowd.Kinds, Channels: 3})
	c.Speak(crowd.Raw, crowd.JSON, crowd.JSONDeflated)
	c.Publish(m.PublishSocket(), crowd.Flow{Publishers: 6, Size: 500, Large: 40_000, Window: 40})
	c.Pass(comers, 10)
	c.AwaitMessages(20)
	// More kills than the least, until one was in the middle of a write, if it does not take too long.
	const restarts, least, most = 3, 8, 20
	for i := range restarts {
		m.WriteConfig(sociable + ownLogs[i])
		m.Systemctl("restart", "wscast.service")
		c.AwaitMessages(1 + rand.IntN(20))
	}
	last, kills, repaired := "", 0, 0
	for kills < least || repaired == 0 && kills < most {
		m.WriteConfig(sociable + ownLogs[kills%len(ownLogs)])
		last = kill(m, last)
		c.AwaitMessages(1 + rand.IntN(20))
		if kills++; kills >= least {
			_, _, repaired, _ = adoptions(t, m)
		}
	}
	c.AwaitPassed(20)
	passed := c.Finish()
	times, adopted, repaired, lost := adoptions(t, m)
	t.Logf("%d clients, %d messages, %d of them compressed, %+v; %d adoptions: %d adopted, %d repaired, %d lost",
		clients, c.Messages(), c.Inflated(), passed, times, adopted, repaired, lost)
	if c.Stayers() != clients {
		t.Errorf("%d of %d clients are still there", c.Stayers(), clients)
	}
	if passed.Reset > kills {
		t.Errorf("%d connections ended without an answer, expected at most %d", passed.Reset, kills)
	}
	if n := strings.Count(m.Journal("wscast.service"), "channels have a log of their own now"); n < len(ownLogs) {
		t.Errorf("a section was added %d times", n)
	}
	if c.Inflated() == 0 {
		t.Error("nothing was compressed")
	}
	if lost != 0 {
		t.Errorf("%d clients were not taken over", lost)
	}
}
