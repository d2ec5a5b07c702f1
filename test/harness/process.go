package harness

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// A process is a running child of the test.
type process struct {
	cmd  *exec.Cmd
	log  *output       // what it writes to standard output and standard error
	done chan struct{} // closed when it has ended and err is set
	err  error
}

// keeper starts every child from one thread that never ends: PR_SET_PDEATHSIG, which ends the children when
// the test is killed or panics on its timeout, goes by the thread that forked, not the process (prctl(2)).
type keeper struct {
	once  sync.Once
	calls chan func()
}

var starter = keeper{calls: make(chan func())}

func (k *keeper) start(cmd *exec.Cmd) (err error) {
	k.once.Do(func() { go k.run() })
	done := make(chan struct{})
	k.calls <- func() {
		err = cmd.Start()
		close(done)
	}
	<-done
	return err
}

func (k *keeper) run() {
	runtime.LockOSThread()
	for call := range k.calls {
		call()
	}
}

// startProcess starts cmd in a process group of its own; death is what it is sent when the test process dies.
func startProcess(cmd *exec.Cmd, death syscall.Signal) (*process, error) {
	p := &process{cmd: cmd, log: &output{}, done: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = p.log, p.log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: death}
	// A grandchild that keeps our pipe must not make Wait hang.
	cmd.WaitDelay = 2 * time.Second
	if err := starter.start(cmd); err != nil {
		return nil, err
	}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// stop sends sig, waits until the process has ended, and returns how: nil is exit code 0 and nobody left behind. What is
// left of its group is killed.
func (p *process) stop(sig syscall.Signal, patience time.Duration) error {
	var errs []error
	select {
	case <-p.done:
		errs = append(errs, errors.New("it had ended by itself"))
	default:
		p.cmd.Process.Signal(sig)
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-p.done:
		// Killing is how this ends, if that was asked for.
		if state := p.cmd.ProcessState; sig != syscall.SIGKILL || state.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
			errs = append(errs, p.err)
		}
	case <-timer.C:
		errs = append(errs, fmt.Errorf("still running %v after %v", patience, sig))
		p.cmd.Process.Kill()
		<-p.done
	}
	if syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL) == nil && sig != syscall.SIGKILL {
		errs = append(errs, errors.New("it left a child process running"))
	}
	return errors.Join(errs...)
}

// awaitLog returns when has is true of what the process has written, and fails the test with the log when that does
// not happen. what is what it waits for.
func (p *process) awaitLog(t testing.TB, what string, has func(log string) bool) {
	t.Helper()
	timer := time.NewTimer(Patience)
	defer timer.Stop()
	for ended := false; ; {
		text, changed := p.log.look()
		switch {
		case has(text):
			return
		case ended:
			t.Fatalf("%s ended (%v) before its log showed %s:\n%s", p.cmd.Path, p.err, what, text)
		}
		select {
		case <-changed:
		case <-p.done:
			ended = true
		case <-timer.C:
			t.Fatalf("the log does not show %s after %v:\n%s", what, Patience, text)
		}
	}
}

// output collects what a process writes. Safe for concurrent use.
type output struct {
	mu      sync.Mutex
	text    bytes.Buffer
	changed chan struct{} // closed by the next Write; nil when nobody waits
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.changed != nil {
		close(o.changed)
		o.changed = nil
	}
	return o.text.Write(b)
}

// look returns what has been written, and a channel that is closed when there is more.
func (o *output) look() (text string, changed <-chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.changed == nil {
		o.changed = make(chan struct{})
	}
	return o.text.String(), o.changed
}

func (o *output) String() string {
	text, _ := o.look()
	return text
}

// Run runs a program to its end and returns what it wrote to standard output. It fails the test when the program does not
// end with code 0.
func Run(t testing.TB, program string, args ...string) string {
	t.Helper()
	return RunInput(t, nil, program, args...)
}

// RunInput is [Run] with standard input.
func RunInput(t testing.TB, input io.Reader, program string, args ...string) string {
	t.Helper()
	cmd := exec.Command(program, args...)
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = input, &out, &errs
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = 2 * time.Second
	err := starter.start(cmd)
	if err == nil {
		timer := time.AfterFunc(Patience, func() { cmd.Process.Kill() })
		err = cmd.Wait()
		if !timer.Stop() {
			err = fmt.Errorf("killed after %v: %w", Patience, err)
		}
	}
	if err != nil {
		t.Fatalf("%s %s: %v\n%s%s", program, strings.Join(args, " "), err, out.String(), errs.String())
	}
	return out.String()
}
