package ipc

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Peers with other users and groups than these tests have are in test/allow_test.go.

func TestRulesOfAPeer(t *testing.T) {
	rules := []Rule{
		{UIDs: []uint32{7, 8}, Publish: []string{"news", "sport/*"}, Subscribe: []string{"news"}},
		{UIDs: []uint32{8}, Publish: []string{"[ab]?"}},
		{GIDs: []uint32{50, 60}, Publish: []string{"sensors:*"}, Subscribe: []string{"*"}},
		{Everyone: true, Publish: []string{"public"}},
	}
	for _, test := range []struct {
		uid       uint32
		gids      []uint32
		yes, no   string
		subscribe string // to which channels of both it may
	}{
		{7, []uint32{7}, "news sport/ sport/golf public", "sport new newss a1 sensors:1", "news"},
		{8, []uint32{7}, "news sport/golf public a1 bx", "a ab1 c1 sensors:1", "news"},
		{50, []uint32{8}, "public", "news a1 sensors:1", ""}, // the numbers of users are not those of groups
		{9, []uint32{60, 9}, "sensors:1 sensors: public", "sensors news", "sensors:1 sensors: public sensors news"},
		{7, []uint32{1, 2, 3, 50}, "news sensors:1 public", "a1", "news sensors:1 public a1"},
		{0, []uint32{0}, "public", "news sport/golf sensors:1 a1", ""}, // root is as anybody else
		{^uint32(0), nil, "public", "news", ""},
	} {
		c := &conn{server: &Server{}, peer: Peer{UID: test.uid}}
		c.server.SetRules(rules)
		loaded := c.server.rules.Load()
		c.rights = rights{rules: loaded, mine: rulesFor(rules, test.uid, func() []uint32 { return test.gids })}
		may := strings.Fields(test.subscribe)
		for names, want := range map[string]bool{test.yes: true, test.no: false} {
			for _, name := range strings.Fields(names) {
				for range 2 { // the second time it is known
					if err := c.mayPublish([]byte(name)); (err == nil) != want {
						t.Errorf("user %d of groups %d publishes on %s: %v", test.uid, test.gids, name, err)
					}
				}
				if err := c.maySubscribe(byName, name); (err == nil) != slices.Contains(may, name) {
					t.Errorf("user %d of groups %d subscribes to %s: %v", test.uid, test.gids, name, err)
				}
			}
		}
	}
}

// Whom no rule by group could change anything for is not asked for its groups.
func TestGroupsAreAskedForOnce(t *testing.T) {
	asked := 0
	groups := func() []uint32 { asked++; return []uint32{1} }
	rulesFor([]Rule{{UIDs: []uint32{1}}, {Everyone: true}}, 1, groups)
	if asked != 0 {
		t.Errorf("without a rule by group the groups were asked for %d times", asked)
	}
	if got := rulesFor([]Rule{{GIDs: []uint32{2}}, {GIDs: []uint32{3, 1}}}, 1, groups); asked != 1 || len(got) != 1 {
		t.Errorf("asked for %d times, %d rules", asked, len(got))
	}
}

func TestGroupsOfAConnection(t *testing.T) {
	d := start(t)
	raw, err := d.connect(t).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	own, err := os.Getgroups()
	if err != nil {
		t.Fatal(err)
	}
	gids, err := groupsOf(raw) // the server's, of which the test is the peer as well
	if fmt.Sprint(gids) != fmt.Sprint(own) || err != nil {
		t.Errorf("got %d (%v), and os.Getgroups %d", gids, err, own)
	}
}

var coverings = []struct {
	allowed, pattern string
	want             bool
}{
	{"*", "*", true}, {"*", "", true}, {"*", "[ab]?*", true},
	{"news.*", "news.*", true}, {"news.*", "news.sport.*", true}, {"news.*", "news.", true}, {"news.*", `news.\*`, true},
	{"news.*", "news*", false}, {"news.*", "*", false}, {"news.*", "n*", false}, {"news.*", "[n]ews.*", false}, {"news.*", `\news.*`, false},
	{"news.?", "news.?", true}, {"news.?", "news.a", false}, {"?*", "a*", false}, {`a\*`, `a\*`, true}, {`a\*`, "a*", false}, {`a\*`, "ab", false},
	{`a\*`, `a\*b`, false}, {`a[*`, `a[b`, false}, {`[a]*`, `[a]b`, false},
	{"news", "news", true}, {"news", "new?", false}, {"", "", true},
}

func TestCovers(t *testing.T) {
	for _, c := range coverings {
		if got := covers(c.allowed, c.pattern); got != c.want {
			t.Errorf("covers(%q, %q) = %v", c.allowed, c.pattern, got)
		}
	}
}

// FuzzCovers looks for a name that a pattern lets through, and what it is covered by does not.
func FuzzCovers(f *testing.F) {
	for _, c := range coverings {
		f.Add(c.allowed, c.pattern, "news.sport.golf")
		f.Add(c.allowed, c.pattern, "a*")
	}
	f.Fuzz(func(t *testing.T, allowed, pattern, name string) {
		if covers(allowed, pattern) && Match(pattern, name) && !Match(allowed, name) {
			t.Errorf("%q is said to cover %q, and does not match %q", allowed, pattern, name)
		}
	})
}

// strangers are rules that are not about the user of these tests.
var stranger = Rule{UIDs: []uint32{uint32(os.Getuid()) + 1}, Publish: []string{"*"}, Subscribe: []string{"*"}}

// mine is a rule for the user of these tests.
func mine(publish, subscribe string) Rule {
	return Rule{UIDs: []uint32{uint32(os.Getuid())}, Publish: strings.Fields(publish), Subscribe: strings.Fields(subscribe)}
}

func denied(verb, name string) string {
	return fmt.Sprintf("-NOPERM user %d may not %s '%s': no rule of [[publish.allow]] allows it\r\n", os.Getuid(), verb, name)
}

func TestPublishIsDenied(t *testing.T) {
	log, lines := events()
	d := start(t, func(s *Server) { s.Log = log; s.SetRules([]Rule{stranger, mine("news a*", "")}) })
	s := d.connect(t)
	s.send("CLIENT SETNAME cron\r\n" + strings.Repeat("PUBLISH news 1\r\nPUBLISH other 2\r\nSPUBLISH abc 3\r\nSPUBLISH sport 4\r\n", 3) + "PING\r\n")
	s.expect("+OK\r\n")
	for range 3 {
		s.expect(":0\r\n" + denied("publish on", "other") + ":0\r\n" + denied("publish on", "sport"))
	}
	s.expect("+PONG\r\n")
	if n := len(d.log.published()); n != 6 {
		t.Errorf("%d messages are in the log", n)
	}
	if st := d.Stats(); st.Denied != 6 || st.Errors != 6 || st.Published != 6 {
		t.Errorf("%+v", st)
	}
	// Each channel is logged once.
	for _, channel := range []string{"other", "sport"} {
		line := await(t, lines, "a publisher was refused what it asked for")
		for _, part := range []string{"may not publish on '" + channel + "': no rule", fmt.Sprintf(" pid=%d uid=%d ", os.Getpid(), os.Getuid()), " name=cron"} {
			if !strings.Contains(line, part) {
				t.Errorf("%q does not say %q", line, part)
			}
		}
	}

	// A reload holds at once, also for the channel that was published on last, in either direction.
	d.SetRules([]Rule{mine("other", "")})
	s.send("PUBLISH other 5\r\nPUBLISH news 6\r\n")
	s.expect(":0\r\n" + denied("publish on", "news"))
	await(t, lines, "'news'")
	s.send("PUBLISH other 6\r\n")
	s.expect(":0\r\n")
	d.SetRules([]Rule{mine("news", "")})
	s.send("PUBLISH other 6\r\n")
	s.expect(denied("publish on", "other"))
	d.SetRules(nil)
	s.send("PUBLISH news 7\r\nPUBLISH sport 8\r\n")
	s.expect(":0\r\n:0\r\n")
	d.SetRules([]Rule{stranger})
	s.send("PUBLISH sport 9\r\n")
	s.expect(denied("publish on", "sport"))
	if len(lines) > 0 {
		t.Errorf("logged twice: %s", <-lines)
	}
}

// What is about no message stays allowed.
func TestDeniedUserMayAsk(t *testing.T) {
	d := start(t, func(s *Server) { s.SetRules([]Rule{stranger}) })
	s := d.connect(t)
	for _, command := range []string{"PING", "INFO", "PUBSUB CHANNELS", "PUBSUB NUMSUB a", "CLIENT LIST", "COMMAND COUNT", "UNSUBSCRIBE", "RESET"} {
		s.send(command + "\r\nECHO end\r\n")
		first := s.line()
		if strings.HasPrefix(first, "-") {
			t.Errorf("%s: %s", command, first)
		}
		for line := first; line != "end"; line = s.line() {
		}
	}
}

func TestSubscribeIsDenied(t *testing.T) {
	log, lines := events()
	d := start(t, func(s *Server) { s.Log = log; s.SetRules([]Rule{mine("*", "news.* other s?")}) })
	s := d.connect(t)
	for _, test := range []struct{ command, denied string }{
		{"SUBSCRIBE news.a sport other", "sport"},
		{"SSUBSCRIBE sport", "sport"},
		{"PSUBSCRIBE news.* *", "*"},
		{"PSUBSCRIBE ne*", "ne*"},
		{"PSUBSCRIBE othe?", "othe?"},
		{"PSUBSCRIBE s*", "s*"}, // which s? matches, as a name
	} {
		s.send(test.command + "\r\n")
		s.expect(denied("subscribe to", test.denied))
	}
	if st := d.Stats(); st.Subscribers != 0 || st.Denied != 6 {
		t.Errorf("%+v", st)
	}
	await(t, lines, "may not subscribe to 'sport'")
	await(t, lines, "may not subscribe to '*'")
	s.send("SUBSCRIBE news.a other\r\nPSUBSCRIBE news.b*\r\n")
	s.expect("*3\r\n$9\r\nsubscribe\r\n$6\r\nnews.a\r\n:1\r\n*3\r\n$9\r\nsubscribe\r\n$5\r\nother\r\n:2\r\n*3\r\n$10\r\npsubscribe\r\n$7\r\nnews.b*\r\n:3\r\n")
	p := d.connect(t)
	p.send("PUBLISH news.bc hello\r\n")
	p.expect(":1\r\n")
	s.expect("*4\r\n$8\r\npmessage\r\n$7\r\nnews.b*\r\n$7\r\nnews.bc\r\n$5\r\nhello\r\n")
}

// A subscriber that may not go on is told so where its next message would be.
func TestSubscriptionIsTakenAway(t *testing.T) {
	for _, command := range []string{"SUBSCRIBE a b", "SSUBSCRIBE a b", "PSUBSCRIBE a b", "HELLO 3\r\nSUBSCRIBE a b"} {
		t.Run(command, func(t *testing.T) {
			log, lines := events()
			d := start(t, func(s *Server) { s.Log = log })
			s, p := d.connect(t), d.connect(t)
			s.send(command + "\r\nPING end\r\n")
			for !strings.HasSuffix(s.line(), "end") {
			}
			d.SetRules([]Rule{mine("*", "*")})
			p.send("PUBLISH a first\r\n")
			p.expect(":1\r\n")
			for s.line() != "first" {
			}
			d.SetRules([]Rule{mine("*", "b")})
			p.send("PUBLISH b second\r\n")
			p.expect(":1\r\n")
			s.expect(denied("subscribe to", "a"))
			s.expectClosed()
			await(t, lines, "may not subscribe to 'a'")
		})
	}
}

// The rules of the next server hold for the connections of the one before.
func TestDeniedAfterARestart(t *testing.T) {
	rules := []Rule{mine("news", "news")}
	d := start(t, func(s *Server) { s.SetRules(rules) })
	s, sub := d.connect(t), d.connect(t)
	sub.send("SUBSCRIBE news\r\n")
	sub.expect("*3\r\n$9\r\nsubscribe\r\n$4\r\nnews\r\n:1\r\n")
	s.send("PUBLISH news 1\r\nPUBLISH other 1\r\n")
	s.expect(":1\r\n" + denied("publish on", "other"))
	sub.expect("*3\r\n$7\r\nmessage\r\n$4\r\nnews\r\n$1\r\n1\r\n")
	d.restart(t)
	s.send("PUBLISH news 2\r\nPUBLISH other 2\r\n")
	s.expect(":1\r\n" + denied("publish on", "other"))
	sub.expect("*3\r\n$7\r\nmessage\r\n$4\r\nnews\r\n$1\r\n2\r\n")
	rules = []Rule{mine("other", "other")}
	d.restart(t)
	s.send("PUBLISH other 3\r\nPUBLISH news 3\r\n")
	s.expect(":0\r\n" + denied("publish on", "news"))
	rules = []Rule{mine("news", "other")}
	d.restart(t)
	s.send("PUBLISH news 4\r\n")
	s.expect(":1\r\n")
	sub.expect(denied("subscribe to", "news"))
	sub.expectClosed()
}

// One who connects anew for each refusal, and one who tries a new channel each time, do not fill the journal.
func TestRefusalsAreLoggedFewTimes(t *testing.T) {
	log, lines := events()
	d := start(t, func(s *Server) { s.Log = log; s.SetRules([]Rule{stranger}) })
	s := d.connect(t)
	for i := range maxTold + 10 {
		s.send(fmt.Sprintf("PUBLISH c%d x\r\n", i))
		s.expectError("NOPERM ")
	}
	c := d.connections()[0]
	c.mu.Lock()
	if n := len(c.rights.told); n != maxTold {
		t.Errorf("%d refusals are remembered", n)
	}
	c.mu.Unlock()
	for range 10 {
		s := d.connect(t)
		s.send("PUBLISH news x\r\n")
		s.expectError("NOPERM ")
	}
	for range userEvery {
		await(t, lines, "a publisher was refused")
	}
	d.Close()
	if line, want := await(t, lines, ""), fmt.Sprint("more often than is logged count=", maxTold+20-userEvery); !strings.Contains(line, want) {
		t.Errorf("got %q, want %q", line, want)
	}
}

func TestRefusalsOfOneUserDoNotHideAnother(t *testing.T) {
	log, lines := events()
	s := &Server{Log: log}
	for uid := range uint32(3 * serverEvery) {
		for range userEvery + 1 {
			s.refusals.log(s, Peer{UID: uid}, "", "NOPERM x", true)
		}
	}
	perUser := make(map[string]int)
	for range serverEvery {
		_, uid, _ := strings.Cut(await(t, lines, "refused"), " uid=")
		perUser[uid]++
	}
	if len(lines) > 0 || len(perUser) != serverEvery/userEvery {
		t.Errorf("%d lines too many, of %d users", len(lines), len(perUser))
	}
	s.refusals.since = s.refusals.since.Add(-logEvery) // a minute later
	s.refusals.log(s, Peer{UID: 1}, "", "NOPERM x", true)
	if line, want := <-lines, fmt.Sprint("count=", 3*serverEvery*(userEvery+1)-serverEvery); !strings.Contains(line, want) {
		t.Errorf("got %q, want %q", line, want)
	}
	if line := <-lines; !strings.Contains(line, "uid=1 ") {
		t.Errorf("got %q", line)
	}
}

func TestDatagramsAreDenied(t *testing.T) {
	log, lines := events()
	l := newTestLog()
	s := &Server{Broker: l, Log: log}
	conn := startDatagrams(t, s, "")
	tail := l.Tail()
	defer tail.Close()
	expect := func(channel string) {
		t.Helper()
		if m, err := tail.Next(func(string) bool { return true }); err != nil || m.Channel != channel {
			t.Fatalf("got %q (%v), want %q", m.Channel, err, channel)
		}
	}
	send := func(datagram string) {
		t.Helper()
		if _, err := conn.Write([]byte(datagram)); err != nil {
			t.Fatal(err)
		}
	}
	send("other\n1")
	expect("other")
	s.SetRules([]Rule{mine("news", "")})
	send("other\n2")
	send("news\n3")
	expect("news")
	await(t, lines, fmt.Sprintf("datagrams dropped count=1 cause=NOPERM user %d may not publish on 'other': no rule", os.Getuid()))
	s.SetRules([]Rule{{GIDs: []uint32{uint32(os.Getgid())}, Publish: []string{"group"}}})
	send("news\n4")
	send("group\n5")
	expect("group")
	s.SetRules([]Rule{{Everyone: true, Publish: []string{"all"}}})
	send("group\n6")
	send("all\n7")
	expect("all")
	s.SetRules(nil)
	send("other\n8")
	expect("other")
	if st := s.Stats(); st.Denied != 3 || st.DatagramsDropped != 3 || st.Datagrams != 8 {
		t.Errorf("%+v", st)
	}
}

// A datagram that was there before its sender could be known has none, and is nobody's.
func TestDatagramWithoutSender(t *testing.T) {
	log, lines := events()
	l := newTestLog()
	s := &Server{Broker: l, Log: log}
	s.SetRules([]Rule{{UIDs: []uint32{0, uint32(os.Getuid()), nobody}, Publish: []string{"*"}}, {Everyone: true, Publish: []string{"public"}}})
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := unixConn(t, fds[0]), unixConn(t, fds[1])
	for _, datagram := range []string{"news\nearly", "public\nearly"} {
		if _, err := theirs.Write([]byte(datagram)); err != nil {
			t.Fatal(err)
		}
	}
	tail := l.Tail()
	defer tail.Close()
	served := make(chan error, 1)
	go func() { served <- s.ServeDatagrams(ours, "") }()
	await(t, lines, "datagrams dropped count=1 cause=its sender is not known")
	if _, err := theirs.Write([]byte("news\nlate")); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"public early", "news late"} {
		if m, err := tail.Next(func(string) bool { return true }); err != nil || m.Channel+" "+string(m.Data) != want {
			t.Errorf("got %q %q (%v), want %s", m.Channel, m.Data, err, want)
		}
	}
	s.Close()
	if err := <-served; err != nil {
		t.Error(err)
	}
}

func unixConn(t *testing.T, fd int) *net.UnixConn {
	t.Helper()
	f := os.NewFile(uintptr(fd), "socket")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c.(*net.UnixConn)
}

// Descriptors that come with a datagram are not taken. (TestMain would find them.)
func TestDatagramWithDescriptors(t *testing.T) {
	l := newTestLog()
	s := &Server{Broker: l}
	conn := startDatagrams(t, s, "news")
	tail := l.Tail()
	defer tail.Close()
	if _, err := conn.Write([]byte("here")); err != nil {
		t.Fatal(err)
	}
	if _, err := tail.Next(func(string) bool { return true }); err != nil { // now senders are known
		t.Fatal(err)
	}
	s.SetRules([]Rule{mine("news", "")})
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	raw, err := conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	failed := raw.Control(func(fd uintptr) {
		err = unix.Sendmsg(int(fd), []byte("hello"), unix.UnixRights(int(w.Fd())), nil, 0)
	})
	if failed != nil || err != nil {
		t.Fatal(failed, err)
	}
	w.Close()
	if m, err := tail.Next(func(string) bool { return true }); err != nil || string(m.Data) != "hello" {
		t.Fatalf("got %q (%v)", m.Data, err)
	}
	if n, err := r.Read(make([]byte, 1)); n != 0 || err == nil { // the server has no end of it
		t.Errorf("read %d bytes: %v", n, err)
	}
}

func FuzzSenderOf(f *testing.F) {
	f.Add(unix.UnixCredentials(&unix.Ucred{Pid: 1, Uid: 2, Gid: 3}))
	f.Add(unix.UnixRights(1, 2))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, control []byte) {
		if p, ok := senderOf(control); !ok && p != (Peer{}) {
			t.Errorf("an unknown sender is %+v", p)
		}
	})
}

// The hot path allocates nothing, for the channel of the message before and for another one.
func TestRulesAllocateNothing(t *testing.T) {
	d := start(t, func(s *Server) { s.SetRules(manyRules()) })
	d.connect(t).expectPong()
	c := d.connections()[0]
	c.mu.Lock()
	defer c.mu.Unlock()
	channels := [][]byte{[]byte("news"), []byte("camera/hall/door/" + string(bytes.Repeat([]byte("x"), 100)))}
	for _, channels := range [][][]byte{channels[:1], channels} {
		if n := testing.AllocsPerRun(100, func() {
			for _, channel := range channels {
				if err := c.mayPublish(channel); err != nil {
					t.Fatal(err)
				}
			}
		}); n != 0 {
			t.Errorf("%v allocations for %d channels", n, len(channels))
		}
	}
}

func (s *session) expectPong() {
	s.t.Helper()
	s.send("PING\r\n")
	s.expect("+PONG\r\n")
}

// manyRules are some for others, and some for the user of the tests, of which the last one fits.
func manyRules() []Rule {
	rules := []Rule{mine("a/* b/* c/* d/* e/* f/* g/* h/*", "")}
	for range 100 {
		rules = append(rules, stranger)
	}
	return append(rules, mine("news camera/*", ""), Rule{GIDs: []uint32{12345}, Publish: []string{"*"}})
}
