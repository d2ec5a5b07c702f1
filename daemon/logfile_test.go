package daemon

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/gorilla/websocket"

	"wscast/daemon/survive"
)

// reboot loses what the service manager keeps.
func (k *keeper) reboot() {
	k.settle()
	k.mu.Lock()
	defer k.mu.Unlock()
	k.remove(func(string) bool { return true })
}

// history is what the log has on the channel news.
func (r *running) history(t *testing.T) (messages []string) {
	t.Helper()
	u := r.d.store.Usage()[0]
	f := r.d.store.FollowFrom(u.Head - u.Messages)
	defer f.Close()
	for {
		m, ok, err := f.TryNext(func(channel string) bool { return channel == "news" })
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			return messages
		}
		messages = append(messages, string(m.Data))
	}
}

func (r *running) expectHistory(t *testing.T, want ...string) {
	t.Helper()
	if have := r.history(t); !slices.Equal(have, want) {
		t.Fatalf("the log has %q, want %q\n%s", have, want, r.log)
	}
}

// Stopped and started by hand, the log is the same one.
func TestLogSurvivesStop(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	at := func(o *Options, dir string) { o.Config.Log.Path = path }
	r := start(t, at)
	c := r.publisher()
	publish(t, c, "news", "one", 0)
	publish(t, c, "news", "two", 0)
	if is := info(t, c, "log", "log_path"); is != path {
		t.Errorf("log_path is %q", is)
	}
	epoch := r.d.store.Epoch()

	other, _ := byHand(t, func(c *Config, dir string) { c.Log.Path = path })
	var err error
	o := Options{Config: *other, Level: new(slog.LevelVar), Log: slog.New(slog.DiscardHandler)}
	if o.Sockets, err = Bind(&o.Config); err != nil {
		t.Fatal(err)
	}
	var bad *ConfigError
	if d, err := New(o); !errors.As(err, &bad) || bad.Text != "log.path: "+path+": another process uses it" {
		t.Fatalf("a second daemon on the same log: %v, %v", d, err)
	}

	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	r = start(t, at)
	r.log.expect(t, "the log is there")
	r.expectHistory(t, "one", "two")
	if r.d.store.Epoch() != epoch {
		t.Error("it has another epoch")
	}
	publish(t, r.publisher(), "news", "three", 0)
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	r = start(t, func(o *Options, dir string) { o.Config.Log.Path, o.Config.Log.Size = path, 16<<20 })
	r.log.expect(t, "the log has a new size")
	r.expectHistory(t, "one", "two", "three")
	if u := r.d.store.Usage()[0]; u.Size != 16<<20 || u.Epoch != epoch || u.Path != path {
		t.Errorf("%+v", u)
	}
	r = start(t)
	if is := info(t, r.publisher(), "log", "log_path"); is != "memory" {
		t.Errorf("log_path is %q", is)
	}
}

// What cannot be is an error by hand, with exit code 78: there is nobody to lose.
func TestLogPathByHand(t *testing.T) {
	for path, want := range map[string]string{
		"log": "state directory", filepath.Join(t.TempDir(), "none", "log"): "make the directory",
	} {
		c, _ := byHand(t, func(c *Config, dir string) { c.Log.Path = path })
		o := Options{Config: *c, Level: new(slog.LevelVar), Log: slog.New(slog.DiscardHandler)}
		var err error
		if o.Sockets, err = Bind(&o.Config); err != nil {
			t.Fatal(err)
		}
		_, err = New(o)
		var bad *ConfigError
		if !errors.As(err, &bad) || !strings.HasPrefix(bad.Text, "log.path") || !strings.Contains(err.Error(), want) || bad.Hint == "" {
			t.Errorf("%s: %#v", path, err)
		}
	}
	t.Setenv("STATE_DIRECTORY", t.TempDir()+":/elsewhere")
	r := start(t, func(o *Options, dir string) { o.Config.Log.Path = "log" })
	if is, want := r.d.store.Path(0), filepath.Join(strings.TrimSuffix(os.Getenv("STATE_DIRECTORY"), ":/elsewhere"), "log"); is != want {
		t.Errorf("the log is at %s, want %s", is, want)
	}
}

// The log is moved between memory and files without losing a client or a message.
func TestLogPathChanges(t *testing.T) {
	k := newKeeper(t, 20)
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	r := k.reign(t, logSize)
	conn, epoch := r.connect(t), r.d.store.Epoch()
	var want []string
	for i, path := range []string{a, a, b, "", b, a} {
		r.tell(t, conn, "before")
		want = append(want, "before")
		k.end(r)
		if i == 2 { // a process was killed when the new log was stored and the old one was not removed
			k.double("log", "log.2")
		}
		r = k.reign(t, logSize, path)
		r.expectHistory(t, want...)
		if u := r.d.store.Usage()[0]; u.Epoch != epoch || u.Path != path {
			t.Fatalf("%d: %+v", i, u)
		}
		if s := r.d.status(); strings.Contains(s, "log") {
			t.Error(s)
		}
		r.tell(t, conn, "after")
		want = append(want, "after")
		if names := k.names(); len(names) != 2 {
			t.Errorf("kept: %v", names)
		}
	}
	// The ones that were there when it came to a place that it had left.
	for _, aside := range []string{a + ".old", b + ".old"} {
		if _, err := os.Stat(aside); err != nil {
			t.Error(err)
		}
	}
	k.end(r)
	k.reboot()
	r = k.reign(t, 2*logSize, a)
	r.log.expect(t, "the log was not closed in good order")
	r.expectHistory(t, want...)
	if r.d.store.Epoch() == epoch {
		t.Error("the epoch is the one of a log that may have had more messages")
	}
	if _, ok := r.d.store.Sequence(0, epoch, uint64(len(want))); !ok {
		t.Error("ids of messages that are there are refused")
	}
	conn = r.connect(t)
	r.tell(t, conn, "after the reboot")
	k.end(r)
	r = k.reign(t, 2*logSize, a)
	r.tell(t, conn, "and a restart")
}

// A service serves without the file that it cannot have, says so, and moves there when it can.
func TestLogPathCannotBeUsed(t *testing.T) {
	k := newKeeper(t, 20)
	path := filepath.Join(t.TempDir(), "none", "log")
	r := k.reign(t, logSize, path)
	conn, epoch := r.connect(t), r.d.store.Epoch()
	for _, log := range []string{path, "relative"} {
		r.tell(t, conn, "one")
		k.end(r)
		r = k.reign(t, logSize, log)
		r.log.expect(t, "log.path cannot be used")
		if s := r.d.status(); !strings.Contains(s, "; log.path cannot be used: ") {
			t.Error(s)
		}
	}
	if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	r.tell(t, conn, "two")
	k.end(r)
	r = k.reign(t, logSize, path)
	r.log.expect(t, "the log has a new place")
	r.tell(t, conn, "three")
	r.expectHistory(t, "one", "one", "two", "three")
	k.end(r)
	// A log with a file does not give it up for an error.
	r = k.reign(t, logSize, "relative")
	r.tell(t, conn, "four")
	r.log.expect(t, "log.path cannot be used")
	if u := r.d.store.Usage()[0]; u.Path != path || u.Epoch != epoch {
		t.Errorf("%+v", u)
	}
	k.end(r)
	r = k.reign(t, logSize, filepath.Join(filepath.Dir(path), "none", "log"))
	r.tell(t, conn, "five")
	r.log.expect(t, "log.path cannot be used")
	if u := r.d.store.Usage()[0]; u.Path != path || u.Epoch != epoch {
		t.Errorf("%+v", u)
	}
}

// Clients that cannot be taken over do not take the messages with them, unless it is those that make processes crash.
func TestLogOutlivesTable(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	k := newKeeper(t, 20)
	r := k.reign(t, logSize, path)
	conn, epoch := r.connect(t), r.d.store.Epoch()
	r.tell(t, conn, "one")
	k.end(r)
	k.drop(survive.TableName)
	r = k.reign(t, logSize, path)
	expectClosed(t, conn, websocket.CloseAbnormalClosure)
	r.expectHistory(t, "one")
	if _, ok := r.d.store.Sequence(0, epoch, 1); !ok || r.d.store.Path(0) != path {
		t.Error("it is another log")
	}
	conn = r.connect(t)
	r.tell(t, conn, "two")
	k.end(r)
	for _, f := range k.files() {
		if f.Name() != survive.TableName {
			f.Close()
			continue
		}
		table, err := survive.OpenTable(f)
		if err != nil {
			t.Fatal(err)
		}
		for range tooOften {
			table.Begin()
		}
		table.Close()
	}
	r = k.reign(t, logSize, path)
	expectClosed(t, conn, websocket.CloseServiceRestart)
	r.log.expect(t, "it may be what makes the daemon crash")
	r.expectHistory(t)
	if _, err := os.Stat(path + ".old"); err != nil || r.d.store.Path(0) != path {
		t.Error(err)
	}
	conn = r.connect(t)
	r.tell(t, conn, "three")
	k.end(r)
	r = k.reign(t, logSize, path)
	r.tell(t, conn, "four")
}
