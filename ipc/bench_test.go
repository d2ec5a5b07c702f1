package ipc

import (
	"io"
	"strings"
	"testing"
)

// nothing is a log that keeps nothing: what is measured is the publish socket alone. The client's side of the
// benchmarks allocates nothing either, so allocs/op are the server's.
type nothing struct{ Broker }

func (nothing) Publish(_, _, _ []byte) (int, bool, error) { return 0, false, nil }
func (nothing) Flush()                                    {}

func publishBench(b *testing.B, pipelined int, message string) {
	d := start(b, func(s *Server) { s.Broker = nothing{s.Broker} })
	s := d.connect(b)
	batch := []byte(strings.Repeat(array("PUBLISH", "default", message), pipelined))
	answers := make([]byte, len(":0\r\n")*pipelined)
	b.SetBytes(int64(len(message)))
	b.ReportAllocs()
	for n := 0; b.Loop(); n++ {
		if n%pipelined != 0 {
			continue
		}
		if _, err := s.Write(batch); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(s.UnixConn, answers); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkPublishPipelined(b *testing.B) { publishBench(b, 100, strings.Repeat("x", 128)) }
func BenchmarkPublishOneByOne(b *testing.B)  { publishBench(b, 1, strings.Repeat("x", 128)) }
func BenchmarkPublishLarge(b *testing.B)     { publishBench(b, 1, strings.Repeat("x", 1<<20)) }

// With rules: on one channel, and on two in turn, so that the one before is never the same.
func BenchmarkPublishWithRules(b *testing.B) {
	for name, channels := range map[string][2]string{"one channel": {"news", "news"}, "two channels": {"news", "camera/hall"}} {
		b.Run(name, func(b *testing.B) {
			d := start(b, func(s *Server) { s.Broker = nothing{s.Broker}; s.SetRules(manyRules()) })
			s := d.connect(b)
			message := strings.Repeat("x", 128)
			batch := []byte(strings.Repeat(array("PUBLISH", channels[0], message)+array("PUBLISH", channels[1], message), 50))
			answers := make([]byte, len(":0\r\n")*100)
			b.SetBytes(int64(len(message)))
			b.ReportAllocs()
			for n := 0; b.Loop(); n++ {
				if n%100 != 0 {
					continue
				}
				if _, err := s.Write(batch); err != nil {
					b.Fatal(err)
				}
				if _, err := io.ReadFull(s.UnixConn, answers); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// The stream of a Client, with its own allocations.
func BenchmarkPublishMany(b *testing.B) {
	d := start(b, func(s *Server) { s.Broker = nothing{s.Broker} })
	s := d.dial(b).PublishMany(nil)
	message := []byte(strings.Repeat("x", 128))
	b.SetBytes(int64(len(message)))
	b.ReportAllocs()
	for b.Loop() {
		if err := s.Publish("default", message); err != nil {
			b.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		b.Fatal(err)
	}
}

func BenchmarkRequests(b *testing.B) {
	input := []byte(array("PUBLISH", "default", strings.Repeat("x", 128)))
	var q requests
	b.ReportAllocs()
	for b.Loop() {
		q.read(copy(q.room(), input))
		if args, err := q.next(DefaultMaxMessage); len(args) != 3 || err != nil {
			b.Fatal(err)
		}
	}
}
