package conformance

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Pages name the tests that show what they say. These exist, and none of those here is missing from SECURITY.md.
func TestPagesNameTheirTests(t *testing.T) {
	const root = "../.."
	page, err := os.ReadFile(filepath.Join(root, "SECURITY.md"))
	if err != nil {
		t.Fatal(err)
	}
	there := map[string]bool{}
	definition := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`)
	err = filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		for _, m := range definition.FindAllStringSubmatch(string(text), -1) {
			there[m[1]] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	const least = 15 // names on a page, or it is not read rightly
	names := regexp.MustCompile(`\b(?:Test|Fuzz)[A-Z]\w+`)
	for _, name := range []string{"SECURITY.md", "doc/reliability.md"} {
		text, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		named := names.FindAllString(string(text), -1)
		if len(named) < least {
			t.Errorf("%s names %d tests", name, len(named))
		}
		for _, test := range named {
			if !there[test] {
				t.Errorf("%s names %s, and there is no such test", name, test)
			}
		}
	}
	ours, err := os.ReadFile("hostile_test.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range definition.FindAllStringSubmatch(string(ours), -1) {
		if !strings.Contains(string(page), m[1]) {
			t.Errorf("SECURITY.md does not name %s", m[1])
		}
	}
}
