package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"wscast/ipc"

	wscastd "wscast/daemon"
)

// healthy is a machine with nothing to mend, as make install and Debian's nginx leave it.
func healthy() *facts {
	socket := func(name, address string) *unit {
		return &unit{properties: map[string][]string{
			"Id": {name}, "LoadState": {"loaded"}, "UnitFileState": {"enabled"}, "ActiveState": {"active"},
			"SubState": {"running"},
			"Result":   {"success"}, "NeedDaemonReload": {"no"}, "Listen": {address + " (Stream)"}, "Backlog": {"4096"},
			"SocketMode": {"0660"}, "SocketUser": {"root"}, "SocketGroup": {"wscast"},
		}}
	}
	return &facts{
		caller:  caller{name: "alice", uid: 1000, groups: []int{1000, 990}, registered: []int{1000, 990}},
		manager: manager{runs: true, version: "252.39-1~deb12u2"},
		units: map[string]*unit{
			clientsSocket: socket(clientsSocket, "127.0.0.1:7311"),
			publishSocket: socket(publishSocket, "/run/wscast/publish.sock"),
			serviceUnit: {
				properties: map[string][]string{
					"Id": {serviceUnit}, "LoadState": {"loaded"}, "UnitFileState": {"disabled"},
					"ActiveState": {"active"}, "SubState": {"running"},
					"Result": {"success"}, "NeedDaemonReload": {"no"}, "ExecMainStatus": {"0"}, "MainPID": {"100"},
					"NRestarts": {"0"}, "Restart": {"always"},
					"FileDescriptorStoreMax": {"256"}, "NFileDescriptorStore": {"7"}, "StartLimitIntervalUSec": {"0"},
					"LimitNOFILESoft": {"524288"},
				},
				files: []unitFile{{"/usr/lib/systemd/system/wscast.service",
					"[Unit]\nStartLimitIntervalSec=0\n[Service]\nRestart=always\nLimitNOFILE=524288\nFileDescriptorStoreMax=256\n"}},
			},
			nginxUnit: {properties: map[string][]string{"Id": {nginxUnit}, "LoadState": {"loaded"},
				"ActiveState": {"active"}}},
		},
		socket: socketFile{path: "/run/wscast/publish.sock", mode: fs.ModeSocket | 0o660, owner: "root",
			group: "wscast", gid: 990, listens: true, writable: true},
		answer: answer{asked: true, info: map[string]string{
			"wscast_version": version, "process_id": "100", "uptime_in_seconds": "7200", "connected_clients": "200",
			"connected_publishers": "2",
			"survival":             "on", "parked": "200", "stored_descriptors": "7", "not_parked": "0", "slow": "0",
			"messages_kept": "5000", "messages_limit": "262144", "bytes_kept": "500000", "bytes_limit": "67108864",
			"oldest_age_seconds": "3600.123", "channels": "3", "channels_limit": "65536",
			"log_own_0": ownLine(1000, 3, 3, "alerts/*"), "log_own_1": ownLine(0, 0, 0, "none"),
		}},
		running: running{pid: 100, args: []string{"/usr/sbin/wscastd", "--config", "/etc/wscast/wscast.toml"},
			openFiles: 524288},
		program: program{path: "/usr/sbin/wscastd", version: version},
		config: configuration{path: "/etc/wscast/wscast.toml", checked: true, good: true,
			settings: map[string]string{"websocket.ping": "25s"}},
		nginx: nginxFacts{
			path: "/usr/sbin/nginx", version: "1.22.1", running: true, workers: 2, command: "nginx", limits: []int{1024, 1024}, uid: 33,
			groups: []int{33},
			reload: "systemctl reload nginx.service", config: parseNginx(goodSite),
		},
		machine: machine{ports: [2]int{32768, 60999}, somaxconn: 4096, processors: 2},
	}
}

// ownLine is a field log_own_N of INFO.
func ownLine(bytes, age, channels int, match string) string {
	return fmt.Sprintf("messages_kept=%d,messages_limit=4000,bytes_kept=%d,bytes_limit=1000000,oldest_age_seconds=%d.5,channels=%d,channels_limit=1000,log_path=memory,match=%s",
		bytes/1000, bytes, age, channels, match)
}

// shows is what doctor prints of f, without the dashes' alignment.
func shows(f *facts) (out string, err error) {
	var b bytes.Buffer
	err = doctor(f, streams{out: &b})
	return regexp.MustCompile(` +— `).ReplaceAllString(b.String(), " — "), err
}

func TestDoctorFindsNothing(t *testing.T) {
	out, err := shows(healthy())
	if err != nil || strings.Contains(out, "warning") || strings.Contains(out, "error") || strings.Contains(out, "note") || strings.Contains(out, " — ") {
		t.Errorf("on a healthy machine: %v\n%s", err, out)
	}
	if !strings.HasSuffix(out, "\nNothing to mend.\n") {
		t.Errorf("the last line is another one:\n%s", out)
	}
	for _, area := range areas {
		if !strings.Contains("\n"+out, "\n"+area.name+"\n  ok ") {
			t.Errorf("nothing is said of %s:\n%s", area.name, out)
		}
	}
}

// set gives a unit's property another value.
func set(unit, property, value string) func(*facts) {
	return func(f *facts) { f.units[unit].properties[property] = []string{value} }
}

// says gives a field of INFO another value.
func says(field, value string) func(*facts) {
	return func(f *facts) { f.answer.info[field] = value }
}

// dropIn adds a drop-in with one setting, which systemd has read.
func dropIn(property, setting, value string) func(*facts) {
	return func(f *facts) {
		u := f.units[serviceUnit]
		u.files = append(u.files, unitFile{"/etc/systemd/system/wscast.service.d/low.conf",
			"[Service]\n " + setting + " = " + value + "\n"})
		u.properties[property] = []string{value}
	}
}

// stop is what systemctl stop wscast.service leaves.
func stop(f *facts) {
	set(serviceUnit, "ActiveState", "inactive")(f)
	set(serviceUnit, "SubState", "dead")(f)
	f.answer, f.running = answer{}, running{}
}

// byHand is a machine on which somebody has started wscastd in a terminal.
func byHand(f *facts) {
	f.manager, f.units = manager{}, nil
	f.answer.info["survival"], f.answer.info["survival_off_because"] = "off", "not started by a service manager"
}

func mute(err error) func(*facts) {
	return func(f *facts) { f.answer = answer{asked: true, err: err} }
}

// site is nginx with another text of its site.
func site(old, replacement string) func(*facts) {
	return func(f *facts) {
		if !strings.Contains(goodSite, old) {
			panic("the site has no " + old)
		}
		f.nginx.config = parseNginx(strings.Replace(goodSite, old, replacement, 1))
	}
}

const reloaded = " && systemctl daemon-reload && systemctl restart wscast.service"

// Each row is one thing that is wrong, how bad it is, and a part of its line.
func TestDoctorFinds(t *testing.T) {
	for _, c := range []struct {
		name  string
		harm  func(*facts)
		level level
		line  string
	}{
		// Units.
		{"no systemd", byHand, levelNote, "systemd does not run here: clients do not survive"},
		{"systemd is silent", func(f *facts) { f.units, f.manager.err = nil, "Failed to connect to bus" }, levelNote,
			"cannot be asked about the units: Failed to connect"},
		{"old systemd", func(f *facts) { f.manager.version = "245.4-4ubuntu3" }, levelError,
			"systemd 245 cannot keep the clients"},
		{"systemd of no version", func(f *facts) { f.manager.version = "" }, levelNote,
			"version of systemd is not known"},
		{"socket stopped", set(clientsSocket, "ActiveState", "inactive"), levelError,
			"wscast.socket does not listen: it is inactive (running) — systemctl restart wscast.socket wscast.service"},
		{"socket and service stopped", func(f *facts) { set(clientsSocket, "ActiveState", "inactive")(f); stop(f) },
			levelError, " — systemctl start wscast.socket"},
		{"socket failed", set(publishSocket, "ActiveState", "failed"), levelError,
			"|| journalctl -n 20 -u wscast-publish.socket"},
		{"socket not enabled", set(publishSocket, "UnitFileState", "disabled"), levelWarning,
			" — systemctl enable wscast-publish.socket"},
		{"socket masked", set(clientsSocket, "LoadState", "masked"), levelError, " — systemctl unmask wscast.socket"},
		{"socket broken", set(clientsSocket, "LoadState", "bad-setting"), levelError,
			" — systemd-analyze verify wscast.socket"},
		{"socket not installed", set(publishSocket, "LoadState", "not-found"), levelError,
			"wscast-publish.socket is not installed"},
		{"service stopped", stop, levelNote,
			"wscast.service does not run; the first connection starts it — systemctl start wscast.service"},
		{"service failed", func(f *facts) {
			stop(f)
			set(serviceUnit, "ActiveState", "failed")(f)
			set(serviceUnit, "Result", "exit-code")(f)
			set(serviceUnit, "ExecMainStatus", "1")(f)
		}, levelError,
			"wscast.service does not stay up: it is failed (dead), result exit-code, exit code 1 — journalctl -n 20 -u wscast.service"},
		{"service does not start for its configuration", func(f *facts) {
			set(serviceUnit, "ActiveState", "activating")(f)
			set(serviceUnit, "SubState", "auto-restart")(f)
			set(serviceUnit, "ExecMainStatus", "78")(f)
		}, levelError, " — wscastd --check --config /etc/wscast/wscast.toml"},
		{"service starts", func(f *facts) {
			stop(f)
			set(serviceUnit, "ActiveState", "activating")(f)
			set(serviceUnit, "SubState", "start")(f)
		}, levelNote, "is activating (start)"},
		{"service not installed", func(f *facts) { stop(f); set(serviceUnit, "LoadState", "not-found")(f) },
			levelError, "wscast.service is not installed"},
		{"crashes", set(serviceUnit, "NRestarts", "3"), levelNote, "has ended by itself 3 times"},
		{"unit changed", set(clientsSocket, "NeedDaemonReload", "yes"), levelWarning,
			"wscast.socket — systemctl daemon-reload"},
		{"no store", dropIn("FileDescriptorStoreMax", "FileDescriptorStoreMax", "0"), levelError,
			"FileDescriptorStoreMax=0 in /etc/systemd/system/wscast.service.d/low.conf — " +
				"sed -i '/^[[:space:]]*FileDescriptorStoreMax[[:space:]]*=/d' /etc/systemd/system/wscast.service.d/low.conf" + reloaded},
		{"small store", set(serviceUnit, "FileDescriptorStoreMax", "8"), levelWarning,
			`printf '[Service]\nFileDescriptorStoreMax=256\n' >/etc/systemd/system/wscast.service.d/zz-filedescriptorstoremax.conf` + reloaded},
		{"start limit", set(serviceUnit, "StartLimitIntervalUSec", "10s"), levelWarning,
			`printf '[Unit]\nStartLimitIntervalSec=0\n'`},
		{"no restart", dropIn("Restart", "Restart", "no"), levelWarning, "Restart=no in /etc/systemd"},

		// Publish socket.
		{"no socket", func(f *facts) { f.socket.err = syscall.ENOENT }, levelError,
			"publish.sock is not there — systemctl restart wscast-publish.socket wscast.service"},
		{"no socket by hand", func(f *facts) { byHand(f); f.socket.err = syscall.ENOENT }, levelError,
			"publish.sock is not there — is this its path?"},
		{"nobody listens", func(f *facts) { f.socket.listens = false }, levelError,
			"nobody listens on /run/wscast/publish.sock — systemctl restart"},
		{"a file in place of it", func(f *facts) { f.socket.mode = 0o660 }, levelError,
			"is not a socket — rm /run/wscast/publish.sock && systemctl restart"},
		{"closed directory", func(f *facts) { f.socket.blocked = "/run/wscast" }, levelError,
			"alice may not pass the directory /run/wscast — chmod a+x /run/wscast"},
		{"other mode", func(f *facts) { f.socket.mode = fs.ModeSocket | 0o600 }, levelWarning,
			"is 0600, and 0660 in wscast-publish.socket — chmod 0660 /run/wscast/publish.sock"},
		{"other group", func(f *facts) { f.socket.group = "adm" }, levelWarning,
			" — chown :wscast /run/wscast/publish.sock"},
		{"other owner", func(f *facts) { f.socket.owner = "alice" }, levelWarning,
			" — chown root /run/wscast/publish.sock"},
		{"open to all", func(f *facts) { f.socket.mode |= 0o666; set(publishSocket, "SocketMode", "0666")(f) },
			levelNote, "every user of this machine may publish"},
		{"not a member", func(f *facts) {
			f.socket.writable = false
			f.caller.groups, f.caller.registered = []int{1000}, []int{1000}
		}, levelError,
			"alice may not publish, not being in the group wscast (then log in again) — usermod -aG wscast alice"},
		{"member since the login", func(f *facts) { f.socket.writable, f.caller.groups = false, []int{1000} },
			levelError, "older than the membership in the group wscast — log in again, or: newgrp wscast"},
		{"group may not write", func(f *facts) { f.socket.writable, f.socket.mode = false, fs.ModeSocket|0o640 },
			levelError, " — chmod g+rw /run/wscast/publish.sock"},
		{"something else forbids", func(f *facts) { f.socket.writable = false }, levelError,
			"may not publish all the same"},
		{"rules", func(f *facts) { f.config.settings["publish.allow.publish"] = `["mail/*"]` }, levelNote,
			"[[publish.allow]] in /etc/wscast/wscast.toml says on which channels"},

		// wscastd.
		{"late", func(f *facts) { f.answer = answer{asked: true, err: errors.New("i/o timeout"), late: true} },
			levelError, "wscastd does not answer in 5s — systemctl restart wscast.service"},
		{"refused", mute(&ipc.ReplyError{Text: "NOPERM no"}), levelError, "refuses to answer: NOPERM no"},
		{"closed", mute(errors.New("wscastd closed the connection")), levelError,
			"cannot be asked: wscastd closed the connection — systemctl restart wscast.service"},
		{"bad configuration", func(f *facts) { f.config.good, f.config.said = false, `unknown key "websocket.pong"` },
			levelError,
			`the configuration cannot be used: unknown key "websocket.pong" — edit /etc/wscast/wscast.toml, then: systemctl reload-or-restart wscast.service`},
		{"secret configuration", func(f *facts) { f.config.err, f.config.checked = syscall.EACCES, false }, levelNote,
			"alice may not read /etc/wscast/wscast.toml — wscastd --check"},
		{"no program to check with", func(f *facts) { f.config.checked = false }, levelNote,
			"there is no wscastd to check"},
		{"upgraded", func(f *facts) { f.program.version = "9.9" }, levelWarning,
			"and 9.9 is installed in /usr/sbin/wscastd — systemctl restart wscast.service"},
		{"another tool", func(f *facts) { says("wscast_version", "0.0.1")(f); f.program.version = "0.0.1" }, levelNote,
			"wscastd is of version 0.0.1, and this tool of " + version},
		{"survival off", func(f *facts) {
			says("survival", "off")(f)
			says("survival_off_because",
				"the store is full")(f)
		}, levelError,
			"clients do not survive a restart: the store is full — systemctl restart wscast.service"},
		{"survival off by hand", byHand, levelNote,
			"clients do not survive a restart: not started by a service manager"},
		{"not parked", says("not_parked", "4"), levelWarning, "4 times a connection could not be left with systemd"},
		{"files lowered", func(f *facts) {
			dropIn("LimitNOFILESoft", "LimitNOFILE",
				"1024")(f)
			f.running.openFiles = 1024
		}, levelWarning,
			"wscastd has room for 462 clients: LimitNOFILE=1024 in /etc/systemd/system/wscast.service.d/low.conf — sed -i '/^[[:space:]]*LimitNOFILE"},
		{"files short in a container", func(f *facts) { f.running.openFiles, f.planned = 20000, 12000 }, levelWarning,
			"room for 9950 clients, and 12000 are needed: it gets 20000 open files"},
		{"files short by hand", func(f *facts) { byHand(f); f.running.openFiles, f.planned = 1024, 500 }, levelWarning,
			"ulimit -n 2048"},
		{"more clients than the unit allows", func(f *facts) { f.planned = 500000 }, levelWarning,
			"LimitNOFILE=1048576"},
		{"files unseen", func(f *facts) { f.running = running{} }, levelNote,
			"limit of open files of wscastd cannot be seen"},
		{"log too short", func(f *facts) { says("bytes_kept", "67000000")(f); says("oldest_age_seconds", "4.5")(f) },
			levelWarning, "reaches back 4 s: a client that stands still for longer is slow — raise log.size in /etc/wscast/wscast.toml, then: systemctl restart wscast.service"},
		{"clock behind", func(f *facts) { f.answer.clockBehind = true }, levelWarning,
			"the clock is behind the messages in the log"},
		{"channels used up", says("channels", "60000"), levelWarning, "60000 of 65536 channels of the log are in use"},
		{"log of some channels too short", says("log_own_1", ownLine(999_000, 4, 3, "a,b=*")), levelWarning,
			"the log of a,b=* is full and reaches back 4 s: a client that stands still for longer is slow — raise log.own[1].size in /etc/wscast/wscast.toml, then: systemctl restart wscast.service"},
		{"log of some channels without channels", says("log_own_1", ownLine(1000, 4, 999, "c")), levelWarning,
			"999 of 1000 channels of the log of c are in use: clients and messages of more are refused — raise log.own[1].channels"},
		{"slow clients", says("slow", "2"), levelNote, "fell out of the log 2 times"},
		{"disk full", func(f *facts) {
			f.config.settings["log.path"] = "/var/lib/wscast/log"
			f.config.logFile = logFile{missing: 64 << 20, free: 1 << 20}
		}, levelError, "has 1 MiB, and the log still needs 64 MiB — make room: df -h /var/lib/wscast"},
		{"disk hidden", func(f *facts) {
			f.config.settings["log.path"] = "/var/lib/wscast/log"
			f.config.logFile.err = syscall.EACCES
		}, levelNote, "the disk of /var/lib/wscast/log cannot be looked at: permission denied"},

		// nginx.
		{"no nginx", func(f *facts) { f.nginx = nginxFacts{} }, levelNote, "there is no nginx here"},
		{"nginx stopped", func(f *facts) { f.nginx.running, f.nginx.workers = false, 0 }, levelError,
			"nginx does not run — systemctl start nginx.service"},
		{"nginx without a unit", func(f *facts) {
			f.nginx.running, f.nginx.workers = false, 0
			set(nginxUnit, "LoadState", "not-found")(f)
		}, levelNote, "nginx does not run — /usr/sbin/nginx"},
		{"nginx hidden", func(f *facts) {
			f.nginx.config, f.nginx.refused, f.nginx.forbids = nil, "open() failed",
				true
		}, levelNote,
			"alice may not see the configuration of nginx — as root: wscast doctor"},
		{"nginx broken", func(f *facts) { f.nginx.config, f.nginx.refused = nil, "unexpected end of file" },
			levelError, "unexpected end of file — nginx -t"},
		{"nginx has too few connections", func(f *facts) { f.planned = 1000 }, levelWarning,
			"room for 768 clients, and 1000 are needed: worker_connections 768 — sed -i --follow-symlinks '2s/worker_connections[^;]*/worker_connections 2048/' /etc/nginx/nginx.conf && nginx -t && systemctl reload"},
		{"nginx has too few files", func(f *facts) { f.planned, f.nginx.limits = 700, []int{1024, 512} }, levelWarning,
			"room for 412 clients, and 700 are needed: a worker may open 512 files — sed -i --follow-symlinks '1s/events/worker_rlimit_nofile 1024; &/' /etc/nginx/nginx.conf"},
		{"nginx may not open the socket", func(f *facts) {
			set(clientsSocket, "Listen", "/run/wscast/websocket.sock (Stream)")(f)
			site("server 127.0.0.1:7311 max_fails=0", "server unix:/run/wscast/websocket.sock")(f)
			f.nginx.unixMode = map[string]pathMode{"/run/wscast/websocket.sock": {0o660, 0, 990}}
		}, levelError, "nginx may not open /run/wscast/websocket.sock: its mode is 0660"},

		// Machine.
		{"ports", func(f *facts) { f.planned = 30000 }, levelWarning,
			"ports for 28232 clients, and 30000 are needed: 28232 to each of 127.0.0.1:7311 — another ListenStream="},
		{"backlog", func(f *facts) { f.machine.somaxconn = 128 }, levelWarning,
			"128 clients at once may wait to be taken"},
		{"clock", func(f *facts) { f.machine.unsynced = true }, levelNote, " — timedatectl set-ntp true"},
		{"clock hidden", func(f *facts) { f.machine.clockUnknown = true }, levelNote, "cannot be seen here"},
		{"nginx may not connect", func(f *facts) {
			f.machine.denial = `avc:  denied  { name_connect } for  pid=1 comm="nginx" dest=7311 scontext=system_u:system_r:httpd_t:s0`
		}, levelWarning, " — setsebool -P httpd_can_network_connect 1"},
		{"denial", func(f *facts) { f.machine.denial = "avc: denied { read }\x1b[2J" }, levelNote,
			`has denied something: avc: denied { read }\x1b[2J`},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := healthy()
			c.harm(f)
			out, err := shows(f)
			found := slices.ContainsFunc(strings.Split(out, "\n"), func(line string) bool {
				return strings.HasPrefix(line, "  "+levelNames[c.level]+" ") && strings.Contains(line, c.line)
			})
			if !found {
				t.Errorf("no %s with %q in\n%s", levelNames[c.level], c.line, out)
			}
			if (err != nil) != (strings.Contains(out, "\n  error ") || strings.Contains(out, "\n  warning ")) || err == nil && !strings.Contains(out, "Nothing to mend.") {
				t.Errorf("the error is %v after\n%s", err, out)
			}
		})
	}
}

// Of several files that set something the last one has to be changed.
func TestDoctorNamesTheFile(t *testing.T) {
	u := &unit{files: []unitFile{
		{"/usr/lib/systemd/system/wscast.service", "LimitNOFILE=1\n"}, {"/etc/a.conf", "LimitNOFILE=2\n"}, {"/etc/b.conf", "#LimitNOFILE=3\nLimitNOFILESoft=4\n"},
	}}
	if at := u.setIn("LimitNOFILE"); at != " in /etc/a.conf" {
		t.Errorf("it is set%s", at)
	}
	u.files = append(u.files, unitFile{"/etc/it's.conf", "  LimitNOFILE = 4\n"})
	if mend := u.restore("LimitNOFILE", "5"); !strings.Contains(mend, ` '/etc/it'\''s.conf' && systemctl daemon-reload`) {
		t.Errorf("the line is %s", mend)
	}
}

// What is wrong with one thing is said once: these have no other warning or error than their own.
func TestDoctorSaysItOnce(t *testing.T) {
	for name, harm := range map[string]func(*facts){
		"other mode":   func(f *facts) { f.socket.mode = fs.ModeSocket | 0o640 },
		"start limit":  set(serviceUnit, "StartLimitIntervalUSec", "10s"),
		"read timeout": site("proxy_read_timeout 60s", "proxy_read_timeout 10s"),
		"upgrade":      site("proxy_set_header Upgrade $http_upgrade;", ""),
	} {
		f := healthy()
		harm(f)
		out, err := shows(f)
		if err == nil || err.Error() != "1 error" && err.Error() != "1 warning" {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
}

// A machine of which nothing is known must not bring a check down.
func TestDoctorKnowsNothing(t *testing.T) {
	for _, f := range []*facts{
		{},
		{manager: manager{runs: true}, units: map[string]*unit{}},
		{manager: manager{runs: true}, units: map[string]*unit{serviceUnit: {}, clientsSocket: {}, publishSocket: {},
			nginxUnit: {}}},
		{nginx: nginxFacts{path: "/usr/sbin/nginx", config: []directive{}}, answer: answer{info: map[string]string{}}},
	} {
		if out, _ := shows(f); !strings.Contains(out, "\n  note ") {
			t.Errorf("nothing of what is not known is said:\n%s", out)
		}
	}
}

func TestDoctorCommand(t *testing.T) {
	d := startDaemon(t)
	d.mu.Lock()
	d.info = []ipc.Section{{Name: "Survival", Fields: []ipc.Field{{Key: "survival", Value: "off"},
		{Key: "survival_off_because", Value: "it is a test"}}}}
	d.mu.Unlock()
	r := wscast(t, "", "doctor", "--socket", d.socket, "--clients", "10")
	for _, line := range []string{
		"Publish socket\n  ok       " + d.socket + " is there: ",
		" may publish",
		"\n  ok       wscastd 1.2.3 answers: 0 clients, 1 publishers, up for 0s\n",
		"\n  note     wscastd is of version 1.2.3, and this tool of devel\n",
		"clients do not survive a restart: it is a test",
		"\nMachine\n",
	} {
		if !strings.Contains(r.stdout, line) {
			t.Errorf("standard output lacks %q", line)
		}
	}
	if (r.code == 0) != strings.HasSuffix(r.stdout, "\nNothing to mend.\n") || (r.code == 0) != (r.stderr == "") || r.code > 1 {
		t.Errorf("exit code %d, standard error %q", r.code, r.stderr)
	}
	if t.Failed() {
		t.Logf("standard output:\n%s", r.stdout)
	}
}

func TestDoctorWithoutDaemon(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "publish.sock")
	r := wscast(t, "", "doctor", "--socket", socket)
	if r.code != exitFailure || !strings.Contains(r.stdout, socket+" is not there") || !strings.Contains(r.stderr, " error") {
		t.Errorf("%+v", r)
	}
}

func TestDoctorTakesNoArguments(t *testing.T) {
	wscast(t, "", "doctor", "nginx").expect(t, exitUsage, "", `there is "nginx"`)
	wscast(t, "", "doctor", "--clients", "many").expect(t, exitUsage, "", "-clients")
}

// A terminal gets colours, and a file does not.
func TestDoctorColours(t *testing.T) {
	var b bytes.Buffer
	printArea(&b, "Area", []finding{wrong("mend it", "wrong")}, true)
	if want := "Area\n  \x1b[1;31merror  \x1b[m  wrong  — mend it\n\n"; b.String() != want {
		t.Errorf("%q, want %q", b.String(), want)
	}
	if out, _ := shows(healthy()); strings.Contains(out, "\x1b") {
		t.Errorf("colours without a terminal: %q", out)
	}
}

func TestDoctorAligns(t *testing.T) {
	var b bytes.Buffer
	printArea(&b, "Area", []finding{note("one", "short"), ok("in order, and much longer than any of the others"),
		warn("two", "longer"), warn("three", "%s", strings.Repeat("x", widestAligned+1))}, false)
	want := "Area\n  note     short   — one\n  ok       in order, and much longer than any of the others\n  warning  longer  — two\n  warning  " +
		strings.Repeat("x", widestAligned+1) + "  — three\n\n"
	if b.String() != want {
		t.Errorf("%s, want\n%s", b.String(), want)
	}
}

// What doctor takes for the defaults and the shipped values is held against them.
func TestDoctorKnowsTheDefaults(t *testing.T) {
	c := wscastd.Defaults()
	if d, _ := time.ParseDuration(defaultPing); d != time.Duration(c.WebSocket.Ping) || defaultPath != c.WebSocket.Path || !slices.Equal(c.WebSocket.Listen, []string{defaultListen}) {
		t.Errorf("the defaults of wscastd are others: %+v", c.WebSocket)
	}
	keys := append(wscastd.Keys(), "log.path")
	for _, key := range []string{"websocket.ping", "websocket.path", "websocket.origins", "websocket.listen"} {
		if !slices.Contains(keys, key) {
			t.Errorf("wscastd has no key %s", key)
		}
	}
	shipped := func(file, setting string) string {
		text, err := os.ReadFile(filepath.Join("../../systemd", file))
		if err != nil {
			t.Fatal(err)
		}
		found := regexp.MustCompile(`(?m)^` + setting + `=(.*)$`).FindSubmatch(text)
		if found == nil {
			t.Fatalf("%s has no %s=", file, setting)
		}
		return string(found[1])
	}
	for _, s := range []struct{ file, setting, want string }{
		{serviceUnit, "FileDescriptorStoreMax", strconv.Itoa(shippedStore)},
		{serviceUnit, "LimitNOFILE", strconv.Itoa(shippedFiles)},
		{serviceUnit, "StartLimitIntervalSec", "0"},
		{serviceUnit, "Restart", "always"},
		{clientsSocket, "Backlog", strconv.Itoa(leastBacklog)},
		{clientsSocket, "ListenStream", defaultListen},
	} {
		if got := shipped(s.file, s.setting); got != s.want {
			t.Errorf("%s has %s=%s, and doctor knows %s", s.file, s.setting, got, s.want)
		}
	}
}

func TestReadSettings(t *testing.T) {
	text, err := os.ReadFile("../../etc/wscast.toml")
	if err != nil {
		t.Fatal(err)
	}
	shipped := readSettings(string(text))
	for key, want := range map[string]string{"websocket.ping": defaultPing, "websocket.path": defaultPath, "websocket.origins": "[]", "websocket.listen": `["` + defaultListen + `"]`} {
		if shipped[key] != want {
			t.Errorf("%s of the shipped file is %q, want %q", key, shipped[key], want)
		}
	}
	got := readSettings("log.path = '/a#b' # c\n[ websocket ]\nping=\"1m\"\norigins = [ # two\n \"https://a\",\n]\n[[publish.allow]]\nusers = [\"mail\"]\n#ping = 1\n")
	for key, want := range map[string]string{"log.path": "/a#b", "websocket.ping": "1m", "websocket.origins": "[", "publish.allow.users": `["mail"]`} {
		if got[key] != want {
			t.Errorf("%s is %q, want %q", key, got[key], want)
		}
	}
}

func TestParseProperties(t *testing.T) {
	units := parseProperties("Id=a.socket\nListen=127.0.0.1:1 (Stream)\nListen=/run/a (Stream)\nDropInPaths=\n\nId=b.service\nExecStart={ path=/bin/b ; argv[]=/bin/b --config=/x ; ignore_errors=no ; }\n")
	if len(units) != 2 || !slices.Equal(units[0]["Listen"], []string{"127.0.0.1:1 (Stream)", "/run/a (Stream)"}) || units[1]["Id"][0] != "b.service" {
		t.Fatalf("%q", units)
	}
	if path := flagOf(commandLine(units[1]["ExecStart"][0]), "config"); path != "/x" {
		t.Errorf("the configuration is %q", path)
	}
	for _, args := range [][]string{{"b", "-config", "/y"}, {"b", "--config", "/x", "--config", "/y"}, {"b", "-config=/y", "--demo"}} {
		if path := flagOf(args, "config"); path != "/y" {
			t.Errorf("the configuration of %q is %q", args, path)
		}
	}
}

func TestReadProc(t *testing.T) {
	const sockets = "Num       RefCount Protocol Flags    Type St Inode Path\n" +
		"0000000000000000: 00000003 00000000 00000000 0001 03 1 /run/wscast/connected\n" +
		"0000000000000000: 00000002 00000000 00010000 0001 01 2 /run/with a blank\n" +
		"0000000000000000: 00000002 00000000 00010000 0001 01 3\n"
	for path, want := range map[string]bool{"/run/with a blank": true, "/run/wscast/connected": false, "": false} {
		if listensAt(sockets, path) != want {
			t.Errorf("%q listens: want %v", path, want)
		}
	}
	limits := "Limit                     Soft Limit           Hard Limit           Units     \nMax open files            1024                 524288               files     \n"
	if n := openFilesLimit(limits); n != 1024 {
		t.Errorf("the limit is %d", n)
	}
	if ids := statusField("Name:\tnginx\nGroups:\t33 44 \n", "Groups"); !slices.Equal(ids, []int{33, 44}) {
		t.Errorf("the groups are %d", ids)
	}
}

func FuzzDoctorReads(f *testing.F) {
	f.Add("Id=wscast.service\nExecStart={ argv[]=/x --config a ; }\n\nId=b")
	f.Add("[websocket]\nping = \"25s\"\n")
	f.Add("0: 2 0 00010000 1 1 2 /run/a\nMax open files 3")
	f.Fuzz(func(t *testing.T, text string) {
		for _, properties := range parseProperties(text) {
			u := &unit{properties: properties, files: []unitFile{{"x.conf", text}}}
			healthyWith := healthy()
			healthyWith.units[serviceUnit], healthyWith.units[clientsSocket] = u, u
			for _, value := range properties {
				flagOf(commandLine(value[0]), "config")
			}
			if out, _ := shows(healthyWith); strings.Contains(out, "\x1b") {
				t.Errorf("control characters are printed: %q", out)
			}
		}
		withConfig := healthy()
		withConfig.config.settings = readSettings(text)
		_, _ = shows(withConfig)
		listensAt(text, "/run/a")
		openFilesLimit(text)
		statusField(text, "Groups")
	})
}

// The man page names every area.
func TestManualNamesTheAreas(t *testing.T) {
	page, err := os.ReadFile("../../doc/wscast.1")
	if err != nil {
		t.Fatal(err)
	}
	for _, area := range areas {
		if !strings.Contains(string(page), "\n.It Sy "+area.name+"\n") {
			t.Errorf("wscast(1) does not tell what is looked at in %s", area.name)
		}
	}
}
