package main

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
)

// A chart is bars over categories, or lines over numbers where there are no categories. Series
// have a colour each. The y axis begins at zero, the x axis of lines is logarithmic.
type chart struct {
	name       string // of its file
	title      string
	x, y       string // what the axes show, with the unit
	categories []string
	series     []series
}

type series struct {
	name   string
	points []point
}

// point is the median of rounds, with the lowest and the highest. x is a number of category,
// from 0 on, or a value.
type point struct{ x, y, low, high float64 }

// palette is Okabe and Ito's, which people tell apart who see few colours.
var palette = []string{"#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00"}

// The picture, in pixels: its size, and the frame that has the bars or lines.
const (
	wide, high             = 760, 400
	left, right, top, base = 70, 740, 78, 330
)

// svg writes the picture. It is drawn on white, so it can be read on a dark page as well.
func (c *chart) svg(w io.Writer) error {
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
	text(left, 24, "start", ` font-size="16" font-weight="bold"`, c.title)
	at := float64(left)
	for i, s := range c.series {
		fmt.Fprintf(&b, `<rect x="%.1f" y="40" width="12" height="12" fill="%s"/>`+"\n", at, palette[i%len(palette)])
		text(at+17, 50.5, "start", "", s.name)
		at += 17 + 7.2*float64(len([]rune(s.name))) + 22
	}

	ys := c.yAxis()
	for _, v := range ys.ticks {
		line(left, ys.at(v), right, ys.at(v), "#ddd")
		text(left-8, ys.at(v)+4, "end", "", plain(v))
	}
	text(0, 0, "middle", fmt.Sprintf(` transform="translate(18 %d) rotate(-90)"`, (top+base)/2), c.y)
	text((left+right)/2, high-14, "middle", "", c.x)
	if len(c.categories) > 0 {
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

func (c *chart) bars(b io.Writer, ys axis, text textFunc, line lineFunc) {
	room := float64(right-left) / float64(len(c.categories))
	width := min(46, 0.8*room/float64(len(c.series)))
	for i, name := range c.categories {
		middle := left + (float64(i)+0.5)*room
		text(middle, base+18, "middle", "", name)
		for j, s := range c.series {
			x := middle + (float64(j)-float64(len(c.series))/2)*width
			k := slices.IndexFunc(s.points, func(p point) bool { return int(p.x) == i })
			if k < 0 {
				continue
			}
			p := s.points[k]
			y := ys.at(p.y)
			fmt.Fprintf(b, `<rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" fill="%s"/>`+"\n", x+1, y, width-2, max(0, base-y), palette[j%len(palette)])
			line(x+width/2, ys.at(p.low), x+width/2, ys.at(p.high), "#222")
			text(x+width/2, min(y, ys.at(p.high))-4, "middle", ` font-size="10"`, plainShort(p.y))
		}
	}
}

func (c *chart) lines(b io.Writer, ys axis, text textFunc, line lineFunc) {
	var all []float64
	for _, s := range c.series {
		for _, p := range s.points {
			all = append(all, p.x)
		}
	}
	slices.Sort(all)
	all = slices.Compact(all)
	// Each value has a tick: there are few, and these are what was measured.
	xs := axis{low: math.Log(all[0] / 1.3), high: math.Log(all[len(all)-1] * 1.3), from: left, to: right}
	for _, v := range all {
		line(xs.at(math.Log(v)), base, xs.at(math.Log(v)), base+5, "#222")
		text(xs.at(math.Log(v)), base+18, "middle", "", plain(v))
	}
	for i, s := range c.series {
		colour := palette[i%len(palette)]
		var path strings.Builder
		for _, p := range s.points {
			x, y := xs.at(math.Log(p.x)), ys.at(p.y)
			fmt.Fprintf(&path, "%.1f,%.1f ", x, y)
			line(x, ys.at(p.low), x, ys.at(p.high), colour)
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
}

func (a axis) at(v float64) float64 { return a.from + (v-a.low)/(a.high-a.low)*(a.to-a.from) }

// yAxis has about five steps of 1, 2 or 5 times a power of ten.
func (c *chart) yAxis() axis {
	most := 0.0
	for _, s := range c.series {
		for _, p := range s.points {
			most = max(most, p.y, p.high)
		}
	}
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
	a := axis{from: base, to: top}
	for i := 0; ; i++ {
		a.high = float64(i) * step
		a.ticks = append(a.ticks, a.high)
		if a.high >= most {
			return a
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
		return short(v/1000) + "k"
	}
	return short(v)
}
