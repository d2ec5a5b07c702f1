package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"wscast/ipc"
)

var statusCommand = command{
	name:    "status",
	summary: "report clients, channels, rates, the log, version and uptime",
	help: `
Prints what wscastd answers to INFO, section by section; wscast(1) explains
the fields. Those that are there for Redis clients only are left out. With --json it
is all of INFO: an object of sections, each an object of fields, numbers as numbers:

    wscast status --json | jq .Clients

The exit code is 0 if wscastd answered.
`,
	setup: func(flags *flag.FlagSet) func(streams, []string) error {
		socket := socketFlag(flags)
		asJSON := flags.Bool("json", false, "print a JSON object")
		return func(std streams, args []string) error {
			if len(args) > 0 {
				return &usageError{text: fmt.Sprintf("status takes no arguments, but there is %q", args[0])}
			}
			client, err := ipc.Dial(*socket)
			if err != nil {
				return err
			}
			defer client.Close()
			sections, err := client.Info()
			if err != nil {
				return err
			}
			if *asJSON {
				return write(std.out, statusJSON(sections))
			}
			return write(std.out, statusText(sections))
		}
	},
}

// statusText lists the fields under their sections, the values in one column. A field keeps its name,
// under which the documentation has it, and its exact value; large units follow in parentheses.
func statusText(sections []ipc.Section) []byte {
	width := 0
	for _, s := range sections {
		for _, f := range s.Fields {
			if !forRedisClients(f.Key) {
				width = max(width, len(f.Key))
			}
		}
	}
	var b bytes.Buffer
	for i, s := range sections {
		if i > 0 {
			b.WriteByte('\n')
		}
		fmt.Fprintln(&b, s.Name)
		for _, f := range s.Fields {
			if forRedisClients(f.Key) {
				continue
			}
			line := fmt.Sprintf("  %-*s  %s", width, f.Key, f.Value)
			if large := inLargeUnits(f.Key, f.Value); large != "" {
				line += " (" + large + ")"
			}
			fmt.Fprintln(&b, strings.TrimRight(line, " "))
		}
	}
	return b.Bytes()
}

// forRedisClients tells the fields that wscastd answers only because Redis clients look for them when they
// connect. They say nothing about it. The JSON has them: it is complete.
func forRedisClients(key string) bool {
	return strings.HasPrefix(key, "redis_") || key == "role" || key == "loading"
}

// inLargeUnits is the value of a field whose name tells its unit, as people say it; "" where the value says
// as much by itself.
func inLargeUnits(key, value string) string {
	whole, _, _ := strings.Cut(value, ".")
	n, err := strconv.ParseUint(whole, 10, 64)
	if err != nil {
		return ""
	}
	words := strings.Split(key, "_")
	switch {
	case slices.Contains(words, "bytes") && n >= 1<<10:
		size, unit := float64(n)/(1<<10), 0
		for size >= 1<<10 {
			size, unit = size/(1<<10), unit+1
		}
		return fmt.Sprintf("%.1f %ciB", size, "KMGTPE"[unit])
	case slices.Contains(words, "seconds") && n >= 60:
		const day = 24 * 60 * 60
		clock := (time.Duration(n%day) * time.Second).String()
		if n < day {
			return clock
		}
		return fmt.Sprintf("%dd%s", n/day, clock)
	}
	return ""
}

// statusJSON is an object of objects, in the order in which wscastd gives sections and fields.
func statusJSON(sections []ipc.Section) []byte {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, s := range sections {
		if i > 0 {
			b.WriteByte(',')
		}
		b.Write(jsonText(s.Name))
		b.WriteString(":{")
		for j, f := range s.Fields {
			if j > 0 {
				b.WriteByte(',')
			}
			b.Write(jsonText(f.Key))
			b.WriteByte(':')
			if isNumber(f.Key, f.Value) {
				b.WriteString(f.Value)
			} else {
				b.Write(jsonText(f.Value))
			}
		}
		b.WriteByte('}')
	}
	b.WriteByte('}')
	var indented bytes.Buffer
	json.Indent(&indented, b.Bytes(), "", "  ") // its only error is invalid JSON
	indented.WriteByte('\n')
	return indented.Bytes()
}

func jsonText(s string) []byte {
	text, _ := json.Marshal(s) // never fails for a string: what is not UTF-8 is replaced
	return text
}

// plainNumber leaves out what JSON has beyond it, exponents, since a random id in hexadecimal may be 12e4.
var plainNumber = regexp.MustCompile(`^-?(0|[1-9][0-9]*)(\.[0-9]+)?$`)

// isNumber tells whether a value is a number in JSON. A name or an id is text, even if it is all digits today.
func isNumber(key, value string) bool {
	switch key[strings.LastIndexByte(key, '_')+1:] {
	case "version", "id", "epoch", "name", "build":
		return false
	}
	return plainNumber.MatchString(value)
}
