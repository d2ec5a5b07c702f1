package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"

	"wscast/bench/plot"
)

// page is the document in which the tables are kept, and beside which the charts are.
const page = "performance.md"

// A section is what one group of rows has come to.
type section struct {
	name   string // of its place in the page
	text   string // tables
	charts []*picture
}

// A picture is a chart in a file beside the page.
type picture struct {
	file string // without its ending
	plot.Chart
}

// keep writes a section into its place in the page in dir, and its charts beside it. The
// place is between two comments that name it; what stands there is replaced.
func (s *section) keep(dir string) error {
	name := filepath.Join(dir, page)
	old, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	text, err := replaced(old, s.name, "```\n"+s.text+"```\n")
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	for _, c := range s.charts {
		var b bytes.Buffer
		if err := c.SVG(&b); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, c.file+".svg"), b.Bytes(), 0o644); err != nil {
			return err
		}
	}
	return os.WriteFile(name, text, 0o644)
}

// replaced returns a page with other text between the comments of a place.
func replaced(page []byte, place, text string) ([]byte, error) {
	begin, end := "<!-- bench "+place+" -->\n", "<!-- end of bench "+place+" -->\n"
	head, rest, ok := bytes.Cut(page, []byte(begin))
	_, tail, also := bytes.Cut(rest, []byte(end))
	if !ok || !also {
		return nil, fmt.Errorf("has no place for the rows %s: put the lines %q and %q into it", place, begin, end)
	}
	return bytes.Join([][]byte{head, []byte(begin), []byte(text), []byte(end), tail}, nil), nil
}
