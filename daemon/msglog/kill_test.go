package msglog

import (
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"testing"

	"wscast/daemon/frame"
)

// publisherEnv makes the test program the child of TestKilled.
const publisherEnv = "WSCAST_TEST_PUBLISHER"

// publish is the child: it takes over the log on descriptor 3 and appends as fast as it can, and says on descriptor 4, every
// now and then, which message was appended last. It ends by being killed.
func publish() {
	l, err := Open(os.NewFile(3, "wscast-log"))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	reports := os.NewFile(4, "reports")
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

func killed(t *testing.T, l *Log, rounds int, recover func(*os.File) *Log) {
	unlinked := 0
	for round := range rounds {
		file := duplicate(t, l.file)
		shut(t, l)
		reports, theirs, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		child := exec.CommandContext(t.Context(), os.Args[0])
		child.Env = append(os.Environ(), publisherEnv+"=1")
		child.ExtraFiles = []*os.File{file, theirs}
		child.Stderr = os.Stderr
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		theirs.Close()
		var reported uint64
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
		reports.Close()

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
		tail := l.m.head.tail.Load()
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
