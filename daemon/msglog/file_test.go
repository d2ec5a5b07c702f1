package msglog

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"wscast/daemon/frame"
)

// home is a directory for the file of a log.
func home(t testing.TB) Options {
	t.Helper()
	return Options{Size: MinSize, Channels: 300, Path: filepath.Join(t.TempDir(), logName)}
}

func load(t testing.TB, o Options) (*Log, Found) {
	t.Helper()
	l, found, err := Load(o)
	if err != nil {
		t.Fatal(err)
	}
	if l.Path(0) != o.Path || l.Usage()[0].Path != o.Path {
		t.Fatalf("the log is at %q", l.Path(0))
	}
	return l, found
}

func shut(t testing.TB, l *Log) {
	t.Helper()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

func end(t testing.TB, l *Log) {
	t.Helper()
	if err := l.Finish(); err != nil {
		t.Fatal(err)
	}
	shut(t, l)
}

// isOf expects an id to be of a log, or not to be.
func isOf(t testing.TB, l *Log, epoch, seq uint64, want bool) {
	t.Helper()
	n, ok := l.Sequence(0, epoch, seq)
	if ok != want || ok && n != seq {
		t.Errorf("the id %x:%d is %d, %v; want %v", epoch, seq, n, ok, want)
	}
}

// A log that was closed in good order is the same log afterwards.
func TestFinished(t *testing.T) {
	o := home(t)
	l, found := load(t, o)
	if found != (Found{}) {
		t.Errorf("in an empty directory there was %+v", found)
	}
	info, err := os.Stat(o.Path)
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if _, err := os.Stat(beside(o.Path)); err == nil {
		t.Error("the file is there twice")
	}
	var blocks unix.Stat_t
	if err := unix.Stat(o.Path, &blocks); err != nil || blocks.Blocks*512 < info.Size() {
		t.Errorf("%d blocks are allocated for %d bytes, %v", blocks.Blocks, info.Size(), err)
	}
	epoch := l.Epoch()
	random := rand.New(rand.NewPCG(1, 2))
	var p published
	for _, n := range []int{0, 1, 50, 9000, 3} {
		p.appendSome(t, l, random, n)
		tail := l.rings[0].m.head.tail.Load()
		end(t, l)
		l, found = load(t, o)
		if l.Epoch() != epoch || found != (Found{Kept: uint64(len(p)) + 1 - tail}) {
			t.Fatalf("after %d messages: epoch %x, was %x; %+v", n, l.Epoch(), epoch, found)
		}
		if l.rings[0].m.head.closed.Load() != 0 {
			t.Error("it is finished while it is in use")
		}
		p.check(t, l, tail)
		isOf(t, l, epoch, uint64(len(p)), true)
		isOf(t, l, epoch, uint64(len(p))+1, false)
		isOf(t, l, epoch+1, 1, false)
	}
	shut(t, l)
}

// A log that was not closed in good order gets another epoch each time, and knows some of the earlier ones.
func TestNotFinished(t *testing.T) {
	o := home(t)
	random := rand.New(rand.NewPCG(3, 4))
	var p published
	var epochs, lasts []uint64
	for round := range generations + 3 {
		l, found := load(t, o)
		if found.Kept != uint64(len(p)) || found.CutNewer+found.CutOlder != 0 || found.NewEpoch != (round > 0) {
			t.Fatalf("round %d: %+v", round, found)
		}
		if slices.Contains(epochs, l.Epoch()) {
			t.Fatal("the epoch was there before")
		}
		p.check(t, l, 1)
		for i, epoch := range epochs {
			known := len(epochs)-i <= generations
			isOf(t, l, epoch, lasts[i], known)
			isOf(t, l, epoch, lasts[i]+1, false)
			isOf(t, l, epoch, 1, known)
		}
		p.appendSome(t, l, random, 100)
		isOf(t, l, l.Epoch(), l.Head(), true)
		epochs, lasts = append(epochs, l.Epoch()), append(lasts, l.Head())
		shut(t, l)
	}
}

// What is cut is cut from all epochs: their ids are not those of the messages that come in its place.
func TestCutBelowAnEarlierEpoch(t *testing.T) {
	o := home(t)
	random := rand.New(rand.NewPCG(5, 5))
	var p published
	var epochs []uint64
	for range 3 {
		l, _ := load(t, o)
		epochs = append(epochs, l.Epoch())
		p.appendSome(t, l, random, 100)
		shut(t, l)
	}
	im, err := os.ReadFile(o.Path)
	if err != nil {
		t.Fatal(err)
	}
	for _, seq := range []uint64{151, 152, 251} {
		*image(im).frame(seq) ^= 1
	}
	image(im).header().synced.Store(152)
	if err := os.WriteFile(o.Path, im, 0o600); err != nil {
		t.Fatal(err)
	}
	l, _ := load(t, o)
	defer shut(t, l)
	p[:150].check(t, l, 1)
	p.appendSome(t, l, random, 100)
	copied, _, err := l.Resized(Options{Size: MinSize, Channels: 300})
	if err != nil {
		t.Fatal(err)
	}
	defer shut(t, copied)
	for _, l := range []*Log{l, copied} {
		isOf(t, l, epochs[0], 100, true)
		isOf(t, l, epochs[0], 101, false)
		isOf(t, l, epochs[1], 150, true)
		isOf(t, l, epochs[1], 151, false)
		isOf(t, l, epochs[2], 150, true)
		isOf(t, l, epochs[2], 151, false)
	}
}

// A process that takes the descriptor over needs neither the path nor a scan, and keeps the epoch.
func TestFileOpened(t *testing.T) {
	o := home(t)
	l, _ := load(t, o)
	epoch := l.Epoch()
	random := rand.New(rand.NewPCG(5, 6))
	var p published
	for range 3 {
		p.appendSome(t, l, random, 2000)
		stored := duplicate(t, l.rings[0].file)
		tail := l.rings[0].m.head.tail.Load()
		shut(t, l)
		if again, _, err := Load(o); err == nil {
			again.Close()
			t.Fatal("somebody else could open it")
		}
		var err error
		if l, err = Open(stored); err != nil {
			t.Fatal(err)
		}
		if l.Epoch() != epoch || l.Path(0) != o.Path {
			t.Errorf("epoch %x, was %x; path %q", l.Epoch(), epoch, l.Path(0))
		}
		p.check(t, l, tail)
	}
	// After Finish as well, but then it is not finished any more.
	if err := l.Finish(); err != nil {
		t.Fatal(err)
	}
	stored := duplicate(t, l.rings[0].file)
	shut(t, l)
	// Now it is anybody's, whoever has its descriptor.
	l, found := load(t, o)
	if found.NewEpoch {
		t.Errorf("%+v", found)
	}
	end(t, l)
	l, err := Open(stored)
	if err != nil {
		t.Fatal(err)
	}
	p.appendSome(t, l, random, 1)
	if again, _, err := Load(o); err == nil {
		again.Close()
		t.Error("somebody else could open it")
	}
	shut(t, l)
	l, found = load(t, o)
	if !found.NewEpoch || l.Head() != uint64(len(p)) {
		t.Errorf("%+v", found)
	}
	shut(t, l)
}

func TestFileIsLocked(t *testing.T) {
	o := home(t)
	l, _ := load(t, o)
	defer shut(t, l)
	fds := descriptors()
	again, _, err := Load(o)
	if err == nil {
		again.Close()
		t.Fatal("two have it")
	}
	if !strings.Contains(err.Error(), o.Path+": another process uses it") {
		t.Error(err)
	}
	if descriptors() != fds {
		t.Error("a descriptor is left")
	}
}

// foreign are files that cannot be used, and stay what they are.
func TestForeign(t *testing.T) {
	o := home(t)
	l, _ := load(t, o)
	var p published
	p.appendSome(t, l, rand.New(rand.NewPCG(7, 8)), 100)
	end(t, l)
	whole, err := os.ReadFile(o.Path)
	if err != nil {
		t.Fatal(err)
	}
	memory := small(t)
	for name, content := range map[string][]byte{
		"empty":         nil,
		"text":          []byte(strings.Repeat("dear diary\n", 100000)),
		"zeros":         make([]byte, len(whole)),
		"half a header": whole[:60],
		"short":         whole[:len(whole)-1],
		"long":          append(slices.Clone(whole), 0),
		"header alone":  whole[:headerSize],
		"other layout":  func(im image) image { im.header().layout++; im.sign(); return im }(slices.Clone(whole)),
		"damaged":       func(im image) image { im.header().epoch++; return im }(slices.Clone(whole)),
		"in memory":     imageOf(t, memory),
		"no messages":   func(im image) image { clear(im[headerSize:]); return im }(slices.Clone(whole)),
	} {
		t.Run(name, func(t *testing.T) {
			o := home(t)
			var asides []string
			for n := range mostAside {
				if err := os.WriteFile(o.Path, content, 0o644); err != nil {
					t.Fatal(err)
				}
				l, found := load(t, o)
				if found.Kept != 0 || found.NewEpoch || found.Cause == nil || !strings.HasPrefix(found.Cause.Error(), "log: ") {
					t.Errorf("%+v", found)
				}
				if !strings.HasPrefix(found.Aside, o.Path+".old") || slices.Contains(asides, found.Aside) {
					t.Fatalf("it is now %q, others are %q", found.Aside, asides)
				}
				asides = append(asides, found.Aside)
				for _, aside := range asides {
					if is, err := os.ReadFile(aside); err != nil || !bytes.Equal(is, content) {
						t.Fatalf("round %d: %s has changed, %v", n, aside, err)
					}
				}
				var p published
				p.append(t, l, "a", []byte("b"), frame.Text)
				end(t, l)
				l, found = load(t, o)
				p.check(t, l, 1)
				end(t, l)
				if err := os.Remove(o.Path); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.WriteFile(o.Path, content, 0o600); err != nil {
				t.Fatal(err)
			}
			if l, _, err := Load(o); err == nil {
				l.Close()
				t.Error("there is no end of them")
			}
			if is, err := os.ReadFile(o.Path); err != nil || !bytes.Equal(is, content) {
				t.Errorf("it was moved or changed: %v", err)
			}
		})
	}
}

// What cannot have a log at all is said, with the path, and nothing is changed.
func TestCannotLoad(t *testing.T) {
	for name, test := range map[string]struct {
		make func(path string) error
		want string
	}{
		"no directory": {func(path string) error { return os.Remove(filepath.Dir(path)) }, "make the directory"},
		"a directory":  {func(path string) error { return os.Mkdir(path, 0o700) }, "is a directory"},
		"a symbolic link": {func(path string) error {
			err := os.WriteFile(path+".txt", []byte("precious"), 0o600)
			return errors.Join(err, os.Symlink(path+".txt", path))
		}, "symbolic link"},
		"a FIFO": {func(path string) error { return unix.Mkfifo(path, 0o600) }, "not a regular file"},
		"a file of somebody else": {func(path string) error {
			return errors.Join(os.WriteFile(path, []byte("precious"), 0o600), os.Chown(path, os.Getuid()+1, -1))
		}, "belongs to the user"},
		"the new file a symbolic link": {func(path string) error { return os.Symlink("/etc/passwd", beside(path)) }, "symbolic link"},
		"a limit":                      {func(string) error { return nil }, "RLIMIT_FSIZE"},
	} {
		t.Run(name, func(t *testing.T) {
			o := home(t)
			if name == "a file of somebody else" && os.Geteuid() != 0 {
				o.Path = "/etc/passwd"
			} else if err := test.make(o.Path); err != nil {
				t.Fatal(err)
			}
			if name == "a limit" {
				limitFiles(t, MinSize)
			}
			fds := descriptors()
			before, _ := os.ReadDir(filepath.Dir(o.Path))
			l, _, err := Load(o)
			if err == nil {
				l.Close()
				t.Fatal("no error")
			}
			if s := err.Error(); !strings.HasPrefix(s, "log: "+o.Path) || !strings.Contains(s, test.want) || strings.Contains(s, "\n") {
				t.Errorf("error %q, want %q", s, test.want)
			}
			if after, _ := os.ReadDir(filepath.Dir(o.Path)); len(after) != len(before) {
				t.Errorf("there was %v, and is %v", before, after)
			}
			if descriptors() != fds {
				t.Error("a descriptor is left")
			}
		})
	}
}

// limitFiles sets the size that files of this process may have.
func limitFiles(t *testing.T, size uint64) {
	t.Helper()
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &was); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: size, Max: was.Max}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &was); err != nil {
			t.Fatal(err)
		}
	})
}

// What was appended gets to the disk within a while, without anybody asking for it, and nothing is written when there is nothing.
func TestWritesBack(t *testing.T) {
	quick(t)
	l, _ := load(t, home(t))
	defer shut(t, l)
	for n := uint64(1); n < 50; n++ {
		appendTo(t, l, []byte("a"), []byte("message"))
		await(t, "the message is on the disk", func() bool { return l.rings[0].m.head.synced.Load() == n })
	}
	if err := l.Failure(); err != nil {
		t.Error(err)
	}
}

// quick makes the time between two writes to the disk short.
func quick(t *testing.T) {
	was := writeEvery
	writeEvery = time.Millisecond
	t.Cleanup(func() { writeEvery = was })
}

// A disk that does not take what it is given is noticed, and the log is not said to be closed in good order.
func TestDiskFails(t *testing.T) {
	quick(t)
	o := home(t)
	l, _ := load(t, o)
	r, w, err := os.Pipe() // which has no disk, so that fdatasync(2) fails
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	file := l.rings[0].file
	l.mu.Lock()
	l.rings[0].file = w
	l.mu.Unlock()
	appendTo(t, l, []byte("a"), []byte("message"))
	await(t, "the failure is known", func() bool { return l.Failure() != nil })
	l.rings[0].writer.stop()
	l.rings[0].file = file
	if err := l.Finish(); err == nil || !strings.Contains(err.Error(), o.Path) {
		t.Errorf("Finish: %v", err)
	}
	if l.rings[0].m.head.synced.Load() != 0 || l.rings[0].m.head.closed.Load() != 0 {
		t.Error("the disk is said to have it")
	}
	w.Close()
	shut(t, l)
	l, found := load(t, o)
	if found.Kept != 1 || !found.NewEpoch {
		t.Errorf("%+v", found)
	}
	shut(t, l)
}

// Reading what is not on the disk is an error and not the end. A file that is cut off under a mapping is like a bad disk.
func TestFault(t *testing.T) {
	o := home(t)
	l, _ := load(t, o)
	defer shut(t, l)
	appendTo(t, l, []byte("a"), make([]byte, 10000))
	if err := os.Truncate(o.Path, headerSize); err != nil {
		t.Fatal(err)
	}
	err := survivingFaults(func() error {
		l.rings[0].m.sum(l.rings[0].m.entry(1))
		return nil
	})
	var bad damagedError
	if !errors.As(err, &bad) {
		t.Errorf("error %v", err)
	}
	l.rings[0].writer.stop()
	if err := os.Truncate(o.Path, int64(l.rings[0].m.head.end())); err != nil { // what Close needs
		t.Fatal(err)
	}
	defer func() {
		if recover() == nil {
			t.Error("another panic was swallowed")
		}
	}()
	_ = survivingFaults(func() error { panic("another") })
}

func TestResizedBetweenFiles(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name, logName) }
	for _, name := range []string{"a", "b"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	random := rand.New(rand.NewPCG(9, 10))
	l, err := Create(Options{Size: MinSize, Channels: 300})
	if err != nil {
		t.Fatal(err)
	}
	epoch := l.Epoch()
	var p published
	p.appendSome(t, l, random, 1000)
	for i, o := range []Options{
		{Size: MinSize, Path: path("a")},
		{Size: 4 * MinSize, Path: path("a")},
		{Size: 4 * MinSize, Path: path("b")},
		{Size: 2 * MinSize},
		{Size: 2 * MinSize, Path: path("a")}, // where there is an older one
		{Size: MinSize, Path: path("a")},
	} {
		o.Channels = 300
		p.appendSome(t, l, random, 3000)
		// What a process left that was killed.
		if o.Path != "" {
			if err := os.WriteFile(beside(o.Path), make([]byte, 9*MinSize), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		next, aside, err := l.Resized(o)
		if err != nil {
			t.Fatal(err)
		}
		if next == l || next.Path(0) != o.Path || next.Epoch() != epoch || next.rings[0].m.size != uint64(o.Size) || (next.rings[0].writer == nil) != (o.Path == "") {
			t.Fatalf("%d: %+v", i, next.Usage()[0])
		}
		if (aside != "") != (i == 4) {
			t.Errorf("%d: %q was moved aside", i, aside)
		}
		shut(t, l)
		l = next
		p.check(t, l, l.rings[0].m.head.tail.Load())
		if same, _, err := l.Resized(o); same != l || err != nil {
			t.Errorf("%d: it was copied once more, %v", i, err)
		}
		p.appendSome(t, l, random, 100)
		if o.Path != "" { // all of it could be read after a power failure
			kept := l.rings[0].m.head.head.Load() + 1 - l.rings[0].m.head.tail.Load()
			if err := l.Finish(); err != nil {
				t.Fatal(err)
			}
			tail := l.rings[0].m.head.tail.Load()
			shut(t, l)
			var found Found
			l, found = load(t, o)
			if found != (Found{Kept: kept}) {
				t.Errorf("%d: %+v", i, found)
			}
			p.check(t, l, tail)
		}
	}
	shut(t, l)
}

// A copy that cannot be made leaves everything as it is.
func TestResizedFails(t *testing.T) {
	o := home(t)
	l, _ := load(t, o)
	defer shut(t, l)
	other, _ := load(t, home(t))
	defer shut(t, other)
	var p published
	p.appendSome(t, l, rand.New(rand.NewPCG(11, 12)), 100)
	for _, to := range []string{other.Path(0), filepath.Join(filepath.Dir(o.Path), "none", logName), filepath.Dir(o.Path)} {
		fds, maps := descriptors(), mappings()
		next, aside, err := l.Resized(Options{Size: MinSize, Channels: 300, Path: to})
		if err == nil || next != nil || aside != "" || strings.ContainsAny(err.Error(), "\n") {
			t.Errorf("%s: %v, %q, %v", to, next, aside, err)
		}
		if descriptors() != fds || mappings() != maps {
			t.Error("a descriptor or a mapping is left")
		}
		if _, err := os.Lstat(beside(to)); err == nil {
			t.Errorf("%s is left", beside(to))
		}
	}
	limitFiles(t, MinSize)
	if _, _, err := l.Resized(Options{Size: 2 * MinSize, Channels: 300, Path: o.Path}); err == nil {
		t.Error("no error")
	}
	if !isAt(l.rings[0].file, o.Path) {
		t.Error("its file has lost its path")
	}
	p.check(t, l, 1)
}

// Only a log with a file pays for checksums.
func TestNoSumsInMemory(t *testing.T) {
	l := small(t)
	appendTo(t, l, []byte("a"), []byte("message"))
	if e := l.rings[0].m.entry(1); e.sum != 0 || l.rings[0].writer != nil {
		t.Errorf("%+v", e)
	}
	o := home(t)
	f, _ := load(t, o)
	defer shut(t, f)
	channel, message := []byte("a"), make([]byte, 100)
	allocs := testing.AllocsPerRun(1000, func() { appendTo(t, f, channel, message) })
	if allocs != 0 {
		t.Errorf("%v allocations", allocs)
	}
	if e := f.rings[0].m.entry(5); e.sum == 0 || e.sum != f.rings[0].m.sum(e) {
		t.Errorf("%+v", e)
	}
}

func ExampleLog_Sequence() {
	l, err := Create(Options{Size: MinSize, Channels: 1})
	if err != nil {
		panic(err)
	}
	defer l.Close()
	_, _ = l.Append([]byte("news"), []byte("hello"), frame.Text)
	fmt.Println(l.Sequence(0, l.Epoch(), 1))
	fmt.Println(l.Sequence(0, l.Epoch(), 2))
	// Output:
	// 1 true
	// 2 false
}
