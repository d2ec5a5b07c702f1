package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"wscast/bench/plot"
)

func TestSectionIsKeptInItsPlace(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, page)
	const before = "# Title\n<!-- bench one -->\nold\n<!-- end of bench one -->\nmiddle\n<!-- bench two -->\n<!-- end of bench two -->\nend\n"
	if err := os.WriteFile(name, []byte(before), 0o600); err != nil {
		t.Fatal(err)
	}
	s := &section{name: "one", text: "new\n", charts: []*picture{{file: "bench-one", Chart: plot.Chart{Categories: []string{"a"}}}}}
	for range 2 { // the second time changes nothing
		if err := s.keep(dir); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if want := strings.Replace(before, "old\n", "```\nnew\n```\n", 1); string(got) != want {
		t.Fatalf("got %s\nwant %s", got, want)
	}
	if _, err := os.Stat(filepath.Join(dir, "bench-one.svg")); err != nil {
		t.Error(err)
	}
	s.name = "three"
	if err := s.keep(dir); err == nil || !strings.Contains(err.Error(), "<!-- bench three -->") {
		t.Errorf("error is %v, want one with the line that is missing", err)
	}
}

// The page that is kept has a place for every group, and shows every chart that there is.
func TestPageHasEveryPlace(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "doc", page))
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range groups {
		if _, err := replaced(text, g.name, ""); err != nil {
			t.Error(err)
		}
	}
	charts, err := filepath.Glob(filepath.Join("..", "doc", "bench-*.svg"))
	if err != nil || len(charts) == 0 {
		t.Fatalf("there is no chart: %v", err)
	}
	for _, c := range charts {
		if !strings.Contains(string(text), "]("+filepath.Base(c)+")") {
			t.Errorf("%s does not show %s", page, filepath.Base(c))
		}
	}
}
