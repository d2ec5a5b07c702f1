package test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"wscast/ipc"
	"wscast/test/harness"
)

// browser is a page of a headless Chromium of its own.
type browser struct {
	t   *testing.T
	ctx context.Context
	// what the page, or Chromium about the page, wrote to the console; complete after close
	console []string
	close   func()
}

// openBrowser starts Chromium on a new profile; it ends with the test. The certificate of the harness's nginx is taken without a
// question.
func openBrowser(t *testing.T) *browser {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*harness.Patience)
	ctx, cancelAllocator := chromedp.NewExecAllocator(ctx, append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(harness.Find(t, "chromium", "chromium")),
		chromedp.Flag("headless", "new"),
		chromedp.NoSandbox,
		chromedp.DisableGPU,
		chromedp.IgnoreCertErrors,
		chromedp.Flag("disable-quic", true),
		chromedp.Flag("disable-component-update", true),
	)...)
	ctx, _ = chromedp.NewContext(ctx)
	b := &browser{t: t, ctx: ctx}
	messages := chromedp.Console(ctx)
	read := make(chan struct{})
	go func() {
		defer close(read)
		for m, err := range messages {
			if err != nil {
				return
			}
			b.console = append(b.console, m.String())
		}
	}()
	closed := false
	b.close = func() {
		if closed {
			return
		}
		closed = true
		if err := chromedp.Cancel(ctx); err != nil {
			t.Errorf("closing Chromium: %v", err)
		}
		cancelAllocator()
		cancel()
		<-read
	}
	t.Cleanup(b.close)
	return b
}

func (b *browser) open(url string) {
	b.t.Helper()
	if err := chromedp.Do(b.ctx, chromedp.Navigate(url)); err != nil {
		b.t.Fatalf("opening %s: %v", url, err)
	}
}

// run evaluates a statement in the page.
func (b *browser) run(script string) {
	b.t.Helper()
	if err := chromedp.Do(b.ctx, chromedp.Evaluate[chromedp.Void](script)); err != nil {
		b.t.Fatalf("%s: %v", script, err)
	}
}

// await waits until a condition holds in the page. shown is an expression for the failure: what the page shows instead.
func (b *browser) await(condition, shown string) {
	b.t.Helper()
	ok := "!!(" + condition + ")"
	// An interval and not the default, every drawn frame: Chromium draws a page that is not shown when it likes.
	_, err := chromedp.Run(b.ctx, chromedp.Poll[bool](ok, chromedp.WithPollingInterval(pollInterval), chromedp.WithPollingTimeout(harness.Patience)))
	if err == nil {
		return
	}
	state, stateErr := chromedp.Run(b.ctx, chromedp.Evaluate[string]("String("+shown+")"))
	b.t.Fatalf("the page has not come to %s: %v\nit shows: %s %v", condition, err, state, stateErr)
}

// awaitText waits until an element has this text.
func (b *browser) awaitText(selector, text string) {
	b.t.Helper()
	quoted, _ := json.Marshal(selector)
	want, _ := json.Marshal(text)
	element := fmt.Sprintf("document.querySelector(%s)", quoted)
	b.await(fmt.Sprintf("%s && %s.textContent === %s", element, element, want), "document.body.innerText")
}

// get returns the value of an expression.
func get[T any](b *browser, expression string) T {
	b.t.Helper()
	value, err := chromedp.Run(b.ctx, chromedp.Evaluate[T](expression))
	if err != nil {
		b.t.Fatalf("%s: %v", expression, err)
	}
	return value
}

// How often a page is asked whether it has come to what a test waits for.
const pollInterval = 20 * time.Millisecond

// What the demo page shows.
const (
	newest    = "#messages li:first-child pre"
	stateName = "#state-name"
)

// TestDemoPage: the page through nginx, over http and https: greeting, text and binary messages, and what happens when the daemon,
// and then nginx, goes away and comes back.
func TestDemoPage(t *testing.T) {
	d := harness.Start(t, harness.Demo(), harness.Config("[websocket]\ngreeting = 'websocket is running'\n"))
	n := harness.StartNginx(t, d.Address("websocket"))
	for name, url := range map[string]string{"http": n.URL("/?channel=demo:1"), "https": n.TLSURL("/?channel=demo:1")} {
		t.Run(name, func(t *testing.T) {
			p := publisher(t, d)
			b := openBrowser(t)
			b.open(url)
			b.awaitText(stateName, "open")
			b.awaitText("#state-detail", "websocket is running")
			awaitJoined(b, "demo:1")
			if title := get[string](b, "document.title"); title != "demo:1 · wscast" {
				t.Errorf("the title is %q", title)
			}

			publish(t, p, "demo:1", []byte("<b>bold</b> & 'ünïcode' ✓"), 1)
			b.awaitText(newest, "<b>bold</b> & 'ünïcode' ✓")
			publish(t, p, "demo:1", []byte("\x00\x01\xff wscast, and more"), 1)
			b.awaitText(newest, "0000  00 01 ff 20 77 73 63 61 73 74 2c 20 61 6e 64 20  ... wscast, and \n0010  6d 6f 72 65                                      more")
			b.awaitText("#messages li:first-child .about span", "binary, 20 bytes")
			b.awaitText("#count", "2")
			if markup := get[int](b, "document.querySelectorAll('#messages b').length"); markup != 0 {
				t.Error("a message has become markup")
			}
			// The commands it gives are those for this daemon.
			commands := get[string](b, "document.querySelector('#publish').textContent")
			for _, want := range []string{
				"wscast publish --socket " + d.PublishSocket() + " demo:1 hello",
				"redis-cli -s " + d.PublishSocket() + " PUBLISH demo:1 hello",
				"echo 'PUBLISH demo:1 hello' | nc -U -N " + d.PublishSocket(),
			} {
				if !strings.Contains(commands, want) {
					t.Errorf("the page does not say %q: %s", want, commands)
				}
			}

			// The states, with their details, are noted from here on, as some may be too short to be seen.
			b.run(`window.states = []; new MutationObserver(() => {
				const state = document.querySelector('#state');
				window.states.push(state.dataset.state + ' ' + document.querySelector('#state-detail').textContent);
			}).observe(document.querySelector('#state'), { attributes: true, attributeFilter: ['data-state'] }); undefined`)
			d.Stop()
			b.await("window.states.some((s) => s.startsWith('waiting service restart'))", "window.states.join()")
			d.Start()
			b.awaitText(stateName, "open")
			b.awaitText("#state-detail", "messages are missing: the log has no more of them")
			p = publisher(t, d)
			publish(t, p, "demo:1", []byte("after the daemon"), 1)
			b.awaitText(newest, "after the daemon")

			n.Stop()
			b.await("window.states.some((s) => s.startsWith('waiting closed with 1006'))", "window.states.join()")
			publishAll(t, d, "demo:1", []string{"without nginx"})
			n.Start()
			b.awaitText(newest, "without nginx")

			b.run("document.querySelector('#connect').click()")
			b.awaitText(stateName, "closed")
			publishAll(t, d, "demo:1", []string{"disconnected"})
			b.run("document.querySelector('#connect').click()")
			b.awaitText(newest, "disconnected")
			b.awaitText("#count", "5")

			b.close()
			for _, line := range b.console {
				// Chromium reports connections that end or are refused, which this test is about.
				if !strings.Contains(line, "WebSocket connection to") && !strings.Contains(line, "Failed to load resource") {
					t.Errorf("the console says: %s", line)
				}
			}
		})
	}
}

// awaitJoined returns when the page has a subscription.
func awaitJoined(b *browser, channel string) {
	b.t.Helper()
	b.await(fmt.Sprintf("subscriptions['%s'].id", channel), "document.body.innerText")
}

// TestDemoPageChartAndChat: numbers that are there when the page opens, and those that come; what one page says the others see, as text, those
// that open later too. Only the channel of the chat takes messages.
func TestDemoPageChartAndChat(t *testing.T) {
	d := harness.Start(t, harness.Demo())
	n := harness.StartNginx(t, d.Address("websocket"))
	publishAll(t, d, "demo/vmstat", []string{
		"procs -----------memory---------- ---swap-- -----io---- -system-- ------cpu-----",
		" r  b   swpd   free   buff  cache   si   so    bi    bo   in   cs us sy id wa st",
		" 1  0      0 123456   1234 123456    0    0     1     2  100  200  5  6 88  1  0",
	})
	one := openBrowser(t)
	one.open(n.TLSURL("/"))
	one.awaitText("#now-user", "5 %")
	publishAll(t, d, "demo/vmstat", []string{" 1  0      0 123456   1234 123456    0    0     1     2  100  200  25  16 50  9  0"})
	one.awaitText("#now-user", "25 %")
	one.awaitText("#now-system", "16 %")
	one.awaitText("#now-wait", "9 %")
	if points := get[string](one, "document.querySelector('#area-wait').getAttribute('points')"); !strings.HasSuffix(points, " 600.0,80.0 600,160") {
		t.Errorf("the chart is %q", points)
	}
	awaitJoined(one, "demo/chat")
	two := &browser{t: t}
	two.ctx, _ = chromedp.NewContext(one.ctx)
	two.open(n.TLSURL("/"))
	awaitJoined(two, "demo/chat")
	one.run("document.querySelector('#name').value = 'ann'; document.querySelector('#text').value = '<i>hello</i>: you'; document.querySelector('#say').requestSubmit()")
	three := &browser{t: t}
	three.ctx, _ = chromedp.NewContext(one.ctx)
	for _, b := range []*browser{one, two, three} {
		if b == three {
			b.open(n.TLSURL("/"))
		}
		b.await("/^[0-9:]+ann<i>hello<\\/i>: you$/.test(document.querySelector('#chat').textContent)", "document.body.innerText")
	}
	one.awaitText("#chat-error", "")
	if code := one.settle("connection.publish('default', 'x')"); code != "error not_allowed" {
		t.Errorf("publishing to another channel: %s", code)
	}
}

// TestDemoPageIsBounded: a burst leaves the last 200 messages, in order, and a page that still answers.
func TestDemoPageIsBounded(t *testing.T) {
	d := harness.Start(t, harness.Demo())
	n := harness.StartNginx(t, d.Address("websocket"))
	b := openBrowser(t)
	b.open(n.URL("/"))
	b.awaitText(stateName, "open")
	awaitJoined(b, "default")
	var answered int
	stream := publisher(t, d).PublishMany(func(a ipc.Answer) {
		if a.Err == nil && a.Receivers == 1 {
			answered++
		}
	})
	for i := range 5000 {
		if err := stream.Publish("default", fmt.Append(nil, "message ", i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := stream.Close(); err != nil || answered != 5000 {
		t.Fatalf("%d of 5000 messages went to the page: %v", answered, err)
	}
	b.awaitText("#count", "5,000")
	shown := strings.Split(get[string](b, "Array.from(document.querySelectorAll('#messages pre'), (e) => e.textContent).join('\\n')"), "\n")
	var want []string
	for i := 4999; i >= 4800; i-- {
		want = append(want, fmt.Sprint("message ", i))
	}
	if !slices.Equal(shown, want) {
		t.Errorf("the page shows %d messages: %q", len(shown), shown)
	}
}

func TestDemoPageRefusesAWrongChannel(t *testing.T) {
	d := harness.Start(t, harness.Demo())
	b := openBrowser(t)
	b.open("http://" + d.Address("websocket") + "/?channel=%3Cb%3E+x")
	b.awaitText(stateName, "closed")
	b.await("document.querySelector('#state-detail').textContent.startsWith('not a channel')", "document.body.innerText")
}

// barePage has no more than what a page needs: it notes the events of the WebSockets that a test opens with join(url).
const barePage = `<!DOCTYPE html>
<title>bare</title>
<script>
'use strict';
const events = [];
let socket;
function join(url) {
	socket = new WebSocket(url);
	socket.binaryType = 'arraybuffer';
	socket.onopen = () => events.push('open');
	socket.onmessage = ({ data }) => events.push(typeof data === 'string'
		? (data.length > 100 ? 'text of ' + data.length : 'text ' + data)
		: 'binary ' + Array.from(new Uint8Array(data)).join(' '));
	socket.onerror = () => events.push('error');
	socket.onclose = (e) => events.push('close ' + e.code + ' ' + e.reason + (e.wasClean ? ' clean' : ''));
}
</script>
`

// openBarePage opens the bare page in a new browser, from a server of its own that is not the daemon's origin.
func openBarePage(t *testing.T) (b *browser, origin string) {
	t.Helper()
	site := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		io.WriteString(w, barePage)
	}))
	t.Cleanup(site.Close)
	b = openBrowser(t)
	b.open(site.URL)
	return b, site.URL
}

// expectEvents waits for the next events of the bare page.
func (b *browser) expectEvents(want ...string) {
	b.t.Helper()
	b.await(fmt.Sprintf("events.length >= %d", len(want)), "events.join(' | ')")
	got := get[[]string](b, fmt.Sprintf("events.splice(0, %d)", len(want)))
	if !slices.Equal(got, want) {
		b.t.Fatalf("the page had the events %q, expected %q", got, want)
	}
}

// TestBrowserEvents: onopen, onmessage and onclose as a page of another origin, one that is allowed, gets them.
func TestBrowserEvents(t *testing.T) {
	b, origin := openBarePage(t)
	d := harness.Start(t, harness.Config(fmt.Sprintf("[websocket]\ngreeting = 'websocket is running'\norigins = ['%s']\n", origin)))
	n := harness.StartNginx(t, d.Address("websocket"))
	p := publisher(t, d)
	for _, url := range []string{n.WebSocketURL("bare"), n.WebSocketTLSURL("bare")} {
		b.run(fmt.Sprintf("join('%s')", url))
		b.expectEvents("open", "text websocket is running")
		publish(t, p, "bare", []byte("héllo"), 1)
		publish(t, p, "bare", []byte("\x00\xff\r\n"), 1)
		publish(t, p, "bare", nil, 1)
		publish(t, p, "bare", []byte(strings.Repeat("x", 1<<20)), 1)
		b.expectEvents("text héllo", "binary 0 255 13 10", "text ", "text of 1048576")
		// What a client sends is dropped, and harms nothing.
		b.run("socket.send('text'); socket.send(new Uint8Array([1, 2, 3]))")
		publish(t, p, "bare", []byte("after"), 1)
		b.expectEvents("text after")
		b.run("socket.close(1000, 'enough')")
		// The daemon answers with the code alone (RFC 6455, section 5.5.1).
		b.expectEvents("close 1000  clean")
	}

	b.run(fmt.Sprintf("join('%s')", n.WebSocketURL("bare")))
	b.expectEvents("open", "text websocket is running")
	d.Stop()
	b.expectEvents("close 1012 service restart clean")
	d.Start()
	b.run(fmt.Sprintf("join('%s')", n.WebSocketURL("bare")))
	b.expectEvents("open", "text websocket is running")
	n.Stop()
	b.await("events.length > 0 && events.at(-1).startsWith('close')", "events.join(' | ')")
	if got := get[[]string](b, "events"); got[len(got)-1] != "close 1006 " {
		t.Errorf("without nginx the page had the events %q", got)
	}
}

// TestBrowserNoticesNoRestart: a page behind nginx has no event but its messages while the daemon is restarted and killed.
func TestBrowserNoticesNoRestart(t *testing.T) {
	b, origin := openBarePage(t)
	d := harness.Start(t, harness.FDStore(64), harness.Config(fmt.Sprintf("[websocket]\norigins = ['%s']\n", origin)))
	n := harness.StartNginx(t, d.Address("websocket"))
	b.run(fmt.Sprintf("join('%s')", n.WebSocketTLSURL("bare")))
	b.expectEvents("open")
	for i, end := range []func(){d.Stop, d.Kill, d.Kill, d.Stop} {
		publish(t, publisher(t, d), "bare", []byte(fmt.Sprint("before ", i)), 1)
		end()
		d.Start()
		publish(t, publisher(t, d), "bare", []byte(fmt.Sprint("after ", i)), 1)
		b.expectEvents(fmt.Sprint("text before ", i), fmt.Sprint("text after ", i))
	}
}

// TestBrowserFromAnotherOrigin: a page of another site cannot join unless it is allowed.
func TestBrowserFromAnotherOrigin(t *testing.T) {
	b, _ := openBarePage(t)
	d := harness.Start(t)
	n := harness.StartNginx(t, d.Address("websocket"))
	b.run(fmt.Sprintf("join('%s')", n.WebSocketURL("bare")))
	b.expectEvents("error", "close 1006 ")
	if !strings.Contains(n.Requests(), " 403") {
		t.Errorf("nginx has no 403 in its log:\n%s", n.Requests())
	}
}
