// Wscast is the tool beside the daemon wscastd: it publishes messages, shows what is published, listens as
// a WebSocket client, reports the daemon's state, and finds what is wrong with an installation.
//
// Each subcommand has a file that holds all of it: its flags, its help and what it does. main.go has what
// they share: the table of commands, the rules of the command line, and the one place where an error
// becomes lines on standard error and an exit code. line.go turns a message into a line of output.
//
// The exit code is 0, 1 after a failure, 2 when the command line is wrong. An error is one line that starts
// with "wscast: "; where there is something to be done about it, a line "wscast: hint: " follows.
// Standard output carries nothing but what was asked for.
//
// doctor is in several files: doctor.go has the command and what it prints, doctor_facts.go gathers all that is to be known
// of the machine, the others are checks, functions from these facts to findings, by area. doctor_nginxconf.go reads nginx's
// configuration. It runs systemctl, wscastd, nginx, id and journalctl, with a limit of time, and changes nothing.
//
// publish, subscribe and status speak to the publish socket through package ipc; listen uses
// github.com/gorilla/websocket. A connection that ends is not dialed again: what went by in between would be
// missing without a sign of it.
package main
