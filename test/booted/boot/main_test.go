package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"testing"

	"wscast/test/booted"
	"wscast/test/harness"
)

func TestMain(m *testing.M) {
	code := harness.Main(m)
	booted.RemoveLayers()
	os.Exit(code)
}

// The system is there until the input ends, and does as it is told.
func TestCommands(t *testing.T) {
	in, commands := io.Pipe()
	answers, out := io.Pipe()
	ended := make(chan int, 1)
	go func() {
		defer out.Close()
		ended <- run(t.Context(), in, out)
	}()
	defer func() {
		commands.Close()
		if code := <-ended; code != 0 {
			t.Errorf("it ended with code %d", code)
		}
	}()
	lines := bufio.NewScanner(answers)
	expect := func(to any) {
		t.Helper()
		if !lines.Scan() {
			t.Fatal("it has ended")
		}
		if err := json.Unmarshal(lines.Bytes(), to); err != nil {
			t.Fatalf("%q: %v", lines.Text(), err)
		}
	}
	tell := func(command string, to any) {
		t.Helper()
		if _, err := fmt.Fprintln(commands, command); err != nil {
			t.Fatal(err)
		}
		expect(to)
	}

	var system System
	expect(&system)
	if err := syscall.Kill(system.PID1, 0); err != nil {
		t.Errorf("PID 1 is %d: %v", system.PID1, err)
	}
	for _, socket := range [][2]string{{"tcp", system.Address}, {"unix", system.Publish}} {
		c, err := net.Dial(socket[0], socket[1])
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
	var first, second struct{ Main int }
	tell("main", &first)
	tell("restart", &struct{}{})
	tell("main", &second)
	if first == second || second.Main == 0 {
		t.Errorf("the process was %d, and is %d after a restart", first.Main, second.Main)
	}
	var s Start
	tell("start", &s)
	if s.Left == 0 || s.Exec < s.Left || s.Ready < s.Exec {
		t.Errorf("the last start is %+v", s)
	}
}
