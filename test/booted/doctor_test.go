package booted_test

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"wscast/test/booted"
)

// patient is a machine that wscast doctor looks at.
type patient struct {
	t *testing.T
	*booted.Machine
}

// doctor is what wscast doctor prints, with its code. user "" is root.
func (p *patient) doctor(user string) (code int, out string) {
	p.t.Helper()
	args := []string{"wscast", "doctor"}
	if user != "" {
		args = booted.As(user, args...)
	}
	code, out = p.Try(args...)
	bad := regexp.MustCompile(`(?m)^  (warning|error) `).MatchString(out)
	if want := map[bool]int{true: 1}[bad]; code != want {
		p.t.Errorf("wscast doctor ends with %d, want %d, after\n%s", code, want, out)
	}
	return code, out
}

// finds expects a finding, such as "error" with "does not listen", and returns the line that mends it.
func (p *patient) finds(user, level, text string) (mend string) {
	p.t.Helper()
	_, out := p.doctor(user)
	for line := range strings.Lines(out) {
		if strings.HasPrefix(line, "  "+level+" ") && strings.Contains(line, text) {
			_, mend, _ = strings.Cut(strings.TrimSuffix(line, "\n"), " — ")
			return mend
		}
	}
	p.t.Fatalf("no %s with %q in\n%s", level, text, out)
	return ""
}

// healthy expects that there is nothing to mend.
func (p *patient) healthy() string {
	p.t.Helper()
	code, out := p.doctor("")
	if code != 0 || !strings.HasSuffix(out, "\nNothing to mend.\n") {
		p.t.Fatalf("wscast doctor ends with %d and has found\n%s", code, out)
	}
	return out
}

// apply runs the line that mends something, as whoever copies it would.
func (p *patient) apply(mend string) {
	p.t.Helper()
	p.t.Logf("# %s", mend)
	if code, out := p.Try("sh", "-c", mend); code != 0 {
		p.t.Fatalf("%s: code %d\n%s", mend, code, out)
	}
}

// rewrite changes a file of the machine.
func (p *patient) rewrite(name, old, replacement string) {
	p.t.Helper()
	text, err := os.ReadFile(p.Path(name))
	if err != nil {
		p.t.Fatal(err)
	}
	if !strings.Contains(string(text), old) {
		p.t.Fatalf("%s has no %q", name, old)
	}
	if err := os.WriteFile(p.Path(name), []byte(strings.ReplaceAll(string(text), old, replacement)), 0o644); err != nil {
		p.t.Fatal(err)
	}
}

// A healthy machine is broken in one way after the other. Each is found, and gone once the line has been run that is
// said to mend it.
func TestDoctor(t *testing.T) {
	t.Parallel()
	m := booted.Boot(t, booted.WithNginx())
	out := (&patient{t, m}).healthy()
	t.Logf("healthy:\n%s", out)
	for _, line := range []string{
		"wscast.socket listens on 127.0.0.1:7311\n", "wscast-publish.socket listens on /run/wscast/publish.sock\n",
		"wscast.service is active\n",
		"systemd keeps up to 256 descriptors", "/run/wscast/publish.sock is there: root:wscast, 0660\n",
		"/etc/wscast/wscast.toml is good\n",
		"clients survive a restart", "location ^~ /websocket (" + booted.NginxSnippet + ":",
		"lets WebSockets through\n",
	} {
		if !strings.Contains(out, line) {
			t.Errorf("nothing about %q", line)
		}
	}

	const service = "wscast.service"
	limit := func(setting string) func(*patient) {
		return func(p *patient) {
			p.DropIn(service, setting+"\n")
			p.Systemctl("restart", service)
		}
	}
	site := func(old, replacement string) func(*patient) {
		return func(p *patient) {
			p.rewrite(booted.NginxSnippet, old, replacement)
			p.Systemctl("reload", "nginx.service")
		}
	}
	for _, c := range []struct {
		name        string
		harm        func(*patient)
		level, text string
	}{
		{"mode of the socket", func(p *patient) { p.Run("chmod", "0600", "/run/wscast/publish.sock") }, "warning",
			"the mode of /run/wscast/publish.sock is 0600"},
		{"group of the socket", func(p *patient) { p.Run("chgrp", "root", "/run/wscast/publish.sock") }, "warning",
			"the group of /run/wscast/publish.sock is root"},
		{"directory of the socket", func(p *patient) { p.Run("rm", "/run/wscast/publish.sock") }, "error",
			"/run/wscast/publish.sock is not there"},
		{"no store", limit("[Service]\nFileDescriptorStoreMax=0"), "error",
			"FileDescriptorStoreMax=0 in /etc/systemd/system/wscast.service.d/50-test.conf"},
		{"no store, seen by wscastd", limit("[Service]\nFileDescriptorStoreMax = 0"), "error",
			"clients do not survive a restart: the descriptor store has no room"},
		{"small store", limit("[Service]\nFileDescriptorStoreMax=16"), "warning", "FileDescriptorStoreMax=16 in"},
		{"start limit", limit("[Unit]\nStartLimitIntervalSec=10"), "warning", "StartLimitIntervalSec=10s in"},
		{"no restart", limit("[Service]\nRestart=on-success"), "warning", "Restart=on-success in"},
		{"few files", limit("[Service]\nLimitNOFILE=512"), "warning", "room for 206 clients: LimitNOFILE=512 in"},
		{"unit not read", func(p *patient) {
			if err := os.WriteFile(p.Path("/etc/systemd/system/wscast.service.d/50-test.conf"), []byte("[Service]\nNice=1\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}, "warning", "systemd has not read what was changed in wscast.service"},
		{"service stopped", func(p *patient) { p.Systemctl("stop", service) }, "note",
			"wscast.service does not run; the first connection starts it"},
		{"clients' socket stopped", func(p *patient) { p.Systemctl("stop", "wscast.socket") }, "error",
			"wscast.socket does not listen: it is inactive (dead)"},
		{"publishers' socket stopped", func(p *patient) { p.Systemctl("stop", "wscast-publish.socket") }, "error",
			"wscast-publish.socket does not listen"},
		{"socket not enabled", func(p *patient) { p.Systemctl("disable", "wscast.socket") }, "warning",
			"wscast.socket is not enabled"},
		{"nginx stopped", func(p *patient) { p.Systemctl("stop", "nginx.service") }, "error", "nginx does not run"},
		{"no upgrade",
			site("proxy_set_header Upgrade    $http_upgrade;\n\tproxy_set_header Connection $wscast_connection;", ""),
			"error", "does not pass on the headers of an upgrade"},
		{"connection closed", site("proxy_set_header Connection $wscast_connection",
			"proxy_set_header Connection close"), "error", "sends Connection: close"},
		{"HTTP/1.0", site("proxy_http_version 1.1;", ""), "error", "speaks HTTP/1.0"},
		{"no host", site("proxy_set_header Host $http_host;", ""), "error", "does not pass on the header Host"},
		{"short timeout", site("proxy_read_timeout 60s", "proxy_read_timeout 10s"), "error",
			"closes clients that were sent nothing for 10s"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := &patient{t, m}
			c.harm(p)
			mend := p.finds("", c.level, c.text)
			if mend == "" {
				t.Fatal("there is no line that mends it")
			}
			p.apply(mend)
			p.Systemctl("start", service)
			out := p.healthy()
			if strings.Contains(out, c.text) {
				t.Errorf("it is not mended:\n%s", out)
			}
		})
	}

	t.Run("bad configuration", func(t *testing.T) {
		p := &patient{t, m}
		p.WriteConfig("[websocket]\npong = '25s'\n")
		mend := p.finds("", "error",
			`the configuration cannot be used: /etc/wscast/wscast.toml: unknown key "websocket.pong"`)
		p.WriteConfig("[websocket]\nping = '20s'\n")
		_, command, _ := strings.Cut(mend, ", then: ")
		p.apply(command)
		p.healthy()
	})

	t.Run("ping and timeout", func(t *testing.T) {
		p := &patient{t, m}
		p.WriteConfig("[websocket]\nping = '70s'\n")
		p.Systemctl("reload", service)
		p.apply(p.finds("", "error", "closes clients that were sent nothing for 1m0s, and they are pinged every 1m10s"))
		p.healthy()
	})

	t.Run("a service that does not start", func(t *testing.T) {
		p := &patient{t, m}
		p.DropIn(service, quiet)
		p.WriteConfig("[log]\nsize = 'small'\n")
		p.Try("systemctl", "restart", service)
		if mend := p.finds("", "error", "wscast.service does not start: its configuration cannot be used"); mend != "wscastd --check --config /etc/wscast/wscast.toml" {
			t.Errorf("the line is %q", mend)
		}
		p.WriteConfig("")
		p.Systemctl("restart", service)
		p.healthy()
	})

	// It is asked what a stopped daemon says, and must not be started by that.
	t.Run("nothing is started", func(t *testing.T) {
		p := &patient{t, m}
		p.Systemctl("stop", service)
		p.healthy()
		p.doctor("alice")
		expectValue(t, m, service, "ActiveState", "inactive")
		p.Systemctl("start", service)
	})
}

func TestDoctorOfOthers(t *testing.T) {
	t.Parallel()
	m := booted.Boot(t, booted.WithNginx())
	p := &patient{t, m}
	p.finds("alice", "ok", "alice may publish")
	p.finds("alice", "note", "alice may not see the configuration of nginx")
	p.finds("alice", "ok", "wscast.service is active")

	mend := p.finds("mallory", "error", "mallory may not publish, not being in the group wscast")
	p.apply(mend)
	// The group counts from the next login on.
	_, out := p.Try("setpriv", "--reuid=mallory", "--regid=mallory", "--clear-groups", "--", "wscast", "doctor")
	if !strings.Contains(out, "log in again, or: newgrp wscast\n") {
		t.Errorf("the session of mallory is not seen to be old:\n%s", out)
	}
	p.finds("mallory", "ok", "mallory may publish")
	if out := m.Run(booted.As("mallory", "wscast", "publish", "news", "hello")...); out != "0\n" {
		t.Errorf("mallory publishes, and the answer is %q", out)
	}
}

// Root must not run what somebody else's process says that it is.
func TestDoctorBelievesNobody(t *testing.T) {
	t.Parallel()
	m := booted.Boot(t, booted.WithNginx())
	p := &patient{t, m}
	m.Systemctl("stop", "nginx.service")
	m.Run("sh", "-c", `cd /srv && cp /bin/sleep nginx && printf '#!/bin/sh\ntouch /srv/was-run\n' >mine && chmod 755 mine`)
	unit := "[Service]\nType=exec\nUser=mallory\nExecStart=@/srv/nginx 'nginx: master process /srv/mine' 1000\n"
	if err := os.WriteFile(m.Path("/run/systemd/system/mine.service"), []byte(unit), 0o644); err != nil {
		t.Fatal(err)
	}
	m.Systemctl("daemon-reload")
	m.Systemctl("start", "mine.service")
	p.finds("", "error", "nginx does not run")
	if _, err := os.Stat(m.Path("/srv/was-run")); err == nil {
		t.Error("wscast doctor has run a program of mallory's as root")
	}
	m.Systemctl("stop", "mine.service")
}
