package booted_test

import (
	"regexp"
	"strings"
	"testing"

	"wscast/test/booted"
	"wscast/test/harness"
)

// publish publishes as a user who may, and returns when it is answered.
func publish(m *booted.Machine, channel, message string) {
	m.Run(booted.As("alice", "wscast", "publish", channel, message)...)
}

func expectValue(t *testing.T, m *booted.Machine, unit, property, want string) {
	t.Helper()
	if got := m.Show(unit, property); got != want {
		t.Errorf("%s of %s is %q, expected %q", property, unit, got, want)
	}
}

// contains matches journal entries by a part of their text.
func contains(text string) func(booted.Entry) bool {
	return func(e booted.Entry) bool { return strings.Contains(e["MESSAGE"], text) }
}

func TestFirstConnectionStarts(t *testing.T) {
	t.Parallel()
	m := booted.Boot(t, booted.SocketsOnly())
	for _, unit := range []string{"wscast.socket", "wscast-publish.socket"} {
		expectValue(t, m, unit, "SubState", "listening")
	}
	expectValue(t, m, "wscast.service", "ActiveState", "inactive")

	c := harness.Dial(t, m.WebSocketURL("news"))
	m.AwaitValue("wscast.service", "ActiveState", "active")
	publish(m, "news", "one")
	c.ExpectText("one")

	m.Systemctl("stop", "wscast.service")
	expectValue(t, m, "wscast.service", "ActiveState", "inactive")
	publish(m, "news", "two")
	m.AwaitValue("wscast.service", "ActiveState", "active")
}

// The program is held before its first instruction: a unit that is active without READY=1 is active then.
func TestActiveOnlyWhenReady(t *testing.T) {
	t.Parallel()
	m := booted.Boot(t, booted.SocketsOnly(), booted.WithDropIn("wscast.service",
		"[Service]\nExecStart=\nExecStart=/bin/sh -c 'read go </run/hold; exec /usr/sbin/wscastd --config /etc/wscast/wscast.toml'\n"))
	m.Run("mkfifo", "--mode=0644", "/run/hold")
	m.Systemctl("start", "--no-block", "wscast.service")
	m.Await("wscast.service", "SubState", func(v string) bool { return v != "dead" })
	expectValue(t, m, "wscast.service", "ActiveState", "activating")
	m.Run("sh", "-c", "echo >/run/hold")
	m.AwaitValue("wscast.service", "ActiveState", "active")
	if status := m.Status(); !strings.HasPrefix(status, "0 clients,") {
		t.Errorf("STATUS=%s with the first READY=1", status)
	}
}

func TestStatusLine(t *testing.T) {
	t.Parallel()
	m := booted.Boot(t)
	harness.Dial(t, m.WebSocketURL("news"))
	harness.Dial(t, m.WebSocketURL("news"))
	// 200 messages are 40 a second over the 5 s for which rates are measured.
	m.Run(booted.As("alice", "sh", "-c", "seq 200 | wscast publish --lines news")...)
	want := regexp.MustCompile(`^2 clients, [1-9]\d* channels, [1-9]\d* messages/s in, [1-9]\d* messages/s out$`)
	status := m.Await("wscast.service", "StatusText", want.MatchString)
	if out := m.Systemctl("status", "wscast.service"); !strings.Contains(out, "2 clients") {
		t.Errorf("systemctl status does not show %q:\n%s", status, out)
	}
}

// What is missing in a socket unit is named, and when it is mended the service starts.
func TestSocketUnitWithoutName(t *testing.T) {
	t.Parallel()
	m := booted.Boot(t, booted.SocketsOnly(), booted.WithDropIn("wscast.service", quiet))
	for _, unit := range []string{"wscast.socket", "wscast-publish.socket"} {
		m.DropIn(unit, "[Socket]\nFileDescriptorName=\n")
		reopen(m)
		if code, out := m.Try("systemctl", "start", "wscast.service"); code == 0 {
			t.Errorf("wscast.service starts without a FileDescriptorName= in %s\n%s", unit, out)
		}
		// systemd's own name for such a socket is that of its unit.
		m.AwaitJournal("wscast.service", "the socket's name", contains(`named "`+unit+`": unknown name`))
		expectValue(t, m, "wscast.service", "ExecMainStatus", "1")
		m.DropIn(unit, "")
		m.Systemctl("stop", "wscast.service")
	}
	reopen(m)
	m.Systemctl("start", "wscast.service")
}

// reopen lets the sockets be made anew by their units. One restart of both can fail with "Address already in use": the process that systemd forks to give
// the publish socket its group has the other listener open for a moment longer.
func reopen(m *booted.Machine) {
	m.Systemctl("stop", "wscast.socket", "wscast-publish.socket")
	m.Systemctl("start", "wscast.socket", "wscast-publish.socket")
}

// quiet keeps a service that fails as it is, to be looked at.
const quiet = "[Service]\nRestartSec=1h\n"

func TestBadConfigurationIsExitCode78(t *testing.T) {
	t.Parallel()
	m := booted.Boot(t, booted.SocketsOnly(), booted.WithDropIn("wscast.service", quiet), booted.Config("[websocket]\ngreetin = 'x'\n"))
	if code, out := m.Try("systemctl", "start", "wscast.service"); code == 0 {
		t.Errorf("wscast.service starts with a bad configuration\n%s", out)
	}
	expectValue(t, m, "wscast.service", "ExecMainStatus", "78")
	// It is code 3 of systemctl status itself that the service does not run.
	if code, status := m.Try("systemctl", "status", "--no-pager", "wscast.service"); code != 3 || !strings.Contains(status, "status=78") {
		t.Errorf("systemctl status: code %d, expected 3 and status=78:\n%s", code, status)
	}
	m.AwaitJournal("wscast.service", "the key", contains("websocket.greetin"))
	m.WriteConfig("[websocket]\ngreeting = 'x'\n")
	m.Systemctl("restart", "wscast.service")
	harness.Dial(t, m.WebSocketURL("")).ExpectText("x")
}
