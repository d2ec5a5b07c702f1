// Package crowd is thousands of clients in one process, the publishers that they listen to, and the judgement of what they get.
//
//	c := crowd.Gather(t, "tcp", m.Address(), 1000)
//	c.Publish(m.PublishSocket(), crowd.Flow{Publishers: 3, Size: 200, Window: 50})
//	c.AwaitMessages(100)
//	m.Systemctl("restart", "wscast.service")
//	c.Finish()
//
// # Kinds
//
// Clients listen in every way that there is, see [Kinds]: with raw frames or wscast.v1.json, compressed or not, and to event streams. [GatherMix] deals
// kinds and channels out; Gather has clients of raw frames on one channel. What comes is decoded by code of this package's own. Most messages need
// not be: bytes that are those which another client of the kind got in the same place are the same message.
//
// # Stayers
//
// The clients that Gather connects stay. The first of them to get a message adds it to the order; all others have to get exactly that
// order. There is an order for each channel and one for those with all channels, which have to agree; the ids that clients are told have to be the
// same for all, and ascend. What is added has to be the next message of its publisher, every byte as it was published. So each stayer gets each
// acknowledged message exactly once and in order, or the test fails with the client and the message. An end of the connection that was not
// tolerated fails it as well, and so does any frame that a server may not send.
//
// A publisher that has lost its connection cannot know whether its message is in the log, and publishes it again. Tries are numbered: a message
// may be followed by a later try of itself, and each of them comes once.
//
// While publishers publish, stayers send pings, in two pieces. A pong has to be the answer to one of them, and [Crowd.Finish] has every stayer answered once
// more: what a stayer sends is not read wrong either. Commands have to be answered each once and in their order. With [Crowd.Speak] some stayers
// publish as well; they never try again, so that what they publish is in the log once.
//
// # A network that cuts
//
// [Between] puts a network between clients and server that ends connections after any byte. With [Crowd.Return] stayers come back, with the id of the last
// message that they have got, and have to be sent what is next in the order. To be told that something is missing fails the test.
//
// # Passers
//
// [Crowd.Pass] keeps a number of other clients coming and going. Each opens a connection, takes a few messages, and leaves in one of three ways: with a
// close frame, with a FIN, with a RST. Each has to be answered, and messages have to come in order while it is there.
//
// # Goroutines
//
// One for all clients, which waits in epoll_wait(2), one for each publisher, and three for each connection through a network. They end with the test.
package crowd
