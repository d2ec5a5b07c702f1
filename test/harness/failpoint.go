package harness

import (
	"os"
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

// StartDoomed starts a process that kills itself at the nth pass of a failpoint. It returns a channel that is closed when it has: at once, when that was
// before it became ready.
func (d *Daemon) StartDoomed(point string, n int) (dead <-chan struct{}) {
	d.t.Helper()
	const variable = "WSCAST_FAILPOINT" // survive.FailpointVariable
	os.Setenv(variable, point+" "+strconv.Itoa(n))
	defer os.Unsetenv(variable)
	if err := d.start(); err == nil {
		return d.process.done
	} else if d.failed.cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		d.t.Fatal(err)
	}
	return d.failed.done
}

// Bury is for a process that has killed itself.
func (d *Daemon) Bury() {
	if d.process != nil {
		_ = d.process.stop(syscall.SIGKILL, stopPatience)
		d.process = nil
	}
}
