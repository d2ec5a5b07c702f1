package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"wscast/daemon/failpoint"
	"wscast/daemon/msglog"
	"wscast/daemon/survive"
	"wscast/ipc"
)

// The log and the table are opened together or made together, and are stored under names that the next process finds them by. The log
// can be of several rings, one for each [[log.own]] and the one of [log]: which is which is in their headers and not in their names, so that sections
// can be added, removed and put in another order.

// logNames begin the names of the log in the fd store: in turn, so that a log of other rings, or another size, is there before the old one is removed.
var logNames = [2]string{"log", "log.2"}

// logName is the name of a ring in the store.
func logName(set, ring int) string {
	if ring == 0 {
		return logNames[set]
	}
	return logNames[set] + ownName + strconv.Itoa(ring)
}

const ownName = ".own."

// logSet tells which set of names one is of, if it is that of a ring.
func logSet(name string) (set int, ok bool) {
	for set, begin := range logNames {
		rest, ok := strings.CutPrefix(name, begin)
		if ok && rest == "" {
			return set, true
		}
		number, own := strings.CutPrefix(rest, ownName)
		if n, err := strconv.Atoi(number); ok && own && err == nil && n > 0 && name == logName(set, n) {
			return set, true
		}
	}
	return 0, false
}

func isLog(name string) bool {
	_, ok := logSet(name)
	return ok
}

func isTable(name string) bool { return name == survive.TableName || name == survive.MovedName }

// eachStored goes through what the manager is to have, with its names: the table comes last.
func (s *survival) eachStored(do func(name string, f *os.File) error) (err error) {
	for ring := range s.log.Rings() {
		err = errors.Join(err, do(logName(s.logs, ring), s.log.File(ring)))
	}
	return errors.Join(err, do(s.tableName, s.keep.Table.File()))
}

// enough is how many descriptors the store needs room for.
func (s *survival) enough() int { return survive.Enough + 2*(len(s.wanted.Rings)-1) }

// open opens the table and the log that belong together. It returns why what was found cannot be used.
//
// The table comes first, since it has the count of those who have failed: what has made them fail may be in the log.
// A process that was killed while it rearranged the log has left two tables, each with its log.
func (s *survival) open(tables, logs []*os.File) (bad error) {
	var opened []*survive.Table
	tables, logs = once(tables), once(logs)
	found := slices.Clone(logs)
	defer func() {
		for _, f := range slices.Concat(tables, logs) {
			_ = msglog.Unlock(f) // or whoever opens its file has to wait for the manager to close its descriptor
			f.Close()
		}
		for _, t := range opened {
			if t != s.keep.Table {
				_ = t.Close()
			}
		}
	}()
	names := make(map[*survive.Table]string)
	tables = slices.DeleteFunc(tables, func(f *os.File) bool {
		t, err := survive.OpenTable(f)
		if err != nil {
			bad = errors.Join(bad, err)
			return false
		}
		names[t] = f.Name()
		opened = append(opened, t)
		return true // it is t's now
	})
	if len(opened) == 0 {
		if len(logs) > 0 {
			bad = errors.Join(bad, errors.New("there is a log, but no connection table"))
		}
		return bad
	}
	s.keep.Table, s.tableName = opened[0], names[opened[0]]
	for _, t := range opened {
		s.failed = max(s.failed, t.Begin())
	}
	if s.failed >= tooOften {
		return fmt.Errorf("the last %d processes that took it over crashed within %s", s.failed, trusted)
	}
	failpoint.Pass("open.table")
	var making sync.WaitGroup
	making.Go(s.keep.Table.MakeRoom) // while the log is looked through
	defer making.Wait()
	for set := range logNames {
		var files []*os.File
		for _, f := range logs {
			if is, _ := logSet(f.Name()); is == set {
				files = append(files, f)
			}
		}
		if len(files) == 0 || s.log != nil {
			continue
		}
		l, err := msglog.Open(files...)
		if err != nil {
			bad = errors.Join(bad, err)
			continue
		}
		logs = slices.DeleteFunc(logs, func(f *os.File) bool { return slices.Contains(files, f) }) // they are l's now
		at := slices.IndexFunc(opened, func(t *survive.Table) bool {
			return t.Epoch() == l.Epoch() && t.Arrangement() == l.Arrangement()
		})
		if at < 0 {
			bad = errors.Join(bad, errors.New("the connection table is about another log"), l.Close())
			continue
		}
		s.log, s.logs = l, set
		s.keep.Table, s.tableName = opened[at], names[opened[at]]
	}
	if s.log == nil {
		return errors.Join(bad, errors.New("there is a connection table, but not its log"))
	}
	failpoint.Pass("open.log")
	// Others of that kind are what a process that was killed has not come to remove.
	for _, f := range found {
		if set, _ := logSet(f.Name()); set != s.logs {
			_ = s.keeper.Remove(f.Name())
		}
	}
	for _, t := range opened {
		if t != s.keep.Table {
			_ = s.keeper.Remove(names[t])
		}
	}
	return nil
}

// once closes what is there twice: not every manager sees that it has a file already, as systemd does.
func once(files []*os.File) (different []*os.File) {
	for _, f := range files {
		is, err := f.Stat()
		if err == nil && slices.ContainsFunc(different, func(other *os.File) bool {
			was, err := other.Stat()
			return err == nil && other.Name() == f.Name() && os.SameFile(was, is)
		}) {
			f.Close()
			continue
		}
		different = append(different, f)
	}
	return different
}

// arrange finds out which rings there are to be, and where their files. By hand there is nobody to lose, so what cannot be is an error, here
// and in load; the service serves whatever happens.
func (s *survival) arrange(o *Options) error {
	c := &o.Config.Log
	s.wanted = &msglog.Arrangement{
		Rings:   []msglog.Options{{Size: int64(c.Size), Channels: c.Channels, Path: c.Path}},
		Matches: ipc.Match[string],
	}
	for i := range c.Own {
		own := c.own(i)
		s.wanted.Rings = append(s.wanted.Rings, msglog.Options{
			Size: int64(own.Size), Channels: own.Channels, Path: own.Path, Match: own.Match, Age: time.Duration(own.Age),
		})
	}
	dir, _, _ := strings.Cut(os.Getenv("STATE_DIRECTORY"), ":") // systemd.exec(5): a list, of the first one here
	for i := range s.wanted.Rings {
		file := &s.wanted.Rings[i].Path
		switch {
		case *file == "" || path.IsAbs(*file):
		case dir != "":
			*file = path.Join(dir, *file)
		case s.byHand():
			return &ConfigError{
				Text: fmt.Sprintf("%s = %q is relative, and there is no state directory", pathKey(i), *file),
				Hint: "write an absolute path; or start the daemon by a unit with StateDirectory=, as the shipped one is",
			}
		default:
			*file = ""
			s.notAtPath(i, fmt.Errorf("%s is relative, and there is no state directory: the unit has no StateDirectory=", pathKey(i)))
		}
	}
	return nil
}

// pathKey is the key of the path of a ring.
func pathKey(ring int) string {
	if ring == 0 {
		return "log.path"
	}
	return fmt.Sprintf("log.own[%d].path", ring-1)
}

// notAtPath is for a service of which a log is not where it was to be.
func (s *survival) notAtPath(ring int, cause error) {
	if s.noPath == "" {
		s.noPath = pathKey(ring) + " cannot be used: " + cause.Error()
	}
	s.journal.Error(pathKey(ring)+" cannot be used: messages may not survive a reboot", "cause", cause)
}

// pathOf is where the log that there is has the channels of a pattern, "" if it is in memory or nowhere.
func (s *survival) pathOf(match string) string {
	for _, u := range s.log.Usage() {
		if u.Match == match {
			return u.Path
		}
	}
	return ""
}

// rearrange brings the log to the rings, sizes and places that are configured, and the table along with it. What is new is stored when it is complete,
// and the old removed then: nothing is appended meanwhile, and a process that is killed in between leaves one of the two, or both.
func (s *survival) rearrange() {
	was := s.log.Usage()
	for {
		if s.noPath != "" && slices.ContainsFunc(s.wanted.Rings, func(o msglog.Options) bool { return o.Path == "" && s.pathOf(o.Match) != "" }) {
			s.log.Keep(s.wanted) // it has a file, and is not to lose it because of an error
			return
		}
		next, moves, aside, err := s.rearranged()
		for _, path := range aside {
			s.journal.Warn("another file was in a log's place and was moved aside", "moved_to", path)
		}
		var at *msglog.RingError
		switch {
		case err == nil && next == s.log:
			return
		case err == nil:
			failpoint.Pass("resize.copied")
			if err = s.replace(next, moves); err != nil {
				s.journal.Error("the log stays as it is until the next start: what it was to be could not be stored", "error", err)
				s.log.Keep(s.wanted)
				return
			}
			reportCopy(s.journal, was, next)
			return
		case errors.As(err, &at) && s.wanted.Rings[at.Ring].Path != "" && s.wanted.Rings[at.Ring].Path != s.pathOf(s.wanted.Rings[at.Ring].Match):
			s.notAtPath(at.Ring, err)
			if s.log.Rings() == 1 && len(s.wanted.Rings) == 1 {
				return
			}
			s.wanted.Rings[at.Ring].Path = ""
		default:
			s.journal.Warn("the log stays as it is until the service is stopped and started", "cause", err)
			s.log.Keep(s.wanted)
			return
		}
	}
}

// rearranged is the log in the rings that are wanted, or the log itself. moves is nil where nothing has moved.
func (s *survival) rearranged() (next *msglog.Log, moves survive.Moves, aside []string, err error) {
	if s.log.Arrangement() == 0 && len(s.wanted.Rings) == 1 {
		next, path, err := s.log.Resized(s.wanted.Rings[0])
		if path != "" {
			aside = []string{path}
		}
		if err != nil {
			err = &msglog.RingError{Ring: 0, Err: err}
		}
		return next, nil, aside, err
	}
	if s.log.Fits(s.wanted) {
		return s.log, nil, nil, nil
	}
	next, m, aside, err := s.log.Rearranged(s.wanted)
	return next, m, aside, err
}

// replace puts a log in the place of the one that there is, and moves the table to it.
func (s *survival) replace(next *msglog.Log, moves survive.Moves) (err error) {
	table, tableName, set := s.keep.Table, s.tableName, 1-s.logs
	if err := s.hasRoom(next.Rings() + 1); err != nil {
		return errors.Join(err, next.Close())
	}
	if moves != nil {
		if table, err = s.keep.Table.Moved(next.Arrangement(), moves); err != nil {
			return errors.Join(err, next.Close())
		}
		if tableName = survive.MovedName; s.tableName == tableName {
			tableName = survive.TableName
		}
	}
	for ring := range next.Rings() {
		err = errors.Join(err, push(s.keeper, logName(set, ring), next.File(ring)))
	}
	failpoint.Pass("resize.pushed")
	if err == nil && table != s.keep.Table {
		err = push(s.keeper, tableName, table.File())
		failpoint.Pass("rearrange.pushed")
	}
	if err != nil {
		for ring := range next.Rings() {
			_ = s.keeper.Remove(logName(set, ring))
		}
		if table != s.keep.Table {
			err = errors.Join(err, s.keeper.Remove(tableName), table.Close())
		}
		return errors.Join(err, next.Close())
	}
	// The table first: one whose log is not there is of no use, and without it the log is not.
	var failed error
	if table != s.keep.Table {
		failed = errors.Join(s.keeper.Remove(s.tableName), s.keep.Table.Close())
		failpoint.Pass("rearrange.removed")
	}
	for ring := range s.log.Rings() {
		failed = errors.Join(failed, s.keeper.Remove(logName(s.logs, ring)))
	}
	failpoint.Pass("resize.removed")
	if failed = errors.Join(failed, s.log.Close()); failed != nil {
		s.journal.Error("the log is another one now, and the one before could not be removed", "error", failed)
	}
	s.log, s.logs, s.keep.Table, s.tableName = next, set, table, tableName
	return nil
}

// hasRoom asks the manager, who would drop without a word what it has no room for, and then what it has is removed.
func (s *survival) hasRoom(n int) error {
	if s.manager == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), managerPatience)
	defer cancel()
	room, err := s.manager.Probe(ctx, 1)
	if err == nil && room < n {
		err = survive.ErrNoRoom
	}
	return err
}

// reportCopy says what has become of each ring.
func reportCopy(log *slog.Logger, was []msglog.Usage, next *msglog.Log) {
	for _, u := range next.Usage() {
		before := slices.IndexFunc(was, func(w msglog.Usage) bool { return w.Match == u.Match })
		attributes := []any{"bytes", u.Size, "channels", u.Places, "messages", u.Messages}
		if u.Match != "" {
			attributes = append(attributes, "match", u.Match)
		}
		if before < 0 {
			log.Info("channels have a log of their own now", append(attributes, "path", place(u.Path))...)
			continue
		}
		what, w := "the log has a new size", &was[before]
		attributes = append(attributes, "messages_before", w.Messages)
		if w.Path != u.Path {
			what = "the log has a new place"
			attributes = append(attributes, "path", place(u.Path), "path_before", place(w.Path))
		} else if w.Size == u.Size && w.Places == u.Places {
			what = "the log has other channels"
		}
		log.Info(what, attributes...)
	}
}

// place is what the log's path is shown as.
func place(path string) string { return cmp.Or(path, "memory") }

// load makes the log, with what its files have of an earlier one.
func (s *survival) load() error {
	if s.failed >= tooOften {
		for i := range s.wanted.Rings {
			if err := s.setAside(i); err != nil {
				return err
			}
		}
	}
	for slices.ContainsFunc(s.wanted.Rings, func(o msglog.Options) bool { return o.Path != "" }) {
		err := s.loadFiles()
		if err == nil {
			return nil
		}
		var at *msglog.RingError
		if !errors.As(err, &at) {
			at = &msglog.RingError{Err: err}
		}
		if s.wanted.Rings[at.Ring].Path == "" {
			return err
		}
		if err := s.inMemory(at.Ring, err); err != nil {
			return err
		}
	}
	var err error
	s.log, err = msglog.CreateAll(s.wanted)
	return err
}

// inMemory has the service make a ring in memory that cannot be at its path. By hand that is an error.
func (s *survival) inMemory(ring int, cause error) error {
	if s.byHand() {
		text, hint, _ := strings.Cut(cause.Error(), "; ")
		return &ConfigError{Text: pathKey(ring) + ": " + strings.TrimPrefix(text, "log: "), Hint: hint}
	}
	s.notAtPath(ring, cause)
	s.wanted.Rings[ring].Path = ""
	return nil
}

// setAside is for a file that may be what makes the daemon crash.
func (s *survival) setAside(ring int) error {
	path := s.wanted.Rings[ring].Path
	if path == "" {
		return nil
	}
	aside, err := msglog.SetAside(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return s.inMemory(ring, err)
	}
	if aside != "" {
		s.journal.Error("the log's file is moved aside, since it may be what makes the daemon crash: the log begins anew", "moved_to", aside)
	}
	return nil
}

func (s *survival) loadFiles() error {
	l, found, err := msglog.LoadAll(s.wanted)
	for i, f := range found {
		if f.Aside != "" {
			s.journal.Error("the file at "+pathKey(i)+" cannot be used and was moved aside: the log begins anew", "cause", f.Cause, "moved_to", f.Aside)
		}
	}
	if err != nil {
		return err
	}
	was := l.Usage()
	for i, f := range found {
		if s.wanted.Rings[i].Path == "" || f.Aside != "" {
			continue
		}
		attributes := []any{"path", was[i].Path, "messages", f.Kept, "newest", was[i].Head}
		if !f.NewEpoch {
			s.journal.Info("the log is there", attributes...)
			continue
		}
		s.journal.Warn("the log was not closed in good order: messages of the last seconds can be missing",
			append(attributes, "cut_newer", f.CutNewer, "cut_older", f.CutOlder)...)
	}
	if l.Arrangement() == 0 {
		next, _, err := l.Resized(s.wanted.Rings[0])
		if err != nil {
			s.journal.Warn("the log keeps its size until the next start", "cause", err)
			next = l
		}
		if next != l {
			if err := l.Close(); err != nil {
				return errors.Join(err, next.Close())
			}
			reportCopy(s.journal, was, next)
		}
		l = next
	}
	s.log = l
	return nil
}

func (s *survival) giveUp(keeper survive.Keeper, stored []string) {
	if s.log != nil {
		for ring := range s.log.Rings() {
			_ = msglog.Unlock(s.log.File(ring))
		}
		_ = s.log.Close()
	}
	if s.keep.Table != nil {
		_ = s.keep.Table.Close()
	}
	for _, name := range stored {
		_ = keeper.Remove(name)
	}
	s.log, s.keep, s.found = nil, survive.Keep{}, nil
}

// makeNew makes what is not there and leaves it with the manager.
func (s *survival) makeNew(keeper survive.Keeper) (err error) {
	if s.log == nil {
		if err = s.load(); err != nil {
			return err
		}
		if s.keep.Table, err = survive.NewTable(maxRecords, s.log.Epoch()); err != nil {
			return err
		}
		s.keep.Table.SetArrangement(s.log.Arrangement())
		s.logs, s.tableName = 0, survive.TableName
		failpoint.Pass("make.made")
		if !s.byHand() {
			s.store()
		}
		s.keep.Table.Begin()
	}
	if s.keep.Lot == nil && !s.byHand() {
		s.keep.Lot = survive.NewLot(keeper, s.keep.Table)
	}
	return nil
}
