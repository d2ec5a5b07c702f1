package daemon

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"time"

	"wscast/daemon/frame"
	"wscast/daemon/loop"
	"wscast/daemon/msglog"
	"wscast/daemon/survive"
	"wscast/ipc"
)

// What outlives the process: the log, the connection table and the parked connections are with systemd. There is one way to start, which is to
// take over what is there. With nothing there, or with what cannot be trusted, it is made new.

const (
	logName = "log" // of the log in the fd store

	// maxRecords is the size of the connection table. It costs address space, and memory only for records that were used.
	maxRecords = 1 << 20
	// managerPatience is how long the service manager may take to answer at the start.
	managerPatience = 10 * time.Second
	// trusted is how long a process has to live without a crash for its adoption to have gone well; after tooOften that did not, what is there
	// is held for the cause and given up.
	trusted  = 10 * time.Second
	tooOften = 2
)

// survival is what this process has taken over and leaves behind.
type survival struct {
	off     string // why it is off; "" when it is on
	manager *survive.Store
	log     *msglog.Log
	keep    survive.Keep
	found   []survive.Found
	took    time.Duration // to adopt
}

// noKeeper is the keeper when there is none: what is stored goes nowhere.
type noKeeper struct{}

func (noKeeper) Push(string, int) error { return nil }
func (noKeeper) Remove(string) error    { return nil }

// takeOver finds out what there is to take over, and does it up to the connections, which the loops adopt.
func takeOver(o *Options) (s *survival, err error) {
	s = &survival{}
	stored := o.Sockets.stored
	o.Sockets.stored = nil
	if err := s.findManager(); err != nil {
		return nil, err
	}
	if s.off != "" {
		o.Log.Warn("clients will not survive a restart", "cause", s.off)
	}
	var keeper survive.Keeper = noKeeper{}
	if s.manager != nil {
		keeper = s.manager
	}
	var segments []*os.File
	for _, f := range stored {
		switch {
		case f.Name() == logName && s.log == nil:
			if s.log, err = msglog.Open(f); err != nil {
				o.Log.Error("the log of the earlier process cannot be used", "error", err)
				f.Close()
			}
		case f.Name() == survive.TableName && s.keep.Table == nil:
			if s.keep.Table, err = survive.OpenTable(f); err != nil {
				o.Log.Error("the connection table of the earlier process cannot be used", "error", err)
				f.Close()
			}
		case survive.IsSegment(f.Name()):
			segments = append(segments, f)
		default:
			_ = keeper.Remove(f.Name())
			f.Close()
		}
	}
	bad := s.distrust()
	if s.keep.Table != nil {
		if s.keep.Lot, s.found, err = survive.Recover(keeper, s.keep.Table, segments); err != nil {
			bad = errors.Join(bad, err)
		}
	} else if len(segments) > 0 {
		bad = errors.Join(bad, errors.New("there are connections, but no table that says whose"))
		survive.CloseAll(keeper, segments)
	}
	if bad != nil {
		o.Log.Error("starting clean: clients are closed and come back", "cause", bad, "clients", len(s.found))
		if s.keep.Lot != nil {
			s.keep.Lot.GiveUp(s.found, frame.AppendClose(nil, frame.CloseServiceRestart, loop.RestartReason))
		}
		s.giveUp(keeper)
	}
	return s, s.makeNew(o, keeper)
}

func (s *survival) findManager() (err error) {
	if s.manager, err = survive.OpenStore(); err != nil {
		return err
	}
	if s.manager == nil {
		s.off = "not started by a service manager"
		return nil
	}
	kept, err := s.manager.Probe(managerPatience)
	switch {
	case err != nil:
		s.off = err.Error()
	case !kept:
		s.off = "the service manager keeps no descriptors: FileDescriptorStoreMax= of the unit is too small, or the store is full"
	}
	if s.off != "" {
		err = s.manager.Close()
		s.manager = nil
	}
	return err
}

// distrust says why what was found cannot be used.
func (s *survival) distrust() error {
	switch {
	case s.log == nil && s.keep.Table == nil:
		return nil
	case s.log == nil || s.keep.Table == nil:
		return errors.New("only one of the log and the connection table is there")
	case s.keep.Table.Epoch() != s.log.Epoch():
		return errors.New("the connection table is about another log")
	}
	if failed := s.keep.Table.Begin(); failed >= tooOften {
		return fmt.Errorf("the last %d processes that took it over crashed within %s", failed, trusted)
	}
	return nil
}

func (s *survival) giveUp(keeper survive.Keeper) {
	if s.log != nil {
		_ = s.log.Close()
	}
	if s.keep.Table != nil {
		_ = s.keep.Table.Close()
	}
	_ = keeper.Remove(logName)
	_ = keeper.Remove(survive.TableName)
	s.log, s.keep, s.found = nil, survive.Keep{}, nil
}

// makeNew makes what is not there and leaves it with the manager.
func (s *survival) makeNew(o *Options, keeper survive.Keeper) (err error) {
	if s.log == nil {
		if s.log, err = msglog.Create(msglog.Options{Size: int64(o.Config.Log.Size), Channels: o.Config.Log.Channels}); err != nil {
			return err
		}
		if s.keep.Table, err = survive.NewTable(maxRecords, s.log.Epoch()); err != nil {
			return err
		}
		err = errors.Join(push(keeper, logName, s.log.File()), push(keeper, survive.TableName, s.keep.Table.File()))
		s.keep.Table.Begin()
	}
	if s.keep.Lot == nil && s.off == "" {
		s.keep.Lot = survive.NewLot(keeper, s.keep.Table)
	}
	return err
}

func push(keeper survive.Keeper, name string, f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	return errors.Join(raw.Control(func(fd uintptr) { err = keeper.Push(name, int(fd)) }), err)
}

// adopt gives the connections to the loops.
func (s *survival) adopt(loops *loop.Loops, log *slog.Logger) {
	began := time.Now()
	loops.Adopt(s.found)
	s.keep.Table.Adopted()
	s.took = time.Since(began)
	if len(s.found) > 0 {
		stats := loops.Stats()
		log.Info("clients taken over", "adopted", stats.Adopted, "repaired", stats.Repaired, "lost", stats.Lost, "took", s.took.Round(time.Microsecond))
	}
	s.found = slices.Clip(s.found[:0])
}

// close is for a process that leaves nothing behind; the manager drops what it has when the service has ended.
func (s *survival) close() error {
	var errs []error
	if s.log != nil {
		errs = append(errs, s.log.Close())
	}
	if s.keep.Table != nil {
		errs = append(errs, s.keep.Table.Close())
	}
	if s.keep.Lot != nil {
		s.keep.Lot.Close()
	}
	if s.manager != nil {
		errs = append(errs, s.manager.Close())
	}
	return errors.Join(errs...)
}

// status is what STATUS= says of it, when there is something to say.
func (s *survival) status() string {
	if s.off != "" {
		return "; clients will not survive a restart: " + s.off
	}
	return ""
}

// info is the section of INFO.
func (s *survival) info(stats *loop.Stats) ipc.Section {
	state, parked, stored := "on", 0, 0
	if s.off != "" {
		state = "off"
	}
	if s.keep.Lot != nil {
		parked, stored = s.keep.Lot.Parked()
		stored += 2 // the log and the table
	}
	return ipc.Section{Name: "Survival", Fields: []ipc.Field{
		{Key: "survival", Value: state},
		{Key: "survival_off_because", Value: s.off},
		{Key: "parked", Value: strconv.Itoa(parked)},
		{Key: "stored_descriptors", Value: strconv.Itoa(stored)},
		{Key: "not_parked", Value: count(stats.Unparked)},
		{Key: "adopted", Value: count(stats.Adopted)},
		{Key: "repaired", Value: count(stats.Repaired)},
		{Key: "not_adopted", Value: count(stats.Lost)},
		{Key: "adoption_seconds", Value: strconv.FormatFloat(s.took.Seconds(), 'f', 6, 64)},
	}}
}
