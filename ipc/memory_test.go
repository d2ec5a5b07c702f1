package ipc

import (
	"fmt"
	"strings"
	"testing"
)

// Commands that are not whole share the server's memory: below its limit and at it they become whole, above it the one that needs more is refused, and its
// connection goes on. When the others are through there is room again.
func TestMemoryOfUnfinishedCommands(t *testing.T) {
	const (
		size  = 200 << 10 // in a buffer of 256 KiB
		each  = 256<<10 - smallBuffer
		fit   = 3
		small = 10 << 10 // fits into what every connection has
	)
	whole := array("PUBLISH", "news", strings.Repeat("x", size))
	d := start(t, func(s *Server) { s.SetMemory(fit * each) })
	await := func(s *session, bytes int64) {
		t.Helper()
		for d.Stats().Memory != bytes {
			s.expectPong()
		}
	}
	probe := d.connect(t)
	var halves []*session
	for n := range fit {
		s := d.connect(t)
		s.send(whole[:size-100])
		await(probe, int64(n+1)*each)
		halves = append(halves, s)
	}
	over := d.connect(t)
	over.send(whole)
	over.expectError("ERR publish.memory is used up")
	over.send(array("PUBLISH", "news", strings.Repeat("x", small)))
	over.expect(":0\r\n")
	inline := d.connect(t)
	inline.send("PUBLISH news " + strings.Repeat("x", 40<<10))
	inline.expectError("ERR Protocol error: publish.memory is used up")
	inline.expectClosed()
	if st := d.Stats(); st.NoMemory < 2 || len(d.log.published()) != 1 {
		t.Errorf("%+v, %d messages", st, len(d.log.published()))
	}

	for _, s := range halves {
		s.send(whole[size-100:])
		s.expect(":0\r\n")
	}
	await(probe, 0)
	over.send(whole)
	over.expect(":0\r\n")
	gone := d.connect(t)
	gone.send(whole[:size-100])
	await(probe, each)
	gone.Close()
	await(probe, 0)
	if n := len(d.log.published()); n != 1+fit+1 {
		t.Errorf("%d messages are in the log", n)
	}
}

// A command is refused wherever it is when the memory is used up, what follows it is read, and over a restart as well.
func TestMemoryIsUsedUp(t *testing.T) {
	d := start(t, func(s *Server) { s.SetMemory(1) })
	for _, sizes := range [][]int{{20 << 10}, {smallBuffer - 60, 100}, {100, 40 << 10, 100}, {5 << 10, 5 << 10, 5 << 10, 5 << 10}, {maxMessageOfTest}} {
		t.Run(fmt.Sprint(sizes), func(t *testing.T) {
			words := []string{"PUBLISH", "news"}
			total := 0
			for _, n := range sizes {
				words = append(words, strings.Repeat("x", n))
				total += n
			}
			command := array(words...)
			s := d.connect(t)
			s.send(command[:total-50])
			for d.Stats().Memory != 0 {
				t.Fatal("memory is taken")
			}
			d.restart(t)
			s.send(command[total-50:] + "PING end\r\n")
			if total < smallBuffer-100 {
				t.Fatal("the command is too small")
			}
			line := s.line()
			if !strings.HasPrefix(line, "-ERR publish.memory is used up") && !strings.HasPrefix(line, "-ERR wrong") {
				t.Errorf("answered with %.100q", line)
			}
			if end := s.line(); end != "$3" {
				t.Errorf("and %q", end)
			}
		})
	}
}

const maxMessageOfTest = 900 << 10

func TestLeastMemory(t *testing.T) {
	for _, maxMessage := range []int{1, 1000, minArgument, 1 << 20, 1<<20 + 1, 3 << 20} {
		t.Run(fmt.Sprint(maxMessage), func(t *testing.T) {
			d := start(t, func(s *Server) { s.SetMaxMessage(maxMessage); s.SetMemory(LeastMemory(maxMessage)) })
			s := d.connect(t)
			for _, channel := range []string{"n", strings.Repeat("n", MaxChannel)} {
				s.send(array("PUBLISH", channel, strings.Repeat("x", maxMessage), "ID", strings.Repeat("i", 60)))
				s.expect(":0\r\n")
			}
		})
	}
}
