package msglog

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Load opens the log in the file at o.Path, or makes one there. A log that is there has the size that it has,
// whatever o says; Resized changes that.
//
// No other process may use the file: it is locked as long as any process has the descriptor. What the file has is
// checked to the last byte, since the machine may have lost its power (scan.go). What is no log, or one that this
// program does not know, is moved aside, to the path with ".old" at its end, and a new log is made.
//
// It is an error when there cannot be a log at that path: no room on the disk for all of it, no permission, no
// directory, a log that another process has locked, something that is no regular file or that belongs to somebody
// else.
func Load(o Options) (*Log, Found, error) {
	h, err := o.header()
	if err != nil {
		return nil, Found{}, err
	}
	f, err := lockFile(o.Path, 0)
	if errors.Is(err, os.ErrNotExist) {
		l, err := makeAt(o.Path, h)
		return l, Found{}, err
	}
	if err != nil {
		return nil, Found{}, err
	}
	l, found, err := openFile(f)
	if err == nil {
		return l, found, nil
	}
	defer f.Close()
	var bad damagedError
	if !errors.As(err, &bad) {
		return nil, Found{}, fileError(o.Path, err)
	}
	found = Found{Cause: err}
	if found.Aside, err = SetAside(o.Path); err == nil {
		l, err = makeAt(o.Path, h)
	}
	return l, found, err
}

func openFile(f *os.File) (l *Log, found Found, err error) {
	if found, err = recoverFile(f); err != nil {
		return nil, Found{}, err
	}
	err = survivingFaults(func() error {
		l, err = Open(f)
		return err
	})
	return l, found, err
}

// makeAt makes an empty log at a path where there is no file.
func makeAt(path string, h *header) (*Log, error) {
	h.epoch, h.sums = newEpoch(), 1
	f, err := makeBeside(path, h)
	if err != nil {
		return nil, err
	}
	l, err := Open(f)
	if err == nil {
		err = putInPlace(path, f)
		l.rings[0].path = path
	}
	switch {
	case l != nil && err != nil:
		return nil, errors.Join(err, l.Close(), os.Remove(beside(path)))
	case err != nil:
		return nil, errors.Join(err, f.Close(), os.Remove(beside(path)))
	}
	return l, nil
}

// beside is where a file is made. What has the path itself is always whole.
func beside(path string) string { return path + ".new" }

// makeBeside makes the file of an empty log with all of its place on the disk: a disk that is full is found out here,
// and not by a signal when a message is appended (SIGBUS, mmap(2)).
func makeBeside(path string, h *header) (*os.File, error) {
	f, err := lockFile(beside(path), unix.O_CREAT)
	if err != nil {
		return nil, err
	}
	err = f.Truncate(0) // what a process that was killed has left
	if err == nil {
		err = reserveFile(f, int64(h.end()))
	}
	if err == nil {
		err = initialize(f, h)
	}
	if err == nil {
		err = f.Sync()
	}
	if err != nil {
		return nil, errors.Join(fileError(path, err), f.Close(), os.Remove(beside(path)))
	}
	return f, nil
}

// putInPlace gives the file that was made beside the path its name, also after a power failure.
func putInPlace(path string, f *os.File) error {
	if err := f.Sync(); err != nil {
		return fileError(path, err)
	}
	if err := os.Rename(beside(path), path); err != nil {
		return fileError(path, err)
	}
	return syncDirectory(path)
}

func syncDirectory(path string) error {
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return fileError(path, err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fileError(path, err)
	}
	return nil
}

// mostAside is how many files are set aside before somebody has to look at them: each of them has the size of a log.
const mostAside = 9

// SetAside gives the file at a path another name, with ".old" at its end, or ".old2" to ".old9", and returns it. It
// replaces nothing.
func SetAside(path string) (aside string, err error) {
	for n := 1; n <= mostAside; n++ {
		aside = path + ".old"
		if n > 1 {
			aside += strconv.Itoa(n)
		}
		if _, err := os.Lstat(aside); err == nil {
			continue
		} else if !errors.Is(err, os.ErrNotExist) {
			return "", fileError(aside, err)
		}
		if err := os.Rename(path, aside); err != nil {
			return "", fileError(path, err)
		}
		return aside, nil
	}
	return "", fmt.Errorf("log: %s cannot be moved aside: there are %s.old to .old%d already; remove them",
		path, path, mostAside)
}

// lockPatience is how long a lock may be held by a descriptor that the service manager has dropped, but not closed
// yet: systemd closes in the background. Tests make it shorter.
var lockPatience = 2 * time.Second

// lockFile opens and locks the file at a path. The lock is of the open file description (flock(2)): it goes along
// with a descriptor that another process holds or is given, and ends with the last one.
func lockFile(path string, flags int) (*os.File, error) {
	deadline := time.Now().Add(lockPatience)
	for {
		fd, err := unix.Open(path, flags|unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY, 0o600)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, fileError(path, err)
		}
		f := os.NewFile(uintptr(fd), path)
		if err = ours(fd); err == nil {
			err = lock(f)
		}
		if err == errLocked && time.Now().Before(deadline) {
			f.Close()
			time.Sleep(lockPatience / 100)
			continue
		}
		if err != nil {
			f.Close()
			return nil, fileError(path, err)
		}
		// Whoever had the lock until now may have put another file in its place.
		if isAt(f, path) {
			return f, nil
		}
		f.Close()
		if time.Now().After(deadline) {
			return nil, fileError(path, errors.New("the file is replaced again and again"))
		}
	}
}

var errLocked = errors.New("another process uses it; give each wscastd a log.path of its own")

func lock(f *os.File) error {
	err := flock(f, unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return errLocked
	}
	return err
}

// Unlock gives up the lock on a file, for all who have its descriptor. It is for one that came from another process
// and is not used.
func Unlock(f *os.File) error { return flock(f, unix.LOCK_UN) }

func flock(f *os.File, how int) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	cerr := raw.Control(func(fd uintptr) { err = unix.Flock(int(fd), how) })
	return errors.Join(cerr, os.NewSyscallError("flock", err))
}

// ours accepts what nobody else can write to.
func ours(fd int) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return os.NewSyscallError("fstat", err)
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return errors.New("it is not a regular file")
	case int(st.Uid) != os.Geteuid():
		return fmt.Errorf("it belongs to the user %d, and the daemon is %d; remove it or give it to the daemon's user",
			st.Uid, os.Geteuid())
	case st.Mode&0o077 != 0:
		return os.NewSyscallError("fchmod", unix.Fchmod(fd, 0o600))
	}
	return nil
}

// isAt tells whether a file is the one at a path.
func isAt(f *os.File, path string) bool {
	is, err := f.Stat()
	if err != nil {
		return false
	}
	at, err := os.Lstat(path)
	return err == nil && os.SameFile(is, at)
}

// reserveFile allocates all blocks of a file of that size.
func reserveFile(f *os.File, size int64) error {
	var limit unix.Rlimit
	// Beyond the limit there is a signal that Go programs die of (SIGXFSZ, setrlimit(2)).
	if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &limit); err == nil && limit.Cur < uint64(size) {
		return fmt.Errorf("the limit of a file's size is %d bytes (RLIMIT_FSIZE, LimitFSIZE= of a unit), and it needs %d",
			limit.Cur, size)
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	cerr := raw.Control(func(fd uintptr) {
		for err = unix.EINTR; err == unix.EINTR; {
			err = unix.Fallocate(int(fd), 0, 0, size)
		}
	})
	switch {
	case cerr != nil:
		return cerr
	case err == unix.ENOSPC, err == unix.EDQUOT:
		return fmt.Errorf("%w for %d MiB; make room, or make log.size smaller", err, size>>20)
	case err == unix.EOPNOTSUPP:
		return errors.New("this kind of file system cannot reserve space (fallocate); use one such as ext4, XFS or Btrfs")
	}
	return os.NewSyscallError("fallocate", err)
}

// fileError names the path, and says what can be done.
func fileError(path string, err error) error {
	var already *pathedError
	if errors.As(err, &already) {
		return err
	}
	var errno unix.Errno
	if !errors.As(err, &errno) {
		return &pathedError{path, err, ""}
	}
	hint := ""
	switch errno {
	case unix.ENOENT:
		hint = "make the directory, and give it to the daemon's user"
	case unix.EACCES, unix.EPERM:
		hint = "the daemon's user has to be able to write there"
	case unix.EROFS:
		hint = "systemd lets the service write below its state directory alone, where a relative log.path is"
	case unix.ELOOP:
		hint = "it must not be a symbolic link"
	}
	var wrapped *os.PathError
	var renamed *os.LinkError
	switch {
	case errors.As(err, &wrapped):
		err = wrapped.Err
	case errors.As(err, &renamed):
		err = renamed.Err
	}
	return &pathedError{path, err, hint}
}

type pathedError struct {
	path string
	err  error
	hint string
}

func (e *pathedError) Error() string {
	text := "log: " + e.path + ": " + strings.TrimPrefix(e.err.Error(), "log: ")
	if e.hint != "" {
		text += "; " + e.hint
	}
	return text
}

func (e *pathedError) Unwrap() error { return e.err }

// pathOf is where a file that came as a descriptor is, as far as this process can see.
func pathOf(f *os.File) string {
	raw, err := f.SyscallConn()
	if err != nil {
		return ""
	}
	var path string
	_ = raw.Control(func(fd uintptr) { path, _ = os.Readlink("/proc/self/fd/" + strconv.Itoa(int(fd))) })
	return path
}
