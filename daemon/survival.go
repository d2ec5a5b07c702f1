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

	"golang.org/x/sys/unix"

	"wscast/daemon/failpoint"
	"wscast/daemon/frame"
	"wscast/daemon/loop"
	"wscast/daemon/msglog"
	"wscast/daemon/survive"
	"wscast/ipc"
)

// What outlives the process: the log, the connection table and the parked connections are with systemd. There is one way to start, which is to
// take over what is there. With nothing there, or with what cannot be trusted, it is made new.

// logNames are the names of the log in the fd store: in turn, so that a log of another size is there before the old one is removed.
var logNames = [2]string{"log", "log.2"}

func isLog(name string) bool { return slices.Contains(logNames[:], name) }

// isStored tells whether a descriptor of that name is one that a process has left for the next one.
func isStored(name string) bool {
	return isLog(name) || name == survive.TableName || name == survive.ProbeName || survive.IsSegment(name) || survive.IsHanded(name)
}

const (
	noManager = "not started by a service manager"

	// maxRecords is the size of the connection table. It costs address space, and memory only for records that were used.
	maxRecords = 1 << 20
	// trusted is how long a process has to live without a crash for its adoption to have gone well; after tooOften that did not, what is there
	// is held for the cause and given up.
	trusted  = 10 * time.Second
	tooOften = 2
)

// survival is what this process has taken over and leaves behind.
type survival struct {
	manager *survive.Store // nil: none
	keeper  survive.Keeper // manager, or nobody
	log     *msglog.Log
	logName string // in the store
	path    string // of the log, as configured; "" for memory
	noPath  string // why the log is not there; "" when it is
	journal *slog.Logger
	warned  bool // of the log's disk
	failed  int  // adoptions in a row that did not go well
	keep    survive.Keep
	found   []survive.Found
	handed  []survive.Handed // connections of publishers
	took    time.Duration    // to adopt
	room    int              // that watch has found in the store
	stuck   bool             // a loop stands still, and the adoption counts as failed for that
	kick    chan struct{}    // to watch: check now

	mu     sync.Mutex
	stands standing
}

// noKeeper is the keeper when there is none: what is stored goes nowhere.
type noKeeper struct{}

func (noKeeper) Push(string, int) error  { return nil }
func (noKeeper) Again(string, int) error { return nil }
func (noKeeper) Remove(string) error     { return nil }

// takeOver finds out what there is to take over, and does it up to the connections, which the loops adopt.
func takeOver(o *Options) (s *survival, err error) {
	s = &survival{journal: o.Log, room: survive.Enough, kick: make(chan struct{}, 1)}
	stored := o.Sockets.stored
	o.Sockets.stored = nil
	if err := s.findManager(stored); err != nil {
		return nil, err
	}
	var keeper survive.Keeper = noKeeper{}
	if s.manager != nil {
		keeper = s.manager
	}
	s.keeper = keeper
	if err := s.findPath(o); err != nil {
		return nil, err
	}
	var logs, tables, segments, handed []*os.File
	for _, f := range stored {
		switch name := f.Name(); {
		case isLog(name):
			logs = append(logs, f)
		case name == survive.TableName:
			tables = append(tables, f)
		case survive.IsSegment(name):
			segments = append(segments, f)
		case survive.IsHanded(name):
			handed = append(handed, f)
		case name == survive.ProbeName:
			_ = keeper.Remove(name)
			f.Close()
		default:
			o.Log.Warn("a stored descriptor is given up: no name of this version, perhaps of a later one", "name", name)
			survive.Discard(keeper, f)
		}
	}
	bad := s.open(tables, logs)
	switch {
	case s.keep.Table == nil || s.failed > tooOften: // or to give them up in good order has failed as well
		if len(segments) > 0 {
			bad = errors.Join(bad, errors.New("there are connections, and nothing that says whose"))
			survive.CloseAll(keeper, segments)
		}
	default:
		if s.keep.Lot, s.found, err = survive.Recover(keeper, s.keep.Table, segments); err != nil {
			o.Log.Error("not all that was parked could be taken over", "error", err)
		}
	}
	if bad != nil {
		o.Log.Error("starting clean: clients are closed and come back", "cause", bad, "clients", len(s.found))
		if s.keep.Lot != nil {
			s.keep.Lot.GiveUp(s.found, frame.AppendClose(nil, frame.CloseServiceRestart, loop.RestartReason))
		}
		s.giveUp(keeper)
	}
	if s.log != nil {
		s.resize(o)
	}
	if s.handed, err = survive.Received(keeper, handed); err != nil {
		o.Log.Error("publishers are closed and have to come back", "error", err)
	}
	if s.log == nil { // their states speak of another log
		s.closeHanded()
	}
	return s, s.makeNew(o, keeper)
}

func (s *survival) closeHanded() {
	for _, h := range s.handed {
		_ = unix.Close(h.FD)
	}
	s.handed = nil
}

// resume gives the publishers' connections to the server.
func (s *survival) resume(server *ipc.Server, log *slog.Logger) {
	resumed := 0
	for _, h := range s.handed {
		if err := server.Resume(h.FD, h.State); err != nil {
			log.Warn("a publisher could not be taken over", "error", err)
			continue
		}
		resumed++
	}
	if len(s.handed) > 0 {
		log.Info("publishers taken over", "resumed", resumed, "lost", len(s.handed)-resumed)
	}
	s.handed = nil
}

// hand leaves the publishers' connections to the next process.
func (s *survival) hand(suspended []ipc.Suspended, log *slog.Logger) {
	if len(suspended) == 0 {
		return
	}
	handed := make([]survive.Handed, len(suspended))
	for i, c := range suspended {
		handed[i] = survive.Handed(c)
	}
	if left, err := survive.Hand(s.keeper, handed); left > 0 || err != nil {
		log.Error("publishers are closed and have to come back", "count", left, "error", err)
	}
}

// findManager: where something was stored there is a store, and clients wait, so nobody asks now how much room it has.
func (s *survival) findManager(stored []*os.File) (err error) {
	var held []string
	for _, f := range stored {
		held = append(held, f.Name())
	}
	if s.manager, err = survive.OpenStore(held); err != nil {
		return err
	}
	switch {
	case s.manager == nil:
		s.stands.off = noManager
		s.journal.Debug("clients will not survive a restart", "cause", noManager) // who does that knows
	case !slices.ContainsFunc(held, func(name string) bool { return name != survive.ProbeName }):
		ctx, cancel := context.WithTimeout(context.Background(), managerPatience)
		defer cancel()
		if _, err := s.manager.Probe(ctx, survive.Enough); err != nil {
			s.say(func(is *standing) { is.doubt = err.Error() })
		}
	}
	return nil
}

// byHand tells whether there is no service manager.
func (s *survival) byHand() bool { return s.manager == nil }

// open opens the table and the log that belong together. It returns why what was found cannot be used.
//
// The table comes first, since it has the count of those who have failed: what has made them fail may be in the log.
func (s *survival) open(tables, logs []*os.File) (bad error) {
	defer func() {
		for _, f := range slices.Concat(tables, logs) {
			if f != nil {
				_ = msglog.Unlock(f) // or whoever opens its file has to wait for the manager to close its descriptor
				f.Close()
			}
		}
	}()
	for i, f := range tables {
		t, err := survive.OpenTable(f)
		if err != nil {
			bad = errors.Join(bad, err)
			continue
		}
		s.keep.Table, tables[i] = t, nil
		break
	}
	switch {
	case s.keep.Table == nil && len(logs) == 0:
		return bad
	case s.keep.Table == nil:
		return errors.Join(bad, errors.New("there is a log, but no connection table"))
	}
	if s.failed = s.keep.Table.Begin(); s.failed >= tooOften {
		return fmt.Errorf("the last %d processes that took it over crashed within %s", s.failed, trusted)
	}
	failpoint.Pass("open.table")
	var making sync.WaitGroup
	making.Go(s.keep.Table.MakeRoom) // while the log is looked through
	defer making.Wait()
	for i, f := range logs {
		l, err := msglog.Open(f)
		if err != nil {
			bad = errors.Join(bad, err)
			continue
		}
		logs[i] = nil
		if l.Epoch() != s.keep.Table.Epoch() {
			bad = errors.Join(bad, errors.New("the connection table is about another log"), l.Close())
			continue
		}
		s.log, s.logName = l, f.Name()
		break
	}
	if s.log == nil {
		return errors.Join(bad, errors.New("there is a connection table, but not its log"))
	}
	failpoint.Pass("open.log")
	// Others of that kind are what a process that was killed has not come to remove.
	for _, f := range logs {
		if f != nil && f.Name() != s.logName {
			_ = s.keeper.Remove(f.Name())
		}
	}
	return nil
}

// findPath finds out where the log's file is to be. By hand there is nobody to lose, so what cannot be is an error, here and in
// load; the service serves whatever happens.
func (s *survival) findPath(o *Options) error {
	s.path = o.Config.Log.Path
	if s.path == "" || path.IsAbs(s.path) {
		return nil
	}
	dir, _, _ := strings.Cut(os.Getenv("STATE_DIRECTORY"), ":") // systemd.exec(5): a list, of the first one here
	if dir != "" {
		s.path = path.Join(dir, s.path)
		return nil
	}
	s.path = ""
	if s.byHand() {
		return &ConfigError{
			Text: fmt.Sprintf("log.path = %q is relative, and there is no state directory", o.Config.Log.Path),
			Hint: "write an absolute path; or start the daemon by a unit with StateDirectory=, as the shipped one is",
		}
	}
	s.notAtPath(errors.New("log.path is relative, and there is no state directory: the unit has no StateDirectory="))
	return nil
}

// notAtPath is for a service whose log is not where it was to be.
func (s *survival) notAtPath(cause error) {
	s.noPath = cause.Error()
	s.journal.Error("log.path cannot be used: messages may not survive a reboot", "cause", cause)
}

// logOptions are those of the log that is to be.
func (s *survival) logOptions(o *Options) msglog.Options {
	return msglog.Options{Size: int64(o.Config.Log.Size), Channels: o.Config.Log.Channels, Path: s.path}
}

// resize brings the log to the size and the place that are configured. The new one is stored when it is complete, and the old one removed then:
// nothing is appended meanwhile, and a process that is killed in between leaves two that are the same.
func (s *survival) resize(o *Options) {
	if s.noPath != "" && s.log.Path() != "" {
		return // it has a file, and is not to lose it because of an error
	}
	next, aside, err := s.log.Resized(s.logOptions(o))
	if aside != "" {
		o.Log.Warn("another file was at log.path and was moved aside", "moved_to", aside)
	}
	if err != nil && s.path != "" && s.path != s.log.Path() {
		s.notAtPath(err)
		return
	}
	if err != nil {
		o.Log.Warn("the log keeps its size until the service is stopped and started", "cause", err)
		return
	}
	if next == s.log {
		return
	}
	failpoint.Pass("resize.copied")
	name := logNames[0]
	if s.logName == name {
		name = logNames[1]
	}
	if err = push(s.keeper, name, next.File()); err == nil {
		failpoint.Pass("resize.pushed")
		err = s.keeper.Remove(s.logName)
	}
	failpoint.Pass("resize.removed")
	was := s.log.Usage()
	if err := errors.Join(err, s.log.Close()); err != nil {
		o.Log.Error("the log has a new size or place, but the service manager does not know", "error", err)
	}
	s.log, s.logName = next, name
	reportCopy(o.Log, &was, next)
}

func reportCopy(log *slog.Logger, was *msglog.Usage, next *msglog.Log) {
	u := next.Usage()
	what, attributes := "the log has a new size", []any{"bytes", u.Size, "channels", u.Places, "messages", u.Messages, "messages_before", was.Messages}
	if was.Path != u.Path {
		what = "the log has a new place"
		attributes = append(attributes, "path", place(u.Path), "path_before", place(was.Path))
	}
	log.Info(what, attributes...)
}

// place is what the log's path is shown as.
func place(path string) string { return cmp.Or(path, "memory") }

// load makes the log, with what its file has of an earlier one.
func (s *survival) load(o *Options) (err error) {
	if s.path != "" {
		if err = s.loadFile(o); err == nil {
			return nil
		}
		if s.byHand() {
			text, hint, _ := strings.Cut(err.Error(), "; ")
			return &ConfigError{Text: "log.path: " + strings.TrimPrefix(text, "log: "), Hint: hint}
		}
		s.notAtPath(err)
	}
	options := s.logOptions(o)
	options.Path = ""
	s.log, err = msglog.Create(options)
	return err
}

func (s *survival) loadFile(o *Options) error {
	if s.failed >= tooOften {
		aside, err := msglog.SetAside(s.path)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		if aside != "" {
			o.Log.Error("the log's file is moved aside, since it may be what makes the daemon crash: the log begins anew", "moved_to", aside)
		}
	}
	l, found, err := msglog.Load(s.logOptions(o))
	if found.Aside != "" {
		o.Log.Error("the file at log.path cannot be used and was moved aside: the log begins anew", "cause", found.Cause, "moved_to", found.Aside)
	}
	if err != nil {
		return err
	}
	u := l.Usage()
	switch attributes := []any{"path", u.Path, "messages", found.Kept, "newest", u.Head}; {
	case found.Aside != "":
	case !found.NewEpoch:
		o.Log.Info("the log is there", attributes...)
	default:
		o.Log.Warn("the log was not closed in good order: messages of the last seconds can be missing",
			append(attributes, "cut_newer", found.CutNewer, "cut_older", found.CutOlder)...)
	}
	next, _, err := l.Resized(s.logOptions(o))
	if err != nil {
		o.Log.Warn("the log keeps its size until the next start", "cause", err)
		next = l
	}
	if next != l {
		if err := l.Close(); err != nil {
			return errors.Join(err, next.Close())
		}
		reportCopy(o.Log, &u, next)
	}
	s.log = next
	return nil
}

func (s *survival) giveUp(keeper survive.Keeper) {
	if s.log != nil {
		_ = msglog.Unlock(s.log.File())
		_ = s.log.Close()
	}
	if s.keep.Table != nil {
		_ = s.keep.Table.Close()
	}
	for _, name := range append(logNames[:], survive.TableName) {
		_ = keeper.Remove(name)
	}
	s.log, s.keep, s.found = nil, survive.Keep{}, nil
}

// makeNew makes what is not there and leaves it with the manager.
func (s *survival) makeNew(o *Options, keeper survive.Keeper) (err error) {
	if s.log == nil {
		if err = s.load(o); err != nil {
			return err
		}
		if s.keep.Table, err = survive.NewTable(maxRecords, s.log.Epoch()); err != nil {
			return err
		}
		s.logName = logNames[0]
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

func push(keeper survive.Keeper, name string, f *os.File) error {
	return with(f, func(fd int) error { return keeper.Push(name, fd) })
}

func again(keeper survive.Keeper, name string, f *os.File) error {
	return with(f, func(fd int) error { return keeper.Again(name, fd) })
}

func with(f *os.File, do func(fd int) error) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	return errors.Join(raw.Control(func(fd uintptr) { err = do(int(fd)) }), err)
}

// adopt gives the connections to the loops.
func (s *survival) adopt(loops *loop.Loops, log *slog.Logger) {
	began := time.Now()
	loops.Adopt(s.found)
	failpoint.Pass("adopt.all")
	s.keep.Table.Adopted()
	s.took = time.Since(began)
	if len(s.found) > 0 {
		stats := loops.Stats()
		log.Info("clients taken over", "adopted", stats.Adopted, "repaired", stats.Repaired, "lost", stats.Lost, "took", s.took.Round(time.Microsecond))
	}
	s.found = slices.Clip(s.found[:0])
}

// judge notes how the adoption goes: it has failed if the process crashes within the time trusted, and as long as a loop
// stands still, which the watchdog kills it for. lived: it has not, and need not be judged again.
func (s *survival) judge(turning bool, age time.Duration) (lived bool) {
	switch {
	case !turning && !s.stuck:
		s.stuck = true
		s.keep.Table.Crashed()
	case turning && s.stuck:
		s.stuck = false
		s.keep.Table.GoesOn()
	}
	if turning && age >= trusted {
		s.keep.Table.Lived()
		return true
	}
	return false
}

// close is for a process that leaves nothing behind; the manager drops what it has when the service has ended.
func (s *survival) close() error {
	var errs []error
	failpoint.Pass("end.begun")
	if s.log != nil {
		errs = append(errs, s.log.Close())
	}
	failpoint.Pass("end.log")
	if s.keep.Table != nil {
		errs = append(errs, s.keep.Table.Close())
	}
	if s.keep.Lot != nil {
		s.keep.Lot.Close()
	}
	if s.manager != nil {
		errs = append(errs, s.manager.Close())
	}
	failpoint.Pass("end.all")
	return errors.Join(errs...)
}

// status is what STATUS= says of it, when there is something to say.
func (s *survival) status() (text string) {
	text = s.standing().String()
	if s.noPath != "" {
		text += "; log.path cannot be used: " + s.noPath
	}
	if err := s.log.Failure(); err != nil {
		text += "; the log's disk fails: " + err.Error()
		if !s.warned {
			s.warned = true
			s.journal.Error("the log's disk fails", "cause", err)
		}
	}
	return text
}

// info is the section of INFO.
func (s *survival) info(stats *loop.Stats) ipc.Section {
	is, state, parked, stored, homeless := s.standing(), "on", 0, 0, 0
	if is.off != "" {
		state = "off"
	} else {
		parked, stored = s.keep.Lot.Parked()
		stored += 2 // the log and the table
		homeless, _ = s.keep.Lot.Homeless()
	}
	return ipc.Section{Name: "Survival", Fields: []ipc.Field{
		{Key: "survival", Value: state},
		{Key: "survival_off_because", Value: is.off},
		{Key: "parked", Value: strconv.Itoa(parked)},
		{Key: "stored_descriptors", Value: strconv.Itoa(stored)},
		{Key: "not_parked", Value: strconv.Itoa(homeless)},
		{Key: "not_parked_because", Value: is.partly},
		{Key: "adopted", Value: count(stats.Adopted)},
		{Key: "repaired", Value: count(stats.Repaired)},
		{Key: "not_adopted", Value: count(stats.Lost)},
		{Key: "adoption_seconds", Value: strconv.FormatFloat(s.took.Seconds(), 'f', 6, 64)},
	}}
}
