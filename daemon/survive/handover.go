package survive

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"wscast/daemon/failpoint"
)

// Handed is a connection that one process leaves to the next, with a state that says where it stands.
type Handed struct {
	FD    int
	State []byte
}

// Names of what is handed over: the states, one after the other in a memfd, and the two ends of the queue in which the
// descriptors are, in the same order.
const (
	handedStates = "handed.states"
	handedTx     = "handed.tx"
	handedRx     = "handed.rx"
)

// IsHanded tells whether a stored descriptor of that name is of a handover.
func IsHanded(name string) bool {
	return name == handedStates || name == handedTx || name == handedRx
}

// mostStates is more bytes than the states of 12,397 publishers are: what else has the name of theirs does not take all
// memory.
const mostStates = 1 << 32

// Hand leaves connections to the next process, and closes this process's descriptors of them. It is for a process that ends in
// good order: what was handed over is not kept up to date. At most 12,397 fit (see the package's documentation); those that
// do not are closed, and counted in left.
func Hand(keeper Keeper, handed []Handed) (left int, err error) {
	defer func() {
		for _, h := range handed {
			unix.Close(h.FD)
		}
	}()
	states, err := unix.MemfdCreate("wscast-handed", unix.MFD_CLOEXEC)
	if err != nil {
		return len(handed), fmt.Errorf("handing over: memfd_create: %w", err)
	}
	file := os.NewFile(uintptr(states), handedStates)
	defer file.Close()
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return len(handed), fmt.Errorf("handing over: socketpair: %w", err)
	}
	defer unix.Close(p[0])
	defer unix.Close(p[1])
	done := 0
	for done < len(handed) {
		n := min(perMessage, len(handed)-done)
		var b []byte
		fds := make([]int, n)
		for i, h := range handed[done : done+n] {
			b = binary.NativeEndian.AppendUint64(b, uint64(len(h.State)))
			b = append(b, h.State...)
			fds[i] = h.FD
		}
		if _, err = file.Write(b); err != nil {
			break
		}
		failpoint.Pass("hand.written")
		if err = unix.Sendmsg(p[0], make([]byte, n*parkedSize), unix.UnixRights(fds...), nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL); err != nil {
			break
		}
		done += n
	}
	failpoint.Pass("hand.sent")
	// What was sent has its states in front of the rest.
	stored := keeper.Push(handedStates, states)
	failpoint.Pass("hand.one")
	stored = errors.Join(stored, keeper.Push(handedTx, p[0]))
	failpoint.Pass("hand.two")
	stored = errors.Join(stored, keeper.Push(handedRx, p[1]))
	failpoint.Pass("hand.three")
	if stored != nil {
		done = 0
	}
	return len(handed) - done, errors.Join(err, stored)
}

// Received takes over what an earlier process has handed over, out of the stored files, which it consumes. It is
// taken out of the store first: a process that is killed while it serves those connections must not have an heir that goes on
// from where they stood before.
func Received(keeper Keeper, stored []*os.File) (handed []Handed, err error) {
	var states, rx *os.File
	for _, f := range stored {
		defer f.Close()
		err = errors.Join(err, keeper.Remove(f.Name()))
		failpoint.Pass("hand.received")
		switch f.Name() {
		case handedStates:
			states = f
		case handedRx:
			rx = f
		}
	}
	if states == nil || rx == nil || err != nil {
		return nil, err
	}
	fd, err := takeFd(rx)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	var fds []int
	err = (&segment{rx: fd}).read(func(_ []byte, fd int) bool {
		fds = append(fds, fd)
		return true
	})
	var text []byte
	if info, e := states.Stat(); e != nil {
		err = errors.Join(err, e)
	} else { // from its beginning: its offset is where the writer left it
		text, e = io.ReadAll(io.NewSectionReader(states, 0, min(info.Size(), mostStates)))
		err = errors.Join(err, e)
	}
	if err != nil {
		for _, fd := range fds {
			unix.Close(fd)
		}
		return nil, fmt.Errorf("handed over: %w", err)
	}
	for _, fd := range fds {
		h := Handed{FD: fd}
		if len(text) >= 8 {
			if n := binary.NativeEndian.Uint64(text); n <= uint64(len(text)-8) {
				h.State, text = text[8:8+n:8+n], text[8+n:]
			} else {
				text = nil
			}
		}
		handed = append(handed, h)
	}
	return handed, nil
}
