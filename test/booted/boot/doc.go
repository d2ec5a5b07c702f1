// Boot boots a system with wscast in it, as the tests of package booted do, and keeps it for whoever wants to see or measure
// something on a real systemd. It needs what the tests need, and to be run in the module of the tests:
//
//	cd test && go run ./booted/boot
//
// Once the system is up it writes a line of JSON: where wscast.socket listens, the publish socket, and the process id of PID 1, all as the host
// knows them. From then on each line on standard input is a command, and has a line of JSON as its answer:
//
//	restart    systemctl restart wscast.service; {}
//	main       {"Main": the process id of wscastd}
//	start      how the last start of wscastd went, as systemd and the journal tell: a [Start]
//
// At the end of its input it ends the system. An error is text on standard error, and ends it as well, with code 1.
package main
