package booted_test

import (
	"fmt"
	"strings"
	"syscall"
	"testing"

	"wscast/test/booted"
	"wscast/test/harness"
)

// A user in the group who may publish, one in the group whom the configuration denies, one outside of the group, and root. The
// shipped unit shows the daemon their real numbers (PrivateUsers= would not).
func TestWhomTheConfigurationAllows(t *testing.T) {
	t.Parallel()
	const rules = "[[publish.allow]]\nusers = ['alice']\npublish = ['news', 'alerts/*']\nsubscribe = ['news']\n"
	m := booted.Boot(t, booted.Race(), booted.Config(rules))
	c := harness.Dial(t, m.WebSocketURL("news"))
	number := func(user string) string { return strings.TrimSpace(m.Run("id", "-u", user)) }
	expect := func(user string, code int, output string, args ...string) {
		t.Helper()
		if got, out := m.Try(booted.As(user, args...)...); got != code || !strings.Contains(out, output) {
			t.Fatalf("%s: %v: code %d, %q, expected %d, %q", user, args, got, out, code, output)
		}
	}
	denied := func(user, channel string) string {
		return fmt.Sprintf("user %s may not publish on '%s': no rule of [[publish.allow]] allows it", number(user), channel)
	}
	expect("alice", 0, "1\n", "wscast", "publish", "news", "from alice")
	c.ExpectText("from alice")
	expect("alice", 1, denied("alice", "other"), "wscast", "publish", "other", "hello")
	expect("mallory", 1, syscall.EACCES.Error(), "wscast", "publish", "news", "hello")
	expect("root", 1, denied("root", "news"), "wscast", "publish", "news", "hello")

	// One connection, three refusals, one line in the journal.
	expect("bob", 1, denied("bob", "news"), "sh", "-c", "printf '1\n2\n3\n' | wscast publish --lines news")
	e := m.AwaitJournal("wscast.service", "the refusal", contains(denied("bob", "news")))
	if e["PRIORITY"] != "4" || e["WSCAST_UID"] != number("bob") || e["WSCAST_GID"] == "" || e["WSCAST_PID"] == "" {
		t.Errorf("the journal has PRIORITY=%s WSCAST_UID=%s WSCAST_GID=%s WSCAST_PID=%s", e["PRIORITY"], e["WSCAST_UID"], e["WSCAST_GID"], e["WSCAST_PID"])
	}
	if n := strings.Count(m.Journal("wscast.service"), denied("bob", "news")); n != 1 {
		t.Errorf("the journal has the refusal %d times", n)
	}

	// A reload lifts it, by the group; a restart does not bring it back.
	m.WriteConfig(rules + "[[publish.allow]]\ngroups = ['wscast']\npublish = ['n*']\n")
	m.Systemctl("reload", "wscast.service")
	m.AwaitJournal("wscast.service", "the reload", contains("configuration reloaded"))
	expect("bob", 0, "1\n", "wscast", "publish", "news", "from bob")
	c.ExpectText("from bob")
	m.Systemctl("restart", "wscast.service")
	expect("bob", 0, "1\n", "wscast", "publish", "news", "after the restart")
	c.ExpectText("after the restart")
	expect("bob", 1, denied("bob", "alerts/1"), "wscast", "publish", "alerts/1", "hello")

	// A name that is not there changes nothing.
	m.WriteConfig(rules + "[[publish.allow]]\nusers = ['no-such-user']\npublish = ['*']\n")
	m.Systemctl("reload", "wscast.service")
	e = m.AwaitJournal("wscast.service", "the name", contains("the configuration was not reloaded"))
	if !strings.Contains(e["WSCAST_ERROR"], `publish.allow[1].users = "no-such-user"`) {
		t.Errorf("the journal has WSCAST_ERROR=%s", e["WSCAST_ERROR"])
	}
	expect("bob", 0, "1\n", "wscast", "publish", "news", "still")
	c.ExpectText("still")
	m.WriteConfig(rules)
}
