package daemon

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"testing"

	"wscast/ipc"
)

func TestNamesOfRulesBecomeNumbers(t *testing.T) {
	rules, bad := allowRules([]AllowConfig{
		{Users: []string{"root", "1001", "4294967294"}, Publish: []string{"a", "b/*"}},
		{Groups: []string{"root", "0", "77"}, Subscribe: []string{"*"}},
		{Users: []string{"*", "7"}, Groups: []string{"8"}, Publish: []string{"c"}, Subscribe: []string{"d"}},
	})
	want := []ipc.Rule{
		{UIDs: []uint32{0, 1001, 4294967294}, Publish: []string{"a", "b/*"}},
		{GIDs: []uint32{0, 0, 77}, Subscribe: []string{"*"}},
		{Everyone: true, UIDs: []uint32{7}, GIDs: []uint32{8}, Publish: []string{"c"}, Subscribe: []string{"d"}},
	}
	if bad != nil || !reflect.DeepEqual(rules, want) {
		t.Errorf("got\n%+v (%v)\nwant\n%+v", rules, bad, want)
	}
	if rules, bad := allowRules(nil); bad != nil || len(rules) != 0 {
		t.Errorf("no sections are %v (%v)", rules, bad)
	}
}

// A user that is gone keeps the daemon from starting on rules that mean somebody else.
func TestNewWithARuleForNobody(t *testing.T) {
	c, _ := byHand(t)
	c.Publish.Allow = []AllowConfig{{Users: []string{"no-such-user"}, Publish: []string{"*"}}}
	sockets, err := Bind(c)
	if err != nil {
		t.Fatal(err)
	}
	_, err = New(Options{Config: *c, Sockets: sockets})
	if err == nil || !strings.Contains(err.Error(), `publish.allow[0].users = "no-such-user" is not possible`) {
		t.Errorf("New: %v", err)
	}
}

// own is a rule for the user of the tests.
func own(publish, subscribe string) []AllowConfig {
	return []AllowConfig{{Users: []string{fmt.Sprint(os.Getuid())}, Publish: strings.Fields(publish), Subscribe: strings.Fields(subscribe)}}
}

// A reload holds for connections that are open: publishers, subscribers and datagrams.
func TestRulesAreReloaded(t *testing.T) {
	r := start(t, func(o *Options, dir string) {
		o.Config.Publish.Allow = own("news", "news")
		o.Config.Publish.Datagrams = []string{filepath.Join(dir, "datagrams.sock")}
		o.Config.Publish.DatagramChannel = "syslog"
	})
	p := r.publisher()
	expectDenied := func(err error, what string) {
		t.Helper()
		want := fmt.Sprintf("NOPERM user %d may not %s: no rule of [[publish.allow]] allows it", os.Getuid(), what)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Fatalf("got %v, want %s", err, want)
		}
	}
	refused := func(channel string) {
		t.Helper()
		_, err := p.Publish(channel, []byte("refused"))
		expectDenied(err, "publish on '"+channel+"'")
	}
	news, syslog := r.open("news"), r.open("syslog")
	publish(t, p, "news", "first", 1)
	refused("syslog")
	r.log.expect(t, fmt.Sprintf("user %d may not publish on 'syslog'", os.Getuid()))
	sender, err := net.Dial("unixgram", filepath.Join(r.dir, "datagrams.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer sender.Close()
	send := func(text string) {
		t.Helper()
		if _, err := sender.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	send("refused")
	r.log.expect(t, "datagrams dropped")
	s, err := ipc.Dial(filepath.Join(r.dir, "publish.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	_, err = s.Subscribe("syslog")
	expectDenied(err, "subscribe to 'syslog'")
	subscription, err := s.Subscribe("news")
	if err != nil {
		t.Fatal(err)
	}

	r.reloadWith(reloaded, r.changed(func(c *Config) { c.Publish.Allow = own("syslog", "") }))
	publish(t, p, "syslog", "from here", 1)
	send("as a datagram")
	expect(t, syslog, 1, "from here")
	expect(t, syslog, 1, "as a datagram")
	refused("news")

	// Nobody is left out by a bad file.
	r.reloadWith(notReloaded, r.changed(func(c *Config) {
		c.Publish.Allow = []AllowConfig{{Users: []string{"no-such-user"}, Publish: []string{"*"}}}
	}))
	refused("news")

	r.reloadWith(reloaded, r.changed(func(c *Config) { c.Publish.Allow = own("*", "") }))
	publish(t, p, "news", "second", 2)
	within(t, "the end of a subscription that is allowed no more", func() error {
		_, err := subscription.Next()
		expectDenied(err, "subscribe to 'news'")
		return nil
	})
	r.reloadWith(reloaded, r.changed(func(c *Config) { c.Publish.Allow = nil }))
	within(t, "its subscription is forgotten", func() error {
		for r.d.server.Stats().Subscribers > 0 {
			runtime.Gosched()
		}
		return nil
	})
	publish(t, p, "news", "third", 1)
	for _, text := range []string{"first", "second", "third"} {
		expect(t, news, 1, text)
	}
}

func TestRateIsReloaded(t *testing.T) {
	r := start(t, func(o *Options, _ string) { o.Config.Publish.Rate = 2 })
	p := r.publisher()
	for range 3 { // the third one a while later
		publish(t, p, "news", "hello", 0)
	}
	r.reloadWith(reloaded, r.changed(func(c *Config) { c.Publish.Rate = 0 }))
	for range 1000 {
		publish(t, p, "news", "hello", 0)
	}
}
