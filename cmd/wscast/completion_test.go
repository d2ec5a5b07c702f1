package main

import (
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const completions = "../../packaging/completions"

// spelling is how each shell's file writes a flag and a command.
var spelling = map[string]struct{ flag, command func(name string) string }{
	"wscast.bash": {
		flag:    func(name string) string { return "--" + name },
		command: func(name string) string { return name },
	},
	"wscast.zsh": {
		flag:    func(name string) string { return "--" + name },
		command: func(name string) string { return name },
	},
	"wscast.fish": {
		flag:    func(name string) string { return "-l " + name },
		command: func(name string) string { return "-a " + name },
	},
}

// flagNames are the flags of a command, in the order of the alphabet.
func (c *command) flagNames() []string {
	flags := c.flagSet()
	c.setup(flags)
	var names []string
	flags.VisitAll(func(f *flag.Flag) { names = append(names, f.Name) })
	return names
}

// A new command or flag is not done before the three shells know it.
func TestCompletionsKnowEverything(t *testing.T) {
	for file, spelled := range spelling {
		content, err := os.ReadFile(filepath.Join(completions, file))
		if err != nil {
			t.Fatal(err)
		}
		has := func(text string) bool {
			return regexp.MustCompile(`(^|[^\w-])` + regexp.QuoteMeta(text) + `($|[^\w-])`).Match(content)
		}
		if !has(spelled.command("help")) || !has(spelled.flag("help")) {
			t.Errorf("%s lacks help", file)
		}
		for _, c := range commands {
			if !has(spelled.command(c.name)) {
				t.Errorf("%s lacks the command %s", file, c.name)
			}
			if file != "wscast.bash" && !strings.Contains(string(content), c.summary) {
				t.Errorf("%s lacks the summary of %s: %s", file, c.name, c.summary)
			}
			for _, name := range c.flagNames() {
				if !has(spelled.flag(name)) {
					t.Errorf("%s lacks --%s of %s", file, name, c.name)
				}
			}
		}
	}
}

// bashCompletes asks a real bash what it would offer for the last of words.
func bashCompletes(t *testing.T, words ...string) []string {
	t.Helper()
	bash, err := exec.LookPath("bash")
	if err != nil {
		t.Fatal("no bash: apt install bash")
	}
	const script = `
		source "$1" && shift && complete -p wscast >/dev/null || exit
		COMP_WORDS=(wscast "$@") COMP_CWORD=$#
		_wscast wscast "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
		((${#COMPREPLY[@]})) && printf '%s\n' "${COMPREPLY[@]}"
		exit 0`
	cmd := exec.Command(bash, append([]string{"--norc", "--noprofile", "-c", script, "bash", filepath.Join(completions, "wscast.bash")}, words...)...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil || stderr.Len() > 0 {
		t.Fatalf("bash: %v: %s", err, stderr.String())
	}
	offered := strings.Fields(string(out))
	slices.Sort(offered)
	return offered
}

func TestBashCompletion(t *testing.T) {
	everything := []string{"help", "--help", "--version"}
	for _, c := range commands {
		everything = append(everything, c.name)
		if len(c.flagNames()) == 0 {
			continue
		}
		flags := []string{"--help"}
		for _, name := range c.flagNames() {
			flags = append(flags, "--"+name)
		}
		slices.Sort(flags)
		if got := bashCompletes(t, c.name, "-"); !slices.Equal(got, flags) {
			t.Errorf("%s -: %q, want %q", c.name, got, flags)
		}
	}
	slices.Sort(everything)
	if got := bashCompletes(t, ""); !slices.Equal(got, everything) {
		t.Errorf("after wscast: %q, want %q", got, everything)
	}
	file := filepath.Join(t.TempDir(), "publish.sock")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ words, want []string }{
		{[]string{"pub"}, []string{"publish"}},
		{[]string{"s"}, []string{"status", "subscribe"}},
		{[]string{"--v"}, []string{"--version"}},
		{[]string{"help", "li"}, []string{"listen"}},
		{[]string{"publish", "--l"}, []string{"--lines"}},
		{[]string{"publish", "news", "--l"}, nil}, // that would be the message
		{[]string{"publish", "--socket", file, "--l"}, []string{"--lines"}},
		{[]string{"publish", "--id", "1", "--l"}, []string{"--lines"}},
		{[]string{"status", "--socket", strings.TrimSuffix(file, ".sock")}, []string{file}},
		{[]string{"listen", "--origin", "https"}, []string{"https://"}},
		{[]string{"publish", ""}, nil},
	} {
		if got := bashCompletes(t, c.words...); !slices.Equal(got, c.want) {
			t.Errorf("wscast %q: %q, want %q", c.words, got, c.want)
		}
	}
}
