package msglog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// writeEvery is how long the disk may lack what was appended, and about what a power failure costs. Tests change it.
var writeEvery = time.Second

// A writer brings the log of a file to the disk now and then, in a goroutine. The kernel does so by itself, but after
// 30 s. A log that nobody appends to is left alone.
type writer struct {
	news       chan struct{} // has a token after an Append
	quit, done chan struct{}
	// The first failure, for ever: the kernel takes pages that it could not write for written.
	failed atomic.Pointer[error]
}

func (l *Log) startWriter() {
	l.writer = &writer{news: make(chan struct{}, 1), quit: make(chan struct{}), done: make(chan struct{})}
	go l.writer.run(l)
}

func (w *writer) run(l *Log) {
	defer close(w.done)
	for {
		select {
		case <-w.news:
		case <-w.quit:
			return
		}
		timer := time.NewTimer(writeEvery)
		select {
		case <-timer.C:
		case <-w.quit:
			timer.Stop()
			return
		}
		select { // a token for what is about to be written
		case <-w.news:
		default:
		}
		w.write(l)
	}
}

// tell is called with every Append.
func (w *writer) tell() {
	select {
	case w.news <- struct{}{}:
	default:
	}
}

// stop ends the goroutine; it may be called again.
func (w *writer) stop() {
	select {
	case <-w.done:
	default:
		close(w.quit)
		<-w.done
	}
}

// write brings all to the disk, and notes then how much that was, for the next time.
func (w *writer) write(l *Log) {
	head := l.Head()
	if err := dataSync(l.file); err != nil {
		err = fmt.Errorf("log: %s: %w; after a power failure newer messages may not be there", l.path, err)
		w.failed.CompareAndSwap(nil, &err)
	}
	if w.failed.Load() == nil {
		l.m.head.synced.Store(head)
	}
}

// Failure is what keeps a log with a file from being written to the disk, nil when nothing does.
func (l *Log) Failure() error {
	if l.writer == nil {
		return nil
	}
	if err := l.writer.failed.Load(); err != nil {
		return *err
	}
	return nil
}

// Finish brings all to the disk and notes there that the log was closed in good order: it keeps its epoch then. For a
// process that leaves the log to nobody, when nothing is appended any more. A log in memory has nothing to finish.
func (l *Log) Finish() error {
	if l.writer == nil {
		return nil
	}
	l.writer.stop()
	l.writer.write(l)
	if err := l.Failure(); err != nil {
		return err
	}
	l.m.head.closed.Store(l.m.head.closedMark())
	// Others may have its descriptor, and close it some time later.
	return errors.Join(dataSync(l.file), Unlock(l.file))
}

// closedMark is what closed has to be: about the log as it is, so that no appending can be forgotten.
func (h *header) closedMark() uint64 {
	var b []byte
	for _, n := range []uint64{h.epoch, h.head.Load(), h.tail.Load()} {
		b = binary.LittleEndian.AppendUint64(b, n)
	}
	return 1<<32 | uint64(checksum(b)) // never 0
}

// dataSync is fdatasync(2), which writes mapped pages as well.
func dataSync(f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	cerr := raw.Control(func(fd uintptr) {
		for err = unix.EINTR; err == unix.EINTR; {
			err = unix.Fdatasync(int(fd))
		}
	})
	return errors.Join(cerr, os.NewSyscallError("fdatasync", err))
}
