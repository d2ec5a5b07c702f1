package booted

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"wscast/test/harness"
)

// Disk keeps what the machine writes on the host's disk instead of in memory, so that it can be switched off and boot
// again with it.
func Disk() Option {
	return func(m *Machine) {
		m.disk = filepath.Join(m.dir, "disk")
		if err := os.Mkdir(m.disk, 0o755); err != nil {
			m.t.Fatal(err)
		}
	}
}

// Reboot shuts the machine down in good order and boots it again.
func (m *Machine) Reboot() {
	m.t.Helper()
	m.again("systemctl", "poweroff")
}

// CutPower ends the machine at once, with no process asked, and boots it again. What it has written is with the host's
// kernel: nothing of that is lost.
func (m *Machine) CutPower() {
	m.t.Helper()
	m.again("")
}

func (m *Machine) again(off ...string) {
	m.t.Helper()
	if m.disk == "" {
		m.t.Fatal("a machine without a disk has nothing to boot again with: see booted.Disk")
	}
	if off[0] != "" {
		m.Try(off...) // may be killed by what it does
	} else if err := syscall.Kill(m.leader, syscall.SIGKILL); err != nil { // and the kernel all others (pid_namespaces(7))
		m.t.Fatal(err)
	}
	select {
	case <-m.ended:
	case <-time.After(harness.Patience):
		m.t.Fatalf("the machine is not off after %v\n%s", harness.Patience, m.printed())
	}
	m.leader, m.heard = 0, map[string]string{}
	m.name = fmt.Sprintf("wscast-%d-%d", os.Getpid(), machines.Add(1)) // its control group is its own
	m.boot()
}
