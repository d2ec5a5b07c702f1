package daemon

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"maps"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/coreos/go-systemd/v22/journal"
)

// entry is what the journal is sent.
type entry struct {
	message  string
	priority journal.Priority
	fields   map[string]string
}

// newJournal logs to a list of entries.
func newJournal(level slog.Level) (*slog.Logger, *[]entry) {
	var entries []entry
	send := func(message string, priority journal.Priority, fields map[string]string) error {
		entries = append(entries, entry{message, priority, fields})
		return nil
	}
	return slog.New(&journalHandler{level: level, send: send, fallback: io.Discard}), &entries
}

func TestJournalEntry(t *testing.T) {
	for name, test := range map[string]struct {
		log     func(*slog.Logger)
		message string
		fields  map[string]string
	}{
		"no attributes": {func(l *slog.Logger) { l.Info("ready") }, "ready", nil},
		"attributes": {func(l *slog.Logger) { l.Info("client open", "client", 7, "channel", "a/b", "after", 3*time.Second) },
			"client open client=7 channel=a/b after=3s", map[string]string{"WSCAST_CLIENT": "7", "WSCAST_CHANNEL": "a/b", "WSCAST_AFTER": "3s"}},
		"an error": {func(l *slog.Logger) { l.Info("bad", "error", errors.New("it broke")) },
			`bad error="it broke"`, map[string]string{"WSCAST_ERROR": "it broke"}},
		"what looks like a field": {func(l *slog.Logger) { l.Info("bad", "name", "x y=1") },
			`bad name="x y=1"`, map[string]string{"WSCAST_NAME": "x y=1"}},
		"lines": {func(l *slog.Logger) { l.Info("bad", "name", "x\nPRIORITY=0\nMESSAGE=all is lost") },
			`bad name="x\nPRIORITY=0\nMESSAGE=all is lost"`, map[string]string{"WSCAST_NAME": "x\nPRIORITY=0\nMESSAGE=all is lost"}},
		"terminal escapes": {func(l *slog.Logger) { l.Info("bad", "name", "\x1b[31m\u009b\u2028") },
			`bad name="\x1b[31m\u009b\u2028"`, map[string]string{"WSCAST_NAME": "\x1b[31m\u009b\u2028"}},
		"bytes":   {func(l *slog.Logger) { l.Info("bad", "name", "\xff") }, `bad name="\xff"`, map[string]string{"WSCAST_NAME": "\xff"}},
		"quotes":  {func(l *slog.Logger) { l.Info("bad", "name", `"`) }, `bad name="\""`, map[string]string{"WSCAST_NAME": `"`}},
		"nothing": {func(l *slog.Logger) { l.Info("bad", "name", "") }, `bad name=""`, map[string]string{"WSCAST_NAME": ""}},
		"With": {func(l *slog.Logger) { l.With("socket", "a").With("b", 1).Info("m", "c", 2) },
			"m socket=a b=1 c=2", map[string]string{"WSCAST_SOCKET": "a", "WSCAST_B": "1", "WSCAST_C": "2"}},
		"groups": {func(l *slog.Logger) {
			l.With("a", 1).WithGroup("g").With("b", 2).WithGroup("").WithGroup("h").Info("m", "c", 3)
		},
			"m a=1 g.b=2 g.h.c=3", map[string]string{"WSCAST_A": "1", "WSCAST_G_B": "2", "WSCAST_G_H_C": "3"}},
		"values that are groups": {func(l *slog.Logger) {
			l.Info("m", slog.Group("peer", "pid", 1, slog.Group("", "uid", 2)), slog.Group("empty"), slog.Attr{})
		},
			"m peer.pid=1 peer.uid=2", map[string]string{"WSCAST_PEER_PID": "1", "WSCAST_PEER_UID": "2"}},
		"LogValuer": {func(l *slog.Logger) { l.Info("m", "v", valuer{}) }, "m v.a=1", map[string]string{"WSCAST_V_A": "1"}},
		"long keys": {func(l *slog.Logger) { l.Info("m", strings.Repeat("k", 100), 1) },
			"m " + strings.Repeat("k", 100) + "=1", map[string]string{"WSCAST_" + strings.Repeat("K", 57): "1"}},
		"odd keys": {func(l *slog.Logger) { l.Info("m", "a-b.ü", 1) }, "m a-b.ü=1", map[string]string{"WSCAST_A_B__": "1"}},
	} {
		log, entries := newJournal(slog.LevelInfo)
		test.log(log)
		if len(*entries) != 1 {
			t.Errorf("%s: %d entries", name, len(*entries))
			continue
		}
		want := map[string]string{"SYSLOG_IDENTIFIER": "wscastd"}
		maps.Copy(want, test.fields)
		if e := (*entries)[0]; e.message != test.message || !maps.Equal(e.fields, want) {
			t.Errorf("%s:\n got %q %q\nwant %q %q", name, e.message, e.fields, test.message, want)
		}
	}
}

type valuer struct{}

func (valuer) LogValue() slog.Value { return slog.GroupValue(slog.Int("a", 1)) }

// Two loggers made of one do not share what comes later.
func TestJournalLoggersAreIndependent(t *testing.T) {
	log, entries := newJournal(slog.LevelInfo)
	parent := log.With("a", 1).With("b", 2).With("c", 3) // an array of four has room for one more
	one, two := parent.With("d", 4), parent.With("e", 5)
	one.Info("one")
	two.Info("two")
	if (*entries)[0].message != "one a=1 b=2 c=3 d=4" || (*entries)[1].message != "two a=1 b=2 c=3 e=5" {
		t.Errorf("%+v", *entries)
	}
}

func TestJournalPriorities(t *testing.T) {
	log, entries := newJournal(slog.LevelDebug)
	log.Debug("d")
	log.Info("i")
	log.Warn("w")
	log.Error("e")
	log.Log(context.Background(), slog.LevelError+4, "worse")
	want := []journal.Priority{journal.PriDebug, journal.PriInfo, journal.PriWarning, journal.PriErr, journal.PriErr}
	for i, e := range *entries {
		if e.priority != want[i] {
			t.Errorf("%s has priority %d, want %d", e.message, e.priority, want[i])
		}
	}
	if len(*entries) != len(want) {
		t.Errorf("%d entries, want %d", len(*entries), len(want))
	}

	log, entries = newJournal(slog.LevelWarn)
	log.Info("i")
	log.Warn("w")
	if len(*entries) != 1 || (*entries)[0].message != "w" {
		t.Errorf("at level warn: %+v", *entries)
	}
}

func TestJournalThatCannotBeReached(t *testing.T) {
	var out bytes.Buffer
	send := func(string, journal.Priority, map[string]string) error { return errors.New("no journal") }
	log := slog.New(&journalHandler{level: slog.LevelInfo, send: send, fallback: &out})
	log.Warn("trouble", "name", "a\nb")
	if want := "<4>trouble name=\"a\\nb\"\n"; out.String() != want {
		t.Errorf("standard error has %q, want %q", out.String(), want)
	}
}

// Without the journal on standard error it is text, and the level can be changed later.
func TestLogToATerminal(t *testing.T) {
	t.Setenv("JOURNAL_STREAM", "1:1") // of somebody else
	stderr := os.Stderr
	defer func() { os.Stderr = stderr }()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	os.Stderr = w
	var level slog.LevelVar
	log := NewLogger(&level)
	log.Debug("too much")
	level.Set(slog.LevelDebug)
	log.Debug("enough", "name", "a b")
	w.Close()
	text, _ := io.ReadAll(r)
	if got := string(text); strings.Count(got, "\n") != 1 || !strings.Contains(got, `level=DEBUG msg=enough name="a b"`) {
		t.Errorf("standard error has %q", got)
	}
}
