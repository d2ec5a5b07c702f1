package main

import (
	"strings"
	"testing"
)

func TestTable(t *testing.T) {
	var b strings.Builder
	r := results{
		floorOne: {{"a": 4, "b": 0.01}, {"a": 8, "b": 0.02}, {"a": 5, "b": 0}},
		subject:  {{"a": 5, "b": 0.5}, {"a": 9, "b": 0.4, lostMessages: 2}, {"a": 5, "b": 0.3}},
	}
	s := &sheet{title: "title", columns: []string{floorOne, subject}, rows: []row{"a", "nobody's", lostMessages, "b"}, results: r, bases: []string{floorOne, redis}}
	if err := s.print(&b); err != nil {
		t.Fatal(err)
	}
	// Rounds 5/4, 9/8 and 5/5: the ratio of the medians would be 1.00.
	want := `
title                          floor              wscastd
a                              5.00 [4.00–8.00]   5.00 [5.00–9.00]
messages missed, all clients   –                  2.00
b                              0.01 [0.00–0.02]   0.40 [0.30–0.50]

as a multiple of floor   wscastd
a                        1.12 [1.00–1.25]
b                        –
`
	if got := "\n" + b.String(); got != want {
		t.Fatalf("got %s\nwant %s", got, want)
	}
}
