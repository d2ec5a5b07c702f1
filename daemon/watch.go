package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"wscast/daemon/failpoint"
	"wscast/daemon/survive"
)

// Whether clients survive depends on the service manager and on the limits of the unit, and both can change while the
// daemon runs: the store is full, or has room again; nothing more may be in flight; the manager is busy and does not
// answer. So it is asked again and again, and what has changed is said in the journal, in STATUS= and in INFO.

// Tests make these shorter.
var (
	// storeEvery is how often everything is stored once more and the room in the store is found out, while all is well:
	// that costs the manager a message for each stored descriptor.
	storeEvery = time.Minute
	// troubleEvery is how often while it is not.
	troubleEvery = 5 * time.Second
	// managerPatience is how long the service manager may take to answer.
	managerPatience = 10 * time.Second
)

// standing is whether clients survive.
type standing struct {
	off      string // why none does; "" when it is on
	partly   string // why some do not, or will not; "" when all do
	homeless int    // how many do not
	doubt    string // why it is not known; "" when it is
}

func (s *survival) standing() standing {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stands
}

// say takes a change down and tells the journal about it.
func (s *survival) say(change func(*standing)) {
	s.mu.Lock()
	was := s.stands
	change(&s.stands)
	is := s.stands
	s.mu.Unlock()
	switch {
	case was.off == "" && is.off != "":
		s.journal.Warn("clients will not survive a restart", "cause", is.off)
	case was.off != "" && is.off == "":
		s.journal.Info("clients will survive a restart again")
	}
	switch {
	case was.homeless == 0 && is.homeless > 0:
		s.journal.Warn("some clients will not survive a restart", "clients", is.homeless, "cause", is.partly)
	case was.partly == "" && is.partly != "":
		s.journal.Warn("further clients may not survive a restart", "cause", is.partly)
	case was.partly != "" && is.partly == "" && is.off == "":
		s.journal.Info("all clients will survive a restart again")
	}
	switch {
	case was.doubt == "" && is.doubt != "":
		s.journal.Warn("it is not known whether clients will survive a restart", "cause", is.doubt)
	case was.doubt != "" && is.doubt == "":
		s.journal.Info("the service manager answers again")
	}
}

// watch looks after the store until ctx ends.
func (s *survival) watch(ctx context.Context) {
	if s.manager == nil {
		return
	}
	for {
		every, low := troubleEvery, (<-chan struct{})(nil)
		if s.check(ctx) {
			every, low = storeEvery, s.manager.Low()
		}
		t := time.NewTimer(every)
		select {
		case <-ctx.Done():
		case <-t.C:
		case <-low:
		case <-s.kick:
		}
		t.Stop()
		if ctx.Err() != nil {
			return
		}
	}
}

// check stores what is not stored, finds out whether there is room for more, and parks who is not parked. It returns
// whether all is well.
func (s *survival) check(ctx context.Context) (well bool) {
	ctx, cancel := context.WithTimeoutCause(ctx, managerPatience, errPatience)
	defer cancel()
	on := s.standing().off == ""
	least := 1
	if !on {
		least = s.enough() // a few would only be taken from those who have something stored
	} else if s.room > 0 { // a full store would only complain
		_ = errors.Join(s.eachStored(func(name string, f *os.File) error { return again(s.manager, name, f) }), s.keep.Lot.Again())
	}
	room, err := s.manager.Probe(ctx, least)
	switch {
	case ctx.Err() != nil && context.Cause(ctx) != errPatience:
		return true // the daemon stops
	case err != nil:
		s.say(func(is *standing) {
			if is.off == "" {
				is.doubt = err.Error()
			}
		})
	default:
		s.room = room
		s.say(func(is *standing) { is.doubt = "" })
		if !on && room >= s.enough() {
			on = s.store()
		}
	}
	if on {
		_, _ = s.keep.Lot.House()
	}
	s.look()
	is := s.standing()
	return is == standing{}
}

var errPatience = errors.New("the service manager does not answer")

// store leaves the log and the table with the manager.
func (s *survival) store() (stored bool) {
	err := s.eachStored(func(name string, f *os.File) error {
		if name == s.tableName {
			failpoint.Pass("make.log")
		}
		return push(s.keeper, name, f)
	})
	failpoint.Pass("make.table")
	if err != nil {
		_ = s.eachStored(func(name string, _ *os.File) error { return s.keeper.Remove(name) })
	}
	s.say(func(is *standing) {
		if is.off = ""; err != nil {
			is.off = reason(err)
		}
	})
	return err == nil
}

// reason is the first of several that there may be.
func reason(err error) string {
	for _, known := range []error{survive.ErrNoRoom, survive.ErrInFlight} {
		if errors.Is(err, known) {
			return known.Error()
		}
	}
	return oneLine(err.Error())
}

// look finds out how many are parked nowhere. It asks nobody else.
func (s *survival) look() (homeless int) {
	if s.manager == nil || s.standing().off != "" {
		return 0
	}
	homeless, why := s.keep.Lot.Homeless()
	if homeless == 0 && s.manager.Full() {
		why = survive.ErrNoRoom
	}
	s.say(func(is *standing) {
		if is.homeless, is.partly = homeless, ""; why != nil {
			is.partly = reason(why)
		}
	})
	return homeless
}

// hurry has watch check at once if somebody is parked nowhere.
func (s *survival) hurry() {
	if s.look() > 0 {
		select {
		case s.kick <- struct{}{}:
		default:
		}
	}
}

// String is what STATUS= says, when there is something to say.
func (s standing) String() string {
	switch {
	case s.off != "":
		return "; clients will not survive a restart: " + s.off
	case s.homeless > 0:
		return fmt.Sprintf("; %d clients will not survive a restart: %s", s.homeless, s.partly)
	case s.partly != "":
		return "; further clients may not survive a restart: " + s.partly
	case s.doubt != "":
		return "; whether clients will survive a restart is not known: " + s.doubt
	}
	return ""
}
