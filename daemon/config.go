package daemon

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/url"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/BurntSushi/toml"

	"wscast/daemon/loop"
	"wscast/daemon/msglog"
	"wscast/ipc"
)

// Config is the configuration file: its keys, their defaults (Defaults) and what they can be (check). The shipped file
// etc/wscast.toml has every key at its default, which a test holds it to. A key marked fixed takes effect at a start
// only, all others at a reload too.
type Config struct {
	WebSocket WebSocketConfig `toml:"websocket"`
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
	Origins          []string `toml:"origins"`
	Greeting         string   `toml:"greeting"`
	Ping             Duration `toml:"ping"`
	HandshakeTimeout Duration `toml:"handshake_timeout"`
	CloseTimeout     Duration `toml:"close_timeout"`
	MaxMessage       Size     `toml:"max_message"`
	Slow             string   `toml:"slow"`
}

// PublishConfig is about publishers.
type PublishConfig struct {
	Listen          []string `toml:"listen" fixed:"yes"`
	Mode            Mode     `toml:"mode" fixed:"yes"`
	MaxMessage      Size     `toml:"max_message"`
	MaxConnections  int      `toml:"max_connections" fixed:"yes"`
	ReplyTimeout    Duration `toml:"reply_timeout" fixed:"yes"`
	Datagrams       []string `toml:"datagrams" fixed:"yes"`
	DatagramChannel string   `toml:"datagram_channel" fixed:"yes"`
}

// LogConfig is about the message log.
type LogConfig struct {
	Size     Size `toml:"size" fixed:"yes"`
	Channels int  `toml:"channels" fixed:"yes"`
}

// DaemonConfig is about the process.
type DaemonConfig struct {
	Loops    int    `toml:"loops" fixed:"yes"`
	LogLevel string `toml:"log_level"`
}

// ChannelConfig is about the channels whose names match; the first section that matches a channel holds.
type ChannelConfig struct {
	Match  string `toml:"match"`
	Frames string `toml:"frames"`
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
			HandshakeTimeout: Duration(10 * time.Second),
			CloseTimeout:     Duration(5 * time.Second),
			MaxMessage:       4 << 10,
			Slow:             slowClose,
		},
		Publish: PublishConfig{
			Listen:          []string{DefaultPublishSocket},
			Mode:            0o660,
			MaxMessage:      1 << 20,
			MaxConnections:  10_000,
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
	meta, err := toml.Decode(text, c)
	var parse toml.ParseError
	switch {
	case errors.As(err, &parse):
		return &ConfigError{Text: fmt.Sprintf("line %d: %s", parse.Position.Line, parse.Message), Hint: hintFor(parse.Message)}
	case err != nil:
		return &ConfigError{Text: strings.TrimPrefix(err.Error(), "toml: ")}
	}
	if unknown := meta.Undecoded(); len(unknown) > 0 {
		key := unknown[0].String()
		e := &ConfigError{Text: fmt.Sprintf("unknown key %q", key)}
		if near := nearest(key, Keys()); near != "" {
			e.Hint = fmt.Sprintf("did you mean %q?", near)
		} else {
			e.Hint = "wscast.toml(5) lists the keys; a key belongs below its [section]"
		}
		return e
	}
	return c.check()
}

func hintFor(message string) string {
	if strings.Contains(message, "expected value") {
		return `strings, durations and sizes stand in quotes: ping = "25s"`
	}
	return ""
}

// check says what is wrong with the first bad value.
func (c *Config) check() *ConfigError {
	bad := func(key string, value any, hint string, args ...any) *ConfigError {
		return &ConfigError{Text: fmt.Sprintf("%s = %v is not possible", key, show(value)), Hint: fmt.Sprintf(hint, args...)}
	}
	w, p, l, d := &c.WebSocket, &c.Publish, &c.Log, &c.Daemon
	switch {
	case len(w.Listen) == 0:
		return bad("websocket.listen", w.Listen, "name at least one address, such as \"127.0.0.1:7311\" or the path of a Unix socket")
	case !strings.HasPrefix(w.Path, "/") || w.Path == "/" || strings.HasSuffix(w.Path, "/") || (&url.URL{Path: w.Path}).EscapedPath() != w.Path:
		return bad("websocket.path", w.Path, "it begins with a slash, does not end with one, and has no characters that a URL would escape")
	case len(w.Greeting) > 4<<10:
		return bad("websocket.greeting", len(w.Greeting), "a greeting has at most 4096 bytes")
	case w.Ping != 0 && (w.Ping < Duration(50*time.Millisecond) || w.Ping > Duration(time.Hour)):
		return bad("websocket.ping", w.Ping, "between \"50ms\" and \"1h\", or \"0s\" for no pings; below the proxy_read_timeout of nginx, which is 60s by default")
	case w.HandshakeTimeout < Duration(50*time.Millisecond) || w.HandshakeTimeout > Duration(time.Hour):
		return bad("websocket.handshake_timeout", w.HandshakeTimeout, "between \"50ms\" and \"1h\"")
	case w.CloseTimeout < Duration(50*time.Millisecond) || w.CloseTimeout > Duration(time.Hour):
		return bad("websocket.close_timeout", w.CloseTimeout, "between \"50ms\" and \"1h\"")
	case w.MaxMessage < 125 || w.MaxMessage > loop.MaxMessage:
		return bad("websocket.max_message", w.MaxMessage, "between 125 bytes and %s", Size(loop.MaxMessage))
	case w.Slow != slowClose && w.Slow != slowSkip:
		return bad("websocket.slow", w.Slow, "\"close\" or \"skip\"")
	case len(p.Listen) == 0:
		return bad("publish.listen", p.Listen, "name at least one path, such as %q", DefaultPublishSocket)
	case p.MaxMessage < 1 || p.MaxMessage > l.Size/8-16:
		return bad("publish.max_message", p.MaxMessage, "at most an eighth of log.size, which is %s", l.Size)
	case p.MaxConnections < 1:
		return bad("publish.max_connections", p.MaxConnections, "at least 1")
	case p.ReplyTimeout < Duration(50*time.Millisecond):
		return bad("publish.reply_timeout", p.ReplyTimeout, "at least \"50ms\"")
	case p.DatagramChannel != "" && !ipc.ValidChannel(p.DatagramChannel):
		return bad("publish.datagram_channel", p.DatagramChannel, "the name of a channel, or \"\" for the first line of each datagram")
	case l.Size < msglog.MinSize || l.Size > msglog.MaxSize:
		return bad("log.size", l.Size, "between %s and %s", Size(msglog.MinSize), Size(msglog.MaxSize))
	case l.Channels < 1 || l.Channels > msglog.MaxChannels:
		return bad("log.channels", l.Channels, "between 1 and %d", msglog.MaxChannels)
	case d.Loops < 0 || d.Loops > msglog.MaxReaders:
		return bad("daemon.loops", d.Loops, "between 1 and %d, or 0 for one for each processor", msglog.MaxReaders)
	}
	for _, origin := range w.Origins {
		if _, err := parseOrigin(origin); err != nil {
			return bad("websocket.origins", origin, "%s", err)
		}
	}
	if _, err := level(d.LogLevel); err != nil {
		return bad("daemon.log_level", d.LogLevel, "\"debug\", \"info\", \"warn\" or \"error\"")
	}
	for i, ch := range c.Channel {
		switch {
		case ch.Match == "":
			return bad(fmt.Sprintf("channel[%d].match", i), ch.Match, "a channel's name or a pattern, such as \"camera/*\"")
		case !slices.Contains([]string{"", framesAuto, framesText, framesBinary}, ch.Frames):
			return bad(fmt.Sprintf("channel[%d].frames", i), ch.Frames, "\"auto\", \"text\" or \"binary\"")
		}
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

// Keys are the names of all keys, in the order of the file; those of the repeated section [[channel]] as channel.match.
func Keys() []string {
	var keys []string
	eachKey(Defaults(), func(key string, _ reflect.Value, _ bool) { keys = append(keys, key) })
	for f := range fields(reflect.TypeFor[ChannelConfig]()) {
		keys = append(keys, "channel."+f.Tag.Get("toml"))
	}
	return keys
}

// FixedChanges are the keys in which two configurations differ but which take effect at a start only.
func FixedChanges(old, new Config) []string {
	values := make(map[string]any)
	eachKey(old, func(key string, v reflect.Value, _ bool) { values[key] = v.Interface() })
	var changed []string
	eachKey(new, func(key string, v reflect.Value, fixed bool) {
		if fixed && !reflect.DeepEqual(values[key], v.Interface()) {
			changed = append(changed, key)
		}
	})
	return changed
}

// keepFixed puts the values that hold until the next start into a configuration that is about to be used.
func (c *Config) keepFixed(old Config) {
	to, from := reflect.ValueOf(c).Elem(), reflect.ValueOf(old)
	for s := range to.NumField() {
		if to.Field(s).Kind() != reflect.Struct {
			continue
		}
		for f := range to.Field(s).NumField() {
			if to.Field(s).Type().Field(f).Tag.Get("fixed") != "" {
				to.Field(s).Field(f).Set(from.Field(s).Field(f))
			}
		}
	}
}

func fields(t reflect.Type) func(yield func(reflect.StructField) bool) {
	return func(yield func(reflect.StructField) bool) {
		for i := range t.NumField() {
			if !yield(t.Field(i)) {
				return
			}
		}
	}
}

func eachKey(c Config, do func(key string, v reflect.Value, fixed bool)) {
	v := reflect.ValueOf(c)
	for section := range fields(v.Type()) {
		if section.Type.Kind() != reflect.Struct {
			continue
		}
		for f := range fields(section.Type) {
			do(section.Tag.Get("toml")+"."+f.Tag.Get("toml"),
				v.FieldByIndex(append(slices.Clone(section.Index), f.Index...)), f.Tag.Get("fixed") != "")
		}
	}
}

// nearest is the known key that is at most a few typing errors away, or has the right name in the wrong section.
func nearest(key string, known []string) string {
	name := key[strings.LastIndexByte(key, '.')+1:]
	best, distance := "", 4
	for _, k := range known {
		d := editDistance(key, k)
		if strings.HasSuffix(k, "."+name) {
			d = min(d, 1)
		}
		if d < distance {
			best, distance = k, d
		}
	}
	return best
}

// editDistance counts the insertions, deletions and replacements between two words (Levenshtein).
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(row[j]+1, row[j+1]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}

// Duration is written as "25s", "1m30s", "200ms".
type Duration time.Duration

// UnmarshalText reads what time.ParseDuration reads.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil {
		return fmt.Errorf("%q is not a duration: write \"25s\", \"1m30s\" or \"200ms\"", text)
	}
	*d = Duration(v)
	return nil
}

func (d Duration) String() string { return time.Duration(d).String() }

// Size is a number of bytes, written as "64MiB", "4KiB", or a plain number.
type Size int64

var units = []struct {
	name  string
	bytes int64
}{{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40}}

// UnmarshalText reads a size.
func (s *Size) UnmarshalText(text []byte) error {
	number, factor := string(text), int64(1)
	for _, u := range units {
		if rest, ok := strings.CutSuffix(number, u.name); ok {
			number, factor = strings.TrimSpace(rest), u.bytes
			break
		}
	}
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil || n < 0 || n > math.MaxInt64/factor {
		return fmt.Errorf("%q is not a size: write \"64MiB\", \"4KiB\" or a number of bytes", text)
	}
	*s = Size(n * factor)
	return nil
}

func (s Size) String() string {
	for _, u := range slices.Backward(units) {
		if n := int64(s); n >= u.bytes && n%u.bytes == 0 {
			return strconv.FormatInt(n/u.bytes, 10) + u.name
		}
	}
	return strconv.FormatInt(int64(s), 10)
}

// Mode is the mode of a Unix-domain socket, written in octal as "0660".
type Mode uint32

// UnmarshalText reads a mode.
func (m *Mode) UnmarshalText(text []byte) error {
	n, err := strconv.ParseUint(string(text), 8, 32)
	if err != nil || n > 0o777 {
		return fmt.Errorf("%q is not the mode of a socket: write \"0660\"", text)
	}
	*m = Mode(n)
	return nil
}

func (m Mode) String() string { return fmt.Sprintf("%#04o", uint32(m)) }

// loopConfig is what the event loops need.
func (c *Config) loopConfig() loop.Config {
	return loop.Config{
		Ping:             time.Duration(c.WebSocket.Ping),
		HandshakeTimeout: time.Duration(c.WebSocket.HandshakeTimeout),
		CloseTimeout:     time.Duration(c.WebSocket.CloseTimeout),
		MaxMessage:       int(c.WebSocket.MaxMessage),
		SkipSlow:         c.WebSocket.Slow == slowSkip,
	}
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
