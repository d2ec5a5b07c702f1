package harness

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The environment variable that makes this test program a stand-in for wscastd, which does wrong what a test needs.
const standIn = "WSCAST_TEST_STAND_IN"

func TestMain(m *testing.M) {
	if part := os.Getenv(standIn); part != "" {
		os.Exit(play(part))
	}
	os.Exit(Main(m))
}

func play(part string) int {
	terminated := make(chan os.Signal, 1)
	signal.Notify(terminated, syscall.SIGTERM)
	fmt.Fprintf(os.Stderr, "playing %s\n", part)
	switch part {
	case "exits at once":
		fmt.Fprintln(os.Stderr, "wscastd: no key \"grteing\"")
		return 78
	case "only says ready":
		notify("READY=1")
		return 0
	case "child says ready":
		child := exec.Command(os.Args[0])
		child.Env = append(os.Environ(), standIn+"=only says ready")
		child.Stderr = os.Stderr
		if err := child.Run(); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		return 0
	case "leaves a child":
		// It ends when the harness kills it; cat would also end with the pipe, which the child holds itself.
		r, w, _ := os.Pipe()
		child := exec.Command("cat")
		child.Stdin, child.ExtraFiles = r, []*os.File{w}
		if err := child.Start(); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	case "ignores SIGTERM":
		signal.Ignore(syscall.SIGTERM)
	case "ends by itself":
		notify("READY=1")
		return 0
	}
	pid := strconv.Itoa(os.Getpid())
	fmt.Fprintf(os.Stderr, "fds %s of %t named %s\n", os.Getenv("LISTEN_FDS"), os.Getenv("LISTEN_PID") == pid, os.Getenv("LISTEN_FDNAMES"))
	notify("READY=1\nSTATUS=one")
	notify("STATUS=two")
	<-terminated
	switch part {
	case "races":
		fmt.Fprintln(os.Stderr, "WARNING: DATA RACE")
	case "exits with 1":
		return 1
	}
	return 0
}

func notify(text string) {
	conn, err := net.Dial("unixgram", os.Getenv("NOTIFY_SOCKET"))
	if err != nil {
		panic(err)
	}
	conn.Write([]byte(text))
	conn.Close()
}

func standInDaemon(t *testing.T, part string, options ...Option) *Daemon {
	t.Helper()
	t.Setenv(standIn, part)
	return newDaemon(t, os.Args[0], options)
}

// expectError: the error quotes all of want.
func expectError(t *testing.T, err error, want ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, expected one with %q", want)
	}
	for _, w := range want {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("the error has no %q: %v", w, err)
		}
	}
}

func TestDaemonIsStartedAsSystemdDoes(t *testing.T) {
	d := standInDaemon(t, "serves", Socket("publish-datagram", "unixgram"), Socket("websocket", "unix"))
	d.Start()
	d.AwaitLog("fds 4 of true named websocket:publish:publish-datagram:websocket\n")
	d.AwaitNotification(func(line string) bool { return line == "STATUS=two" })
	if got := d.Notifications(); strings.Join(got, ",") != "READY=1,STATUS=one,STATUS=two" {
		t.Errorf("notifications are %q", got)
	}
	first := d.PID()
	d.Stop()
	d.Start()
	if d.PID() == first {
		t.Error("no new process was started")
	}
	if d.Notifications()[0] != "READY=1" {
		t.Errorf("the second process has not said READY=1: %q", d.Notifications())
	}
}

func TestDaemonThatExitsAtOnceIsQuoted(t *testing.T) {
	d := standInDaemon(t, "exits at once")
	expectError(t, d.start(), "READY=1", "exit status 78", `no key "grteing"`)
	if code := d.failed.cmd.ProcessState.ExitCode(); code != 78 {
		t.Errorf("exit code %d", code)
	}
}

func TestReadyFromAnotherProcessDoesNotCount(t *testing.T) {
	d := standInDaemon(t, "child says ready")
	expectError(t, d.start(), "READY=1", "another process said READY=1", "playing only says ready")
}

func TestStopJudges(t *testing.T) {
	for part, want := range map[string]string{
		"races":          "data race",
		"exits with 1":   "exit status 1",
		"leaves a child": "left a child process",
		"ends by itself": "had ended by itself",
	} {
		t.Run(part, func(t *testing.T) {
			d := standInDaemon(t, part)
			d.Start()
			if part == "ends by itself" {
				<-d.process.done
			}
			expectError(t, d.stop(syscall.SIGTERM), want, "playing "+part)
		})
	}
}

func TestStopEndsWhatIgnoresSIGTERM(t *testing.T) {
	d := standInDaemon(t, "ignores SIGTERM")
	d.Start()
	p := d.process
	d.process = nil
	expectError(t, p.stop(syscall.SIGTERM, time.Millisecond), "still running")
	<-p.done
}

func TestKill(t *testing.T) {
	d := standInDaemon(t, "serves")
	d.Start()
	if err := d.stop(syscall.SIGKILL); err != nil {
		t.Error(err)
	}
}

func TestSocketsOutliveTheProcess(t *testing.T) {
	d := standInDaemon(t, "serves")
	d.Start()
	d.Stop()
	for _, name := range []string{"websocket", "publish"} {
		network := "tcp"
		if name == "publish" {
			network = "unix"
		}
		conn, err := net.Dial(network, d.Address(name))
		if err != nil {
			t.Errorf("%s: %v, expected it to wait in the backlog", name, err)
			continue
		}
		conn.Close()
	}
	d.CloseSockets()
	if conn, err := net.Dial("tcp", d.Address("websocket")); !errors.Is(err, unix.ECONNREFUSED) {
		if err == nil {
			conn.Close()
		}
		t.Errorf("connecting to the closed socket: %v, expected to be refused", err)
	}
	d.OpenSockets()
	conn, err := net.Dial("tcp", d.Address("websocket"))
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
}

func TestReservedPortIsGivenToNobody(t *testing.T) {
	mine := reservePort(t)
	// Another server that asks for any port until it has seen a good part of the range.
	var all []net.Listener
	defer func() {
		for _, l := range all {
			l.Close()
		}
	}()
	for range 500 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, l)
		if l.Addr().(*net.TCPAddr).Port == mine {
			t.Fatalf("port %d was given to somebody else", mine)
		}
	}
	l, err := net.Listen("tcp", local(mine))
	if err != nil {
		t.Fatalf("the owner cannot listen on its port: %v", err)
	}
	l.Close()
}

func TestNotifySocketClosesWhatItIsSent(t *testing.T) {
	path := tempDir(t) + "/notify"
	n, err := openNotifySocket(path)
	if err != nil {
		t.Fatal(err)
	}
	defer n.close()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	// As sd_notify_barrier(3): the writing end goes with BARRIER=1, and the reading end ends when systemd has closed it.
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := unix.Sendmsg(fd, []byte("BARRIER=1"), unix.UnixRights(int(w.Fd())), &unix.SockaddrUnix{Name: path}, 0); err != nil {
		t.Fatal(err)
	}
	w.Close()
	r.SetReadDeadline(time.Now().Add(Patience))
	if _, err := bufio.NewReader(r).ReadByte(); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("reading the barrier: %v, expected its end", err)
	}
}

func TestNewFiles(t *testing.T) {
	before := openFiles()
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if left := newFiles(before, openFiles()); len(left) != 1 || !strings.HasSuffix(left[0], os.DevNull) {
		t.Errorf("left open: %q", left)
	}
}
