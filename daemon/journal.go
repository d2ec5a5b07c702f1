package daemon

import (
	"context"
	"io"
	"log/slog"
	"os"
	"strconv"
	"strings"

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

// journalHandler writes records with the journal's native protocol.
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
	fields := make(map[string]string)
	var text strings.Builder
	text.WriteString(r.Message)
	add := func(prefix string, a slog.Attr) {
		value := a.Value.Resolve().String()
		fields[fieldName(prefix+a.Key)] = value
		// As in the text handler, so that a value cannot look like something else.
		if strings.ContainsFunc(value, func(r rune) bool { return r <= ' ' || r == '"' || r == '=' || r == 0x7f }) || value == "" {
			value = strconv.Quote(value)
		}
		text.WriteString(" " + prefix + a.Key + "=" + value)
	}
	for _, a := range h.attrs {
		add("", a)
	}
	r.Attrs(func(a slog.Attr) bool {
		add(h.prefix, a)
		return true
	})
	if err := h.send(text.String(), priority(r.Level), fields); err != nil {
		_, err = io.WriteString(h.fallback, text.String()+"\n")
		return err
	}
	return nil
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

// fieldName makes a field of the journal out of a key: capital letters, digits and underscores (systemd.journal-fields(7)).
func fieldName(key string) string {
	return "WSCAST_" + strings.Map(func(r rune) rune {
		switch {
		case 'a' <= r && r <= 'z':
			return r - 'a' + 'A'
		case 'A' <= r && r <= 'Z', '0' <= r && r <= '9':
			return r
		}
		return '_'
	}, key)
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
