package main

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

//go:embed floor.c
var floorSource []byte

// A server is one program under test: how it is built and started, and what its publisher
// must speak.
type server struct {
	name     string
	protocol protocol
	// clients is false for a server that has no WebSocket clients and stands beside the
	// publish rows only.
	clients bool
	// build leaves the program in dir, and returns its path.
	build func(ctx context.Context, dir string) (string, error)
	// arguments makes it listen on address (host:port) and on the Unix socket at publish.
	arguments func(address, publish string) []string
}

// The names of the servers; the table's columns.
const (
	floorOne = "floor"
	floorTwo = "floor-2"
	gorilla  = "hub"
	subject  = "wscastd"
	redis    = "redis"
)

// servers are all servers under test, in the order of the table's columns. The subject comes
// last: what it is compared with stands before it.
var servers = []server{
	{floorOne, frames, true, buildFloor, floorArguments("1")},
	{floorTwo, frames, true, buildFloor, floorArguments("2")},
	{gorilla, lengths, true, goBuild("wscast/bench/hub"), func(address, publish string) []string {
		return []string{address, publish}
	}},
	{redis, resp, false, findRedis, func(_, publish string) []string {
		return []string{"--port", "0", "--unixsocket", publish, "--save", "", "--appendonly", "no", "--daemonize", "no"}
	}},
	{subject, resp, true, goBuild("wscast/cmd/wscastd"), func(address, publish string) []string {
		return []string{"--websocket", address, "--publish", publish}
	}},
}

func buildFloor(ctx context.Context, dir string) (string, error) {
	gcc, err := exec.LookPath("gcc")
	if err != nil {
		return "", errors.New("the floor is a C program and there is no gcc: apt install gcc libc6-dev")
	}
	source, program := filepath.Join(dir, "floor.c"), filepath.Join(dir, "floor")
	if err := os.WriteFile(source, floorSource, 0o600); err != nil {
		return "", err
	}
	return program, output(exec.CommandContext(ctx, gcc, "-O2", "-pthread", "-o", program, source))
}

func floorArguments(threads string) func(address, publish string) []string {
	return func(address, publish string) []string {
		host, port, _ := strings.Cut(address, ":")
		return []string{host, port, publish, threads}
	}
}

// goBuild builds a package of this module, as anyone would: without flags.
func goBuild(path string) func(context.Context, string) (string, error) {
	return func(ctx context.Context, dir string) (string, error) {
		program := filepath.Join(dir, filepath.Base(path))
		return program, output(exec.CommandContext(ctx, "go", "build", "-o", program, path))
	}
}

func findRedis(context.Context, string) (string, error) { return exec.LookPath("redis-server") }

// output runs a command, and puts what it said into the error.
func output(c *exec.Cmd) error {
	if b, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", c, err, bytes.TrimSpace(b))
	}
	return nil
}

// A running server.
type running struct {
	server
	address, publish string

	command *exec.Cmd
	said    bytes.Buffer // its output; to be read when it has ended
	ended   chan struct{}
}

// ready is how long a server may take from its start until it listens, and quit how long from
// SIGTERM until it has ended.
const ready, quit = 10 * time.Second, 5 * time.Second

// start starts a program and returns when it listens. Its socket is made in dir.
func start(ctx context.Context, s server, program, dir string) (*running, error) {
	address, err := freeAddress()
	if err != nil {
		return nil, err
	}
	r := &running{server: s, address: address, publish: filepath.Join(dir, s.name+".sock"), ended: make(chan struct{})}
	r.command = exec.CommandContext(ctx, program, s.arguments(r.address, r.publish)...)
	r.command.Dir = dir
	r.command.Stdout, r.command.Stderr = &r.said, &r.said
	// A bench that is killed leaves no server behind.
	r.command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := r.command.Start(); err != nil {
		return nil, err
	}
	go func() {
		_ = r.command.Wait()
		close(r.ended)
	}()
	if err := r.listening(ctx); err != nil {
		r.stop()
		return nil, fmt.Errorf("%s: %w\n%s", s.name, err, bytes.TrimSpace(r.said.Bytes()))
	}
	return r, nil
}

// listening returns when every socket of the server takes a connection.
func (r *running) listening(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, ready)
	defer cancel()
	sockets := [][2]string{{"unix", r.publish}}
	if r.clients {
		sockets = append(sockets, [2]string{"tcp", r.address})
	}
	for _, s := range sockets {
		for {
			conn, err := new(net.Dialer).DialContext(ctx, s[0], s[1])
			if err == nil {
				conn.Close()
				break
			}
			select {
			case <-r.ended:
				return fmt.Errorf("it ended before it listened on %s", s[1])
			case <-ctx.Done():
				return fmt.Errorf("it does not listen on %s after %s", s[1], ready)
			case <-time.After(5 * time.Millisecond):
			}
		}
	}
	return nil
}

// stop ends the server and waits for its end.
func (r *running) stop() {
	_ = r.command.Process.Signal(syscall.SIGTERM)
	select {
	case <-r.ended:
	case <-time.After(quit):
		_ = r.command.Process.Kill()
		<-r.ended
	}
	_ = os.Remove(r.publish)
}

// freeAddress returns a loopback address on which nobody listens.
func freeAddress() (string, error) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

// measure has a load process carry out a plan on a running server.
func (r *running) measure(ctx context.Context, p plan) (figures, error) {
	p.Publish, p.Protocol, p.Server = r.publish, r.protocol, r.command.Process.Pid
	if p.Clients > 0 {
		p.Address = r.address
	}
	in, err := json.Marshal(p)
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	var out, said bytes.Buffer
	load := exec.CommandContext(ctx, self, "load")
	load.Stdin, load.Stdout, load.Stderr = bytes.NewReader(in), &out, &said
	load.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	err = load.Run()
	select {
	case <-r.ended:
		return nil, fmt.Errorf("%s: the server ended\n%s%s", r.name, said.Bytes(), bytes.TrimSpace(r.said.Bytes()))
	default:
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w\n%s", r.name, err, bytes.TrimSpace(said.Bytes()))
	}
	f := make(figures)
	if err := json.Unmarshal(out.Bytes(), &f); err != nil {
		return nil, fmt.Errorf("%s: the load process answered %q: %w", r.name, out.Bytes(), err)
	}
	return f, nil
}
