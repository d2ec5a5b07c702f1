package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// goodSite is what nginx -T prints, with the shipped files in a site.
const goodSite = `# configuration file /etc/nginx/nginx.conf:
events {
	worker_connections 768;
}
http {
	include conf.d/*.conf;
	server {
		listen 443 ssl;
		include snippets/wscast.conf;
		location / { return 200 "it; is { fine }"; }
	}
}

# configuration file /etc/nginx/conf.d/wscast.conf:
map $http_upgrade $wscast_connection {
	default upgrade;
	''      close;
}
upstream wscast {
	server 127.0.0.1:7311 max_fails=0;
}

# configuration file /etc/nginx/snippets/wscast.conf:
location ^~ /websocket {
	proxy_pass http://wscast;
	proxy_http_version 1.1;
	proxy_set_header Upgrade $http_upgrade;
	proxy_set_header Connection $wscast_connection;
	proxy_set_header Host $http_host;
	proxy_buffering off;
	proxy_read_timeout 60s;
}
`

const inSnippet = ` /etc/nginx/snippets/wscast.conf && nginx -t && systemctl reload nginx.service`

func TestDoctorJudgesSites(t *testing.T) {
	const place = "location ^~ /websocket (/etc/nginx/snippets/wscast.conf:2)"
	for _, c := range []struct {
		name, old, replacement string
		level                  level
		line                   string
	}{
		{"as shipped", "{", "{", levelOK, place + " lets WebSockets through"},
		{"no site", "include snippets/wscast.conf;", "", levelWarning,
			"no site of nginx leads to wscastd at 127.0.0.1:7311 — include snippets/wscast.conf;"},
		{"another address", "server 127.0.0.1:7311", "server 127.0.0.1:7312", levelError,
			place + " leads to 127.0.0.1:7312, and wscastd listens on 127.0.0.1:7311 — give the upstream: server 127.0.0.1:7311 max_fails=0;"},
		{"one address too many", "max_fails=0;", "; server unix:/run/w.sock;", levelError,
			place + " leads to /run/w.sock as well, and wscastd does not listen there"},
		{"straight there", "http://wscast;", "http://localhost:7311;", levelOK, place + " lets WebSockets through"},
		{"HTTP/1.0", "proxy_http_version 1.1;", "", levelError,
			"HTTP/1.0, in which there are no WebSockets — sed -i --follow-symlinks '2s/proxy_pass/proxy_http_version 1.1; &/'" + inSnippet},
		{"HTTP/1.0 by name", "proxy_http_version 1.1", "proxy_http_version 1.0", levelError,
			"'3s/proxy_http_version[^;]*/proxy_http_version 1.1/'" + inSnippet},
		{"no upgrade", "proxy_set_header Upgrade $http_upgrade;", "", levelError,
			"clients get 426 — sed -i --follow-symlinks '5s/proxy_set_header/proxy_set_header Upgrade $http_upgrade; &/'" + inSnippet},
		{"no headers",
			"proxy_set_header Upgrade $http_upgrade;\n\tproxy_set_header Connection $wscast_connection;\n\tproxy_set_header Host $http_host;", "", levelError,
			"'2s/proxy_pass/proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $wscast_connection; &/'"},
		{"headers of the server", "\tlisten 443 ssl;", "\tlisten 443 ssl; proxy_set_header Upgrade $http_upgrade;",
			levelOK, "lets WebSockets through"},
		{"connection closes", "proxy_set_header Connection $wscast_connection", "proxy_set_header Connection close",
			levelError, "sends Connection: close, which does not ask for an upgrade — sed"},
		{"connection as a literal", "proxy_set_header Connection $wscast_connection",
			`proxy_set_header Connection "keep-alive, Upgrade"`, levelOK, "lets WebSockets through"},
		{"connection of the client", "proxy_set_header Connection $wscast_connection",
			"proxy_set_header Connection $http_connection", levelOK, "lets WebSockets through"},
		{"map closes", "default upgrade;", "default close;", levelError,
			"sends Connection: $wscast_connection, which does not ask for an upgrade"},
		{"map of websocket", "default upgrade;", "websocket upgrade;", levelOK, "lets WebSockets through"},
		{"upgrade to something", "Upgrade $http_upgrade", "Upgrade h2c", levelError, "sends Upgrade: h2c"},
		{"no host", "proxy_set_header Host $http_host;", "", levelError,
			"does not pass on the header Host: pages are refused with 403 — sed"},
		{"host without port", "Host $http_host", "Host $host", levelOK, "lets WebSockets through"},
		{"host without an unusual port", "listen 443 ssl;\n\t\tinclude snippets/wscast.conf;",
			"listen [::]:8443 ssl; include snippets/wscast.conf;", levelOK, "lets WebSockets through"},
		{"origin", "proxy_buffering off;", `proxy_set_header origin ""; proxy_buffering off;`, levelWarning,
			"changes the header Origin"},
		{"buffering", "proxy_buffering off;", "", levelNote,
			"has proxy_buffering on, which does not matter to WebSockets"},
		{"short", "proxy_read_timeout 60s", "proxy_read_timeout 10s", levelError,
			"closes clients that were sent nothing for 10s, and they are pinged every 25s — sed -i --follow-symlinks '8s/proxy_read_timeout[^;]*/proxy_read_timeout 60s/'" + inSnippet},
		{"rather short", "proxy_read_timeout 60s", "proxy_read_timeout 30", levelWarning,
			"has proxy_read_timeout 30s, less than twice the 25s of websocket.ping"},
		{"long", "proxy_read_timeout 60s", `proxy_read_timeout "1h 30m"`, levelOK, "lets WebSockets through"},
		{"short for all", "\tinclude conf.d/*.conf;", "\tinclude conf.d/*.conf; proxy_read_timeout 5s;", levelOK,
			"lets WebSockets through"},
		{"odd", "proxy_read_timeout 60s", "proxy_read_timeout $arg_t", levelNote, "not understood: $arg_t"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := healthy()
			site(c.old, c.replacement)(f)
			out, _ := shows(f)
			for line := range strings.Lines(out) {
				if strings.HasPrefix(line, "  "+levelNames[c.level]+" ") && strings.Contains(line, c.line) {
					return
				}
			}
			t.Errorf("no %s with %q in\n%s", levelNames[c.level], c.line, out)
		})
	}
}

func TestDoctorKnowsThePing(t *testing.T) {
	for ping, want := range map[string]string{
		"40s": "\n  warning  location ^~ /websocket (/etc/nginx/snippets/wscast.conf:2) has proxy_read_timeout 1m0s, less than twice the 40s",
		"90s": "proxy_read_timeout 181s",
		"60s": "closes clients that were sent nothing for 1m0s, and they are pinged every 1m0s",
		"0s":  "\n  warning  clients are not pinged, and nginx closes those that were sent nothing for 1m0s",
	} {
		f := healthy()
		f.config.settings["websocket.ping"] = ping
		if out, _ := shows(f); !strings.Contains(out, want) {
			t.Errorf("%s: no %q in\n%s", ping, want, out)
		}
	}
}

// A block with a proxy_set_header of its own inherits none (ngx_http_proxy_module).
func TestHeadersAreNotAddedUp(t *testing.T) {
	f := healthy()
	f.nginx.config = parseNginx(strings.NewReplacer("listen 443 ssl;", "listen 443 ssl; proxy_set_header Upgrade $http_upgrade;",
		"\tproxy_set_header Upgrade $http_upgrade;\n", "").Replace(goodSite))
	if out, _ := shows(f); !strings.Contains(out, "does not pass on the headers of an upgrade") {
		t.Errorf("the header of the server is taken for one of the location:\n%s", out)
	}
}

func TestSiteWithoutTheShippedFiles(t *testing.T) {
	f := healthy()
	f.nginx.config = parseNginx(dumpHeader + "/n:\nevents { } http { server { location /websocket {\n" +
		"proxy_pass http://127.0.0.1:7311; } location /x { proxy_pass http://$x; } } }")
	out, _ := shows(f)
	for _, line := range []string{
		"'2s/proxy_pass/proxy_http_version 1.1; &/' /n",
		"'2s/proxy_pass/proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection upgrade; &/' /n",
		"'2s/proxy_pass/proxy_set_header Host $http_host; &/' /n",
	} {
		if !strings.Contains(out, line) {
			t.Errorf("no %q in\n%s", line, out)
		}
	}
}

func TestDoctorKnowsTheHost(t *testing.T) {
	f := healthy()
	f.nginx.config = parseNginx(strings.NewReplacer("Host $http_host", "Host $host", "listen 443",
		"listen [::]:8443").Replace(goodSite))
	if out, _ := shows(f); !strings.Contains(out, "sends Host: $host without the port 8443: pages are refused with 403") {
		t.Errorf("the port is not missed in\n%s", out)
	}
	f.config.settings["websocket.origins"] = `["https://example.org:8443"]`
	if out, _ := shows(f); !strings.Contains(out, "lets WebSockets through") {
		t.Errorf("with origins the header Host does not matter:\n%s", out)
	}
}

func TestNewerNginxSpeaksHTTP11(t *testing.T) {
	f := healthy()
	site("proxy_http_version 1.1;", "")(f)
	for version, good := range map[string]bool{"1.29.7": true, "1.30.0": true, "2.0.0": true, "1.29.6": false, "1.22.1": false, "1.30": true, "": false, "1.29": false} {
		f.nginx.version = version
		if out, _ := shows(f); strings.Contains(out, "HTTP/1.0") == good {
			t.Errorf("nginx %q:\n%s", version, out)
		}
	}
}

func TestRoomOfWorkers(t *testing.T) {
	for _, c := range []struct {
		config  string
		workers int
		limits  []int
		room    string
	}{
		{"events { worker_connections 768; }", 2, []int{1024, 1024},
			"room for 768 clients: 2 workers with worker_connections 768"},
		{"events { }", 0, nil, "room for 256 clients: 1 worker with worker_connections 512"},
		{"worker_processes auto; events { }", 0, nil, "room for 512 clients: 2 workers"},
		{"worker_processes 4; events { }", 0, nil, "room for 1024 clients: 4 workers"},
		{"worker_rlimit_nofile 500; events { worker_connections 1000; }", 1, nil,
			"room for 200 clients, and 250 are needed: a worker may open 500 files"},
		{"worker_rlimit_nofile 900; events { worker_connections 1000; }", 1, nil,
			"room for 400 clients: a worker may open 900 files"},
		{"events { worker_connections 100; }", 1, nil, "room for 50 clients, and 250 are needed"},
	} {
		f := healthy()
		f.nginx.config, f.nginx.workers, f.nginx.limits = parseNginx(dumpHeader+"/n:\n"+c.config), c.workers, c.limits
		if out, _ := shows(f); !strings.Contains(out, c.room) {
			t.Errorf("%s: no %q in\n%s", c.config, c.room, out)
		}
	}
}

func TestReaches(t *testing.T) {
	for _, c := range []struct {
		address, listens string
		want             bool
	}{
		{"127.0.0.1:7311", "127.0.0.1:7311", true},
		{"127.0.0.1:7311", "127.0.0.1:7312", false},
		{"127.0.0.2:7311", "127.0.0.1:7311", false},
		{"localhost:7311", "127.0.0.1:7311", true},
		{"localhost:7311", "10.0.0.1:7311", false},
		{"[::1]:7311", "[::]:7311", true},
		{"10.0.0.1:7311", "0.0.0.0:7311", true},
		{"/run/w.sock", "/run//w.sock", true},
		{"/run/w.sock", "127.0.0.1:7311", false},
		{"nonsense", "127.0.0.1:7311", false},
	} {
		if reaches(c.address, c.listens) != c.want {
			t.Errorf("%s reaches %s: want %v", c.address, c.listens, c.want)
		}
	}
}

func TestNginxTime(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"60s": time.Minute, "60": time.Minute, "1m30s": 90 * time.Second, "1m 30s": 90 * time.Second,
		"500ms": time.Second / 2, "1d": 24 * time.Hour, "1M": 720 * time.Hour, "0": 0,
	} {
		if got, err := nginxTime(text); err != nil || got != want {
			t.Errorf("%q is %v %v, want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "s", "1x", "$var", "-1s", "99999999999s"} {
		if got, err := nginxTime(text); err == nil {
			t.Errorf("%q is %v", text, got)
		}
	}
}

// spelled writes directives as they were understood.
func spelled(list []directive) string {
	var b strings.Builder
	for _, d := range list {
		b.WriteString(d.name)
		for _, arg := range d.args {
			b.WriteString("|" + arg)
		}
		if d.block != nil {
			b.WriteString("{" + spelled(d.block) + "}")
		}
		b.WriteString(";")
	}
	return b.String()
}

func TestParseNginx(t *testing.T) {
	for text, want := range map[string]string{
		"a b c;":                         "a|b|c;",
		"a 'b c' \"d;\\\"e\" f\\ g;":     "a|b c|d;\"e|f g;",
		"a ${b}c$d;":                     "a|${b}c$d;",
		"a{b c;d{}}e;":                   "a{b|c;d;};e;",
		"a # b;\nc;":                     "a|c;",
		"a#b;":                           "a#b;",
		"a b":                            "a|b;",
		"}a;":                            "",
		"{a;}b;":                         "b;",
		"x_by_lua_block { if {} } a;":    "x_by_lua_block;a;",
		"a ~ ^/(x|y)\\.php$ { b; }":      "a|~|^/(x|y)\\.php${b;};",
		"a 'open":                        "a|open\n\n;",
		strings.Repeat("a{", 3) + "b;":   "a{a{a{b;};};};",
		"map $a $b { default x; '' y; }": "map|$a|$b{default|x;|y;};",
		"include b/*.conf;":              "one|1;two|2;",
		"include /etc/b/1.conf; c;":      "one|1;c;",
		"include none.conf;":             "",
		"if ($a = \"b\") { c; }":         "if|($a|=|b|){c;};",
	} {
		dump := dumpHeader + "/etc/nginx.conf:\n" + text + "\n\n" + dumpHeader + "/etc/b/1.conf:\none 1;\n" + dumpHeader + "/etc/b/2.conf:\ntwo 2;\n"
		if got := spelled(parseNginx(dump)); got != want {
			t.Errorf("%s\nis  %s\nnot %s", text, got, want)
		}
	}
	d := parseNginx(dumpHeader + "/n:\n\n  a;\nb {\n c\n  d; }")
	if d[0].line != 2 || d[0].file != "/n" || d[1].block[0].line != 4 {
		t.Errorf("the places are wrong: %+v", d)
	}
}

// Files that include each other, two by two, are 2ⁿ directives.
func TestParseNginxEnds(t *testing.T) {
	var dump strings.Builder
	for i := range 40 {
		name, next := string(rune('A'+i)), string(rune('A'+i+1))
		dump.WriteString(dumpHeader + "/" + name + ":\ninclude " + next + "; include " + next + "; a;\n")
	}
	_ = parseNginx(dump.String())
	_ = parseNginx(dumpHeader + "/n:\n" + strings.Repeat("a {", 100_000))
	_ = parseNginx(dumpHeader + "/n:\na; include /n;")
}

// The real nginx prints the shipped files, and they are found good.
func TestShippedSiteIsGood(t *testing.T) {
	nginx := inSbin("nginx")
	if nginx == "" {
		t.Fatal("no nginx: apt install nginx")
	}
	shipped, err := filepath.Abs("../../etc/nginx")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "nginx.conf")
	text := "pid " + dir + "/pid; error_log stderr; events { worker_connections 1024; }\nhttp { access_log off; include " + shipped + "/wscast-http.conf;\n" +
		"server { listen unix:" + dir + "/sock; include " + shipped + "/wscast.conf; } }\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(nginx, "-T", "-p", dir, "-c", file)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	dump, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, stderr.String())
	}
	f := healthy()
	f.nginx.config = parseNginx(string(dump))
	out, err := shows(f)
	if err != nil || !strings.Contains(out, "location ^~ /websocket ("+shipped+"/wscast.conf:") || !strings.Contains(out, "lets WebSockets through") {
		t.Errorf("%v\n%s", err, out)
	}
}

func FuzzNginx(f *testing.F) {
	f.Add(goodSite)
	f.Add(dumpHeader + "/a:\ninclude a; http { include *; server { location / { proxy_pass http://127.0.0.1:7311; } } }\n")
	f.Add(dumpHeader + "/a:\n\"\\")
	f.Fuzz(func(t *testing.T, dump string) {
		facts := healthy()
		facts.nginx.config = parseNginx(dump)
		if out, _ := shows(facts); strings.Contains(out, "\x1b") {
			t.Errorf("control characters are printed: %q", out)
		}
	})
}
