package ipc

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestPublish(t *testing.T) {
	d := start(t)
	d.log.set(func(l *testLog) { l.clients["news"] = 3 })
	s := d.connect(t)
	s.send(array("PUBLISH", "news", "hello") + "publish other \"a b\"\r\n" + array("SPUBLISH", "news", "\x00\r\n") + "PUBLISH news ''\n")
	s.expect(":3\r\n:0\r\n:3\r\n:3\r\n")
	want := []Message{{"news", []byte("hello"), 1}, {"other", []byte("a b"), 2}, {"news", []byte("\x00\r\n"), 3}, {"news", []byte{}, 4}}
	for i, m := range d.log.published() {
		if m.Channel != want[i].Channel || !bytes.Equal(m.Data, want[i].Data) {
			t.Errorf("message %d is %q %q", i, m.Channel, m.Data)
		}
	}
	if st := d.Stats(); st.Published != 4 || st.Commands != 4 || st.Publishers != 1 || st.Errors != 0 {
		t.Errorf("%+v", st)
	}
}

// Every error leaves the connection in order.
func TestErrors(t *testing.T) {
	d := start(t)
	d.SetMaxMessage(10)
	s := d.connect(t)
	tests := []struct{ send, want string }{
		{"GET a\r\n", "ERR unknown command 'GET'"},
		{array("EVIL\r\n+OK\r\n"), "ERR unknown command 'EVIL  +OK  '"},
		{array(strings.Repeat("x", 3000)), "ERR unknown command 'xxx"},
		{array(""), "ERR unknown command ''"},
		{"PUBLISH a\r\n", "ERR wrong number of arguments for 'publish' command"},
		{"PUBLISH a hello world\r\n", "ERR wrong number of arguments for 'publish' command: quote a message that has spaces"},
		{array("PUBLISH", "a b", "x"), "ERR bad channel 'a b': "},
		{array("PUBLISH", "", "x"), "ERR bad channel '': "},
		{array("PUBLISH", strings.Repeat("a", MaxChannel+1), "x"), "ERR bad channel 'aaa"},
		{array("PUBLISH", "a", "12345678901"), "ERR 11 bytes are too long: a message has at most 10 (publish.max_message)"},
		{array("PUBLISH", "a", strings.Repeat("x", 1<<20)), "ERR 1048576 bytes are too long: a message has at most 10 (publish.max_message)"},
		{"SELECT 1\r\n", "ERR DB index is out of range"},
		{"SELECT x\r\n", "ERR value is not an integer"},
		{"HELLO 4\r\n", "NOPROTO unsupported protocol version"},
		{"HELLO x\r\n", "ERR Protocol version is not an integer"},
		{"HELLO 3 AUTH a\r\n", "ERR Syntax error in HELLO option 'AUTH'"},
		{"AUTH a b c\r\n", "ERR syntax error"},
		{"CLIENT\r\n", "ERR wrong number of arguments for 'client' command"},
		{"CLIENT MAINT_NOTIFICATIONS ON\r\n", "ERR unknown subcommand 'MAINT_NOTIFICATIONS' of CLIENT"},
		{"CLIENT ID 1\r\n", "ERR wrong number of arguments for 'client|id' command"},
		{"CLIENT TRACKING\r\n", "ERR wrong number of arguments for 'client|tracking' command"},
		{"CLIENT TRACKING MAYBE\r\n", "ERR syntax error"},
		{"CLIENT CACHING YES\r\n", "ERR CLIENT CACHING can be called only"},
		{array("CLIENT", "SETNAME", "a b"), "ERR Client names cannot contain spaces"},
		{array("CLIENT", "SETINFO", "LIB-NAME", "a\nb"), "ERR lib-name cannot contain spaces"},
		{"CLIENT SETINFO FOO x\r\n", "ERR Unrecognized option 'FOO'"},
		{"CLIENT LIST ID x\r\n", "ERR Invalid client ID"},
		{"CLIENT LIST TYPE x\r\n", "ERR Unknown client type 'x'"},
		{"CLIENT LIST FOO\r\n", "ERR syntax error"},
		{"CLIENT REPLY MAYBE\r\n", "ERR syntax error"},
		{"CLIENT NO-EVICT MAYBE\r\n", "ERR syntax error"},
		{"COMMAND GETKEYS PUBLISH a b\r\n", "ERR The command has no key arguments"},
		{"COMMAND FOO\r\n", "ERR unknown subcommand 'FOO' of COMMAND"},
		{"COMMAND COUNT 1\r\n", "ERR wrong number of arguments for 'command|count' command"},
		{"CONFIG SET a b\r\n", "ERR CONFIG 'SET' is not there"},
		{"CONFIG GET\r\n", "ERR wrong number of arguments for 'config|get' command"},
		{"PUBSUB FOO\r\n", "ERR unknown subcommand 'FOO' of PUBSUB"},
		{"PUBSUB NUMPAT 1\r\n", "ERR wrong number of arguments for 'pubsub|numpat' command"},
		{"PING a b\r\n", "ERR wrong number of arguments for 'ping' command"},
		{array("SUBSCRIBE", "good", "bad one"), "ERR bad channel 'bad one': "},
		{array("PSUBSCRIBE", strings.Repeat("*", maxPattern+1)), "ERR pattern too long"},
		{array(strings.Fields("PSUBSCRIBE" + strings.Repeat(" p*", maxPatterns+1))...), "ERR too many subscriptions"},
	}
	for _, test := range tests {
		s.send(test.send + "ECHO next\r\n")
		s.expectError(test.want)
		s.expect("$4\r\nnext\r\n")
	}
	if got := d.Stats().Errors; got != uint64(len(tests)) {
		t.Errorf("%d errors are counted, %d were answered", got, len(tests))
	}
	if n := len(d.log.published()); n > 0 {
		t.Errorf("%d messages have been published", n)
	}
}

func TestProtocolErrors(t *testing.T) {
	d := start(t)
	for _, test := range []struct{ send, want string }{
		{"*1\r\nPING\r\n", "ERR Protocol error: expected '$', got 'P'"},
		{"*1\r\n$-1\r\n", "ERR Protocol error: invalid bulk length"},
		{"*2000000\r\n", "ERR Protocol error: invalid multibulk length"},
		{"ECHO \"a\r\n", "ERR Protocol error: unbalanced quotes in request"},
		{strings.Repeat("x", maxInline), "ERR Protocol error: too big inline request"},
		{"POST / HTTP/1.1\r\nHost: a\r\n\r\nPUBLISH a b\r\n", "ERR Protocol error: this is HTTP"},
	} {
		s := d.connect(t)
		s.send("PING\r\n" + test.send)
		s.expect("+PONG\r\n")
		s.expectError(test.want)
		s.expectClosed()
	}
	s := d.connect(t)
	s.send("GET / HTTP/1.1\r\nHost: a\r\n")
	s.expectError("ERR unknown command 'GET'")
	s.expectError("ERR Protocol error: this is HTTP")
	s.expectClosed()
}

func TestConnectionCommands(t *testing.T) {
	d := start(t)
	s := d.connect(t)
	s.send("PING\r\nPING x\r\necho y\r\nAUTH secret\r\nAUTH me secret\r\nSELECT 0\r\nCLIENT ID\r\nCLIENT GETNAME\r\nCLIENT SETNAME joe\r\nCLIENT GETNAME\r\n")
	s.expect("+PONG\r\n$1\r\nx\r\n$1\r\ny\r\n+OK\r\n+OK\r\n+OK\r\n:1\r\n$-1\r\n+OK\r\n$3\r\njoe\r\n")
	s.send("CLIENT SETINFO LIB-NAME go-redis\r\nCLIENT SETINFO lib-ver 9\r\nCLIENT NO-EVICT ON\r\nCLIENT NO-TOUCH off\r\nCLIENT GETREDIR\r\nCLIENT TRACKING ON OPTIN NOLOOP PREFIX a\r\nCLIENT CACHING YES\r\nCLIENT GETREDIR\r\n")
	s.expect("+OK\r\n+OK\r\n+OK\r\n+OK\r\n:-1\r\n+OK\r\n+OK\r\n:0\r\n")
	s.send("CLIENT TRACKINGINFO\r\nCLIENT TRACKING OFF\r\n")
	s.expect("*6\r\n$5\r\nflags\r\n*2\r\n$2\r\non\r\n$5\r\noptin\r\n$8\r\nredirect\r\n:0\r\n$8\r\nprefixes\r\n*0\r\n+OK\r\n")
	s.send("CLIENT INFO\r\n")
	want := fmt.Sprintf("name=joe age=0 idle=0 flags=U db=0 sub=0 psub=0 ssub=0 cmd=client user=default lib-name=go-redis lib-ver=9 pid=%d uid=%d gid=%d\n", os.Getpid(), os.Getuid(), os.Getgid())
	if info := s.expectBulk(); !strings.HasPrefix(info, "id=1 addr="+d.path+":0 ") || !strings.HasSuffix(info[strings.Index(info, "name="):], want[strings.Index(want, "flags="):]) {
		t.Errorf("CLIENT INFO: %q", info)
	}
	other := d.connect(t)
	other.send("SUBSCRIBE a\r\n")
	other.expect("*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n")
	for _, test := range []struct{ list, ids string }{
		{"", "id=1 id=2 "}, {" TYPE normal", "id=1 "}, {" TYPE pubsub", "id=2 "}, {" ID 2 7", "id=2 "},
	} {
		s.send("CLIENT LIST" + test.list + "\r\n")
		ids := ""
		for line := range strings.Lines(s.expectBulk()) {
			ids += strings.Fields(line)[0] + " "
		}
		if ids != test.ids {
			t.Errorf("CLIENT LIST%s: %q", test.list, ids)
		}
	}
	s.send("RESET\r\nCLIENT GETNAME\r\nQUIT\r\nPING\r\n")
	s.expect("+RESET\r\n$-1\r\n+OK\r\n")
	s.expectClosed()
}

func TestClientReply(t *testing.T) {
	d := start(t)
	s := d.connect(t)
	s.send("CLIENT REPLY SKIP\r\nECHO a\r\nECHO b\r\nCLIENT REPLY OFF\r\nECHO c\r\nPUBLISH x y\r\nFOO\r\nCLIENT REPLY ON\r\nECHO d\r\n")
	s.expect("$1\r\nb\r\n+OK\r\n$1\r\nd\r\n")
	if n := len(d.log.published()); n != 1 {
		t.Errorf("%d messages have been published without an answer", n)
	}
}

func TestHello(t *testing.T) {
	d := start(t)
	s := d.connect(t)
	const rest = "$6\r\nserver\r\n$6\r\nwscast\r\n$7\r\nversion\r\n$5\r\n7.2.0\r\n$5\r\nproto\r\n:%d\r\n$2\r\nid\r\n:1\r\n$4\r\nmode\r\n$10\r\nstandalone\r\n$4\r\nrole\r\n$6\r\nmaster\r\n$7\r\nmodules\r\n*0\r\n"
	s.send("HELLO\r\n")
	s.expect("*14\r\n" + fmt.Sprintf(rest, 2))
	s.send("HELLO 3 AUTH default secret SETNAME joe\r\nCLIENT GETNAME\r\nCLIENT TRACKINGINFO\r\n")
	s.expect("%7\r\n" + fmt.Sprintf(rest, 3) + "$3\r\njoe\r\n%3\r\n$5\r\nflags\r\n~1\r\n$3\r\noff\r\n$8\r\nredirect\r\n:-1\r\n$8\r\nprefixes\r\n*0\r\n")
	s.send("CONFIG GET save APPEND*\r\nCONFIG GET foo\r\nINFO nothing\r\nCLIENT SETNAME ''\r\nCLIENT GETNAME\r\n")
	s.expect("%2\r\n$10\r\nappendonly\r\n$2\r\nno\r\n$4\r\nsave\r\n$0\r\n\r\n%0\r\n=4\r\ntxt:\r\n+OK\r\n_\r\n")
	s.send("RESET\r\nCLIENT GETNAME\r\n")
	s.expect("+RESET\r\n$-1\r\n")
	s.send("HELLO 3 SETNAME 'a b'\r\nCLIENT GETNAME\r\n") // refused as a whole
	s.expectError("ERR Client names")
	s.expect("$-1\r\n")
}

func TestCommand(t *testing.T) {
	d := start(t)
	s := d.connect(t)
	n := strconv.Itoa(len(commands))
	s.send("COMMAND COUNT\r\nCOMMAND INFO publish nothing\r\n")
	s.expect(":" + n + "\r\n*2\r\n*10\r\n$7\r\npublish\r\n:-3\r\n*3\r\n+pubsub\r\n+stale\r\n+fast\r\n:0\r\n:0\r\n:0\r\n*1\r\n+@pubsub\r\n*0\r\n*0\r\n*0\r\n*-1\r\n")
	s.send("COMMAND DOCS QUIT quit nothing\r\nCOMMAND DOCS nothing\r\n")
	s.expect("*2\r\n$4\r\nquit\r\n*6\r\n$7\r\nsummary\r\n$22\r\nCloses the connection.\r\n$5\r\nsince\r\n$5\r\n1.0.0\r\n$5\r\ngroup\r\n$10\r\nconnection\r\n*0\r\n")
	s.send("COMMAND LIST\r\n")
	s.expect("*" + n + "\r\n")
	for _, c := range commands {
		s.expect(fmt.Sprintf("$%d\r\n%s\r\n", len(c.name), c.name))
	}
	s.send("COMMAND\r\n")
	s.expect("*" + n + "\r\n*10\r\n")
}

func TestInfo(t *testing.T) {
	d := start(t)
	s := d.connect(t)
	s.send("INFO log CLIENTS\r\n")
	if got, want := s.expectBulk(), "# Clients\r\nconnected_clients:3\r\n\r\n# Log\r\nhead:7\r\nnote:two  lines\r\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	s.send("INFO\r\n")
	all := s.expectBulk()
	for _, part := range []string{"# Server\r\nredis_version:7", "\r\nloading:0\r\n", "\r\nwscast_version:1.2.3\r\n", "\r\nhostname:test\r\n\r\n# Clients", "# Publishers\r\nconnected_publishers:1\r\n"} {
		if !strings.Contains(all, part) {
			t.Errorf("INFO is without %q: %q", part, all)
		}
	}
}

func TestBrokerRefuses(t *testing.T) {
	d := start(t)
	d.log.set(func(l *testLog) { l.refuse = errors.New("not\r\n+now") })
	s := d.connect(t)
	s.send("PUBLISH a b\r\nPING\r\n")
	s.expect("-ERR not  +now\r\n+PONG\r\n")
}

// A publisher that does not read its answers is not read any more, and then closed; the server keeps little for it.
func TestPublisherDoesNotRead(t *testing.T) {
	log, lines := events()
	d := start(t, func(s *Server) { s.ReplyTimeout = 50 * time.Millisecond; s.Log = log })
	s := d.connect(t)
	echo := array("ECHO", strings.Repeat("x", 60<<10))
	sent := 0
	for {
		n, err := io.WriteString(s, echo)
		if sent += n; err != nil {
			break
		}
	}
	if sent > 8<<20 {
		t.Errorf("the server has taken %d bytes of commands without getting rid of an answer", sent)
	}
	await(t, lines, "it does not read its answers pid="+strconv.Itoa(os.Getpid()))
	if d.Stats().Slow != 1 {
		t.Errorf("%+v", d.Stats())
	}
	other := d.connect(t)
	other.send("PING\r\n")
	other.expect("+PONG\r\n")
}

// A publisher that reads late gets everything.
func TestPublisherReadsLate(t *testing.T) {
	d := start(t)
	s := d.connect(t)
	const n = 100
	go func() {
		for range n {
			io.WriteString(s, array("ECHO", strings.Repeat("x", 60<<10)))
		}
	}()
	for range n {
		if len(s.expectBulk()) != 60<<10 {
			t.Fatal("an answer of another length")
		}
	}
}

// A connection that waits for its next command holds no buffer.
func TestIdleHoldsNothing(t *testing.T) {
	d := start(t)
	s := d.connect(t)
	c, err := newConn(d.Server, s.UnixConn, Peer{})
	if err != nil {
		t.Fatal(err)
	}
	c.raw.Control(func(fd uintptr) {
		if c.tryRead(fd) || c.in.buf != nil {
			t.Errorf("nothing to read, and a buffer is held: %v", c.in.buf != nil)
		}
	})
	s.send("PING\r\n")
	s.expect("+PONG\r\n")
	c.in.read(copy(c.in.room(), "PING\r\nPING\r\n"))
	if err := c.batch(); err != nil || c.outBuf != nil || c.out.b != nil {
		t.Errorf("after the answers (%v) the buffer is held: %v", err, c.outBuf != nil)
	}
}

func TestTooManyConnections(t *testing.T) {
	d := start(t, func(s *Server) { s.MaxConns = 1 })
	s := d.connect(t)
	s.send("PING\r\n")
	s.expect("+PONG\r\n")
	other := d.connect(t)
	other.expect("-ERR max number of publishers reached\r\n")
	other.expectClosed()
	if d.Stats().Refused != 1 {
		t.Errorf("%+v", d.Stats())
	}
}

// Errors of accept that pass, as net wraps them: of the process, of the machine, which no test can run out of alone, of memory, and of the connection that
// was waiting. Any other one is the end of a listener.
func TestOutOfResources(t *testing.T) {
	for errno, passes := range map[syscall.Errno]bool{
		unix.EMFILE: true, unix.ENFILE: true, unix.ENOBUFS: true, unix.ENOMEM: true, unix.ECONNABORTED: true, unix.EBADF: false, unix.EINVAL: false,
	} {
		if err := (&net.OpError{Op: "accept", Err: os.NewSyscallError("accept4", errno)}); outOfResources(err) != passes {
			t.Errorf("%v passes: %t", err, !passes)
		}
	}
}

// When there are no file descriptors, accepting waits, says so once, and goes on.
func TestOutOfDescriptors(t *testing.T) {
	log, lines := events()
	d := start(t, func(s *Server) { s.Log = log })
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	none := limit
	none.Cur = 3 // every number below is in use: standard input, output and error
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &none); err != nil {
		t.Fatal(err)
	}
	connected := unix.Connect(fd, &unix.SockaddrUnix{Name: d.path})
	var line string
	select {
	case line = <-lines:
	case <-time.After(deadline):
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if connected != nil {
		t.Fatal(connected)
	}
	if !strings.Contains(line, "too many open files") {
		t.Errorf("logged %q", line)
	}
	limited := unix.Timeval{Sec: int64(deadline / time.Second)}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limited); err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "client")
	defer f.Close()
	io.WriteString(f, "PING\r\nQUIT\r\n")
	if b, err := io.ReadAll(f); string(b) != "+PONG\r\n+OK\r\n" || err != nil {
		t.Errorf("got %q (%v)", b, err)
	}
	select {
	case line := <-lines:
		t.Errorf("logged again: %q", line)
	default:
	}
}

// Close answers what it has read, and every answer is true.
func TestClose(t *testing.T) {
	d := start(t)
	s := d.connect(t)
	half := d.connect(t)
	half.send("PING\r\nPUBLISH a")
	half.expect("+PONG\r\n")
	deaf := d.connect(t) // does not read
	deaf.send("SUBSCRIBE a\r\n")
	deaf.expect("*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n")
	wrote := make(chan struct{})
	go func() {
		defer close(wrote)
		for {
			if _, err := io.WriteString(s, strings.Repeat(array("PUBLISH", "a", strings.Repeat("x", 1000)), 10)); err != nil {
				return
			}
		}
	}()
	for range 100 {
		s.expect(":1\r\n")
	}
	d.Close()
	rest, _ := io.ReadAll(s.r) // ECONNRESET: what was sent after is lost, and not answered
	<-wrote
	if answered, in := 100+bytes.Count(rest, []byte("\r\n")), len(d.log.published()); answered != in {
		t.Errorf("%d messages are answered, %d are in the log", answered, in)
	}
	half.expectClosed()
	if st := d.Stats(); st.Publishers != 0 || st.Subscribers != 0 {
		t.Errorf("%+v", st)
	}
	if err := d.Serve(nil); err != nil {
		t.Errorf("Serve after Close: %v", err)
	}
}

// The listener is the caller's: another server can go on with it, and whoever has connected in between is served.
func TestListenerOutlivesServer(t *testing.T) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: t.TempDir() + "/s", Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for range 3 {
		d := &daemon{Server: &Server{Broker: newTestLog()}, path: l.Addr().String()}
		s := d.connect(t)
		s.send("PING\r\n")
		served := make(chan error)
		go func() { served <- d.Serve(l) }()
		s.expect("+PONG\r\n")
		d.Close()
		if err := <-served; err != nil {
			t.Fatal(err)
		}
		s.expectClosed()
	}
	l.Close()
	if err := (&Server{Broker: newTestLog()}).Serve(l); err == nil || !strings.HasPrefix(err.Error(), "publish socket ") {
		t.Errorf("Serve of a closed listener: %v", err)
	}
}

// A change of the limit holds for connections that are open.
func TestSetMaxMessage(t *testing.T) {
	d := start(t)
	s := d.connect(t)
	long := array("PUBLISH", "a", strings.Repeat("x", DefaultMaxMessage+1))
	s.send(long)
	s.expectError("ERR 1048577 bytes are too long")
	d.SetMaxMessage(2 << 20)
	s.send(long)
	s.expect(":0\r\n")
	d.SetMaxMessage(0)
	s.send(long)
	s.expectError("ERR 1048577 bytes are too long")
}

// FuzzServer sends anything: the server neither hangs nor stops, and what it answers is RESP.
func FuzzServer(f *testing.F) {
	for _, s := range []string{
		"PING\r\n", array("PUBLISH", "a", "b") + "SUBSCRIBE a\r\nPUBLISH a b\r\n", "HELLO 3\r\nSUBSCRIBE a\r\nPUBLISH a b\r\nUNSUBSCRIBE\r\n",
		"PSUBSCRIBE * [a\r\nRESET\r\nCOMMAND\r\nCOMMAND DOCS\r\nINFO\r\nCLIENT LIST\r\n", "CLIENT REPLY OFF\r\nCOMMAND\r\nCLIENT REPLY ON\r\n", "*1\r\n$9999999\r\n", "*3\r\n$-1",
		"PUBSUB NUMSUB a b\r\nPUBSUB CHANNELS *\r\nCLIENT TRACKING ON PREFIX\r\nCONFIG GET *\r\nHELLO 3 SETNAME x AUTH a b\r\n",
	} {
		f.Add([]byte(s))
	}
	d := start(f)
	f.Fuzz(func(t *testing.T, input []byte) {
		s := d.connect(t)
		defer s.Close()
		sent := make(chan struct{})
		go func() {
			defer close(sent)
			s.Write(input)
			s.CloseWrite()
		}()
		b, err := io.ReadAll(io.LimitReader(s.r, 64<<20))
		s.Close()
		<-sent
		if ne := net.Error(nil); errors.As(err, &ne) && ne.Timeout() {
			t.Fatalf("the server hangs after %.300q, having answered %.300q", input, b)
		}
		if len(b) > 0 && !strings.ContainsRune("+-:$*%=~>_", rune(b[0])) {
			t.Fatalf("answered %.300q", b)
		}
		if len(b) > 0 && err == nil && !bytes.HasSuffix(b, []byte("\r\n")) {
			t.Fatalf("the answer breaks off: %.300q", b[max(0, len(b)-300):])
		}
	})
}
