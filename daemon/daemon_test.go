package daemon

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"wscast/ipc"
)

// running is a daemon that runs until the test ends.
type running struct {
	t       testing.TB
	d       *Daemon
	dir     string
	address string // of its first WebSocket socket
	log     *record
	signals chan os.Signal
	ended   chan error
	reload  func() (Config, error) // what a SIGHUP reads
	stopped bool
}

// record is a log that can be waited for.
type record struct {
	mu    sync.Mutex
	text  bytes.Buffer
	grown chan struct{}
}

func (r *record) Write(b []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	close(r.grown)
	r.grown = make(chan struct{})
	return r.text.Write(b)
}

func (r *record) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.text.String()
}

func (r *record) clear() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.text.Reset()
}

// expect waits for a piece of the log.
func (r *record) expect(t testing.TB, text string) {
	t.Helper()
	timeout := time.After(patience)
	for {
		r.mu.Lock()
		grown, have := r.grown, r.text.String()
		r.mu.Unlock()
		if strings.Contains(have, text) {
			return
		}
		select {
		case <-grown:
		case <-timeout:
			t.Fatalf("the log does not say %q:\n%s", text, have)
		}
	}
}

// start runs a daemon on sockets of its own; change may change its configuration and options.
func start(t testing.TB, change ...func(o *Options, dir string)) *running {
	t.Helper()
	c, dir := byHand(t)
	c.Log.Size = 8 << 20
	c.Publish.MaxMessage = 512 << 10
	var level slog.LevelVar
	r := &running{t: t, dir: dir, log: &record{grown: make(chan struct{})}, signals: make(chan os.Signal, 1), ended: make(chan error, 1)}
	o := Options{
		Config: *c, Version: "test", Level: &level,
		Log:    slog.New(slog.NewTextHandler(r.log, &slog.HandlerOptions{Level: &level})),
		Reload: func() (Config, error) { return r.reload() },
	}
	for _, f := range change {
		f(&o, dir)
	}
	var err error
	if o.Sockets, err = Bind(&o.Config); err != nil {
		t.Fatal(err)
	}
	if r.d, err = New(o); err != nil {
		t.Fatal(err)
	}
	websocket, _ := r.d.sockets.Addresses()
	r.address = websocket[0]
	go func() { r.ended <- r.d.Run(r.signals) }()
	t.Cleanup(func() {
		if err := r.stop(); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	r.log.expect(t, "msg=serving")
	return r
}

// stop ends the daemon as systemctl stop does, once.
func (r *running) stop() error {
	if r.stopped {
		return nil
	}
	r.stopped = true
	r.signals <- syscall.SIGTERM
	select {
	case err := <-r.ended:
		return err
	case <-time.After(patience):
		return errors.New("it does not end")
	}
}

// open joins a channel with gorilla's client, "" being the URL without one.
func (r *running) open(channel string, headers ...string) *websocket.Conn {
	r.t.Helper()
	conn, response, err := r.dial("ws://"+r.address+"/websocket"+slash(channel), headers...)
	if err != nil {
		r.t.Fatalf("joining %q: %v %v", channel, err, response)
	}
	return conn
}

func slash(channel string) string {
	if channel == "" {
		return ""
	}
	return "/" + channel
}

func (r *running) dial(url string, headers ...string) (*websocket.Conn, *http.Response, error) {
	header := http.Header{}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		header.Add(name, value)
	}
	conn, response, err := websocket.DefaultDialer.Dial(url, header)
	if err == nil {
		r.t.Cleanup(func() { conn.Close() })
		_ = conn.SetReadDeadline(time.Now().Add(patience))
	}
	return conn, response, err
}

// publisher connects to the publish socket.
func (r *running) publisher() *ipc.Client {
	r.t.Helper()
	c, err := ipc.Dial(filepath.Join(r.dir, "publish.sock"))
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { c.Close() })
	return c
}

// publish publishes and expects so many receivers.
func publish(t testing.TB, c *ipc.Client, channel, message string, receivers int) {
	t.Helper()
	if n, err := c.Publish(channel, []byte(message)); err != nil || n != receivers {
		t.Fatalf("PUBLISH %s %.40q: %d receivers, %v, want %d", channel, message, n, err, receivers)
	}
}

// expect reads the next message of a client.
func expect(t testing.TB, conn *websocket.Conn, kind int, message string) {
	t.Helper()
	k, b, err := conn.ReadMessage()
	if err != nil || k != kind || string(b) != message {
		t.Fatalf("got frame %d %.40q, %v, want %d %.40q", k, b, err, kind, message)
	}
}

// info is a field of INFO.
func info(t testing.TB, c *ipc.Client, section, key string) string {
	t.Helper()
	sections, err := c.Info(section)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range sections {
		for _, f := range s.Fields {
			if f.Key == key {
				return f.Value
			}
		}
	}
	t.Fatalf("INFO %s has no %s: %v", section, key, sections)
	return ""
}

// awaitInfo waits until a field of INFO, which the loops show after every turn, has a value.
func awaitInfo(t testing.TB, c *ipc.Client, section, key, want string) {
	t.Helper()
	for end := time.Now().Add(patience); ; {
		got := info(t, c, section, key)
		if got == want {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s is %s, want %s", key, got, want)
		}
	}
}

func TestPublishedIsDelivered(t *testing.T) {
	r := start(t)
	p := r.publisher()
	publish(t, p, "news", "nobody listens", 0)

	one, two, other, unnamed := r.open("news"), r.open("news"), r.open("a%2Fb:c"), r.open("")
	publish(t, p, "news", "hello", 2)
	publish(t, p, "news", "", 2)
	publish(t, p, "a/b:c", "grüße", 1)
	publish(t, p, "default", "\xff\x00", 1)
	for _, conn := range []*websocket.Conn{one, two} {
		expect(t, conn, websocket.TextMessage, "hello")
		expect(t, conn, websocket.TextMessage, "")
	}
	expect(t, other, websocket.TextMessage, "grüße")
	expect(t, unnamed, websocket.BinaryMessage, "\xff\x00")

	two.Close()
	awaitInfo(t, p, "clients", "connected_clients", "3")
	large := strings.Repeat("0123456789abcdef", 32<<10) // publish.max_message
	publish(t, p, "news", large, 1)
	expect(t, one, websocket.TextMessage, large)
	if _, err := p.Publish("news", []byte(large+"x")); err == nil || !strings.Contains(err.Error(), "publish.max_message") {
		t.Errorf("a message of a byte too many: %v", err)
	}
	if _, err := p.Publish("a b", []byte("x")); err == nil {
		t.Error("a bad channel is taken")
	}
	publish(t, p, "news", "after all that", 1)
	expect(t, one, websocket.TextMessage, "after all that")
}

func TestFramesOfAChannel(t *testing.T) {
	r := start(t, func(o *Options, _ string) {
		o.Config.Channel = []ChannelConfig{{Match: "t/*", Frames: "text"}, {Match: "b/*", Frames: "binary"}}
	})
	p := r.publisher()
	text, binary, auto := r.open("t/1"), r.open("b/1"), r.open("other")
	publish(t, p, "b/1", "text", 1)
	publish(t, p, "other", "text", 1)
	publish(t, p, "other", "\xed\xa0\x80", 1) // half a surrogate pair is not UTF-8
	if _, err := p.Publish("t/1", []byte("\xff")); err == nil || !strings.HasPrefix(err.Error(), "the message is not UTF-8 and the channel is one of text frames") {
		t.Errorf("what is not UTF-8 on a channel of text: %v", err)
	}
	publish(t, p, "t/1", "text", 1)
	expect(t, text, websocket.TextMessage, "text") // and not what was refused
	expect(t, binary, websocket.BinaryMessage, "text")
	expect(t, auto, websocket.TextMessage, "text")
	expect(t, auto, websocket.BinaryMessage, "\xed\xa0\x80")
}

// Several publishers, several loops: every client gets all messages of every publisher in its order.
func TestOrder(t *testing.T) {
	const publishers, clients, messages = 4, 10, 500
	r := start(t, func(o *Options, _ string) { o.Config.Daemon.Loops = 3 })
	var conns []*websocket.Conn
	for range clients {
		conns = append(conns, r.open("news"))
	}
	var wg sync.WaitGroup
	for i := range publishers {
		p := r.publisher()
		wg.Go(func() {
			for n := range messages {
				if got, err := p.Publish("news", fmt.Appendf(nil, "%d %d", i, n)); err != nil || got != clients {
					t.Errorf("publisher %d, message %d: %d, %v", i, n, got, err)
					return
				}
			}
		})
	}
	for i, conn := range conns {
		wg.Go(func() {
			next := make([]int, publishers)
			for range publishers * messages {
				_, b, err := conn.ReadMessage()
				if err != nil {
					t.Errorf("client %d: %v", i, err)
					return
				}
				from, text, _ := strings.Cut(string(b), " ")
				p, _ := strconv.Atoi(from)
				if n, _ := strconv.Atoi(text); n != next[p] {
					t.Errorf("client %d: message %d of publisher %d, want %d", i, n, p, next[p])
					return
				}
				next[p]++
			}
		})
	}
	wg.Wait()
}

// Every way in: TCP over IPv4 and IPv6, and a Unix-domain socket, as nginx uses it.
func TestEverySocketServes(t *testing.T) {
	r := start(t, func(o *Options, dir string) {
		o.Config.WebSocket.Listen = []string{"127.0.0.1:0", "[::1]:0", filepath.Join(dir, "websocket.sock")}
		o.Config.Publish.Listen = append(o.Config.Publish.Listen, filepath.Join(dir, "second.sock"))
	})
	addresses, publishers := r.d.sockets.Addresses()
	var conns []*websocket.Conn
	for _, address := range addresses {
		network := "tcp"
		if strings.HasPrefix(address, "/") {
			network = "unix"
		}
		dialer := websocket.Dialer{NetDial: func(string, string) (net.Conn, error) { return net.Dial(network, address) }}
		conn, _, err := dialer.Dial("ws://example.org/websocket/news", nil)
		if err != nil {
			t.Fatalf("%s: %v", address, err)
		}
		defer conn.Close()
		_ = conn.SetReadDeadline(time.Now().Add(patience))
		conns = append(conns, conn)
	}
	for _, path := range publishers {
		p, err := ipc.Dial(path)
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		publish(t, p, "news", path, len(conns))
		for _, conn := range conns {
			expect(t, conn, websocket.TextMessage, path)
		}
	}
}

func TestHTTPOverTheSocket(t *testing.T) {
	r := start(t, func(o *Options, _ string) { o.Demo = true })
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}
	for path, want := range map[string]int{"/": 200, "/demo.js": 200, "/demo.css": 200, "/nowhere": 404, "/websocket": 426} {
		response, err := client.Get("http://" + r.address + path)
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		b, err := io.ReadAll(response.Body)
		response.Body.Close()
		if response.StatusCode != want || len(b) == 0 || err != nil {
			t.Errorf("%s: %d, %d bytes, %v, want %d", path, response.StatusCode, len(b), err, want)
		}
		if path == "/" && !strings.Contains(string(b), filepath.Join(r.dir, "publish.sock")) {
			t.Errorf("the page does not name the publish socket %s", r.dir)
		}
	}
	conn, response, err := r.dial("ws://"+r.address+"/websocket", "Origin: https://evil.example")
	if err == nil {
		conn.Close()
		t.Error("a page of strangers may connect")
	} else if response == nil || response.StatusCode != http.StatusForbidden {
		t.Errorf("a page of strangers: %v, %v", response, err)
	}
}

func TestGreetingIsTheFirstMessage(t *testing.T) {
	r := start(t, func(o *Options, _ string) { o.Config.WebSocket.Greeting = "websocket is running" })
	p := r.publisher()
	conn := r.open("news")
	publish(t, p, "news", "hello", 1)
	expect(t, conn, websocket.TextMessage, "websocket is running")
	expect(t, conn, websocket.TextMessage, "hello")
}

func TestInfo(t *testing.T) {
	r := start(t, func(o *Options, _ string) { o.Config.Daemon.Loops = 2 })
	p := r.publisher()
	a, b := r.open("a"), r.open("b")
	publish(t, p, "a", "12345", 1)
	expect(t, a, websocket.TextMessage, "12345")
	if err := b.WriteMessage(websocket.TextMessage, []byte("dropped")); err != nil {
		t.Fatal(err)
	}
	awaitInfo(t, p, "stats", "frames_received", "1")
	awaitInfo(t, p, "stats", "deliveries", "1")
	response, err := http.Get("http://" + r.address + "/nowhere")
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	awaitInfo(t, p, "stats", "requests_refused", "1")
	awaitInfo(t, p, "clients", "closing", "0")

	for _, want := range [][3]string{
		{"server", "wscast_version", "test"}, {"server", "loading", "0"},
		{"clients", "connected_clients", "2"}, {"clients", "opening", "0"}, {"clients", "blocked", "0"}, {"clients", "loops", "2"},
		{"stats", "messages", "1"}, {"stats", "message_bytes", "5"}, {"stats", "handshakes", "2"}, {"stats", "slow", "0"}, {"stats", "timed_out", "0"},
		{"stats", "closed_by_client", "0"}, {"stats", "closed_gone", "0"}, {"stats", "closed_protocol_error", "0"}, {"stats", "closed_slow", "0"}, {"stats", "closed_stopped", "0"},
		{"log", "head", "1"}, {"log", "messages_kept", "1"}, {"log", "bytes_kept", "7"}, {"log", "bytes_limit", "8388608"}, {"log", "channels", "2"}, {"log", "channels_limit", "65536"},
		{"publishers", "connected_publishers", "1"}, {"publishers", "messages_published", "1"},
	} {
		if got := info(t, p, want[0], want[1]); got != want[2] {
			t.Errorf("INFO %s: %s is %s, want %s", want[0], want[1], got, want[2])
		}
	}
	if epoch := info(t, p, "log", "epoch"); len(epoch) != 16 {
		t.Errorf("epoch %s", epoch)
	}
	if age, err := strconv.ParseFloat(info(t, p, "log", "oldest_age_seconds"), 64); err != nil || age < 0 || age > 3600 {
		t.Errorf("oldest_age_seconds %v, %v", age, err)
	}
	channels := r.d.Channels()
	if slices.Sort(channels); !slices.Equal(channels, []string{"a", "b"}) || r.d.Clients("a") != 1 || r.d.Clients("c") != 0 || r.d.Head() != 1 {
		t.Errorf("channels %q", channels)
	}
}

// The rates are what was counted between two looks, however many look.
func TestRates(t *testing.T) {
	d := &Daemon{}
	began := time.Now().Add(-10 * time.Second)
	d.rates.Store(&rates{at: began, messages: 100, deliveries: 1000})
	r := d.measure(200, 3000)
	if m := r.perSecond.messages; m > 10 || m < 1 {
		t.Errorf("%.3f messages/s, want 10 or, on a machine that stood still, less", m)
	}
	if ratio := r.perSecond.deliveries / r.perSecond.messages; ratio < 19.9 || ratio > 20.1 {
		t.Errorf("%.3f deliveries a message, want 20", ratio)
	}
	if again := d.measure(1000, 9000); again != r && time.Since(r.at) < statusEvery/2 {
		t.Errorf("a look right after measures anew: %+v", again)
	}
}

func TestLocalSubscriberSeesWhatIsPublished(t *testing.T) {
	r := start(t)
	p := r.publisher()
	publish(t, p, "news", "before", 0)
	s, err := r.publisher().PSubscribe("n*")
	if err != nil {
		t.Fatal(err)
	}
	conn := r.open("news")
	publish(t, p, "news", "hello", 2)
	publish(t, p, "other", "no", 0)
	publish(t, p, "news", "\xff", 2)
	for _, want := range []string{"hello", "\xff"} {
		within(t, "the subscriber's next message", func() error {
			m, err := s.Next()
			if err == nil && (m.Channel != "news" || string(m.Data) != want) {
				err = fmt.Errorf("got %s %q, want news %q", m.Channel, m.Data, want)
			}
			return err
		})
	}
	expect(t, conn, websocket.TextMessage, "hello")
	expect(t, conn, websocket.BinaryMessage, "\xff")
}

func TestDatagrams(t *testing.T) {
	for name, test := range map[string]struct{ channel, datagram string }{
		"for one channel":               {"syslog", "hello\nworld"},
		"with the channel's name first": {"", "syslog\nhello\nworld"},
	} {
		t.Run(name, func(t *testing.T) {
			r := start(t, func(o *Options, dir string) {
				o.Config.Publish.Datagrams = []string{filepath.Join(dir, "datagrams.sock"), filepath.Join(dir, "datagrams2.sock")}
				o.Config.Publish.DatagramChannel = test.channel
			})
			conn := r.open("syslog")
			for _, socket := range []string{"datagrams.sock", "datagrams2.sock"} {
				sender, err := net.Dial("unixgram", filepath.Join(r.dir, socket))
				if err != nil {
					t.Fatal(err)
				}
				defer sender.Close()
				if _, err := sender.Write([]byte(test.datagram)); err != nil {
					t.Fatal(err)
				}
				expect(t, conn, websocket.TextMessage, "hello\nworld")
			}
		})
	}
}

// Whoever is connected when the daemon stops is first sent everything that was answered, and then 1012.
func TestStopDeliversEverythingFirst(t *testing.T) {
	const clients, messages = 20, 300
	r := start(t)
	p := r.publisher()
	var conns []*websocket.Conn
	for range clients {
		conns = append(conns, r.open("news"))
	}
	message := strings.Repeat("x", 100)
	for range messages {
		publish(t, p, "news", message, clients)
	}
	var wg sync.WaitGroup
	for i, conn := range conns {
		wg.Go(func() {
			defer conn.Close()
			for n := range messages {
				if _, b, err := conn.ReadMessage(); err != nil || string(b) != message {
					t.Errorf("client %d, message %d: %.40q, %v", i, n, b, err)
					return
				}
			}
			_, _, err := conn.ReadMessage() // answers the close frame
			var closed *websocket.CloseError
			if !errors.As(err, &closed) || closed.Code != websocket.CloseServiceRestart || closed.Text != "service restart" {
				t.Errorf("client %d: %v, want close 1012", i, err)
			}
		})
	}
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	if _, err := net.Dial("unix", filepath.Join(r.dir, "publish.sock")); !errors.Is(err, syscall.ENOENT) {
		t.Errorf("the publish socket after the stop: %v", err)
	}
	if _, err := p.Publish("news", []byte("x")); err == nil {
		t.Error("a message was taken after the stop")
	}
}

// A client that is behind at the stop gets the rest first, too.
func TestStopWaitsForAClientThatIsBehind(t *testing.T) {
	const messages = 24 // 6 MiB: more than sockets buffer, less than the log keeps
	r := start(t)
	p := r.publisher()
	conn := r.open("news")
	message := strings.Repeat("x", 256<<10)
	for range messages {
		publish(t, p, "news", message, 1)
	}
	awaitInfo(t, p, "clients", "blocked", "1")
	ended := make(chan error, 1)
	go func() { ended <- r.stop() }()
	r.log.expect(t, "msg=stopping")
	for range messages {
		expect(t, conn, websocket.TextMessage, message)
	}
	if _, _, err := conn.ReadMessage(); !websocket.IsCloseError(err, websocket.CloseServiceRestart) {
		t.Errorf("%v, want close 1012", err)
	}
	conn.Close()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// A signal that comes while clients connect and publishers publish.
func TestStopInTheMiddle(t *testing.T) {
	r := start(t)
	var wg sync.WaitGroup
	begun := make(chan struct{}, 8)
	for range 4 {
		p := r.publisher()
		wg.Go(func() {
			for n := 0; ; n++ {
				if _, err := p.Publish("news", []byte("hello")); err != nil {
					return
				}
				if n == 10 {
					begun <- struct{}{}
				}
			}
		})
		wg.Go(func() {
			for n := 0; ; n++ {
				conn, _, err := websocket.DefaultDialer.Dial("ws://"+r.address+"/websocket/news", nil)
				if err != nil {
					return
				}
				if n == 2 {
					begun <- struct{}{}
				}
				conn.Close()
			}
		})
	}
	for range 8 {
		<-begun
	}
	if err := r.stop(); err != nil {
		t.Error(err)
	}
	wg.Wait()
}

func TestListenerThatFails(t *testing.T) {
	r := start(t)
	r.stopped = true // by itself
	if err := r.d.sockets.Publish[0].Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-r.ended:
		if err == nil || !strings.Contains(err.Error(), "publish.sock") {
			t.Errorf("Run returns %v", err)
		}
	case <-time.After(patience):
		t.Fatal("the daemon goes on without its publish socket")
	}
}

func TestNewThatFails(t *testing.T) {
	c, dir := byHand(t)
	c.Log.Size = 1 << 50
	s, err := Bind(c)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := New(Options{Config: *c, Sockets: s, Log: slog.New(slog.DiscardHandler), Level: new(slog.LevelVar)}); err == nil {
		t.Fatal("a log of a petabyte was made")
	}
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("it leaves %v", left)
	}
}
