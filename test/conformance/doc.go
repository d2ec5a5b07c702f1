// Package conformance holds wscastd against RFC 6455 and RFC 7692: a table of numbered cases, each of which is what a client
// sends, byte for byte, and what it must be answered. The chapters are those of the Autobahn suite (1 framing, 2 pings, 3
// reserved bits, 4 opcodes, 5 fragmentation, 6 UTF-8, 7 closing, 9 limits, 12 and 13 compression), with what it leaves out:
// 8 masks and forms of the length, 10 the opening handshake, 11 connections that end in the middle of something.
//
// Every case is run with each kind of client that it fits: raw frames, whose messages are dropped or come back as an echo
// (a channel with upstream = "clients"), wscast.v1.json, all of them over TCP and over a Unix socket, and compressed. Raw clients
// are tried with two daemons: where some may publish, a loop reads all of them in the way of those. A client says good-bye after its case, if it still can: whatever comes up to the end of the connection is judged.
//
// The end of the output is a count. A case passes, or is non-strict: the RFC allows what came, and prefers another; or it
// fails. Both of the latter fail the test.
//
// What somebody tries who means harm, and what SECURITY.md says of it, is tested here as well.
package conformance
