package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"

	"wscast/ipc"
)

// Set by the linker: -ldflags '-X main.version=1.2.3 -X main.defaultSocket=/run/other/publish.sock'.
var (
	version       = "devel"
	defaultSocket = "/run/wscast/publish.sock"
)

const (
	exitFailure = 1
	exitUsage   = 2
)

// commands in the order in which help shows them. The completions in packaging/completions are held
// against this table and the flags of each command by a test.
var commands = []command{
	publishCommand,
	subscribeCommand,
	listenCommand,
	statusCommand,
	doctorCommand,
	tokenCommand,
	versionCommand,
}

// A command is one subcommand.
type command struct {
	name    string
	args    string // what follows the flags, as help shows it: "CHANNEL [MESSAGE]"
	summary string // one line, for the list of commands
	help    string // paragraphs, for help of this command

	// literal: the last argument is free text. Then flags stand only before the arguments, so that
	// `wscast publish news "$text"` sends the text whatever it begins with.
	literal bool

	// setup defines the flags and returns what runs once they are parsed.
	setup func(flags *flag.FlagSet) func(std streams, args []string) error
}

// streams are the standard streams of a run.
type streams struct {
	in       io.Reader
	out, err io.Writer
}

func main() {
	os.Exit(run(os.Args[1:], streams{in: os.Stdin, out: os.Stdout, err: os.Stderr}))
}

// run is the whole tool: args without the program's name. It returns the exit code.
func run(args []string, std streams) int {
	if len(args) == 0 {
		fmt.Fprint(std.err, overview())
		return exitUsage
	}
	name, args := args[0], args[1:]
	switch name {
	case "help", "-h", "-help", "--help":
		return report(std.err, help(std.out, args))
	case "-version", "--version":
		name = versionCommand.name
	}
	c, err := lookup(name)
	if err != nil {
		return report(std.err, err)
	}
	flags := c.flagSet()
	do := c.setup(flags)
	positional, err := c.parse(flags, args)
	if errors.Is(err, flag.ErrHelp) {
		return report(std.err, help(std.out, []string{c.name}))
	}
	if err == nil {
		err = do(std, positional)
	}
	return report(std.err, err)
}

func lookup(name string) (*command, error) {
	for i := range commands {
		if commands[i].name == name {
			return &commands[i], nil
		}
	}
	if strings.HasPrefix(name, "-") {
		return nil, &usageError{text: "unknown flag " + name, hint: "the command comes first, as in: wscast publish --socket PATH CHANNEL MESSAGE"}
	}
	return nil, &usageError{text: fmt.Sprintf("unknown command %q", name), hint: "wscast help lists the commands"}
}

// flagSet is an empty set that leaves it to report and help to speak.
func (c *command) flagSet() *flag.FlagSet {
	flags := flag.NewFlagSet(c.name, flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.Usage = func() {}
	return flags
}

// parse sets the flags and returns the arguments. Flags may stand before, between and after the arguments,
// unless the command is literal; "--" ends them. The error is flag.ErrHelp or a *usageError.
func (c *command) parse(flags *flag.FlagSet, args []string) ([]string, error) {
	var positional []string
	for {
		if err := flags.Parse(args); err != nil {
			if errors.Is(err, flag.ErrHelp) {
				return nil, err
			}
			return nil, &usageError{text: c.name + ": " + err.Error(), hint: "wscast help " + c.name + " shows the flags"}
		}
		rest := flags.Args()
		if len(rest) == 0 {
			return positional, nil
		}
		if taken := len(args) - len(rest); taken > 0 && args[taken-1] == "--" {
			return append(positional, rest...), nil
		}
		if c.literal {
			return rest, c.refuseLateFlag(flags, rest)
		}
		positional = append(positional, rest[0])
		args = rest[1:]
	}
}

// refuseLateFlag is for a literal command. `vmstat 1 | wscast publish system --lines` would publish the text
// "--lines", and a text from elsewhere must never act as a flag. So that it is neither.
func (c *command) refuseLateFlag(flags *flag.FlagSet, args []string) error {
	for _, arg := range args {
		name, dashed := strings.CutPrefix(arg, "-")
		if !dashed {
			continue
		}
		name, _, _ = strings.Cut(strings.TrimPrefix(name, "-"), "=")
		if flags.Lookup(name) != nil || name == "h" || name == "help" {
			return &usageError{
				text: fmt.Sprintf("%s: flag %s after an argument", c.name, arg),
				hint: fmt.Sprintf("flags go before %s; to send the text %s itself: wscast %s -- CHANNEL %s", c.args, arg, c.name, arg),
			}
		}
	}
	return nil
}

// socketFlag defines --socket.
func socketFlag(flags *flag.FlagSet) *string {
	path := defaultSocket
	if p := os.Getenv("WSCAST_SOCKET"); p != "" {
		path = p
	}
	return flags.String("socket", path, "publish socket `PATH`, also in WSCAST_SOCKET")
}

// badChannel says it here, before anything is read or sent; wscastd would refuse it with each message.
func badChannel(command, name string) error {
	return &usageError{
		text: fmt.Sprintf("%s: %q cannot be a channel", command, name),
		hint: fmt.Sprintf("a channel has 1 to %d letters, digits and . _ - : /", ipc.MaxChannel),
	}
}

// usageError is a command line that means nothing: exit code 2.
type usageError struct{ text, hint string }

func (e *usageError) Error() string { return e.text }

// failure is an error with something to do about it.
type failure struct {
	text, hint string
}

func (e *failure) Error() string { return e.text }

// write writes to standard output. Where its reader has gone, as in `wscast subscribe news | head -n 1`, the
// process ends right here and without a word: the Go runtime answers EPIPE on descriptor 1 with SIGPIPE, even
// where that is ignored (os/signal, "SIGPIPE").
func write(out io.Writer, b []byte) error {
	if _, err := out.Write(b); err != nil {
		return fmt.Errorf("cannot write to standard output: %w", lastCause(err))
	}
	return nil
}

// report says what went wrong, if anything did, and returns the exit code. Arguments and what a server answered
// are part of the text: it stays one line whatever they contain.
func report(w io.Writer, err error) int {
	if err == nil {
		return 0
	}
	text, hint, code := err.Error(), "", exitFailure
	var (
		usage  *usageError
		failed *failure
		dial   *ipc.DialError
	)
	switch {
	case errors.As(err, &usage):
		hint, code = usage.hint, exitUsage
	case errors.As(err, &failed):
		hint = failed.hint
	case errors.As(err, &dial):
		text = fmt.Sprintf("cannot reach wscastd at %s: %v", dial.Path, dial.Err)
		hint = dial.Hint
		if errors.Is(dial.Err, syscall.ENOENT) || errors.Is(dial.Err, syscall.ECONNREFUSED) {
			hint += " (--socket or WSCAST_SOCKET names another)"
		}
	}
	fmt.Fprintf(w, "wscast: %s\n", oneLine(text))
	if hint != "" {
		fmt.Fprintf(w, "wscast: hint: %s\n", oneLine(hint))
	}
	return code
}

// lastCause is the innermost error: what the operating system said, without the calls that passed it on.
func lastCause(err error) error {
	for {
		inner := errors.Unwrap(err)
		if inner == nil {
			return err
		}
		err = inner
	}
}
