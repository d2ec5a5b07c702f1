package test

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"wscast/ipc"
	"wscast/test/harness"
)

// A process that is killed at any step of what it does, from its start to its end, loses no client and no message. The steps are those
// that the source has a failpoint at.
func TestKilledAtEveryStep(t *testing.T) {
	program := harness.Failpoints(t)
	for _, point := range failpoints(t) {
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			for i, nth := range passes {
				passed := killedAt(t, program, point, nth, largerLog, ownLog)
				switch kind, _, _ := strings.Cut(point, "."); kind {
				case "resize": // what is done differently with one log
					passed = killedAt(t, program, point, nth, largerLog, smallerLog) && passed
				case "rearrange": // names in the store are given in turn, and in another one to the log and to the table
					passed = killedAt(t, program, point, nth, largerLog, smallerLog, ownLog) && passed
					passed = killedAt(t, program, point, nth, largerLog, ownLog, otherLog) && passed
				}
				if !passed && i == 0 {
					t.Error("the point was not passed: let the test do what passes it")
				}
			}
		})
	}
}

// failpoints are the names in the calls of failpoint.Pass.
func failpoints(t *testing.T) (names []string) {
	t.Helper()
	root := strings.TrimSpace(harness.Run(t, "go", "list", "-m", "-f", "{{.Dir}}", "wscast"))
	fileSet := token.NewFileSet()
	err := filepath.WalkDir(filepath.Join(root, "daemon"), func(path string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, ".go") {
			return err
		}
		file, err := parser.ParseFile(fileSet, path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		ast.Inspect(file, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			selector, ok := call.Fun.(*ast.SelectorExpr)
			if !ok || selector.Sel.Name != "Pass" {
				return true
			}
			if from, ok := selector.X.(*ast.Ident); !ok || from.Name != "failpoint" {
				return true
			}
			where := fileSet.Position(call.Pos())
			literal, ok := call.Args[0].(*ast.BasicLit)
			if !ok {
				t.Fatalf("%s: the name of a failpoint is a string in place", where)
			}
			name, _ := strconv.Unquote(literal.Value) // the parser has
			if slices.Contains(names, name) {
				t.Errorf("%s: there are two failpoints %q", where, name)
			}
			names = append(names, name)
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(names) < 50 {
		t.Fatalf("the source has %d failpoints: %q", len(names), names)
	}
	return names
}

// passes are those of a point at which a process is killed, in turn. What is passed less often is not killed at the later ones.
var passes = []int{1, 4}

const (
	stayers  = 12
	sessions = 2  // of them speak wscast.v1.json
	guests   = 24 // there at a time
	// What a process is to do at least before it is ended for not passing the point: the log goes round, and the parking lot is compacted.
	enoughVisits   = 80
	enoughMessages = 100
	messageSize    = 20_000
	window         = 10 // messages that are acknowledged and not with every stayer
)

// What the log is to be after it was something else: of the same messages, and in another place.
const (
	largerLog  = "[publish]\nmax_message = 65536\n[log]\nsize = '2MiB'\n"
	smallerLog = "[publish]\nmax_message = 65536\n[log]\nsize = '1MiB'\n"
	ownLog     = smallerLog + "[[log.own]]\nmatch = 'n*'\nsize = '1MiB'\n[[log.own]]\nmatch = 'others'\n"
	otherLog   = smallerLog + "[[log.own]]\nmatch = 'new?'\nsize = '2MiB'\n"
)

// killedAt returns false when no process has passed the point so often. There is a process with each configuration, with clients from the first one on; the
// one with the last configuration is killed.
func killedAt(t *testing.T, program harness.Option, point string, nth int, configs ...string) (passed bool) {
	d := harness.Start(t, program, harness.FDStore(64), harness.Config(configs[0]))

	// A process that finds nothing.
	d.Kill()
	d.EmptyStore()
	passed = hasEnded(d.StartDoomed(point, nth))
	d.Bury()
	d.Start()

	a := seat(t, d)
	defer a.leave()
	for _, config := range configs[1 : len(configs)-1] {
		d.Kill()
		d.Configure(config)
		d.Start()
	}
	d.Kill()
	// One that is killed with a record that has no connection.
	a.visit(d.StartDoomed("accept.recorded", 1), 1, 0)
	d.Bury()
	// One that finds the log otherwise than it is to be. When it has not passed the point until its end, the next one finds what a process
	// leaves in good order.
	d.Configure(configs[len(configs)-1])
	for range 2 {
		a.visit(d.StartDoomed(point, nth), enoughVisits, enoughMessages)
		if d.EndDoomed() {
			passed = true
			break
		}
	}
	d.Start()
	a.await("more messages", a.acknowledged()+2)
	a.finish()
	return passed
}

func hasEnded(done <-chan struct{}) bool {
	select {
	case <-done:
		return true
	default:
		return false
	}
}

// audience are clients that stay, and one publisher.
type audience struct {
	t         *testing.T
	d         *harness.Daemon
	url       string // for guests
	conns     []*websocket.Conn
	guests    []*websocket.Conn
	readers   sync.WaitGroup
	publisher sync.WaitGroup

	mu      sync.Mutex
	changed *sync.Cond
	stopped bool // publishes no more
	client  *ipc.Client
	over    bool // whatever ends from here on is the end of the test
	errs    []error
	last    uint64 // message that was acknowledged
	served  [stayers]uint64
	pongs   [stayers]int
}

func seat(t *testing.T, d *harness.Daemon) *audience {
	a := &audience{t: t, d: d, url: d.WebSocketURL("others")}
	a.changed = sync.NewCond(&a.mu)
	for i := range stayers {
		dialer := *websocket.DefaultDialer
		if i >= stayers-sessions {
			dialer.Subprotocols = []string{"wscast.v1.json"}
		}
		conn, _, err := dialer.Dial(d.WebSocketURL("news"), nil)
		if err != nil {
			t.Fatal(err)
		}
		a.conns = append(a.conns, conn)
		conn.SetPongHandler(func(string) error {
			a.mu.Lock()
			defer a.mu.Unlock()
			a.pongs[i]++
			a.changed.Broadcast()
			return nil
		})
		a.readers.Go(func() { a.read(i, conn) })
	}
	socket := d.PublishSocket()
	a.publisher.Go(func() { a.publish(socket) })
	a.await("the first messages", 2)
	return a
}

// read judges what a stayer gets.
func (a *audience) read(i int, conn *websocket.Conn) {
	next, tries := uint64(1), uint64(0)
	for {
		_, b, err := conn.ReadMessage()
		if err == nil && conn.Subprotocol() != "" {
			var envelope struct {
				Reply, Data string
				Base64      []byte
			}
			if err = json.Unmarshal(b, &envelope); err == nil && envelope.Reply != "" {
				continue
			}
			b = append([]byte(envelope.Data), envelope.Base64...)
		}
		if err == nil && len(b) != messageSize {
			err = fmt.Errorf("%d bytes", len(b))
		}
		a.mu.Lock()
		if err == nil {
			n, try := binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:])
			switch {
			case n == next:
				next, tries = next+1, try
			case n == next-1 && try > tries: // it was not acknowledged, and published again
				tries = try
			default:
				err = fmt.Errorf("it got message %d, try %d", n, try)
			}
		}
		if err != nil && !a.over {
			a.errs = append(a.errs, fmt.Errorf("client %d before message %d: %w", i, next, err))
		}
		a.served[i] = next - 1
		a.changed.Broadcast()
		a.mu.Unlock()
		if err != nil {
			return
		}
	}
}

func (a *audience) publish(socket string) {
	message := bytes.Repeat([]byte{'x'}, messageSize)
	var c *ipc.Client
	for n, try := uint64(1), uint64(1); ; {
		a.mu.Lock()
		for !a.stopped && n > slices.Min(a.served[:])+window {
			a.changed.Wait()
		}
		stopped := a.stopped
		a.client = c
		a.mu.Unlock()
		if stopped {
			break
		}
		var err error
		if c == nil {
			if c, err = ipc.Dial(socket); err == nil {
				continue
			}
		} else {
			binary.BigEndian.PutUint64(message, n)
			binary.BigEndian.PutUint64(message[8:], try)
			_, err = c.Publish("news", message)
		}
		if err != nil {
			if c != nil {
				c.Close()
			}
			c = nil
			try++
			continue
		}
		a.mu.Lock()
		a.last = n
		a.changed.Broadcast()
		a.mu.Unlock()
		n, try = n+1, 1
	}
	if c != nil {
		c.Close()
	}
}

// visit lets guests come and go until the process is dead or has had so many of them and so many messages. Some stay for a while, so that there are some to
// merge, which leave later, so that there is something to compact.
func (a *audience) visit(dead <-chan struct{}, visits, messages int) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		select {
		case <-dead:
			cancel()
		case <-ctx.Done():
		}
	}()
	dialer := websocket.Dialer{NetDialContext: func(_ context.Context, network, address string) (net.Conn, error) {
		conn, err := net.Dial(network, address)
		if err == nil { // a dead process does not answer, and gorilla waits for it whatever the context says
			context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
		}
		return conn, err
	}}
	enough := a.acknowledged() + uint64(messages)
	deadline := time.Now().Add(harness.Patience)
	for n := 0; ctx.Err() == nil && (n < visits || a.acknowledged() < enough); n++ {
		if time.Now().After(deadline) {
			a.mu.Lock()
			defer a.mu.Unlock()
			a.t.Fatalf("%d visits in %v: message %d is acknowledged, they have %d", n, harness.Patience, a.last, a.served)
		}
		a.ping(a.conns[n%stayers])
		c, _, err := dialer.Dial(a.url, nil)
		if err != nil {
			continue // it was killed
		}
		a.ping(c)
		if a.guests = append(a.guests, c); len(a.guests) > guests {
			a.guests[0].Close()
			a.guests = a.guests[1:]
			_ = a.guests[0].WriteControl(websocket.CloseMessage, nil, time.Now().Add(harness.Patience))
		}
	}
}

func (a *audience) ping(c *websocket.Conn) {
	_ = c.WriteControl(websocket.PingMessage, []byte("still there?"), time.Now().Add(harness.Patience))
}

func (a *audience) acknowledged() uint64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.last
}

// await waits until a message is acknowledged and every stayer has all that are.
func (a *audience) await(what string, message uint64) {
	a.t.Helper()
	a.until(what, func() bool { return a.last >= message && slices.Min(a.served[:]) >= a.last })
}

func (a *audience) until(what string, so func() bool) {
	a.t.Helper()
	late := false
	timer := time.AfterFunc(harness.Patience, func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		late = true
		a.changed.Broadcast()
	})
	defer timer.Stop()
	a.mu.Lock()
	defer a.mu.Unlock()
	for len(a.errs) == 0 && !so() && !late {
		a.changed.Wait()
	}
	switch {
	case len(a.errs) > 0:
		a.t.Fatal(errors.Join(a.errs...))
	case late && !so():
		a.t.Fatalf("waited %v for %s: message %d is acknowledged, they have %d, and %d pongs", harness.Patience, what, a.last, a.served, a.pongs)
	}
}

// finish sees that everybody has everything, and is heard as well.
func (a *audience) finish() {
	a.t.Helper()
	a.mu.Lock()
	a.stopped = true
	a.changed.Broadcast()
	a.mu.Unlock()
	a.publisher.Wait()
	a.await("all messages", 0)
	before := a.pongs
	for _, c := range a.conns {
		a.ping(c)
	}
	a.until("pongs", func() bool {
		for i := range a.pongs {
			if a.pongs[i] == before[i] {
				return false
			}
		}
		return true
	})
}

func (a *audience) leave() {
	a.mu.Lock()
	a.stopped, a.over = true, true
	if a.client != nil {
		a.client.Close() // it may wait for an answer that nobody will give
	}
	a.changed.Broadcast()
	a.mu.Unlock()
	for _, c := range append(a.conns, a.guests...) {
		c.Close()
	}
	a.readers.Wait()
	a.publisher.Wait()
}
