// Package plot draws charts as SVG: bars over categories, lines over numbers, and courses over time.
package plot

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
)

// A Chart is bars over categories, or lines over numbers where there are no categories. Series
// have a colour each. The y axis begins at zero; the x axis of lines is logarithmic, or linear
// from zero on if they are a course over time.
type Chart struct {
	Title      string
	X, Y       string // what the axes show, with the unit
	Categories []string
	Course     bool // many points, which are not shown one by one
	Series     []Series
}

// Series is what has one colour, and a name in the legend.
type Series struct {
	Name   string
	Points []Point
}

// Point is a median, with the lowest and the highest. X is a number of a category, from 0 on, or
// a value.
type Point struct{ X, Y, Low, High float64 }

// palette is Okabe and Ito's, which people tell apart who see few colours.
var palette = []string{"#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00"}

// The picture, in pixels: its size, and the frame that has the bars or lines.
const (
	wide, high             = 760, 400
	left, right, top, base = 70, 740, 78, 330
)

// SVG writes the picture. It is drawn on white, so it can be read on a dark page as well.
func (c *Chart) SVG(w io.Writer) error {
	var b bytes.Buffer
	text := func(x, y float64, anchor, more, s string) {
		fmt.Fprintf(&b, `<text x="%.1f" y="%.1f" text-anchor="%s"%s>`, x, y, anchor, more)
		_ = xml.EscapeText(&b, []byte(s)) // a buffer takes everything
		b.WriteString("</text>\n")
	}
	line := func(x1, y1, x2, y2 float64, colour string) {
		fmt.Fprintf(&b, `<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="%s"/>`+"\n", x1, y1, x2, y2, colour)
	}
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" font-family="sans-serif" font-size="12" fill="#222">`+"\n",
		wide, high, wide, high)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="#fff"/>`+"\n", wide, high)
	text(left, 24, "start", ` font-size="16" font-weight="bold"`, c.Title)
	at := float64(left)
	for i, s := range c.Series {
		fmt.Fprintf(&b, `<rect x="%.1f" y="40" width="12" height="12" fill="%s"/>`+"\n", at, palette[i%len(palette)])
		text(at+17, 50.5, "start", "", s.Name)
		at += 17 + 7.2*float64(len([]rune(s.Name))) + 22
	}

	ys := c.yAxis()
	for _, v := range ys.ticks {
		line(left, ys.at(v), right, ys.at(v), "#ddd")
		text(left-8, ys.at(v)+4, "end", "", plain(v))
	}
	text(0, 0, "middle", fmt.Sprintf(` transform="translate(18 %d) rotate(-90)"`, (top+base)/2), c.Y)
	text((left+right)/2, high-14, "middle", "", c.X)
	if len(c.Categories) > 0 {
		c.bars(&b, ys, text, line)
	} else {
		c.lines(&b, ys, text, line)
	}
	line(left, base, right, base, "#222")
	b.WriteString("</svg>\n")
	_, err := w.Write(b.Bytes())
	return err
}

type (
	textFunc func(x, y float64, anchor, more, s string)
	lineFunc func(x1, y1, x2, y2 float64, colour string)
)

func (c *Chart) bars(b io.Writer, ys axis, text textFunc, line lineFunc) {
	room := float64(right-left) / float64(len(c.Categories))
	width := min(46, 0.8*room/float64(len(c.Series)))
	for i, name := range c.Categories {
		middle := left + (float64(i)+0.5)*room
		text(middle, base+18, "middle", "", name)
		for j, s := range c.Series {
			x := middle + (float64(j)-float64(len(c.Series))/2)*width
			k := slices.IndexFunc(s.Points, func(p Point) bool { return int(p.X) == i })
			if k < 0 {
				continue
			}
			p := s.Points[k]
			y := ys.at(p.Y)
			fmt.Fprintf(b, `<rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" fill="%s"/>`+"\n", x+1, y, width-2, max(0, base-y), palette[j%len(palette)])
			line(x+width/2, ys.at(p.Low), x+width/2, ys.at(p.High), "#222")
			text(x+width/2, min(y, ys.at(p.High))-4, "middle", ` font-size="10"`, plainShort(p.Y))
		}
	}
}

func (c *Chart) lines(b io.Writer, ys axis, text textFunc, line lineFunc) {
	xs := c.xAxis()
	for _, v := range xs.ticks {
		line(xs.at(v), base, xs.at(v), base+5, "#222")
		text(xs.at(v), base+18, "middle", "", plain(v))
	}
	for i, s := range c.Series {
		colour := palette[i%len(palette)]
		var path strings.Builder
		for _, p := range s.Points {
			x, y := xs.at(p.X), ys.at(p.Y)
			fmt.Fprintf(&path, "%.1f,%.1f ", x, y)
			if c.Course {
				continue
			}
			line(x, ys.at(p.Low), x, ys.at(p.High), colour)
			fmt.Fprintf(b, `<circle cx="%.1f" cy="%.1f" r="3.5" fill="%s"/>`+"\n", x, y, colour)
		}
		fmt.Fprintf(b, `<polyline points="%s" fill="none" stroke="%s" stroke-width="2"/>`+"\n", strings.TrimSpace(path.String()), colour)
	}
}

// An axis maps values to pixels.
type axis struct {
	low, high float64 // values at its ends
	from, to  float64 // pixels there
	ticks     []float64
	log       bool
}

func (a axis) at(v float64) float64 {
	low, high := a.low, a.high
	if a.log {
		v, low, high = math.Log(v), math.Log(low), math.Log(high)
	}
	return a.from + (v-low)/(high-low)*(a.to-a.from)
}

func (c *Chart) yAxis() axis {
	most := 0.0
	for _, s := range c.Series {
		for _, p := range s.Points {
			most = max(most, p.Y, p.High)
		}
	}
	a := axis{from: base, to: top, ticks: ticks(most)}
	a.high = a.ticks[len(a.ticks)-1]
	return a
}

func (c *Chart) xAxis() axis {
	var all []float64
	for _, s := range c.Series {
		for _, p := range s.Points {
			all = append(all, p.X)
		}
	}
	slices.Sort(all)
	all = slices.Compact(all)
	if c.Course {
		most := all[len(all)-1]
		a := axis{high: most, from: left, to: right, ticks: ticks(most)}
		if a.ticks[len(a.ticks)-1] > most {
			a.ticks = a.ticks[:len(a.ticks)-1]
		}
		return a
	}
	// Each value has a tick: there are few, and these are what was measured.
	return axis{low: all[0] / 1.3, high: all[len(all)-1] * 1.3, from: left, to: right, ticks: all, log: true}
}

// ticks are from 0 up to at least most, in about five steps of 1, 2 or 5 times a power of ten.
func ticks(most float64) (all []float64) {
	if most <= 0 {
		most = 1
	}
	step := math.Pow(10, math.Floor(math.Log10(most/5)))
	for _, f := range []float64{1, 2, 5, 10} {
		if f*step*6 >= most {
			step *= f
			break
		}
	}
	for i := 0; ; i++ {
		all = append(all, float64(i)*step)
		if all[i] >= most {
			return all
		}
	}
}

// plain writes a tick's number without needless zeros, in thousands from 10,000 on.
func plain(v float64) string {
	if v >= 10_000 {
		return fmt.Sprintf("%gk", v/1000)
	}
	return fmt.Sprintf("%g", math.Round(v*1e6)/1e6)
}

// plainShort is short, but 10,000 and more in thousands.
func plainShort(v float64) string {
	if v >= 10_000 {
		return Short(v/1000) + "k"
	}
	return Short(v)
}

// Short writes a number with three digits, or without decimals from 100 on.
func Short(v float64) string {
	switch size := math.Abs(v); {
	case size >= 99_950:
		return fmt.Sprintf("%.0fk", v/1000)
	case size >= 99.95:
		return fmt.Sprintf("%.0f", v)
	case size >= 9.995:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}
