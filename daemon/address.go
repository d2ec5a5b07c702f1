package daemon

import (
	"crypto/sha256"
	"encoding/binary"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"wscast/daemon/loop"
)

// Where clients come from is asked only for websocket.max_per_address. Behind a proxy it is what the proxy says, which is believed as far as the
// proxy is (auth.proxies): X-Forwarded-For is written from left to right, by whoever wants to, so it is read from right to left up to the first address
// that is no proxy.

// network6 is how many bits of an IPv6 address are counted as one: a provider gives each customer at least so much (RFC 6177 section 2), and with it
// more addresses than could be counted.
const network6 = 64

// clientAddress is the address that a request comes from; the zero Addr where nobody knows: over a Unix-domain socket, without the header.
func (a *auth) clientAddress(r *http.Request, peer netip.Addr) netip.Addr {
	address := peer
	if peer.IsValid() && !a.believes(peer) {
		return address
	}
	lines := r.Header["X-Forwarded-For"]
	for i := len(lines) - 1; i >= 0; i-- {
		for hops := lines[i]; hops != ""; {
			comma := strings.LastIndexByte(hops, ',')
			hop, ok := parseHop(hops[comma+1:])
			if !ok {
				return address // what stands before it is no better
			}
			if address = hop; !a.believes(hop) {
				return address
			}
			hops = hops[:max(comma, 0)]
		}
	}
	return address
}

// believes tells whether an address is one of a proxy.
func (a *auth) believes(addr netip.Addr) bool {
	return slices.ContainsFunc(a.proxies, func(p netip.Prefix) bool { return p.Contains(addr) })
}

// parseHop reads one member of X-Forwarded-For. Some proxies add the port.
func parseHop(text string) (netip.Addr, bool) {
	text = strings.TrimSpace(text)
	addr, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(text, "["), "]"))
	if err != nil {
		var port netip.AddrPort
		port, err = netip.ParseAddrPort(text)
		addr = port.Addr()
	}
	return addr.Unmap().WithZone(""), err == nil
}

// stands is the number that stands for an address where it is kept, never 0 for one. It depends on the secret, so that nobody can find addresses that
// share their number with somebody else's.
func stands(addr netip.Addr, secret uint64) uint32 {
	if !addr.IsValid() {
		return 0
	}
	if addr.Is6() {
		prefix, _ := addr.WithZone("").Prefix(network6) // 64 of 128 bits
		addr = prefix.Addr()
	}
	b := addr.As16()
	sum := sha256.Sum256(binary.LittleEndian.AppendUint64(b[:], secret))
	return max(1, binary.LittleEndian.Uint32(sum[:]))
}

// from finds out for Config.MaxPerAddress where a request comes from.
func (h *handshaker) from(s *handshakeSettings, r *http.Request, peer loop.Peer) uint32 {
	if !s.addresses {
		return 0
	}
	return stands(s.auth.clientAddress(r, peer.Addr()), h.secret)
}
