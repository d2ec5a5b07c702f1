package harness

import (
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// A Running is a program that a test talks to while it runs, for instance a subscriber. It is killed when the test ends.
// Used by one goroutine.
type Running struct {
	t       testing.TB
	process *process
	input   *os.File
}

// Launch starts a program and returns at once. Its standard input stays open until [Running.CloseInput].
func Launch(t testing.TB, program string, args ...string) *Running {
	t.Helper()
	cmd := exec.Command(program, args...)
	// A pipe of files: with any other reader, Wait would wait for the input as well.
	theirs, ours, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdin = theirs
	p, err := startProcess(cmd, syscall.SIGKILL)
	theirs.Close()
	if err != nil {
		ours.Close()
		t.Fatal(err)
	}
	r := &Running{t: t, process: p, input: ours}
	t.Cleanup(func() {
		p.stop(syscall.SIGKILL, stopPatience)
		ours.Close()
	})
	return r
}

// Send writes to its standard input.
func (r *Running) Send(text string) {
	r.t.Helper()
	if _, err := io.WriteString(r.input, text); err != nil {
		r.t.Fatal(err)
	}
}

// CloseInput ends its standard input.
func (r *Running) CloseInput() { r.input.Close() }

// Await returns when it has written text, to standard output or standard error.
func (r *Running) Await(text string) {
	r.t.Helper()
	r.process.awaitLog(r.t, text, func(log string) bool { return strings.Contains(log, text) })
}

// Signal sends it a signal.
func (r *Running) Signal(sig syscall.Signal) {
	r.t.Helper()
	if err := r.process.cmd.Process.Signal(sig); err != nil {
		r.t.Fatal(err)
	}
}

// Wait waits for its end and returns its exit code, -1 when a signal ended it, and what it wrote.
func (r *Running) Wait() (code int, output string) {
	r.t.Helper()
	r.process.awaitLog(r.t, "its end", func(string) bool {
		select {
		case <-r.process.done:
			return true
		default:
			return false
		}
	})
	return r.process.cmd.ProcessState.ExitCode(), r.process.log.String()
}
