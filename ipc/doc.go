// Package ipc is the publish socket of wscastd, both ends: the Server, which wscastd runs, and the Client, which
// the tool wscast and other Go programs use. The protocol is RESP, that of Redis, over a Unix stream socket;
// doc/protocol.txt is its normative description. The package knows nothing of the rest of wscast: what it
// serves is behind the interface Broker.
//
// # Server
//
// A Server serves any number of listeners. Each connection has one goroutine, which reads what there is,
// executes every whole command in it, wakes those who wait for what was published (Broker.Flush, once for
// messages that came together), and writes the answers with one system call (conn.go has the steps);
// a second goroutine only while the connection subscribes. A connection that waits for its next command
// holds no buffer.
//
// Nothing is kept for a peer that does not read: its commands are not read any further, and after ReplyTimeout
// it is closed. Input is bounded by the limits in request.go, and what is over them is dropped as it comes; a command that
// has begun has to become whole in time (due.go) and shares its memory with all others (memory.go), and messages may be held to a
// rate (pace.go). So no publisher can make the
// server grow, and none can hold up another one.
//
// Who can connect is up to the socket. What a peer may publish and subscribe to beyond that is up to rules (allow.go), by
// the credentials that the kernel keeps with the connection: nothing of it has to be handed on at a restart.
//
// Locks: each connection's own (conn.mu) before any of the server's, and no two of the server's at a time. The
// Broker is called with conn.mu held, which nobody but the connection's two goroutines ever takes.
//
// At a clean restart connections are not closed but handed on: Suspend brings each to rest between two commands and gives
// back its descriptor and state, and the next process's Server goes on with it (Resume). suspend.go has the way, state.go
// what is handed on. A connection that cannot be handed on is closed, as by Close.
//
// When something fails, it fails for one connection: a protocol error, or an error of the socket, closes
// it. Serve returns only for an error of the listener, or after Close or Suspend.
//
// # Client
//
// A Client publishes one message at a time (Publish), or a stream of them (PublishMany), or subscribes. An
// answer means that the message is in the log; a publisher that has got none does not know, and may publish
// it twice if it publishes it again. With an id (PublishOnce) the message is in the log once, however often it is
// published, and the Client connects and publishes again by itself.
package ipc
