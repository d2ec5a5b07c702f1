// Package frame builds and parses WebSocket frames (RFC 6455, section 5) in place: it copies no
// payload, allocates nothing on the way of a good frame, and does no input or output.
//
// # Two directions
//
// To the client: frames without a mask, of one fragment, with the shortest header. They do not
// depend on the client, so one frame serves all of them. [PutHeader] writes the header into the log
// before the payload; [Payload] finds the payload in such a frame again. [AppendClose],
// [AppendPing] and [AppendPong] build whole control frames.
//
// From the client: [Parser] is what has to be remembered of one client between two frames, and is
// one 64-bit word. [Parser.Next] takes the first frame off a buffer. It checks all that RFC 6455
// asks a server to check without extensions: reserved bits and opcodes, masking, shortest length,
// the order of fragments, size and wholeness of control frames, close codes, and UTF-8 of text
// across fragments. What the frames mean (answering pings, closing) is the caller's business.
//
// # Peeked input
//
// Next is made for a caller that peeks (recv(2), MSG_PEEK) into a buffer shared by all its clients
// and then consumes exactly the frames that were whole. As long as a frame is incomplete, Next
// changes neither the Parser nor the buffer, and is called again with the same bytes and more. So
// nothing that a process has read of an unfinished frame is lost with the process. The price: an
// unfinished text frame is checked from its first byte on each call, as it is also peeked from
// there. The limit on the message bounds both.
//
// The buffer must hold [MaxClientHeader] bytes more than the largest payload allowed, which is the
// limit passed to Next or 125, whichever is larger. In a smaller one a frame can stay incomplete
// for ever.
//
// # Ownership, goroutines, failure
//
// Every function works on what it is given and keeps nothing of it; there are no locks and no
// goroutines. A Parser and the buffer belong to the caller, who uses them from one goroutine at a
// time. What a client does wrong comes back as an [*Error], which says how to close the connection;
// the Parser is then as before. No input makes the package panic. Misuse by the program does: a
// destination that is too short for its header, or a negative size.
package frame
