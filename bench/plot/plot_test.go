package plot

import (
	"encoding/xml"
	"io"
	"strconv"
	"strings"
	"testing"
)

// elements reads a picture, which has to be well-formed XML, and returns its texts and the
// attributes of each element of a kind.
func elements(t *testing.T, picture, kind string) (texts []string, attributes []map[string]string) {
	t.Helper()
	d := xml.NewDecoder(strings.NewReader(picture))
	for {
		token, err := d.Token()
		if err == io.EOF {
			return texts, attributes
		}
		if err != nil {
			t.Fatalf("%v\n%s", err, picture)
		}
		switch token := token.(type) {
		case xml.CharData:
			if text := strings.TrimSpace(string(token)); text != "" {
				texts = append(texts, text)
			}
		case xml.StartElement:
			if token.Name.Local == kind {
				a := make(map[string]string)
				for _, attribute := range token.Attr {
					a[attribute.Name.Local] = attribute.Value
				}
				attributes = append(attributes, a)
			}
		}
	}
}

func number(t *testing.T, text string) float64 {
	t.Helper()
	v, err := strconv.ParseFloat(text, 64)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestBars(t *testing.T) {
	c := &Chart{Title: "a < b & c", X: "server", Y: "time, µs", Categories: []string{"one", "two"}, Series: []Series{
		{"first", []Point{{0, 5, 4, 6}, {1, 10, 10, 10}}},
		{"second", []Point{{1, 2.5, 2, 3}}}, // and nothing for one
	}}
	var b strings.Builder
	if err := c.SVG(&b); err != nil {
		t.Fatal(err)
	}
	texts, rects := elements(t, b.String(), "rect")
	for _, want := range []string{"a < b & c", "server", "time, µs", "one", "two", "first", "second", "5.00", "10.0", "2.50", "0", "2", "10"} {
		found := false
		for _, text := range texts {
			found = found || text == want
		}
		if !found {
			t.Errorf("the texts %q have no %q", texts, want)
		}
	}
	rects = rects[1+len(c.Series):] // behind the paper and the legend
	if len(rects) != 3 {
		t.Fatalf("there are %d bars, want 3", len(rects))
	}
	// Heights are in proportion, bars stand on the axis, in their series' colour.
	if one, two := number(t, rects[0]["height"]), number(t, rects[1]["height"]); two < 1.99*one || two > 2.01*one || one <= 0 {
		t.Errorf("5 is %v high, 10 is %v", one, two)
	}
	for i, r := range rects {
		if bottom := number(t, r["y"]) + number(t, r["height"]); bottom < base-0.2 || bottom > base+0.2 {
			t.Errorf("bar %d ends at %v, the axis is at %d", i, bottom, base)
		}
	}
	if rects[0]["fill"] != rects[1]["fill"] || rects[0]["fill"] == rects[2]["fill"] {
		t.Error("series do not have a colour each")
	}
}

func TestLines(t *testing.T) {
	c := &Chart{Title: "growth", X: "clients", Y: "CPU, µs", Series: []Series{
		{"floor", []Point{{100, 4, 4, 4}, {1000, 4, 4, 5}, {10_000, 8, 7, 9}}},
	}}
	var b strings.Builder
	if err := c.SVG(&b); err != nil {
		t.Fatal(err)
	}
	_, dots := elements(t, b.String(), "circle")
	if len(dots) != 3 {
		t.Fatalf("there are %d points, want 3", len(dots))
	}
	// The x axis is logarithmic: each step of ten is as wide as the others.
	x := []float64{number(t, dots[0]["cx"]), number(t, dots[1]["cx"]), number(t, dots[2]["cx"])}
	if one, two := x[1]-x[0], x[2]-x[1]; one < 1 || one-two > 0.3 || two-one > 0.3 {
		t.Errorf("the points are at %v", x)
	}
	if dots[0]["cy"] != dots[1]["cy"] || number(t, dots[2]["cy"]) >= number(t, dots[0]["cy"]) {
		t.Errorf("4, 4 and 8 are at %s, %s and %s", dots[0]["cy"], dots[1]["cy"], dots[2]["cy"])
	}
}

func TestChartOfNothing(t *testing.T) {
	c := &Chart{Categories: []string{"one"}, Series: []Series{{"zero", []Point{{}}}, {"none", nil}}}
	var b strings.Builder
	if err := c.SVG(&b); err != nil {
		t.Fatal(err)
	}
	if elements(t, b.String(), "rect"); strings.Contains(b.String(), "NaN") || strings.Contains(b.String(), "Inf") {
		t.Error(b.String())
	}
}

func TestTicks(t *testing.T) {
	for most, want := range map[float64][]float64{
		0.9: {0, 0.2, 0.4, 0.6, 0.8, 1}, 10: {0, 2, 4, 6, 8, 10}, 11: {0, 2, 4, 6, 8, 10, 12}, 2_600_000: {0, 500_000, 1e6, 1.5e6, 2e6, 2.5e6, 3e6},
	} {
		got := ticks(most)
		same := len(got) == len(want)
		for i := range min(len(got), len(want)) {
			same = same && plain(got[i]) == plain(want[i])
		}
		if !same {
			t.Errorf("up to %v the ticks are %v, want %v", most, got, want)
		}
	}
}

func TestShort(t *testing.T) {
	for v, want := range map[float64]string{0: "0.00", 0.126: "0.13", 9.99: "9.99", 9.996: "10.0", 99.9: "99.9", 99.96: "100", 12345: "12345", 123456: "123k", -12.34: "-12.3"} {
		if got := Short(v); got != want {
			t.Errorf("Short(%v) = %s, want %s", v, got, want)
		}
	}
}

func TestCourse(t *testing.T) {
	c := &Chart{Course: true, Series: []Series{{"memory", []Point{{X: 0, Y: 1}, {X: 60, Y: 2}, {X: 240, Y: 1}}}}}
	var b strings.Builder
	if err := c.SVG(&b); err != nil {
		t.Fatal(err)
	}
	if _, dots := elements(t, b.String(), "circle"); len(dots) != 0 {
		t.Errorf("there are %d points", len(dots))
	}
	_, all := elements(t, b.String(), "polyline")
	if len(all) != 1 {
		t.Fatalf("there are %d lines, want 1", len(all))
	}
	// The x axis is linear: 60 of 240 is a quarter of the way.
	points := strings.Fields(all[0]["points"])
	var x []float64
	for _, p := range points {
		before, _, _ := strings.Cut(p, ",")
		x = append(x, number(t, before))
	}
	if len(x) != 3 || x[0] != left || x[2] != right || x[1] < left+(right-left)/4.0-0.1 || x[1] > left+(right-left)/4.0+0.1 {
		t.Errorf("the points are at %v", x)
	}
}
