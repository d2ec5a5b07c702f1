// Package survive keeps client connections and what is known about them where they outlive the process.
//
// # Descriptors in flight
//
// A process can send an open file descriptor to another one over a Unix-domain socket (SCM_RIGHTS, unix(7)). From the moment it is sent until
// somebody receives it, the descriptor belongs to no process at all: it is in flight, held by the message in the socket's queue. If nobody
// ever reads the socket, it stays there; the connection behind it stays open, whatever happens to the process that has sent it.
// A connection in such a queue is parked.
//
// A socket with a queue is itself only open while somebody holds it. systemd does: a service can give it descriptors to
// keep (FDSTORE=1, sd_notify(3)), which it hands to the next process of the service. It could be given every client connection, but it
// compares each new descriptor with every one it has: 10,000 take it 48 seconds. So it is given a handful of socketpairs, and the connections
// are in flight within them:
//
//	             systemd (PID 1)                                       wscastd
//	┌──────────────────────────────────────┐             ┌──────────────────────────────────┐
//	│ log      memfd ──────────────────────┼─────────────┼─ mapped: the messages             │
//	│ table    memfd ──────────────────────┼─────────────┼─ mapped: a record for each client │
//	│ park.t.7 socketpair [fd][fd][fd]     │             │  fd, fd, fd, …                    │
//	│ park.b.3 socketpair [253 fds][253]…  │ <───sends── │                                   │
//	└──────────────────────────────────────┘             └──────────────────────────────────┘
//
// When the process is gone, however that came about, systemd starts the next one with the stored descriptors. It maps the log and the table,
// reads the queues without emptying them (MSG_PEEK), which gives it a descriptor for every connection, and goes on.
//
// # The lot
//
// A Lot is made of segments, each a socketpair in the store. A newcomer is parked by itself in the tail segment, before it is answered. A message in a
// queue costs 768 bytes of the socket's send buffer, so a segment holds 278 of them; a message can carry 253 descriptors (SCM_MAX_FD). So
// when the tail has 253, those that still live are sent once more, in one message, into a bulk segment, and the tail is emptied. A bulk segment
// holds 49 such messages, some 12,000 connections.
//
// Only the head of a queue can be taken out. A client that has left stays parked, as a closed socket, until its segment is given
// up: when most of a segment is dead, its living are parked elsewhere, then the segment is removed. In between a connection is parked twice, which does
// no harm: connections are told apart by their records, and the second one is closed unused. There is never a moment in which one that lives is not
// parked.
//
// # The table
//
// A record says whose it is (slot, generation, SO_COOKIE of the socket), to which channel the client belongs, and where it stands (Place). It is
// kept up to date by plain stores in mapped memory. The kernel knows what the record cannot: how many bytes were ever written to the socket
// (tcpi_bytes_acked + SIOCOUTQ) and read from it (tcpi_bytes_received − SIOCINQ). Together they say to the byte where a process was killed, also in the
// middle of a write.
//
// Nothing of the table is believed. A place has a sum (sum.go), and a client whose record is damaged is closed: any byte could be a wrong one.
//
// A client that is more than one channel of raw frames has more to be known than fits into a record: it is continued by extensions, which lie in
// the same table (extension.go).
//
// # The handover
//
// Connections of publishers are not parked while they are used: what has been read from them, and not answered, is nowhere
// but in the process. When a process ends in good order it brings each of them to rest at the boundary of a command and hands
// them over with a state (Hand, Received), in one more socketpair and a memfd. After a crash they are closed.
package survive
