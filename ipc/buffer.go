package ipc

import (
	"math/bits"
	"sync"
)

// A connection holds a buffer only while it has bytes in it: one that waits for its next command has
// none, so that thousands of idle publishers cost a goroutine each and little else.

const (
	smallBuffer = 16 << 10
	largeBuffer = 64 << 10 // what a publisher that keeps the small one full is given
)

// buffer is a pooled byte slice; b has its full capacity in use or any part of it.
type buffer struct{ b []byte }

// pools[k] holds buffers of 1<<k to 1<<(k+1) - 1 bytes; what is not used is left to the garbage collector.
var pools [64]sync.Pool

// getBuffer returns a buffer of length and capacity at least n.
func getBuffer(n int) *buffer {
	n = max(n, smallBuffer)
	k := bits.Len(uint(n - 1))
	if p, ok := pools[k].Get().(*buffer); ok {
		p.b = p.b[:cap(p.b)]
		return p
	}
	return &buffer{b: make([]byte, 1<<k)}
}

func putBuffer(p *buffer) {
	if p != nil && cap(p.b) >= smallBuffer {
		pools[bits.Len(uint(cap(p.b)))-1].Put(p)
	}
}
