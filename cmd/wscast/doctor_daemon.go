package main

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"math/bits"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"wscast/ipc"
)

// restartDaemon disconnects nobody, where clients survive.
const restartDaemon = "systemctl restart " + serviceUnit

// restart is the line that starts wscastd anew, "" where it was started by hand.
func (f *facts) restart() string {
	if f.units[serviceUnit].installed() && !f.byHand() {
		return restartDaemon
	}
	return ""
}

func checkAnswer(f *facts) []finding {
	a := &f.answer
	var refused *ipc.ReplyError
	switch {
	case !a.asked:
		return []finding{note("", "wscastd is not up, and is not asked, which would start it")}
	case a.err == nil:
		return []finding{ok("wscastd %s answers: %d clients, %d publishers, up for %s", a.info["wscast_version"],
			a.number("connected_clients"), a.number("connected_publishers"), span(a.number("uptime_in_seconds")))}
	case !f.socket.there() || !f.socket.writable || !f.socket.listens:
		return []finding{note("", "wscastd cannot be asked: see Publish socket")}
	case a.late:
		return []finding{wrong(f.restart(), "wscastd does not answer in %v", answerPatience)}
	case errors.As(a.err, &refused):
		return []finding{wrong("", "wscastd refuses to answer: %v", refused)}
	}
	return []finding{wrong(f.restart(), "wscastd cannot be asked: %v", lastCause(a.err))}
}

func checkConfiguration(f *facts) []finding {
	c := &f.config
	switch {
	case c.path == "" && f.running.pid == 0 && !f.units[serviceUnit].installed():
		return nil // nothing is known of any wscastd
	case c.path == "":
		return []finding{ok("wscastd reads no configuration file: every key has its default")}
	case errors.Is(c.err, fs.ErrPermission):
		return []finding{note("wscastd --check --config "+quoted(c.path), "%s may not read %s", f.caller.name, c.path)}
	case c.checked && !c.good:
		return []finding{wrong("edit "+quoted(c.path)+", then: systemctl reload-or-restart "+serviceUnit,
			"the configuration cannot be used: %s", c.said)}
	case !c.checked:
		return []finding{note("", "there is no wscastd to check %s with", c.path)}
	}
	return []finding{ok("%s is good", c.path)}
}

// checkVersions: after an upgrade the process is an old one until it is restarted.
func checkVersions(f *facts) (findings []finding) {
	running := f.answer.info["wscast_version"]
	switch {
	case running == "":
		return nil
	case f.program.version != "" && f.program.version != running:
		findings = append(findings, warn(f.restart(), "wscastd %s runs, and %s is installed in %s", running,
			f.program.version, f.program.path))
	case running != version:
		findings = append(findings, note("", "wscastd is of version %s, and this tool of %s", running, version))
	}
	return findings
}

func checkSurvival(f *facts) (findings []finding) {
	a, service := &f.answer, f.units[serviceUnit]
	switch {
	case a.info == nil || a.info["survival"] == "":
		return nil
	case a.info["survival"] == "on":
		findings = append(findings, ok("clients survive a restart: %d connections in %d descriptors with systemd",
			a.number("parked"), a.number("stored_descriptors")))
	case service.installed() && !f.byHand():
		mend := restartDaemon
		for _, found := range checkStore(f) {
			if found.level > levelNote {
				mend = found.mend
			}
		}
		findings = append(findings, wrong(mend, "clients do not survive a restart: %s", a.info["survival_off_because"]))
	default:
		findings = append(findings, note("", "clients do not survive a restart: %s", a.info["survival_off_because"]))
	}
	if n := a.number("not_parked"); n > 0 {
		findings = append(findings, warn("journalctl -p warning -u "+serviceUnit,
			"%d times a connection could not be left with systemd, and will not survive a restart", n))
	}
	return findings
}

// reserve is descriptors for what is no client: publishers, the sockets, segments of the parking lot.
const reserve = 100

// checkFiles is about the limit of open files. It counts what wscastd has open, and once more what is in flight, which
// all clients are (unix(7), ETOOMANYREFS).
func checkFiles(f *facts) []finding {
	limit := f.running.openFiles
	if limit == 0 {
		if f.answer.info != nil {
			return []finding{note("", "the limit of open files of wscastd cannot be seen")}
		}
		return nil
	}
	service := f.units[serviceUnit]
	room := max(0, limit-reserve) / 2
	need := 2*f.clients() + reserve
	set := service.whereSet("LimitNOFILE")
	lowered := set != nil && strings.HasSuffix(set.path, ".conf") && limit < shippedFiles &&
		service.get("LimitNOFILESoft") == strconv.Itoa(limit)
	switch {
	case lowered:
		return []finding{warn(service.restore("LimitNOFILE", strconv.Itoa(shippedFiles)),
			"wscastd has room for %d clients: LimitNOFILE=%d in %s", room, limit, set.path)}
	case need > limit && f.byHand():
		return []finding{warn(fmt.Sprintf("ulimit -n %d", roundUp(need)),
			"wscastd has room for %d clients, and %d are needed: %d open files", room, f.clients(), limit)}
	case need > limit && need <= shippedFiles && service.get("LimitNOFILESoft") == strconv.Itoa(shippedFiles):
		return []finding{warn("raise the limit of the container or machine that this is",
			"wscastd has room for %d clients, and %d are needed: it gets %d open files", room, f.clients(), limit)}
	case need > limit:
		return []finding{warn(service.restore("LimitNOFILE", strconv.Itoa(max(shippedFiles, roundUp(need)))),
			"wscastd has room for %d clients, and %d are needed: LimitNOFILE=%d",
			room, f.clients(), limit)}
	}
	return []finding{ok("wscastd has room for %d clients: %d open files", room, limit)}
}

// roundUp is the power of two that is not below n.
func roundUp(n int) int { return 1 << bits.Len(uint(max(1, n)-1)) }

// shortLog is how far a full log has to reach back at least: a client that stands still for longer is slow.
const shortLog = 10 // seconds

func checkLog(f *facts) (findings []finding) {
	a := &f.answer
	if a.info["messages_kept"] == "" {
		return nil
	}
	if a.clockBehind {
		findings = append(findings, warn("timedatectl set-ntp true", "the clock is behind the messages in the log"))
	}
	findings = append(findings, f.checkOneLog("the log", "log.", a)...)
	for i := 0; ; i++ {
		line, there := a.info["log_own_"+strconv.Itoa(i)]
		if !there {
			break
		}
		own := answer{info: ownLog(line)}
		findings = append(findings, f.checkOneLog("the log of "+own.info["match"], fmt.Sprintf("log.own[%d].", i), &own)...)
	}
	if n := a.number("slow"); n > 0 {
		findings = append(findings, note("", "clients fell out of the log %d times, being slow", n))
	}
	return findings
}

// checkOneLog is about a log, and the section of the configuration that has its keys.
func (f *facts) checkOneLog(what, section string, a *answer) (findings []finding) {
	kept, age := a.number("messages_kept"), a.number("oldest_age_seconds")
	// A message that does not fit at the end of the ring goes to its beginning, so it is never full to the last byte.
	full := a.number("bytes_kept") >= a.number("bytes_limit")/4*3 || kept >= a.number("messages_limit")/8*7
	then := " in " + cmp.Or(f.config.path, "the configuration") + ", then: " + cmp.Or(f.restart(), "start wscastd again")
	switch {
	case full && age < shortLog && !f.answer.clockBehind:
		findings = append(findings, warn("raise "+section+"size"+then,
			"%s is full and reaches back %d s: a client that stands still for longer is slow", what, age))
	case kept == 0:
		findings = append(findings, ok("%s is empty", what))
	default:
		findings = append(findings, ok("%s has %d messages and reaches back %s", what, kept, span(age)))
	}
	channels, most := a.number("channels"), a.number("channels_limit")
	if most > 0 && channels >= most-most/10 {
		findings = append(findings, warn("raise "+section+"channels"+then,
			"%d of %d channels of %s are in use: clients and messages of more are refused", channels, most, what))
	}
	return findings
}

// ownLog takes a field log_own_N of INFO apart: the last one, match, can have commas in it.
func ownLog(line string) map[string]string {
	fields := make(map[string]string)
	for line != "" {
		key, rest, _ := strings.Cut(line, "=")
		if key == "match" {
			fields[key] = rest
			break
		}
		fields[key], line, _ = strings.Cut(rest, ",")
	}
	return fields
}

func checkLogFile(f *facts) []finding {
	path := f.config.settings["log.path"]
	l := &f.config.logFile
	switch {
	case path == "":
		return nil
	case l.err != nil:
		return []finding{note("", "the disk of %s cannot be looked at: %v", path, l.err)}
	case l.free < l.missing:
		return []finding{wrong("make room: df -h "+quoted(filepath.Dir(path)),
			"the disk of %s has %d MiB, and the log still needs %d MiB", path, l.free>>20, l.missing>>20)}
	}
	return []finding{ok("the disk of %s has room: %d MiB", path, l.free>>20)}
}

// span is a number of seconds as people say it.
func span(seconds int) string {
	if large := inLargeUnits("seconds", strconv.Itoa(seconds)); large != "" {
		return large
	}
	return (time.Duration(seconds) * time.Second).String()
}
