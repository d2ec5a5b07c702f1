package booted

import (
	"os"
	"path/filepath"
)

// mmdebstrapBare is the command that makes the root of machines without wscast. What is installed there by the test is
// installed whole, documentation included, so what keeps dpkg from it while the root is made is removed. Debian's apt
// and rpm need no network for packages that are given as files.
var mmdebstrapBare = []string{
	"mmdebstrap", "--variant=apt", "--include=systemd,dbus,passwd,nginx,rpm",
	"--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/locale/*",
	`--customize-hook=rm "$1/etc/dpkg/dpkg.cfg.d/99mmdebstrap"`,
	"bookworm",
}

// notThere is the exit code of systemctl for a unit that is not loaded (systemctl(1)).
const notThere = 5

// Bare boots a Debian without wscast, in which packages of it can be installed: apt, dpkg, rpm and nginx are there.
// Nginx does not run, as its port is the host's, unless [OwnNetwork] follows. alice and mallory are users like any
// other. A drop-in gives wscast.socket the machine's address once there is such a unit.
func Bare() Option {
	return func(m *Machine) {
		m.bare, m.enabled = true, nil
		m.file("usr/lib/sysusers.d/test.conf", "u alice -\nu mallory -\n")
		m.link(filepath.Join("etc/systemd/system", nginxUnit), "/dev/null")
	}
}

const nginxUnit = "nginx.service"

// OwnNetwork gives the machine a loopback interface of its own, where all ports are free. wscast.socket has the address
// that it is shipped with, and clients have to run in the machine.
func OwnNetwork() Option {
	return func(m *Machine) {
		m.network = "--private-network"
		for _, name := range []string{nginxUnit, "wscast.socket.d"} {
			if err := os.RemoveAll(filepath.Join(m.files, "etc/systemd/system", name)); err != nil {
				m.t.Fatal(err)
			}
		}
	}
}
