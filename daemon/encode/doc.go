// Package encode makes of a message what each kind of client reads: the frame as it is in the log, the envelope of the
// subprotocol wscast.v1.json, or a server-sent event.
//
// What comes of a message depends on nothing but the message: a process that takes a client over in the middle of one
// makes the very same bytes again, and goes on with the next of them. A change here that makes other bytes of the same
// message has to change Version as well.
//
// The package keeps nothing but an Encoder's buffers and has no goroutines. Each loop has an Encoder of its own.
package encode

import (
	"hash/fnv"
	"runtime"
)

// Version tells apart programs whose encoders may make different bytes: what one has sent half of, another one cannot finish. The compressor
// comes with Go, which does not promise that the next version makes the same of a message.
func Version() uint32 {
	h := fnv.New32a()
	h.Write([]byte("1 " + runtime.Version()))
	return h.Sum32()
}
