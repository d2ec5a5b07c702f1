package test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"

	"wscast/test/harness"
)

// script has the client served, and clients publish to the channels up/*.
const script = "[websocket]\nscript = '/wscast.js'\n[[channel]]\nmatch = 'up/*'\nupstream = 'both'\n"

// openClient opens a page of the daemon's own origin that has the client for browsers, as a script or as a module. What it is told is noted in
// the arrays got, by channel, and states. The page of the script itself is one: it has no more than its text.
func openClient(t *testing.T, n *harness.Nginx, module bool) *browser {
	t.Helper()
	b := openBrowser(t)
	prepare(b, n, module)
	return b
}

func prepare(b *browser, n *harness.Nginx, module bool) {
	b.t.Helper()
	b.open(n.TLSURL("/wscast.js"))
	load := `import('/wscast.mjs').then((m) => { window.connect = m.connect }); undefined`
	if !module {
		load = `{ const s = document.createElement('script'); s.src = '/wscast.js'; s.onload = () => { window.connect = wscast.connect }; document.body.append(s) }`
	}
	b.run(load + `
		window.got = {}; window.states = []; window.incomplete = []; window.errors = [];
		window.join = (options) => { window.c = connect('/websocket', { min: 50, max: 300, onstate: (s, why) => states.push(s + ' ' + why), ...options }) };
		window.sub = (channel, options) => c.subscribe(channel, (m) => (got[channel] ??= []).push(typeof m.data === 'string' ? m.data : 'binary ' + m.data.join(' ')),
			{ onincomplete: (ch) => incomplete.push(ch), onerror: (e) => errors.push(e.code), ...options }); undefined`)
	b.await("window.connect", "document.body.innerText")
}

// sawStates is for failures.
const sawStates = "JSON.stringify([states, got, incomplete, errors])"

// expectGot waits for the messages of a channel, and for no others, in this order.
func (b *browser) expectGot(channel string, want ...string) {
	b.t.Helper()
	b.await(fmt.Sprintf("(got['%s'] ?? []).length >= %d", channel, len(want)), sawStates)
	if got := get[[]string](b, fmt.Sprintf("got['%s'] ?? []", channel)); !slices.Equal(got, want) {
		b.t.Fatalf("the page got %q of %s, expected %q\n%s", got, channel, want, get[string](b, sawStates))
	}
}

// settle evaluates a promise, and returns what it comes to as JSON, or the code of the error.
func (b *browser) settle(promise string) string {
	b.t.Helper()
	b.run("window.settled = null; (" + promise + ").then((v) => { settled = JSON.stringify(v) }, (e) => { settled = 'error ' + e.code }); undefined")
	b.await("settled", sawStates)
	return get[string](b, "settled")
}

func numbered(from, to int) (texts []string) {
	for i := from; i < to; i++ {
		texts = append(texts, fmt.Sprint("message ", i))
	}
	return texts
}

func publishAll(t *testing.T, d *harness.Daemon, channel string, texts []string) {
	t.Helper()
	p := publisher(t, d)
	for _, text := range texts {
		if _, err := p.Publish(channel, []byte(text)); err != nil {
			t.Fatal(err)
		}
	}
}

// TestClientResumes: a page whose network goes, for two channels, gets what was published meanwhile: all, once, in order.
func TestClientResumes(t *testing.T) {
	d := harness.Start(t, harness.Config(script))
	n := harness.StartNginx(t, d.Address("websocket"))
	b := openClient(t, n, true)
	b.run("join(); sub('a'); sub('quiet'); undefined")
	b.await("c.state === 'open' && Object.keys(got).length === 0", sawStates)
	if clients := b.settle("c.presence('quiet').then((p) => p.clients)"); clients != "1" {
		t.Errorf("presence says %s clients", clients)
	}
	publishAll(t, d, "a", numbered(0, 3))
	b.expectGot("a", numbered(0, 3)...)
	for round := range 2 {
		n.Stop()
		b.await("c.state !== 'open'", sawStates)
		if code := b.settle("(c.onstate = null, c.state === 'waiting') ? c.publish('up/x', 'x') : Promise.reject({code: 'unavailable'})"); code != "error unavailable" {
			t.Errorf("publishing without a connection: %s", code)
		}
		publishAll(t, d, "quiet", []string{fmt.Sprint("quiet ", round)})
		publishAll(t, d, "a", numbered(3+300*round, 303+300*round))
		n.Start()
		b.expectGot("a", numbered(0, 303+300*round)...)
	}
	b.expectGot("quiet", "quiet 0", "quiet 1")
	if incomplete := get[int](b, "incomplete.length"); incomplete != 0 {
		t.Error("it is told that something is missing")
	}
	// bfcache: the page is put away, and comes back.
	b.run("dispatchEvent(new PageTransitionEvent('pagehide', { persisted: true })); undefined")
	b.await("c.state === 'waiting'", sawStates)
	publishAll(t, d, "quiet", []string{"while it was put away"})
	b.run("dispatchEvent(new PageTransitionEvent('pageshow', { persisted: true })); undefined")
	b.expectGot("quiet", "quiet 0", "quiet 1", "while it was put away")
	// At its end nothing comes any more.
	b.run("c.close(); c.close(); undefined")
	b.await("c.state === 'closed'", sawStates)
	if code := b.settle("c.history('a', 1)"); code != "error unavailable" {
		t.Errorf("history of a closed connection: %s", code)
	}
}

// TestClientCommands: publish, history, presence, unsubscribe, refusals, two tabs, and a local process that reads what the pages publish.
func TestClientCommands(t *testing.T) {
	d := harness.Start(t, harness.Config(script))
	n := harness.StartNginx(t, d.Address("websocket"))
	one := openClient(t, n, false)
	two := &browser{t: t}
	two.ctx, _ = chromedp.NewContext(one.ctx)
	prepare(two, n, true)
	local := harness.Launch(t, harness.Find(t, "redis-cli", "redis-tools"), "-s", d.PublishSocket(), "subscribe", "@up/chat")
	local.Await("@up/chat")
	for _, tab := range []*browser{one, two} {
		tab.run("join(); sub('up/chat'); undefined")
		tab.await("c.state === 'open'", sawStates)
		if p := tab.settle("c.presence('up/chat')"); !strings.Contains(p, `"identities":[]`) {
			t.Errorf("presence: %s", p)
		}
	}
	if clients := one.settle("c.publish('up/chat', 'from one ✓')"); clients != "2" {
		t.Errorf("published to %s clients, expected 2", clients)
	}
	if clients := two.settle("c.publish('up/chat', new Uint8Array([9, 0, 255, 10]).subarray(1))"); clients != "2" {
		t.Errorf("published to %s clients, expected 2", clients)
	}
	local.Await("from one ✓")
	local.Await("AP8K")
	for _, tab := range []*browser{one, two} {
		tab.expectGot("up/chat", "from one ✓", "binary 0 255 10")
	}
	for expression, want := range map[string]string{
		"c.publish('news', 'x')":                      "error not_allowed",
		"c.publish('up/chat', {})":                    "error undefined",
		"c.publish(5, 'x')":                           "error bad_command",
		"c.history('up/chat', 0)":                     "error bad_command",
		"c.history('up/chat', 1.5)":                   "error bad_command",
		"c.history('none', 5)":                        "[]",
		"c.publish('up/chat', 'x'.repeat(5000))":      "error cut",
		"c.publish('up/chat', new ArrayBuffer(3100))": "error cut", // base64 is longer
	} {
		one.await("c.state === 'open'", sawStates)
		if got := one.settle(expression); !strings.HasPrefix(got, want) {
			t.Errorf("%s: %s, expected %s", expression, got, want)
		}
	}
	one.await("c.state === 'open'", sawStates)
	publishAll(t, d, "a", numbered(0, 50))
	publishAll(t, d, "b", numbered(50, 60))
	want, _ := json.Marshal([][]string{numbered(47, 50), numbered(50, 60), numbered(49, 50)})
	if got := one.settle("Promise.all([c.history('a', 3), c.history('b', 100), c.history('a', 1)]).then((all) => all.map((h) => h.map((m) => m.data)))"); got != string(want) {
		t.Errorf("three histories at once: %s, expected %s", got, want)
	}
	one.run("sub('!'); window.s = sub('a', { since: 'last' }); undefined")
	one.expectGot("a", "message 49")
	one.await("errors.join() === 'bad_channel'", sawStates)
	one.run("s.close(); undefined")
	one.settle("c.history('none', 1)") // answered behind the end of the subscription
	publishAll(t, d, "a", numbered(50, 51))
	// Again, from the one before, while the messages still come: each once.
	one.settle("c.history('a', 2).then((h) => sub('a', { id: h[0].id }))")
	one.expectGot("a", "message 49", "message 50")
	two.run("c.close(); undefined")
	publishAll(t, d, "up/chat", []string{"last"})
	one.expectGot("up/chat", "from one ✓", "binary 0 255 10", "last")
	two.expectGot("up/chat", "from one ✓", "binary 0 255 10")
}

// TestClientQueues: what a page asks for before it is connected is done when it is, behind its subscriptions.
func TestClientQueues(t *testing.T) {
	d := harness.Start(t, harness.Config(script))
	n := harness.StartNginx(t, d.Address("websocket"))
	b := openClient(t, n, false)
	b.run("join({ token: () => new Promise((yes) => { window.proceed = () => yes('') }) }); sub('up/x'); undefined")
	b.run("window.early = c.publish('up/x', 'early'); proceed(); undefined")
	if clients := b.settle("early"); clients != "1" {
		t.Errorf("published to %s clients", clients)
	}
	b.expectGot("up/x", "early")
	if first := get[string](b, "states[0]"); !strings.HasPrefix(first, "open") {
		t.Errorf("its first state is %q", first)
	}
}

// TestClientNoticesNoRestart: the daemon is restarted and killed behind its back; then it starts with another log, which the page is told.
func TestClientNoticesNoRestart(t *testing.T) {
	d := harness.Start(t, harness.FDStore(64), harness.Config(script))
	n := harness.StartNginx(t, d.Address("websocket"))
	b := openClient(t, n, true)
	b.run("join(); sub('a'); sub('b'); undefined")
	b.await("c.state === 'open'", sawStates)
	b.settle("c.presence('b')")
	for i, end := range []func(){d.Stop, d.Kill, d.Kill, d.Stop} {
		publishAll(t, d, "a", numbered(2*i, 2*i+1))
		end()
		d.Start()
		publishAll(t, d, "a", numbered(2*i+1, 2*i+2))
		b.expectGot("a", numbered(0, 2*i+2)...)
	}
	if states := get[int](b, "states.length"); states != 1 {
		t.Errorf("the page noticed: %s", get[string](b, sawStates))
	}
	d.Kill()
	d.EmptyStore()
	d.Start()
	b.await("c.state === 'open' && incomplete.length === 2", sawStates)
	publishAll(t, d, "a", []string{"another log"})
	b.expectGot("a", append(numbered(0, 8), "another log")...)
}

// TestClientFallsBack: where a WebSocket does not get through an event stream does; as soon as it does, a WebSocket is used again. Each message
// comes once.
func TestClientFallsBack(t *testing.T) {
	d := harness.Start(t, harness.Config(script))
	open := filepath.Join(t.TempDir(), "open")
	n := harness.StartNginx(t, d.Address("websocket"), harness.Site(
		fmt.Sprintf("set $asks $http_upgrade;\nif (-f %s) { set $asks ''; }\nif ($asks = websocket) { return 403; }", open)))
	b := openClient(t, n, true)
	b.run("join(); sub('a'); sub('b', { since: '1h' }); undefined")
	b.await("c.state === 'open' && c.reason === 'event stream'", sawStates)
	if code := b.settle("c.publish('up/x', 'x')"); code != "error unavailable" {
		t.Errorf("publishing over an event stream: %s", code)
	}
	publishAll(t, d, "a", numbered(0, 3))
	publish(t, publisher(t, d), "b", []byte("\x00\xff"), 1)
	b.expectGot("a", numbered(0, 3)...)
	b.expectGot("b", "binary 0 255")
	b.run("sub('new'); undefined") // the stream is made anew
	b.await("states.filter((s) => s === 'open event stream').length === 2", sawStates)
	d.Kill()
	b.await("c.state !== 'open'", sawStates)
	d.Start()
	b.await("c.state === 'open' && incomplete.length >= 2", sawStates) // another log: there is no store
	publishAll(t, d, "a", numbered(3, 6))
	publishAll(t, d, "new", []string{"new"})
	b.expectGot("a", numbered(0, 6)...)
	b.expectGot("new", "new")
	n.Stop()
	b.await("c.state !== 'open'", sawStates)
	publishAll(t, d, "a", numbered(6, 100))
	publishAll(t, d, "b", []string{"b"})
	n.Start()
	b.expectGot("a", numbered(0, 100)...)
	b.expectGot("b", "binary 0 255", "b")

	if err := os.WriteFile(open, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	n.Stop()
	publishAll(t, d, "a", numbered(100, 110))
	n.Start()
	b.await("c.state === 'open' && c.reason === ''", sawStates)
	if clients := b.settle("c.publish('up/x', 'x')"); clients != "0" {
		t.Errorf("publishing to nobody: %s", clients)
	}
	publishAll(t, d, "a", numbered(110, 112))
	b.expectGot("a", numbered(0, 112)...)
	b.expectGot("b", "binary 0 255", "b")
	b.expectGot("new", "new")
}

// TestClientToken: a token that ends closes the connection, and the page comes back with another one; its subscriptions go on. A page that is
// refused is told why.
func TestClientToken(t *testing.T) {
	secret := strings.Repeat("k", 32)
	file := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(file, []byte(secret), 0o600); err != nil {
		t.Fatal(err)
	}
	sign := func(expires string) string {
		return strings.TrimSpace(harness.Run(t, harness.Program(t, "wscast"), "token", "--key", file, "--subject", "alice", "--channel", "*", "--expires", expires))
	}
	d := harness.Start(t, harness.Config(script+fmt.Sprintf("[auth]\nmethod = 'jwt'\nkey = '%s'\n", file)))
	n := harness.StartNginx(t, d.Address("websocket"))
	b := openClient(t, n, true)
	b.run(fmt.Sprintf("window.tokens = ['%s', '%s']; join({ token: async () => tokens.shift() }); sub('a'); undefined", sign("4s"), sign("1h")))
	b.await("c.state === 'open'", sawStates)
	if p := b.settle("c.presence('a').then((p) => p.identities)"); p != `["alice"]` {
		t.Errorf("identities are %s", p)
	}
	publishAll(t, d, "a", numbered(0, 1))
	b.await("states.includes('waiting the token has expired')", sawStates)
	publishAll(t, d, "a", numbered(1, 2))
	b.expectGot("a", numbered(0, 2)...)
	if left := get[int](b, "tokens.length"); left != 0 {
		t.Errorf("%d tokens are left", left)
	}
	b.run("c.close(); join({ token: 'x.y.z' }); sub('a'); undefined")
	b.await("states.some((s) => s.startsWith('waiting 401: the token is not valid'))", sawStates)
}
