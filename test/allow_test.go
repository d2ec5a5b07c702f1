package test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/redis/go-redis/v9"

	"wscast/test/harness"
)

// user is who connects: numbers, which need not have names.
type user struct {
	uid, gid int
	groups   string // the others, with commas
}

var (
	mailer   = user{20001, 20001, ""}
	member   = user{20002, 20002, "30000,30001"}
	former   = user{20003, 30001, ""} // whose first group it is
	many     = user{20004, 20004, ""} // see init
	stranger = user{20005, 20005, "20001,20002"}
	root     = user{0, 0, ""}
)

func init() { // more groups than one question to the kernel has room for at first, and the last one counts
	for gid := 40000; gid < 40100; gid++ {
		many.groups += fmt.Sprintf("%d,", gid)
	}
	many.groups += "30001"
}

// program are the program and arguments that run something as the user.
func (u user) program(t *testing.T, args ...string) (string, []string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test connects as other users: run it as root")
	}
	groups := "--clear-groups"
	if u.groups != "" {
		groups = "--groups=" + u.groups
	}
	return harness.Find(t, "setpriv", "util-linux"), append([]string{fmt.Sprint("--reuid=", u.uid), fmt.Sprint("--regid=", u.gid), groups, "--"}, args...)
}

// redis runs redis-cli, which prints an answer.
func (u user) redis(t *testing.T, socket string, command ...string) string {
	t.Helper()
	program, args := u.program(t, append([]string{harness.Find(t, "redis-cli", "redis-tools"), "-s", socket}, command...)...)
	r := harness.Launch(t, program, args...)
	r.CloseInput()
	_, out := r.Wait()
	return strings.TrimSpace(out)
}

func (u user) denied(verb, name string) string {
	return fmt.Sprintf("NOPERM user %d may not %s '%s': no rule of [[publish.allow]] allows it", u.uid, verb, name)
}

// open starts a daemon whose sockets everybody can open.
func open(t *testing.T, options ...harness.Option) *harness.Daemon {
	t.Helper()
	d := harness.Start(t, append(options, harness.Socket("publish-datagram", "unixgram"))...)
	for path, mode := range map[string]os.FileMode{filepath.Dir(d.PublishSocket()): 0o755, d.PublishSocket(): 0o666, d.Address("publish-datagram"): 0o666} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	return d
}

const allowed = `
[publish]
datagram_channel = ""
[[publish.allow]]
users = ["20001"]
publish = ["mail/*", "alerts"]
subscribe = ["mail/*"]
[[publish.allow]]
groups = ["30001"]
publish = ["alerts"]
subscribe = ["*"]
[[publish.allow]]
users = ["*"]
publish = ["public"]
`

// Who may do what, by the kernel's word for it.
func TestAllow(t *testing.T) {
	d := open(t, harness.Config(allowed))
	for _, test := range []struct {
		user                user
		publish, dare       string
		subscribe, dareSubs string
	}{
		{mailer, "mail/in alerts public", "mail news", "mail/in", "alerts *"},
		{member, "alerts public", "mail/in", "news", ""},
		{former, "alerts public", "mail/in", "news", ""},
		{many, "alerts public", "mail/in", "news", ""},
		{stranger, "public", "mail/in alerts", "", "mail/in public"},
		{root, "public", "mail/in alerts news", "", "mail/in"},
	} {
		for _, channel := range strings.Fields(test.publish) {
			if got := test.user.redis(t, d.PublishSocket(), "publish", channel, "hello"); got != "0" {
				t.Errorf("user %d publishes on %s: %s", test.user.uid, channel, got)
			}
		}
		for _, channel := range strings.Fields(test.dare) {
			if got, want := test.user.redis(t, d.PublishSocket(), "publish", channel, "hello"), test.user.denied("publish on", channel); got != want {
				t.Errorf("user %d publishes on %s: %s, expected %s", test.user.uid, channel, got, want)
			}
		}
		for _, channel := range strings.Fields(test.dareSubs) {
			command := "subscribe"
			if channel == "*" {
				command = "psubscribe"
			}
			if got, want := test.user.redis(t, d.PublishSocket(), command, channel), test.user.denied("subscribe to", channel); got != want {
				t.Errorf("user %d: %s %s: %s, expected %s", test.user.uid, command, channel, got, want)
			}
		}
		for _, channel := range strings.Fields(test.subscribe) {
			program, args := test.user.program(t, "redis-cli", "-s", d.PublishSocket(), "subscribe", channel)
			r := harness.Launch(t, program, args...)
			r.Await("subscribe\n" + channel)
			r.Signal(syscall.SIGKILL)
			r.Wait()
		}
	}
	if got := stranger.redis(t, d.PublishSocket(), "info", "publishers"); !strings.Contains(got, "refused_by_rules:15") {
		t.Errorf("INFO of a stranger: %s", got)
	}
}

// A connection that is open obeys the next configuration, and so does one that has been handed over a restart.
func TestAllowOfOpenConnections(t *testing.T) {
	d := open(t, harness.Config(allowed), harness.FDStore(64))
	c := harness.Dial(t, d.WebSocketURL("alerts"))
	program, args := stranger.program(t, "redis-cli", "-s", d.PublishSocket())
	r := harness.Launch(t, program, args...)
	expect := func(command, answer string) {
		t.Helper()
		r.Send(command + "\n")
		r.Await(answer)
	}
	expect("publish alerts no", stranger.denied("publish on", "alerts"))
	expect("client setname it-is-me", "OK")
	d.Stop()
	d.Start()
	expect("publish public yes", "0")
	expect("client getname", "it-is-me")
	expect("publish mail/in no", stranger.denied("publish on", "mail/in")) // credentials are found again

	d.Configure(strings.Replace(allowed, `"20001"`, `"20005"`, 1))
	d.Signal(syscall.SIGHUP)
	d.AwaitLog("configuration reloaded")
	expect("publish alerts allowed", "1")
	c.ExpectText("allowed")

	d.Configure(strings.Replace(allowed, `"20001"`, `"no-such-user"`, 1))
	d.Signal(syscall.SIGHUP)
	d.AwaitLog(`publish.allow[0].users = \"no-such-user\" is not possible`)
	expect("publish alerts still", "1")
	c.ExpectText("still")
	d.Configure(allowed) // for the next start
}

func TestAllowRefusesUnknownNames(t *testing.T) {
	for config, want := range map[string]string{
		"[[publish.allow]]\nusers = ['no-such-user']\npublish = ['*']":   `publish.allow[0].users = "no-such-user" is not possible`,
		"[[publish.allow]]\ngroups = ['no-such-group']\npublish = ['*']": `publish.allow[0].groups = "no-such-group" is not possible`,
	} {
		if code, log := harness.Refused(t, harness.Config(config)); code != 78 || !strings.Contains(log, want) || !strings.Contains(log, "there is no such ") {
			t.Errorf("code %d, %s", code, log)
		}
	}
}

// Datagrams have the credentials of their sender.
func TestAllowOfDatagrams(t *testing.T) {
	d := open(t, harness.Config(allowed))
	alerts, mail := harness.Dial(t, d.WebSocketURL("alerts")), harness.Dial(t, d.WebSocketURL("mail/in"))
	send := func(u user, datagram string) {
		t.Helper()
		program, args := u.program(t, "/usr/bin/python3", "-c",
			"import socket, sys; socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(sys.argv[2].encode(), sys.argv[1])", d.Address("publish-datagram"), datagram)
		harness.Run(t, program, args...)
	}
	send(stranger, "alerts\nfrom a stranger")
	send(mailer, "alerts\nfrom the mailer")
	alerts.ExpectText("from the mailer")
	send(root, "mail/in\nfrom root")
	send(member, "alerts\nfrom a member by another group") // which does not come with a datagram
	send(former, "alerts\nfrom a member by its first group")
	alerts.ExpectText("from a member by its first group")
	send(mailer, "mail/in\nfrom the mailer")
	mail.ExpectText("from the mailer")
	d.AwaitLog(stranger.denied("publish on", "alerts"))
}

// The libraries of Redis know the error.
func TestAllowOfLibraries(t *testing.T) {
	d := open(t, harness.Config(allowed))
	ctx, cancel := context.WithTimeout(t.Context(), harness.Patience)
	defer cancel()
	for _, protocol := range []int{2, 3} {
		r := redis.NewClient(&redis.Options{Network: "unix", Addr: d.PublishSocket(), Protocol: protocol})
		defer r.Close()
		err := r.Publish(ctx, "alerts", "no").Err()
		if err == nil || err.Error() != root.denied("publish on", "alerts") || !redis.IsPermissionError(err) {
			t.Errorf("go-redis, RESP%d: %T %v", protocol, err, err)
		}
		if n, err := r.Publish(ctx, "public", "yes").Result(); err != nil || n != 0 {
			t.Errorf("go-redis, RESP%d, afterwards: %d %v", protocol, n, err)
		}
		s := r.Subscribe(ctx, "alerts")
		if _, err := s.Receive(ctx); err == nil || err.Error() != root.denied("subscribe to", "alerts") {
			t.Errorf("go-redis subscribes with RESP%d: %v", protocol, err)
		}
		s.Close()
	}
	program := `
import redis, sys
try:
    redis.Redis(unix_socket_path=sys.argv[1]).publish("alerts", "no")
except redis.exceptions.NoPermissionError as error:
    print(error)
`
	// redis-py takes the code off.
	if got, want := harness.Run(t, "/usr/bin/python3", "-c", program, d.PublishSocket()), strings.TrimPrefix(root.denied("publish on", "alerts"), "NOPERM ")+"\n"; got != want {
		t.Errorf("redis-py: %q, expected %q", got, want)
	}
}
