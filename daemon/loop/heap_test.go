package loop

import (
	"runtime"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// heap is how many bytes are in use that something refers to.
func heap() int {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC() // what the first one has found may have been kept by a pool or a finalizer
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc)
}

// visitors are the far ends of connections of which a loop has the near ones.
type visitors []int

// come brings so many clients into a loop whose goroutine is the test's, some at a time, and has them answered.
func (v visitors) come(t *testing.T, l *loop, n int) visitors {
	t.Helper()
	const atOnce = 100
	ask := []byte(request("news"))
	for range n / atOnce {
		for range atOnce {
			p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := unix.Write(p[1], ask); err != nil {
				t.Fatal(err)
			}
			l.newcomers = append(l.newcomers, arrival(t, l.keep, p[0]))
			v = append(v, p[1])
		}
		for l.turn(); l.count.Opening > 0; l.turn() {
			l.ready = epollWait(l.epfd, l.events[:])
		}
	}
	return v
}

// leave closes them, and lets the loop notice.
func (v visitors) leave(l *loop) visitors {
	for _, fd := range v {
		unix.Close(fd)
	}
	for l.count.Clients > 0 {
		l.ready = epollWait(l.epfd, l.events[:])
		l.turn()
	}
	return v[:0]
}

// An idle client costs its place in a block of clients, and one in the list of its channel; nothing else of the heap.
func TestHeapOfIdleClients(t *testing.T) {
	const clients = 2500 // of ten blocks
	l, _, _ := still(t, &linux, 0)
	v := make(visitors, 0, clients).come(t, l, 100).leave(l)
	before := heap()
	v = v.come(t, l, clients)
	each := float64(heap()-before) / clients
	t.Logf("%.1f bytes of the heap for an idle client, %d of them its own", each, unsafe.Sizeof(client{}))
	if most := float64(unsafe.Sizeof(client{}) + 32); each > most {
		t.Errorf("%.1f bytes of the heap for an idle client, at most are %.0f", each, most)
	}
	v.leave(l)
	runtime.KeepAlive(l)
}

// 10,000 handshakes, and as many clients that leave, keep nothing of the heap: what a loop has for 1,000 clients at a time is used again.
func TestHandshakesLeaveNoHeap(t *testing.T) {
	const wave, waves = 1000, 10
	l, _, _ := still(t, &linux, 0)
	v := make(visitors, 0, wave).come(t, l, wave).leave(l)
	before := heap()
	for range waves {
		v = v.come(t, l, wave).leave(l)
	}
	if l.count.Handshakes != wave+wave*waves {
		t.Fatalf("%d handshakes", l.count.Handshakes)
	}
	left := heap() - before
	t.Logf("%d bytes are left of %d handshakes", left, wave*waves)
	if left > wave*waves*16 {
		t.Errorf("%d bytes are left of %d handshakes", left, wave*waves)
	}
	runtime.KeepAlive(l)
}
