// Package crowd is thousands of WebSocket clients in one process, the publishers that they listen to, and the judgement of what they get.
//
//	c := crowd.Gather(t, "tcp", m.Address(), 1000)
//	c.Publish(m.PublishSocket(), crowd.Flow{Publishers: 3, Size: 200, Window: 50})
//	c.AwaitMessages(100)
//	m.Systemctl("restart", "wscast.service")
//	c.Finish()
//
// # Stayers
//
// The clients that Gather connects stay. The first of them to get a message adds it to the order; all others have to get exactly that
// order. What is added has to be the next message of its publisher, every byte as it was published. So each stayer gets each
// acknowledged message exactly once and in order, or the test fails with the client and the message. An end of the connection that was not
// tolerated fails it as well, and so does any frame that a server may not send.
//
// A publisher that has lost its connection cannot know whether its message is in the log, and publishes it again. Tries are numbered: a message
// may be followed by a later try of itself, and each of them comes once.
//
// While publishers publish, stayers send pings, in two pieces. A pong has to be the answer to one of them, and [Crowd.Finish] has every stayer answered once
// more: what a stayer sends is not read wrong either.
//
// # Passers
//
// [Crowd.Pass] keeps a number of other clients coming and going. Each opens a connection, takes a few messages, and leaves in one of three ways: with a
// close frame, with a FIN, with a RST. Each has to be answered, and messages have to come in order while it is there.
//
// # Goroutines
//
// One for all clients, which waits in epoll_wait(2), and one for each publisher. They end with the test.
package crowd
