package main

import (
	"cmp"
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

const (
	// leastSystemd is the first version with all that the descriptor store needs: FDPOLL=0 and BARRIER=1 of
	// sd_notify(3).
	leastSystemd = 246
	// shippedStore and shippedFiles are FileDescriptorStoreMax= and LimitNOFILE= of the shipped unit.
	shippedStore = 256
	shippedFiles = 524288

	// configurationExit is how wscastd ends when it cannot use its configuration.
	configurationExit = "78"
)

func checkManager(f *facts) []finding {
	switch {
	case !f.manager.runs:
		return []finding{note("", "systemd does not run here: clients do not survive a restart of wscastd")}
	case f.units == nil:
		return []finding{note("systemctl status", "systemd cannot be asked about the units: %s", f.manager.err)}
	}
	version, err := strconv.Atoi(regexp.MustCompile(`^\d*`).FindString(f.manager.version))
	switch {
	case err != nil:
		return []finding{note("systemctl --version", "the version of systemd is not known; %d or later is needed",
			leastSystemd)}
	case version < leastSystemd:
		return []finding{wrong("", "systemd %d cannot keep the clients over a restart: %d or later is needed", version,
			leastSystemd)}
	}
	return []finding{ok("systemd %s", f.manager.version)}
}

// byHand tells whether a wscastd answers that is not the one of the service.
func (f *facts) byHand() bool {
	known := f.units != nil || !f.manager.runs
	return f.answer.info != nil && known && f.answer.info["process_id"] != f.units[serviceUnit].get("MainPID")
}

func checkSocketUnits(f *facts) (findings []finding) {
	if f.units == nil {
		return nil
	}
	service := f.units[serviceUnit]
	if !service.installed() && f.byHand() {
		return []finding{note("",
			"the units are not installed, and wscastd was started by hand: clients do not survive a restart of it")}
	}
	for _, name := range []string{clientsSocket, publishSocket} {
		u := f.units[name]
		if !u.installed() {
			findings = append(findings,
				wrong("install the package wscast, or in the sources: make install PREFIX=/usr", "%s is not installed",
					name))
			continue
		}
		if found, bad := checkUnitFile(name, u); bad {
			findings = append(findings, found)
			continue
		}
		if u.get("ActiveState") != "active" {
			start := "systemctl start " + name
			// systemd refuses to start a socket whose service runs.
			if service.get("ActiveState") == "active" {
				start = "systemctl restart " + name + " " + serviceUnit
			}
			if u.get("ActiveState") == "failed" {
				start += " || journalctl -n 20 -u " + name
			}
			findings = append(findings, wrong(start, "%s does not listen: it is %s", name, state(u)))
			continue
		}
		findings = append(findings, ok("%s listens on %s", name, strings.Join(f.listens(name), " ")))
		if enabled := u.get("UnitFileState"); enabled == "disabled" {
			findings = append(findings, warn("systemctl enable "+name,
				"%s is not enabled: after a reboot it does not listen", name))
		}
	}
	return findings
}

// listens are the addresses of a socket unit. systemctl shows them as "127.0.0.1:7311 (Stream)".
func (f *facts) listens(name string) (addresses []string) {
	u := f.units[name]
	if u == nil {
		return nil
	}
	for _, value := range u.properties["Listen"] {
		if address, isStream := strings.CutSuffix(value, " (Stream)"); isStream {
			addresses = append(addresses, address)
		}
	}
	return addresses
}

// state is a unit's state in systemd's words.
func state(u *unit) string {
	text := cmp.Or(u.get("ActiveState"), "unknown")
	if sub := u.get("SubState"); sub != "" && sub != text {
		text += " (" + sub + ")"
	}
	if result := u.get("Result"); result != "" && result != "success" {
		text += ", result " + result
	}
	return text
}

// checkUnitFile is about any unit that is there. bad: nothing else can be said of it.
func checkUnitFile(name string, u *unit) (found finding, bad bool) {
	switch {
	case u.get("LoadState") == "masked" || strings.HasPrefix(u.get("UnitFileState"), "masked"):
		return wrong("systemctl unmask "+name, "%s is masked, so it cannot be started", name), true
	case u.get("LoadState") != "loaded":
		return wrong("systemd-analyze verify "+name, "systemd cannot load %s: it is %s", name, u.get("LoadState")), true
	}
	return found, false
}

func checkService(f *facts) (findings []finding) {
	u := f.units[serviceUnit]
	switch {
	case f.units == nil || !u.installed() && f.byHand():
		return nil
	case !u.installed():
		return []finding{wrong("install the package wscast, or in the sources: make install PREFIX=/usr",
			"%s is not installed", serviceUnit)}
	}
	found, bad := checkUnitFile(serviceUnit, u)
	switch {
	case bad:
		findings = append(findings, found)
	case u.get("ActiveState") == "active":
		findings = append(findings, ok("%s is active", serviceUnit))
	case u.get("ActiveState") == "inactive" && f.byHand():
		findings = append(findings, note("",
			"%s does not run, and a wscastd that was started by hand answers: clients do not survive a restart of it",
			serviceUnit))
	case u.get("ActiveState") == "inactive":
		findings = append(findings, note("systemctl start "+serviceUnit,
			"%s does not run; the first connection starts it", serviceUnit))
	case u.get("ActiveState") == "reloading", u.get("SubState") == "start":
		findings = append(findings, note("", "%s is %s", serviceUnit, state(u)))
	case u.get("ExecMainStatus") == configurationExit:
		findings = append(findings, wrong("wscastd --check --config "+cmp.Or(f.config.path, "FILE"),
			"%s does not start: its configuration cannot be used", serviceUnit))
	default:
		findings = append(findings, wrong("journalctl -n 20 -u "+serviceUnit,
			"%s does not stay up: it is %s, exit code %s",
			serviceUnit, state(u), cmp.Or(u.get("ExecMainStatus"), "unknown")))
	}
	if n := u.get("NRestarts"); n != "" && n != "0" {
		findings = append(findings, note("journalctl -p err -u "+serviceUnit,
			"wscastd has ended by itself %s times since it was started", n))
	}
	for _, name := range unitNames {
		if name != nginxUnit && f.units[name].get("NeedDaemonReload") == "yes" {
			findings = append(findings, warn("systemctl daemon-reload", "systemd has not read what was changed in %s",
				name))
		}
	}
	return findings
}

// checkStore is about the room for descriptors, without which no client survives.
func checkStore(f *facts) []finding {
	u := f.units[serviceUnit]
	room, err := strconv.Atoi(u.get("FileDescriptorStoreMax"))
	if err != nil {
		return nil
	}
	switch {
	case room == 0:
		return []finding{wrong(u.restore("FileDescriptorStoreMax", strconv.Itoa(shippedStore)),
			"clients do not survive a restart: FileDescriptorStoreMax=0%s",
			u.setIn("FileDescriptorStoreMax"))}
	case room < shippedStore:
		return []finding{warn(u.restore("FileDescriptorStoreMax", strconv.Itoa(shippedStore)),
			"FileDescriptorStoreMax=%d%s is less than the %d of the unit as shipped",
			room, u.setIn("FileDescriptorStoreMax"), shippedStore)}
	}
	return []finding{ok("systemd keeps up to %d descriptors of wscastd", room)}
}

// checkStarts is about what makes systemd give a service up, and with it all that it keeps for it.
func checkStarts(f *facts) (findings []finding) {
	u := f.units[serviceUnit]
	if interval := u.get("StartLimitIntervalUSec"); interval != "" && interval != "0" {
		findings = append(findings, warn(u.restore("StartLimitIntervalSec", "0"),
			"crashes in a row would end all connections: StartLimitIntervalSec=%s%s",
			interval, u.setIn("StartLimitIntervalSec")))
	}
	if restart := u.get("Restart"); restart != "" && restart != "always" {
		findings = append(findings, warn(u.restore("Restart", "always"),
			"a crash may end all connections: Restart=%s%s", restart, u.setIn("Restart")))
	}
	if u.installed() && u.get("StartLimitIntervalUSec") != "" && len(findings) == 0 {
		findings = append(findings, ok("systemd starts wscastd again however often it ends"))
	}
	return findings
}

// whereSet is the file of a unit in which a setting has its value, the last one that sets it; nil where none can be
// seen that does.
func (u *unit) whereSet(setting string) *unitFile {
	if u == nil {
		return nil
	}
	line := regexp.MustCompile(`(?m)^[ \t]*` + setting + `[ \t]*=`)
	for i := len(u.files) - 1; i >= 0; i-- {
		if line.MatchString(u.files[i].text) {
			return &u.files[i]
		}
	}
	return nil
}

// setIn is " in FILE" for a setting whose file is known.
func (u *unit) setIn(setting string) string {
	if file := u.whereSet(setting); file != nil {
		return " in " + file.path
	}
	return ""
}

// restore is the line that brings a setting back to the shipped value: what has changed it is removed when that is a
// drop-in, and otherwise overruled by one.
func (u *unit) restore(setting, value string) string {
	const force = " && systemctl daemon-reload && systemctl restart " + serviceUnit
	if file := u.whereSet(setting); file != nil && strings.HasSuffix(file.path, ".conf") {
		return fmt.Sprintf(`sed -i '/^[[:space:]]*%s[[:space:]]*=/d' %s`, setting, quoted(file.path)) + force
	}
	section := "Service"
	if setting == "StartLimitIntervalSec" {
		section = "Unit"
	}
	dir := "/etc/systemd/system/" + serviceUnit + ".d"
	return fmt.Sprintf(`mkdir -p %s && printf '[%s]\n%s=%s\n' >%s/zz-%s.conf`, dir, section, setting, value, dir,
		strings.ToLower(setting)) + force
}

// quoted is a word for the shell.
func quoted(word string) string {
	if word != "" && !regexp.MustCompile(`[^\w@%+=:,./-]`).MatchString(word) {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}
