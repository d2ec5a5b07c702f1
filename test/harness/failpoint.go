package harness

import (
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
)

// Failpoints has the daemon run from a program built with the tag failpoints, see [Daemon.StartDoomed].
func Failpoints(t testing.TB) Option {
	t.Helper()
	module, err := repository()
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(t.TempDir(), "wscastd")
	if out, err := exec.Command("go", "build", "-C", module, "-tags", "failpoints", "-o", program, "./cmd/wscastd").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return func(d *Daemon) { d.program = program }
}

// StartDoomed starts a process that kills itself at the nth pass of a failpoint (package failpoint). It returns a channel that is closed when the process
// has ended: at once, when that was before it became ready.
func (d *Daemon) StartDoomed(point string, n int) (dead <-chan struct{}) {
	d.t.Helper()
	d.doom = "WSCAST_FAILPOINT=" + point + " " + strconv.Itoa(n) // failpoint.Variable
	defer func() { d.doom = "" }()
	if err := d.start(); err == nil {
		return d.process.done
	} else if !killed(d.failed) {
		d.t.Fatal(err)
	}
	return d.failed.done
}

// EndDoomed ends a process of StartDoomed with SIGTERM, unless it is dead, and tells whether it has killed itself, be it then.
func (d *Daemon) EndDoomed() (itself bool) {
	d.t.Helper()
	p := d.process
	if p == nil {
		return true
	}
	d.process = nil
	err := p.stop(syscall.SIGTERM, stopPatience)
	if killed(p) {
		return true
	}
	if err != nil {
		d.t.Fatalf("%v\n%s", err, p.log)
	}
	return false
}

// Bury kills a process of StartDoomed, unless it is dead.
func (d *Daemon) Bury() {
	if d.process != nil {
		_ = d.process.stop(syscall.SIGKILL, stopPatience)
		d.process = nil
	}
}

func killed(p *process) bool {
	return p.cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL
}
