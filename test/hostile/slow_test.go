package hostile

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"

	"wscast/test/harness"
)

// Clients that never read, among others that do: the others get everything, publishers are not held up, and the slow ones are counted, closed or left
// alone as it is configured, and cost no memory. WSCAST_TEST_SLOW=1000 has so many slow clients among ten times as many.
func TestSlowClientsAmongOthers(t *testing.T) {
	slow := 10
	if text := os.Getenv("WSCAST_TEST_SLOW"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			t.Fatalf("WSCAST_TEST_SLOW=%s", text)
		}
		slow = n
	}
	others := 9 * slow
	const messages = 300 // with size, several times the log and what a socket takes
	size := 32 << 10
	for _, treatment := range []string{"close", "skip"} {
		t.Run(treatment, func(t *testing.T) {
			d := harness.Start(t, harness.Unchecked(t), harness.Socket("websocket", "unix"),
				harness.Config(fmt.Sprintf("[websocket]\nslow = %q\nping = \"0s\"\n[log]\nsize = \"2MiB\"\n[publish]\nmax_message = \"64KiB\"\n", treatment)))
			o := observe(t, d)
			open := func(n int) (clients []*wire) {
				for range n {
					w := dial(t, "unix", d.Addresses("websocket")[1])
					if status := w.open("news"); status != "101" {
						t.Fatal(status)
					}
					clients = append(clients, w)
				}
				return clients
			}
			deaf, hearing := open(slow), open(others)
			idle := taken(t, d.PID())
			text := strings.Repeat("x", size)
			for i := range messages {
				o.publish("news", fmt.Sprint(i, text))
				var all sync.WaitGroup
				for _, w := range hearing {
					all.Go(func() {
						if first, payload, err := hear(w.in); err != nil || first != 0x81 || !strings.HasPrefix(payload, fmt.Sprint(i, "x")) {
							t.Errorf("message %d: %#x %.10q %v", i, first, payload, err)
						}
					})
				}
				if all.Wait(); t.Failed() {
					return
				}
			}
			now := taken(t, d.PID())
			t.Logf("%d slow clients among %d: %d KiB of memory before, %d KiB after %d MiB for each", slow, slow+others, idle.memory>>10, now.memory>>10, messages*size>>20)
			// The rest of a frame that is half out is kept once for all who are stuck in it; besides that nothing is.
			if now.memory > idle.memory+leftMemory {
				t.Errorf("%d bytes of memory, and %d before", now.memory, idle.memory)
			}
			want := slow
			if treatment == "close" {
				o.await("closed_slow", is(slow))
				want = 0
			} else if n := o.figure("slow"); n < slow {
				t.Errorf("slow clients were found %d times", n)
			}
			o.await("connected_clients", is(others+want))
			if n := o.figure("blocked"); n < want {
				t.Errorf("%d clients are blocked", n)
			}
			for i := range 5 { // for those who have skipped right to the end
				o.publish("news", fmt.Sprint(messages+i, "x"))
			}
			for _, w := range deaf { // what was begun is finished, and comes in order
				last := -1
				for more := true; more; {
					first, payload, err := hear(w.in)
					switch number, _, _ := strings.Cut(payload, "x"); {
					case err != nil:
						t.Fatalf("after message %d: %v", last, err)
					case first == 0x88:
						if more = false; treatment != "close" || !strings.HasPrefix(payload, "\x03\xf5") {
							t.Errorf("closed: %q", payload)
						}
					default:
						n, err := strconv.Atoi(number)
						if err != nil || n <= last || n < messages && len(payload) != len(number)+size {
							t.Fatalf("%.10q of %d bytes after message %d: %v", payload, len(payload), last, err)
						}
						last, more = n, treatment == "close" || n < messages
					}
				}
			}
		})
	}
}
