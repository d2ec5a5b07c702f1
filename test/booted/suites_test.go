package booted_test

import (
	"math/rand/v2"
	"testing"

	"wscast/test/booted"
)

// What survival asks of systemd, on the releases that the other tests do not boot.
func TestClientsSurviveOnOtherReleases(t *testing.T) {
	for _, suite := range booted.Suites()[1:] {
		t.Run(suite, func(t *testing.T) {
			t.Parallel()
			m, c := gather(t, booted.Suite(suite))
			c.Pass(comers, 10)
			last := ""
			for range 5 {
				m.Systemctl("restart", "wscast.service")
				c.AwaitMessages(rand.IntN(20))
				last = kill(m, last)
				c.AwaitMessages(rand.IntN(20))
			}
			for _, command := range []string{"daemon-reload", "daemon-reexec"} {
				m.Systemctl(command)
				c.AwaitMessages(10)
				m.Systemctl("restart", "wscast.service")
				c.AwaitMessages(10)
			}
			c.Finish()
			c.Tolerate(1001)
			m.Systemctl("stop", "wscast.service")
			c.AwaitClosed(1001, few)
			expectValue(t, m, "wscast.service", "NFileDescriptorStore", "0")
			m.Systemctl("start", "wscast.service")
			if i := info(t, m); i["parked"] != "0" || i["adopted"] != "0" || i["survival"] != "on" {
				t.Errorf("INFO has %q after a stop", i)
			}
		})
	}
}
