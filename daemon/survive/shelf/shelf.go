// Package shelf keeps descriptors as systemd's store does, for tests: duplicates, by name, for the next process.
package shelf

import (
	"fmt"
	"os"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// Shelf is a survive.Keeper. Its methods are safe for concurrent use.
type Shelf struct {
	t testing.TB

	mu    sync.Mutex
	files map[string]int
	err   error // of Push
}

// New makes an empty one, which is emptied when the test ends.
func New(t testing.TB) *Shelf {
	s := &Shelf{t: t, files: make(map[string]int)}
	t.Cleanup(func() {
		for _, fd := range s.files {
			unix.Close(fd)
		}
	})
	return s
}

// Push keeps a duplicate. A name that is taken is a mistake.
func (s *Shelf) Push(name string, fd int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return s.err
	}
	if _, there := s.files[name]; there {
		return fmt.Errorf("%s is stored twice", name)
	}
	return s.put(name, fd)
}

// Again keeps a duplicate of what is not there.
func (s *Shelf) Again(name string, fd int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, there := s.files[name]; there {
		return nil
	}
	return s.put(name, fd)
}

func (s *Shelf) put(name string, fd int) (err error) {
	d, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err == nil {
		s.files[name] = d
	}
	return err
}

// Remove closes what is kept under a name.
func (s *Shelf) Remove(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if fd, there := s.files[name]; there {
		unix.Close(fd)
		delete(s.files, name)
	}
	return nil
}

// Refuse makes every further Push fail with err, or none with nil.
func (s *Shelf) Refuse(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err = err
}

// FD is what is kept under a name, -1 if there is nothing.
func (s *Shelf) FD(name string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if fd, there := s.files[name]; there {
		return fd
	}
	return -1
}

// Len is how many are kept.
func (s *Shelf) Len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.files)
}

// Next is what the next process starts with.
func (s *Shelf) Next() (files []*os.File) {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, fd := range s.files {
		d, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			s.t.Fatal(err)
		}
		files = append(files, os.NewFile(uintptr(d), name))
	}
	return files
}
