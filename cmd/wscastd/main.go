// Wscastd delivers what local processes publish on a Unix socket to WebSocket clients. See wscastd(8).
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"wscast/daemon"
)

// version is set by the linker.
var version = "devel"

// Exit codes; configuration is EX_CONFIG of sysexits.h, which systemd shows as CONFIG.
const (
	exitFailure       = 1
	exitUsage         = 2
	exitConfiguration = 78
)

// leastLife is how long a service that fails lives at the least. The unit starts it again at once, since a crash is not to
// cost clients more than it must; this keeps one that cannot start from keeping the machine busy.
const leastLife = 250 * time.Millisecond

func main() {
	began := time.Now()
	err := run(os.Args[1:], os.Stdout)
	if err != nil {
		fmt.Fprintln(os.Stderr, "wscastd:", err)
		if os.Getenv("NOTIFY_SOCKET") != "" {
			signal.Reset() // a stop does not wait
			time.Sleep(time.Until(began.Add(leastLife)))
		}
	}
	os.Exit(exitCode(err))
}

func exitCode(err error) int {
	var bad *daemon.ConfigError
	var usage *usageError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &usage):
		return exitUsage
	case errors.As(err, &bad):
		return exitConfiguration
	}
	return exitFailure
}

// usageError is a command line that cannot be used.
type usageError struct{ text, hint string }

func (e *usageError) Error() string { return e.text + "\n" + e.hint }

// run does five things in order: flags and configuration, sockets, the daemon, ready, serve. The last two are
// Daemon.Run's.
func run(args []string, stdout io.Writer) error {
	o, err := parse(args)
	if err != nil {
		return err
	}
	switch {
	case o.help:
		_, err := io.WriteString(stdout, usage)
		return err
	case o.version:
		_, err := fmt.Fprintln(stdout, "wscastd", version)
		return err
	}
	config, err := o.load()
	if err != nil {
		return err
	}
	if o.check {
		_, err := fmt.Fprintln(stdout, "the configuration is good")
		return err
	}

	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)

	sockets, inherited, err := daemon.Inherited()
	switch {
	case err != nil:
		return err
	case inherited && len(o.websocket)+len(o.publish) > 0:
		_ = sockets.Close()
		return &usageError{"the sockets come from systemd", "leave out --websocket and --publish, and set addresses in the socket units"}
	}
	welcome := ""
	if !inherited {
		if sockets, err = daemon.Bind(&config); err != nil {
			return err
		}
		welcome = sockets.Welcome(o.demo, tool())
	}

	var level slog.LevelVar
	options := daemon.Options{
		Config: config, Sockets: sockets, Version: version, Demo: o.demo,
		Log: daemon.NewLogger(&level), Level: &level,
	}
	if o.config != "" {
		options.Reload = o.load
	}
	d, err := daemon.New(options)
	if err != nil {
		return err
	}
	fmt.Fprint(stdout, welcome) // who connects from here on is served
	return d.Run(signals)
}

const usage = `Usage: wscastd [FLAG…]

Delivers what local processes publish on a Unix socket to WebSocket clients. The sockets come from
systemd; started by hand, it makes them itself, at the addresses of the configuration.

  --config FILE     read the configuration from FILE; SIGHUP reads it again
  --websocket ADDR  serve WebSocket clients on ADDR, host:port or the path of a Unix socket; repeatable
  --publish PATH    serve publishers on the Unix socket PATH; repeatable
  --demo            serve the demo page at /
  --check           check the configuration and exit
  --version         print the version and exit
  --help            print this and exit

Exit codes: 0 stopped by a signal, 1 failure, 2 wrong flags, 78 wrong configuration.
`

// tool is how to call wscast: as it was called itself, when it lies beside this program.
func tool() string {
	if beside := filepath.Join(filepath.Dir(os.Args[0]), "wscast"); strings.Contains(os.Args[0], "/") {
		if _, err := os.Stat(beside); err == nil {
			return beside
		}
	}
	return "wscast"
}

// options of the command line.
type options struct {
	config             string
	websocket, publish addresses
	demo               bool

	help, check, version bool
}

// addresses is a flag that can be repeated.
type addresses []string

func (a *addresses) String() string     { return strings.Join(*a, ",") }
func (a *addresses) Set(s string) error { *a = append(*a, s); return nil }

func parse(args []string) (o options, err error) {
	f := flag.NewFlagSet("wscastd", flag.ContinueOnError)
	f.SetOutput(io.Discard)
	f.StringVar(&o.config, "config", "", "")
	f.Var(&o.websocket, "websocket", "")
	f.Var(&o.publish, "publish", "")
	f.BoolVar(&o.demo, "demo", false, "")
	f.BoolVar(&o.check, "check", false, "")
	f.BoolVar(&o.version, "version", false, "")
	err = f.Parse(args)
	const hint = "try: wscastd --help"
	switch {
	case errors.Is(err, flag.ErrHelp):
		o.help = true
		return o, nil
	case err != nil:
		return o, &usageError{err.Error(), hint}
	case f.NArg() > 0:
		return o, &usageError{fmt.Sprintf("unexpected argument %q", f.Arg(0)), hint}
	}
	return o, nil
}

// load reads the configuration file, if there is one, and lets the command line have the last word.
func (o *options) load() (daemon.Config, error) {
	config := daemon.Defaults()
	if o.config != "" {
		var err error
		if config, err = daemon.Load(o.config); err != nil {
			return config, err
		}
	}
	if len(o.websocket) > 0 {
		config.WebSocket.Listen = o.websocket
	}
	if len(o.publish) > 0 {
		config.Publish.Listen = o.publish
	}
	if o.demo {
		config.ForDemo()
	}
	return config, config.Check()
}
