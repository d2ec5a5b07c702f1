package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"time"

	"wscast/token"
)

var tokenCommand = command{
	name:    "token",
	summary: "make a token that lets a WebSocket client in",
	help: `Print a token, a JSON Web Token signed with the key in FILE: the secret or the private
key that belongs to auth.key in wscast.toml. It lets a client subscribe to the channels that match
--channel, and publish to those that match --publish, until it expires. Both can be given several
times, and can be patterns: * is any number of characters.`,
	setup: func(flags *flag.FlagSet) func(std streams, args []string) error {
		key := flags.String("key", "", "the `FILE` with the secret or the private key")
		subject := flags.String("subject", "", "the `NAME` of the client, which others see")
		expires := flags.Duration("expires", time.Hour, "the `TIME` from now on until it expires; 0: never")
		var channels, publish many
		flags.Var(&channels, "channel", "the `NAMES` of channels to subscribe to")
		flags.Var(&publish, "publish", "the `NAMES` of channels to publish to")
		return func(std streams, args []string) error {
			switch {
			case len(args) > 0:
				return &usageError{text: "token takes no arguments"}
			case *key == "":
				return &usageError{text: "token needs --key FILE"}
			case *expires < 0:
				return &usageError{text: "--expires is a time from now on, or 0"}
			case len(channels) == 0 && len(publish) == 0:
				return &usageError{text: "a token without --channel and --publish allows nothing"}
			}
			b, err := os.ReadFile(*key)
			if err != nil {
				return err
			}
			k, err := token.ParseKey(b)
			if err != nil {
				return fmt.Errorf("%s: %w", *key, err)
			}
			claims := token.Claims{Subject: *subject, Channels: channels, Publish: publish}
			if *expires > 0 {
				claims.Expires = time.Now().Add(*expires)
			}
			text, err := k.Sign(claims)
			if err != nil {
				return fmt.Errorf("%s: %w", *key, err)
			}
			_, err = fmt.Fprintln(std.out, text)
			return err
		}
	},
}

// many is a flag that can be given several times.
type many []string

func (m *many) String() string { return strings.Join(*m, " ") }

func (m *many) Set(value string) error {
	if value == "" {
		return errors.New("it is empty")
	}
	*m = append(*m, value)
	return nil
}
