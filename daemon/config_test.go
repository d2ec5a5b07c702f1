package daemon

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

// shipped is the configuration file of the package, and the lines in it that are commented-out examples: those that begin
// with # and no blank.
func shipped(t testing.TB) (text string, examples []string) {
	t.Helper()
	b, err := os.ReadFile("../etc/wscast.toml")
	if err != nil {
		t.Fatal(err)
	}
	return string(b), regexp.MustCompile(`(?m)^#(\S.*)$`).FindAllString(string(b), -1)
}

func TestShippedFileIsTheDefaults(t *testing.T) {
	text, _ := shipped(t)
	var c Config // and not Defaults(): the file has to have every key
	if err := c.decode(text); err != nil {
		t.Fatal(err)
	}
	if want := Defaults(); !reflect.DeepEqual(c, want) {
		t.Errorf("etc/wscast.toml is\n%+v\nand the defaults are\n%+v", c, want)
	}
}

func TestShippedFileHasEveryKey(t *testing.T) {
	text, examples := shipped(t)
	for _, example := range examples {
		text = strings.Replace(text, example, example[1:], 1)
	}
	var c Config
	if err := c.decode(text); err != nil {
		t.Fatal(err)
	}
	if want := []ChannelConfig{{Match: "camera/*", Frames: "binary", Upstream: "off"}}; !reflect.DeepEqual(c.Channel, want) {
		t.Errorf("the example of [[channel]] is %+v, want %+v", c.Channel, want)
	}
	allow := []AllowConfig{{Users: []string{"mail", "1001"}, Groups: []string{"adm"}, Publish: []string{"mail/*", "alerts"}, Subscribe: []string{"mail/*"}}}
	if !reflect.DeepEqual(c.Publish.Allow, allow) {
		t.Errorf("the example of [[publish.allow]] is %+v, want %+v", c.Publish.Allow, allow)
	}
	own := []OwnLogConfig{{Match: "alerts/*", Size: 16 << 20, Age: Duration(24 * time.Hour), Channels: 1000, Path: "alerts.log"}}
	if !reflect.DeepEqual(c.Log.Own, own) {
		t.Errorf("the example of [[log.own]] is %+v, want %+v", c.Log.Own, own)
	}
	var keys []string
	section := ""
	for line := range strings.Lines(text) {
		if m := regexp.MustCompile(`^\[+([\w.]+)\]+$`).FindStringSubmatch(strings.TrimSpace(line)); m != nil {
			section = m[1]
		}
		if m := regexp.MustCompile(`^(\w+) = `).FindStringSubmatch(line); m != nil {
			keys = append(keys, section+"."+m[1])
		}
	}
	if !slices.Equal(keys, Keys()) {
		t.Errorf("etc/wscast.toml has the keys\n%q\nwant, in this order,\n%q", keys, Keys())
	}
}

// A key that a reload does not change says [restart] in its comment, and no other does.
func TestShippedFileSaysWhatWaitsForARestart(t *testing.T) {
	fixed := make(map[string]bool)
	a, b := Defaults(), Defaults()
	eachFixed(&a, &b, func(key string, _, _ reflect.Value) { fixed[key] = true })

	text, _ := shipped(t)
	section, comment := "", ""
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		key, _, isKey := strings.Cut(line, " = ")
		switch {
		case strings.HasPrefix(line, "["):
			section = strings.Trim(line, "[]")
		case strings.HasPrefix(line, "#"):
			comment += line + "\n"
			continue
		case isKey:
			key = section + "." + key
			if says := strings.HasSuffix(comment, "[restart]\n"); says != fixed[key] {
				t.Errorf("the comment of %s says [restart]: %v; it waits for a restart: %v", key, says, fixed[key])
			}
			if comment == "" {
				t.Errorf("%s has no comment", key)
			}
		}
		comment = ""
	}
}

func TestEveryErrorNamesTheKeyAndSaysWhatToDo(t *testing.T) {
	long := strings.Repeat("x", 200)
	for _, test := range []struct{ file, text, hint string }{
		// Unknown keys.
		{"[websocket]\npnig = \"25s\"", `unknown key "websocket.pnig"`, `did you mean "websocket.ping"?`},
		{"[websocket]\nPing = \"25s\"", `unknown key "websocket.Ping"`, `did you mean "websocket.ping"?`},
		{"[publish]\nping = \"25s\"", `unknown key "publish.ping"`, `did you mean "websocket.ping"?`},
		{"ping = \"25s\"", `unknown key "ping"`, `did you mean "websocket.ping"?`},
		{"colour = 1", `unknown key "colour"`, "wscast.toml(5) lists the keys; a key belongs below its [section]"},
		{"\"a\\nb\" = 1", `unknown key "a\nb"`, "wscast.toml(5) lists the keys; a key belongs below its [section]"},
		{"[websockets]\nping = \"25s\"", `unknown section "websockets"`, `did you mean "websocket"?`},
		{"[WebSocket]\nping = \"25s\"", `unknown section "WebSocket"`, `did you mean "websocket"?`},
		{"[log.more]\na = 1", `unknown key "log.more"`, "wscast.toml(5) lists the keys; a key belongs below its [section]"},
		{"[" + long + "]", `unknown section "` + long + `"`, "wscast.toml(5) lists the keys; a key belongs below its [section]"},
		{"[[channel]]\nmatch = \"a\"\n[[channel]]\nmatch = \"b\"\nframe = \"text\"", `unknown key "channel[1].frame"`, `did you mean "channel.frames"?`},

		// Syntax.
		{"[websocket]\nping = 25s", "line 2: ", `ping = "25s"`},
		{"[websocket]\n\nslow = close", "line 3: ", `stand in quotes`},
		{"[publish]\nmode = 0660", "line 2: ", `stand in quotes`},
		{"[websocket]\nping = \"1s\"\nping = \"2s\"", "line 3: ", "write each key once"},
		{"[websocket", "line 1: ", ""},
		{"[websocket]\ngreeting = \"a\nb\"", "line 2: ", ""},
		{"[websocket]\ngreeting = \"\xff\"", "line 2: ", ""},

		// Types.
		{"[websocket]\nping = 25", "websocket.ping has a value of the wrong type", `write ping = "25s", a duration in quotes`},
		{"[websocket]\nping = true", "websocket.ping has a value of the wrong type", `write ping = "25s", a duration in quotes`},
		{"[websocket]\nmax_message = 1.5", "websocket.max_message has a value of the wrong type", `write max_message = "64KiB", a size in quotes, or a number of bytes`},
		{"[websocket]\nmode = 0o660", "websocket.mode has a value of the wrong type", `write mode = "0660", a mode in quotes`},
		{"[websocket]\nlisten = \"127.0.0.1:7311\"", "websocket.listen has a value of the wrong type", `write listen = ["…", "…"], a list of texts in quotes`},
		{"[websocket]\nlisten = [7311]", "websocket.listen has a value of the wrong type", `write listen = ["…", "…"], a list of texts in quotes`},
		{"[websocket]\npath = 1", "websocket.path has a value of the wrong type", `write path = "…", text in quotes`},
		{"[log]\nchannels = \"1\"", "log.channels has a value of the wrong type", "write channels = a whole number"},
		{"[[channel]]\nmatch = 1", "channel[0].match has a value of the wrong type", `write match = "…", text in quotes`},
		{"channel = [{match = \"a\"}, {match = 1}]", "channel[1].match has a value of the wrong type", `write match = "…", text in quotes`},
		{"[channel]\nmatch = \"a\"", "channel is a section that can be repeated", "write [[channel]]"},
		{"[[websocket]]\nping = \"1s\"", "websocket is a section that there is once", "write [websocket]"},
		{"websocket = 1", "websocket is a section, not a key", "write [websocket] and its keys below"},
		{"[publish.allow]\nusers = [\"mail\"]", "publish.allow is a section that can be repeated", "write [[publish.allow]]"},
		{"[publish]\nallow = [\"mail\"]", "publish.allow is a section, not a key", "write [[publish.allow]] and its keys below"},
		{"[[publish.allow]]\nuser = [\"mail\"]", `unknown key "publish.allow[0].user"`, `did you mean "publish.allow.users"?`},
		{"[[publish.alow]]\nusers = [\"mail\"]", `unknown key "publish.alow"`, `did you mean "publish.allow"?`},
		{"[[allow]]\nusers = [\"mail\"]", `unknown section "allow"`, `did you mean "publish.allow"?`},
		{"[[publish.allow]]\nusers = \"mail\"", "publish.allow[0].users has a value of the wrong type", `write users = ["…", "…"], a list of texts in quotes`},
		{"[[publish.allow]]\nusers = [8]", "publish.allow[0].users has a value of the wrong type", `write users = ["…", "…"], a list of texts in quotes`},
		{"channel = \"a\"", "channel is a section, not a key", "write [[channel]] and its keys below"},

		// Values that are none of their type.
		{"[websocket]\nping = \"25\"", `line 2: websocket.ping = "25" is not a duration: write "25s", "1m30s" or "200ms"`, ""},
		{"[log]\nsize = \"64MB\"", `line 2: log.size = "64MB" is not a size: write "64MiB", "4KiB" or a number of bytes`, ""},
		{"[log]\nsize = -1", `line 2: log.size = "-1" is not a size`, ""},
		{"[log]\nsize = \"9999999999999TiB\"", `line 2: log.size = "9999999999999TiB" is not a size`, ""},
		{"[publish]\nmode = \"0999\"", `line 2: publish.mode = "0999" is not the mode of a socket: write "0660"`, ""},
		{"[publish]\nmode = \"01777\"", `line 2: publish.mode = "01777" is not the mode of a socket: write "0660"`, ""},

		// Values that are out of bounds, every key.
		{"[websocket]\nlisten = []", "websocket.listen = [] is not possible", "name at least one address"},
		{"[websocket]\nlisten = [\"\"]", `websocket.listen = "" is not possible`, "write host:port"},
		{"[websocket]\nlisten = [\"localhost\"]", `websocket.listen = "localhost" is not possible`, "write host:port"},
		{"[websocket]\nlisten = [\"127.0.0.1:65536\"]", `websocket.listen = "127.0.0.1:65536" is not possible`, "write host:port"},
		{"[websocket]\nlisten = [\"/run/" + long + "\"]", `is not possible`, "has at most 107 bytes, this one has 205"},
		{"[websocket]\npath = \"websocket\"", `websocket.path = "websocket" is not possible`, "it begins with a slash"},
		{"[websocket]\npath = \"/\"", `websocket.path = "/" is not possible`, "it begins with a slash"},
		{"[websocket]\npath = \"/ws/\"", `websocket.path = "/ws/" is not possible`, "it begins with a slash"},
		{"[websocket]\npath = \"/a/../b\"", `websocket.path = "/a/../b" is not possible`, "it begins with a slash"},
		{"[websocket]\npath = \"/a b\"", `websocket.path = "/a b" is not possible`, "that a URL would escape"},
		{"[websocket]\norigins = [\"example.org\"]", `websocket.origins = "example.org" is not possible`, "https://example.org"},
		{"[websocket]\norigins = [\"https://example.org/\"]", `websocket.origins = "https://example.org/" is not possible`, "without a path"},
		{"[websocket]\norigins = [\"https://bücher.example\"]", `websocket.origins = "https://bücher.example" is not possible`, "xn--"},
		{"[websocket]\norigins = [\"null\"]", `websocket.origins = "null" is not possible`, "https://example.org"},
		{"[websocket]\ngreeting = \"" + strings.Repeat("x", 4097) + "\"", "websocket.greeting has 4097 bytes", "at most 4096 bytes"},
		{"[websocket]\nping = \"10ms\"", `websocket.ping = "10ms" is not possible`, `between "50ms" and "1h", or "0s" for no pings`},
		{"[websocket]\nping = \"-1s\"", `websocket.ping = "-1s" is not possible`, `between "50ms" and "1h"`},
		{"[websocket]\nhandshake_timeout = \"2h\"", `websocket.handshake_timeout = "2h0m0s" is not possible`, `between "50ms" and "1h"`},
		{"[websocket]\nclose_timeout = \"0s\"", `websocket.close_timeout = "0s" is not possible`, `between "50ms" and "1h"`},
		{"[websocket]\nmax_message = 124", `websocket.max_message = "124" is not possible`, "between 125 bytes and 32KiB"},
		{"[websocket]\nmax_message = \"33KiB\"", `websocket.max_message = "33KiB" is not possible`, "between 125 bytes and 32KiB"},
		{"[websocket]\nslow = \"wait\"", `websocket.slow = "wait" is not possible`, `"close" or "skip"`},
		{"[publish]\nlisten = []", "publish.listen = [] is not possible", "name at least one path"},
		{"[publish]\nlisten = [\"@wscast\"]", `publish.listen = "@wscast" is not possible`, "write the path of a Unix socket"},
		{"[publish]\nlisten = [\"/run/\"]", `publish.listen = "/run/" is not possible`, "write the path of a Unix socket"},
		{"[publish]\nlisten = [\"/run/a\\u0000b\"]", `publish.listen = "/run/a\x00b" is not possible`, "write the path of a Unix socket"},
		{"[publish]\ndatagrams = [\"\"]", `publish.datagrams = "" is not possible`, "write the path of a Unix socket"},
		{"[publish]\nmax_message = 0", `publish.max_message = "0" is not possible`, "at most 8388598 bytes: an eighth of log.size"},
		{"[publish]\nmax_message = \"8MiB\"", `publish.max_message = "8MiB" is not possible`, "at most 8388598 bytes: an eighth of log.size"},
		{"[publish]\nmax_message = \"1GiB\"\n[log]\nsize = \"16GiB\"", `publish.max_message = "1GiB" is not possible`, "at most 536870912 bytes"},
		{"[publish]\nmax_connections = 0", "publish.max_connections = 0 is not possible", "at least 1"},
		{"[publish]\nrate = -1", "publish.rate = -1 is not possible", "messages a second, at most 10000000, or 0 for any number"},
		{"[publish]\nrate = 10000001", "publish.rate = 10000001 is not possible", "at most 10000000"},
		{"[publish]\ncommand_timeout = \"0s\"", `publish.command_timeout = "0s" is not possible`, `between "50ms" and "1h"`},
		{"[publish]\nreply_timeout = \"1ms\"", `publish.reply_timeout = "1ms" is not possible`, `between "50ms" and "1h"`},
		{"[publish]\ndatagram_channel = \"a b\"", `publish.datagram_channel = "a b" is not possible`, "the name of a channel"},
		{"[log]\nsize = \"4KiB\"", `log.size = "4KiB" is not possible`, "between 1MiB and 1TiB"},
		{"[log]\nsize = \"2TiB\"", `log.size = "2TiB" is not possible`, "between 1MiB and 1TiB"},
		{"[log]\nchannels = 0", "log.channels = 0 is not possible", "between 1 and 16777216"},
		{"[log]\npath = 7", "log.path has a value of the wrong type", `write path = "…", text in quotes`},
		{"[log]\npath = \"../log\"", `log.path = "../log" is not possible`, "below the state directory"},
		{"[log]\npath = \"a/../../log\"", `log.path = "a/../../log" is not possible`, "below the state directory"},
		{"[log]\npath = \"/srv/../etc/passwd\"", `log.path = "/srv/../etc/passwd" is not possible`, "below the state directory"},
		{"[log]\npath = \"log/\"", `log.path = "log/" is not possible`, "the path of a file"},
		{"[log]\npath = \"/\"", `log.path = "/" is not possible`, "the path of a file"},
		{"[log]\npath = \".\"", `log.path = "." is not possible`, "the path of a file"},
		{"[log]\npath = \"a\\nb\"", `log.path = "a\nb" is not possible`, "the path of a file"},
		{"[daemon]\nloops = 65", "daemon.loops = 65 is not possible", "between 1 and 64, or 0"},
		{"[daemon]\nloops = -1", "daemon.loops = -1 is not possible", "between 1 and 64, or 0"},
		{"[daemon]\nlog_level = \"loud\"", `daemon.log_level = "loud" is not possible`, `"debug", "info", "warn" or "error"`},
		{"[log.own]\nmatch = \"a\"", "log.own is a section that can be repeated", "write [[log.own]]"},
		{"[[log.own]]\nmatsch = \"a\"", `unknown key "log.own[0].matsch"`, `did you mean "log.own.match"?`},
		{"[[log.own]]\nage = 7", "log.own[0].age has a value of the wrong type", "a duration in quotes"},
		{"[[log.own]]\nsize = \"2MiB\"", `log.own[0].match = "" is not possible`, "a channel's name or a pattern"},
		{"[[log.own]]\nmatch = \"" + strings.Repeat("a", 129) + "\"", "log.own[0].match = ", "at most 128 bytes"},
		{"[[log.own]]\nmatch = \"a\"\n[[log.own]]\nmatch = \"a\"", `log.own[1].match = "a" is not possible`, "another [[log.own]] above has it already"},
		{strings.Repeat("[[log.own]]\nmatch = \"a\"\n", 16), "log.own is there 16 times", "write it at most 15 times"},
		{"[[log.own]]\nmatch = \"a\"\nsize = \"1KiB\"", `log.own[0].size = "1KiB" is not possible`, "between 1MiB and 1TiB"},
		{"[[log.own]]\nmatch = \"a\"\nsize = \"1TiB\"", `log.own[0].size = "1TiB" is not possible`, "all logs together have at most 1TiB"},
		{"[[log.own]]\nmatch = \"a\"\nage = \"1ms\"", `log.own[0].age = "1ms" is not possible`, `"0s" for no limit`},
		{"[[log.own]]\nmatch = \"a\"\nage = \"-1s\"", `log.own[0].age = "-1s" is not possible`, `"0s" for no limit`},
		{"[[log.own]]\nmatch = \"a\"\nchannels = 16777217", "log.own[0].channels = 16777217 is not possible", "as log.channels"},
		{"[[log.own]]\nmatch = \"a\"\npath = \"../log\"", `log.own[0].path = "../log" is not possible`, "the path of a file"},
		{"[log]\npath = \"log\"\n[[log.own]]\nmatch = \"a\"\npath = \"log\"", `log.own[0].path = "log" is not possible`, `log.path is "log"`},
		{"[[log.own]]\nmatch = \"a\"\npath = \"log.new\"\n[[log.own]]\nmatch = \"b\"\npath = \"log\"", `log.own[1].path = "log" is not possible`, `log.own[0].path is "log.new"`},
		{"[[log.own]]\nmatch = \"a\"\npath = \"log\"\n[[log.own]]\nmatch = \"b\"\npath = \"log.old9\"", `log.own[1].path = "log.old9" is not possible`, `log.own[0].path is "log"`},
		{"[[publish.allow]]\npublish = [\"*\"]", "publish.allow[0] is for nobody", `users = ["*"] for whoever can open the socket`},
		{"[[publish.allow]]\nusers = []\ngroups = []\npublish = [\"*\"]", "publish.allow[0] is for nobody", `write users = ["…"]`},
		{"[[publish.allow]]\nusers = [\"root\"]", "publish.allow[0] allows nothing", `write publish = ["…"]`},
		{"[[publish.allow]]\nusers = [\"root\"]\npublish = []\nsubscribe = []", "publish.allow[0] allows nothing", `subscribe = ["…"]`},
		{"[[publish.allow]]\nusers = [\"*\"]\npublish = [\"*\"]\n[[publish.allow]]\nusers = [\"root\", \"no-such-user\"]\npublish = [\"*\"]",
			`publish.allow[1].users = "no-such-user" is not possible`, "there is no such user in /etc/passwd: mend the name, add the user first, or write its number"},
		{"[[publish.allow]]\ngroups = [\"no-such-group\"]\npublish = [\"*\"]",
			`publish.allow[0].groups = "no-such-group" is not possible`, "there is no such group in /etc/group: mend the name, add the group first, or write its number"},
		{"[[publish.allow]]\ngroups = [\"*\"]\npublish = [\"*\"]", `publish.allow[0].groups = "*" is not possible`, "no such group"},
		{"[[publish.allow]]\nusers = [\"\"]\npublish = [\"*\"]", `publish.allow[0].users = "" is not possible`, "no such user"},
		{"[[publish.allow]]\nusers = [\"ro\\not\"]\npublish = [\"*\"]", `publish.allow[0].users = "ro\not" is not possible`, "no such user"},
		{"[[publish.allow]]\nusers = [\"4294967295\"]\npublish = [\"*\"]", `publish.allow[0].users = "4294967295" is not possible`, "not one of a user or group"},
		{"[[publish.allow]]\nusers = [\"4294967296\"]\npublish = [\"*\"]", `publish.allow[0].users = "4294967296" is not possible`, "no such user"},
		{"[[publish.allow]]\nusers = [\"-1\"]\npublish = [\"*\"]", `publish.allow[0].users = "-1" is not possible`, "no such user"},
		{"[[publish.allow]]\nusers = [\"0\"]\npublish = [\"\"]", `publish.allow[0].publish = "" is not possible`, "a channel's name or a pattern"},
		{"[[publish.allow]]\nusers = [\"0\"]\nsubscribe = [\"" + long + long + "\"]", `publish.allow[0].subscribe = "x`, "of at most 256 bytes"},
		{"[[channel]]\nframes = \"text\"", `channel[0].match = "" is not possible`, "a channel's name or a pattern"},
		{"[[channel]]\nmatch = \"a\"\nframes = \"utf8\"", `channel[0].frames = "utf8" is not possible`, `"auto", "text" or "binary"`},
	} {
		c := Defaults()
		err := c.decode(test.file)
		if err == nil {
			t.Errorf("%q is taken, want %s", test.file, test.text)
			continue
		}
		if !strings.Contains(err.Text, test.text) || !strings.Contains(err.Hint, test.hint) || (test.hint == "") != (err.Hint == "") {
			t.Errorf("%q\n got %s\n     %s\nwant %s\n     %s", test.file, err.Text, err.Hint, test.text, test.hint)
		}
		if strings.Contains(err.Text, "\n") || strings.Contains(err.Hint, "\n") {
			t.Errorf("%q: the error has more than two lines: %q, %q", test.file, err.Text, err.Hint)
		}
	}
}

func TestValuesAreRead(t *testing.T) {
	c := Defaults()
	err := c.decode(`
channel = [{match = "a", frames = "text"}]
[websocket]
listen = ["127.0.0.1:0", "[::1]:80", "/run/a.sock"]
mode = "600"
ping = "0s"
max_message = 200
greeting = "websocket is running"
[publish]
max_message = "64 KiB"
datagram_channel = ""
[log]
size = 1048576
`)
	if err != nil {
		t.Fatal(err)
	}
	want := Defaults()
	want.Channel = []ChannelConfig{{Match: "a", Frames: "text"}}
	want.WebSocket.Listen = []string{"127.0.0.1:0", "[::1]:80", "/run/a.sock"}
	want.WebSocket.Mode, want.WebSocket.Ping, want.WebSocket.MaxMessage = 0o600, 0, 200
	want.WebSocket.Greeting = "websocket is running"
	want.Publish.MaxMessage, want.Publish.DatagramChannel = 64<<10, ""
	want.Log.Size = 1 << 20
	if !reflect.DeepEqual(c, want) {
		t.Errorf("got\n%+v\nwant\n%+v", c, want)
	}
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "wscast.toml")
	var bad *ConfigError

	_, err := Load(file)
	if want := file + ": no such file or directory\ngive the file with --config; without it the defaults hold"; err == nil || err.Error() != want || !errors.As(err, &bad) {
		t.Errorf("a missing file: %v, want %s", err, want)
	}
	if _, err := Load(dir); err == nil || err.Error() != dir+": is a directory" {
		t.Errorf("a directory: %v", err)
	}
	writeFile(t, file, "[websocket]\npnig = \"1s\"\n")
	_, err = Load(file)
	if want := file + ": unknown key \"websocket.pnig\"\ndid you mean \"websocket.ping\"?"; err == nil || err.Error() != want {
		t.Errorf("a wrong key: %v, want %s", err, want)
	}
	writeFile(t, file, "")
	if c, err := Load(file); err != nil || !reflect.DeepEqual(c, Defaults()) {
		t.Errorf("an empty file: %+v, %v", c, err)
	}
}

func writeFile(t testing.TB, name, text string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestDefaultsAreGood(t *testing.T) {
	c := Defaults()
	if err := c.Check(); err != nil {
		t.Error(err)
	}
}

func TestFixedKeysAreNamedAndKept(t *testing.T) {
	old, c := Defaults(), Defaults()
	c.WebSocket.Listen = []string{"127.0.0.1:1"}
	c.WebSocket.Greeting = "hello"
	c.Publish.Datagrams = nil // as good as empty
	c.Publish.MaxConnections = 1
	c.Daemon.Loops = 2
	if got, want := FixedChanges(old, c), []string{"websocket.listen", "publish.max_connections", "daemon.loops"}; !slices.Equal(got, want) {
		t.Errorf("fixed changes: %q, want %q", got, want)
	}
	c.keepFixed(old)
	want := Defaults()
	want.WebSocket.Greeting = "hello"
	if !reflect.DeepEqual(c, want) {
		t.Errorf("after keepFixed\n%+v\nwant\n%+v", c, want)
	}
}

func TestFramesOfTheFirstSectionThatMatches(t *testing.T) {
	c := Defaults()
	c.Channel = []ChannelConfig{{Match: "camera/door", Frames: "text"}, {Match: "camera/*", Frames: "binary"}, {Match: "log/?", Frames: ""}, {Match: "log/*", Frames: "text"}}
	for channel, want := range map[string]string{
		"camera/door": "text", "camera/hall": "binary", "camera": "auto", "log/1": "auto", "log/12": "text", "other": "auto",
	} {
		if got := c.frames(channel); got != want {
			t.Errorf("frames of %s: %s, want %s", channel, got, want)
		}
	}
}

func FuzzDecode(f *testing.F) {
	text, examples := shipped(f)
	f.Add(text)
	for _, example := range examples {
		text = strings.Replace(text, example, example[1:], 1)
	}
	f.Add(text)
	f.Add("[[channel]]\nmatch=\"*\"\n[[channel]]\nframes=1")
	f.Add("channel=[{match=\"a\"},1]")
	f.Add("[[publish.allow]]\nusers=[\"0\",\"*\"]\npublish=[\"[a\"]\n[[publish.allow]]\ngroups=[\"root\"]\nsubscribe=[\"\\u0000\"]")
	f.Add("publish={allow=[{users=[\"x\"]},1]}")
	f.Add("[websocket]\nping=1e400\nmode=\"\\u0000\"\n[websocket.ping]\n")
	f.Fuzz(func(t *testing.T, text string) {
		c := Defaults()
		if err := c.decode(text); err != nil {
			if err.Text == "" || strings.ContainsAny(err.Text+err.Hint, "\n\r") || !utf8.ValidString(err.Text) {
				t.Errorf("error of more or less than two lines: %q, %q", err.Text, err.Hint)
			}
			return
		}
		if err := c.Check(); err != nil {
			t.Errorf("taken, and then refused: %v", err)
		}
		if !utf8.ValidString(c.WebSocket.Greeting) {
			t.Errorf("the greeting is no text: %q", c.WebSocket.Greeting)
		}
	})
}

func FuzzUnits(f *testing.F) {
	for _, text := range []string{"64MiB", "0", "1TiB", "0660", "7", "25s", "1h2m3.5s", "-1ns", "9223372036854775807"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		var s, s2 Size
		if s.UnmarshalText([]byte(text)) == nil && (s < 0 || s2.UnmarshalText([]byte(s.String())) != nil || s2 != s) {
			t.Errorf("size %q: %d, then %d", text, s, s2)
		}
		var d, d2 Duration
		if d.UnmarshalText([]byte(text)) == nil && (d2.UnmarshalText([]byte(d.String())) != nil || d2 != d) {
			t.Errorf("duration %q: %d, then %d", text, d, d2)
		}
		var m, m2 Mode
		if m.UnmarshalText([]byte(text)) == nil && (m > 0o777 || m2.UnmarshalText([]byte(m.String())) != nil || m2 != m) {
			t.Errorf("mode %q: %o, then %o", text, m, m2)
		}
	})
}
