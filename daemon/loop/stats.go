package loop

// Stats are counted by each loop for itself and shown to others after every turn.
type Stats struct {
	// Now.
	Clients uint64 // connections, in whichever state
	Opening uint64 // of them: before the answer to the request
	Closing uint64 // of them: after our close frame, or an answer that was no upgrade
	Blocked uint64 // of them: with a full socket

	// At the start.
	Adopted  uint64 // clients taken over from an earlier process
	Repaired uint64 // of them: caught in the middle of a write
	Lost     uint64 // not taken over, or closed then

	// Since the start.
	Handshakes uint64 // answered with 101
	Refused    uint64 // answered with anything else
	Turned     uint64 // of them: good requests over Config.MaxClients or MaxPerAddress
	TimedOut   uint64 // no request in time, or no sign of life
	Deliveries uint64 // messages sent as a whole, counted for each client
	Sent       uint64 // bytes given to sockets
	Received   uint64 // messages from clients
	Rejected   uint64 // of them: commands that were answered with an error
	Published  uint64 // of them: appended to the log
	Pings      uint64
	Slow       uint64 // times that a client was found to be slow
	Closed     [closeClasses]uint64
}

// Classes of Stats.Closed: how open clients ended.
const (
	closeNormal   = iota // the client said good-bye
	closeAbnormal        // without a close frame
	closeFailed          // by us: the client broke the protocol
	closeSlow            // by us: slow
	closeStopped         // by us: the daemon stops
	closeExpired         // by us: its token has expired
	closeTooFast         // by us: it has sent too much in a second
	closeClasses
)

// CloseClasses are the names of Stats.Closed, in order.
var CloseClasses = [closeClasses]string{"by_client", "gone", "protocol_error", "slow", "stopped", "expired", "too_fast"}

func (s *Stats) add(o *Stats) {
	s.Clients += o.Clients
	s.Opening += o.Opening
	s.Closing += o.Closing
	s.Blocked += o.Blocked
	s.Adopted += o.Adopted
	s.Repaired += o.Repaired
	s.Lost += o.Lost
	s.Handshakes += o.Handshakes
	s.Refused += o.Refused
	s.Turned += o.Turned
	s.TimedOut += o.TimedOut
	s.Deliveries += o.Deliveries
	s.Sent += o.Sent
	s.Received += o.Received
	s.Rejected += o.Rejected
	s.Published += o.Published
	s.Pings += o.Pings
	s.Slow += o.Slow
	for i, n := range o.Closed {
		s.Closed[i] += n
	}
}

// Stats of all loops, as of their last turns.
func (g *Loops) Stats() Stats {
	var sum Stats
	for _, l := range g.loops {
		l.mu.Lock()
		sum.add(&l.shown)
		l.mu.Unlock()
	}
	return sum
}

// Len is the number of loops.
func (g *Loops) Len() int { return len(g.loops) }
