package daemon

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/coreos/go-systemd/v22/journal"
)

// NewLogger logs to the journal, every attribute a field of its own (WSCAST_CLIENT=), if standard error is connected
// to it; to standard error as text otherwise.
func NewLogger(level slog.Leveler) *slog.Logger {
	if connected, err := journal.StderrIsJournalStream(); connected && err == nil && journal.Enabled() {
		return slog.New(&journalHandler{level: level, send: journal.Send, fallback: os.Stderr})
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
}

// journalHandler writes records with the journal's native protocol. The message is the whole line, as the text handler
// would have it; the fields are there to search by.
type journalHandler struct {
	level    slog.Leveler
	send     func(message string, priority journal.Priority, fields map[string]string) error
	fallback io.Writer // when the journal cannot be reached
	attrs    []slog.Attr
	prefix   string // of groups
}

func (h *journalHandler) Enabled(_ context.Context, level slog.Level) bool {
	return level >= h.level.Level()
}

func (h *journalHandler) Handle(_ context.Context, r slog.Record) error {
	line := journalLine{fields: map[string]string{"SYSLOG_IDENTIFIER": "wscastd"}}
	line.text.WriteString(r.Message)
	for _, a := range h.attrs {
		line.add("", a)
	}
	r.Attrs(func(a slog.Attr) bool {
		line.add(h.prefix, a)
		return true
	})
	if err := h.send(line.text.String(), priority(r.Level), line.fields); err != nil {
		// systemd takes the number for the priority (sd-daemon(3)).
		_, err = fmt.Fprintf(h.fallback, "<%d>%s\n", priority(r.Level), line.text.String())
		return err
	}
	return nil
}

// journalLine is what a record becomes.
type journalLine struct {
	text   strings.Builder
	fields map[string]string
}

func (l *journalLine) add(prefix string, a slog.Attr) {
	if a.Equal(slog.Attr{}) {
		return // as slog.Handler says
	}
	v := a.Value.Resolve()
	if v.Kind() == slog.KindGroup {
		if a.Key != "" {
			prefix += a.Key + "."
		}
		for _, member := range v.Group() {
			l.add(prefix, member)
		}
		return
	}
	value := v.String()
	l.fields[fieldName(prefix+a.Key)] = value
	// As in the text handler, so that a value cannot look like something else.
	if value == "" || !utf8.ValidString(value) ||
		strings.ContainsFunc(value, func(r rune) bool { return r == ' ' || r == '"' || r == '=' || !unicode.IsPrint(r) }) {
		value = strconv.Quote(value)
	}
	l.text.WriteString(" " + prefix + a.Key + "=" + value)
}

func (h *journalHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	with := *h
	with.attrs = append([]slog.Attr(nil), h.attrs...)
	for _, a := range attrs {
		a.Key = h.prefix + a.Key
		with.attrs = append(with.attrs, a)
	}
	return &with
}

func (h *journalHandler) WithGroup(name string) slog.Handler {
	with := *h
	if name != "" {
		with.prefix += name + "."
	}
	return &with
}

// longestField is what journald takes (JOURNAL_NATIVE_PROTOCOL: field names of 64 bytes at most).
const longestField = 64

// fieldName makes a field of the journal out of a key: capital letters, digits and underscores (systemd.journal-fields(7)).
func fieldName(key string) string {
	name := "WSCAST_" + strings.Map(func(r rune) rune {
		switch {
		case 'a' <= r && r <= 'z':
			return r - 'a' + 'A'
		case 'A' <= r && r <= 'Z', '0' <= r && r <= '9':
			return r
		}
		return '_'
	}, key)
	return name[:min(len(name), longestField)]
}

func priority(level slog.Level) journal.Priority {
	switch {
	case level >= slog.LevelError:
		return journal.PriErr
	case level >= slog.LevelWarn:
		return journal.PriWarning
	case level >= slog.LevelInfo:
		return journal.PriInfo
	}
	return journal.PriDebug
}
