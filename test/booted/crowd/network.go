package crowd

import (
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"
)

// Network is a proxy between clients and a server that does what networks do. It hands bytes on as they come until Rough; from then on each
// connection carries so many bytes, a random number in each direction, and ends in one of the ways that there are.
type Network struct {
	t        testing.TB
	listener net.Listener
	server   string
	ended    sync.WaitGroup

	mu    sync.Mutex
	most  int // bytes of a connection; 0: any number
	pipes map[*pipe]struct{}
	cuts  int
}

// pipe is a connection through the network.
type pipe struct {
	client, server *net.TCPConn
	left           [2]int // bytes until it is cut, upstream and downstream; -1: it is not
}

// Between starts a network to a server's host:port; it ends with the test.
func Between(t testing.TB, server string) *Network {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n := &Network{t: t, listener: l, server: server, pipes: map[*pipe]struct{}{}}
	n.ended.Go(n.accept)
	t.Cleanup(func() {
		l.Close()
		n.mu.Lock()
		for p := range n.pipes {
			p.cut()
		}
		n.mu.Unlock()
		n.ended.Wait()
	})
	return n
}

// Address is where clients connect.
func (n *Network) Address() string { return n.listener.Addr().String() }

// Rough cuts each connection after at most that many bytes, from now on. 0: no more of them.
func (n *Network) Rough(bytes int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.most = bytes
	for p := range n.pipes {
		n.deal(p)
	}
}

// Cuts is how many connections were cut.
func (n *Network) Cuts() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.cuts
}

// deal decides how many bytes a connection carries from now on. Upstream are few, and a connection that is cut there is cut in the middle of its request.
func (n *Network) deal(p *pipe) {
	p.left = [2]int{-1, -1}
	if n.most > 0 {
		p.left[1] = rand.IntN(n.most)
		if rand.IntN(4) == 0 {
			p.left[0] = rand.IntN(300)
		}
	}
}

func (n *Network) accept() {
	for {
		client, err := n.listener.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial("tcp4", n.server)
		if err != nil {
			client.Close()
			continue
		}
		p := &pipe{client: client.(*net.TCPConn), server: server.(*net.TCPConn)}
		n.mu.Lock()
		n.deal(p)
		n.pipes[p] = struct{}{}
		n.mu.Unlock()
		n.ended.Go(func() {
			var both sync.WaitGroup
			both.Go(func() { n.carry(p, 0, p.client, p.server) })
			both.Go(func() { n.carry(p, 1, p.server, p.client) })
			both.Wait()
			n.mu.Lock()
			delete(n.pipes, p)
			n.mu.Unlock()
		})
	}
}

// errCut is the end of a connection that has carried its bytes.
var errCut = errors.New("cut")

// carry hands on what comes in one direction.
func (n *Network) carry(p *pipe, direction int, from, to *net.TCPConn) {
	b := make([]byte, 16<<10)
	for {
		got, err := from.Read(b)
		n.mu.Lock()
		send := got
		if left := p.left[direction]; left >= 0 {
			if send = min(got, left); send < got || left == 0 {
				err = errCut
				n.cuts++
			}
			p.left[direction] -= send
		}
		n.mu.Unlock()
		if send > 0 {
			if _, failed := to.Write(b[:send]); failed != nil && err == nil {
				err = failed
			}
		}
		switch err {
		case nil:
			continue
		case errCut:
			n.end(p)
		case io.EOF:
			_ = to.CloseWrite() // the other direction goes on
			return
		default:
			p.cut()
		}
		return
	}
}

// mute is how long an end is not noticed at most.
const mute = 50 * time.Millisecond

// end ends a connection: what is on its way is lost. Either both ends notice at once, or one of them notices later, if the server, so long that
// the client is there anew meanwhile.
func (n *Network) end(p *pipe) {
	switch rand.IntN(4) {
	case 0:
		_ = p.client.CloseWrite() // as a server would end it
	case 1:
		reset := p.client
		_ = reset.SetLinger(0)
		reset.Close()
		// The server sends into the void for a while.
		_ = p.server.SetReadDeadline(time.Now().Add(time.Duration(rand.Int64N(int64(mute)))))
		_, _ = io.Copy(io.Discard, p.server)
	case 2:
		_ = p.server.SetReadDeadline(time.Now().Add(time.Duration(rand.Int64N(int64(mute)))))
		_, _ = io.Copy(io.Discard, p.server)
	}
	p.cut()
}

// cut resets both sides.
func (p *pipe) cut() {
	for _, c := range []*net.TCPConn{p.client, p.server} {
		_ = c.SetLinger(0)
		_ = c.Close()
	}
}
