package main

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"slices"
	"unicode/utf8"
)

// The rules of what doctor says:
//
//   - A finding is one line: how bad it is, what was seen, and behind a dash the line that mends it. Where one command can
//     mend it, that command is the line, to be copied as it is; otherwise it says what to write where.
//   - What is in order is said in one line as well, with the figures that make it so.
//   - What could not be looked at is a note that says how to have it looked at. Nothing is passed over in silence.
//   - Nothing is changed: a daemon that does not run is not started by looking at it.

var doctorCommand = command{
	name:    "doctor",
	summary: "check the installation and say what mends it",
	help: `
Looks at the units, the sockets, wscastd, nginx and the machine, and prints a line
for each thing: ok, note, warning or error, what was seen, and behind a dash the
line that mends it. Most of these lines are commands, for root. It changes nothing
itself. Run by root it sees everything, nginx's configuration included; run by any
other user it tells whether that user may publish, and what it could not look at.

The exit code is 0 when there is nothing worse than a note, and 1 with a warning or
an error.
`,
	setup: func(flags *flag.FlagSet) func(streams, []string) error {
		socket := socketFlag(flags)
		clients := flags.Uint("clients", 0, "judge limits for `N` clients; 0: those there are, and some more")
		return func(std streams, args []string) error {
			if len(args) > 0 {
				return &usageError{text: fmt.Sprintf("doctor takes no arguments, but there is %q", args[0])}
			}
			f := gatherFacts(*socket)
			f.planned = int(min(*clients, maxPlanned))
			return doctor(f, std)
		}
	},
}

// maxPlanned keeps arithmetic with --clients far from where it would overflow.
const maxPlanned = 1 << 24

// level is how bad a finding is, in ascending order.
type level int

const (
	levelOK level = iota
	levelNote
	levelWarning // it works, until something else happens: a reboot, a crash, more clients
	levelError   // something does not work
)

var levelNames = [...]string{"ok", "note", "warning", "error"}

// ECMA-48 (ISO 6429), SGR: green, cyan, yellow, bold red.
var levelColours = [...]string{"\x1b[32m", "\x1b[36m", "\x1b[33m", "\x1b[1;31m"}

const plainColour = "\x1b[m"

// A finding is a line of output.
type finding struct {
	level level
	what  string
	mend  string // "" where there is nothing to do
}

func ok(format string, args ...any) finding {
	return finding{level: levelOK, what: fmt.Sprintf(format, args...)}
}

func note(mend, format string, args ...any) finding {
	return finding{levelNote, fmt.Sprintf(format, args...), mend}
}

func warn(mend, format string, args ...any) finding {
	return finding{levelWarning, fmt.Sprintf(format, args...), mend}
}

func wrong(mend, format string, args ...any) finding {
	return finding{levelError, fmt.Sprintf(format, args...), mend}
}

// A check is a function from facts to findings. It asks nothing of the machine, so a test can make up any machine.
type check func(*facts) []finding

// areas are the headings, in order, with their checks.
var areas = []struct {
	name   string
	checks []check
}{
	{"Units", []check{checkManager, checkSocketUnits, checkService, checkStore, checkStarts}},
	{"Publish socket", []check{checkSocketFile, checkSocketMode, checkCaller, checkRules}},
	{"wscastd", []check{checkAnswer, checkConfiguration, checkVersions, checkSurvival, checkFiles, checkLog,
		checkLogFile}},
	{"nginx", []check{checkNginx, checkWorkers, checkWorkerGroup, checkRoutes}},
	{"Machine", []check{checkPorts, checkBacklog, checkClock, checkDenials}},
}

// doctor prints what the checks find. The error, if anything is to be mended, says how much.
func doctor(f *facts, std streams) error {
	colours := isTerminal(std.out) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
	var b bytes.Buffer
	var count [len(levelNames)]int
	for _, area := range areas {
		var findings []finding
		for _, c := range area.checks {
			for _, found := range c(f) {
				// A file that nginx includes in several places is judged in each.
				if !slices.Contains(findings, found) {
					findings = append(findings, found)
					count[found.level]++
				}
			}
		}
		printArea(&b, area.name, findings, colours)
	}
	problems := counted(count[levelError], "error")
	if count[levelWarning] > 0 {
		if problems != "" {
			problems += " and "
		}
		problems += counted(count[levelWarning], "warning")
	}
	if problems == "" {
		b.WriteString("Nothing to mend.\n")
	}
	if err := write(std.out, b.Bytes()); err != nil {
		return err
	}
	if problems != "" {
		return &failure{text: problems}
	}
	return nil
}

func counted(n int, noun string) string {
	switch n {
	case 0:
		return ""
	case 1:
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// widestAligned is how long a finding may be for those above and below it to be filled up to its length.
const widestAligned = 64

func printArea(b *bytes.Buffer, name string, findings []finding, colours bool) {
	if len(findings) == 0 {
		return
	}
	width := 0
	for i := range findings {
		found := &findings[i]
		// They quote other programs and files.
		found.what, found.mend = oneLine(found.what), oneLine(found.mend)
		if n := utf8.RuneCountInString(found.what); found.mend != "" && n <= widestAligned {
			width = max(width, n)
		}
	}
	fmt.Fprintln(b, name)
	for _, found := range findings {
		word := fmt.Sprintf("%-7s", levelNames[found.level])
		if colours {
			word = levelColours[found.level] + word + plainColour
		}
		fmt.Fprintf(b, "  %s  ", word)
		if found.mend == "" {
			fmt.Fprintln(b, found.what)
			continue
		}
		fmt.Fprintf(b, "%-*s  — %s\n", width, found.what, found.mend)
	}
	b.WriteByte('\n')
}
