package survive

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// patience is how long a test waits for what has to come, and only then fails.
const patience = 20 * time.Second

// tcpPair is a TCP connection: our end as a non-blocking descriptor, and the client.
func tcpPair(t testing.TB) (fd int, client *net.TCPConn) {
	t.Helper()
	var config net.ListenConfig
	config.SetMultipathTCP(false)
	ln, err := config.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	conn, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	ours, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	raw, _ := ours.(*net.TCPConn).SyscallConn()
	if cerr := raw.Control(func(s uintptr) { fd, err = unix.FcntlInt(s, unix.F_DUPFD_CLOEXEC, 0) }); cerr != nil || err != nil {
		t.Fatal(cerr, err)
	}
	t.Cleanup(func() { unix.Close(fd); conn.Close() })
	return fd, conn.(*net.TCPConn)
}

func unixPair(t testing.TB) (ours, theirs int) {
	t.Helper()
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(p[0]); unix.Close(p[1]) })
	return p[0], p[1]
}

func write(t testing.TB, fd int, n int) {
	t.Helper()
	if n == 0 {
		return
	}
	if got, err := unix.Write(fd, make([]byte, n)); got != n || err != nil {
		t.Fatal(got, err)
	}
}

// read reads exactly n bytes.
func read(t testing.TB, fd int, n int) {
	t.Helper()
	b := make([]byte, n)
	for n > 0 {
		await(t, fd, unix.POLLIN)
		got, err := unix.Read(fd, b[:n])
		if got <= 0 || err != nil {
			t.Fatal(got, err)
		}
		n -= got
	}
}

func await(t testing.TB, fd int, events int16) {
	t.Helper()
	p := []unix.PollFd{{Fd: int32(fd), Events: events}}
	for {
		n, err := unix.Poll(p, int(patience/time.Millisecond))
		if err == unix.EINTR {
			continue
		}
		if n != 1 || err != nil {
			t.Fatalf("nothing comes: %d, %v", n, err)
		}
		return
	}
}

// unread waits until so many bytes are there to be read.
func unread(t testing.TB, fd, n int) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; {
		got, err := unix.IoctlGetInt(fd, unix.SIOCINQ)
		if err != nil || time.Now().After(deadline) {
			t.Fatal(got, err)
		}
		if got == n {
			return
		}
		await(t, fd, unix.POLLIN)
	}
}

// newRecord is an open one that stands at p.
func newRecord(state State, p Place) *Record {
	r := new(Record)
	r.channel = 3
	r.Stand(p)
	r.SetState(state)
	return r
}

// Wherever a process was killed, the kernel's count says which bytes are out: of what, is in the record.
func TestStandsAtEveryByte(t *testing.T) {
	const base, extra, frames = 50, 7, 9
	for written := range base + extra + frames + 1 {
		for _, extra := range []int{0, extra} {
			for _, acknowledged := range []bool{false, true} {
				fd, client := tcpPair(t)
				r := newRecord(Open, Place{Cursor: 8, Base: base, Extra: uint32(extra), In: 5})
				r.SetExtra(0, []byte("1234567"))
				r.Stand(Place{Cursor: 8, Base: base, Extra: uint32(extra), In: 5})
				write(t, fd, written)
				if acknowledged {
					if _, err := io.ReadFull(client, make([]byte, written)); err != nil {
						t.Fatal(err)
					}
				}
				s, err := r.Stands(fd)
				unix.Close(fd)
				client.Close()
				if written < base {
					if err == nil {
						t.Fatalf("%d bytes are out, and the record says that %d are", written, base)
					}
					continue
				}
				over := written - base
				left, wantBase := []byte(nil), base
				if over < extra {
					left = []byte("1234567")[over:]
				} else {
					over -= extra
					wantBase += extra
				}
				if err != nil || s.State != Open || s.Channel != 3 || s.Cursor != 8 || s.In != 5 ||
					s.Over != uint64(over) || s.Base != uint64(wantBase) || !bytes.Equal(s.Extra, left) || s.Repaired() != (over > 0 || left != nil) {
					t.Fatalf("%d written, %d extra: %+v, %v", written, extra, s, err)
				}
			}
		}
	}
}

// Extra bytes that found no room in the record are lost. That is bearable as long as none of them is out.
func TestExtraWithoutRoom(t *testing.T) {
	fd, _ := tcpPair(t)
	r := newRecord(Closing, Place{Extra: uint32(MaxExtra + 1), Marks: Goodbye})
	if s, err := r.Stands(fd); err != nil || s.Extra != nil || s.Over != 0 || s.Marks&Goodbye != 0 {
		t.Fatalf("%+v, %v", s, err)
	}
	write(t, fd, 1)
	if s, err := r.Stands(fd); err == nil {
		t.Fatalf("%+v", s)
	}
	write(t, fd, MaxExtra)
	if s, err := r.Stands(fd); err != nil || s.Extra != nil || s.Over != 0 || s.Marks&Goodbye == 0 {
		t.Fatalf("%+v, %v", s, err)
	}
}

func TestAnsweringStands(t *testing.T) {
	const answer = 20
	for written := range answer + 3 {
		fd, client := tcpPair(t)
		if _, err := client.Write(make([]byte, 30)); err != nil {
			t.Fatal(err)
		}
		unread(t, fd, 30)
		r := newRecord(Opening, Place{})
		r.Answer(7, Place{Cursor: 4, Base: answer, Received: 30})
		write(t, fd, written)
		s, err := r.Stands(fd)
		switch {
		case written == 0 && err == nil && s.State == Opening:
		case written == answer && err == nil && s.State == Open && s.Channel == 7 && s.Cursor == 4 && s.Base == answer && s.Over == 0 && s.Discard == 30:
		case written != 0 && written != answer && err != nil:
		default:
			t.Fatalf("%d of %d bytes are out: %+v, %v", written, answer, s, err)
		}
		unix.Close(fd)
		client.Close()
	}
}

func TestOpeningStands(t *testing.T) {
	fd, client := tcpPair(t)
	r := newRecord(Opening, Place{})
	if _, err := client.Write(make([]byte, 30)); err != nil {
		t.Fatal(err)
	}
	unread(t, fd, 30)
	if s, err := r.Stands(fd); err != nil || s.State != Opening {
		t.Fatalf("%+v, %v", s, err)
	}
	read(t, fd, 1)
	if s, err := r.Stands(fd); err == nil {
		t.Fatalf("the request was read, and it stands: %+v", s)
	}
	write(t, fd, 10)
	if s, err := r.Stands(fd); err != nil || s.State != Closing || s.Channel != NoChannel {
		t.Fatalf("answered with something else than 101: %+v, %v", s, err)
	}
}

// What was dealt with and not read is discarded; what was read and not dealt with cannot be had again. The other side's end changes nothing.
func TestInputStands(t *testing.T) {
	for _, ended := range []bool{false, true} {
		for taken := range 31 {
			for _, received := range []int{0, 10, 30} {
				fd, client := tcpPair(t)
				if _, err := client.Write(make([]byte, 30)); err != nil {
					t.Fatal(err)
				}
				if ended {
					if err := client.CloseWrite(); err != nil {
						t.Fatal(err)
					}
					await(t, fd, unix.POLLRDHUP)
				}
				unread(t, fd, 30)
				read(t, fd, taken)
				if ended && taken == 30 { // the end was read as well
					read(t, fd, 0)
					if n, err := unix.Read(fd, make([]byte, 1)); n != 0 || err != nil {
						t.Fatal(n, err)
					}
				}
				s, err := newRecord(Open, Place{Received: uint64(received)}).Stands(fd)
				if taken > received {
					if !errors.Is(err, ErrInput) {
						t.Fatalf("%d read, %d dealt with: %+v, %v", taken, received, s, err)
					}
				} else if err != nil || s.Discard != uint64(received-taken) {
					t.Fatalf("%d read, %d dealt with, ended %v: %+v, %v", taken, received, ended, s, err)
				}
				s, err = newRecord(Closing, Place{Received: uint64(received), Marks: Awaited}).Stands(fd)
				if err != nil || taken > received && s.Marks&Awaited != 0 {
					t.Fatalf("closing: %d read, %d dealt with: %+v, %v", taken, received, s, err)
				}
				unix.Close(fd)
				client.Close()
			}
		}
	}
}

// Our own end is not taken for a byte of a message.
func TestShutStands(t *testing.T) {
	fd, client := tcpPair(t)
	write(t, fd, 20)
	if err := unix.Shutdown(fd, unix.SHUT_WR); err != nil {
		t.Fatal(err)
	}
	check := func(when string) {
		t.Helper()
		s, err := newRecord(Closing, Place{Base: 20, Marks: Goodbye | Awaited}).Stands(fd)
		if err != nil || !s.Shut || s.Over != 0 || s.Extra != nil || s.Marks != Goodbye|Awaited {
			t.Fatalf("%s: %+v, %v", when, s, err)
		}
		if s, err := newRecord(Open, Place{Base: 20}).Stands(fd); !errors.Is(err, ErrGone) {
			t.Fatalf("%s, open: %+v, %v", when, s, err)
		}
	}
	check("on its way")
	if _, err := io.ReadAll(client); err != nil {
		t.Fatal(err)
	}
	check("acknowledged")
	client.Close()
	await(t, fd, unix.POLLHUP)
	if s, err := newRecord(Closing, Place{Base: 20}).Stands(fd); !errors.Is(err, ErrGone) {
		t.Fatalf("both sides have ended: %+v, %v", s, err)
	}
}

func TestResetStands(t *testing.T) {
	fd, client := tcpPair(t)
	if err := client.SetLinger(0); err != nil {
		t.Fatal(err)
	}
	client.Close()
	await(t, fd, unix.POLLHUP)
	if s, err := newRecord(Open, Place{}).Stands(fd); !errors.Is(err, ErrGone) {
		t.Fatalf("%+v, %v", s, err)
	}
}

// A Unix-domain socket counts nothing: what the record says is believed, unless it says that a call was under way.
func TestUncountedStands(t *testing.T) {
	ours, _ := unixPair(t)
	r := newRecord(Open, Place{Base: 10, Out: 15, Received: 6})
	if s, err := r.Stands(ours); err != nil || s.Over != 5 || s.Discard != 0 {
		t.Fatalf("%+v, %v", s, err)
	}
	r.Writing()
	if s, err := r.Stands(ours); !errors.Is(err, ErrInterrupted) {
		t.Fatalf("%+v, %v", s, err)
	}
	r.Stand(Place{Base: 20, Out: 20, Received: 6, Marks: Held})
	if s, err := r.Stands(ours); !errors.Is(err, ErrInput) || s.Over != 0 {
		t.Fatalf("%+v, %v", s, err)
	}
	r = newRecord(Opening, Place{})
	r.Answer(1, Place{Base: 30, Received: 40})
	if s, err := r.Stands(ours); err != nil || s.State != Opening {
		t.Fatalf("%+v, %v", s, err)
	}
}

// What is no socket of a client is refused.
func TestNoSocketStands(t *testing.T) {
	null, err := unix.Open(os.DevNull, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	udp, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range []int{null, udp} {
		if s, err := newRecord(Open, Place{}).Stands(fd); err == nil {
			t.Errorf("%+v", s)
		}
		unix.Close(fd)
	}
}

// Any record is judged without a panic, and what it yields is within bounds.
func FuzzStands(f *testing.F) {
	r := newRecord(Open, Place{Cursor: 1, Base: 10, Extra: 20, Received: 5})
	f.Add(bytes.Clone(image(r)), uint8(12), uint8(4))
	f.Add(make([]byte, recordSize), uint8(0), uint8(0))
	f.Add(bytes.Repeat([]byte{0xff}, int(recordSize)), uint8(1), uint8(1))
	f.Fuzz(func(t *testing.T, b []byte, written, taken uint8) {
		fd, client := tcpPair(t)
		defer client.Close()
		if _, err := client.Write(make([]byte, 255)); err != nil {
			t.Fatal(err)
		}
		write(t, fd, int(written))
		unread(t, fd, 255)
		read(t, fd, int(taken))
		r := new(Record)
		copy(image(r), b)
		s, err := r.Stands(fd)
		if err == nil && (s.Over > 1<<32 || len(s.Extra) > MaxExtra || s.State < Opening) {
			t.Errorf("%+v", s)
		}
	})
}

func image(r *Record) []byte { return unsafe.Slice((*byte)(unsafe.Pointer(r)), recordSize) }
