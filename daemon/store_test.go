package daemon

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"wscast/daemon/msglog"
)

func TestNamesOfTheLog(t *testing.T) {
	for name, want := range map[string]int{
		"log": 0, "log.2": 1, "log.own.1": 0, "log.own.15": 0, "log.2.own.1": 1,
		"log.3": -1, "log.own": -1, "log.own.0": -1, "log.own.01": -1, "log.own.-1": -1, "log.own.1x": -1, "log.2.own.": -1, "logs": -1, "table": -1, "": -1,
	} {
		set, ok := logSet(name)
		if ok != (want >= 0) || ok && set != want || isLog(name) != ok {
			t.Errorf("%q: set %d, %v", name, set, ok)
		}
	}
}

// listener is a client of one channel, which knows what it has to be told next.
type listener struct {
	conn    *websocket.Conn
	channel string
	said    int
}

func (r *running) listen(t *testing.T, channel string) *listener {
	t.Helper()
	conn, _, err := websocket.DefaultDialer.Dial("ws://"+r.address+"/websocket/"+channel, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &listener{conn: conn, channel: channel}
}

func (r *running) say(t *testing.T, l *listener) {
	t.Helper()
	message := fmt.Sprint(l.channel, " ", l.said)
	l.said++
	n, _, err := r.d.Publish([]byte(l.channel), []byte(message), nil)
	if r.d.Flush(); n != 1 || err != nil {
		t.Fatalf("%s: %d clients, %v\n%s", message, n, err, r.log)
	}
	_ = l.conn.SetReadDeadline(time.Now().Add(patience))
	if _, b, err := l.conn.ReadMessage(); err != nil || string(b) != message {
		t.Fatalf("read %q, %v, want %q\n%s", b, err, message, r.log)
	}
}

// expectPast is about what the log has of a channel.
func (r *running) expectPast(t *testing.T, channel string, n int) {
	t.Helper()
	reader, err := r.d.store.NewReader(func() {})
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Retire()
	ch, _, err := reader.Join([]byte(channel))
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Leave(ch, true)
	cursor, _ := reader.Seek(ch, msglog.From{How: msglog.Last, Last: n + 1})
	for i := range n + 1 {
		seq, ok := reader.Next(ch, cursor)
		if !ok || (seq != 0) != (i < n) {
			t.Fatalf("message %d of %s: %d, %v\n%s", i, channel, seq, ok, r.log)
		}
		if seq == 0 {
			break
		}
		if m := reader.Message(ch, seq); string(m.Data) != fmt.Sprint(channel, " ", i) {
			t.Fatalf("message %d of %s is %q\n%s", i, channel, m.Data, r.log)
		}
		cursor = seq
	}
}

// Whatever becomes of the sections over restarts, clients and history stay.
func TestOwnLogsChange(t *testing.T) {
	k := newKeeper(t, 60)
	file := filepath.Join(t.TempDir(), "b.log")
	a, b, all := OwnLogConfig{Match: "a*"}, OwnLogConfig{Match: "b*", Size: 2 << 20}, OwnLogConfig{Match: "?[12]", Age: Duration(time.Hour)}
	larger, filed := a, b
	larger.Size = 3 << 20
	filed.Path = file
	reigns := [][]OwnLogConfig{
		{}, {a}, {a}, {a, b}, {b, a}, {b, larger}, {all, b, larger}, {b, larger, all}, {filed, larger}, {larger, filed}, {b}, {}, {all}, {a}, {b},
	}
	var listeners []*listener
	var epoch uint64
	for i, own := range reigns {
		r := k.reignAs(t, k.files(), func(c *Config) { c.Log.Own = own })
		if i == 0 {
			epoch = r.d.store.Epoch()
		}
		if i < 5 {
			for _, channel := range []string{"a", "b", "c"} {
				listeners = append(listeners, r.listen(t, fmt.Sprint(channel, i)))
			}
		}
		for range 3 {
			for _, l := range listeners {
				r.say(t, l)
			}
		}
		for _, l := range listeners {
			r.expectPast(t, l.channel, l.said)
		}
		usage := r.d.store.Usage()
		for n, o := range own {
			at := slices.IndexFunc(usage, func(u msglog.Usage) bool { return u.Match == o.Match })
			if at < 1 || usage[at].Path != o.Path || o.Size != 0 && usage[at].Size != uint64(o.Size) {
				t.Errorf("reign %d, section %d: %+v", i, n, usage)
			}
		}
		names := k.names()
		if len(usage) != len(own)+1 || len(names) != len(usage)+1 || !isTable(names[len(names)-1]) || r.d.store.Epoch() != epoch {
			t.Errorf("reign %d: %d logs, kept are %q", i, len(usage), names)
		}
		if text := r.log.String(); strings.Contains(text, "level=ERROR") || strings.Contains(text, "level=WARN") {
			t.Errorf("reign %d:\n%s", i, text)
		}
		k.end(r)
	}
}

// A log of several that is incomplete is not used, and neither is a table of a log that was arranged otherwise.
func TestForeignOwnLogs(t *testing.T) {
	own := func(c *Config) { c.Log.Own = []OwnLogConfig{{Match: "a"}, {Match: "b"}} }
	for name, spoil := range map[string]func(k *keeper){
		"one is missing":       func(k *keeper) { k.drop("log.own.1") },
		"the first is missing": func(k *keeper) { k.drop("log") },
		"one is there twice": func(k *keeper) {
			for _, f := range k.files() {
				if f.Name() == "log.own.1" {
					raw, _ := f.SyscallConn()
					_ = raw.Control(func(fd uintptr) { k.put("log.own.2", int(fd)) })
				}
				f.Close()
			}
		},
		"another one": func(k *keeper) {
			other, err := msglog.Create(msglog.Options{Size: logSize, Channels: 10})
			if err != nil {
				t.Fatal(err)
			}
			defer other.Close()
			raw, _ := other.File(0).SyscallConn()
			_ = raw.Control(func(fd uintptr) { k.put("log.own.2", int(fd)) })
		},
	} {
		t.Run(name, func(t *testing.T) {
			k := newKeeper(t, 60)
			r := k.reignAs(t, k.files(), own)
			l := r.listen(t, "a")
			r.say(t, l)
			k.end(r)
			k.settle()
			spoil(k)
			r = k.reignAs(t, k.files(), own)
			expectClosed(t, l.conn, websocket.CloseServiceRestart)
			again := r.listen(t, "a")
			r.say(t, again)
			if names := k.names(); !slices.Equal(names, []string{"log", "log.own.1", "log.own.2", "table"}) {
				t.Errorf("kept: %v", names)
			}
		})
	}
}

// After a reboot the log with a file has its history, and the one in memory has not.
func TestOwnLogsAfterReboot(t *testing.T) {
	k := newKeeper(t, 60)
	file := filepath.Join(t.TempDir(), "a.log")
	own := func(c *Config) { c.Log.Own = []OwnLogConfig{{Match: "a", Path: file}} }
	r := k.reignAs(t, k.files(), own)
	a, b := r.listen(t, "a"), r.listen(t, "b")
	for range 3 {
		r.say(t, a)
		r.say(t, b)
	}
	epoch := r.d.store.Epoch()
	k.end(r)
	k.reboot()
	r = k.reignAs(t, k.files(), own)
	r.expectPast(t, "a", 3)
	r.expectPast(t, "b", 0)
	if r.d.store.Epoch() == epoch { // messages of b are gone, and their numbers are given once more
		t.Errorf("the epoch is still %x", epoch)
	}
	again := r.listen(t, "a")
	again.said = 3
	r.say(t, again)
	r.expectPast(t, "a", 4)
}

// A service whose file cannot be had serves all the same, and says so; by hand it is an error.
func TestOwnLogCannotBeAtItsPath(t *testing.T) {
	file := filepath.Join(t.TempDir(), "none", "a.log")
	own := func(c *Config) { c.Log.Own = []OwnLogConfig{{Match: "b"}, {Match: "a", Path: file}} }
	k := newKeeper(t, 60)
	r := k.reignAs(t, k.files(), own)
	l := r.listen(t, "a")
	r.say(t, l)
	r.log.expect(t, "log.own[1].path cannot be used")
	if status := r.d.status(); !strings.Contains(status, "; log.own[1].path cannot be used: ") {
		t.Errorf("status: %s", status)
	}
	k.end(r)
	r = k.reignAs(t, k.files(), own)
	r.say(t, l)
	r.log.expect(t, "log.own[1].path cannot be used")
	k.end(r)
	if err := os.Mkdir(filepath.Dir(file), 0o700); err != nil {
		t.Fatal(err)
	}
	r = k.reignAs(t, k.files(), own)
	r.say(t, l)
	r.expectPast(t, "a", 3)
	if path := r.d.survival.pathOf("a"); path != file || strings.Contains(r.d.status(), "cannot be used") {
		t.Errorf("it is at %q: %s", path, r.d.status())
	}
}

// What INFO says of logs of some channels is in the order of the configuration, whatever their order in the store.
func TestInfoOfOwnLogs(t *testing.T) {
	k := newKeeper(t, 60)
	file := filepath.Join(t.TempDir(), "b.log")
	a, b := OwnLogConfig{Match: "a,x=*", Channels: 5}, OwnLogConfig{Match: "b", Size: 1 << 20, Path: file}
	const nothing = "messages_kept=0,messages_limit=8192,bytes_kept=0,bytes_limit=2097152,oldest_age_seconds=0.000,channels=0,channels_limit=5,log_path=memory,match=a,x=*"
	for _, own := range [][]OwnLogConfig{{a, b}, {b, a}} {
		r := k.reignAs(t, k.files(), func(c *Config) { c.Log.Own = own })
		p := r.publisher()
		publish(t, p, "b", "hello", 0)
		publish(t, p, "c", "hello", 0)
		one, other := "log_own_0", "log_own_1"
		if own[0].Match == "b" {
			one, other = other, one
		}
		if is := info(t, p, "log", one); is != nothing {
			t.Errorf("%s", is)
		}
		head := info(t, p, "log", "head")
		kept := map[string]string{"2": "1", "4": "2"}[head]
		is := info(t, p, "log", other)
		if want := "messages_kept=" + kept + ",messages_limit=4096,bytes_kept="; !strings.HasPrefix(is, want) ||
			!strings.HasSuffix(is, ",channels=1,channels_limit=65536,log_path="+file+",match=b") {
			t.Errorf("head %s: %s", head, is)
		}
		if n := info(t, p, "log", "messages_kept"); n != kept {
			t.Errorf("%s messages in the log of the others", n)
		}
		k.end(r)
	}
}

// A message is too large for the log that it would be in, or not, whatever others there are.
func TestTooLargeForOwnLog(t *testing.T) {
	r := start(t, func(o *Options, _ string) {
		o.Config.Log.Size, o.Config.Publish.MaxMessage = 16<<20, 1<<20
		o.Config.Log.Own = []OwnLogConfig{{Match: "small", Size: 1 << 20}}
	})
	p := r.publisher()
	const most = 1<<20/8 - 10 // its header
	publish(t, p, "small", strings.Repeat("x", most), 0)
	publish(t, p, "others", strings.Repeat("x", 1<<20), 0)
	if _, err := p.Publish("small", make([]byte, most+1)); err == nil || !strings.Contains(err.Error(), "[[log.own]]") {
		t.Errorf("one byte more: %v", err)
	}
	publish(t, p, "small", "x", 0)
}

// The log stays as it is where there is no room to store another one beside it, and is served all the same.
func TestNoRoomForAnotherLog(t *testing.T) {
	k := newKeeper(t, 60)
	r := k.reign(t, logSize)
	l := r.listen(t, "a")
	r.say(t, l)
	k.end(r)
	k.settle()
	k.mu.Lock()
	full := len(k.kept) + 1
	k.mu.Unlock()
	for i, change := range []func(*Config){
		func(c *Config) { c.Log.Size = 2 * logSize },
		func(c *Config) { c.Log.Own = []OwnLogConfig{{Match: "a"}} },
	} {
		k.become(full, false)
		r = k.reignAs(t, k.files(), change)
		r.log.expect(t, "the log stays as it is until the next start: what it was to be could not be stored")
		r.log.expect(t, "raise FileDescriptorStoreMax=")
		r.say(t, l)
		r.expectPast(t, "a", l.said)
		k.end(r)
		k.become(60, false)
		r = k.reignAs(t, k.files(), change)
		r.say(t, l)
		r.expectPast(t, "a", l.said)
		if u := r.d.store.Usage(); i == 0 && u[0].Size != 2*logSize || i == 1 && len(u) != 2 {
			t.Errorf("%d: %+v", i, u)
		}
		k.end(r)
	}
}
