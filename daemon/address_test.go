package daemon

import (
	"bufio"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

// Whom X-Forwarded-For is believed about, and how far.
func TestClientAddress(t *testing.T) {
	a, bad := newAuth(&AuthConfig{Proxies: []string{"127.0.0.0/8", "::1", "10.0.0.0/8", "2001:db8:1::/48"}})
	if bad != nil {
		t.Fatal(bad)
	}
	const proxy, other, unix = "127.0.0.1", "192.0.2.9", ""
	for _, c := range []struct {
		peer  string
		lines string // of the header, with | in between
		want  string
	}{
		{proxy, "203.0.113.7", "203.0.113.7"},
		{unix, "203.0.113.7", "203.0.113.7"},
		{proxy, "198.51.100.1, 203.0.113.7", "203.0.113.7"},                     // the client has sent one itself
		{proxy, "203.0.113.7, 10.1.2.3", "203.0.113.7"},                         // two proxies
		{proxy, "198.51.100.1, 203.0.113.7, 10.1.2.3, 10.1.2.4", "203.0.113.7"}, // three
		{proxy, "198.51.100.1|203.0.113.7", "203.0.113.7"},                      // as lines
		{proxy, "203.0.113.7|10.1.2.3", "203.0.113.7"},
		{proxy, "10.1.2.3, 10.1.2.4", "10.1.2.3"}, // a client in the network of the proxies
		{proxy, "2001:db8:2::7, 2001:db8:1::1", "2001:db8:2::7"},
		{proxy, "203.0.113.7:4711", "203.0.113.7"},
		{proxy, "[2001:db8:2::7]:4711", "2001:db8:2::7"},
		{proxy, "[2001:db8:2::7]", "2001:db8:2::7"},
		{proxy, "::ffff:203.0.113.7", "203.0.113.7"},
		{proxy, "  203.0.113.7\t", "203.0.113.7"},
		{proxy, "198.51.100.1,,203.0.113.7", "203.0.113.7"},
		// What is no address ends the way: what stands before it is no better.
		{proxy, "198.51.100.1, unknown, 10.1.2.3", "10.1.2.3"},
		{proxy, "198.51.100.1, unknown", proxy},
		{proxy, "203.0.113.7,", proxy},
		{proxy, "203.0.113.7, 10.1.2.3 x", proxy},
		{proxy, "", proxy},
		{proxy, "-", proxy},
		{unix, "unknown", ""},
		{unix, "", ""},
		// Who is no proxy speaks for itself only.
		{other, "203.0.113.7", other},
		{other, "127.0.0.1", other},
		{"2001:db8:2::1", "203.0.113.7", "2001:db8:2::1"},
		{"2001:db8:1::1", "203.0.113.7", "203.0.113.7"},
	} {
		r := &http.Request{Header: http.Header{}}
		for line := range strings.SplitSeq(c.lines, "|") {
			if c.lines != "" {
				r.Header.Add("X-Forwarded-For", line)
			}
		}
		want, _ := netip.ParseAddr(c.want)
		peer, _ := netip.ParseAddr(c.peer)
		if got := a.clientAddress(r, peer); got != want {
			t.Errorf("%s from %q: %v, want %v", c.lines, c.peer, got, want)
		}
	}
}

// The number of an address is that of its network with IPv6, differs from others, and is another one with another secret.
func TestAddressesStand(t *testing.T) {
	number := func(text string, secret uint64) uint32 { return stands(netip.MustParseAddr(text), secret) }
	if n := stands(netip.Addr{}, 1); n != 0 {
		t.Errorf("no address is %d", n)
	}
	for _, c := range []struct {
		a, b string
		same bool
	}{
		{"203.0.113.7", "203.0.113.7", true}, {"203.0.113.7", "203.0.113.8", false}, {"203.0.113.7", "204.0.113.7", false},
		{"2001:db8::1", "2001:db8::ffff:1", true}, {"2001:db8::1", "2001:db8:0:1::1", false}, {"fe80::1%eth0", "fe80::2%eth1", true},
		{"::203.0.113.7", "203.0.113.7", false},
	} {
		if same := number(c.a, 1) == number(c.b, 1); same != c.same {
			t.Errorf("%s and %s are the same: %t", c.a, c.b, same)
		}
	}
	if number("203.0.113.7", 1) == number("203.0.113.7", 2) {
		t.Error("the secret makes no difference")
	}
	numbers := make(map[uint32]bool)
	addr := netip.MustParseAddr("10.0.0.0")
	for range 10_000 {
		numbers[stands(addr, 1)] = true
		addr = addr.Next()
	}
	if len(numbers) < 9_990 {
		t.Errorf("10,000 addresses have %d numbers", len(numbers))
	}
}

// Whatever a header says, the address is one of those in it, or the peer's; and what a client has written in front changes nothing.
func FuzzClientAddress(f *testing.F) {
	for _, seed := range []string{"203.0.113.7", "1.2.3.4, 127.0.0.1", "[::1]:1", ",", " ", "a,b", "::ffff:127.0.0.1, 1.1.1.1", "fe80::1%x"} {
		f.Add(seed, "198.51.100.1")
	}
	a, _ := newAuth(&AuthConfig{Proxies: []string{"127.0.0.0/8"}})
	peer := netip.MustParseAddr("127.0.0.1")
	f.Fuzz(func(t *testing.T, header, written string) {
		read := func(line string) netip.Addr {
			r, err := http.ReadRequest(bufio.NewReader(strings.NewReader("GET / HTTP/1.1\r\nX-Forwarded-For: " + line + "\r\n\r\n")))
			if err != nil {
				return netip.Addr{}
			}
			return a.clientAddress(r, peer)
		}
		if strings.ContainsAny(header+written, "\r\n\x00") {
			return
		}
		got := read(header)
		if !got.IsValid() {
			return
		}
		if got != peer && !slices.ContainsFunc(strings.Split(header, ","), func(hop string) bool { addr, ok := parseHop(hop); return ok && addr == got }) {
			t.Fatalf("%q: %v", header, got)
		}
		if !a.believes(got) && !strings.HasPrefix(written, " ") {
			if with := read(written + ", " + header); with.IsValid() && with != got {
				t.Errorf("%q: %v, and %v behind %q", header, got, with, written)
			}
		}
	})
}
