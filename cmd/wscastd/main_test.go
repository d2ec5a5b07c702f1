package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"wscast/ipc"
)

// program is set in a process that is to be wscastd.
const program = "WSCAST_TEST_PROGRAM"

// TestMain is wscastd itself in the processes that tests start. Otherwise it fails when a test leaves a goroutine behind.
func TestMain(m *testing.M) {
	if os.Getenv(program) != "" {
		main()
	}
	goleak.VerifyTestMain(m)
}

// patience is how long a test waits for what comes at once unless something is broken.
const patience = 20 * time.Second

// wscastd makes a process of the program.
func wscastd(t *testing.T, args ...string) *exec.Cmd {
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, os.Args[0], args...)
	// A program with the race detector sleeps a second before it ends, for reports that are being written.
	cmd.Env = append(os.Environ(), program+"=1", "GORACE="+os.Getenv("GORACE")+" atexit_sleep_ms=0", "NOTIFY_SOCKET=", "JOURNAL_STREAM=")
	return cmd
}

// ends runs the program to its end.
func ends(t *testing.T, cmd *exec.Cmd) (code int, stdout, stderr string) {
	t.Helper()
	var out, errors bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errors
	_ = cmd.Run()
	return cmd.ProcessState.ExitCode(), out.String(), errors.String()
}

// byHand is a running wscastd that was started by hand.
type byHand struct {
	t       *testing.T
	cmd     *exec.Cmd
	welcome []string
	page    string // URL of the demo page
	dir     string
	stderr  *bytes.Buffer
}

func start(t *testing.T, args ...string) *byHand {
	t.Helper()
	d := &byHand{t: t, dir: t.TempDir(), stderr: new(bytes.Buffer)}
	d.cmd = wscastd(t, append([]string{"--websocket", "127.0.0.1:0", "--publish", filepath.Join(d.dir, "publish.sock"), "--demo"}, args...)...)
	d.cmd.Stderr = d.stderr
	stdout, err := d.cmd.StdoutPipe()
	if err == nil {
		err = d.cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if d.cmd.ProcessState == nil {
			_ = d.cmd.Process.Kill()
			_ = d.cmd.Wait()
		}
	})
	lines := bufio.NewReader(stdout)
	for range 2 {
		line, err := lines.ReadString('\n')
		if err != nil {
			_ = d.cmd.Wait()
			t.Fatalf("wscastd says %q and then nothing: %v\n%s", d.welcome, err, d.stderr)
		}
		d.welcome = append(d.welcome, strings.TrimSuffix(line, "\n"))
	}
	if m := regexp.MustCompile(`^demo page:  (http://127\.0\.0\.1:\d+/)$`).FindStringSubmatch(d.welcome[0]); m != nil {
		d.page = m[1]
	}
	return d
}

// stop ends it with a signal and returns its exit code.
func (d *byHand) stop(sig syscall.Signal) int {
	d.t.Helper()
	if err := d.cmd.Process.Signal(sig); err != nil {
		d.t.Fatal(err)
	}
	_ = d.cmd.Wait()
	return d.cmd.ProcessState.ExitCode()
}

func TestStartedByHand(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		d := start(t)
		if want := "publish:    wscast publish --socket " + d.dir + "/publish.sock default hello"; d.page == "" || d.welcome[1] != want {
			t.Fatalf("it says\n%s\nwant the URL of the demo page and\n%s", strings.Join(d.welcome, "\n"), want)
		}
		response, err := http.Get(d.page)
		if err != nil {
			t.Fatal(err)
		}
		page, err := io.ReadAll(response.Body)
		response.Body.Close()
		if err != nil || response.StatusCode != 200 || !bytes.Contains(page, []byte(d.dir+"/publish.sock")) {
			t.Errorf("the demo page: %d, %v\n%s", response.StatusCode, err, page)
		}
		c, err := ipc.Dial(d.dir + "/publish.sock")
		if err != nil {
			t.Fatal(err)
		}
		if n, err := c.Publish("default", []byte("hello")); n != 0 || err != nil {
			t.Errorf("publishing: %d, %v", n, err)
		}
		c.Close()
		if code := d.stop(sig); code != 0 {
			t.Errorf("after %v the exit code is %d\n%s", sig, code, d.stderr)
		}
		if left, _ := os.ReadDir(d.dir); len(left) > 0 {
			t.Errorf("it leaves %v", left)
		}
	}
	http.DefaultClient.CloseIdleConnections()
}

func TestKilledAndStartedAgain(t *testing.T) {
	d := start(t)
	d.stop(syscall.SIGKILL)
	if _, err := os.Lstat(d.dir + "/publish.sock"); err != nil {
		t.Fatal(err)
	}
	again := start(t, "--publish", d.dir+"/publish.sock")
	conn, err := net.Dial("unix", d.dir+"/publish.sock")
	if err != nil {
		t.Error(err)
	} else {
		conn.Close()
	}
	if code := again.stop(syscall.SIGTERM); code != 0 {
		t.Errorf("exit code %d\n%s", code, again.stderr)
	}
}

func TestTwoInstances(t *testing.T) {
	d := start(t)
	address := strings.TrimSuffix(strings.TrimPrefix(d.page, "http://"), "/")
	for name, test := range map[string]struct{ websocket, publish, want string }{
		"the same port":           {address, d.dir + "/other.sock", address},
		"the same publish socket": {"127.0.0.1:0", d.dir + "/publish.sock", d.dir + "/publish.sock"},
	} {
		code, stdout, stderr := ends(t, wscastd(t, "--websocket", test.websocket, "--publish", test.publish))
		want := "wscastd: cannot listen on " + test.want + ": address already in use\nanother process listens there, perhaps another wscastd: stop it, or choose another address\n"
		if code != 1 || stdout != "" || stderr != want {
			t.Errorf("%s: exit code %d, %q, %q, want 1 and %q", name, code, stdout, stderr, want)
		}
	}
	c, err := ipc.Dial(d.dir + "/publish.sock") // the first one is as it was
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	d.stop(syscall.SIGTERM)
}

func TestReload(t *testing.T) {
	file := filepath.Join(t.TempDir(), "wscast.toml")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("")
	d := start(t, "--config", file)
	c, err := ipc.Dial(d.dir + "/publish.sock")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	limit := func() string {
		sections, err := c.Info("publishers")
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range sections[0].Fields {
			if f.Key == "max_message_bytes" {
				return f.Value
			}
		}
		return ""
	}
	if got := limit(); got != "1048576" {
		t.Errorf("publish.max_message is %s", got)
	}
	write("[publish]\nmax_message = 10\nmode = \"0600\"\n")
	if err := d.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(patience); limit() != "10"; {
		if time.Now().After(end) {
			t.Fatal("the reload has changed nothing")
		}
	}
	if code := d.stop(syscall.SIGTERM); code != 0 {
		t.Errorf("exit code %d", code)
	}
	// The addresses of the command line are no change of the configuration.
	if log := d.stderr.String(); !strings.Contains(log, "key=publish.mode") || strings.Contains(log, "key=publish.listen") {
		t.Errorf("the log:\n%s", log)
	}
}

func TestCommandLine(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good, bad := file("good", "[websocket]\nping = \"5s\"\n"), file("bad", "[websocket]\npnig = \"5s\"\n")
	for _, test := range []struct {
		args           []string
		code           int
		stdout, stderr string
	}{
		{[]string{"--version"}, 0, "wscastd " + version + "\n", ""},
		{[]string{"--help"}, 0, usage, ""},
		{[]string{"-h"}, 0, usage, ""},
		{[]string{"--check"}, 0, "the configuration is good\n", ""},
		{[]string{"--check", "--config", good}, 0, "the configuration is good\n", ""},
		{[]string{"--check", "--config", bad}, 78, "", "wscastd: " + bad + ": unknown key \"websocket.pnig\"\ndid you mean \"websocket.ping\"?\n"},
		{[]string{"--config", bad}, 78, "", "wscastd: " + bad + ": unknown key \"websocket.pnig\"\ndid you mean \"websocket.ping\"?\n"},
		{[]string{"--config", dir + "/nowhere"}, 78, "", "wscastd: " + dir + "/nowhere: no such file or directory\ngive the file with --config; without it the defaults hold\n"},
		{[]string{"--check", "--websocket", "localhost"}, 78, "", "wscastd: websocket.listen = \"localhost\" is not possible\nwrite host:port, such as \"127.0.0.1:7311\" or \"[::1]:7311\", or the path of a Unix socket with a slash in it\n"},
		{[]string{"--websocket", "127.0.0.1:0", "--publish", dir + "/nowhere/a"}, 1, "", "wscastd: cannot listen on " + dir + "/nowhere/a: no such file or directory\nits directory is not there: make it, or choose another path, with --websocket or --publish\n"},
		{[]string{"--nonsense"}, 2, "", "wscastd: flag provided but not defined: -nonsense\ntry: wscastd --help\n"},
		{[]string{"--config"}, 2, "", "wscastd: flag needs an argument: -config\ntry: wscastd --help\n"},
		{[]string{"--demo=maybe"}, 2, "", "wscastd: invalid boolean value \"maybe\" for -demo: parse error\ntry: wscastd --help\n"},
		{[]string{"now"}, 2, "", "wscastd: unexpected argument \"now\"\ntry: wscastd --help\n"},
	} {
		code, stdout, stderr := ends(t, wscastd(t, test.args...))
		if code != test.code || stdout != test.stdout || stderr != test.stderr {
			t.Errorf("wscastd %q: exit code %d\n%s%s\nwant %d\n%s%s", test.args, code, stdout, stderr, test.code, test.stdout, test.stderr)
		}
	}
}

// The help has every flag.
// A service that cannot start is started again at once: it does not end at once. Who starts it by hand is told at once.
func TestFailureTakesItsTime(t *testing.T) {
	for name, notify := range map[string]string{"a service": "@nobody", "by hand": ""} {
		t.Run(name, func(t *testing.T) {
			cmd := wscastd(t, "--nonsense")
			cmd.Env = append(cmd.Env, "NOTIFY_SOCKET="+notify)
			began := time.Now()
			code, _, stderr := ends(t, cmd)
			if code != exitUsage || !strings.Contains(stderr, "--nonsense") && !strings.Contains(stderr, "-nonsense") {
				t.Errorf("exit code %d: %s", code, stderr)
			}
			if lived := time.Since(began); notify != "" && lived < leastLife {
				t.Errorf("it has lived %v, at least are %v", lived, leastLife)
			}
		})
	}
}

func TestHelp(t *testing.T) {
	for _, name := range []string{"config FILE", "websocket ADDR", "publish PATH", "demo", "check", "version", "help"} {
		if !strings.Contains(usage, "\n  --"+name+" ") {
			t.Errorf("the help has no --%s", name)
		}
		flag, argument, _ := strings.Cut(name, " ")
		args := []string{"--" + flag}
		if argument != "" {
			args = append(args, argument)
		}
		if _, err := parse(args); err != nil {
			t.Errorf("--%s: %v", name, err)
		}
	}
}

// A shell with LISTEN_PID= as systemd sets it: the process that it becomes.
func TestSocketsFromSystemd(t *testing.T) {
	dir := t.TempDir()
	var config net.ListenConfig
	config.SetMultipathTCP(false) // Go's default is a socket that wscastd refuses
	websocket, err := config.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer websocket.Close()
	publish, err := net.Listen("unix", filepath.Join(dir, "publish.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer publish.Close()
	inherits := func(names string, args ...string) *exec.Cmd {
		cmd := wscastd(t)
		cmd.Path, cmd.Args = "/bin/sh", append([]string{"sh", "-c", `export LISTEN_PID=$$; exec "$0" "$@"`, os.Args[0]}, args...)
		cmd.Env = append(cmd.Env, "LISTEN_FDNAMES="+names, fmt.Sprintf("LISTEN_FDS=%d", strings.Count(names, ":")+1))
		for i, l := range []interface{ File() (*os.File, error) }{websocket.(*net.TCPListener), publish.(*net.UnixListener)} {
			if i <= strings.Count(names, ":") {
				f, err := l.File()
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { f.Close() })
				cmd.ExtraFiles = append(cmd.ExtraFiles, f)
			}
		}
		return cmd
	}

	code, stdout, stderr := ends(t, inherits("websocket:publish", "--publish", dir+"/other.sock"))
	if want := "wscastd: the sockets come from systemd\nleave out --websocket and --publish, and set addresses in the socket units\n"; code != 2 || stdout != "" || stderr != want {
		t.Errorf("with --publish: exit code %d, %q, %q, want 2 and %q", code, stdout, stderr, want)
	}
	code, _, stderr = ends(t, inherits("websocket"))
	if want := "wscastd: systemd passed no socket named \"publish\": a socket unit needs FileDescriptorName=publish, and the service needs that unit in Sockets=\n"; code != 1 || stderr != want {
		t.Errorf("without publish: exit code %d, %q, want 1 and %q", code, stderr, want)
	}

	cmd := inherits("websocket:publish", "--demo")
	var log bytes.Buffer
	cmd.Stderr, cmd.Stdout = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	c, err := ipc.Dial(filepath.Join(dir, "publish.sock"))
	if err != nil {
		t.Fatal(err)
	}
	published := make(chan error, 1)
	go func() {
		_, err := c.Publish("default", []byte("hello")) // waits in the socket until it is served
		published <- err
	}()
	select {
	case err := <-published:
		if err := errors.Join(err, cmd.Process.Signal(syscall.SIGTERM), <-ended); err != nil {
			t.Errorf("%v\n%s", err, log.String())
		}
		c.Close()
	case err := <-ended:
		c.Close()
		<-published
		t.Fatalf("it ends before it has served: %v\n%s", err, log.String())
	}
	if strings.Contains(log.String(), "demo page") {
		t.Errorf("it welcomes a person, who is not there:\n%s", log.String())
	}
	if _, err := os.Lstat(filepath.Join(dir, "publish.sock")); err != nil { // it is the socket unit's
		t.Error(err)
	}
}
