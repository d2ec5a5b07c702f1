package ipc

import (
	"strings"
	"testing"
)

func TestGlob(t *testing.T) {
	for _, test := range []struct {
		pattern, name string
		want          bool
	}{
		{"", "", true}, {"", "a", false}, {"a", "", false}, {"a", "a", true}, {"a", "ab", false}, {"ab", "a", false},
		{"*", "", true}, {"*", "abc", true}, {"a*", "abc", true}, {"*c", "abc", true}, {"a*c", "abc", true}, {"a*b", "abc", false},
		{"a**c", "abc", true}, {"*b*", "abc", true}, {"news.*", "news.local", true}, {"news.*", "news", false},
		{"?", "a", true}, {"?", "", false}, {"a?c", "abc", true}, {"a?c", "ac", false},
		{"[abc]", "b", true}, {"[abc]", "d", false}, {"[a-c]", "b", true}, {"[c-a]", "b", true}, {"[a-c]", "d", false}, {"[^a-c]", "d", true}, {"[^a-c]", "a", false},
		{"h[ae]llo", "hello", true}, {"h[ae]llo", "hillo", false}, {"[a", "a", true}, {"[a", "b", false}, {"[", "a", false}, {"[]", "a", false}, {"[^]", "a", true}, {"[\\]]", "]", true}, {"[a-", "-", true},
		{"\\*", "*", true}, {"\\*", "a", false}, {"a\\", "a\\", true}, {"*\\", "a\\", true},
		{"*a*b*c*", "xxaxxbxxcxx", true}, {"*a*b*c*", "xxaxxcxxbxx", false},
	} {
		if got := Match(test.pattern, test.name); got != test.want {
			t.Errorf("Match(%q, %q) = %v", test.pattern, test.name, got)
		}
	}
}

// FuzzGlob holds Match against its definition, tried in every way.
func FuzzGlob(f *testing.F) {
	f.Add("a*[b-d]?\\x", "aacxx")
	f.Add("[^", "a")
	f.Add("[\\", "\\")
	f.Fuzz(func(t *testing.T, pattern, name string) {
		if len(pattern) > 12 || len(name) > 12 || strings.Count(pattern, "*") > 4 {
			Match(pattern, name)
			return
		}
		if got, want := Match(pattern, name), matchSlowly(pattern, name); got != want {
			t.Fatalf("Match(%q, %q) = %v", pattern, name, got)
		}
	})
}

func matchSlowly(pattern, name string) bool {
	switch {
	case pattern == "":
		return name == ""
	case pattern[0] == '*':
		return matchSlowly(pattern[1:], name) || name != "" && matchSlowly(pattern, name[1:])
	case name == "":
		return false
	}
	next, ok := matchByte(pattern, 0, name[0])
	return ok && matchSlowly(pattern[next:], name[1:])
}
