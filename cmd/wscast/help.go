package main

import (
	"flag"
	"fmt"
	"io"
	"runtime"
	"strings"
)

var versionCommand = command{
	name:    "version",
	summary: "print the version",
	setup: func(*flag.FlagSet) func(streams, []string) error {
		return func(std streams, args []string) error {
			if len(args) > 0 {
				return &usageError{text: "version takes no arguments"}
			}
			return write(std.out, fmt.Appendf(nil, "wscast %s %s/%s %s\n", version, runtime.GOOS, runtime.GOARCH, runtime.Version()))
		}
	},
}

// help writes the overview, or the help of the one command that args names.
func help(out io.Writer, args []string) error {
	switch len(args) {
	case 0:
		return write(out, []byte(overview()))
	case 1:
		c, err := lookup(args[0])
		if err != nil {
			return err
		}
		return write(out, []byte(c.usage()))
	}
	return &usageError{text: "help takes one command", hint: "as in: wscast help " + commands[0].name}
}

// overview is what `wscast help` prints.
func overview() string {
	var b strings.Builder
	b.WriteString("Usage: wscast COMMAND [FLAG…] [ARGUMENT…]\n\n")
	for _, c := range commands {
		fmt.Fprintf(&b, "  %-10s %s\n", c.name, c.summary)
	}
	b.WriteString("\nwscast help COMMAND tells more about one of them.\n")
	return b.String()
}

// usage is what `wscast help COMMAND` prints. The flags come from the flag set, so they cannot differ.
func (c *command) usage() string {
	flags := c.flagSet()
	c.setup(flags)
	var list strings.Builder
	flags.VisitAll(func(f *flag.Flag) {
		argument, text := flag.UnquoteUsage(f)
		spelled := strings.TrimSpace("--" + f.Name + " " + argument)
		fmt.Fprintf(&list, "  %-16s %s", spelled, text)
		if f.DefValue != "" && f.DefValue != "false" {
			fmt.Fprintf(&list, " (default %s)", f.DefValue)
		}
		list.WriteString("\n")
	})

	var b strings.Builder
	b.WriteString("Usage: wscast " + c.name)
	if list.Len() > 0 {
		b.WriteString(" [FLAG…]")
	}
	if c.args != "" {
		b.WriteString(" " + c.args)
	}
	fmt.Fprintf(&b, "\n\n%s%s.\n", strings.ToUpper(c.summary[:1]), c.summary[1:])
	if c.help != "" {
		b.WriteString("\n" + strings.TrimSpace(c.help) + "\n")
	}
	if list.Len() > 0 {
		b.WriteString("\n" + list.String())
	}
	return b.String()
}
