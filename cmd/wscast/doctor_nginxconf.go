package main

import (
	"path"
	"path/filepath"
	"strings"
)

// nginx's configuration, as nginx -T prints it: the text of each file behind a line that names it. Which directives
// there are, and whether they are right, is for nginx to say. What is read here need not make sense, and nothing in it
// is an error.

// directive is a directive with its block, if it has one, and where it is.
type directive struct {
	name  string
	args  []string
	block []directive
	file  string
	line  int
}

const (
	// dumpHeader and a colon stand around the path of a file.
	dumpHeader = "# configuration file "
	// deepest is how deep blocks and includes may lie in each other, and mostIncludes how often a file may be included;
	// what is beyond is left out. Files that include two others each are 2ⁿ in the end.
	deepest      = 100
	mostIncludes = 1 << 14
)

// parseNginx returns the directives of the main file, with those of the files that it includes in place of include.
func parseNginx(dump string) []directive {
	c := nginxFiles{text: make(map[string]string), read: make(map[string][]directive), left: mostIncludes,
		open: make(map[string]bool)}
	name, start, offset := "", 0, 0
	for line := range strings.Lines(dump) {
		rest, isHeader := strings.CutPrefix(line, dumpHeader)
		if next, named := strings.CutSuffix(strings.TrimRight(rest, "\r\n"), ":"); isHeader && named && next != "" {
			c.add(name, dump[start:offset])
			name, start = next, offset+len(line)
		}
		offset += len(line)
	}
	c.add(name, dump[start:])
	if len(c.names) == 0 {
		return nil
	}
	return c.include(c.names[0], 0)
}

// nginxFiles are the files of a dump.
type nginxFiles struct {
	names []string // in the order of the dump, the main file first
	text  map[string]string
	read  map[string][]directive // with include as it is
	open  map[string]bool        // that are being included: nginx has no end either of one that includes itself
	left  int                    // includes
}

func (c *nginxFiles) add(name, text string) {
	if _, twice := c.text[name]; name == "" || twice {
		return
	}
	c.names = append(c.names, name)
	c.text[name] = text
}

func (c *nginxFiles) include(name string, depth int) []directive {
	if c.left--; c.left < 0 || depth > deepest || c.open[name] {
		return nil
	}
	c.open[name] = true
	defer delete(c.open, name)
	list, seen := c.read[name]
	if !seen {
		r := nginxReader{text: c.text[name], file: name, line: 1}
		list = r.block(0)
		c.read[name] = list
	}
	return c.resolve(list, depth)
}

// resolve puts what is included in its place. Paths are relative to the directory of the main file, and patterns
// (glob(7)) match what nginx has found.
func (c *nginxFiles) resolve(list []directive, depth int) (resolved []directive) {
	for _, d := range list {
		if d.name != "include" || len(d.args) != 1 {
			d.block = c.resolve(d.block, depth+1)
			resolved = append(resolved, d)
			continue
		}
		pattern := d.args[0]
		if !path.IsAbs(pattern) {
			pattern = path.Join(path.Dir(c.names[0]), pattern)
		}
		for _, name := range c.names {
			if matches, err := filepath.Match(pattern, name); name == pattern || err == nil && matches {
				resolved = append(resolved, c.include(name, depth+1)...)
			}
		}
	}
	return resolved
}

// nginxReader reads one file.
type nginxReader struct {
	text string
	file string
	line int // of what is next
}

// block reads directives up to the end of the block or the file.
func (r *nginxReader) block(depth int) (list []directive) {
	var d directive
	var words []string
	for {
		line, word, special := r.token()
		switch {
		case special == 0 && len(words) == 0:
			d.file, d.line = r.file, line
			fallthrough
		case special == 0:
			words = append(words, word)
			continue
		case len(words) > 0: // ";", "{", or without either at the end
			d.name, d.args = words[0], words[1:]
			switch {
			case special == '{' && strings.HasSuffix(d.name, "_by_lua_block"): // of the Lua module: a program, not directives
				r.skipBraces()
			case special == '{' && depth < deepest:
				d.block = r.block(depth + 1)
			case special == '{':
				r.skipBraces()
			}
			list = append(list, d)
			d, words = directive{}, nil
		case special == '{': // without a name
			r.skipBraces()
		}
		if special == '}' || special == endOfFile {
			return list
		}
	}
}

// endOfFile is what token returns in place of a character there. 0 is a word.
const endOfFile = '\x04'

// blanks are what nginx takes between words.
const blanks = " \t\r\n"

// token reads a word, or one of ; { } or the end, which is special. The rules are those of nginx's ngx_conf_read_token:
// quotes count at the beginning of a word, a brace ends one unless it follows a dollar sign, and a backslash takes the
// next character as it is.
func (r *nginxReader) token() (line int, word string, special byte) {
	for r.text != "" {
		switch c := r.text[0]; {
		case strings.IndexByte(blanks, c) >= 0:
			r.advance(1)
		case c == '#':
			end := strings.IndexByte(r.text, '\n')
			if end < 0 {
				end = len(r.text)
			}
			r.advance(end)
		case c == ';' || c == '{' || c == '}':
			r.advance(1)
			return r.line, "", c
		case c == '"' || c == '\'':
			line = r.line
			r.advance(1)
			return line, r.word(func(_, c2 byte) bool { return c2 == c }, true), 0
		default:
			line = r.line
			return line, r.word(func(before, c byte) bool {
				return strings.IndexByte(blanks, c) >= 0 || c == ';' || c == '{' && before != '$'
			}, false), 0
		}
	}
	return r.line, "", endOfFile
}

// word reads up to a character that ends it, which is taken as well if it is a quote.
func (r *nginxReader) word(ends func(before, c byte) bool, quoted bool) string {
	var b strings.Builder
	var before byte
	for i := 0; i < len(r.text); i++ {
		c := r.text[i]
		if c == '\\' && i+1 < len(r.text) {
			i++
			b.WriteString(unescapedNginx(r.text[i]))
			before = 0
			continue
		}
		if ends(before, c) {
			if quoted {
				r.advance(i + 1)
			} else {
				r.advance(i)
			}
			return b.String()
		}
		b.WriteByte(c)
		before = c
	}
	r.advance(len(r.text))
	return b.String()
}

func unescapedNginx(c byte) string {
	switch c {
	case '"', '\'', '\\', ' ', ';', '{', '}':
		return string(c)
	case 't':
		return "\t"
	case 'r':
		return "\r"
	case 'n':
		return "\n"
	}
	return "\\" + string(rune(c))
}

// advance leaves n bytes behind.
func (r *nginxReader) advance(n int) {
	r.line += strings.Count(r.text[:n], "\n")
	r.text = r.text[n:]
}

// skipBraces leaves a block behind whose opening brace has been read.
func (r *nginxReader) skipBraces() {
	open := 1
	for i := range len(r.text) {
		switch r.text[i] {
		case '{':
			open++
		case '}':
			open--
		}
		if open == 0 {
			r.advance(i + 1)
			return
		}
	}
	r.advance(len(r.text))
}

// find are the directives of a name in a list, not in their blocks.
func find(list []directive, name string) (found []*directive) {
	for i := range list {
		if list[i].name == name {
			found = append(found, &list[i])
		}
	}
	return found
}

// arg is an argument, "" without it.
func (d *directive) arg(i int) string {
	if d == nil || i >= len(d.args) {
		return ""
	}
	return d.args[i]
}
