package survive

import (
	"bytes"
	"fmt"
	"testing"

	"golang.org/x/sys/unix"

	"wscast/daemon/survive/shelf"
)

func TestHandedConnectionsAreReceived(t *testing.T) {
	for _, n := range []int{0, 1, 253, 254, 1000} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			s := shelf.New(t)
			var handed []Handed
			var cookies []uint64
			for i := range n {
				fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
				if err != nil {
					t.Fatal(err)
				}
				cookie, err := Cookie(fd)
				if err != nil {
					t.Fatal(err)
				}
				cookies = append(cookies, cookie)
				handed = append(handed, Handed{fd, bytes.Repeat([]byte{byte(i)}, i)})
			}
			if left, err := Hand(s, handed); left != 0 || err != nil {
				t.Fatalf("%d are left, %v", left, err)
			}
			received, err := Received(s, s.Next())
			if err != nil || len(received) != n {
				t.Fatalf("%d are received, %v", len(received), err)
			}
			for i, h := range received {
				if cookie, err := Cookie(h.FD); err != nil || cookie != cookies[i] || !bytes.Equal(h.State, bytes.Repeat([]byte{byte(i)}, i)) {
					t.Errorf("connection %d is another one, or its state is: %v", i, err)
				}
				unix.Close(h.FD)
			}
			if s.Len() != 0 {
				t.Errorf("%d descriptors are still stored", s.Len())
			}
			if again, err := Received(s, s.Next()); err != nil || len(again) != 0 {
				t.Errorf("received twice: %d, %v", len(again), err)
			}
		})
	}
}

// A state that was cut off is no reason to lose the connections before it, nor to panic.
func TestHandedStatesCutOff(t *testing.T) {
	s := shelf.New(t)
	var handed []Handed
	for range 2 {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		handed = append(handed, Handed{fd, []byte("state")})
	}
	if _, err := Hand(s, handed); err != nil {
		t.Fatal(err)
	}
	if err := unix.Ftruncate(s.FD(handedStates), 8+5+8+4); err != nil {
		t.Fatal(err)
	}
	received, err := Received(s, s.Next())
	if err != nil || len(received) != 2 || string(received[0].State) != "state" || received[1].State != nil {
		t.Errorf("received %v, %v", received, err)
	}
	for _, h := range received {
		unix.Close(h.FD)
	}
}
