package main

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

//go:embed floor.c
var floorSource []byte

// A server is what is under test: the programs that it consists of, how they are started, and
// what its publisher must speak.
type server struct {
	name     string
	protocol protocol
	// clients is false for a server that has no WebSocket clients and stands beside the
	// publish rows only; channels is false for one that has a single channel.
	clients, channels bool
	// needs are the programs, by their names in builders.
	needs []string
	// processes are started in this order. They listen at the place.
	processes func(p programs, at place) ([]process, error)
}

// programs are the paths of built programs.
type programs map[string]string

// A place is where a server is.
type place struct {
	dir      string // for its files, which are its own
	address  string // host:port for clients
	publish  string // path of the publish socket
	upstream string // host:port for what is behind a proxy
}

type process struct {
	program   string
	arguments []string
	workers   int // processes that it starts; it is ready when they are there
}

// The names of the servers; the table's columns.
const (
	floorOne  = "floor"
	floorTwo  = "floor-2"
	gorilla   = "hub"
	nchanOne  = "nchan"
	nchanTwo  = "nchan-2"
	redis     = "redis"
	subject   = "wscastd"
	nginxTCP  = "nginx-tcp"
	nginxUnix = "nginx-unix"
)

// builders leave a program in dir, or find it, and return its path.
var builders = map[string]func(ctx context.Context, dir string) (string, error){
	"floor":        buildFloor,
	"hub":          goBuild("wscast/bench/hub"),
	"wscastd":      goBuild("wscast/cmd/wscastd"),
	"nginx":        findNginx,
	"redis-server": findRedis,
}

// servers are all servers under test, in the order of the table's columns. The subject comes
// last: what it is compared with stands before it.
var servers = []server{
	{floorOne, frames, true, false, []string{"floor"}, floor("1")},
	{floorTwo, frames, true, false, []string{"floor"}, floor("2")},
	{gorilla, lengths, true, false, []string{"hub"}, func(p programs, at place) ([]process, error) {
		return []process{{p["hub"], []string{at.address, at.publish}, 0}}, nil
	}},
	{nchanOne, post, true, true, []string{"nginx"}, nchan(1)},
	{nchanTwo, post, true, true, []string{"nginx"}, nchan(2)},
	{redis, resp, false, true, []string{"redis-server"}, func(p programs, at place) ([]process, error) {
		return []process{{p["redis-server"], []string{"--port", "0", "--unixsocket", at.publish, "--save", "", "--appendonly", "no", "--daemonize", "no"}, 0}}, nil
	}},
	{nginxTCP, resp, true, true, []string{"wscastd", "nginx"}, behindNginx("tcp")},
	{nginxUnix, resp, true, true, []string{"wscastd", "nginx"}, behindNginx("unix")},
	{subject, resp, true, true, []string{"wscastd"}, func(p programs, at place) ([]process, error) {
		return []process{{p["wscastd"], []string{"--websocket", at.address, "--publish", at.publish}, 0}}, nil
	}},
}

// names are those of all servers.
func names() (all []string) {
	for _, s := range servers {
		all = append(all, s.name)
	}
	return all
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
	_, err = output(exec.CommandContext(ctx, gcc, "-O2", "-pthread", "-o", program, source))
	return program, err
}

func floor(threads string) func(programs, place) ([]process, error) {
	return func(p programs, at place) ([]process, error) {
		host, port, _ := strings.Cut(at.address, ":")
		return []process{{p["floor"], []string{host, port, at.publish, threads}, 0}}, nil
	}
}

// goBuild builds a package of this module, as anyone would: without flags.
func goBuild(path string) func(context.Context, string) (string, error) {
	return func(ctx context.Context, dir string) (string, error) {
		program := filepath.Join(dir, filepath.Base(path))
		_, err := output(exec.CommandContext(ctx, "go", "build", "-o", program, path))
		return program, err
	}
}

func findRedis(context.Context, string) (string, error) {
	path, err := exec.LookPath("redis-server")
	if err != nil {
		return "", errors.New("no redis-server: apt install redis-server")
	}
	return path, nil
}

// output runs a command, and returns what it said, or puts that into the error.
func output(c *exec.Cmd) (string, error) {
	var said bytes.Buffer
	c.Stderr = &said
	b, err := c.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w\n%s%s", c, err, b, bytes.TrimSpace(said.Bytes()))
	}
	return string(b), nil
}

// A running server.
type running struct {
	server
	place
	programs programs

	commands []*exec.Cmd
	keeper   *keeper // of what wscastd stores; nil for others
	workers  int
	said     sayings
	ended    chan struct{} // closed when one of the processes has ended
	waiting  sync.WaitGroup
}

// sayings are what processes write.
type sayings struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (s *sayings) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(b)
}

func (s *sayings) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.TrimSpace(s.text.String())
}

// ready is how long a server may take from its start until it listens, and quit how long from
// SIGTERM until it has ended.
const ready, quit = 10 * time.Second, 5 * time.Second

// start starts a server and returns when it listens. Its files are made in dir.
func start(ctx context.Context, s server, p programs, dir string) (*running, error) {
	r := &running{server: s, programs: p}
	r.dir = filepath.Join(dir, "at-"+s.name) // dir has programs of the same names
	r.place.publish = filepath.Join(r.dir, "publish.sock")
	var err error
	if r.address, err = freeAddress(); err == nil {
		r.upstream, err = freeAddress()
	}
	if err != nil {
		return nil, err
	}
	return r, r.start(ctx)
}

// start starts the processes, at the place where earlier ones may have been.
func (r *running) start(ctx context.Context) error {
	// What killed processes have left there would be in the way.
	if err := os.RemoveAll(r.dir); err != nil {
		return err
	}
	if err := os.Mkdir(r.dir, 0o700); err != nil {
		return err
	}
	processes, err := r.processes(r.programs, r.place)
	if err != nil {
		return err
	}
	r.commands, r.workers, r.ended = nil, 0, make(chan struct{})
	if slices.Contains(r.needs, subject) {
		if r.keeper, err = keep(r.dir); err != nil {
			return err
		}
	}
	ended := sync.OnceFunc(func() { close(r.ended) })
	for _, p := range processes {
		command := exec.CommandContext(ctx, p.program, p.arguments...)
		command.Dir = r.dir
		command.Stdout, command.Stderr = &r.said, &r.said
		if p.program == r.programs[subject] {
			command.Env = append(os.Environ(), "NOTIFY_SOCKET="+r.keeper.path)
		}
		// Not SIGKILL: the workers of an nginx that is killed live on.
		command.Cancel = func() error { return command.Process.Signal(syscall.SIGTERM) }
		command.WaitDelay = quit
		// A bench that is killed leaves no server behind.
		command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
		if err := command.Start(); err != nil {
			r.stop()
			return err
		}
		r.commands = append(r.commands, command)
		r.workers += p.workers
		r.waiting.Go(func() {
			_ = command.Wait()
			ended()
		})
	}
	if err := r.listening(ctx); err != nil {
		r.stop()
		return fmt.Errorf("%s: %w\n%s", r.name, err, &r.said)
	}
	return nil
}

// listening returns when every socket of the server takes a connection, and its workers are
// there.
func (r *running) listening(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, ready)
	defer cancel()
	sockets := [][2]string{{"unix", r.publish}}
	if r.clients {
		sockets = append(sockets, [2]string{"tcp", r.address})
	}
	for _, s := range sockets {
		err := r.awaitUntil(ctx, "listens on "+s[1], func() bool {
			conn, err := new(net.Dialer).DialContext(ctx, s[0], s[1])
			if err == nil {
				conn.Close()
			}
			return err == nil
		})
		if err != nil {
			return err
		}
	}
	return r.awaitUntil(ctx, "has all of its workers", func() bool {
		pids, err := r.pids()
		return err == nil && len(pids) == len(r.commands)+r.workers
	})
}

func (r *running) awaitUntil(ctx context.Context, what string, done func() bool) error {
	for !done() {
		select {
		case <-r.ended:
			return fmt.Errorf("it ended before it %s", what)
		case <-ctx.Done():
			return fmt.Errorf("after %s it is not so that it %s", ready, what)
		case <-time.After(5 * time.Millisecond):
		}
	}
	return nil
}

// pids are all processes of the server.
func (r *running) pids() ([]int, error) {
	var all []int
	for _, c := range r.commands {
		pids, err := family(c.Process.Pid)
		if err != nil {
			return nil, err
		}
		all = append(all, pids...)
	}
	return all, nil
}

// stop ends the server and waits for its end.
func (r *running) stop() { r.end(syscall.SIGTERM, quit) }

// end sends a signal to what was started, and kills what has not ended after a while.
func (r *running) end(signal syscall.Signal, patience time.Duration) {
	ended := make(chan struct{})
	go func() {
		r.waiting.Wait()
		close(ended)
	}()
	for _, c := range slices.Backward(r.commands) {
		_ = c.Process.Signal(signal)
	}
	select {
	case <-ended:
	case <-time.After(patience):
		r.kill()
		<-ended
	}
	r.forget()
}

// forget closes what a server has left with its keeper.
func (r *running) forget() {
	if r.keeper != nil {
		r.keeper.close()
		r.keeper = nil
	}
}

// kill kills every process of the server, and waits for those that were started.
func (r *running) kill() {
	pids, _ := r.pids() // what is gone has no children
	for _, pid := range pids {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	for _, c := range r.commands {
		_ = c.Process.Kill()
	}
	r.waiting.Wait()
	r.forget()
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

// complete fills in of a plan what is to be known of the server.
func (r *running) complete(p plan) (plan, error) {
	p.Publish, p.Protocol = r.publish, r.protocol
	if r.clients {
		p.Address = r.address
	}
	var err error
	p.Servers, err = r.pids()
	return p, err
}

// measure has a load process carry out a plan on a running server.
func (r *running) measure(ctx context.Context, p plan) (figures, error) {
	p, err := r.complete(p)
	if err != nil {
		return nil, err
	}
	l, err := startLoad(ctx, p)
	if err != nil {
		return nil, err
	}
	f := make(figures)
	err = errors.Join(l.answer(&f), l.end())
	select {
	case <-r.ended:
		return nil, fmt.Errorf("%s: the server ended: %w\n%s", r.name, err, &r.said)
	default:
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", r.name, err)
	}
	return f, nil
}

// A loader is a load process.
type loader struct {
	command *exec.Cmd
	in      io.WriteCloser
	out     *json.Decoder
	said    bytes.Buffer
}

// startLoad starts one with a plan.
func startLoad(ctx context.Context, p plan) (*loader, error) {
	text, err := json.Marshal(p)
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	l := &loader{command: exec.CommandContext(ctx, self, "load")}
	l.command.Stderr = &l.said
	l.command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if l.in, err = l.command.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := l.command.StdoutPipe()
	if err != nil {
		return nil, err
	}
	l.out = json.NewDecoder(out)
	if err := l.command.Start(); err != nil {
		return nil, err
	}
	if _, err := l.in.Write(append(text, '\n')); err != nil {
		return nil, errors.Join(err, l.end())
	}
	return l, nil
}

// answer reads what it says next.
func (l *loader) answer(to any) error {
	if err := l.out.Decode(to); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("the load process: %w", err)
	} else if err != nil {
		return errors.New("the load process has not measured all")
	}
	return nil
}

// end ends it, and returns what it has to complain of.
func (l *loader) end() error {
	l.in.Close()
	if err := l.command.Wait(); err != nil {
		return fmt.Errorf("%w: %s", err, bytes.TrimSpace(l.said.Bytes()))
	}
	return nil
}
