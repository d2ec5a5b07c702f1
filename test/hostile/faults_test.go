package hostile

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"wscast/test/harness"
)

// Other faults have their tests where they can be caused best: a full or broken disk, a process that stands still or is stopped, a lost manager in
// test/booted; errors of single system calls in daemon/loop; damaged logs and tables in daemon/msglog and daemon/survive.

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
		if err := pour(ctx, "unix", d.PublishSocket(), strings.Repeat(resp("PUBLISH", "load", strings.Repeat("x", 1000)), 10)); err != nil {
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
