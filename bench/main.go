package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"os/signal"
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
	rows    []string
	names   []string
	program string // of the subject; empty: it is built
	doc     string // directory of the page; empty: nothing is kept
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
	names := names()
	o := options{}
	set := flag.NewFlagSet("bench", flag.ContinueOnError)
	set.SetOutput(help)
	quick := set.Bool("quick", false, "three short rounds of the rows "+strings.Join(quickRows, ",")+" at 1,000 clients: about a minute")
	clients := set.String("clients", "1000,10000", "numbers of clients, one table each")
	rows := set.String("rows", strings.Join(allRows, ","), "rows to measure")
	set.IntVar(&o.rounds, "rounds", 5, "rounds; each visits every server once")
	set.DurationVar(&o.phase, "phase", time.Second, "how long each phase of a round publishes")
	set.DurationVar(&o.settle, "settle", 500*time.Millisecond, "how long clients are idle before memory is read")
	set.Float64Var(&o.quiet, "quiet", 100, "measure again, up to 5 times in all, when other processes used more than this per cent of the cores")
	only := set.String("servers", strings.Join(names, ","), "servers to visit")
	set.StringVar(&o.program, "wscastd", "", "measure this wscastd instead of building it")
	set.StringVar(&o.doc, "doc", "", "keep the tables in "+page+" in this directory, and charts beside it")
	set.BoolVar(&o.verbose, "v", false, "say on standard error what is being measured, and the server's process ids")
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
		if !given["clients"] {
			*clients = "1000"
		}
		if !given["rows"] {
			*rows = strings.Join(quickRows, ",")
		}
		if !given["phase"] {
			o.phase = 400 * time.Millisecond
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
		if err != nil || n < 1 || n > sourceAddresses*clientsPerAddress {
			return o, fmt.Errorf("-clients %s: %q is no number of clients", *clients, text)
		}
		o.clients = append(o.clients, n)
	}
	for name := range strings.SplitSeq(*rows, ",") {
		if !slices.Contains(allRows, name) {
			return o, fmt.Errorf("-rows %s: there is no %q, only %s", *rows, name, strings.Join(allRows, ", "))
		}
		o.rows = append(o.rows, name)
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
	m := &measurement{options: o, dir: dir, progress: progress}
	if err := m.build(ctx); err != nil {
		return err
	}
	machine, err := machineLine()
	if err != nil {
		return err
	}
	for _, g := range groups {
		if !g.wanted(o) {
			continue
		}
		from, err := readMachineTime()
		if err != nil {
			return err
		}
		before := loadAverage()
		s, err := g.measure(m, ctx)
		if err != nil {
			return err
		}
		if s == nil {
			continue
		}
		to, err := readMachineTime()
		if err != nil {
			return err
		}
		others, stolen := to.since(from)
		s.name = g.name
		s.text = fmt.Sprintf("%s: messages of %d bytes; median of rounds [lowest–highest]\nmachine: %s\ncommand: bench %s\n%s; load %s at the start; others used %.0f%% of the cores meanwhile, the hypervisor took %.0f%%\n\n%s",
			g.title, messageSize, machine, strings.Join(os.Args[1:], " "), time.Now().UTC().Format("2006-01-02 15:04 UTC"), before, others, stolen, s.text)
		fmt.Fprintln(out, s.text)
		if o.doc != "" {
			if err := s.keep(o.doc); err != nil {
				return err
			}
		}
	}
	return nil
}

// otherFDs is more than the load process or a server has open beside its clients.
const otherFDs = 200

// openFiles is how many files a process may open at most.
func openFiles() (int, error) {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return 0, os.NewSyscallError("getrlimit", err)
	}
	return int(min(limit.Max, math.MaxInt32)), nil
}

// raiseLimit raises the limit of open files to the hard limit, for this process and those it
// starts, and fails when it does not suffice.
func raiseLimit(clients int) error {
	limit, err := openFiles()
	if err != nil {
		return err
	}
	if limit < clients+otherFDs {
		return fmt.Errorf("%d clients need %d open files, and the hard limit is %d: raise it (ulimit -Hn, LimitNOFILE=) or ask for fewer with -clients",
			clients, clients+otherFDs, limit)
	}
	// Set even if it is already so: Go raises it on its own, and puts it back for child
	// processes unless a program has set it (os/rlimit.go, syscall/rlimit.go).
	return os.NewSyscallError("setrlimit", syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: uint64(limit), Max: uint64(limit)}))
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
