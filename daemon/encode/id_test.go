package encode

import (
	"math"
	"testing"
)

func TestID(t *testing.T) {
	for id, want := range map[ID]string{
		{}:                               "0000000000000000-0",
		{0x0123456789abcdef, 42}:         "0123456789abcdef-42",
		{math.MaxUint64, math.MaxUint64}: "ffffffffffffffff-18446744073709551615",
	} {
		if got := id.String(); got != want || len(got) > MaxID {
			t.Errorf("%q, want %q", got, want)
		}
	}
	for _, text := range []string{
		"", "-", "0123456789abcdef", "0123456789abcdef-", "0123456789abcdef-01", "0123456789abcdef-+1", "0123456789abcdef--1", "0123456789ABCDEF-1",
		"+123456789abcdef-1", "0123456789abcde-1", "00123456789abcdef-1", "0123456789abcdeg-1", "0123456789abcdef-18446744073709551616",
		"0123456789abcdef-1 ", " 0123456789abcdef-1", "0123456789abcdef-1-2", "0123456789abcdef-1_0", "0x23456789abcdef-1",
	} {
		if id, err := ParseID(text); err == nil {
			t.Errorf("%q is %v", text, id)
		}
	}
}

// An id has one text.
func FuzzParseID(f *testing.F) {
	f.Add("0123456789abcdef-42")
	f.Add("ffffffffffffffff-18446744073709551615")
	f.Add("0000000000000000-00")
	f.Add("_123456789abcdef-1_0")
	f.Fuzz(func(t *testing.T, text string) {
		if id, err := ParseID(text); err == nil && id.String() != text {
			t.Errorf("%q is %v", text, id)
		}
	})
}
