package main

import (
	"flag"

	"wscast/ipc"
)

var subscribeCommand = command{
	name:    "subscribe",
	args:    "CHANNEL…",
	summary: "print what is published, as a local process",
	help: `
Prints each message on a line of its own as it comes, until it is interrupted.
With several channels, or with --pattern, the channel and a tab come first.

A message is written byte for byte; a newline is added unless it ends with one.
On a terminal, control characters and bytes that are not UTF-8 are shown as \xNN.

With --pattern the arguments are patterns: * is any text, ? one character,
[a-c] one of a set. Quote them for the shell:

    wscast subscribe --pattern 'sensors:*'

Only what is published after the start is seen. When wscastd ends the connection,
or this process is too slow and the log has moved on, the exit code is 1.
`,
	setup: func(flags *flag.FlagSet) func(streams, []string) error {
		socket := socketFlag(flags)
		pattern := flags.Bool("pattern", false, "the arguments are patterns, not names, of channels")
		return func(std streams, args []string) error {
			if len(args) == 0 {
				return &usageError{text: "subscribe: CHANNEL is missing", hint: "as in: wscast subscribe default"}
			}
			for _, name := range args {
				if !*pattern && !ipc.ValidChannel(name) {
					return badChannel("subscribe", name)
				}
			}
			client, err := ipc.Dial(*socket)
			if err != nil {
				return err
			}
			defer client.Close()
			subscribe := client.Subscribe
			if *pattern {
				subscribe = client.PSubscribe
			}
			subscription, err := subscribe(args...)
			if err != nil {
				return err
			}
			named := *pattern || len(args) > 1
			lines := newLinePrinter(std.out)
			for {
				message, err := subscription.Next()
				if err != nil {
					return err
				}
				channel := ""
				if named {
					channel = message.Channel
				}
				if err := lines.print(channel, message.Data); err != nil {
					return err
				}
			}
		}
	},
}
