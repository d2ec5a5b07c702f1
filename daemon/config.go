package daemon

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/BurntSushi/toml"

	"wscast/daemon/frame"
	"wscast/daemon/loop"
	"wscast/daemon/msglog"
	"wscast/ipc"
)

// Config is the configuration file: its keys, their defaults (Defaults) and what they can be (check). The shipped file
// etc/wscast.toml has every key at its default, which a test holds it to. A key marked fixed takes effect at a start
// only, all others at a reload too.
type Config struct {
	WebSocket WebSocketConfig `toml:"websocket"`
	Auth      AuthConfig      `toml:"auth"`
	Publish   PublishConfig   `toml:"publish"`
	Log       LogConfig       `toml:"log"`
	Daemon    DaemonConfig    `toml:"daemon"`
	Channel   []ChannelConfig `toml:"channel"`
}

// WebSocketConfig is about clients.
type WebSocketConfig struct {
	Listen           []string `toml:"listen" fixed:"yes"`
	Mode             Mode     `toml:"mode" fixed:"yes"`
	Path             string   `toml:"path"`
	Script           string   `toml:"script"`
	Origins          []string `toml:"origins"`
	Greeting         string   `toml:"greeting"`
	Ping             Duration `toml:"ping"`
	MaxClients       int      `toml:"max_clients"`
	MaxPerAddress    int      `toml:"max_per_address"`
	MaxRequest       Size     `toml:"max_request"`
	HandshakeTimeout Duration `toml:"handshake_timeout"`
	CloseTimeout     Duration `toml:"close_timeout"`
	MaxMessage       Size     `toml:"max_message"`
	FrameRate        int      `toml:"frame_rate"`
	Gather           Duration `toml:"gather"`
	Compression      bool     `toml:"compression"`
	MaxSubscriptions int      `toml:"max_subscriptions"`
	UpstreamRate     int      `toml:"upstream_rate"`
	Slow             string   `toml:"slow"`
}

// AuthConfig is about who may connect.
type AuthConfig struct {
	Method         string   `toml:"method"`
	Header         string   `toml:"header"`
	ChannelsHeader string   `toml:"channels_header"`
	PublishHeader  string   `toml:"publish_header"`
	Proxies        []string `toml:"proxies"`
	Key            string   `toml:"key"`
	Cookie         string   `toml:"cookie"`
}

// PublishConfig is about publishers.
type PublishConfig struct {
	Listen          []string `toml:"listen" fixed:"yes"`
	Mode            Mode     `toml:"mode" fixed:"yes"`
	MaxMessage      Size     `toml:"max_message"`
	Memory          Size     `toml:"memory"`
	MaxConnections  int      `toml:"max_connections" fixed:"yes"`
	Rate            int      `toml:"rate"`
	CommandTimeout  Duration `toml:"command_timeout" fixed:"yes"`
	ReplyTimeout    Duration `toml:"reply_timeout" fixed:"yes"`
	Datagrams       []string `toml:"datagrams" fixed:"yes"`
	DatagramChannel string   `toml:"datagram_channel" fixed:"yes"`

	Allow []AllowConfig `toml:"allow"`
}

// LogConfig is about the message log.
type LogConfig struct {
	Size     Size   `toml:"size" fixed:"yes"`
	Channels int    `toml:"channels" fixed:"yes"`
	Path     string `toml:"path" fixed:"yes"`

	Own []OwnLogConfig `toml:"own" fixed:"yes"`
}

// OwnLogConfig is a log for the channels whose names match; a channel has that of the first section that matches it, and that
// of [log] if none does.
type OwnLogConfig struct {
	Match    string   `toml:"match"`
	Size     Size     `toml:"size"` // 0: as in [log], as with Channels
	Age      Duration `toml:"age"`
	Channels int      `toml:"channels"`
	Path     string   `toml:"path"`
}

// DaemonConfig is about the process.
type DaemonConfig struct {
	Loops    int    `toml:"loops" fixed:"yes"`
	LogLevel string `toml:"log_level"`
}

// ChannelConfig is about the channels whose names match; the first section that matches a channel holds.
type ChannelConfig struct {
	Match    string `toml:"match"`
	Frames   string `toml:"frames"`
	Upstream string `toml:"upstream"`
}

// Defaults is the configuration without a file.
func Defaults() Config {
	return Config{
		WebSocket: WebSocketConfig{
			Listen:           []string{"127.0.0.1:7311"},
			Mode:             0o660,
			Path:             "/websocket",
			Origins:          []string{},
			Ping:             Duration(25 * time.Second),
			MaxRequest:       8 << 10,
			HandshakeTimeout: Duration(10 * time.Second),
			CloseTimeout:     Duration(5 * time.Second),
			MaxMessage:       4 << 10,
			MaxSubscriptions: 100,
			UpstreamRate:     10,
			Slow:             slowClose,
		},
		Auth: AuthConfig{Method: authNone, Header: "X-Auth-User", Proxies: []string{"127.0.0.0/8", "::1"}},
		Publish: PublishConfig{
			Listen:          []string{DefaultPublishSocket},
			Mode:            0o660,
			MaxMessage:      1 << 20,
			MaxConnections:  10_000,
			CommandTimeout:  Duration(30 * time.Second),
			ReplyTimeout:    Duration(10 * time.Second),
			Datagrams:       []string{},
			DatagramChannel: "default",
		},
		Log:    LogConfig{Size: 64 << 20, Channels: 65536},
		Daemon: DaemonConfig{LogLevel: "info"},
	}
}

// DefaultPublishSocket is where publishers find the daemon. The linker can set another one.
var DefaultPublishSocket = "/run/wscast/publish.sock"

const (
	slowClose = "close"
	slowSkip  = "skip"

	framesAuto   = "auto"
	framesText   = "text"
	framesBinary = "binary"
)

// ConfigError is a configuration that cannot be used. The program's exit code for it is 78 (EX_CONFIG of sysexits.h,
// which systemd shows as CONFIG).
type ConfigError struct {
	Path string // of the file
	Text string // the key and what is wrong with it
	Hint string // what to do, may be empty
}

func (e *ConfigError) Error() string {
	text := e.Text
	if e.Path != "" {
		text = e.Path + ": " + text
	}
	if e.Hint != "" {
		text += "\n" + e.Hint
	}
	return text
}

// Load reads a configuration file over the defaults. Every error is a *ConfigError.
func Load(path string) (Config, error) {
	c := Defaults()
	text, err := os.ReadFile(path)
	if err != nil {
		hint := ""
		if errors.Is(err, os.ErrNotExist) {
			hint = "give the file with --config; without it the defaults hold"
		}
		var pathError *os.PathError
		if errors.As(err, &pathError) {
			err = pathError.Err
		}
		return c, &ConfigError{path, err.Error(), hint}
	}
	if err := c.decode(string(text)); err != nil {
		err.Path = path
		return c, err
	}
	return c, nil
}

func (c *Config) decode(text string) *ConfigError {
	var tree map[string]any
	var parse toml.ParseError
	switch _, err := toml.Decode(text, &tree); {
	case errors.As(err, &parse):
		return &ConfigError{Text: fmt.Sprintf("line %d: %s", parse.Position.Line, oneLine(parse.Message)), Hint: hintFor(parse.Message)}
	case err != nil:
		return &ConfigError{Text: oneLine(strings.TrimPrefix(err.Error(), "toml: "))}
	}
	if err := checkShape(tree); err != nil {
		return err
	}
	switch _, err := toml.Decode(text, c); {
	case errors.As(err, &parse): // of UnmarshalText
		return &ConfigError{Text: fmt.Sprintf("line %d: %s = %s", parse.Position.Line, parse.LastKey, parse.Message)}
	case err != nil:
		return &ConfigError{Text: oneLine(strings.TrimPrefix(err.Error(), "toml: "))}
	}
	return c.check()
}

func oneLine(text string) string { return strings.Join(strings.Fields(text), " ") }

func hintFor(message string) string {
	switch {
	case strings.Contains(message, "expected value"), strings.Contains(message, "expected a digit"), strings.Contains(message, "Invalid float"),
		strings.Contains(message, "expected newline"), strings.Contains(message, "expected a top-level item"), strings.Contains(message, "leading zeroes"):
		return `texts, durations, sizes and modes stand in quotes: ping = "25s"`
	case strings.Contains(message, "already been defined"):
		return "write each key once, and each [section] once"
	}
	return ""
}

// Limits of the configuration's values that are not those of other packages.
const (
	shortestTime = Duration(50 * time.Millisecond)
	longestTime  = Duration(time.Hour)
	longestAge   = Duration(10 * 365 * 24 * time.Hour)
	// maxGreeting: the greeting goes out with the answer to the handshake, which has to fit into an empty send buffer.
	maxGreeting = 4 << 10
	// maxRate is more than one connection can publish.
	maxRate = 10_000_000
	// leastDerived is what publish.memory is at least, if it is 0.
	leastDerived = 256 << 20
	// maxPublish is what package ipc takes at most, as Redis does (proto-max-bulk-len).
	maxPublish = 512 << 20
	// maxPath is what fits into sun_path with its zero byte (unix(7)).
	maxPath = 107
)

// Check says what is wrong with the first bad value, as a *ConfigError.
func (c *Config) Check() error {
	if err := c.check(); err != nil {
		return err
	}
	return nil
}

func (c *Config) check() *ConfigError {
	bad := func(key string, value any, hint string, args ...any) *ConfigError {
		return &ConfigError{Text: fmt.Sprintf("%s = %v is not possible", key, show(value)), Hint: fmt.Sprintf(hint, args...)}
	}
	impossible := func(d Duration) bool { return d < shortestTime || d > longestTime }
	w, p, l, d := &c.WebSocket, &c.Publish, &c.Log, &c.Daemon
	largest := min(Size(maxPublish), l.Size/8-frame.MaxHeader) // as msglog.ErrTooLarge has it
	switch {
	case len(w.Listen) == 0:
		return bad("websocket.listen", w.Listen, "name at least one address, such as \"127.0.0.1:7311\" or the path of a Unix socket")
	case !strings.HasPrefix(w.Path, "/") || w.Path == "/" || path.Clean(w.Path) != w.Path || (&url.URL{Path: w.Path}).EscapedPath() != w.Path:
		return bad("websocket.path", w.Path, "it begins with a slash, does not end with one, and has no characters that a URL would escape")
	case w.Script != "" && (!strings.HasPrefix(w.Script, "/") || !strings.HasSuffix(w.Script, ".js") || path.Clean(w.Script) != w.Script ||
		(&url.URL{Path: w.Script}).EscapedPath() != w.Script || w.Script == w.Path || strings.HasPrefix(w.Script, w.Path+"/")):
		return bad("websocket.script", w.Script, "a path such as \"/wscast.js\" that is not below websocket.path, or nothing")
	case len(w.Greeting) > maxGreeting:
		return &ConfigError{Text: fmt.Sprintf("websocket.greeting has %d bytes", len(w.Greeting)), Hint: fmt.Sprintf("a greeting has at most %d bytes", maxGreeting)}
	case w.Ping != 0 && impossible(w.Ping):
		return bad("websocket.ping", w.Ping,
			"between \"50ms\" and \"1h\", or \"0s\" for no pings; below half the proxy_read_timeout of nginx, which is 60s by default")
	case w.MaxClients < 0 || w.MaxClients > maxRecords:
		return bad("websocket.max_clients", w.MaxClients, "clients, at most %d, or 0 for as many as there are descriptors for", maxRecords)
	case w.MaxPerAddress < 0 || w.MaxPerAddress > maxRecords:
		return bad("websocket.max_per_address", w.MaxPerAddress, "clients, at most %d, or 0 for any number", maxRecords)
	case w.MaxRequest < 1<<10 || w.MaxRequest > loop.MaxRequest:
		return bad("websocket.max_request", w.MaxRequest, "between 1KiB and %s", Size(loop.MaxRequest))
	case w.FrameRate < 0 || w.FrameRate > maxRate:
		return bad("websocket.frame_rate", w.FrameRate, "frames in a second, at most %d, or 0 for any number", maxRate)
	case impossible(w.HandshakeTimeout):
		return bad("websocket.handshake_timeout", w.HandshakeTimeout, "between \"50ms\" and \"1h\"")
	case impossible(w.CloseTimeout):
		return bad("websocket.close_timeout", w.CloseTimeout, "between \"50ms\" and \"1h\"")
	case w.Gather != 0 && (w.Gather < Duration(time.Millisecond) || w.Gather > Duration(time.Second)):
		return bad("websocket.gather", w.Gather, "between \"1ms\" and \"1s\", or \"0s\" for not at all")
	case w.UpstreamRate < 0 || w.UpstreamRate > 1_000_000:
		return bad("websocket.upstream_rate", w.UpstreamRate, "messages a second, or 0 for no limit")
	case w.MaxSubscriptions < 1 || w.MaxSubscriptions > loop.MostSubscriptions:
		return bad("websocket.max_subscriptions", w.MaxSubscriptions, "between 1 and %d", loop.MostSubscriptions)
	case w.MaxMessage < 125 || w.MaxMessage > loop.MaxMessage:
		return bad("websocket.max_message", w.MaxMessage, "between 125 bytes and %s", Size(loop.MaxMessage))
	case w.Slow != slowClose && w.Slow != slowSkip:
		return bad("websocket.slow", w.Slow, "\"close\" or \"skip\"")
	case !slices.Contains([]string{authNone, authHeader, authJWT}, c.Auth.Method):
		return bad("auth.method", c.Auth.Method, "\"none\", \"header\" or \"jwt\"")
	case c.Auth.Method == authHeader && !validHeader(c.Auth.Header):
		return bad("auth.header", c.Auth.Header, "the name of a header that the proxy sets, such as \"X-Auth-User\"")
	case c.Auth.ChannelsHeader != "" && !validHeader(c.Auth.ChannelsHeader):
		return bad("auth.channels_header", c.Auth.ChannelsHeader, "the name of a header, or nothing")
	case c.Auth.PublishHeader != "" && !validHeader(c.Auth.PublishHeader):
		return bad("auth.publish_header", c.Auth.PublishHeader, "the name of a header, or nothing")
	case c.Auth.Method == authJWT && c.Auth.Key == "":
		return bad("auth.key", c.Auth.Key, "the file with the secret or the public key that tokens are checked with")
	case c.Auth.Cookie != "" && !validHeader(c.Auth.Cookie):
		return bad("auth.cookie", c.Auth.Cookie, "the name of a cookie, or nothing")
	case len(p.Listen) == 0:
		return bad("publish.listen", p.Listen, "name at least one path, such as %q", DefaultPublishSocket)
	case p.MaxConnections < 1:
		return bad("publish.max_connections", p.MaxConnections, "at least 1")
	case p.Rate < 0 || p.Rate > maxRate:
		return bad("publish.rate", p.Rate, "messages a second, at most %d, or 0 for any number", maxRate)
	case impossible(p.CommandTimeout):
		return bad("publish.command_timeout", p.CommandTimeout, "between \"50ms\" and \"1h\"")
	case impossible(p.ReplyTimeout):
		return bad("publish.reply_timeout", p.ReplyTimeout, "between \"50ms\" and \"1h\"")
	case p.DatagramChannel != "" && !ipc.ValidChannel(p.DatagramChannel):
		return bad("publish.datagram_channel", p.DatagramChannel,
			"the name of a channel, 1 to %d letters, digits and . _ - : /, or \"\" for the first line of each datagram", ipc.MaxChannel)
	case l.Size < msglog.MinSize || l.Size > msglog.MaxSize:
		return bad("log.size", l.Size, "between %s and %s", Size(msglog.MinSize), Size(msglog.MaxSize))
	case l.Channels < 1 || l.Channels > msglog.MaxChannels:
		return bad("log.channels", l.Channels, "between 1 and %d", msglog.MaxChannels)
	case !possiblePath(l.Path):
		return bad("log.path", l.Path, pathHint)
	case p.MaxMessage < 1 || p.MaxMessage > largest:
		return bad("publish.max_message", p.MaxMessage, "at most %d bytes: an eighth of log.size, which is %s, less a frame's header, and %s at the most",
			largest, l.Size, Size(maxPublish))
	case p.Memory != 0 && (p.Memory < Size(ipc.LeastMemory(int(p.MaxMessage))) || p.Memory > msglog.MaxSize):
		return bad("publish.memory", p.Memory, "at least %d bytes with this publish.max_message, at most %s, or 0 for four times publish.max_message and at least %s",
			ipc.LeastMemory(int(p.MaxMessage)), Size(msglog.MaxSize), Size(leastDerived))
	case d.Loops < 0 || d.Loops > msglog.MaxReaders:
		return bad("daemon.loops", d.Loops, "between 1 and %d, or 0 for one for each processor", msglog.MaxReaders)
	}
	for _, address := range w.Listen {
		if err := checkAddress(address); err != nil {
			return bad("websocket.listen", address, "%s", err)
		}
	}
	for key, paths := range map[string][]string{"publish.listen": p.Listen, "publish.datagrams": p.Datagrams} {
		for _, path := range paths {
			if err := checkPath(path); err != nil {
				return bad(key, path, "%s", err)
			}
		}
	}
	if _, err := allowRules(p.Allow); err != nil {
		return err
	}
	for _, origin := range w.Origins {
		if _, err := parseOrigin(origin); err != nil {
			return bad("websocket.origins", origin, "%s", err)
		}
	}
	if _, err := level(d.LogLevel); err != nil {
		return bad("daemon.log_level", d.LogLevel, "\"debug\", \"info\", \"warn\" or \"error\"")
	}
	if err := l.checkOwn(); err != nil {
		return err
	}
	for i, ch := range c.Channel {
		switch {
		case ch.Match == "":
			return bad(fmt.Sprintf("channel[%d].match", i), ch.Match, "a channel's name or a pattern, such as \"camera/*\"")
		case !slices.Contains([]string{"", upstreamOff, upstreamLocal, upstreamClients, upstreamBoth}, ch.Upstream):
			return bad(fmt.Sprintf("channel[%d].upstream", i), ch.Upstream, "\"off\", \"local\", \"clients\" or \"both\"")
		case !slices.Contains([]string{"", framesAuto, framesText, framesBinary}, ch.Frames):
			return bad(fmt.Sprintf("channel[%d].frames", i), ch.Frames, "\"auto\", \"text\" or \"binary\"")
		}
	}
	return nil
}

const pathHint = "the path of a file: below the state directory, such as \"log\", or absolute, such as \"/srv/wscast/log\"; or \"\" for memory"

// possiblePath tells whether a log can be there, as far as the path itself says, or in memory.
func possiblePath(file string) bool {
	return file == "" || filepath.IsLocal(strings.TrimLeft(file, "/")) && path.Clean(file) == file && file != "." && !strings.ContainsFunc(file, unicode.IsControl)
}

// checkOwn is about the sections [[log.own]].
func (l *LogConfig) checkOwn() *ConfigError {
	if len(l.Own) > msglog.MaxRings-1 {
		return &ConfigError{Text: fmt.Sprintf("log.own is there %d times", len(l.Own)),
			Hint: fmt.Sprintf("write it at most %d times: each is one more descriptor that the service manager keeps", msglog.MaxRings-1)}
	}
	total := l.Size
	for i := range l.Own {
		o := l.own(i)
		bad := func(key string, value any, hint string, args ...any) *ConfigError {
			return &ConfigError{Text: fmt.Sprintf("log.own[%d].%s = %s is not possible", i, key, show(value)), Hint: fmt.Sprintf(hint, args...)}
		}
		switch total += o.Size; {
		case o.Match == "" || len(o.Match) > msglog.MaxMatch || strings.ContainsFunc(o.Match, unicode.IsControl):
			return bad("match", o.Match, "a channel's name or a pattern of at most %d bytes, such as \"camera/*\"", msglog.MaxMatch)
		case slices.ContainsFunc(l.Own[:i], func(other OwnLogConfig) bool { return other.Match == o.Match }):
			return bad("match", o.Match, "another [[log.own]] above has it already")
		case o.Size < msglog.MinSize || o.Size > msglog.MaxSize:
			return bad("size", o.Size, "between %s and %s; without it, as log.size", Size(msglog.MinSize), Size(msglog.MaxSize))
		case total > msglog.MaxSize:
			return bad("size", o.Size, "all logs together have at most %s", Size(msglog.MaxSize))
		case o.Age != 0 && (o.Age < Duration(time.Second) || o.Age > longestAge):
			return bad("age", o.Age, "between \"1s\" and %q, or \"0s\" for no limit", longestAge)
		case o.Channels < 1 || o.Channels > msglog.MaxChannels:
			return bad("channels", o.Channels, "between 1 and %d; without it, as log.channels", msglog.MaxChannels)
		case !possiblePath(o.Path):
			return bad("path", o.Path, pathHint)
		}
		// A file is made beside its path, with .new at its end, and one that is of no use is moved to one with .old.
		for n, other := range append([]string{l.Path}, l.ownPaths(i)...) {
			whose := "log.path"
			if n > 0 {
				whose = fmt.Sprintf("log.own[%d].path", n-1)
			}
			if o.Path != "" && (o.Path == other || isBeside(o.Path, other) || isBeside(other, o.Path)) {
				return bad("path", o.Path, "%s is %q: each log has a file of its own, and .new, .old and .old2 to .old9 at the end of its name are for it too", whose, other)
			}
		}
	}
	return nil
}

// own is a section with what it takes from [log].
func (l *LogConfig) own(i int) OwnLogConfig {
	o := l.Own[i]
	o.Size, o.Channels = cmp.Or(o.Size, l.Size), cmp.Or(o.Channels, l.Channels)
	return o
}

// ownPaths are the paths of the first n sections.
func (l *LogConfig) ownPaths(n int) (paths []string) {
	for _, o := range l.Own[:n] {
		paths = append(paths, o.Path)
	}
	return paths
}

// isBeside tells whether a name is one that package msglog uses beside a log's path.
func isBeside(name, path string) bool {
	rest, ok := strings.CutPrefix(name, path)
	if !ok || path == "" {
		return false
	}
	number, old := strings.CutPrefix(rest, ".old")
	return rest == ".new" || old && (number == "" || len(number) == 1 && number >= "2")
}

// checkAddress takes host:port, or the path of a Unix-domain socket, which has a slash in it.
func checkAddress(address string) error {
	if strings.Contains(address, "/") {
		return checkPath(address)
	}
	_, port, err := net.SplitHostPort(address)
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil {
		return errors.New("write host:port, such as \"127.0.0.1:7311\" or \"[::1]:7311\", or the path of a Unix socket with a slash in it")
	}
	return nil
}

// checkPath takes no abstract address (unix(7)), which begins with @: it has no mode, so everybody could connect.
func checkPath(path string) error {
	switch {
	case path == "" || path[0] == '@' || strings.HasSuffix(path, "/") || strings.ContainsFunc(path, unicode.IsControl):
		return fmt.Errorf("write the path of a Unix socket, such as %q", DefaultPublishSocket)
	case len(path) > maxPath:
		return fmt.Errorf("the path of a Unix socket has at most %d bytes, this one has %d", maxPath, len(path))
	}
	return nil
}

func show(v any) string {
	switch v := v.(type) {
	case string:
		return strconv.Quote(v)
	case Duration, Size, Mode:
		return fmt.Sprintf("%q", v)
	}
	return fmt.Sprint(v)
}

func level(name string) (slog.Level, error) {
	var l slog.Level
	if !slices.Contains([]string{"debug", "info", "warn", "error"}, name) {
		return 0, errors.New("unknown level")
	}
	return l, l.UnmarshalText([]byte(name))
}

// loopConfig is what the event loops need.
func (c *Config) loopConfig() loop.Config {
	return loop.Config{
		Ping:             time.Duration(c.WebSocket.Ping),
		HandshakeTimeout: time.Duration(c.WebSocket.HandshakeTimeout),
		CloseTimeout:     time.Duration(c.WebSocket.CloseTimeout),
		MaxMessage:       int(c.WebSocket.MaxMessage),
		SkipSlow:         c.WebSocket.Slow == slowSkip,
		Gather:           time.Duration(c.WebSocket.Gather),
		MaxSubscriptions: c.WebSocket.MaxSubscriptions,
		Upstream:         c.anyUpstream(),
		UpstreamRate:     c.WebSocket.UpstreamRate,
		MaxClients:       c.WebSocket.MaxClients,
		MaxPerAddress:    c.WebSocket.MaxPerAddress,
		FrameRate:        c.WebSocket.FrameRate,
		MaxRequest:       int(c.WebSocket.MaxRequest),
	}
}

// memory is publish.memory, or what it is when it is 0.
func (c *PublishConfig) memory() int64 {
	if c.Memory != 0 {
		return int64(c.Memory)
	}
	return max(leastDerived, 4*int64(c.MaxMessage), ipc.LeastMemory(int(c.MaxMessage)))
}

// frames is what frames the messages of a channel are to be.
func (c *Config) frames(channel string) string {
	for _, section := range c.Channel {
		if ipc.Match(section.Match, channel) {
			return cmp.Or(section.Frames, framesAuto)
		}
	}
	return framesAuto
}
