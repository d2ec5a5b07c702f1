package booted_test

import (
	"net"
	"strings"
	"syscall"
	"testing"

	"wscast/test/booted"
	"wscast/test/harness"
)

func TestUnitsAreCleanAndClosed(t *testing.T) {
	t.Parallel()
	m := booted.Boot(t)
	// The man pages are left out of the machine, as all are.
	if code, out := m.Try("systemd-analyze", "verify", "--man=no", "wscast.service", "wscast.socket", "wscast-publish.socket"); code != 0 || out != "" {
		t.Errorf("systemd-analyze verify: code %d\n%s", code, out)
	}
	// The threshold is ten times the exposure that is shown: 0.4.
	if code, out := m.Try("systemd-analyze", "--no-pager", "security", "--threshold=4", "wscast.service"); code != 0 {
		t.Errorf("systemd-analyze security: code %d\n%s", code, out)
	}
	// However often somebody who waits there has the service tried, no socket gives up.
	expectValue(t, m, "wscast.socket", "TriggerLimitIntervalUSec", "0")
	expectValue(t, m, "wscast-publish.socket", "TriggerLimitIntervalUSec", "0")
}

func TestWhoMayPublish(t *testing.T) {
	t.Parallel()
	m := booted.Boot(t, booted.Race())
	c := harness.Dial(t, m.WebSocketURL("news"))
	if out := m.Run(booted.As("alice", "wscast", "publish", "news", "from a member")...); out != "1\n" {
		t.Errorf("wscast publish printed %q, expected one receiver", out)
	}
	c.ExpectText("from a member")
	code, out := m.Try(booted.As("mallory", "wscast", "publish", "news", "from a stranger")...)
	if code != 1 || !strings.Contains(out, syscall.EACCES.Error()) {
		t.Errorf("wscast publish of a stranger: code %d, %q", code, out)
	}
	publish(m, "news", "the next")
	c.ExpectText("the next")
}

func TestReload(t *testing.T) {
	t.Parallel()
	m := booted.Boot(t, booted.Race(), booted.Config("[websocket]\ngreeting = 'first'\n"))
	harness.Dial(t, m.WebSocketURL("")).ExpectText("first")
	pid := m.MainPID("wscast.service")

	m.WriteConfig("[websocket]\ngreeting = 'second'\n")
	m.Systemctl("reload", "wscast.service")
	m.AwaitJournal("wscast.service", "the reload", contains("configuration reloaded"))
	harness.Dial(t, m.WebSocketURL("")).ExpectText("second")

	m.WriteConfig("[websocket]\ngreeting = 'third'\nnosuch = 1\n")
	m.Systemctl("reload", "wscast.service")
	e := m.AwaitJournal("wscast.service", "the refusal", contains("the configuration was not reloaded"))
	if e["PRIORITY"] != "3" || !strings.Contains(e["WSCAST_ERROR"], "websocket.nosuch") {
		t.Errorf("the journal has PRIORITY=%s WSCAST_ERROR=%q, expected an error that names websocket.nosuch", e["PRIORITY"], e["WSCAST_ERROR"])
	}
	harness.Dial(t, m.WebSocketURL("")).ExpectText("second")
	m.AwaitValue("wscast.service", "ActiveState", "active")
	if now := m.MainPID("wscast.service"); now != pid {
		t.Errorf("the main process was %d and is %d", pid, now)
	}
}

func TestJournalFields(t *testing.T) {
	t.Parallel()
	m := booted.Boot(t)
	e := m.AwaitJournal("wscast.service", "the start", contains("serving"))
	for field, want := range map[string]string{
		"WSCAST_WEBSOCKET":  m.Address(),
		"WSCAST_PUBLISH":    "/run/wscast/publish.sock",
		"WSCAST_LOOPS":      "",
		"PRIORITY":          "6",
		"SYSLOG_IDENTIFIER": "wscastd",
		"_SYSTEMD_UNIT":     "wscast.service",
		"_TRANSPORT":        "journal", // its own protocol, not text on standard error
	} {
		if value, ok := e[field]; !ok || !strings.Contains(value, want) {
			t.Errorf("the journal has %s=%q, expected %q in it", field, value, want)
		}
	}
}

func TestWatchdogRestarts(t *testing.T) {
	t.Parallel()
	m := booted.Boot(t, booted.WithDropIn("wscast.service", "[Service]\nWatchdogSec=2s\n"))
	pid := m.MainPID("wscast.service")
	m.KillMain("wscast.service", syscall.SIGSTOP)
	m.AwaitJournal("wscast.service", "the watchdog", contains("Watchdog timeout"))
	m.AwaitValue("wscast.service", "NRestarts", "1")
	m.AwaitValue("wscast.service", "ActiveState", "active")
	if now := m.MainPID("wscast.service"); now == pid {
		t.Errorf("the main process is still %d", pid)
	}
	c := harness.Dial(t, m.WebSocketURL("news"))
	publish(m, "news", "alive")
	c.ExpectText("alive")
}

// One client answers the close frame, the other never says anything again.
func TestStop(t *testing.T) {
	t.Parallel()
	m := booted.Boot(t, booted.Race())
	c := harness.Dial(t, m.WebSocketURL("news"))
	silent, err := net.Dial("tcp", m.Address())
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	if _, err := silent.Write([]byte("GET /websocket/news HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
	if _, err := silent.Read(make([]byte, 1)); err != nil { // the answer, so it is a client
		t.Fatal(err)
	}
	m.Systemctl("stop", "wscast.service")
	c.ExpectClose(1001)
	expectValue(t, m, "wscast.service", "ActiveState", "inactive")
	// Not "timeout", so it ended within TimeoutStopSec=.
	expectValue(t, m, "wscast.service", "Result", "success")
	expectValue(t, m, "wscast.service", "ExecMainStatus", "0")
}
