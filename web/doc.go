// Package web is what browsers are served: the client for pages, wscast.js, and the demo page of wscastd --demo, which uses it. The page joins a
// channel and shows what is published there, and how to publish; it has a chart that a shell feeds, and a chat. It is a page to try wscast with and to copy from, not an interface to operate it.
//
// The page is plain HTML, CSS and JavaScript, one file each, embedded in the program, and loads nothing from anywhere else;
// [ContentSecurityPolicy] holds it to that. Everything it receives is put into the document as text, never as markup. It
// keeps the last 200 messages and draws at most once a frame, so that a fast channel costs the browser no memory. The client
// comes back by itself after a connection ends, after a random time ("full jitter") that grows to 30 s, so that the clients of a
// restarted server do not return all at once, and misses nothing that the log still has.
//
// The package has no state and starts nothing.
package web
