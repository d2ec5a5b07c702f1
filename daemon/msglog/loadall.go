package msglog

import (
	"errors"
	"os"
)

// LoadAll is Load for an arrangement. What rings in memory had is gone, and new files begin empty. It returns what was found
// at each path, by the ring of the arrangement.
//
// The log has a new epoch, unless all of it is in files and was closed in good order; in a ring with a file ids of the
// earlier epochs hold up to what is there again. Files that were parts of different logs are not mixed: those that are not of
// the log that has the newest message are moved aside.
//
// An error that is about one ring, of which there cannot be a file at that path, is a RingError.
func LoadAll(a *Arrangement) (*Log, []Found, error) {
	found := make([]Found, len(a.Rings))
	if a.alone() && a.Rings[0].Path == "" {
		l, err := CreateAll(a)
		return l, found, err
	}
	if a.alone() && !isPart(a.Rings[0].Path) {
		l, f, err := Load(a.Rings[0])
		if err != nil {
			return nil, []Found{f}, &RingError{0, err}
		}
		l.arrange(a)
		return l, []Found{f}, nil
	}
	parts := make([]*ring, len(a.Rings)) // by the ring at whose path they are
	defer func() {
		for _, g := range parts {
			if g != nil {
				_ = g.m.unmap()
				g.file.Close()
			}
		}
	}()
	for i, o := range a.Rings {
		if o.Path == "" {
			continue
		}
		var err error
		if parts[i], found[i], err = loadPart(o.Path); err != nil {
			return nil, found, &RingError{i, err}
		}
	}
	if err := setStrangersAside(parts, found, a); err != nil {
		return nil, found, err
	}
	l, err := a.assemble(parts, found)
	return l, found, err
}

// isPart tells whether there is a ring of several at a path. What else can be there, or keep it from being opened, is found out by
// those who open it for good.
func isPart(path string) bool {
	if path == "" {
		return false
	}
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	h := new(header)
	n, _ := f.ReadAt(h.all(), 0)
	return n == len(h.all()) && h.magic == magic && h.layout == layoutOfMany
}

// loadPart opens a ring by itself, nil if there is none.
func loadPart(path string) (g *ring, found Found, err error) {
	f, err := lockFile(path, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil, Found{}, nil
	}
	if err != nil {
		return nil, Found{}, err
	}
	if found, err = recoverFile(f); err == nil {
		err = survivingFaults(func() error {
			g, err = openPart(f)
			return err
		})
	}
	if err == nil {
		g.path = path
		return g, found, nil
	}
	defer f.Close()
	var bad damagedError
	if !errors.As(err, &bad) {
		return nil, Found{}, fileError(path, err)
	}
	found = Found{Cause: err}
	found.Aside, err = SetAside(path)
	return nil, found, err
}

// openPart maps one ring, whatever others there are.
func openPart(f *os.File) (*ring, error) {
	m, err := mapFile(f)
	if err != nil {
		return nil, err
	}
	g := &ring{log: newLog(), file: f, m: m, match: m.head.part.pattern()}
	g.log.rings = []*ring{g}
	if err := g.rebuild(); err != nil {
		return nil, errors.Join(err, m.unmap())
	}
	return g, nil
}

// errStranger is why a part was moved aside.
var errStranger = errors.New("log: the file is part of another log")

// setStrangersAside makes way for the parts of the log that has the newest message. A file that was not among them when they
// were last opened is none of them, wherever it comes from: its numbers can have been given again since then.
func setStrangersAside(parts []*ring, found []Found, a *Arrangement) (err error) {
	var newest *ring
	for _, g := range parts {
		if g != nil && (newest == nil || g.newestTime() > newest.newestTime()) {
			newest = g
		}
	}
	for i, g := range parts {
		if g == nil || g == newest || g.m.head.ofMany() && g.m.head.part.arrangement == newest.m.head.part.arrangement {
			continue
		}
		found[i] = Found{Cause: errStranger}
		if found[i].Aside, err = SetAside(a.Rings[i].Path); err != nil {
			return &RingError{i, err}
		}
		_ = g.m.unmap()
		g.file.Close()
		parts[i] = nil
	}
	return nil
}

func (g *ring) newestTime() int64 {
	head := g.m.head.head.Load()
	if head < g.m.head.tail.Load() {
		return 0
	}
	return g.m.entry(head).time
}

// assemble makes a log of what is there of it.
func (a *Arrangement) assemble(parts []*ring, found []Found) (*Log, error) {
	whole, fit, given := true, true, uint64(0)
	var sources []*ring
	for i, g := range parts {
		if g == nil {
			whole = false
			continue
		}
		sources = append(sources, g)
		given = max(given, g.m.newest())
		first := &sources[0].m.head.part
		p := &g.m.head.part
		whole = whole && !found[i].NewEpoch && g.m.head.epoch == sources[0].m.head.epoch && p.arrangement == first.arrangement && int(p.count) == len(parts)
		fit = fit && g.m.numbers != nil && g.fits(a, i)
	}
	if whole && fit {
		return a.open(parts)
	}
	c := newCopy(a, sources)
	defer c.discard()
	c.given = given
	c.lost = len(sources) == 0 || len(sources) < int(max(1, sources[0].m.head.part.count))
	if !whole {
		for i, g := range parts { // none of them has given out an id of an epoch that it has got just now
			if g != nil && !found[i].NewEpoch {
				if err := changeHeader(g.file, func(h *header) { h.retire(g.m.newest()) }); err != nil {
					return nil, &RingError{i, err}
				}
			}
			found[i].NewEpoch = found[i].NewEpoch || g != nil
		}
	} else {
		c.epoch = sources[0].m.head.epoch
	}
	if !fit || !c.sameRings() && len(sources) > 0 {
		return c.finish()
	}
	return c.complete(parts)
}

// open opens the parts, which are all that there is to be.
func (a *Arrangement) open(parts []*ring) (*Log, error) {
	files := make([]*os.File, len(parts))
	for i, g := range parts {
		if err := g.m.unmap(); err != nil {
			return nil, err
		}
		files[i] = g.file
	}
	l, err := Open(files...)
	if err != nil {
		for _, f := range files {
			f.Close()
		}
	} else {
		l.arrange(a)
	}
	clear(parts)
	return l, err
}

// complete makes what is missing beside the parts, and one log of all.
func (c *copying) complete(parts []*ring) (*Log, error) {
	arrangement := newArrangement()
	for i, g := range parts {
		if g != nil {
			continue
		}
		if err := c.makeRing(i, arrangement); err != nil {
			return nil, &RingError{i, err}
		}
		err := c.maps[i].unmap()
		if c.maps[i] = nil; err != nil {
			return nil, err
		}
		if o := c.a.Rings[i]; o.Path != "" {
			if err := c.putInPlace(o.Path, c.files[i]); err != nil {
				return nil, &RingError{i, err}
			}
		}
	}
	for i, g := range parts {
		if g == nil {
			continue
		}
		err := changeHeader(g.file, func(h *header) {
			h.epoch, h.part = c.epoch, c.a.part(i, arrangement)
			h.given.Store(max(h.given.Load(), c.given))
			h.closed.Store(0)
		})
		if err == nil {
			err = dataSync(g.file)
		}
		if err != nil {
			return nil, &RingError{i, err}
		}
		c.files[i] = g.file
	}
	c.inUse = true
	for i, g := range parts {
		if g == nil {
			m, err := mapFile(c.files[i])
			if err != nil {
				return nil, err
			}
			parts[i] = &ring{file: c.files[i], m: m}
		}
	}
	return c.a.open(parts)
}
