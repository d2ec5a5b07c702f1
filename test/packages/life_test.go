package packages

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"wscast/ipc"
	"wscast/test/booted"
	"wscast/test/booted/crowd"
	"wscast/test/harness"
)

const (
	clients = 1000
	few     = 200 // clients for what is no upgrade
	comers  = 20  // clients that come and go at a time
)

// system is how a kind of package is installed and removed: arguments, to which the path of a package, or the name of
// ours, is added.
type system struct {
	kind      string
	install   []string // upgrades as well
	upgrade   []string
	downgrade []string
	remove    []string
	kept      string // added to the name of a configuration file that was not replaced, for the one that would have replaced it
}

var debian = system{
	kind:      "deb",
	install:   apt("install"),
	upgrade:   apt("install"),
	downgrade: apt("install", "--allow-downgrades"),
	remove:    apt("remove"),
	kept:      ".dpkg-dist",
}

var redHat = system{
	kind:      "rpm",
	install:   rpm("--install"),
	upgrade:   rpm("--upgrade"),
	downgrade: rpm("--upgrade", "--oldpackage"),
	remove:    rpm("--erase"),
	kept:      ".rpmnew",
}

// apt asks nobody: a configuration file that the administrator has changed stays.
func apt(command ...string) []string {
	return append([]string{"env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "--yes", "--quiet=2", "-o", "Dpkg::Use-Pty=0",
		"-o", "Dpkg::Options::=--force-confdef", "-o", "Dpkg::Options::=--force-confold"}, command...)
}

// rpm is that of Debian: it wants to be told that it is meant, and knows of no package that is installed there.
func rpm(command ...string) []string {
	return append(append([]string{"rpm", "--force-debian"}, command...), "--nodeps")
}

// copyIn puts a package into the machine and returns its path there.
func copyIn(t *testing.T, m *booted.Machine, file string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join("/run", filepath.Base(file))
	if err := os.WriteFile(m.Path(name), text, 0o644); err != nil {
		t.Fatal(err)
	}
	return name
}

// do runs a program in the machine that has to succeed, and shows everything it has written if it does not.
func do(t *testing.T, m *booted.Machine, args ...string) string {
	t.Helper()
	code, out := m.Try(args...)
	if code != 0 {
		t.Fatalf("%s: code %d\n%s", strings.Join(args, " "), code, out)
	}
	return out
}

func expectValue(t *testing.T, m *booted.Machine, unit, property, want string) {
	t.Helper()
	if got := m.Show(unit, property); got != want {
		t.Errorf("%s of %s is %q, expected %q", property, unit, got, want)
	}
}

func expectListening(t *testing.T, m *booted.Machine) {
	t.Helper()
	for _, unit := range []string{"wscast.socket", "wscast-publish.socket"} {
		expectValue(t, m, unit, "SubState", "listening")
	}
}

// expectVersion asks the running wscastd.
func expectVersion(t *testing.T, m *booted.Machine, want string) {
	t.Helper()
	if status := do(t, m, "wscast", "status"); !slices.Contains(strings.Fields(status), want) {
		t.Errorf("wscast status has no %s:\n%s", want, status)
	}
}

// installAndEnable leaves the machine with listening sockets, and nothing running.
func (s system) installAndEnable(t *testing.T, m *booted.Machine, file string) {
	t.Helper()
	do(t, m, append(s.install, file)...)
	if s.kind == "rpm" { // what starts is for the administrator to say; Debian's presets, which enable everything, are not Fedora's
		m.Systemctl("disable", "wscast.service")
		m.Systemctl("enable", "--now", "wscast.socket", "wscast-publish.socket")
	}
	expectListening(t, m)
	expectValue(t, m, "wscast.service", "ActiveState", "inactive")
}

// publishers open connections of their own for one message each until they are stopped.
type publishers struct {
	stopped chan struct{}
	ended   sync.WaitGroup
	mu      sync.Mutex
	count   int
	errs    []error
}

func startPublishers(m *booted.Machine) *publishers {
	p, path := &publishers{stopped: make(chan struct{})}, m.PublishSocket()
	p.ended.Go(func() {
		for {
			select {
			case <-p.stopped:
				return
			default:
			}
			c, err := ipc.Dial(path)
			if err == nil {
				_, err = c.Publish("elsewhere", []byte("one"))
				err = errors.Join(err, c.Close())
			}
			p.mu.Lock()
			p.count++
			if err != nil && len(p.errs) < 10 {
				p.errs = append(p.errs, fmt.Errorf("publisher %d: %w", p.count, err))
			}
			p.mu.Unlock()
		}
	})
	return p
}

func (p *publishers) stop() (count int, errs []error) {
	close(p.stopped)
	p.ended.Wait()
	return p.count, p.errs
}

// From the installation to the removal, with clients that stay while others come and go.
func TestLife(t *testing.T) {
	for _, s := range []system{debian, redHat} {
		t.Run(s.kind, func(t *testing.T) {
			old, new := build(t, s.kind, first), build(t, s.kind, later)
			m := booted.Boot(t, booted.Bare())
			old, new = copyIn(t, m, old), copyIn(t, m, new)
			files := s.everyFile(m)

			s.installAndEnable(t, m, old)
			unitsAreCleanAndClosed(t, m)
			whoMayPublish(t, m)
			mine := "# What an administrator writes.\n[websocket]\nping = '20s'\n"
			m.WriteConfig(mine)
			t.Run("upgrade", func(t *testing.T) { s.upgradeUnderLoad(t, m, old, new, mine) })
			t.Run("removal", func(t *testing.T) { s.removeUnderLoad(t, m) })
			s.removed(t, m, files, mine)

			s.installAndEnable(t, m, new)
			harness.Dial(t, m.WebSocketURL("news")).Close(1000)
			expectVersion(t, m, later)
		})
	}
}

// upgradeUnderLoad upgrades, and goes back: no client ends, no connection is refused or reset, and no command is left
// without an answer.
func (s system) upgradeUnderLoad(t *testing.T, m *booted.Machine, old, new, mine string) {
	c := crowd.Gather(t, "tcp", m.Address(), clients)
	c.Publish(m.PublishSocket(), crowd.Flow{Publishers: 3, Size: 200, Window: 40})
	c.Pass(comers, 5)
	p := startPublishers(m)
	stop := sync.OnceValues(p.stop)
	defer stop()
	c.AwaitMessages(20)
	sockets := listening(m)

	do(t, m, append(s.upgrade, new)...)
	c.AwaitMessages(20)
	c.AwaitPassed(20)
	expectVersion(t, m, later)
	expectConfiguration(t, m, s, mine)

	do(t, m, append(s.downgrade, old)...)
	c.AwaitMessages(20)
	c.AwaitPassed(20)
	count, errs := stop()
	for _, err := range errs {
		t.Error(err)
	}
	passed := c.Finish()
	t.Logf("%d messages, %+v, %d publishers", c.Messages(), passed, count)
	if c.Stayers() != clients {
		t.Errorf("%d of %d clients are still there", c.Stayers(), clients)
	}
	if passed.Reset != 0 {
		t.Errorf("%d connections ended without an answer", passed.Reset)
	}
	if now := listening(m); now != sockets {
		t.Errorf("the sockets were opened again: %s, and were %s", now, sockets)
	}
	expectValue(t, m, "wscast.service", "NRestarts", "0")
}

// removeUnderLoad removes the package after a crash and a restart: that is when clients end, and they are told.
func (s system) removeUnderLoad(t *testing.T, m *booted.Machine) {
	c := crowd.Gather(t, "tcp", m.Address(), few)
	c.Publish(m.PublishSocket(), crowd.Flow{Publishers: 2, Size: 200, Window: 20})
	c.AwaitMessages(20)
	m.KillMain("wscast.service", syscall.SIGKILL)
	m.AwaitValue("wscast.service", "NRestarts", "1")
	c.AwaitMessages(20)
	m.Systemctl("restart", "wscast.service")
	c.AwaitMessages(20)
	c.Finish()
	c.Tolerate(1001)
	do(t, m, append(s.remove, "wscast")...)
	c.AwaitClosed(1001, few)
	for _, unit := range []string{"wscast.service", "wscast.socket", "wscast-publish.socket"} {
		expectValue(t, m, unit, "ActiveState", "inactive")
		expectValue(t, m, unit, "LoadState", "not-found")
	}
}

// listening is since when the sockets are open.
func listening(m *booted.Machine) string {
	return m.Show("wscast.socket", "ActiveEnterTimestampMonotonic") + " " + m.Show("wscast-publish.socket", "ActiveEnterTimestampMonotonic")
}

// everyFile are the paths of the machine, but for what apt, dpkg, rpm and useradd write for themselves, and, with rpm,
// directories: those that packages share are on Fedora those of a package that is there.
func (s system) everyFile(m *booted.Machine) []string {
	find := []string{"find", "/", "-xdev"}
	for _, own := range []string{"/var/log", "/var/cache", "/var/lib/apt", "/var/lib/rpm", "/root/.rpmdb", "/etc/*-"} {
		find = append(find, "-path", own, "-prune", "-o")
	}
	if s.kind == "rpm" {
		find = append(find, "!", "-type", "d")
	}
	names := strings.Split(strings.TrimSpace(m.Run(append(find, "-print")...)), "\n")
	slices.Sort(names)
	return names
}

// expectConfiguration: what the administrator has changed is as it was, with what came beside it; what was not changed
// is that of the package.
func expectConfiguration(t *testing.T, m *booted.Machine, s system, mine string) {
	t.Helper()
	for name, want := range map[string]string{
		"wscast/wscast.toml":          mine,
		"wscast/wscast.toml" + s.kept: addition,
		"nginx/conf.d/wscast.conf":    addition,
		"nginx/snippets/wscast.conf":  addition,
	} {
		text, err := os.ReadFile(m.Path("/etc/" + name))
		if err != nil || !strings.HasSuffix(string(text), want) {
			t.Errorf("/etc/%s: %v: %q, expected %q at its end", name, err, text, want)
		}
	}
}

// removed judges what is left, on Debian after a purge.
func (s system) removed(t *testing.T, m *booted.Machine, files []string, mine string) {
	t.Helper()
	expectLeft := func(want ...string) {
		t.Helper()
		left := slices.DeleteFunc(s.everyFile(m), func(name string) bool {
			_, there := slices.BinarySearch(files, name)
			return there
		})
		if !slices.Equal(left, want) {
			t.Errorf("left in the end:\n%s\nwant\n%s", strings.Join(left, "\n"), strings.Join(want, "\n"))
		}
	}
	toml := "/etc/wscast/wscast.toml"
	do(t, m, "id", "wscast")
	switch s.kind {
	case "deb":
		text, err := os.ReadFile(m.Path(toml))
		if err != nil || string(text) != mine {
			t.Errorf("after the removal %s: %v: %q", toml, err, text)
		}
		do(t, m, append(apt("purge"), "wscast")...)
		if code, _ := m.Try("test", "-e", "/run/wscast"); code == 0 {
			t.Error("/run/wscast is left after a purge")
		}
		expectLeft()
	case "rpm":
		text, err := os.ReadFile(m.Path(toml + ".rpmsave"))
		if err != nil || string(text) != mine {
			t.Errorf("after the removal %s.rpmsave: %v: %q", toml, err, text)
		}
		expectLeft(toml+".rpmnew", toml+".rpmsave")
	}
}

func unitsAreCleanAndClosed(t *testing.T, m *booted.Machine) {
	t.Helper()
	units := []string{"wscast.service", "wscast.socket", "wscast-publish.socket"}
	if code, out := m.Try(append([]string{"systemd-analyze", "verify", "--man=no"}, units...)...); code != 0 || out != "" {
		t.Errorf("systemd-analyze verify: code %d\n%s", code, out)
	}
	// The threshold is ten times the exposure that is shown: 0.4.
	if code, out := m.Try("systemd-analyze", "--no-pager", "security", "--threshold=4", "wscast.service"); code != 0 {
		t.Errorf("systemd-analyze security: code %d\n%s", code, out)
	}
}

// whoMayPublish: a member of the group, whose first message starts the daemon, and nobody else.
func whoMayPublish(t *testing.T, m *booted.Machine) {
	t.Helper()
	for _, user := range []string{"alice", "mallory"} {
		code, out := m.Try(booted.As(user, "wscast", "publish", "news", "from a stranger")...)
		if code != 1 || !strings.Contains(out, syscall.EACCES.Error()) {
			t.Errorf("wscast publish of %s, who is not in the group: code %d, %q", user, code, out)
		}
	}
	expectValue(t, m, "wscast.service", "ActiveState", "inactive")
	do(t, m, "usermod", "--append", "--groups=wscast", "alice")
	if out := do(t, m, booted.As("alice", "wscast", "publish", "news", "from a member")...); out != "0\n" {
		t.Errorf("wscast publish prints %q, expected no receiver", out)
	}
	m.AwaitValue("wscast.service", "ActiveState", "active") // the answer may come before systemd has read READY=1
	if code, _ := m.Try(booted.As("mallory", "wscast", "publish", "news", "from a stranger")...); code != 1 {
		t.Errorf("wscast publish of mallory: code %d", code)
	}
}
