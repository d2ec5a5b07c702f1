package ipc

import (
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"testing"
)

// startDatagrams serves a datagram socket for channel and returns a connection that sends to it.
func startDatagrams(t *testing.T, s *Server, channel string) *net.UnixConn {
	t.Helper()
	addr := &net.UnixAddr{Name: filepath.Join(t.TempDir(), "datagram"), Net: "unixgram"}
	sock, err := net.ListenUnixgram("unixgram", addr)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.ServeDatagrams(sock, channel) }()
	t.Cleanup(func() {
		s.Close()
		if err := <-served; err != nil {
			t.Errorf("ServeDatagrams: %v", err)
		}
		sock.Close()
	})
	conn, err := net.DialUnix("unixgram", nil, addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func TestDatagrams(t *testing.T) {
	log, lines := events()
	l := newTestLog()
	s := &Server{Broker: l, Log: log}
	s.SetMaxMessage(1000)
	fixed, named := startDatagrams(t, s, "default"), startDatagrams(t, s, "")
	tail := l.Tail()
	defer tail.Close()
	send := func(conn *net.UnixConn, datagram string) {
		t.Helper()
		if _, err := conn.Write([]byte(datagram)); err != nil {
			t.Fatal(err)
		}
	}
	expect := func(channel, message string) {
		t.Helper()
		m, err := tail.Next(func(string) bool { return true })
		if err != nil || m.Channel != channel || string(m.Data) != message {
			t.Fatalf("got %q %q (%v), want %q %q", m.Channel, m.Data, err, channel, message)
		}
	}
	send(fixed, "hello\n")
	expect("default", "hello\n")
	send(fixed, "")
	expect("default", "")
	send(fixed, strings.Repeat("x", 1000))
	expect("default", strings.Repeat("x", 1000))
	send(fixed, strings.Repeat("x", 1001))
	send(fixed, strings.Repeat("x", 100000))
	send(fixed, "after")
	expect("default", "after")
	await(t, lines, "datagrams dropped count=1 cause=longer than 1000 bytes")
	send(named, "news\nhello\nyou")
	expect("news", "hello\nyou")
	send(named, "bad one\nhello")
	send(named, "no line")
	send(named, "a\n"+strings.Repeat("x", 1000))
	expect("a", strings.Repeat("x", 1000))
	await(t, lines, "datagrams dropped count=1 cause=bad channel 'bad one'")
	s.Close()
	await(t, lines, "datagrams dropped count=1") // what was not told yet
	if st := s.Stats(); st.Datagrams != 10 || st.DatagramsDropped != 4 || st.Published != 6 {
		t.Errorf("%+v", st)
	}
	if err := s.ServeDatagrams(nil, "bad one"); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("%q", "bad one")) {
		t.Error(err)
	}
}
