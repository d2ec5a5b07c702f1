package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// deliveriesPerSecond bounds the fixed rate of the latency phase: 100 messages/s to 1,000
// clients, and fewer to more of them, or the phase would measure a server that cannot keep up.
const deliveriesPerSecond = 100_000

var windows = []int{1, 32}

// attempts bounds how often a server is measured in one round while the machine is not quiet.
const attempts = 5

// options are what the command line says.
type options struct {
	clients []int
	rounds  int
	phase   time.Duration
	settle  time.Duration
	quiet   float64
	names   []string
	program string // of the subject; empty: it is built
	verbose bool
}

func main() {
	if len(os.Args) == 2 && os.Args[1] == "load" {
		if err := serveLoad(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	// Servers die with the thread that started them (PR_SET_PDEATHSIG): it must be the one
	// that lives as long as the process.
	runtime.LockOSThread()
	o, err := parse(os.Args[1:], os.Stderr)
	if err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return
		}
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(2)
	}
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer cancel()
	if err := bench(ctx, o, os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func parse(arguments []string, help io.Writer) (options, error) {
	var names []string
	for _, s := range servers {
		names = append(names, s.name)
	}
	o := options{}
	set := flag.NewFlagSet("bench", flag.ContinueOnError)
	set.SetOutput(help)
	quick := set.Bool("quick", false, "three short rounds, under a minute")
	clients := set.String("clients", "1000", "numbers of clients, one table each")
	set.IntVar(&o.rounds, "rounds", 9, "rounds; each visits every server once")
	set.DurationVar(&o.phase, "phase", time.Second, "how long each phase of a round publishes")
	set.DurationVar(&o.settle, "settle", time.Second, "how long clients are idle before memory is read")
	set.Float64Var(&o.quiet, "quiet", 100, "measure again, up to 5 times in all, when other processes used more than this per cent of the cores")
	only := set.String("servers", strings.Join(names, ","), "servers to visit")
	set.StringVar(&o.program, "wscastd", "", "measure this wscastd instead of building it")
	set.BoolVar(&o.verbose, "v", false, "say on standard error what is being measured, and the server's process id")
	if err := set.Parse(arguments); err != nil {
		return o, err
	}
	if set.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q: see -help", set.Arg(0))
	}
	if *quick {
		given := make(map[string]bool)
		set.Visit(func(f *flag.Flag) { given[f.Name] = true })
		if !given["rounds"] {
			o.rounds = 3
		}
		if !given["phase"] {
			o.phase = 600 * time.Millisecond
		}
		if !given["settle"] {
			o.settle = 300 * time.Millisecond
		}
	}
	if o.rounds < 1 || o.phase <= 0 || o.settle <= 0 {
		return o, errors.New("-rounds, -phase and -settle must be above zero")
	}
	for text := range strings.SplitSeq(*clients, ",") {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > 250*clientsPerAddress {
			return o, fmt.Errorf("-clients %s: %q is no number of clients", *clients, text)
		}
		o.clients = append(o.clients, n)
	}
	for name := range strings.SplitSeq(*only, ",") {
		if !slices.Contains(names, name) {
			return o, fmt.Errorf("-servers %s: there is no %q, only %s", *only, name, strings.Join(names, ", "))
		}
		o.names = append(o.names, name)
	}
	return o, nil
}

// bench builds the servers, measures them, and prints the tables.
func bench(ctx context.Context, o options, out, progress io.Writer) error {
	if err := raiseLimit(slices.Max(o.clients)); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "wscast-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)

	var chosen []server
	programs := make(map[string]string)
	for _, s := range servers {
		if !slices.Contains(o.names, s.name) {
			continue
		}
		if s.name == subject && o.program != "" {
			program, err := filepath.Abs(o.program)
			if err != nil {
				return err
			}
			s.build = func(context.Context, string) (string, error) { return program, nil }
		}
		program, err := s.build(ctx, dir)
		if err != nil {
			if s.name == redis {
				fmt.Fprintln(progress, "bench: no redis-server, so nothing beside the publish rows: apt install redis-server")
				continue
			}
			return fmt.Errorf("%s: %w", s.name, err)
		}
		chosen = append(chosen, s)
		programs[s.name] = program
	}

	machine, err := machineLine()
	if err != nil {
		return err
	}
	from, err := readMachineTime()
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "messages of %d bytes, one channel; %d rounds; median [lowest–highest]\n", messageSize, o.rounds)
	fmt.Fprintf(out, "machine: %s; load %s at the start\n", machine, loadAverage())
	fmt.Fprintf(out, "command: bench %s\n", strings.Join(os.Args[1:], " "))

	// visit measures every chosen server for which want holds, in every round.
	visit := func(want func(server) bool, p plan) (results, error) {
		r := make(results)
		p.Phase, p.Settle, p.Stall = o.phase, o.settle, 10*time.Second
		visited := slices.DeleteFunc(slices.Clone(chosen), func(s server) bool { return !want(s) })
		for round := range o.rounds {
			for i := range visited {
				s := visited[(round+i)%len(visited)]
				// What decides is what others did, and never the figures themselves.
				var quietest figures
				for range attempts {
					f, err := once(ctx, s, programs[s.name], dir, p, func(pid int) {
						if o.verbose {
							fmt.Fprintf(progress, "round %d of %d, %d clients: %s, process %d\n", round+1, o.rounds, p.Clients, s.name, pid)
						}
					})
					if err != nil {
						return nil, err
					}
					if quietest == nil || f[othersShare] < quietest[othersShare] {
						quietest = f
					}
					if f[othersShare] <= o.quiet {
						break
					}
				}
				r[s.name] = append(r[s.name], quietest)
			}
		}
		return r, nil
	}
	columns := func(r results) []string {
		var names []string
		for _, s := range chosen {
			if r[s.name] != nil {
				names = append(names, s.name)
			}
		}
		return names
	}

	for _, n := range o.clients {
		rate := max(1, min(100, deliveriesPerSecond/n))
		r, err := visit(func(s server) bool { return s.clients }, plan{Clients: n, Windows: windows, Rate: rate})
		if err != nil {
			return err
		}
		fmt.Fprintln(out)
		title := fmt.Sprintf("%d clients, latency at %d messages/s", n, rate)
		if err := table(out, title, columns(r), clientRows(windows), r); err != nil {
			return err
		}
	}
	r, err := visit(func(s server) bool { return s.protocol == resp }, plan{})
	if err != nil {
		return err
	}
	if len(r) > 0 {
		fmt.Fprintln(out)
		title := fmt.Sprintf("one publisher, no client, %d in flight", pipeline)
		if err := table(out, title, columns(r), publishRows, r); err != nil {
			return err
		}
	}
	to, err := readMachineTime()
	if err != nil {
		return err
	}
	others, stolen := to.since(from)
	fmt.Fprintf(out, "\nload %s at the end; others used %.0f%% of the cores meanwhile, the hypervisor took %.0f%%\n", loadAverage(), others, stolen)
	return nil
}

// once starts a server, measures it, and stops it.
func once(ctx context.Context, s server, program, dir string, p plan, started func(pid int)) (figures, error) {
	before, err := readMachineTime()
	if err != nil {
		return nil, err
	}
	r, err := start(ctx, s, program, dir)
	if err != nil {
		return nil, err
	}
	started(r.command.Process.Pid)
	f, err := r.measure(ctx, p)
	r.stop()
	if ctx.Err() != nil {
		return nil, errors.New("interrupted")
	}
	if err != nil {
		return nil, err
	}
	// Only now is the server's time counted as the bench's own.
	after, err := readMachineTime()
	if err != nil {
		return nil, err
	}
	f[othersShare], _ = after.since(before)
	return f, nil
}

// otherFDs is more than the load process or a server has open beside its clients.
const otherFDs = 200

// raiseLimit raises the limit of open files to the hard limit, for this process and those it
// starts, and fails when it does not suffice.
func raiseLimit(clients int) error {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return os.NewSyscallError("getrlimit", err)
	}
	if limit.Max < uint64(clients+otherFDs) {
		return fmt.Errorf("%d clients need %d open files, and the hard limit is %d: raise it (ulimit -Hn, LimitNOFILE=) or ask for fewer with -clients",
			clients, clients+otherFDs, limit.Max)
	}
	// Set even if it is already so: Go raises it on its own, and puts it back for child
	// processes unless a program has set it (os/rlimit.go, syscall/rlimit.go).
	limit.Cur = limit.Max
	return os.NewSyscallError("setrlimit", syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit))
}

// machineLine says what the figures were measured on.
func machineLine() (string, error) {
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return "", err
	}
	model := "unknown processor"
	b, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "", err
	}
	for line := range bytes.Lines(b) {
		if name, value, ok := strings.Cut(string(line), ":"); ok && strings.TrimSpace(name) == "model name" {
			model = strings.TrimSpace(value)
			break
		}
	}
	compiler := "no gcc"
	if b, err := exec.Command("gcc", "-dumpfullversion").Output(); err == nil {
		compiler = "gcc " + strings.TrimSpace(string(b))
	}
	return fmt.Sprintf("%d cores of %s, Linux %s, %s, %s", runtime.NumCPU(), model, bytes.TrimSpace(release), runtime.Version(), compiler), nil
}

func loadAverage() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	one, _, _ := strings.Cut(string(b), " ")
	return one
}
