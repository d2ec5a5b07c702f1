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
	"strings"
	"syscall"

	"wscast/daemon"
)

// version is set by the linker.
var version = "devel"

// Exit codes; configuration is EX_CONFIG of sysexits(3).
const (
	exitFailure       = 1
	exitUsage         = 2
	exitConfiguration = 78
)

func main() {
	err := run(os.Args[1:], os.Stdout, os.Stderr)
	if err == nil {
		return
	}
	var bad *daemon.ConfigError
	var usage usageError
	switch {
	case errors.Is(err, flag.ErrHelp):
		return
	case errors.As(err, &usage):
		fmt.Fprintf(os.Stderr, "wscastd: %s\ntry: wscastd --help\n", err)
		os.Exit(exitUsage)
	case errors.As(err, &bad):
		fmt.Fprintln(os.Stderr, "wscastd:", err)
		os.Exit(exitConfiguration)
	default:
		fmt.Fprintln(os.Stderr, "wscastd:", err)
		os.Exit(exitFailure)
	}
}

type usageError struct{ error }

// run does five things in order: flags and configuration, sockets, the daemon, ready, serve. The last two are
// Daemon.Run's.
func run(args []string, stdout, stderr io.Writer) error {
	o, err := parse(args, stdout)
	if err != nil {
		return err
	}
	if o.version {
		fmt.Fprintln(stdout, "wscastd", version)
		return nil
	}
	config, err := o.load()
	if err != nil {
		return err
	}
	if o.check {
		fmt.Fprintln(stdout, "the configuration is good")
		return nil
	}

	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)

	sockets, inherited, err := daemon.Inherited()
	switch {
	case err != nil:
		return err
	case inherited && len(o.websocket)+len(o.publish) > 0:
		return errors.Join(errors.New("the sockets come from systemd: leave out --websocket and --publish, and set addresses in the socket units"), sockets.Close())
	case !inherited:
		if sockets, err = daemon.Bind(&config); err != nil {
			return err
		}
		fmt.Fprint(stdout, sockets.Welcome(o.demo))
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
	return d.Run(signals)
}

// options of the command line.
type options struct {
	config             string
	websocket, publish addresses
	demo               bool
	check, version     bool
}

type addresses []string

func (a *addresses) String() string     { return strings.Join(*a, ",") }
func (a *addresses) Set(s string) error { *a = append(*a, s); return nil }

func parse(args []string, stdout io.Writer) (o options, err error) {
	f := flag.NewFlagSet("wscastd", flag.ContinueOnError)
	f.SetOutput(io.Discard)
	f.StringVar(&o.config, "config", "", "read the configuration from `FILE`")
	f.Var(&o.websocket, "websocket", "serve WebSocket clients on `ADDR`, host:port or the path of a Unix socket; repeatable")
	f.Var(&o.publish, "publish", "serve publishers on the Unix socket `PATH`; repeatable")
	f.BoolVar(&o.demo, "demo", false, "serve the demo page at /")
	f.BoolVar(&o.check, "check", false, "check the configuration and exit")
	f.BoolVar(&o.version, "version", false, "show the version and exit")
	err = f.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprintln(stdout, "usage: wscastd [options]")
		f.SetOutput(stdout)
		f.PrintDefaults()
		return o, err
	case err != nil:
		return o, usageError{err}
	case f.NArg() > 0:
		return o, usageError{fmt.Errorf("unexpected argument %q", f.Arg(0))}
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
	return config, nil
}
