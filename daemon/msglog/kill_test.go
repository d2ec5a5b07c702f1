package msglog

import (
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"testing"

	"wscast/daemon/frame"
)

// publisherEnv makes the test program the child of TestKilled; it says how many rings the log has.
const publisherEnv = "WSCAST_TEST_PUBLISHER"

// publish is the child: it takes over the log on the descriptors from 3 on and appends as fast as it can, and says on the one after them, every
// now and then, which message was appended last. It ends by being killed.
func publish() {
	rings, err := strconv.Atoi(os.Getenv(publisherEnv))
	var files []*os.File
	for i := range rings {
		files = append(files, os.NewFile(uintptr(3+i), "wscast-log"))
	}
	var l *Log
	if err == nil {
		l, err = Open(files...)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if rings > 1 {
		l.Keep(ofThree()) // some rings have files, and it does not know where
	}
	reports := os.NewFile(uintptr(3+rings), "reports")
	var message []byte
	for {
		seq := l.Head() + 1
		message = content(message, seq, 5000)
		if _, again, err := l.Put(channelOf(seq), message, fmt.Append(nil, seq), frame.Binary); again || err != nil {
			fmt.Fprintln(os.Stderr, seq, again, err)
			os.Exit(1)
		}
		if rand.IntN(16) == 0 {
			if _, err := reports.Write(binary.NativeEndian.AppendUint64(nil, seq)); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
		}
	}
}

// channelOf is the channel that a message with that number goes to: three of them often, others once in a while.
func channelOf(seq uint64) []byte {
	if seq%50 == 0 {
		return fmt.Appendf(nil, "once %d", seq)
	}
	return fmt.Appendf(nil, "channel %d", seq%3)
}

// A publisher's process is killed again and again: every message that it has reported is there, and the log is as good as new.
func TestKilled(t *testing.T) {
	o := Options{Size: MinSize, Channels: 4096}
	t.Run("memory", func(t *testing.T) {
		l, err := Create(o)
		if err != nil {
			t.Fatal(err)
		}
		epoch := l.Epoch()
		killed(t, l, 50, func(file *os.File) *Log { return opened(t, file, epoch) })
	})
	t.Run("file", func(t *testing.T) {
		o.Path = home(t).Path
		l, _ := load(t, o)
		epoch := l.Epoch()
		killed(t, l, 20, func(file *os.File) *Log { return opened(t, file, epoch) })
	})
	// With nobody to keep the descriptor. The epoch is another one each time, and that of the last round is known.
	t.Run("path", func(t *testing.T) {
		o.Path = home(t).Path
		l, _ := load(t, o)
		epoch := l.Epoch()
		killed(t, l, 20, func(file *os.File) *Log {
			file.Close()
			l, found := load(t, o)
			if !found.NewEpoch || found.CutNewer > 1 || l.Epoch() == epoch { // the one that was being written
				t.Errorf("%+v", found)
			}
			isOf(t, l, epoch, l.Head(), true)
			isOf(t, l, epoch, l.Head()+1, false)
			epoch = l.Epoch()
			return l
		})
	})
}

// opened takes a descriptor over.
func opened(t *testing.T, file *os.File, epoch uint64) *Log {
	t.Helper()
	l, err := Open(file)
	if err != nil {
		t.Fatal(err)
	}
	if l.Epoch() != epoch {
		t.Errorf("the epoch is %x, was %x", l.Epoch(), epoch)
	}
	return l
}

// publishAndKill has a child publish for a while. It returns the number of the last message that the child has reported.
func publishAndKill(t *testing.T, files ...*os.File) (reported uint64) {
	t.Helper()
	reports, theirs, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer reports.Close()
	child := exec.CommandContext(t.Context(), os.Args[0])
	child.Env = append(os.Environ(), publisherEnv+"="+strconv.Itoa(len(files)))
	child.ExtraFiles = append(slices.Clone(files), theirs)
	child.Stderr = os.Stderr
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	buf := make([]byte, 8)
	read := func() bool {
		if _, err := io.ReadFull(reports, buf); err != nil {
			return false
		}
		reported = binary.NativeEndian.Uint64(buf)
		return true
	}
	for range rand.IntN(300) {
		if !read() {
			break // it has ended: Wait says how
		}
	}
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := child.Wait(); child.ProcessState.Exited() {
		t.Fatal("the publisher has ended by itself:", err)
	}
	for read() { // what it has reported before it died
	}
	return reported
}

func killed(t *testing.T, l *Log, rounds int, recover func(*os.File) *Log) {
	unlinked := 0
	for round := range rounds {
		file := duplicate(t, l.rings[0].file)
		shut(t, l)
		reported := publishAndKill(t, file)

		m, err := mapFile(file)
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		if head := m.head.head.Load(); head > 0 {
			if e := m.entry(head); e.prev >= m.head.tail.Load() && m.entry(e.prev).next.Load() == 0 {
				unlinked++ // killed between moving the head and linking
			}
		}
		if err := m.unmap(); err != nil {
			t.Fatal(err)
		}
		l = recover(file)
		if l.Head() < reported {
			t.Errorf("round %d: message %d was reported, the head is %d", round, reported, l.Head())
		}
		var p published
		tail := l.rings[0].m.head.tail.Load()
		for seq := uint64(1); seq <= l.Head(); seq++ {
			one := struct {
				channel string
				message []byte
				op      frame.Opcode
			}{channel: string(channelOf(seq)), op: frame.Binary}
			if seq >= tail {
				one.message = content(nil, seq, 5000)
				if !l.hasLocked(hashID(channelOf(seq), fmt.Append(nil, seq))) {
					t.Fatalf("round %d: message %d has lost its id", round, seq)
				}
			}
			p = append(p, one)
		}
		p.check(t, l, tail)
		if n := l.Head() + 1 - tail; uint64(len(l.once)) != n && l.Head() > 0 {
			t.Errorf("round %d: %d messages have %d ids", round, n, len(l.once))
		}
	}
	shut(t, l)
	t.Logf("killed %d times between head and link", unlinked)
}

// ofThree has a ring for each of two busy channels, and one for the third and all others.
func ofThree() *Arrangement {
	a := arrangementOf("channel 0", "channel 1")
	for i := range a.Rings {
		a.Rings[i].Channels = 4096
	}
	return a
}

// The same with several rings: each has all that it had, in order, and no number is given twice.
func TestKilledOverRings(t *testing.T) {
	for name, path := range map[string]string{"memory": "", "files": t.TempDir()} {
		t.Run(name, func(t *testing.T) {
			a := ofThree()
			var l *Log
			var err error
			if path == "" {
				l, err = CreateAll(a)
			} else {
				l, _, err = LoadAll(a.at(path, "", "channel 1"))
			}
			if err != nil {
				t.Fatal(err)
			}
			for round := range 20 {
				var files []*os.File
				for i := range l.Rings() {
					files = append(files, duplicate(t, l.File(i)))
				}
				epoch := l.Epoch()
				shut(t, l)
				reported := publishAndKill(t, files...)
				rand.Shuffle(len(files), func(i, j int) { files[i], files[j] = files[j], files[i] })
				if l, err = Open(files...); err != nil {
					t.Fatalf("round %d: %v", round, err)
				}
				if !l.Fits(a) || l.Epoch() != epoch || l.Head() < reported {
					t.Fatalf("round %d: head %d, reported %d, epoch %x after %x", round, l.Head(), reported, l.Epoch(), epoch)
				}
				expectContents(t, l)
			}
			shut(t, l)
		})
	}
}

// expectContents is for what publish has appended: all messages from the oldest one on that readers get of each ring, and no others.
func expectContents(t *testing.T, l *Log) {
	t.Helper()
	all := contents(t, l)
	var last [3]uint64 // by ring
	for i, m := range all {
		ring := l.ringFor([]byte(m.channel)).index
		if m.channel != string(channelOf(m.number)) || m.data != string(content(nil, m.number, 5000)) {
			t.Fatalf("message %d on %s: %d bytes", m.number, m.channel, len(m.data))
		}
		if i > 0 && m.number <= all[i-1].number {
			t.Fatalf("message %d after %d", m.number, all[i-1].number)
		}
		for n := last[ring] + 1; last[ring] > 0 && n < m.number; n++ {
			if l.ringFor(channelOf(n)).index == ring {
				t.Fatalf("message %d is missing before %d", n, m.number)
			}
		}
		last[ring] = m.number
		if !l.hasLocked(hashID(channelOf(m.number), fmt.Append(nil, m.number))) {
			t.Fatalf("message %d has lost its id", m.number)
		}
	}
	for ring, n := range last {
		for n++; n <= l.Head(); n++ {
			if l.ringFor(channelOf(n)).index == ring {
				t.Fatalf("message %d is missing at the end of ring %d", n, ring)
			}
		}
	}
	kept := uint64(0)
	for _, u := range l.Usage() {
		kept += u.Messages
	}
	if uint64(len(l.once)) != kept {
		t.Errorf("%d messages have %d ids", kept, len(l.once))
	}
}
