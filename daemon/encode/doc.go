// Package encode makes of a message what each kind of client reads: the frame as it is in the log, the envelope of the
// subprotocol wscast.v1.json, or a server-sent event.
//
// What comes of a message depends on nothing but the message: a process that takes a client over in the middle of one
// makes the very same bytes again, and goes on with the next of them. A change here that makes other bytes of the same
// message has to change Version as well.
//
// The package keeps nothing and has no goroutines. It is used by every loop at the same time.
package encode

// Version tells apart programs whose encoders make different bytes: what one has sent half of, another one cannot finish.
const Version = 1
