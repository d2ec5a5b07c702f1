package ipc

import (
	"bufio"
	"fmt"
	"os"
	"strings"
	"testing"
)

const protocol = "../doc/protocol.txt"

// TestTranscripts runs every transcript of the protocol document, on a server of its own.
func TestTranscripts(t *testing.T) {
	f, err := os.Open(protocol)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var block []string
	blocks, first := 0, 0
	run := func() {
		if len(block) > 0 {
			blocks++
			lines := block
			t.Run(fmt.Sprintf("line %d", first), func(t *testing.T) { runTranscript(t, lines) })
			block = nil
		}
	}
	in := bufio.NewScanner(f)
	for n := 1; in.Scan(); n++ {
		line, indented := strings.CutPrefix(in.Text(), "    ")
		who, _, ok := strings.Cut(line, ":")
		if !indented || !ok || (who != "C" && who != "S" && who != "C2" && who != "S2") {
			run()
			continue
		}
		if block == nil {
			first = n
		}
		block = append(block, line)
	}
	run()
	if err := in.Err(); err != nil {
		t.Fatal(err)
	}
	if blocks < 10 {
		t.Errorf("%s has %d transcripts; it had more", protocol, blocks)
	}
}

func runTranscript(t *testing.T, lines []string) {
	d := start(t)
	d.log.set(func(l *testLog) { l.clients["news"] = 2 })
	sessions := map[string]*session{"": d.connect(t)}
	for _, line := range lines {
		who, text, _ := strings.Cut(line, ":")
		text = strings.TrimPrefix(text, " ")
		s := sessions[who[1:]]
		if s == nil {
			s = d.connect(t)
			sessions[who[1:]] = s
		}
		switch {
		case who[0] == 'C':
			s.send(text + "\r\n")
		case text == "(end)":
			s.expectClosed()
		case strings.HasSuffix(text, "..."):
			if got := s.line(); !strings.HasPrefix(got, strings.TrimSuffix(text, "...")) {
				t.Fatalf("got %q, want %q", got, text)
			}
		default:
			s.expect(text + "\r\n")
		}
	}
	for _, s := range sessions { // nothing more may come
		s.CloseWrite()
		s.expectClosed()
	}
}
