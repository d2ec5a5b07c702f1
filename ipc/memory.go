package ipc

import "sync/atomic"

// A command that has not come as a whole is in a buffer, for as long as CommandTimeout, and a message may be large. What all connections together have
// in such buffers is bounded. It is -ERR rather than to wait: those who wait would hold what they have got, and with enough of them nobody would ever get
// the rest.
//
// The first smallBuffer bytes of a connection are its own, so that commands of usual size are never refused.
type memory struct {
	limit   atomic.Int64 // 0: none
	taken   atomic.Int64
	refused atomic.Uint64
}

const usedUp = "publish.memory is used up by commands that are not complete: send this one again"

// SetMemory sets how many bytes the commands that are not whole may take over all connections, beyond the first 16 KiB of each; 0, as at the
// beginning, is any number. It should not be less than LeastMemory.
func (s *Server) SetMemory(n int64) { s.memory.limit.Store(n) }

// LeastMemory is what one command with a message of that many bytes can take: buffers grow by doubling.
func LeastMemory(maxMessage int) int64 {
	return 2 * (max(int64(maxMessage), minArgument) + commandAllowed)
}

// share is what one connection has of the memory.
type share struct {
	of   *memory // nil: there is no limit
	size int64   // of the buffer, less smallBuffer
}

// grow takes what a buffer of n bytes needs, if that is there.
func (s *share) grow(n int) bool {
	if s.of == nil {
		return true
	}
	more := int64(n-smallBuffer) - s.size
	limit := s.of.limit.Load()
	if s.of.taken.Add(more) > limit && limit > 0 {
		s.of.taken.Add(-more)
		s.of.refused.Add(1)
		return false
	}
	s.size += more
	return true
}

// need takes it in any case: for a buffer that there is already.
func (s *share) need(n int) {
	if s.of != nil {
		more := int64(n-smallBuffer) - s.size
		s.of.taken.Add(more)
		s.size += more
	}
}

// give gives all of it back.
func (s *share) give() {
	if s.of != nil {
		s.of.taken.Add(-s.size)
		s.size = 0
	}
}
