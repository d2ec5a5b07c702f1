package daemon

import (
	"net/http"
	"reflect"
	"strings"
	"syscall"
	"testing"

	"github.com/gorilla/websocket"
)

// reloadWith sends SIGHUP and waits until the log says how it went.
func (r *running) reloadWith(outcome string, reload func() (Config, error)) {
	r.t.Helper()
	r.log.clear()
	r.reload = reload
	r.signals <- syscall.SIGHUP
	r.log.expect(r.t, outcome)
}

const (
	reloaded    = `msg="configuration reloaded"`
	notReloaded = `msg="the configuration was not reloaded, nothing has changed"`
)

// changed is the configuration in force, changed.
func (r *running) changed(change func(c *Config)) func() (Config, error) {
	return func() (Config, error) {
		c := *r.d.config.Load()
		change(&c)
		return c, nil
	}
}

func TestReloadTakesEffect(t *testing.T) {
	r := start(t, func(o *Options, _ string) { o.Demo = true })
	p := r.publisher()
	before := r.open("news")

	r.reloadWith(reloaded, r.changed(func(c *Config) {
		c.WebSocket.Path = "/live"
		c.WebSocket.Greeting = "welcome"
		c.WebSocket.Origins = []string{"https://example.org"}
		c.WebSocket.MaxMessage = 200
		c.Publish.MaxMessage = 10
		c.Channel = []ChannelConfig{{Match: "news", Frames: "binary"}}
		c.Daemon.LogLevel = "debug"
	}))

	if _, response, err := r.dial("ws://" + r.address + "/websocket/news"); err == nil || response == nil || response.StatusCode != http.StatusNotFound {
		t.Errorf("the old path: %v, %v", response, err)
	}
	if _, response, err := r.dial("ws://"+r.address+"/live/news", "Origin: http://"+r.address); err == nil || response == nil || response.StatusCode != http.StatusForbidden {
		t.Errorf("the own host, which is not in the list: %v, %v", response, err)
	}
	after, _, err := r.dial("ws://"+r.address+"/live/news", "Origin: https://example.org")
	if err != nil {
		t.Fatal(err)
	}
	expect(t, after, websocket.TextMessage, "welcome")
	r.log.expect(t, `level=DEBUG msg="client open"`)

	publish(t, p, "news", "0123456789", 2)
	if _, err := p.Publish("news", []byte("0123456789a")); err == nil || !strings.Contains(err.Error(), "at most 10") {
		t.Errorf("11 bytes: %v", err)
	}
	for _, conn := range []*websocket.Conn{before, after} { // whoever is connected stays
		expect(t, conn, websocket.BinaryMessage, "0123456789")
	}

	if err := after.WriteMessage(websocket.TextMessage, make([]byte, 201)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := after.ReadMessage(); !websocket.IsCloseError(err, websocket.CloseMessageTooBig) {
		t.Errorf("a message of 201 bytes: %v", err)
	}

	response, err := http.Get("http://" + r.address + "/")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	var page strings.Builder
	if err := response.Write(&page); err != nil || !strings.Contains(page.String(), `data-websocket="live"`) {
		t.Errorf("the demo page does not know the new path: %v\n%s", err, page.String())
	}

	// And back again, a section that is gone included.
	r.reloadWith(reloaded, r.changed(func(c *Config) { c.Channel, c.WebSocket.Path = nil, "/websocket" }))
	publish(t, p, "news", "text", 1)
	expect(t, before, websocket.TextMessage, "text")
}

func TestReloadOfPings(t *testing.T) {
	r := start(t, func(o *Options, _ string) { o.Config.WebSocket.Ping = 0 })
	conn := r.open("news")
	pinged := make(chan struct{}, 100)
	conn.SetPingHandler(func(string) error { pinged <- struct{}{}; return nil })
	r.reloadWith(reloaded, r.changed(func(c *Config) { c.WebSocket.Ping = shortestTime }))
	within(t, "a ping", func() error {
		_, _, err := conn.ReadMessage() // which never answers, and is dropped
		if len(pinged) > 0 {
			err = nil
		}
		return err
	})
}

func TestReloadNamesWhatWaitsForARestart(t *testing.T) {
	r := start(t)
	was := *r.d.config.Load()
	r.reloadWith(reloaded, r.changed(func(c *Config) {
		c.WebSocket.Listen = []string{"127.0.0.1:1"}
		c.Log.Size *= 2
		c.Log.Own = []OwnLogConfig{{Match: "quiet"}}
		c.WebSocket.Greeting = "welcome"
	}))
	for _, key := range []string{"websocket.listen", "log.size", "log.own"} {
		r.log.expect(t, `level=WARN msg="a changed key takes effect at the next restart" key=`+key)
	}
	if n := strings.Count(r.log.String(), "takes effect at the next restart"); n != 3 {
		t.Errorf("%d keys are named:\n%s", n, r.log)
	}
	is := r.d.config.Load()
	if !reflect.DeepEqual(is.Log, was.Log) || is.WebSocket.Listen[0] != was.WebSocket.Listen[0] || is.WebSocket.Greeting != "welcome" {
		t.Errorf("in force is %+v", is)
	}
}

func TestReloadOfABadFileChangesNothing(t *testing.T) {
	r := start(t)
	file := r.dir + "/wscast.toml"
	was := r.d.config.Load()

	writeFile(t, file, "[websocket]\ngreeting = \"welcome\"\npnig = \"1s\"\n")
	r.reloadWith(notReloaded, func() (Config, error) { return Load(file) })
	r.log.expect(t, `level=ERROR `+notReloaded+` error="`+file+`: unknown key \"websocket.pnig\"" hint="did you mean \"websocket.ping\"?"`)

	// A log that is larger after the next start does not make room for larger messages now.
	r.reloadWith(notReloaded, r.changed(func(c *Config) {
		c.WebSocket.Greeting = "welcome"
		c.Log.Size, c.Publish.MaxMessage = 1<<30, 2<<20
	}))
	r.log.expect(t, `error="publish.max_message = \"2MiB\" is not possible"`)

	if r.d.config.Load() != was {
		t.Errorf("in force is %+v", r.d.config.Load())
	}
	conn := r.open("news")
	publish(t, r.publisher(), "news", "first", 1)
	expect(t, conn, websocket.TextMessage, "first")
}

func TestReloadWithoutAFile(t *testing.T) {
	r := start(t, func(o *Options, _ string) { o.Reload = nil })
	r.signals <- syscall.SIGHUP
	r.log.expect(t, `level=WARN msg="nothing to reload: started without --config"`)
}
