package hostile

import (
	"fmt"
	"testing"

	"wscast/test/harness"
)

// How many clients an address has is known after a restart and after a kill: those who were taken over count, those who have left meanwhile do not, and
// who was there before is not asked to go.
func TestClientsOfAnAddressAreCountedOverRestarts(t *testing.T) {
	d := harness.Start(t, harness.FDStore(100), harness.Socket("websocket", "unix"), harness.Config("[websocket]\nmax_per_address = 3\nmax_clients = 8\n"))
	from := func(address string) string { return "X-Forwarded-For: " + address }
	const crowded, other = "203.0.113.7", "2001:db8::7"
	var clients []*wire // of crowded
	try := func(address, network, want string, headers ...string) *wire {
		t.Helper()
		at := d.Address("websocket")
		if network == "unix" {
			at = d.Addresses("websocket")[1]
		}
		w := dial(t, network, at)
		if status := w.open("news", append(headers, from(address))...); status != want {
			t.Fatalf("%s: %s, want %s", address, status, want)
		}
		return w
	}
	clients = append(clients, try(crowded, "tcp", "101"), try("198.51.100.1, "+crowded, "unix", "101"), // whoever has written the first one
		try(crowded, "tcp", "101", "Sec-WebSocket-Protocol: wscast.v1.json"))
	clients[2].hear() // the welcome
	clients[2].hear() // that it is subscribed
	try(other, "tcp", "101")
	over := func() {
		t.Helper()
		try(crowded, "tcp", "429")
		try(crowded, "unix", "429")
		try(crowded+", 127.0.0.1", "tcp", "429")
	}
	over()
	// Of a Unix-domain socket nobody knows what was written when the daemon was killed in the middle of a write: it is not killed there.
	observe(t, d).await("connected_clients", is(4))
	for name, end := range map[string]func(){"restart": d.Stop, "kill": d.Kill} {
		end()
		d.Start()
		over()
		try(other, "tcp", "101").Close()
		o := observe(t, d)
		o.await("connected_clients", is(4))
		o.publish("news", name)
		for _, c := range clients[:2] {
			c.expect(name)
		}
		if _, text := clients[2].hear(); len(text) < len(name) {
			t.Errorf("%s: %q", name, text)
		}
		o.await("deliveries", is(4))
	}

	// One leaves, and there is one place again; one that leaves while nobody serves leaves a place, too.
	clients[0].Close()
	o := observe(t, d)
	o.await("connected_clients", is(3))
	clients[0] = try(crowded, "tcp", "101")
	over()
	d.Kill()
	clients[0].Close()
	clients[1].Close()
	d.Start()
	o = observe(t, d)
	o.await("connected_clients", is(2))
	try(crowded, "unix", "101")
	try(crowded, "tcp", "101")
	over()

	// All of them together have a limit as well, which holds for newcomers only.
	for i := range 4 {
		try(fmt.Sprintf("198.51.100.%d", i), "tcp", "101")
	}
	try("198.51.100.200", "tcp", "503")
	o.await("connected_clients", is(8))
	d.Configure("[websocket]\nmax_per_address = 1\nmax_clients = 2\n")
	d.Kill()
	d.Start()
	o = observe(t, d)
	o.await("connected_clients", is(8))
	try("198.51.100.200", "tcp", "503")
}
