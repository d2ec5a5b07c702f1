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

func (g *ring) startWriter() {
	g.writer = &writer{news: make(chan struct{}, 1), quit: make(chan struct{}), done: make(chan struct{})}
	go g.writer.run(g)
}

func (w *writer) run(g *ring) {
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
		w.write(g)
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
func (w *writer) write(g *ring) {
	head := g.m.head.head.Load()
	g.m.head.given.Store(g.log.Head())
	if err := dataSync(g.file); err != nil {
		err = fmt.Errorf("log: %s: %w; after a power failure newer messages may not be there", g.path, err)
		w.failed.CompareAndSwap(nil, &err)
	}
	if w.failed.Load() == nil {
		g.m.head.synced.Store(head)
	}
}

// Failure is what keeps a log with a file from being written to the disk, nil when nothing does.
func (l *Log) Failure() error {
	for _, g := range l.rings {
		if g.writer != nil {
			if err := g.writer.failed.Load(); err != nil {
				return *err
			}
		}
	}
	return nil
}

// Finish brings all to the disk and notes there that the log was closed in good order: it keeps its epoch then. For a
// process that leaves the log to nobody, when nothing is appended any more. Rings in memory have nothing to finish.
func (l *Log) Finish() error {
	var errs []error
	for _, g := range l.rings {
		errs = append(errs, g.finish())
	}
	return errors.Join(errs...)
}

func (g *ring) finish() error {
	if g.writer == nil {
		return nil
	}
	g.writer.stop()
	g.writer.write(g)
	if err := g.writer.failed.Load(); err != nil {
		return *err
	}
	g.m.head.closed.Store(g.m.head.closedMark())
	// Others may have its descriptor, and close it some time later.
	return errors.Join(dataSync(g.file), Unlock(g.file))
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
