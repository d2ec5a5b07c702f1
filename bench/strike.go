package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// A strike is what happens to a server while its clients are observed.
type strike string

const (
	restarted strike = "restart"
	killed    strike = "kill -9"
)

// pauseBeforeRestart is how long after a crash a server that has no systemd here is started again: what
// RestartSec= is where a unit says nothing, as those of the others do.
const pauseBeforeRestart = 100 * time.Millisecond

// A patient is a server that is restarted and killed.
type patient interface {
	complete(plan) (plan, error)
	// restart returns when the server is there again.
	restart(ctx context.Context) error
	// killMain has it killed, and returns when it may have been noticed. What is returned has
	// to be called before, so that finding out whom to kill is not measured.
	killMain(ctx context.Context) (func() error, error)
	// manager is the process that looks after it, 0 for none.
	manager() int
	// last adds how the last start went.
	last(f figures) error
	stop()
}

// observe strikes a server so often, and returns what its clients noticed each time.
func observe(ctx context.Context, p patient, plan plan, s strike, times int) (all []figures, err error) {
	plan, err = p.complete(plan)
	if err != nil {
		return nil, err
	}
	l, err := startLoad(ctx, plan)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, l.end()) }()
	var o observed
	if err := l.answer(&o); err != nil {
		return nil, err
	}
	for range times {
		f, err := strikeOnce(ctx, p, l, s)
		if err != nil {
			return nil, err
		}
		all = append(all, f)
	}
	return all, nil
}

func strikeOnce(ctx context.Context, p patient, l *loader, s strike) (figures, error) {
	kill := func() error { return p.restart(ctx) }
	if s == killed {
		var err error
		if kill, err = p.killMain(ctx); err != nil {
			return nil, err
		}
	}
	var o observed
	if err := l.tell(mark, &o); err != nil {
		return nil, err
	}
	var before time.Duration
	var err error
	if p.manager() != 0 {
		if before, err = cpuTime(p.manager()); err != nil {
			return nil, err
		}
	}
	if err := kill(); err != nil {
		return nil, err
	}
	if err := l.tell(report, &o); err != nil {
		return nil, err
	}
	if p.manager() != 0 {
		after, err := cpuTime(p.manager())
		if err != nil {
			return nil, err
		}
		o.Figures[managerCPU] = micros(after-before) / 1e3
	}
	return o.Figures, p.last(o.Figures)
}

// tell gives a command and reads the answer.
func (l *loader) tell(command byte, to *observed) error {
	if _, err := l.in.Write([]byte{command}); err != nil {
		return err
	}
	return l.answer(to)
}

// A server that the bench has started itself is restarted as its unit would have it: nginx is
// asked to leave (SIGQUIT) and has five seconds, as in Debian's unit; the hub gets SIGTERM.

func (r *running) restart(ctx context.Context) error {
	if r.name == nchanOne || r.name == nchanTwo {
		r.end(syscall.SIGQUIT, quit)
	} else {
		r.stop()
	}
	return r.start(ctx)
}

func (r *running) killMain(ctx context.Context) (func() error, error) {
	return func() error {
		r.kill()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pauseBeforeRestart):
			return r.start(ctx)
		}
	}, nil
}

func (r *running) manager() int       { return 0 }
func (r *running) last(figures) error { return nil }

// A machine is a booted systemd with wscast in it (test/booted/boot).
type machine struct {
	command *exec.Cmd
	in      io.WriteCloser
	out     *json.Decoder
	said    bytes.Buffer

	Address, Publish string
	PID1             int
}

// bootMachine boots one. The program is made in dir.
func bootMachine(ctx context.Context, dir string) (*machine, error) {
	root, err := output(exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "wscast"))
	if err != nil {
		return nil, err
	}
	tests, program := filepath.Join(strings.TrimSpace(root), "test"), filepath.Join(dir, "boot")
	if _, err := output(exec.CommandContext(ctx, "go", "build", "-C", tests, "-o", program, "./booted/boot")); err != nil {
		return nil, err
	}
	m := &machine{command: exec.CommandContext(ctx, program)}
	m.command.Dir = tests
	m.command.Stderr = &m.said
	m.command.Cancel = func() error { return m.command.Process.Signal(syscall.SIGTERM) }
	if m.in, err = m.command.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := m.command.StdoutPipe()
	if err != nil {
		return nil, err
	}
	m.out = json.NewDecoder(out)
	if err := m.command.Start(); err != nil {
		return nil, err
	}
	return m, m.answer(m)
}

// answer reads what it says next.
func (m *machine) answer(to any) error {
	if err := m.out.Decode(to); err != nil {
		m.stop()
		// The reason, and not all of the journal that comes behind it.
		return fmt.Errorf("the booted system has ended: %.2000s", bytes.TrimSpace(m.said.Bytes()))
	}
	return nil
}

func (m *machine) ask(command string, to any) error {
	if _, err := io.WriteString(m.in, command+"\n"); err != nil {
		return err
	}
	return m.answer(to)
}

func (m *machine) complete(p plan) (plan, error) {
	p.Address, p.Publish, p.Protocol = m.Address, m.Publish, resp
	return p, nil
}

func (m *machine) restart(context.Context) error { return m.ask("restart", new(struct{})) }

func (m *machine) killMain(context.Context) (func() error, error) {
	var of struct{ Main int }
	if err := m.ask("main", &of); err != nil {
		return nil, err
	}
	return func() error {
		if err := syscall.Kill(of.Main, syscall.SIGKILL); err != nil {
			return os.NewSyscallError("kill", err)
		}
		// Longer than the restart takes: until all are served again the load process waits.
		time.Sleep(5 * pauseBeforeRestart)
		return nil
	}, nil
}

func (m *machine) manager() int { return m.PID1 }

func (m *machine) last(f figures) error {
	var s struct {
		Left, Exec, Ready int64 // microseconds
		Took              time.Duration
	}
	if err := m.ask("start", &s); err != nil {
		return err
	}
	f[stopTook] = float64(s.Exec-s.Left) / 1e3
	f[startTook] = float64(s.Ready-s.Exec) / 1e3
	f[adoptionTook] = micros(s.Took) / 1e3
	return nil
}

func (m *machine) stop() {
	m.in.Close()
	_ = m.command.Wait()
}
