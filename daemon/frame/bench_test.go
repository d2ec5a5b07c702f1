package frame

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
)

func BenchmarkPutHeader(b *testing.B) {
	dst := make([]byte, MaxHeader)
	for _, n := range []int{100, 1000, 100000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				PutHeader(dst, Text, n)
			}
		})
	}
}

// BenchmarkNext parses one frame, and copies it to the buffer first, as the kernel does for a peek.
func BenchmarkNext(b *testing.B) {
	for _, bm := range []struct {
		name  string
		frame []byte
	}{
		{"pong", frameOf(fin|pong, "")},
		{"close", closeOf(1000, "bye")},
		{"text 16", frameOf(fin|text, "0123456789abcdef")},
		{"ASCII 4096", frameOf(fin|text, strings.Repeat("a", 4096))},
		{"Japanese 4096", frameOf(fin|text, strings.Repeat("日", 4096/3))},
		{"binary 4096", frameOf(fin|binaryOp, strings.Repeat("\xFF", 4096))},
	} {
		b.Run(bm.name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(bm.frame)))
			buffer := make([]byte, len(bm.frame))
			var p Parser
			for b.Loop() {
				copy(buffer, bm.frame)
				if _, n, err := p.Next(buffer, 4096); n == 0 || err != nil {
					b.Fatal(n, err)
				}
			}
		})
	}
}

// BenchmarkNextIncomplete looks at a text frame of which the last byte is missing.
func BenchmarkNextIncomplete(b *testing.B) {
	frame := frameOf(fin|text, strings.Repeat("a", 4096))
	frame = frame[:len(frame)-1]
	b.ReportAllocs()
	b.SetBytes(int64(len(frame)))
	var p Parser
	for b.Loop() {
		if _, n, err := p.Next(frame, 4096); n != 0 || err != nil {
			b.Fatal(n, err)
		}
	}
}

func BenchmarkAppendClose(b *testing.B) {
	b.ReportAllocs()
	dst := make([]byte, 0, 256)
	for b.Loop() {
		AppendClose(dst, CloseServiceRestart, "the service restarts: come back")
	}
}

func BenchmarkUnmask(b *testing.B) {
	buffer := bytes.Repeat([]byte{'x'}, 4096)
	b.SetBytes(int64(len(buffer)))
	for b.Loop() {
		unmask(buffer, 0x3D21FA37)
	}
}
