package booted_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/gorilla/websocket"

	"wscast/test/booted"
	"wscast/test/harness"
)

// logStatus is what wscast status says of the log.
type logStatus struct {
	Path  string `json:"log_path"`
	Epoch string `json:"epoch"`
	Head  int    `json:"head"`
	Kept  int    `json:"messages_kept"`
	Bytes int    `json:"bytes_kept"`
	Limit int    `json:"bytes_limit"`
}

func statusOfLog(t *testing.T, m *booted.Machine) logStatus {
	t.Helper()
	out := m.Run("wscast", "status", "--json")
	var status struct{ Log logStatus }
	if err := json.Unmarshal([]byte(out), &status); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return status.Log
}

const logFile = "[log]\npath = 'log'\n"

// With log.path the log is there after a stop and after a reboot, in good order or not, and its ids hold as long as they can.
func TestLogSurvivesReboot(t *testing.T) {
	t.Parallel()
	m := booted.Boot(t, booted.Disk(), booted.Race(), booted.Config(logFile))
	c := harness.Dial(t, m.WebSocketURL("news"))
	n := 0
	tell := func(messages int) {
		t.Helper()
		for range messages {
			n++
			text := fmt.Sprintf("message %d", n)
			publish(m, "news", text)
			c.ExpectText(text)
		}
	}
	tell(3)
	was := statusOfLog(t, m)
	if was.Path != "/var/lib/wscast/log" || was.Head != 3 || was.Kept != 3 {
		t.Fatalf("the log is %+v", was)
	}
	if out := m.Run("stat", "--format=%U %a", "/var/lib/wscast", "/var/lib/wscast/log"); out != "wscast 700\nwscast 600\n" {
		t.Errorf("the log's directory and file are of %q", out)
	}
	same := func(what string) {
		t.Helper()
		is := statusOfLog(t, m)
		if is != was {
			t.Errorf("after %s the log is %+v, and was %+v", what, is, was)
		}
		c = harness.Dial(t, m.WebSocketURL("news"))
		tell(2)
		was = statusOfLog(t, m)
	}

	m.Systemctl("stop", "wscast.service")
	c.ExpectClose(websocket.CloseGoingAway)
	m.Systemctl("start", "wscast.service")
	same("a stop and a start")

	m.Reboot()
	m.AwaitJournal("wscast.service", "the log", contains("the log is there"))
	same("a reboot")

	// A crash and a restart before, so that the descriptor comes from the store.
	m.KillMain("wscast.service", 9)
	tell(1)
	m.Systemctl("restart", "wscast.service")
	tell(1)
	was = statusOfLog(t, m)
	m.Reboot()
	same("a crash, a restart and a reboot")

	m.CutPower()
	m.AwaitJournal("wscast.service", "the log", contains("the log was not closed in good order"))
	if is := statusOfLog(t, m); is.Epoch == was.Epoch || is.Head != was.Head || is.Kept != was.Kept || is.Bytes != was.Bytes {
		t.Errorf("after the power was cut the log is %+v, and was %+v", is, was)
	}
	was = statusOfLog(t, m)
	same("nothing")
	// Another size and a reboot at once.
	m.WriteConfig(logFile + "size = '16MiB'\n")
	m.Reboot()
	was.Limit = 16 << 20
	same("a reboot with another size")
	if out := m.Run("ls", "/var/lib/wscast"); out != "log\n" {
		t.Errorf("there is %q", out)
	}
}

// A disk that is full, or cannot be written to, costs no client and no message: the log is in memory, and says so, until it
// can go where it is to be.
func TestLogOnFullDisk(t *testing.T) {
	t.Parallel()
	m := booted.Boot(t, booted.Config(""))
	const unit = "wscast.service"
	c := harness.Dial(t, m.WebSocketURL("news"))
	n := 0
	tell := func() {
		t.Helper()
		n++
		publish(m, "news", fmt.Sprint(n))
		c.ExpectText(fmt.Sprint(n))
	}
	tell()
	was := statusOfLog(t, m)
	if was.Path != "memory" {
		t.Errorf("the log is at %q", was.Path)
	}
	m.Run("mount", "-t", "tmpfs", "-o", "size=20M,mode=700", "tmpfs", "/var/lib/wscast")
	m.Run("chown", "wscast:", "/var/lib/wscast")
	m.WriteConfig(logFile)

	inMemory := func(what, cause string) {
		t.Helper()
		e := m.AwaitJournal(unit, what, contains("log.path cannot be used"))
		said := e["WSCAST_CAUSE"]
		if e["PRIORITY"] != "3" || !strings.HasPrefix(said, "log: /var/lib/wscast/log") || !strings.Contains(said, cause) {
			t.Errorf("%s: PRIORITY=%s WSCAST_CAUSE=%q", what, e["PRIORITY"], said)
		}
		if s := m.Status(); !strings.Contains(s, "log.path cannot be used: ") || !strings.Contains(s, cause) {
			t.Errorf("%s: STATUS=%s", what, s)
		}
		if is := statusOfLog(t, m); is.Path != "memory" {
			t.Errorf("%s: the log is at %q", what, is.Path)
		}
		if out := m.Run("ls", "/var/lib/wscast"); out != "" {
			t.Errorf("%s: there is %q", what, out)
		}
		tell()
	}
	m.Systemctl("restart", unit)
	inMemory("a restart with a full disk", "no space left on device")
	if is := statusOfLog(t, m); is.Epoch != was.Epoch || is.Kept != 2 {
		t.Errorf("the log was %+v and is %+v", was, is)
	}
	m.Systemctl("stop", unit)
	m.Systemctl("start", unit)
	c = harness.Dial(t, m.WebSocketURL("news"))
	inMemory("a start with a full disk", "no space left on device")
	m.Run("mount", "-o", "remount,ro,size=200M", "/var/lib/wscast")
	m.Systemctl("restart", unit)
	inMemory("a restart with a disk that is read-only", "read-only file system")
	was = statusOfLog(t, m)

	m.Run("mount", "-o", "remount,rw,size=200M", "/var/lib/wscast")
	m.Systemctl("restart", unit)
	m.AwaitJournal(unit, "the move", contains("the log has a new place"))
	is := statusOfLog(t, m)
	if was.Path = "/var/lib/wscast/log"; is != was {
		t.Errorf("the log was %+v and is %+v", was, is)
	}
	tell()
	// All of its room is taken, and everything that is written fits into it.
	if out := m.Run("sh", "-c", "dd if=/dev/zero of=/var/lib/wscast/rest bs=64k 2>&1 || true"); !strings.Contains(out, "No space left") {
		t.Fatalf("the disk is not full: %s", out)
	}
	m.Run(booted.As("alice", "sh", "-c",
		"yes $(head -c 900 /dev/zero | tr '\\0' x) | head -n 100000 | wscast publish --lines others")...)
	if is := statusOfLog(t, m); is.Bytes < is.Limit*9/10 {
		t.Errorf("the log is not full: %+v", is)
	}
	tell()
	if restarts := m.Show(unit, "NRestarts"); restarts != "0" {
		t.Errorf("%s crashes", restarts)
	}
	m.KillMain(unit, 9)
	tell()
	m.Systemctl("restart", unit)
	tell()
}
