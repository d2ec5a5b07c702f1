// Package loop has the event loops: each serves its share of the clients from the log.
//
// A loop is one goroutine with an epoll instance over raw non-blocking sockets. It owns its clients altogether: their
// structures are touched by no other goroutine and need no lock. A client is 104 bytes, a record of 256 in the
// connection table, and a socket; it has no goroutine, no timer, no buffer, and no queue: what it has not been sent yet
// is in the log, behind its cursor.
//
// # A message's way
//
//  1. msglog.Log.Put has put the message in the log and noted the channel for every loop with clients of it (Reader.tell).
//     Log.Flush wakes these loops (loop.wake), once for messages that came together: no system call, the goroutine is
//     made runnable.
//  2. The loop takes the channels with news (turn) and goes through their clients (deliver).
//  3. Each client is sent, with one non-blocking write, all that lies between its cursor and the head of its channel
//     (flush). Clients at the same cursor, the usual case, are sent the very same slices of the log.
//  4. The cursor moves on by what the kernel took. A client that could not take all is blocked: it is left alone
//     until its socket is writable. For one that does not read the kernel takes little beyond what it can send (unsent).
//  5. When the edge of the log has moved, clients that still need what is below it are slow (sweep): they are closed
//     with 1013 or skip ahead, and the loop lets the log go on.
//
// # Sessions
//
// A client that is more than one channel of raw frames has a session: how it reads messages (package encode), its
// subscriptions, each with a cursor, and what it is allowed to do. Its way is the same, from step 2 on: the loop goes
// through the subscriptions of the channel (deliverFeeds), turns each client to the subscription that has the oldest
// message for it (choose), and encodes what is to be sent once for all that stand at the same place (encodeRun). A
// message that is half out is encoded once more for its rest: the same bytes come of it, in the next process as well.
// The session of a client lies in extensions of its record.
//
// What such a client asks for is carried out, and its answer is where an heir finds it, before the command is taken from
// the socket (command.go). Nothing is carried out while clients are still being taken over: a channel that is made then
// could take the number of one of theirs. What clients publish is appended by a goroutine of its own, because a loop must not wait for
// room in the log that it has to make itself (upstream.go).
//
// What clients send is dealt with in the same turns, and in portions (patience, turnful): a flood from some delays a
// delivery to others by one portion of each.
//
// # Ways in
//
// Serve accepts connections of a listener and gives each to the loop with the fewest clients. The opening handshake
// is done in the loop: the request is peeked, so that it is still in the socket for whoever comes after us if we die;
// it is judged and answered by a Handshaker; from then on the client is like any other. Adopt takes over the clients that
// an earlier process has served, from where their records say that they stand. Further ways in (a client handed over by
// a proxy) end at the same place, with a cursor and without a handshake.
//
// # Heirs
//
// The loops are at any time ready to be killed. What the next process needs to know of a client is in its record
// (package survive) before the kernel can have done what it speaks of: the answer's size before the answer is sent,
// control frames before they are sent, input that was dealt with before it is taken from the socket. For messages
// nothing need be noted beforehand: how many bytes are out the kernel knows, and which bytes they are the log.
//
// # Ways out
//
// A client is closed in one way: a close frame behind whatever frame is half out, its own close frame, then shutdown of
// our side, then until the other side has closed too what it sends is thrown away (closing a socket with unread input
// resets the connection, and the close frame with it); all of it until closeTimeout is over. When all loops come to an
// end, a client is told so after it has been sent what the log has for it. A client that is gone is dropped at once,
// and always in this order: it leaves its channel and the parking lot, shutdown(2), its record is free, EPOLL_CTL_DEL, close(2), its slot is
// free. Shutdown and DEL come first because the parked duplicate of the descriptor would keep the connection open, and
// epoll would go on to report it, after close(2). There is a way to end without all that: Suspend leaves the clients
// to the next process.
//
// # Failure
//
// An error on a client's socket costs that client. A loop has no other errors: what else it calls cannot fail but for
// a defect of the program, which panics.
//
// # Locks
//
// loop.mu guards what others leave for the loop (newcomers, orders, the count of clients shown to others). It is never
// held during a system call. loop.wake is called under locks of the log and takes none. The locks of presence and of
// population, which all loops share, are taken for a few instructions, with no other one held, when a client comes or goes.
package loop
