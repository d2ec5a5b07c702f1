package booted

import (
	"bytes"
	"crypto/rand"
	_ "embed"
	"encoding/hex"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"wscast/test/harness"
)

//go:embed boot.sh
var bootScript string

// unneeded are units of Debian that take time and do nothing for wscast.
var unneeded = []string{
	"console-getty.service", "getty.target", "systemd-logind.service", "systemd-update-utmp.service",
	"systemd-update-utmp-runlevel.service", "dev-hugepages.mount", "sys-fs-fuse-connections.mount",
}

// Machine is a booted system. Used by one goroutine, but for WebSocketURL and PublishSocket.
type Machine struct {
	t       testing.TB
	name    string
	dir     string // its directory on the host
	files   string // the layer with the test's files
	enabled []string
	race    bool
	suite   string // see Suite
	bare    bool   // see Bare
	nginx   bool   // see WithNginx
	network string // an option of systemd-nspawn
	disk    string // see Disk
	port    int

	cgroup  *cgroup
	nspawn  *exec.Cmd
	console *os.File      // what systemd-nspawn and the container print
	ended   chan struct{} // closed when systemd-nspawn has ended
	leader  int           // PID 1 of the container
	heard   map[string]string
}

// An Option changes what [Boot] boots.
type Option func(*Machine)

// SocketsOnly leaves wscast.service to its sockets: it is not started at boot.
func SocketsOnly() Option {
	return func(m *Machine) { m.enabled = []string{"wscast.socket", "wscast-publish.socket"} }
}

// Suite is the Debian release of the machine, one of [Suites].
func Suite(name string) Option { return func(m *Machine) { m.suite = name } }

// Race runs a wscastd with the race detector, which fails the test on a report. Without it the program is the one that make install builds.
func Race() Option { return func(m *Machine) { m.race = true } }

// Config is the text of /etc/wscast/wscast.toml, instead of the shipped one.
func Config(toml string) Option {
	return func(m *Machine) { m.file("etc/wscast/wscast.toml", toml) }
}

// WithDropIn adds to a unit from the boot on; see [Machine.DropIn].
func WithDropIn(unit, text string) Option {
	return func(m *Machine) { m.file(filepath.Join("etc/systemd/system", unit+".d", "50-test.conf"), text) }
}

// machines of this process so far.
var machines atomic.Int64

// Boot boots a system and returns when it is up; it has ended when the test has.
func Boot(t testing.TB, options ...Option) *Machine {
	t.Helper()
	makeLayers(t)
	dir, err := os.MkdirTemp("", "wscast-machine-") // t.TempDir has too long a name for a socket in it (unix(7))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	m := &Machine{
		t: t, dir: dir, files: filepath.Join(dir, "files"),
		name:    fmt.Sprintf("wscast-%d-%d", os.Getpid(), machines.Add(1)),
		enabled: []string{"wscast.socket", "wscast-publish.socket", "wscast.service"},
		suite:   Suites()[0],
		heard:   map[string]string{},
	}
	m.port = reservePort(t)
	id := make([]byte, 16)
	rand.Read(id)
	m.file("etc/machine-id", hex.EncodeToString(id)+"\n") // without one it is a first boot, which enables every unit
	m.file("usr/lib/sysusers.d/test.conf", "u alice -\nm alice wscast\nu bob -\nm bob wscast\nu mallory -\n")
	m.file("etc/systemd/system/wscast.socket.d/10-address.conf", fmt.Sprintf("[Socket]\nListenStream=\nListenStream=127.0.0.1:%d\n", m.port))
	m.link("etc/systemd/system/default.target", "/lib/systemd/system/multi-user.target")
	for _, unit := range unneeded {
		m.link(filepath.Join("etc/systemd/system", unit), "/dev/null")
	}
	for _, o := range options {
		o(m)
	}
	m.boot()
	return m
}

func (m *Machine) boot() {
	m.t.Helper()
	_ = os.Remove(filepath.Join(m.dir, "notify")) // that of the boot before
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(m.dir, "notify"), Net: "unixgram"})
	if err != nil {
		m.t.Fatal(err)
	}
	defer notify.Close()
	if m.cgroup, err = makeCgroup(m.name); err != nil {
		m.t.Fatal(err)
	}
	group := m.cgroup
	m.t.Cleanup(func() {
		if err := group.remove(); err != nil {
			m.t.Error(err)
		}
	})
	if m.console, err = os.Create(filepath.Join(m.dir, "console")); err != nil {
		m.t.Fatal(err)
	}
	console := m.console
	m.t.Cleanup(func() { console.Close() })
	root, err := layers.root(m.suite)
	if err != nil {
		m.t.Fatal(err)
	}
	lower := []string{m.files, layers.install, root}
	if m.race {
		race, err := layers.race()
		if err != nil {
			m.t.Fatal(err)
		}
		lower = []string{m.files, race, layers.install, root}
	}
	if m.bare || m.nginx {
		root, err := layers.bare()
		if err != nil {
			m.t.Fatal(err)
		}
		lower = []string{m.files, root}
		if m.nginx {
			lower = []string{m.files, layers.install, root}
		}
	}
	work := filepath.Join(m.dir, "overlay")
	if err := os.MkdirAll(work, 0o700); err != nil {
		m.t.Fatal(err)
	}
	m.nspawn = exec.Command("unshare", append([]string{"--mount", "--propagation=private", "sh", "-c", bootScript, "boot",
		work, strings.Join(lower, ":"), m.name, m.network}, m.enabled...)...)
	m.nspawn.Env = append(os.Environ(), "NOTIFY_SOCKET="+filepath.Join(m.dir, "notify"), "DISK="+m.disk)
	m.nspawn.Stdout, m.nspawn.Stderr = m.console, m.console
	m.nspawn.SysProcAttr = &syscall.SysProcAttr{
		Setpgid: true, Pdeathsig: syscall.SIGTERM, // see boot.sh
		UseCgroupFD: true, CgroupFD: int(m.cgroup.file.Fd()),
	}
	m.ended = make(chan struct{})
	started := make(chan error)
	go func() {
		defer close(m.ended)
		// PR_SET_PDEATHSIG goes by the thread that forked (prctl(2)): it has to live as long as the child.
		runtime.LockOSThread()
		err := m.nspawn.Start()
		started <- err
		if err == nil {
			m.nspawn.Wait()
		}
		notify.SetReadDeadline(time.Now()) // it will not say more
	}()
	if err := <-started; err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(m.end)
	if err := m.awaitReady(notify); err != nil {
		m.t.Fatal(err)
	}
	// running or degraded (code 1), which is the test's business.
	if _, state := m.Try("systemctl", "is-system-running", "--wait"); state != "running\n" && state != "degraded\n" {
		m.t.Fatalf("the machine did not come up: %s", state)
	}
}

// awaitReady waits until the container's systemd has reached basic.target, and learns who its PID 1 is.
func (m *Machine) awaitReady(notify *net.UnixConn) error {
	notify.SetReadDeadline(time.Now().Add(harness.Patience))
	buffer := make([]byte, 4096)
	for ready := false; !ready || m.leader == 0; {
		n, err := notify.Read(buffer)
		if err != nil {
			return fmt.Errorf("the container is not up: %w\n%s", err, m.printed())
		}
		for line := range strings.Lines(string(buffer[:n])) {
			name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
			switch name {
			case "READY":
				ready = true
			case "X_NSPAWN_LEADER_PID":
				if m.leader, err = strconv.Atoi(value); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// end stops wscast as a shutdown does, judges it, and ends the container.
func (m *Machine) end() {
	select {
	case <-m.ended: // it was powered off, or is that of an earlier boot
		return
	default:
	}
	if m.leader != 0 {
		if code, out := m.Try("systemctl", "stop", "wscast.service", "wscast.socket", "wscast-publish.socket"); code != 0 && !(m.bare && code == notThere) {
			m.t.Errorf("systemctl stop: code %d\n%s", code, out)
		}
		_, log := m.Try("journalctl", "--no-pager", "--output=short-precise")
		if strings.Contains(log, "DATA RACE") {
			m.t.Error("wscastd reports a data race")
		}
		if m.t.Failed() {
			m.t.Logf("journal of the machine:\n%s", log)
		}
		// All is in memory, so there is nothing to unmount: reboot(2) at once.
		m.Try("systemctl", "poweroff", "--force", "--force")
	}
	timer := time.NewTimer(harness.Patience)
	defer timer.Stop()
	if m.leader == 0 {
		timer.Reset(0)
	}
	select {
	case <-m.ended:
	case <-timer.C:
		if m.leader != 0 {
			m.t.Errorf("the container did not power off in %v and is killed\n%s", harness.Patience, m.printed())
		}
		if err := m.cgroup.kill(); err != nil {
			m.t.Error(err)
			m.nspawn.Process.Kill()
		}
		<-m.ended
	}
}

// printed is what systemd-nspawn and the console of the container have shown.
func (m *Machine) printed() string {
	text, _ := os.ReadFile(m.console.Name())
	return string(text)
}

// Path is where the host finds a file of the machine.
func (m *Machine) Path(file string) string {
	return filepath.Join("/proc", strconv.Itoa(m.leader), "root", file)
}

// inside are the arguments of nsenter for a program in the machine.
func (m *Machine) inside(args []string) []string {
	return append([]string{"--all", "--target", strconv.Itoa(m.leader)}, args...)
}

// Run runs a program in the machine as root and returns what it wrote to standard output; another code than 0 fails the test.
func (m *Machine) Run(args ...string) string {
	m.t.Helper()
	return harness.Run(m.t, "nsenter", m.inside(args)...)
}

// Try runs a program in the machine as root and returns its code, and what it wrote to standard output and standard error.
func (m *Machine) Try(args ...string) (code int, output string) {
	m.t.Helper()
	r := harness.Launch(m.t, "nsenter", m.inside(args)...)
	r.CloseInput()
	return r.Wait()
}

// As are the arguments of [Machine.Run] and [Machine.Try] that make user run a program, with all of the user's groups.
func As(user string, args ...string) []string {
	return append([]string{"setpriv", "--reuid=" + user, "--regid=" + user, "--init-groups", "--"}, args...)
}

// WebSocketURL is the ws:// URL of a channel; "" is the URL without one.
func (m *Machine) WebSocketURL(channel string) string {
	return "ws://" + m.Address() + harness.WebSocketPath(channel)
}

// Address is the host:port of wscast.socket.
func (m *Machine) Address() string { return "127.0.0.1:" + strconv.Itoa(m.port) }

// Leader is the host's id of the machine's PID 1.
func (m *Machine) Leader() int { return m.leader }

// PublishSocket is the path of the publish socket for programs of the host. They are root there.
func (m *Machine) PublishSocket() string { return m.Path("/run/wscast/publish.sock") }

// WriteConfig replaces the configuration file; wscastd reads it at the next reload or start.
func (m *Machine) WriteConfig(toml string) {
	m.t.Helper()
	path := m.Path("/etc/wscast/wscast.toml")
	err := os.WriteFile(path+".new", []byte(toml), 0o644)
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		m.t.Fatal(err)
	}
}

// file puts a file into the layer of the test's files.
func (m *Machine) file(name, text string) {
	m.t.Helper()
	path := filepath.Join(m.files, name)
	err := os.MkdirAll(filepath.Dir(path), 0o755)
	if err == nil {
		err = os.WriteFile(path, []byte(text), 0o644)
	}
	if err != nil {
		m.t.Fatal(err)
	}
}

func (m *Machine) link(name, target string) {
	m.t.Helper()
	if err := os.Symlink(target, filepath.Join(m.files, name)); err != nil {
		m.t.Fatal(err)
	}
}

// reservePort returns a loopback port that is this test's until it ends. A bound socket that does not listen holds it; systemd can
// bind it as well, since both have SO_REUSEADDR and only one listens (socket(7)).
func reservePort(t testing.TB) int {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(os.NewSyscallError("socket", err))
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		t.Fatal(os.NewSyscallError("setsockopt", err))
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(os.NewSyscallError("bind", err))
	}
	bound, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(os.NewSyscallError("getsockname", err))
	}
	return bound.(*unix.SockaddrInet4).Port
}

// nspid is a process's id in its innermost namespace (proc_pid_status(5)), 0 when it is gone.
func nspid(pid int) int {
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	_, rest, _ := bytes.Cut(status, []byte("\nNSpid:"))
	line, _, _ := bytes.Cut(rest, []byte("\n"))
	ids := bytes.Fields(line)
	if len(ids) == 0 {
		return 0
	}
	n, _ := strconv.Atoi(string(ids[len(ids)-1]))
	return n
}
