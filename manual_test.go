package wscast

import (
	"bufio"
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"wscast/daemon"
)

// The man pages are held against the programs that were built, and against the configuration's structure: what is in
// them is in the pages, and nothing else is. The pages are mdoc(7), read here line by line.

// manual is what was installed.
type manual struct {
	root  string
	pages map[string]string // by name and section, as "wscastd.8"
}

func TestManual(t *testing.T) {
	m := manual{root: makeInstall(t, "/usr"), pages: make(map[string]string)}
	files, err := filepath.Glob(m.root + "/usr/share/man/man?/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		m.pages[filepath.Base(file)] = read(t, file)
	}
	if len(m.pages) != 4 {
		t.Fatalf("the pages are %q, not four", files)
	}
	for name, test := range map[string]func(*testing.T, manual){
		"groff has nothing to say":                  lint,
		"a page is what its name says":              titles,
		"references lead to a page":                 references,
		"examples can be copied":                    plainExamples,
		"flags of wscastd":                          flagsOfDaemon,
		"commands and flags of wscast":              flagsOfTool,
		"no other flags":                            otherFlags,
		"exit codes":                                exitCodes,
		"keys and their defaults":                   keys,
		"keys that need a restart":                  restartKeys,
		"no other keys":                             otherKeys,
		"examples of the configuration can be used": configurations,
		"limits are the defaults":                   limits,
		"fields of status":                          statusFields,
	} {
		t.Run(name, func(t *testing.T) { test(t, m) })
	}
}

// run runs a program that was installed and returns its standard output.
func (m *manual) run(t *testing.T, program string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, m.root+"/usr/"+program, args...)
	cmd.Env = append(os.Environ(), "WSCAST_SOCKET=")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %v", cmd, err)
	}
	return string(out)
}

// all finds the groups of an expression in a text: "$1 $2", in lower case, without blanks at the ends.
func all(expression, text string) (found []string) {
	for _, match := range regexp.MustCompile(`(?m)`+expression).FindAllStringSubmatch(text, -1) {
		found = append(found, strings.ToLower(strings.TrimSpace(strings.Join(match[1:], " "))))
	}
	return found
}

// section is the part of a page below a heading, up to the next one.
func section(t *testing.T, page, heading string) string {
	t.Helper()
	_, rest, ok := strings.Cut(page, "\n.Sh "+heading+"\n")
	if !ok {
		t.Fatalf("a page has no section %s", heading)
	}
	text, _, _ := strings.Cut(rest, "\n.Sh ")
	return text
}

// literals are the examples in a page, as the reader sees them.
func literals(page string) (blocks []string) {
	for _, block := range regexp.MustCompile(`(?ms)^\.Bd -literal[^\n]*\n(.*?)^\.Ed$`).FindAllStringSubmatch(page, -1) {
		blocks = append(blocks, unescaped(block[1]))
	}
	return blocks
}

// unescaped is text without the escapes of roff(7) that the pages use.
func unescaped(text string) string {
	return strings.NewReplacer(`\-`, "-", `\(aq`, "'", `\(ga`, "`", `\(dq`, `"`, `\&`, "").Replace(text)
}

// same compares two sets, of the program and of the page.
func same(t *testing.T, what string, program, page []string) {
	t.Helper()
	slices.Sort(program)
	slices.Sort(page)
	if len(program) == 0 || !slices.Equal(program, page) {
		t.Errorf("%s: the program has\n%q\nand the page\n%q", what, program, page)
	}
}

func lint(t *testing.T, m manual) {
	for name, page := range m.pages {
		cmd := exec.Command("groff", "-mdoc", "-ww", "-z")
		cmd.Stdin = strings.NewReader(page)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %v: groff is in the package groff-base\n%s", cmd, err, out)
		}
		if len(out) > 0 {
			t.Errorf("%s: %s", name, out)
		}
		for i, line := range strings.Split(page, "\n") {
			if strings.TrimRight(line, " \t") != line || len(line) > 80 {
				t.Errorf("%s:%d: blanks at the end, or more than 80 bytes: %q", name, i+1, line)
			}
		}
	}
}

func titles(t *testing.T, m manual) {
	for name, page := range m.pages {
		title := regexp.MustCompile(`(?m)^\.Dt (\S+) (\d)\n(?s:.*?)^\.Nm (\S+)\n\.Nd `).FindStringSubmatch(page)
		if title == nil || strings.ToLower(title[1])+"."+title[2] != name || title[3]+"."+title[2] != name {
			t.Errorf("%s has the title and name %q", name, title)
		}
	}
}

func references(t *testing.T, m manual) {
	texts := maps.Clone(m.pages)
	units, err := filepath.Glob("systemd/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, unit := range units {
		texts[unit] = read(t, unit)
	}
	found := 0
	for name, text := range texts {
		for _, reference := range all(`(?:^\.Xr |man:)(wscast[\w.]*)[ (](\d)`, text) {
			found++
			page := strings.Replace(reference, " ", ".", 1)
			if _, ok := m.pages[page]; !ok || page == name {
				t.Errorf("%s refers to %s", name, reference)
			}
		}
	}
	if found < 20 {
		t.Errorf("there are %d references", found)
	}
}

// A bare - ' or ` becomes a hyphen, a quotation mark or an accent in UTF-8 output (groff_char(7)), which no shell reads.
func plainExamples(t *testing.T, m manual) {
	bare := regexp.MustCompile("(?:^|[^\\\\])-|['`]")
	for name, page := range m.pages {
		literal := false
		for i, line := range strings.Split(page, "\n") {
			switch {
			case strings.HasPrefix(line, ".Bd -literal"):
				literal = true
			case line == ".Ed":
				literal = false
			case literal && bare.MatchString(line):
				t.Errorf(`%s:%d: write \- \(aq \(ga in an example: %s`, name, i+1, line)
			}
		}
	}
}

const (
	helpFlags = `^  --(\S+)(?: (\S+))?  `
	listFlags = `^\.It Fl -(\S+)(?: Ar (\S+))?$`
	lineFlags = `Fl -(\S+)(?: Ar (\S+))?`
)

func flagsOfDaemon(t *testing.T, m manual) {
	help, page := m.run(t, "sbin/wscastd", "--help"), m.pages["wscastd.8"]
	same(t, "the list", all(helpFlags, help), all(listFlags, page))
	same(t, "the synopsis", all(helpFlags, help), all(lineFlags, section(t, page, "SYNOPSIS")))
}

func flagsOfTool(t *testing.T, m manual) {
	page := strings.ReplaceAll(m.pages["wscast.1"], "\\\n", "") // lines that are continued
	commands := append(all(`^  (\w+) `, m.run(t, "bin/wscast", "help")), "help")
	same(t, "commands", slices.Clone(commands), all(`^\.It Cm (\w+)`, page))
	for _, command := range commands {
		var flags []string
		if command != "help" { // which has none, and no help of its own
			flags = all(helpFlags, m.run(t, "bin/wscast", "help", command))
		}
		_, entry, _ := strings.Cut(page, "\n.It Cm "+command)
		entry, _, _ = strings.Cut(entry, "\n.It Cm ")
		line, list, _ := strings.Cut(entry, "\n")
		_, synopsis, _ := strings.Cut(section(t, page, "SYNOPSIS"), "\n.Cm "+command+"\n")
		synopsis, _, _ = strings.Cut(synopsis, "\n.Nm ")
		for what, got := range map[string][]string{
			"the list":           all(listFlags, list),
			"the line before it": all(lineFlags, line),
			"the synopsis":       all(lineFlags, synopsis),
		} {
			if slices.Sort(got); !slices.Equal(got, flags) {
				t.Errorf("wscast %s has the flags %q, and in %s %q", command, flags, what, got)
			}
		}
	}
}

// otherFlags: what is written like a flag anywhere is one of ours.
func otherFlags(t *testing.T, m manual) {
	known := all(`^  --(\S+)`, m.run(t, "sbin/wscastd", "--help"))
	for _, command := range all(`^  (\w+) `, m.run(t, "bin/wscast", "help")) {
		known = append(known, all(`^  --(\S+)`, m.run(t, "bin/wscast", "help", command))...)
	}
	for name, page := range m.pages {
		for _, flag := range all(`--([a-z][a-z-]*)`, strings.ReplaceAll(unescaped(page), "Fl -", "--")) {
			if !slices.Contains(known, flag) {
				t.Errorf("%s has --%s, which neither program has", name, flag)
			}
		}
	}
}

func exitCodes(t *testing.T, m manual) {
	_, help, _ := strings.Cut(m.run(t, "sbin/wscastd", "--help"), "Exit codes:")
	same(t, "wscastd", all(`\b(\d+) `, help), all(`^\.It (\d+)$`, section(t, m.pages["wscastd.8"], "EXIT STATUS")))
}

// entries are the keys in wscast.toml(5) with what is said about them, and the file that their lines make.
func (m *manual) entries() (keys []string, about map[string]string, file string) {
	about = make(map[string]string)
	section, key := "", ""
	for _, line := range strings.Split(m.pages["wscast.toml.5"], "\n") {
		if heading, ok := strings.CutPrefix(line, ".Sh "); ok {
			section, key = "", ""
			if heading = unescaped(heading); strings.HasPrefix(heading, "[") {
				section = heading
				file += section + "\n"
			}
		}
		if entry, ok := strings.CutPrefix(line, ".It Ic "); ok && section != "" {
			entry = unescaped(entry)
			file += entry + "\n"
			name, _, _ := strings.Cut(entry, " ")
			key = strings.Trim(section, "[]") + "." + name
			keys = append(keys, key)
		}
		about[key] += line + "\n"
	}
	return keys, about, file
}

// load reads a configuration as wscastd does.
func load(t *testing.T, text string) daemon.Config {
	t.Helper()
	file := filepath.Join(t.TempDir(), "wscast.toml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := daemon.Load(file)
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return c
}

func keys(t *testing.T, m manual) {
	keys, _, file := m.entries()
	if want := daemon.Keys(); !slices.Equal(keys, want) {
		t.Fatalf("wscast.toml(5) has the keys\n%q\nwant, in this order,\n%q", keys, want)
	}
	got, want := load(t, file), daemon.Defaults()
	want.Publish.Allow = []daemon.AllowConfig{{Users: []string{"mail", "1001"}, Groups: []string{"adm"}, Publish: []string{"mail/*", "alerts"}, Subscribe: []string{"mail/*"}}}
	want.Log.Own = []daemon.OwnLogConfig{{Match: "alerts/*", Size: want.Log.Size, Channels: want.Log.Channels}}
	want.Channel = []daemon.ChannelConfig{{Match: "camera/*", Frames: "auto", Upstream: "off"}} // match has no default
	if !reflect.DeepEqual(got, want) {
		t.Errorf("the lines of wscast.toml(5) are\n%+v\nand the defaults\n%+v", got, want)
	}
}

// eachKey goes through the keys of a configuration, without those of sections that are repeated.
func eachKey(config reflect.Value, do func(key string, value reflect.Value)) {
	for i := range config.NumField() {
		section := config.Type().Field(i)
		if section.Type.Kind() == reflect.Slice {
			continue
		}
		for j := range section.Type.NumField() {
			if field := section.Type.Field(j).Type; field.Kind() == reflect.Slice && field.Elem().Kind() == reflect.Struct {
				continue
			}
			do(section.Tag.Get("toml")+"."+section.Type.Field(j).Tag.Get("toml"), config.Field(i).Field(j))
		}
	}
}

func restartKeys(t *testing.T, m manual) {
	_, about, _ := m.entries()
	var marked []string
	for key, text := range about {
		if key != "" && strings.Contains(text, "Needs a restart.\n") {
			marked = append(marked, key)
		}
	}
	// Every value is another one.
	changed := daemon.Defaults()
	eachKey(reflect.ValueOf(&changed).Elem(), func(_ string, value reflect.Value) {
		switch value.Kind() {
		case reflect.String:
			value.SetString(value.String() + "x")
		case reflect.Slice:
			value.Set(reflect.Append(value, reflect.ValueOf("x")))
		case reflect.Uint32:
			value.SetUint(value.Uint() + 1)
		case reflect.Bool:
			value.SetBool(!value.Bool())
		default:
			value.SetInt(value.Int() + 1)
		}
	})
	same(t, "keys that need a restart", daemon.FixedChanges(daemon.Defaults(), changed), marked)
}

// otherKeys: what is written like a key anywhere is one.
func otherKeys(t *testing.T, m manual) {
	var sections []string
	for _, key := range daemon.Keys() {
		section, _, _ := strings.Cut(key, ".")
		sections = append(sections, section)
	}
	found := 0
	for name, page := range m.pages {
		for _, key := range all(`\b((?:`+strings.Join(sections, "|")+`)\.[a-z_]+)`, page) {
			if strings.HasSuffix(key, ".sock") || strings.HasSuffix(key, ".socket") {
				continue
			}
			if found++; !slices.ContainsFunc(daemon.Keys(), func(k string) bool { return k == key || strings.HasPrefix(k, key+".") }) {
				t.Errorf("%s has %s, which is no key", name, key)
			}
		}
	}
	if found < 10 {
		t.Errorf("the pages name %d keys", found)
	}
}

func configurations(t *testing.T, m manual) {
	found := 0
	for _, example := range literals(m.pages["wscast.toml.5"]) {
		if strings.HasPrefix(example, "[") {
			found++
			if reflect.DeepEqual(load(t, example), daemon.Defaults()) {
				t.Errorf("this example changes nothing:\n%s", example)
			}
		}
	}
	if found == 0 {
		t.Error("wscast.toml(5) has no example")
	}
}

// limits: a row of the table ends with a key in parentheses, and before that is the key's default.
func limits(t *testing.T, m manual) {
	defaults := make(map[string]string)
	eachKey(reflect.ValueOf(daemon.Defaults()), func(key string, value reflect.Value) {
		text := fmt.Sprint(value)
		switch v := value.Interface().(type) {
		case daemon.Size:
			text = regexp.MustCompile(`^\d+`).ReplaceAllString(v.String(), "$0 ")
		case daemon.Duration:
			text = fmt.Sprintf("%g s", time.Duration(v).Seconds())
		}
		defaults[key] = text
	})
	rows := regexp.MustCompile(`(?m)^\.It [A-Z].*\n(.*)\n\.Pq Ic (\S+)`).FindAllStringSubmatch(section(t, m.pages["wscast.7"], "LIMITS"), -1)
	for _, row := range rows {
		if value := defaults[row[2]]; value == "" || !regexp.MustCompile(`\b`+value+`\b`).MatchString(row[1]) {
			t.Errorf("wscast(7) has the limit %q, and %s is %q", row[1], row[2], value)
		}
	}
	if len(rows) < 5 {
		t.Errorf("wscast(7) has %d limits", len(rows))
	}
}

// statusFields are asked of a running wscastd.
func statusFields(t *testing.T, m manual) {
	socket := filepath.Join(t.TempDir(), "publish.sock")
	cmd := exec.Command(m.root+"/usr/sbin/wscastd", "--websocket", "127.0.0.1:0", "--publish", socket)
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET=", "JOURNAL_STREAM=", "LISTEN_FDS=")
	cmd.Stderr = new(strings.Builder)
	stdout, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			t.Errorf("wscastd: %v\n%s", err, cmd.Stderr)
		}
	})
	if _, err := bufio.NewReader(stdout).ReadString('\n'); err != nil { // it says how to publish when it can be published to
		t.Fatalf("wscastd does not start: %v", err)
	}
	status := m.run(t, "bin/wscast", "status", "--socket", socket)

	page := section(t, m.pages["wscast.1"], "STATUS")
	same(t, "sections", all(`^([A-Z]\w+)$`, status), all(`^\.Ss (\w+)$`, page))
	var fields []string
	for _, entry := range all(`^\.It Sy (.*)$`, page) {
		fields = append(fields, strings.Split(entry, " , ")...)
	}
	same(t, "fields", all(`^  (\w+) `, status), fields)
}
