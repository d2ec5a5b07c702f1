// Package booted tests wscast under a real systemd: a small Debian system in a container, with wscast in it as make install and
// systemd-sysusers leave it.
//
//	m := booted.Boot(t, booted.Config("[websocket]\ngreeting = 'hello'\n"))
//	c := harness.Dial(t, m.WebSocketURL("news"))
//	c.ExpectText("hello")
//	m.Systemctl("restart", "wscast.service")
//
// # What a machine is
//
// Its file system is an overlay of four directories: a tmpfs of its own on top (or a directory, see [Disk]), the test's files (drop-ins, configuration), what
// make install writes (made once a run), and the root that mmdebstrap makes (made once, and kept in the user's cache
// directory; see root.go). It has the host's network, so tests connect to 127.0.0.1, and its own everything else. The users
// alice and bob, who may publish, and mallory, who may not, are there. [Bare] and [OwnNetwork] boot others.
//
// # What is left behind
//
// Nothing. Mounts are made in a mount namespace that ends with the container. systemd-nspawn is sent SIGTERM when the test
// process dies (PR_SET_PDEATHSIG), and kills the container then. (A systemd-nspawn that is killed leaves its container running.) What
// survives a killed test process are empty control groups, which the next run removes, and directories in $TMPDIR.
//
// # Waiting
//
// There is no sleep. A machine is up when systemctl is-system-running --wait says so; [Machine.Await] looks at a unit
// again whenever systemd announces a change on its bus; [Machine.AwaitJournal] follows the journal. Every wait
// ends after [harness.Patience].
//
// # More than a default run
//
// WSCAST_TEST_CLIENTS=10000 has so many clients survive restarts and kills, WSCAST_TEST_VISITS=100000 has so many come and go, over
// WSCAST_TEST_RESTARTS=50. The hard limit of open files (ulimit -Hn) has to be a tenth above the number of clients that are there at a time: 20,000 for 18,000.
//
// Tests of what systemd has a part in run on Debian 12 and Debian 13 (systemd 252 and 257), see [Suites]; WSCAST_TEST_SUITE=trixie runs all of them on that
// one, and any other release that mmdebstrap knows can be tried in this way.
//
// # Needs
//
// root, and the programs in test/install-deps. Without them a test fails and says what to do.
package booted
