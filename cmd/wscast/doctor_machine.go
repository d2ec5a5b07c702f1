package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// checkPorts: a connection of nginx to an address takes a port of the range, and one to a Unix socket takes none. Ports
// of closed connections are no matter: those of clients live long.
func checkPorts(f *facts) []finding {
	if f.machine.ports[1] == 0 {
		return nil
	}
	addresses := f.clientAddresses()
	if f.nginx.config != nil {
		var used []string
		upstreams := upstreams(f.nginx.config)
		for _, r := range routes(f.nginx.config) {
			_, to := r.target(upstreams)
			for _, a := range to {
				leads := slices.ContainsFunc(addresses, func(l string) bool { return reaches(a, l) })
				if leads && !slices.Contains(used, a) {
					used = append(used, a)
				}
			}
		}
		if len(used) > 0 {
			addresses = used
		}
	}
	if slices.ContainsFunc(addresses, func(a string) bool { return strings.HasPrefix(a, "/") }) {
		return []finding{ok("clients come through a Unix socket, which takes no ports")}
	}
	each := f.machine.ports[1] - f.machine.ports[0] + 1
	room, need := each*len(addresses), f.clients()
	if room < need {
		return []finding{warn("another ListenStream=, such as 127.0.0.2:7311, in "+clientsSocket+" and as server in upstream { }, or a Unix socket: wscastd(8)",
			"there are ports for %d clients, and %d are needed: %d to each of %s", room, need, each,
			strings.Join(addresses, " "))}
	}
	return []finding{ok("there are ports for %d clients: %d to each of %s", room, each, strings.Join(addresses, " "))}
}

// checkBacklog: the kernel makes the queue of a socket no longer than somaxconn (listen(2)).
func checkBacklog(f *facts) []finding {
	backlog, err := strconv.Atoi(f.units[clientsSocket].get("Backlog"))
	if err != nil || f.machine.somaxconn == 0 || !f.units[clientsSocket].installed() {
		return nil
	}
	// Without Backlog= systemd has the largest number there is, and leaves it to the kernel.
	if f.machine.somaxconn < min(backlog, leastBacklog) {
		command := fmt.Sprintf("sysctl -w net.core.somaxconn=%d, also in /etc/sysctl.d, and once: systemctl restart %s %s", leastBacklog, clientsSocket, serviceUnit)
		return []finding{warn(command,
			"%d clients at once may wait to be taken, and %s asks for %d: net.core.somaxconn", f.machine.somaxconn,
			clientsSocket, backlog)}
	}
	return []finding{ok("%d clients at once may wait to be taken", min(backlog, f.machine.somaxconn))}
}

// leastBacklog is Backlog= of the shipped unit, and the kernel's default for somaxconn.
const leastBacklog = 4096

func checkClock(f *facts) []finding {
	switch {
	case f.machine.clockUnknown:
		return []finding{note("timedatectl", "whether the clock is right cannot be seen here")}
	case f.machine.unsynced:
		return []finding{note("timedatectl set-ntp true",
			"nothing keeps the clock right; it dates the messages in the log")}
	}
	return []finding{ok("the clock is kept right")}
}

// checkDenials speaks only when a security module has denied something.
func checkDenials(f *facts) []finding {
	denial := f.machine.denial
	switch {
	case denial == "":
		return nil
	case strings.Contains(denial, `comm="nginx"`):
		return []finding{warn("setsebool -P httpd_can_network_connect 1", "SELinux does not let nginx connect: %s",
			denial)}
	}
	return []finding{note("journalctl -b _TRANSPORT=audit + _TRANSPORT=kernel",
		"a security module has denied something: %s", denial)}
}
