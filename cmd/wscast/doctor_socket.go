package main

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"
)

// The publish socket: is it there, as the unit has it, and may the caller use it.

// unitOfSocket is the unit that makes the publish socket, nil when it is not systemd that does.
func (f *facts) unitOfSocket() *unit {
	if slices.Contains(f.listens(publishSocket), f.socket.path) {
		return f.units[publishSocket]
	}
	return nil
}

func checkSocketFile(f *facts) []finding {
	s := &f.socket
	start := "is this its path? wscastd --publish " + quoted(s.path)
	if f.unitOfSocket() != nil {
		start = "systemctl restart " + publishSocket + " " + serviceUnit
	} else if f.units[publishSocket].installed() {
		start = fmt.Sprintf("is this its path? systemctl show --property=Listen %s", publishSocket)
	}
	switch {
	case s.blocked != "":
		return []finding{wrong("chmod a+x "+quoted(s.blocked), "%s may not pass the directory %s", f.caller.name,
			s.blocked)}
	case errors.Is(s.err, fs.ErrNotExist):
		return []finding{wrong(start, "%s is not there", s.path)}
	case s.err != nil:
		return []finding{wrong("ls -l "+quoted(s.path), "%s cannot be looked at: %v", s.path, s.err)}
	case s.mode&fs.ModeSocket == 0:
		return []finding{wrong("rm "+quoted(s.path)+" && "+start, "%s is not a socket", s.path)}
	case !s.listens:
		return []finding{wrong(start, "nobody listens on %s", s.path)}
	}
	return []finding{ok("%s is there: %s:%s, %#o", s.path, s.owner, s.group, s.mode.Perm())}
}

// there tells whether the socket file is there to be judged further.
func (s *socketFile) there() bool {
	return s.path != "" && s.err == nil && s.blocked == "" && s.mode&fs.ModeSocket != 0
}

func checkSocketMode(f *facts) (findings []finding) {
	s := &f.socket
	if !s.there() {
		return nil
	}
	u := f.unitOfSocket()
	if mode, err := strconv.ParseUint(u.get("SocketMode"), 8, 32); err == nil && fs.FileMode(mode).Perm() != s.mode.Perm() {
		findings = append(findings, warn(fmt.Sprintf("chmod %#o %s", mode, quoted(s.path)),
			"the mode of %s is %#o, and %#o in %s", s.path, s.mode.Perm(), mode, publishSocket))
	} else if s.mode.Perm()&0o002 != 0 {
		findings = append(findings, note("", "every user of this machine may publish"))
	}
	for _, is := range []struct{ what, property, got, chown string }{
		{"owner", "SocketUser", s.owner, ""},
		{"group", "SocketGroup", s.group, ":"},
	} {
		if want := u.get(is.property); want != "" && want != is.got {
			findings = append(findings, warn("chown "+is.chown+want+" "+quoted(s.path),
				"the %s of %s is %s, and %s in %s", is.what, s.path, is.got, want, publishSocket))
		}
	}
	return findings
}

// checkRules: more than the socket decides when there are rules.
func checkRules(f *facts) []finding {
	for key := range f.config.settings {
		if strings.HasPrefix(key, "publish.allow.") {
			return []finding{note("", "[[publish.allow]] in %s says on which channels", f.config.path)}
		}
	}
	return nil
}

// checkCaller: may the one who asks publish.
func checkCaller(f *facts) []finding {
	s, c := &f.socket, &f.caller
	switch {
	case !s.there():
		return nil
	case s.writable && c.uid == 0:
		return []finding{ok("root may publish; whether another user may, that user has to ask")}
	case s.writable:
		return []finding{ok("%s may publish", c.name)}
	case s.mode.Perm()&0o020 == 0:
		return []finding{wrong(fmt.Sprintf("chmod g+rw %s", quoted(s.path)),
			"%s may not publish, and the group %s may not either", c.name, s.group)}
	case slices.Contains(c.groups, s.gid):
		return []finding{wrong("ls -l "+quoted(s.path),
			"%s is in the group %s, and may not publish all the same: something else forbids it", c.name, s.group)}
	case slices.Contains(c.registered, s.gid):
		return []finding{wrong("log in again, or: newgrp "+quoted(s.group),
			"%s may not publish yet: this session is older than the membership in the group %s", c.name, s.group)}
	}
	return []finding{wrong(fmt.Sprintf("usermod -aG %s %s", quoted(s.group), quoted(c.name)),
		"%s may not publish, not being in the group %s (then log in again)", c.name, s.group)}
}
