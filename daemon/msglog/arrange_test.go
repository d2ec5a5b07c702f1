package msglog

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"

	"wscast/daemon/frame"
)

// anyArrangement has some rings in some order, some of them with files.
func anyArrangement(random *rand.Rand, dir string) *Arrangement {
	prefixes := []string{"a", "b", "c", "a1", "d"}
	random.Shuffle(len(prefixes), func(i, j int) { prefixes[i], prefixes[j] = prefixes[j], prefixes[i] })
	a := arrangementOf(prefixes[:random.IntN(len(prefixes)+1)]...)
	for i := range a.Rings {
		a.Rings[i].Size = MinSize * int64(1+random.IntN(2))
		if dir != "" && random.IntN(2) == 0 {
			a.at(dir, a.Rings[i].Match)
		}
	}
	return a
}

func (a *Arrangement) String() string {
	var b strings.Builder
	for _, o := range a.Rings {
		fmt.Fprintf(&b, "%q %d MiB", o.Match, o.Size>>20)
		if o.Path != "" {
			b.WriteString(" in a file")
		}
		b.WriteString(", ")
	}
	return b.String()
}

// rearrange is what the next process does that is configured in another way.
func (c *chronicle) rearrange(a *Arrangement) {
	c.Helper()
	c.retire()
	was := c.log
	if was.Fits(a) {
		c.takeOver(reopen(c, was, a))
		return
	}
	next, moves, aside, err := was.Rearranged(a)
	if err != nil {
		c.Fatal(a, err)
	}
	for _, path := range aside { // of a ring that was given up before
		if err := os.Remove(path); err != nil {
			c.Fatal(err)
		}
	}
	if next.Epoch() != was.Epoch() || next.Head() != was.Head() {
		c.Fatalf("epoch %x, was %x, head %d, was %d", next.Epoch(), was.Epoch(), next.Head(), was.Head())
	}
	slow := map[string]bool{}
	for name, v := range c.clients {
		slow[name] = v.slow
	}
	c.goOn(next, func(ch *Channel) (uint32, bool) { return moves.Channel(ch.ID()) },
		func(ch *Channel, cursor uint64) uint64 { return moves.Cursor(ch.ID(), cursor) })
	if err := was.Close(); err != nil {
		c.Fatal(err)
	}
	for name, v := range c.clients {
		c.serve(name, v, 1)
		// Nobody is given up for whom everything is there.
		if cursor, complete := c.reader.Seek(v.ch, From{How: After, Seq: v.seen}); v.slow && !slow[name] && complete {
			c.Fatalf("%s is slow, and all after %d is there, from %d on", name, v.seen, cursor)
		}
	}
	if !next.Fits(a) {
		c.Fatal("a log does not fit what it was made for: ", a)
	}
}

// Rings come and go, change their sizes, their order and their places, and nothing is lost that has room.
func TestRearranged(t *testing.T) {
	for seed := range uint64(40) {
		dir, random := t.TempDir(), rand.New(rand.NewPCG(seed, 3))
		a := anyArrangement(random, "")
		l, err := CreateAll(a)
		if err != nil {
			t.Fatal(err)
		}
		c := newChronicle(t, l, seed)
		big := 1000
		if seed%2 == 1 {
			big = 100_000
		}
		for range 5 {
			c.write(20+c.random.IntN(60), big)
			a = anyArrangement(random, dir)
			c.rearrange(a)
			// What has always fitted is all there.
			c.ask(func(string, uint64) bool { return big == 1000 })
			if big == 1000 {
				c.follow(uint64(random.IntN(len(c.all))))
			}
			c.write(10, big)
			c.ask(func(string, uint64) bool { return big == 1000 })
			c.rearrange(a)
		}
		c.retire()
		if err := c.log.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// A machine is switched off and on: rings in files have what they had, others are empty, and ids tell which is which.
func TestLoadAll(t *testing.T) {
	for seed := range uint64(40) {
		dir, random := t.TempDir(), rand.New(rand.NewPCG(seed, 4))
		a := anyArrangement(random, dir)
		l, found, err := LoadAll(a)
		if err != nil || slices.ContainsFunc(found, func(f Found) bool { return f != (Found{}) }) {
			t.Fatal(found, err)
		}
		names := channelsOfChronicle
		var all, ever []noted // the messages that are there, and all that ever were
		for round := range 5 {
			inFiles := !slices.ContainsFunc(a.Rings, func(o Options) bool { return o.Path == "" })
			for range random.IntN(30) {
				name := names[random.IntN(len(names))]
				data := fmt.Sprint(round, " ", len(ever))
				if _, err := l.Append([]byte(name), []byte(data), frame.Text); err != nil {
					t.Fatal(err)
				}
				all = append(all, noted{l.Head(), name, data})
				ever = append(ever, all[len(all)-1])
			}
			closed := random.IntN(2) == 0
			if closed {
				if err := l.Finish(); err != nil {
					t.Fatal(err)
				}
			}
			epoch := l.Epoch()
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			next := a
			if random.IntN(2) == 0 {
				next = anyArrangement(random, dir)
			}
			if l, found, err = LoadAll(next); err != nil {
				t.Fatal(a, next, err)
			}
			for _, f := range found {
				if f.Aside != "" {
					if err := os.Remove(f.Aside); err != nil {
						t.Fatal(err)
					}
				}
			}
			if keeps := inFiles && closed && next == a; keeps != (l.Epoch() == epoch) {
				t.Fatalf("%v\n%v\nepoch %x, was %x, closed: %v", a, next, l.Epoch(), epoch, closed)
			}
			checkLoaded(t, l, a, next, all, ever)
			a, all = next, contents(t, l)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// contents are all messages that a log has, in the order of their numbers.
func contents(t *testing.T, l *Log) (all []noted) {
	r := reader(t, l)
	defer r.Retire()
	for _, name := range slices.Sorted(maps.Keys(l.byName)) {
		ch, _ := join(t, r, name)
		cursor, _ := r.Seek(ch, From{How: After})
		for {
			seq, ok := r.Next(ch, cursor)
			if !ok {
				t.Fatal(name, " is slow")
			}
			if seq == 0 {
				break
			}
			m := r.Message(ch, seq)
			all = append(all, noted{m.Number, m.Channel, string(m.Data)})
			cursor = seq
		}
	}
	slices.SortFunc(all, func(a, b noted) int { return int(a.number) - int(b.number) })
	return all
}

// checkLoaded: a channel that had its messages in a file has them where it is now, if that was in the arrangement before.
func checkLoaded(t *testing.T, l *Log, was, is *Arrangement, all, ever []noted) {
	t.Helper()
	there := contents(t, l)
	for _, n := range all {
		kept := slices.Contains(there, n)
		from := was.Rings[was.ringFor(n.channel)]
		if from.Path == "" && kept {
			t.Fatalf("%v\n%v\n%+v was in memory, and is there", was, is, n)
		}
		opened := slices.ContainsFunc(is.Rings, func(o Options) bool { return o.Path == from.Path })
		if from.Path != "" && opened && !kept {
			t.Fatalf("%v\n%v\n%+v was in a file, and is not there", was, is, n)
		}
	}
	for _, n := range there {
		if !slices.Contains(ever, n) {
			t.Fatalf("%v\n%v\n%+v is there, and never was", was, is, n)
		}
	}
}

// What one ring cannot have says which ring it is.
func TestRingErrors(t *testing.T) {
	a := arrangementOf("a")
	a.Rings[1].Path = t.TempDir() + "/nothing/here"
	var ring *RingError
	if _, _, err := LoadAll(a); !errors.As(err, &ring) || ring.Ring != 1 {
		t.Error(err)
	}
	l, err := CreateAll(arrangementOf("a"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, _, _, err := l.Rearranged(a); !errors.As(err, &ring) || ring.Ring != 1 {
		t.Error(err)
	}
}
