// Bench measures wscastd beside two other servers in the same run, on the same machine: a
// minimal C program that only writes ready frames to sockets (floor.c, with one and with two
// threads), and the usual Go server (package hub). Redis, where it is installed, stands
// beside the publish rows.
//
//	go run ./bench            the full run, about three minutes
//	go run ./bench -quick     three short rounds of 1,000 clients, under a minute once built
//	go run ./bench -clients 1000,10000 -rounds 15
//
// # Processes
//
// The bench builds and starts one server at a time, and one load process beside it: itself
// again, with the argument "load". The load process reads a plan on standard input and
// prints the figures on standard output, both as JSON. It holds every client (one epoll
// instance, raw fds, one thread) and the publisher, and checks that every client gets every
// message exactly once, in order and byte for byte; a round in which one does not is an
// error and not a figure. Nothing that the load process does is charged to the server: the
// server's CPU time is read from its own CPU clock.
//
// A round visits every server once; each round starts with another server than the one
// before. A ratio is formed within a round, so that a machine that slows down for a minute
// slows down both of its sides. The table shows medians, with the lowest and the highest
// round in brackets.
//
// # Rows
//
// CPU per delivery is the server's CPU time, all threads, user and system, over the number
// of messages that clients received. On loopback the sender's system call also pays for
// most of the receiving half of TCP, for every server alike; what the kernel puts off to
// ksoftirqd is charged to nobody. W is the number of messages in flight: the publisher sends
// message n+W when all clients have message n. With W=1 each delivery is one send; with
// W=32 a server may put several messages into one.
//
// Latency is from just before the publisher's write to the kernel's receive stamp on the
// client's socket (SO_TIMESTAMPNS, which Linux also gives on TCP: socket(7),
// Documentation/networking/timestamping.rst), so a load process that is slow to read does
// not add to it. A read that holds several messages has one stamp, the latest, used for
// all of them. The publisher sends at a fixed rate from a thread of its own, waiting for
// nothing.
//
// Memory is the process's own (smaps_rollup), not the kernel's for its sockets: the growth
// from a first tenth of the clients, at most 100, to all of them, idle. A Go heap gives memory
// back only when the collector runs, at the latest after two minutes without traffic: -settle
// 150s shows that.
//
// The last two rows of a table say how far a round can be trusted. On a busy machine the
// kernel's own work waits for a core, and TCP sends again what was not lost: the times and
// the rates of such a round say little, its CPU time and its ratios less than they should.
// With -quiet 5 a server is measured again, up to five times, when other processes used
// more than 5 per cent of the cores meanwhile, and the quietest of these counts.
//
// CPU per handshake is taken over the same clients, connecting at most 128 at a time.
package main
