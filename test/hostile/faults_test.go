package hostile

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"wscast/test/harness"
)

// Other faults have their tests where they can be caused best: a full or broken disk, a process that stands still or is stopped, a lost manager in
// test/booted; errors of single system calls, and a time of day that jumps, in daemon/loop, daemon/msglog and ipc; damaged logs and tables in
// daemon/msglog and daemon/survive.

// Without descriptors who connects waits, clients as well as publishers; those who are there are served, it is said once, and with descriptors everybody gets
// in.
func TestOutOfDescriptors(t *testing.T) {
	d := harness.Start(t)
	o := observe(t, d)
	client := dial(t, "tcp", d.Address("websocket"))
	if status := client.open("news"); status != "101" {
		t.Fatal(status)
	}
	o.publish("news", "before")
	client.expect("before")

	var was unix.Rlimit
	limit := func(cur uint64, old *unix.Rlimit) {
		t.Helper()
		now := unix.Rlimit{Cur: cur, Max: 1 << 14}
		if old == nil {
			now.Max = was.Max
		} else if err := unix.Prlimit(d.PID(), unix.RLIMIT_NOFILE, nil, old); err != nil {
			t.Fatal(err)
		} else {
			now.Max = old.Max
		}
		if err := unix.Prlimit(d.PID(), unix.RLIMIT_NOFILE, &now, nil); err != nil {
			t.Fatal(err)
		}
	}
	limit(uint64(taken(t, d.PID()).descriptors+3), &was)

	const many = 30 // more than there are descriptors for
	var waiting []*wire
	for range many {
		w := dial(t, "tcp", d.Address("websocket"))
		w.send(opening("news"))
		waiting = append(waiting, w)
	}
	d.AwaitLog("cannot accept connections, they wait")
	var publishers []*wire
	for range 3 {
		w := dial(t, "unix", d.PublishSocket())
		w.send("PING\r\n")
		publishers = append(publishers, w)
	}
	d.AwaitLog("cannot accept publishers for now")
	for i := range 20 {
		text := fmt.Sprint("meanwhile ", i)
		o.publish("news", text)
		client.expect(text)
	}
	limit(was.Cur, nil)
	for _, w := range waiting {
		if status := w.status(); status != "101" {
			t.Errorf("after the wait: %s", status)
		}
	}
	for _, w := range publishers {
		if line := w.line(); line != "+PONG" {
			t.Errorf("after the wait: %s", line)
		}
	}
	o.await("connected_clients", is(1+many))
	d.AwaitLog("accepting connections again")
	if n := strings.Count(d.Log(), "cannot accept connections"); n != 1 {
		t.Errorf("it is said %d times", n)
	}
}

// A publisher that is killed in the middle of a command has published nothing of it, and leaves nothing.
func TestPublisherKilledInTheMiddle(t *testing.T) {
	d := harness.Start(t)
	o := observe(t, d)
	client := dial(t, "tcp", d.Address("websocket"))
	if status := client.open("news"); status != "101" {
		t.Fatal(status)
	}
	p := harness.Launch(t, harness.Find(t, "nc", "netcat-openbsd"), "-U", d.PublishSocket())
	p.Send(resp("PUBLISH", "news", "whole"))
	p.Await(":1")
	client.expect("whole")
	p.Send(resp("PUBLISH", "news", strings.Repeat("half", 50_000))[:100_000])
	o.await("unfinished_bytes", func(n int) bool { return n >= 100_000 })
	p.Signal(syscall.SIGKILL)
	o.await("unfinished_bytes", is(0))
	o.await("connected_publishers", is(1))
	o.publish("news", "next")
	client.expect("next")
	if n := o.figure("messages_published"); n != 2 {
		t.Errorf("%d messages were published", n)
	}
}

// nginx is killed under load: its clients are gone, and no others; with nginx back they come again.
func TestNginxKilledUnderLoad(t *testing.T) {
	d := harness.Start(t, harness.Socket("websocket", "unix"))
	nginx := harness.StartNginx(t, d.Addresses("websocket")[1])
	o := observe(t, d)
	direct := dial(t, "tcp", d.Address("websocket"))
	if status := direct.open("news"); status != "101" {
		t.Fatal(status)
	}
	const many = 50
	through := func() (clients []*wire) {
		t.Helper()
		for range many {
			w := dial(t, "tcp", strings.TrimPrefix(nginx.URL(""), "http://"))
			if status := w.open("load"); status != "101" {
				t.Fatalf("%s\n%s", status, nginx.Log())
			}
			clients = append(clients, w)
		}
		o.await("connected_clients", is(1+many))
		return clients
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	var load sync.WaitGroup
	defer load.Wait()
	defer stop()
	load.Go(func() {
		if err := pour(ctx, func() {}, "unix", d.PublishSocket(), strings.Repeat(resp("PUBLISH", "load", strings.Repeat("x", 1000)), 10)); err != nil {
			t.Error(err)
		}
	})
	for round := range 2 {
		clients := through()
		var ends sync.WaitGroup
		for _, w := range clients {
			heard := make(chan struct{})
			ends.Go(func() {
				for first := true; ; first = false {
					_, payload, err := hear(w.in)
					if first {
						close(heard)
					}
					if err != nil {
						return // the end that is wanted
					}
					if len(payload) != 1000 {
						t.Errorf("a message of %d bytes", len(payload))
					}
				}
			})
			<-heard
		}
		nginx.Kill()
		ends.Wait()
		o.await("connected_clients", is(1))
		text := fmt.Sprint("round ", round)
		o.publish("news", text)
		direct.expect(text)
		nginx.Start()
	}
}

// A daemon that is stopped and goes on (SIGSTOP, SIGCONT) has lost nothing: whoever has spoken to it meanwhile is answered.
func TestStoppedAndContinued(t *testing.T) {
	d := harness.Start(t)
	o := observe(t, d)
	client := dial(t, "tcp", d.Address("websocket"))
	if status := client.open("news"); status != "101" {
		t.Fatal(status)
	}
	for range 3 {
		d.Signal(syscall.SIGSTOP)
		late := dial(t, "tcp", d.Address("websocket"))
		late.send(opening("news"))
		publisher := dial(t, "unix", d.PublishSocket())
		publisher.send(resp("PUBLISH", "other", "x") + "PING\r\n")
		client.send(frame(opPing, "are you there"))
		d.Signal(syscall.SIGCONT)
		if status := late.status(); status != "101" {
			t.Error(status)
		}
		if line := publisher.line() + publisher.line(); line != ":0+PONG" {
			t.Error(line)
		}
		if first, payload := client.hear(); first != opPong || payload != "are you there" {
			t.Errorf("%#x %q", first, payload)
		}
		o.publish("news", "on")
		client.expect("on")
		late.expect("on")
	}
}

// A log file that was damaged while nobody had it costs what was damaged and no more: what is sent of it is what was published, in order, and the daemon says what
// it has found, keeps a file that it cannot use, and goes on.
func TestDamagedLogFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	d := harness.Start(t, harness.Config(fmt.Sprintf("[log]\nsize = \"1MiB\"\npath = %q\n[publish]\nmax_message = 1000\n[websocket]\nclose_timeout = \"50ms\"\n", path)))
	const messages = 60
	text := func(i int) string { return fmt.Sprintf("message %d, %s", i, strings.Repeat("x", 500)) }
	o := observe(t, d)
	for i := range messages {
		o.publish("news", text(i))
	}
	d.Stop()
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.Index(whole, []byte(text(messages/2)))
	if at < 0 {
		t.Fatal("message is not in the file")
	}
	changed := func(at int, with ...byte) []byte { return slices.Concat(whole[:at], with, whole[at+len(with):]) }
	const anew = "the log begins anew"
	for name, damage := range map[string]struct {
		content []byte
		said    string
		left    int // messages at least
	}{
		"nothing":        {whole, "the log is there", messages},
		"a payload":      {changed(at+20, '!'), "the log was not closed in good order", messages/2 - 1},
		"a header":       {changed(at-4, 0xff, 0xff), "the log was not closed in good order", messages/2 - 1},
		"a page":         {changed(at, make([]byte, 4096)...), "the log was not closed in good order", messages/2 - 8},
		"the beginning":  {changed(0, make([]byte, 64)...), anew, 0},
		"all but a half": {whole[:len(whole)/2], anew, 0},
		"everything":     {bytes.Repeat([]byte("dear diary\n"), len(whole)/11), anew, 0},
	} {
		t.Run(name, func(t *testing.T) {
			if err := os.WriteFile(path, damage.content, 0o600); err != nil {
				t.Fatal(err)
			}
			d.Start()
			d.AwaitLog(damage.said)
			o := observe(t, d)
			o.publish("news", "new")
			w := dial(t, "tcp", d.Address("websocket"))
			if status := w.open("", "Sec-WebSocket-Protocol: wscast.v1.json"); status != "101" {
				t.Fatal(status)
			}
			w.hear() // the welcome
			w.send(frame(opText, `{"command":"history","channel":"news","last":1000}`))
			w.hear() // how many there are
			heard := 0
			for last, end := -1, false; !end; {
				var m struct{ Data string }
				if _, payload := w.hear(); json.Unmarshal([]byte(payload), &m) != nil || m.Data == "" {
					t.Fatalf("%.100q is no message", payload)
				}
				if end = m.Data == "new"; end {
					break
				}
				i := last + 1
				for i < messages && m.Data != text(i) {
					i++
				}
				if i == messages {
					t.Fatalf("%.100q after message %d", m.Data, last)
				}
				last = i
				heard++
			}
			w.Close()
			if heard < damage.left || heard > damage.left && damage.left == 0 {
				t.Errorf("%d messages are left, want %d", heard, damage.left)
			}
			d.Stop()
			if damage.said == anew {
				old, _ := filepath.Glob(path + ".old*")
				if len(old) != 1 {
					t.Fatalf("%d files were moved aside", len(old))
				}
				if is, err := os.ReadFile(old[0]); err != nil || !bytes.Equal(is, damage.content) {
					t.Errorf("%s is not what was there: %v", old[0], err)
				}
				if err := os.Remove(old[0]); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// The machine's own clock, from which all waiting is counted, is another one in each process (time_namespaces(7)), as on a machine that was moved: forth by a
// month, back to a minute after its start. Who is taken over is neither dropped nor kept waiting, and what was half sent is completed.
func TestTheMachinesClockJumps(t *testing.T) {
	unshare := harness.Find(t, "unshare", "util-linux")
	var up unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &up); err != nil {
		t.Fatal(err)
	}
	const month = 30 * 24 * 3600
	d := harness.Start(t, harness.FDStore(100), harness.Config("[websocket]\nclose_timeout = \"50ms\"\n[publish]\nrate = 2\n"))
	client, talker, publisher := dial(t, "tcp", d.Address("websocket")), dial(t, "tcp", d.Address("websocket")), dial(t, "unix", d.PublishSocket())
	if status := client.open("news"); status != "101" {
		t.Fatal(status)
	}
	if status := talker.open("news", "Sec-WebSocket-Protocol: wscast.v1.json"); status != "101" {
		t.Fatal(status)
	}
	talker.hear() // the welcome
	talker.hear() // that it is subscribed
	for i, jump := range []int64{month, 60 - up.Sec, 0} {
		for name, end := range map[string]func(){"restart": d.Stop, "kill": d.Kill} {
			// A request, a frame and a command are begun; of a publisher that is killed with the daemon nothing is left, as doc/protocol.txt has it.
			late, half := dial(t, "tcp", d.Address("websocket")), frame(opPing, "are you there")
			late.send(opening("news")[:40])
			client.send(half[:9])
			text := fmt.Sprint(name, " ", i)
			command := resp("PUBLISH", "news", text)
			if name == "kill" {
				publisher.Close()
			} else {
				publisher.send(resp("PUBLISH", "other", "x") + resp("PUBLISH", "other", "x") + command[:20]) // as many as it may in a second
				if lines := publisher.line() + publisher.line(); lines != ":0:0" {
					t.Fatal(lines)
				}
			}
			end()
			offset := strconv.FormatInt(jump, 10)
			d.Under(unshare, "--time", "--monotonic", offset, "--boottime", offset) // needs root
			d.Start()
			if clock(t, d.PID()) == clock(t, os.Getpid()) {
				t.Fatal("the daemon has the clock of everybody")
			}
			// A client that does not close is given up by the clock that says as well who has been silent for too long.
			o, open := observe(t, d), dial(t, "tcp", d.Address("websocket"))
			if status := open.open("other"); status != "101" {
				t.Fatal(status)
			}
			open.send(frame(opClose, ""))
			open.hear()
			o.await("connected_clients", is(2))
			o.await("closing", is(0))
			if name == "kill" {
				publisher = dial(t, "unix", d.PublishSocket())
				publisher.send(command)
			} else {
				publisher.send(command[20:])
			}
			if line := publisher.line(); line != ":2" {
				t.Errorf("%s: %s", text, line)
			}
			client.expect(text)
			if _, payload := talker.hear(); !strings.Contains(payload, text) {
				t.Errorf("%s: %s", text, payload)
			}
			client.send(half[9:])
			if first, payload := client.hear(); first != opPong || payload != "are you there" {
				t.Errorf("%s: %#x %q", text, first, payload)
			}
			late.send(opening("news")[40:])
			if status := late.status(); status != "101" {
				t.Errorf("%s: %s", text, status)
			}
			late.Close()
			o.await("connected_clients", is(2))
		}
	}
}

// clock names the clock that a process goes by.
func clock(t *testing.T, pid int) string {
	t.Helper()
	name, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/time", pid))
	if err != nil {
		t.Fatal(err)
	}
	return name
}
