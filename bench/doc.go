// Bench measures wscastd beside other servers in the same run, on the same machine: a
// minimal C program that only writes ready frames to sockets (floor.c, with one and with two
// threads), the usual Go server (package hub), nchan (a module of nginx, with one and with two
// workers), and for publishing redis-server. nchan and Redis are left out where they are not installed.
//
//	make bench                the full run, about a quarter of an hour; tables and charts go to doc/
//	go run ./bench -quick     three short rounds of 1,000 clients, a minute
//	go run ./bench -rows survival -clients 1000
//	go run ./bench -rows idle,handshake -servers floor,wscastd -rounds 15
//
// # Processes
//
// The bench builds and starts one server at a time, and one load process beside it: itself
// again, with the argument "load". The load process reads a plan on standard input and
// prints the figures on standard output, both as JSON. It holds every client (one epoll
// instance, raw fds, one thread) and the publishers, and checks that every client gets every
// message of its channel exactly once, in order and byte for byte; a round in which one does
// not is an error and not a figure. Nothing that the load process does is charged to the server: the
// server's CPU time is read from the CPU clocks of its processes, all of them.
//
// Where wscastd is started by the bench itself, the bench keeps the descriptors that it stores, as systemd does for a service
// (keeper.go): connections are parked.
//
// A round visits every server once; each round starts with another server than the one
// before. A ratio is formed within a round, so that a machine that slows down for a minute
// slows down both of its sides. The table shows medians, with the lowest and the highest
// round in brackets.
//
// # Rows
//
// delivery: CPU per delivery is the server's CPU time, all threads, user and system, over the number
// of messages that clients received. On loopback the sender's system call also pays for
// most of the receiving half of TCP, for every server alike; what the kernel puts off to
// ksoftirqd is charged to nobody. W is the number of messages in flight: the publisher sends
// message n+W when all clients have message n. With W=1 each delivery is one send; with
// W=32 a server may put several messages into one.
//
// latency: from just before the publisher's write to the kernel's receive stamp on the
// client's socket (SO_TIMESTAMPNS, which Linux also gives on TCP: socket(7),
// Documentation/networking/timestamping.rst), so a load process that is slow to read does
// not add to it. A read that holds several messages has one stamp, the latest, used for
// all of them. The publisher sends at a fixed rate from a thread of its own, waiting for
// nothing.
//
// idle: memory is the processes' own (smaps_rollup), not the kernel's for its sockets: the growth
// from a first tenth of the clients, at most 100, to all of them, idle. A Go heap gives memory
// back only when the collector runs, at the latest after two minutes without traffic: -settle
// 150s shows that.
//
// handshake: CPU is taken over the same clients, connecting at most 128 at a time.
//
// churn: beside those clients others connect, are answered, and leave with a RST.
//
// publish: one and eight publishers, each with up to 256 messages unanswered, without a client
// and with one that gets every message of all of them.
//
// nginx: the first rows with nginx in front of wscastd, configured by the files of etc/nginx, with
// one worker, to a TCP and to a Unix socket. The CPU time and memory of both are added up. nchan is in nginx.
//
// encodings: the delivery, idle and handshake rows of wscastd with clients that read raw frames, the envelopes of
// wscast.v1.json, server-sent events, and events with envelopes, as multiples of raw frames.
//
// slow: latency, CPU per delivery with 32 in flight and memory of wscastd with clients that read, alone and beside a ninth as
// many that do not, whose receive buffers are the smallest that there are. Those have a channel of their own, on which 160 KiB
// are published with each message of the latency phase, in both columns; the log has 1 MiB, so that they become slow, and are
// closed, as is configured by default.
//
// growth: CPU per delivery by the number of clients, and by the number of channels over which they are dealt, with
// one message in flight on each; CPU per publish by the number of channels, without clients.
//
// survival: wscastd runs under a systemd of its own (test/booted/boot, which needs root and what
// test/install-deps installs), and is restarted with systemctl and killed. A message is due
// every 10 ms. With many clients they are dealt over channels, so that each gets fewer of them and something is
// still due all the time. The pause of a client is the longest time from the moment at which its next message was due
// until a message came, whatever that had to wait for, the publisher included. The hub and nchan
// are restarted by the bench, as their units would: the hub with SIGTERM, nginx with SIGQUIT and five seconds of
// patience. After a kill -9 they are started again 100 ms later, which is RestartSec= of a unit that does not say it;
// systemd takes up to 250 ms more (the accuracy of its timers, sd_event_add_time(3)), unless it is 0, as in the unit of wscastd.
// Their clients connect again at once, and after a refusal every 100 ms. What they miss is counted.
//
// # How far to trust a round
//
// The rows in brackets say so. On a busy machine the
// kernel's own work waits for a core, and TCP sends again what was not lost: the times and
// the rates of such a round say little, its CPU time and its ratios less than they should.
// With -quiet 5 a server is measured again, up to five times, when other processes used
// more than 5 per cent of the cores meanwhile, and the quietest of these counts.
package main
