package booted

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"wscast/test/harness"
)

// cacheVariable names the directory that roots are kept in, instead of the user's cache directory.
const cacheVariable = "WSCAST_TEST_CACHE"

// buildPatience is for what downloads or compiles.
const buildPatience = 5 * time.Minute

// suiteVariable names the one Debian release that all machines but the bare ones are of, instead of those that the tests choose.
const suiteVariable = "WSCAST_TEST_SUITE"

// Suites are the Debian releases that tests of more than one boot: with systemd 252, and with 257. Machines are of the first one unless [Suite]
// says something else.
func Suites() []string {
	if suite := os.Getenv(suiteVariable); suite != "" {
		return []string{suite}
	}
	return []string{"bookworm", "trixie"}
}

// mmdebstrap is the command that makes a root, but for the directory. Its text is the key of the cache: a changed list of
// packages is a new root. The variant has the packages marked essential, so no apt, and no more than a package of wscast may rely on.
func mmdebstrap(suite string) []string {
	return []string{
		"mmdebstrap", "--variant=essential", "--include=systemd,dbus",
		"--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/locale/*",
		suite,
	}
}

// rootCache is a directory of roots. They are only ever read.
type rootCache struct {
	dir   string
	build func(dir string) error // makes a root in a directory that is not there yet
}

// partial marks a root that is being built, or was when its builder was killed.
const partial = ".partial"

// get returns the directory of the root with this key, and builds it if it is not there. A root has its name only once it is complete and on the
// disk. Of several processes one builds; the others wait for it.
func (c rootCache) get(key string) (string, error) {
	if err := os.MkdirAll(c.dir, 0o755); err != nil {
		return "", err
	}
	lock, err := os.OpenFile(filepath.Join(c.dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return "", os.NewSyscallError("flock", err)
	}
	sum := sha256.Sum256([]byte(key))
	root := filepath.Join(c.dir, hex.EncodeToString(sum[:8]))
	if _, err := os.Stat(root); err == nil {
		return root, nil
	}
	// Nothing can be mounted in what a killed builder left: see run.
	if err := os.RemoveAll(root + partial); err != nil {
		return "", err
	}
	if err := c.build(root + partial); err != nil {
		os.RemoveAll(root + partial)
		return "", err
	}
	// A machine that crashes must not come back with the name of a root and without its files.
	d, err := os.Open(root + partial)
	if err != nil {
		return "", err
	}
	defer d.Close()
	if err := unix.Syncfs(int(d.Fd())); err != nil {
		return "", os.NewSyscallError("syncfs", err)
	}
	return root, os.Rename(root+partial, root)
}

// layers are the directories below a machine that all machines of a run share.
var layers struct {
	once       sync.Once
	install    string
	repository string
	temporary  string
	err        error

	// root is the root of machines of a suite.
	root func(suite string) (dir string, err error)

	// race has the one file that differs when wscastd is built with the race detector.
	race func() (dir string, err error)
	// bare is the root of machines without wscast.
	bare func() (dir string, err error)
}

// RemoveLayers removes what was made for this run. For TestMain, after the tests.
func RemoveLayers() {
	if layers.temporary != "" {
		os.RemoveAll(layers.temporary)
	}
}

// makeLayers makes the layers at the first call.
func makeLayers(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("tests that boot a system need root: cd test && sudo env PATH=\"$PATH\" go test ./booted")
	}
	for program, aptPackage := range map[string]string{
		"mmdebstrap": "mmdebstrap", "systemd-nspawn": "systemd-container", "nsenter": "util-linux", "unshare": "util-linux",
		"make": "make", "nc": "netcat-openbsd",
	} {
		harness.Find(t, program, aptPackage)
	}
	layers.once.Do(func() { layers.err = buildLayers() })
	if layers.err != nil {
		t.Fatal(layers.err)
	}
}

func buildLayers() error {
	cache := os.Getenv(cacheVariable)
	if cache == "" {
		dir, err := os.UserCacheDir()
		if err != nil {
			return fmt.Errorf("no directory to keep a root in: %w: set %s", err, cacheVariable)
		}
		cache = filepath.Join(dir, "wscast-test")
	}
	rootOf := func(command []string) (string, error) {
		build := func(dir string) error { return debian(command, dir) }
		return rootCache{cache, build}.get(strings.Join(command, " "))
	}
	layers.root = func(suite string) (string, error) { return rootOf(mmdebstrap(suite)) }
	layers.bare = sync.OnceValues(func() (string, error) { return rootOf(mmdebstrapBare) })
	var err error
	if layers.temporary, err = os.MkdirTemp("", "wscast-layers-"); err != nil {
		return err
	}
	// go test runs in the package's directory; the module wscast is the one that go.mod replaces.
	out, err := run("go", "list", "-m", "-f", "{{.Dir}}", "wscast")
	if err != nil {
		return err
	}
	layers.repository = strings.TrimSpace(out)
	layers.race = sync.OnceValues(buildRace)
	layers.install = filepath.Join(layers.temporary, "install")
	_, err = run("sh", "-c", `umask 022; exec make -s -C "$1" install DESTDIR="$2" PREFIX=/usr`, "install", layers.repository, layers.install)
	return err
}

// buildRace builds a static program, as the shipped one is: the root need not have the C library that this machine links with.
func buildRace() (string, error) {
	dir := filepath.Join(layers.temporary, "race")
	_, err := run("env", "CGO_ENABLED=1", "go", "build", "-C", layers.repository, "-race", "-tags", "netgo,osusergo",
		"-ldflags", "-s -w -linkmode external -extldflags -static", "-o", filepath.Join(dir, "usr/sbin/wscastd"), "./cmd/wscastd")
	return dir, err
}

// debian builds a root. mmdebstrap mounts /proc, /dev and /sys in it, so it gets a mount namespace: nothing is still mounted there when it is killed.
func debian(command []string, dir string) error {
	args := append([]string{"--mount", "--propagation=private"}, command...)
	_, err := run("unshare", append(args, dir)...)
	return err
}

// run runs a program that may take long and returns its standard output. It ends with the test process.
func run(program string, args ...string) (string, error) {
	// PR_SET_PDEATHSIG goes by the thread that forked (prctl(2)).
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	ctx, cancel := context.WithTimeout(context.Background(), buildPatience)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s: %w\n%s%s", strings.Join(cmd.Args, " "), err, &out, &errs)
	}
	return out.String(), nil
}
