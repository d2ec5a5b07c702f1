package web

import (
	"bytes"
	"compress/gzip"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

func page(t *testing.T, s Site, path string) string {
	t.Helper()
	body, _, ok := s.Page(path)
	if !ok {
		t.Fatalf("the page has no %s", path)
	}
	return string(body)
}

func TestPage(t *testing.T) {
	for path, want := range map[string]string{
		"/":         "text/html; charset=utf-8",
		"/demo.css": "text/css; charset=utf-8",
		"/demo.js":  "text/javascript; charset=utf-8",
	} {
		body, contentType, ok := Site{}.Page(path)
		if !ok || contentType != want || len(body) == 0 {
			t.Errorf("%s: %d bytes of %q, expected %q", path, len(body), contentType, want)
		}
	}
	for _, path := range []string{"", "/index.html", "/doc.go", "/demo.js/", "//demo.js"} {
		if _, _, ok := (Site{}).Page(path); ok {
			t.Errorf("%q is served", path)
		}
	}
}

func TestEverythingThePageLoadsIsServed(t *testing.T) {
	for _, m := range regexp.MustCompile(`(?:src|href)="([^"]*)"`).FindAllStringSubmatch(page(t, Site{}, "/"), -1) {
		if strings.HasPrefix(m[1], "data:") {
			continue
		}
		if _, ok := Client("/wscast.js", "/"+m[1]); ok {
			continue
		}
		if _, _, ok := (Site{}).Page("/" + m[1]); !ok {
			t.Errorf("the page loads %q, which is not served", m[1])
		}
	}
}

// The policy forbids these, so the browser would drop them.
func TestNothingInline(t *testing.T) {
	html := page(t, Site{}, "/")
	for _, pattern := range []string{`<script>`, `<style`, `\sstyle=`, `\son[a-z]+=`, `javascript:`} {
		if m := regexp.MustCompile(pattern).FindString(html); m != "" {
			t.Errorf("index.html has %q", m)
		}
	}
}

// What a message holds must not become markup or code.
func TestScriptWritesTextOnly(t *testing.T) {
	script := page(t, Site{}, "/demo.js")
	for _, word := range []string{"innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function", "setHTML", ".style"} {
		if strings.Contains(script, word) {
			t.Errorf("demo.js has %s", word)
		}
	}
}

func TestScriptFindsItsElements(t *testing.T) {
	html := page(t, Site{}, "/")
	found := regexp.MustCompile(`\$\('([^']*)'\)`).FindAllStringSubmatch(page(t, Site{}, "/demo.js"), -1)
	if len(found) == 0 {
		t.Fatal("demo.js looks up no element: this test no longer sees how")
	}
	for _, m := range found {
		if !strings.Contains(html, `id="`+m[1]+`"`) {
			t.Errorf("demo.js looks for #%s, which index.html does not have", m[1])
		}
	}
}

func TestSite(t *testing.T) {
	defaults := page(t, Site{}, "/")
	if same := page(t, Site{PublishSocket: "/run/wscast/publish.sock", WebSocketPath: "/websocket", Script: "/wscast.js"}, "/"); same != defaults {
		t.Error("the defaults given by name make another page")
	}
	html := page(t, Site{PublishSocket: `/tmp/a"b<c>'d&e.sock`, WebSocketPath: `/live/"x"`, Script: "/lib/client.js"}, "/")
	for _, want := range []string{
		`data-socket="/tmp/a&#34;b&lt;c&gt;&#39;d&amp;e.sock"`,
		`data-websocket="live/&#34;x&#34;"`,
		`<script src="lib/client.js" defer>`,
	} {
		if !strings.Contains(html, want) {
			t.Errorf("the page has no %s", want)
		}
	}
	if page(t, Site{}, "/") != defaults {
		t.Error("the page of one site has changed that of another")
	}
}

// The client is for pages that do not want to wait for it.
func TestClientIsSmall(t *testing.T) {
	body, ok := Client("/lib/wscast.js", "/lib/wscast.js")
	if !ok {
		t.Fatal("the client is not served where it is")
	}
	var small bytes.Buffer
	w, _ := gzip.NewWriterLevel(&small, gzip.BestCompression)
	w.Write(body)
	w.Close()
	if small.Len() > 3072 || small.Len() < 1000 {
		t.Errorf("wscast.js has %d bytes, with gzip; it is to have at most 3072", small.Len())
	}
	if bytes.Contains(body[20:], []byte("// ")) || bytes.Contains(body, []byte("\n ")) {
		t.Error("wscast.js is served with comments, or with indentation")
	}
	module, ok := Client("/lib/wscast.js", "/lib/wscast.mjs")
	if !ok || !bytes.Contains(module, []byte(`import "./wscast.js"`)) {
		t.Errorf("the module does not load the script: %s", module)
	}
	for _, path := range []string{"/wscast.js", "/lib/wscast.d.ts", "/lib/", ""} {
		if _, ok := Client("/lib/wscast.js", path); ok {
			t.Errorf("%q is served", path)
		}
	}
	if _, ok := Client("", ""); ok {
		t.Error("it is served although it is off")
	}
}

// wscast.d.ts and wscast.js have the same members, and the module exports what the types say.
func TestTypesAreThoseOfTheClient(t *testing.T) {
	b, err := os.ReadFile("wscast.d.ts")
	if err != nil {
		t.Fatal(err)
	}
	types, script := regexp.MustCompile(`(?s)/\*\*.*?\*/`).ReplaceAllString(string(b), ""), string(clientSource)
	names := func(in, pattern string) (all []string) {
		for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(in, -1) {
			all = append(all, m[1:]...)
		}
		slices.Sort(all)
		return slices.Compact(all)
	}
	members := func(name string) []string {
		_, body, ok := strings.Cut(types, "interface "+name+" {")
		body, _, ended := strings.Cut(body, "\n}")
		if !ok || !ended {
			t.Fatalf("the types have no interface %s", name)
		}
		return names(body, `(?m)^  (?:readonly )?(\w+)[?(:]`)
	}
	between := func(from, to string) string {
		_, rest, ok := strings.Cut(script, from)
		rest, _, ended := strings.Cut(rest, to)
		if !ok || !ended {
			t.Fatalf("wscast.js has no %q: this test no longer sees how it is written", from)
		}
		return rest
	}
	class := between("class Connection {", "\n  globalThis")
	connection := append(names(class, `(?m)^    (?:async )?([a-z]\w*)\(.*\{`), names(class, `(?m)^    (state) = .*; (reason) = `)...)
	connection = append(connection, names(class, `this\.(onstate) = `)...)
	connection = slices.DeleteFunc(connection, func(name string) bool { return name == "constructor" })
	slices.Sort(connection)
	options := append(names(class, `this\.#o\.(\w+)`), names(class, `\{ (token), (sse) \} = this`)...)
	slices.Sort(options)
	for _, c := range []struct {
		name      string
		said, are []string
	}{
		{"Connection", members("Connection"), connection},
		{"Options", members("Options"), slices.Compact(options)},
		{"Message", members("Message"), names(between("const message = {", "}"), `(\w+):`)},
		{"Subscription", members("Subscription"), []string{"channel", "close", "id"}},
		{"SubscribeOptions", members("SubscribeOptions"), names(class, `\bs\.(id|since|onincomplete|onerror)\b`)},
		{"the module", names(types, `export function (\w+)`), names(string(clientModule), `export const (\w+)`)},
	} {
		if len(c.said) == 0 || !slices.Equal(c.said, c.are) {
			t.Errorf("%s: wscast.d.ts has %q, wscast.js has %q", c.name, c.said, c.are)
		}
	}
}
