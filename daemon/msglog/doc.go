// Package msglog is the log: a ring of finished WebSocket frames in mapped memory.
//
// A message is framed once, when it is appended, and the same bytes are sent to every client: server-to-client frames
// are not masked (RFC 6455 section 5.1). Frames of consecutive messages lie next to each other, so that a client that
// is behind is caught up by one large write, and a client costs one cursor, however far behind it is.
//
// # The file
//
// The log is one memfd, or one file on a disk, mapped shared. It outlives the process when somebody else holds the
// descriptor, and a file on a disk outlives that as well:
//
//	+--------+----------------+---------------------+----------------------+- - - - - - - - - - -+
//	| header | channel names  | index: 64 B entries | data: frames, a ring | the data once more  |
//	+--------+----------------+---------------------+----------------------+- - - - - - - - - - -+
//	                                                 \_ mapped a second time behind itself: every
//	                                                    frame, and every run of frames, is one slice
//
// Messages are numbered from 1 by a sequence number. The header has the newest (head) and the oldest (tail) that is
// kept; the entry of a message is at its sequence modulo the number of entries, and the frame's bytes are at the
// entry's position modulo the size of the data. The entries of one channel are linked in both directions, so that a
// client of a quiet channel skips what a busy one has written.
//
// # Several rings
//
// A log can have up to 16 such files, the rings, so that a busy channel does not overwrite what a quiet one has. A channel
// belongs to one of them, by an Arrangement of patterns. What a message costs is the same: it is appended to one ring, under
// the one Log.mu, and whoever reads it has the ring in the channel's id. Epoch and numbers are of the log as a whole, so that
// an id is good for every channel and clients of several rings get their messages in one order; places in a ring are counted
// by its own ordinals, which cursors are made of, and an area beside the index has the number of each. The edge, the floors
// and the age are of each ring. A log that has always been one ring has no such area: there the ordinals are the numbers
// (layout.go has both layouts).
//
// Which channels have which ring changes between two processes only: Rearranged copies the messages in the order of their
// numbers into new rings, and Moves say where a cursor has gone (arrange.go). Where a ring's file is of an earlier time than
// the others', as when only some have files and the machine has crashed, LoadAll brings them together under one epoch
// (loadall.go).
//
// # Appending
//
// Log.Append, by one goroutine at a time under Log.mu: make room (move the tail first, overwrite afterwards), write the
// frame, write the entry, move the head, then link the entry to its channel. Readers find entries by the links, so they
// see only what the head has covered; a process killed anywhere in between leaves a log in which Open finds every
// message that was appended, and no trace of the one that was not.
//
// Append is Put, which leaves those who wait for news as they are, and Flush, which wakes them: who appends several
// messages flushes once, so that a loop wakes to all of them and sends them in one go. The lists of news are complete
// at any time; what Flush makes up for is the waking alone, and an appender that has to wait flushes before it does.
//
// A message can have an id of its publisher's choice. Its hash is in the entry, and so in the log in the same moment as the
// message; Log.once, an index made anew by Open, has the hashes of the messages that are kept. Put refuses to append a second
// message with an id that is there (once.go says how sure that is).
//
// # On a disk
//
// Load opens the log in a file, for which there may have been a power failure since; Open takes a descriptor of a log that
// was in memory all the time. In a file each entry has a checksum of itself, of the channel's name and of the frame, which
// costs Put a pass over the frame; without a file there are none. The kernel writes pages back in any order, and the writer
// makes it do so a second after the first message that was not written, without a lock. All blocks are allocated when the
// file is made, so that a full disk is an error then and no signal later. The file is locked by the open file description:
// the lock goes where the descriptor goes.
//
// The header has three hints for Load: the head, the newest message that was on the disk for certain (synced), and a mark
// that the log was finished and is as it was then. What is there is told by the checksums alone (scan.go). Without the
// mark Load gives the log a new epoch, since numbers above the newest message that is there can have been given to messages
// that are gone; generations say up to where the earlier epochs hold. Before that it erases the entries above, lest one of
// them be taken for a message of the new epoch after one more failure.
//
// # Reading
//
// A Reader stands for one event loop, and reads without a lock. It promises not to give out entries below its floor, and
// Append does not overwrite anything at or above the lowest floor: where it would have to, it waits until the readers
// have raised theirs. A reader raises its floor to Log.Edge between two rounds, and deals with clients that still
// need older messages (they are slow) before it does. It gets no further than to the edge as it was when it took the
// news of that round: what came later it has not served. The edge lies an eighth of the log above its tail, so appending
// waits only for a loop that has not come round while an eighth of the log was written, and never for a client.
//
// A reader that sleeps is woken for every message, and only then. That none is slept through rests on Go's atomic operations
// having one order that all goroutines see (the Go memory model), and on the order of these steps:
//
//	who puts        links the message (Channel.last), sets the reader's bit in the channel; the one who finds it unset puts
//	                the channel on the list, then sets the reader's bit in untold. Flush takes untold, then calls wake.
//	the reader      takes the list, then clears its bits in those channels, then looks at Channel.last.
//	before it sleeps it says so (loop.asleep), then looks whether the list is empty; wake looks at asleep.
//
// Who finds the bit set has linked before it was cleared, so the reader, which looks after that, serves the message. Who finds
// it unset has the channel on the list before wake is called, by whoever took the bit from untold: if wake finds the reader
// awake, the reader looks at the list after that. One whose channel is on the list already, of a batch that is not flushed
// yet, flushes for both: the bit in untold was set under the same lock as the list.
//
// A Follower is a local process that reads along. It copies, checks afterwards that what it copied was not overwritten
// meanwhile, and is told ErrBehind if it was. It holds nobody up.
//
// # Goroutines
//
// One for a log with a file, the writer's. Close and Finish end it.
//
// # Failure
//
// A disk that cannot be written to is known by Log.Failure; the log goes on in memory, and is not said to be finished. A
// page that cannot be read is an error of Load, and ends the process (SIGBUS) later.
//
// Put refuses what has no place and changes nothing then, except that room may have been made. Open refuses a damaged
// log as a whole; what is not checked (times, payloads) is not noticed. A reader that never comes round stops all publishers.
//
// # Locks
//
// Log.mu guards appending, the ids, the channels by name and id, and their counts of clients. Reader.mu guards the reader's list of
// channels with news, and is taken under Log.mu. Neither is held during a system call on a client's socket.
package msglog
