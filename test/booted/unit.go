package booted

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"wscast/test/harness"
)

// Systemctl runs systemctl, which has to succeed, and returns what it printed.
func (m *Machine) Systemctl(args ...string) string {
	m.t.Helper()
	code, out := m.Try(append([]string{"systemctl", "--no-pager"}, args...)...)
	if code != 0 {
		m.t.Fatalf("systemctl %s: code %d\n%s", strings.Join(args, " "), code, out)
	}
	return out
}

// Show is the value of a unit's property, as systemctl show prints it.
func (m *Machine) Show(unit, property string) string {
	m.t.Helper()
	return strings.TrimSuffix(m.Run("systemctl", "show", "--value", "--property="+property, unit), "\n")
}

// Status is what wscastd says of itself (STATUS= of sd_notify(3)).
func (m *Machine) Status() string {
	m.t.Helper()
	return m.Show("wscast.service", "StatusText")
}

// DropIn adds to a unit, in place of what an earlier call or [WithDropIn] has added, and reloads systemd.
func (m *Machine) DropIn(unit, text string) {
	m.t.Helper()
	dir := m.Path(filepath.Join("/etc/systemd/system", unit+".d"))
	err := os.MkdirAll(dir, 0o755)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "50-test.conf"), []byte(text), 0o644)
	}
	if err != nil {
		m.t.Fatal(err)
	}
	m.Systemctl("daemon-reload")
}

// MainPID is the host's id of a unit's main process, 0 when there is none.
func (m *Machine) MainPID(unit string) int {
	m.t.Helper()
	inside, err := strconv.Atoi(m.Show(unit, "MainPID"))
	if err != nil {
		m.t.Fatal(err)
	}
	if inside == 0 {
		return 0
	}
	// The kernel shows the members of a group by the reader's ids.
	pids, err := os.ReadFile(filepath.Join(m.cgroup.unit(m.Show(unit, "ControlGroup")), "cgroup.procs"))
	if err != nil {
		m.t.Fatal(err)
	}
	for _, field := range strings.Fields(string(pids)) {
		if pid, err := strconv.Atoi(field); err == nil && nspid(pid) == inside {
			return pid
		}
	}
	m.t.Fatalf("%s has the main process %d, which is not in its control group", unit, inside)
	return 0
}

// KillMain sends a signal to a unit's main process, which has to be there.
func (m *Machine) KillMain(unit string, sig syscall.Signal) {
	m.t.Helper()
	pid := m.MainPID(unit)
	if pid == 0 {
		m.t.Fatalf("%s has no main process to send %v to", unit, sig)
	}
	if err := syscall.Kill(pid, sig); err != nil {
		m.t.Fatal(err)
	}
}

// Await returns the value of a unit's property once match is true of it. It looks again whenever systemd announces a change.
func (m *Machine) Await(unit, property string, match func(value string) bool) string {
	m.t.Helper()
	// The announcements first, so that none is missed.
	changes, err := m.changes()
	if err != nil {
		m.t.Fatal(err)
	}
	defer changes.close()
	for {
		value := m.Show(unit, property)
		if match(value) {
			return value
		}
		if err := changes.next(); err != nil {
			m.t.Fatalf("%s of %s is still %q: %v", property, unit, value, err)
		}
	}
}

// AwaitValue waits until a unit's property has a value.
func (m *Machine) AwaitValue(unit, property, value string) {
	m.t.Helper()
	m.Await(unit, property, func(v string) bool { return v == value })
}

// changes are the announcements of systemd on its private bus, which it sends to whoever is connected.
type changes struct {
	cmd    *exec.Cmd
	in     io.WriteCloser
	out    *bufio.Reader
	expire *time.Timer
}

// changes connects to systemd's private bus. systemd wants to know who connects and takes nobody whose process id it cannot see
// (SO_PEERCRED), so a process in the machine's process namespace does; it ends with the machine.
func (m *Machine) changes() (*changes, error) {
	c := &changes{cmd: exec.Command("nsenter", "--pid", "--target", strconv.Itoa(m.leader), "nc", "-U", m.Path("/run/systemd/private"))}
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // nsenter is the parent of nc, which has to end with it
	var err error
	if c.in, err = c.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	c.out = bufio.NewReader(out)
	if err := c.cmd.Start(); err != nil {
		return nil, err
	}
	c.expire = time.AfterFunc(harness.Patience, c.kill)
	// "Authentication Protocol" of the D-Bus specification: a NUL, who we are (the user id 0 in hexadecimal of its digits), and begin.
	io.WriteString(c.in, "\x00AUTH EXTERNAL 30\r\n")
	answer, err := c.out.ReadString('\n')
	if err != nil || !strings.HasPrefix(answer, "OK ") {
		c.close()
		return nil, fmt.Errorf("systemd's private bus does not let us in: %q: %w", answer, err)
	}
	io.WriteString(c.in, "BEGIN\r\n")
	return c, nil
}

// next waits for a message. Its contents do not matter: whoever waits looks at the unit then.
func (c *changes) next() error {
	// "Message Format" of the D-Bus specification: the length of the body at 4, that of the header's fields at 12; they are padded to 8.
	var head [16]byte
	_, err := io.ReadFull(c.out, head[:])
	if err == nil {
		var order binary.ByteOrder = binary.LittleEndian
		if head[0] == 'B' {
			order = binary.BigEndian
		}
		body, fields := int64(order.Uint32(head[4:])), int64(order.Uint32(head[12:]))
		_, err = io.CopyN(io.Discard, c.out, (fields+7)/8*8+body)
	}
	if err != nil {
		return errors.New("systemd announces nothing more, or has not for " + harness.Patience.String())
	}
	return nil
}

func (c *changes) close() {
	c.expire.Stop()
	c.kill()
	c.in.Close()
	c.cmd.Wait()
}

func (c *changes) kill() { syscall.Kill(-c.cmd.Process.Pid, syscall.SIGKILL) }
