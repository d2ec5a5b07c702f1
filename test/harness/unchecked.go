package harness

import (
	"os/exec"
	"path/filepath"
	"testing"
)

// Unchecked has the daemon run from a program without the race detector, as it is installed: for tests of how much it takes.
func Unchecked(t testing.TB) Option {
	t.Helper()
	module, err := repository()
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(t.TempDir(), "wscastd")
	if out, err := exec.Command("go", "build", "-C", module, "-o", program, "./cmd/wscastd").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	return func(d *Daemon) { d.program = program }
}
