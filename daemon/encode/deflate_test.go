package encode

import (
	"bytes"
	"compress/flate"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/gorilla/websocket"

	"wscast/daemon/frame"
)

// gorilla's client reads what is compressed here, and what it compresses is read here.
func TestGorillaIsThePeer(t *testing.T) {
	texts := []string{"short", strings.Repeat("a", threshold-1), strings.Repeat("a", threshold), strings.Repeat("long and ", 20_000)}
	heard := make(chan []byte, len(texts))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		upgrader := websocket.Upgrader{EnableCompression: true}
		c, err := upgrader.Upgrade(w, r, nil)
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		var n Encoder
		for _, text := range texts { // behind gorilla's back: it has agreed on compression and nothing else
			if _, err := c.NetConn().Write(n.Append(nil, Raw|Deflate, with(frame.Text, text))); err != nil {
				t.Error(err)
			}
		}
		var p frame.Parser
		var b []byte
		for range texts {
			for {
				f, size, ferr := p.NextDeflate(b, 1<<20)
				if ferr != nil {
					t.Error(ferr)
					return
				}
				if size > 0 {
					payload := f.Payload
					if f.Deflated {
						if payload, err = Inflate(nil, payload, 1<<20); err != nil {
							t.Error(err)
							return
						}
					}
					heard <- bytes.Clone(payload)
					b = b[size:]
					break
				}
				more := make([]byte, 4096)
				got, err := c.NetConn().Read(more)
				if err != nil {
					t.Error(err)
					return
				}
				b = append(b, more[:got]...)
			}
		}
	}))
	defer server.Close()
	dialer := websocket.Dialer{EnableCompression: true, NetDial: net.Dial}
	c, _, err := dialer.Dial("ws"+strings.TrimPrefix(server.URL, "http"), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, want := range texts {
		if _, got, err := c.ReadMessage(); err != nil || string(got) != want {
			t.Fatalf("%d bytes, %v, want %d", len(got), err, len(want))
		}
		if err := c.WriteMessage(websocket.TextMessage, []byte(want)); err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range texts {
		if got := <-heard; string(got) != want {
			t.Errorf("%d bytes, want %d", len(got), len(want))
		}
	}
}

// deflated is text as another compressor makes it, with an end or without one.
func deflated(text string, level int, ended bool) []byte {
	var b bytes.Buffer
	w, _ := flate.NewWriter(&b, level)
	_, _ = w.Write([]byte(text))
	if ended {
		_ = w.Close()
		return append(b.Bytes(), 0) // RFC 7692 section 7.2.3.4
	}
	_ = w.Flush()
	return bytes.TrimSuffix(b.Bytes(), []byte(tail))
}

func TestInflate(t *testing.T) {
	text := strings.Repeat("once more ", 1000)
	for _, level := range []int{flate.NoCompression, flate.BestSpeed, flate.BestCompression, flate.HuffmanOnly} {
		for _, ended := range []bool{false, true} {
			b := deflated(text, level, ended)
			if got, err := Inflate([]byte("before "), b, len(text)); err != nil || string(got) != "before "+text {
				t.Errorf("level %d: %d bytes, %v", level, len(got), err)
			}
			if got, err := Inflate(nil, b, len(text)-1); !errors.Is(err, ErrInflateBig) || len(got) != 0 {
				t.Errorf("level %d: %d bytes, %v", level, len(got), err)
			}
		}
	}
	if got, err := Inflate(nil, []byte{0}, 0); err != nil || len(got) != 0 { // RFC 7692 section 7.2.3.6
		t.Errorf("%q, %v: of the empty message", got, err)
	}
	bomb := deflated(strings.Repeat("\x00", 64<<20), flate.BestCompression, false)
	got, err := Inflate(nil, bomb, 32<<10)
	if !errors.Is(err, ErrInflateBig) || cap(got) > 1<<20 {
		t.Errorf("%d bytes make %d, %v", len(bomb), cap(got), err)
	}
	for _, b := range []string{"\xff", "\x07", "\x02\x05"} {
		if got, err := Inflate(nil, []byte(b), 1000); !errors.Is(err, ErrInflate) {
			t.Errorf("% x: %q, %v", b, got, err)
		}
	}
}

func FuzzInflate(f *testing.F) {
	f.Add(deflated("hello", flate.BestSpeed, false), 100)
	f.Add(deflated(strings.Repeat("\x00", 1<<20), flate.BestCompression, false), 4096)
	f.Add([]byte{0}, 0)
	f.Fuzz(func(t *testing.T, payload []byte, limit int) {
		limit = min(max(limit, 0), 1<<16)
		got, err := Inflate([]byte("before"), payload, limit)
		if !bytes.HasPrefix(got, []byte("before")) || len(got) > len("before")+limit || err != nil && len(got) != len("before") {
			t.Fatalf("%d bytes, at most %d, %v", len(got), limit, err)
		}
	})
}
