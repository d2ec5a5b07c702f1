package daemon

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"slices"
	"strconv"
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

// isStored tells whether a descriptor of that name is one that a process has left for the next one.
func isStored(name string) bool {
	return isLog(name) || isTable(name) || name == survive.ProbeName || survive.IsSegment(name) || survive.IsHanded(name)
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
	manager   *survive.Store // nil: none
	keeper    survive.Keeper // manager, or nobody
	log       *msglog.Log
	logs      int                 // which of the sets of names the log has in the store
	tableName string              // in the store
	wanted    *msglog.Arrangement // of the log, as configured
	noPath    string              // why a log is not at its path; "" when all are
	journal   *slog.Logger
	warned    bool // of the log's disk
	failed    int  // adoptions in a row that did not go well
	keep      survive.Keep
	found     []survive.Found
	handed    []survive.Handed // connections of publishers
	took      time.Duration    // to adopt
	room      int              // that watch has found in the store
	stuck     bool             // a loop stands still, and the adoption counts as failed for that
	kick      chan struct{}    // to watch: check now

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
	if err := s.findManager(stored, len(o.Config.Log.Own)); err != nil {
		return nil, err
	}
	var keeper survive.Keeper = noKeeper{}
	if s.manager != nil {
		keeper = s.manager
	}
	s.keeper = keeper
	if err := s.arrange(o); err != nil {
		return nil, err
	}
	s.tableName = survive.TableName
	var logs, tables, segments, handed []*os.File
	for _, f := range stored {
		switch name := f.Name(); {
		case isLog(name):
			logs = append(logs, f)
		case isTable(name):
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
	var names []string
	for _, f := range slices.Concat(tables, logs) {
		names = append(names, f.Name())
	}
	bad := s.open(tables, logs)
	if bad == nil && s.log != nil {
		s.rearrange()
	}
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
		s.giveUp(keeper, names)
	}
	if s.handed, err = survive.Received(keeper, handed); err != nil {
		o.Log.Error("publishers are closed and have to come back", "error", err)
	}
	if s.log == nil { // their states speak of another log
		s.closeHanded()
	}
	return s, s.makeNew(keeper)
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
func (s *survival) findManager(stored []*os.File, more int) (err error) {
	var held []string
	for _, f := range stored {
		held = append(held, f.Name())
	}
	if s.manager, err = survive.OpenStore(held); err != nil {
		return err
	}
	if s.manager != nil {
		s.manager.Expect(2 * more)
	}
	switch {
	case s.manager == nil:
		s.stands.off = noManager
		s.journal.Debug("clients will not survive a restart", "cause", noManager) // who does that knows
	case !slices.ContainsFunc(held, func(name string) bool { return name != survive.ProbeName }):
		ctx, cancel := context.WithTimeout(context.Background(), managerPatience)
		defer cancel()
		if _, err := s.manager.Probe(ctx, survive.Enough+2*more); err != nil {
			s.say(func(is *standing) { is.doubt = err.Error() })
		}
	}
	return nil
}

// byHand tells whether there is no service manager.
func (s *survival) byHand() bool { return s.manager == nil }

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
		text += "; " + s.noPath
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
		stored += s.log.Rings() + 1 // the table
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
