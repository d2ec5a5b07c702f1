package hostile

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"wscast/test/harness"
)

// flood is what many do at the same time, as fast as they can, until ctx ends: clients and publishers that mean harm, or know no better.
type flood struct {
	name  string
	many  int
	drown func(ctx context.Context, d *harness.Daemon, wave func(n int)) error // by one of them; wave counts what has been sent
	unit  string                                                               // what is counted
}

// watchdog is WatchdogSec= of the unit: for so long a status may take at most.
const watchdog = 30 * time.Second

var floods = []flood{
	{"publishers at full pipeline", 4, func(ctx context.Context, d *harness.Daemon, wave func(n int)) error {
		return pour(ctx, func() { wave(200) }, "unix", d.PublishSocket(), strings.Repeat(resp("PUBLISH", "flood", strings.Repeat("x", 100)), 200))
	}, "messages"},
	{"large messages", 4, func(ctx context.Context, d *harness.Daemon, wave func(n int)) error {
		return pour(ctx, func() { wave(1) }, "unix", d.PublishSocket(), resp("PUBLISH", "flood", strings.Repeat("x", 1<<20)))
	}, "messages of 1 MiB"},
	{"publishers that do not read their answers", 4, func(ctx context.Context, d *harness.Daemon, wave func(n int)) error {
		return pourDeaf(ctx, func() { wave(100) }, "unix", d.PublishSocket(), "", strings.Repeat("COMMAND\r\n", 100))
	}, "commands"},
	{"clients that come and go", 4, func(ctx context.Context, d *harness.Daemon, wave func(n int)) error {
		return visit(ctx, func() { wave(1) }, d, opening("flood"))
	}, "connections"},
	{"requests that are not finished", 4, func(ctx context.Context, d *harness.Daemon, wave func(n int)) error {
		return visit(ctx, func() { wave(1) }, d, opening("flood")[:60])
	}, "connections"},
	{"requests that are none", 4, func(ctx context.Context, d *harness.Daemon, wave func(n int)) error {
		return visit(ctx, func() { wave(1) }, d, strings.Repeat("x", 9000))
	}, "connections"},
	{"pings", 4, func(ctx context.Context, d *harness.Daemon, wave func(n int)) error {
		return pour(ctx, func() { wave(1000) }, "tcp", d.Address("websocket"), strings.Repeat(frame(opPing, "x"), 1000), opening("flood"))
	}, "pings"},
	{"pings of clients that do not read", 4, func(ctx context.Context, d *harness.Daemon, wave func(n int)) error {
		return pourDeaf(ctx, func() { wave(1000) }, "tcp", d.Address("websocket"), opening("flood"), strings.Repeat(frame(opPing, strings.Repeat("x", 125)), 1000))
	}, "pings"},
	{"tiny frames", 4, func(ctx context.Context, d *harness.Daemon, wave func(n int)) error {
		return pour(ctx, func() { wave(2000) }, "tcp", d.Address("websocket"), strings.Repeat(frame(0x01, "")+frame(0x80, "x"), 1000), opening("flood"))
	}, "frames"},
	{"subscribing and unsubscribing", 4, func(ctx context.Context, d *harness.Daemon, wave func(n int)) error {
		return pour(ctx, func() { wave(600) }, "tcp", d.Address("websocket"), subscriptions(), opening("", "Sec-WebSocket-Protocol: wscast.v1.json"))
	}, "commands"},
	{"commands whose answers are not read", 4, func(ctx context.Context, d *harness.Daemon, wave func(n int)) error {
		return pourDeaf(ctx, func() { wave(600) }, "tcp", d.Address("websocket"), opening("", "Sec-WebSocket-Protocol: wscast.v1.json"), subscriptions())
	}, "commands"},
	{"slow handshakes", 200, func(ctx context.Context, d *harness.Daemon, wave func(n int)) error {
		for ctx.Err() == nil {
			if err := crawl(ctx, func() { wave(1) }, d, opening("flood")); err != nil {
				return err
			}
		}
		return nil
	}, "bytes"},
}

func subscriptions() string {
	var b strings.Builder
	for i := range 200 {
		b.WriteString(frame(opText, fmt.Sprintf(`{"command":"subscribe","channel":"flood/%d","since":"10s"}`, i)))
		b.WriteString(frame(opText, fmt.Sprintf(`{"command":"unsubscribe","channel":"flood/%d"}`, i)))
		b.WriteString(frame(opText, `{"command":"presence","channel":"flood"}`))
	}
	return b.String()
}

// pour sends the same again and again, and reads what it is answered with. wave is called each time, here and below.
func pour(ctx context.Context, wave func(), network, address, what string, first ...string) error {
	conn, err := net.Dial(network, address)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	var reading sync.WaitGroup
	defer reading.Wait()
	reading.Go(func() { _, _ = io.Copy(io.Discard, conn) })
	if _, err := io.WriteString(conn, strings.Join(first, "")); err != nil {
		return err
	}
	for ctx.Err() == nil {
		if _, err := io.WriteString(conn, what); err != nil && ctx.Err() == nil {
			return fmt.Errorf("closed in the middle of the flood: %w", err)
		}
		wave()
	}
	return nil
}

// pourDeaf does the same and reads nothing but the answer to the first. It may be closed for that.
func pourDeaf(ctx context.Context, wave func(), network, address, first, what string) error {
	for ctx.Err() == nil {
		conn, err := net.Dial(network, address)
		if err != nil {
			return err
		}
		stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
		_, err = io.WriteString(conn, first)
		for err == nil && ctx.Err() == nil {
			if _, err = io.WriteString(conn, what); err == nil {
				wave()
			}
		}
		stop()
		conn.Close()
	}
	return nil
}

// visit opens connections and closes them, each in another way.
func visit(ctx context.Context, wave func(), d *harness.Daemon, request string) error {
	for i := 0; ctx.Err() == nil; i++ {
		conn, err := net.Dial("tcp", d.Address("websocket"))
		if err != nil {
			return err
		}
		_ = conn.SetDeadline(time.Now().Add(harness.Patience))
		_, err = io.WriteString(conn, request)
		if err == nil && strings.HasSuffix(request, "\r\n\r\n") && i%4 != 0 {
			in := bufio.NewReader(conn)
			if _, err = in.ReadString('\n'); err == nil && i%2 == 0 {
				_, err = io.WriteString(conn, frame(opClose, "\x03\xe8"))
				_, _ = io.Copy(io.Discard, in)
			}
		}
		_ = conn.(*net.TCPConn).SetLinger(0) // an end by RST, and no port that waits
		conn.Close()
		if err != nil && ctx.Err() == nil && len(request) < 9000 {
			return err
		}
		wave()
	}
	return nil
}

// crawl sends a request byte by byte, until it is whole or answered 408.
func crawl(ctx context.Context, wave func(), d *harness.Daemon, request string) error {
	conn, err := net.Dial("tcp", d.Address("websocket"))
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	for i := range len(request) {
		if _, err := io.WriteString(conn, request[i:i+1]); err != nil || ctx.Err() != nil {
			break
		}
		wave()
		select {
		case <-ctx.Done():
		case <-time.After(10 * time.Millisecond): // what makes it slow
		}
	}
	return nil
}

// takes is what a process takes.
type takes struct{ memory, descriptors int }

func taken(t *testing.T, pid int) (now takes) {
	t.Helper()
	statm, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid)) // proc_pid_statm(5)
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(statm))
	resident, _ := strconv.Atoi(fields[1])
	shared, _ := strconv.Atoi(fields[2]) // the log and the table, which have their own limits
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	return takes{(resident - shared) * os.Getpagesize(), len(fds)}
}

// Whatever comes in floods: status is answered, others get their messages, memory stays within bounds, and afterwards nothing is left of it.
func TestFloodsFromOutside(t *testing.T) {
	lasts := 150 * time.Millisecond
	if text := os.Getenv("WSCAST_TEST_FLOOD"); text != "" {
		var err error
		if lasts, err = time.ParseDuration(text); err != nil {
			t.Fatalf("WSCAST_TEST_FLOOD: %v", err)
		}
	}
	d := harness.Start(t, harness.Unchecked(t), harness.Config(`
[websocket]
handshake_timeout = "1s"
close_timeout = "1s"
ping = "10s"
[log]
size = "16MiB"
channels = 500
[publish]
max_message = "1MiB"
reply_timeout = "1s"
memory = "16MiB"
`))
	o := observe(t, d)
	client := dial(t, "tcp", d.Address("websocket"))
	if status := client.open("news"); status != "101" {
		t.Fatal(status)
	}
	d.AwaitLog("clients will not survive a restart") // the store was tried, and is none
	idle := taken(t, d.PID())
	for _, f := range floods {
		t.Run(f.name, func(t *testing.T) {
			o.t = t
			ctx, stop := context.WithTimeout(context.Background(), lasts)
			defer stop()
			var all sync.WaitGroup
			var sent atomic.Int64
			before, begun := taken(t, d.PID()), time.Now()
			for range f.many {
				all.Go(func() {
					if err := f.drown(ctx, d, func(n int) { sent.Add(int64(n)) }); err != nil {
						t.Error(err)
					}
				})
			}
			rounds, worst, slowest := 0, takes{}, time.Duration(0)
			for ; rounds == 0 || ctx.Err() == nil; rounds++ {
				text := fmt.Sprint(f.name, rounds)
				asked := time.Now()
				_ = client.SetDeadline(asked.Add(harness.Patience))
				o.publish("news", text)
				for {
					first, payload := client.hear()
					if first == opPing {
						client.send(frame(opPong, payload))
						continue
					}
					if first != opText || payload != text {
						t.Fatalf("%#x %.100q instead of %q", first, payload, text)
					}
					break
				}
				o.figure("connected_clients")
				slowest = max(slowest, time.Since(asked))
				now := taken(t, d.PID())
				worst = takes{max(worst.memory, now.memory), max(worst.descriptors, now.descriptors)}
			}
			lasted := time.Since(begun)
			all.Wait()
			for _, key := range []string{"opening", "closing"} {
				o.await(key, is(0))
			}
			o.await("connected_clients", is(1))
			o.await("connected_publishers", is(1))
			after := taken(t, d.PID())
			for until := time.Now().Add(harness.Patience); after.descriptors > idle.descriptors; after = taken(t, d.PID()) {
				if o.figure("head"); time.Now().After(until) { // the store is tried again now and then, which takes some for a moment
					t.Errorf("%d descriptors are left, and %d were there before", after.descriptors, idle.descriptors)
					break
				}
			}
			t.Logf("%.0f %s in a second; %d messages and statuses meanwhile, the slowest took %v; %d KiB of memory before, %d at most, %d afterwards; %d descriptors at most, %d afterwards",
				float64(sent.Load())/lasted.Seconds(), f.unit, rounds, slowest.Round(time.Millisecond), before.memory>>10, worst.memory>>10, after.memory>>10, worst.descriptors, after.descriptors)
			if slowest > watchdog {
				t.Errorf("a message and a status have taken %v", slowest)
			}
			if worst.memory > idle.memory+mostMemory {
				t.Errorf("%d bytes of memory, and %d before the first flood", worst.memory, idle.memory)
			}
		})
	}
	o.t = t
	// What was garbage is collected when there is new one, such as of asking.
	for until := time.Now().Add(harness.Patience); taken(t, d.PID()).memory > idle.memory+leftMemory; o.figure("head") {
		if time.Now().After(until) {
			t.Errorf("%d bytes of memory are left, and %d were there before", taken(t, d.PID()).memory, idle.memory)
			break
		}
	}
	if strings.Contains(d.Log(), "stands still") {
		t.Error("an event loop stood still")
	}
}

const (
	// mostMemory is by how much a flood may make the process grow, in bytes: several times publish.memory, as what is done with is collected later.
	mostMemory = 64 << 20
	// leftMemory is what may be left of all of them: structures and buffers that are kept for the next one.
	leftMemory = 16 << 20
)
