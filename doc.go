// Package wscast is the root of the repository and has no code, only the tests that hold the repository to its rules.
//
// wscastd delivers what local processes publish on a Unix socket to every WebSocket client connected through nginx. The
// program is in cmd/wscastd, the tool in cmd/wscast, and what other programs can use, the client of the publish socket,
// in package ipc. Read README.md first, then doc/protocol.txt, then the documentation of ipc and of daemon.
package wscast
