// Package harness starts the built programs and the programs around them for tests: wscastd as systemd starts it, nginx
// in front of it, a WebSocket client, and commands. Everything it starts runs on ports and paths of its own,
// so that tests can run beside each other and beside a wscastd of the machine.
//
// A test package hands over its TestMain:
//
//	func TestMain(m *testing.M) { os.Exit(harness.Main(m)) }
//
// and a test reads like the protocol:
//
//	d := harness.Start(t, harness.Config("[websocket]\ngreeting = 'hello'\n"))
//	c := harness.Dial(t, d.WebSocketURL("news"))
//	c.ExpectText("hello")
//	harness.Run(t, "redis-cli", "-s", d.PublishSocket(), "publish", "news", "one")
//	c.ExpectText("one")
//
// # What a test gets checked without asking
//
// A daemon must say READY=1 from its own process, end with code 0 on SIGTERM within 20 s, report no data race and leave
// no process behind. [Main] fails a run that leaves a goroutine or a file descriptor. Failures quote the
// daemon's log.
//
// # Who owns what
//
// The sockets belong to the [Daemon], not to the process that serves them, as they belong to systemd: they stay open
// over [Daemon.Stop] and [Daemon.Start]. A port is reserved before it is used, so that nobody else is given it
// while its server is down (see reservePort). Processes are started from one locked thread and die with the test process
// (see process.go). Every wait has the same deadline, [Patience]; there is no sleep.
package harness
