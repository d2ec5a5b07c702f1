package booted

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"wscast/test/harness"
)

// cgroup is the control group that a container is put into. systemd-nspawn with --keep-unit makes groups of fixed names in the one it
// is started in, so each container needs its own; and where the host has version 1 as well, it makes the same path there.
type cgroup struct {
	file *os.File // of the directory
	dirs []string // that directory first, then the one of version 1
}

// makeCgroup makes a group below the one that this process is in, and removes those that processes which are gone have left.
func makeCgroup(name string) (*cgroup, error) {
	mounts, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer mounts.Close()
	var v1, v2 string
	for lines := bufio.NewScanner(mounts); lines.Scan(); {
		// proc_pid_mountinfo(5): field 5 is the mount point; the type and the options of the file system follow " - ".
		before, after, _ := strings.Cut(lines.Text(), " - ")
		at, kind := strings.Fields(before)[4], strings.Fields(after)
		switch {
		case kind[0] == "cgroup2":
			v2 = at
		case kind[0] == "cgroup" && strings.Contains(","+kind[2]+",", ",name=systemd,"):
			v1 = at
		}
	}
	if v2 == "" {
		return nil, errors.New("no control groups of version 2 here: mount -t cgroup2 cgroup2 /sys/fs/cgroup")
	}
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, err
	}
	_, path, _ := strings.Cut("\n"+string(own), "\n0::")
	path, _, _ = strings.Cut(path, "\n")
	g := &cgroup{dirs: []string{filepath.Join(v2, path, name)}}
	if v1 != "" {
		g.dirs = append(g.dirs, filepath.Join(v1, path, name))
	}
	for _, dir := range g.dirs {
		left, _ := filepath.Glob(filepath.Join(filepath.Dir(dir), "wscast-*-*"))
		for _, d := range left {
			owner, _ := strconv.Atoi(strings.Split(filepath.Base(d), "-")[1])
			if syscall.Kill(owner, 0) == syscall.ESRCH {
				removeTree(d) // in vain while its container still dies
			}
		}
	}
	if err := os.Mkdir(g.dirs[0], 0o755); err != nil {
		return nil, err
	}
	g.file, err = os.Open(g.dirs[0])
	return g, err
}

// unit is the directory of a unit's group.
func (g *cgroup) unit(controlGroup string) string {
	return filepath.Join(g.dirs[0], "payload", controlGroup)
}

// kill kills every process in the group.
func (g *cgroup) kill() error {
	return os.WriteFile(filepath.Join(g.dirs[0], "cgroup.kill"), []byte("1"), 0)
}

// remove kills what is still in the group and removes it.
func (g *cgroup) remove() error {
	g.file.Close()
	if err := g.kill(); err != nil {
		return err
	}
	events, err := os.Open(filepath.Join(g.dirs[0], "cgroup.events"))
	if err != nil {
		return err
	}
	defer events.Close()
	for deadline := time.Now().Add(harness.Patience); ; {
		text := make([]byte, 256)
		n, _ := events.ReadAt(text, 0)
		if strings.Contains(string(text[:n]), "populated 0") {
			break
		}
		if !time.Now().Before(deadline) {
			return fmt.Errorf("control group %s has still processes %v after they were killed", g.dirs[0], harness.Patience)
		}
		// The kernel announces a change of cgroup.events by POLLPRI (cgroups(7)).
		unix.Poll([]unix.PollFd{{Fd: int32(events.Fd()), Events: unix.POLLPRI}}, int(time.Until(deadline).Milliseconds()))
	}
	var errs []error
	for _, dir := range g.dirs {
		errs = append(errs, removeTree(dir))
	}
	return errors.Join(errs...)
}

// removeTree removes a group and those in it. Only directories can be removed there.
func removeTree(dir string) error {
	var dirs []string
	filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return nil
	})
	var errs []error
	for _, d := range slices.Backward(dirs) {
		if err := os.Remove(d); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
