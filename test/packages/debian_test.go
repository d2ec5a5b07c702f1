package packages

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"wscast/test/booted"
	"wscast/test/harness"
)

// The steps of README.md for a Debian with nginx, as they are there.
const (
	includeLine = "include snippets/wscast.conf;"
	reloadNginx = "nginx -t && sudo systemctl reload nginx"
	letPublish  = "usermod -aG wscast $USER"
	sayHello    = "wscast publish default hello"
)

// A site has wscast with an installation, a line and a reload; and what the package tests of Debian do on such a
// machine.
func TestReadme(t *testing.T) {
	t.Parallel()
	readme, err := os.ReadFile(filepath.Join(harness.Repository(t), "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []string{"sudo apt install ./bin/wscast_*.deb", includeLine, reloadNginx, letPublish, sayHello} {
		if !strings.Contains(string(readme), step) {
			t.Errorf("README.md has no %q", step)
		}
	}
	file := build(t, "deb", first)
	m := booted.Boot(t, booted.Bare(), booted.OwnNetwork())
	expectValue(t, m, "nginx.service", "ActiveState", "active")
	do(t, m, append(debian.install, copyIn(t, m, file))...)
	expectListening(t, m)
	do(t, m, "sed", "-i", "/^\tserver_name _;/a "+includeLine, "/etc/nginx/sites-available/default")
	shell := func(command string) []string { return []string{"sh", "-c", strings.ReplaceAll(command, "sudo ", "")} }
	do(t, m, shell(reloadNginx)...)
	do(t, m, shell(strings.ReplaceAll(letPublish, "$USER", "alice"))...)

	// A reload is over before the workers with the old configuration are, which know of no /websocket.
	site := harness.Launch(t, "nsenter", "--all", "--target", fmt.Sprint(m.MainPID("nginx.service")), "sh", "-c",
		"until wscast listen ws://127.0.0.1/websocket; do :; done")
	m.AwaitValue("wscast.service", "ActiveState", "active") // the first client starts it
	awaitClients(t, m, 1)
	if out := do(t, m, booted.As("alice", "sh", "-c", sayHello)...); out != "1\n" {
		t.Errorf("%s prints %q, expected one receiver", sayHello, out)
	}
	site.Await("hello\n")

	// What the site includes stays without wscast, so that nginx does not fail for the want of it.
	do(t, m, append(debian.remove, "wscast")...)
	do(t, m, shell(reloadNginx)...)
}

// awaitClients returns when wscastd has so many clients.
func awaitClients(t *testing.T, m *booted.Machine, n int) {
	t.Helper()
	m.Await("wscast.service", "StatusText", func(status string) bool { return strings.HasPrefix(status, fmt.Sprintf("%d clients,", n)) })
}

func TestAutopkgtest(t *testing.T) {
	t.Parallel()
	file := build(t, "deb", first)
	m := booted.Boot(t, booted.Bare(), booted.OwnNetwork())
	do(t, m, append(debian.install, copyIn(t, m, file))...)
	dir := filepath.Join(harness.Repository(t), "packaging/debian/tests")
	control, err := os.ReadFile(filepath.Join(dir, "control"))
	if err != nil {
		t.Fatal(err)
	}
	_, names, _ := strings.Cut("\n"+string(control), "\nTests: ")
	names, _, _ = strings.Cut(names, "\n")
	for name := range strings.SplitSeq(names, ", ") {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err == nil {
			err = os.WriteFile(m.Path("/root/test"), text, 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
		do(t, m, "/root/test")
	}
}

// An installation whose port somebody has fails and says so. There are two ways out.
func TestPortThatIsTaken(t *testing.T) {
	t.Parallel()
	file := build(t, "deb", first)
	for _, way := range []string{"the port is free again", "another address"} {
		t.Run(way, func(t *testing.T) {
			t.Parallel()
			m := booted.Boot(t, booted.Bare())
			somebody, err := net.Listen("tcp", m.Address())
			if err != nil {
				t.Fatal(err)
			}
			defer somebody.Close()
			code, out := m.Try(append(debian.install, copyIn(t, m, file))...)
			for _, want := range []string{"Address already in use", "wscast: wscast.socket cannot listen", "ss -ltnp", "systemctl edit wscast.socket", "dpkg --configure wscast"} {
				if code == 0 || !strings.Contains(out, want) {
					t.Errorf("code %d, and apt does not say %q:\n%s", code, want, out)
				}
			}
			if code, _ := m.Try("dpkg", "--configure", "wscast"); code == 0 {
				t.Error("dpkg --configure succeeds with nothing changed")
			}
			option := []harness.DialOption{}
			if way == "another address" {
				m.DropIn("wscast.socket", "[Socket]\nListenStream=\nListenStream=/run/wscast/websocket.sock\n")
				option = append(option, harness.Unix(m.Path("/run/wscast/websocket.sock")))
			} else {
				somebody.Close()
			}
			do(t, m, "dpkg", "--configure", "wscast")
			expectListening(t, m)
			harness.Dial(t, m.WebSocketURL("news"), option...).Close(1000)
		})
	}
}

// The rpm starts nothing, so it is the administrator's command that fails.
func TestPortThatIsTakenFromTheRpm(t *testing.T) {
	t.Parallel()
	file := build(t, "rpm", first)
	m := booted.Boot(t, booted.Bare())
	somebody, err := net.Listen("tcp", m.Address())
	if err != nil {
		t.Fatal(err)
	}
	defer somebody.Close()
	do(t, m, append(redHat.install, copyIn(t, m, file))...)
	if code, out := m.Try("systemctl", "enable", "--now", "wscast.socket", "wscast-publish.socket"); code == 0 {
		t.Errorf("systemctl enable --now: code %d\n%s", code, out)
	}
	m.AwaitJournal("wscast.socket", "the reason", func(e booted.Entry) bool { return strings.Contains(e["MESSAGE"], "Address already in use") })
	somebody.Close()
	m.Systemctl("enable", "--now", "wscast.socket", "wscast-publish.socket")
	expectListening(t, m)
	harness.Dial(t, m.WebSocketURL("news")).Close(1000)
}
