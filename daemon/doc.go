// Package daemon is wscastd: it wires the publish socket, the log and the event loops together.
//
// # Reading order
//
// README.md, doc/protocol.txt, ipc, this page, daemon/msglog, daemon/loop, daemon/survive, daemon/frame, cmd/wscastd.
//
// # Who owns what
//
//		publisher ──Unix socket──> ipc.Server ──Daemon.Publish──> msglog.Log ──Reader.tell──> loop.Loops ──TCP or Unix──> nginx ──> browser
//		                              ▲                              │
//		local subscriber <────────────┴────── msglog.Follower <──────┘
//
//	  - The sockets come from systemd, or are bound by Bind, before there is a Daemon: it is given descriptors, not
//	    addresses, and cannot tell systemd from a test.
//	  - The log owns the messages, the channels and the count of their clients. Its memory outlives the process if the
//	    descriptor does; with log.path it is a file, which outlives the machine's run.
//	  - Each loop owns its clients. What the daemon knows about HTTP, the handshaker, is called by the loops.
//	  - The connection table and the parking lot (survive.Keep) have what the next process needs to know of the clients, and
//	    the connections themselves. systemd has a duplicate of the log's, the table's and the lot's descriptors.
//	  - ipc.Server owns publishers and local subscribers; the Daemon is its Broker.
//
// # Goroutines
//
// One for each loop, for their clock, for a log with a file, for each listening socket, for each publisher (two when it subscribes), and the
// one that called Run, which waits for signals, tells systemd how things are, and is the only one that reloads.
// There is none for a client.
//
// # Locks
//
// In the order in which they are taken: ipc's, then msglog.Log's, then a Reader's. The locks of the lot and of the table
// are taken by loops that hold none, the table's under the lot's. A loop's own lock is taken with none of them held. The configuration is replaced as a whole, behind an atomic pointer.
//
// # Failure
//
// A socket of the wrong kind or name, and a configuration that cannot be used, are errors before there is a Daemon, and
// name what is wrong; a bad file at a reload changes nothing. An error that concerns one client or publisher ends there.
// An error of a listening socket, and a signal, end Run; the process exits, and systemd starts the next one on the same
// sockets, and on what survives. Whatever way the process ends, the next one starts in the one way there is: it takes
// over what is there (survival.go). A loop that stands still keeps WATCHDOG=1 from being sent, with the same result.
package daemon
