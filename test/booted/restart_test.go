package booted_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"testing"

	"github.com/gorilla/websocket"

	"wscast/ipc"
	"wscast/test/booted"
	"wscast/test/harness"
)

// errCaught is the end of a connection that the old process had accepted, and not yet answered when it was stopped. It ends with that process, as
// those of clients do. When connections survive a restart this error goes, and so does what is said about it below.
var errCaught = errors.New("accepted by the process that was stopped")

const (
	hammerers = 3 // of each kind
	restarts  = 3
)

// Connections that come while the service restarts wait in the sockets, which systemd holds: none is refused, none reset.
func TestRestartRefusesNoConnection(t *testing.T) {
	t.Parallel()
	m := booted.Boot(t, booted.Race())
	url, path := m.WebSocketURL("news"), m.PublishSocket()
	load := newHammer()
	stop := sync.OnceValue(load.stop)
	defer stop()
	for range hammerers {
		load.start("a client", func() error {
			dialer := websocket.Dialer{HandshakeTimeout: harness.Patience}
			c, answer, err := dialer.Dial(url, nil)
			if answer != nil && err != nil {
				body, _ := io.ReadAll(answer.Body)
				if answer.StatusCode == http.StatusServiceUnavailable && string(bytes.TrimSpace(body)) == "service restart" {
					return errCaught
				}
				return fmt.Errorf("%w: %s: %s", err, answer.Status, body)
			}
			if err != nil {
				return err
			}
			return c.Close()
		})
		load.start("a publisher", func() error {
			c, err := ipc.Dial(path)
			if err != nil {
				return err
			}
			defer c.Close()
			if _, err = c.Publish("news", []byte("one")); errors.Is(err, io.ErrUnexpectedEOF) {
				return errCaught
			}
			return err
		})
	}
	for range restarts {
		load.await(t, 30, "a client", "a publisher")
		m.Systemctl("restart", "wscast.service")
	}
	load.await(t, 30, "a client", "a publisher")
	caught := 0
	for _, err := range stop() {
		if errors.Is(err, errCaught) {
			caught++
			continue
		}
		t.Error(err)
	}
	// A process has at most one connection of each to end with it.
	if most := 2 * hammerers * restarts; caught > most {
		t.Errorf("%d connections ended with a process, expected at most %d", caught, most)
	}
	expectValue(t, m, "wscast.service", "ActiveState", "active")
	expectValue(t, m, "wscast.service", "NRestarts", "0") // none but ours
}

// The connections of clients end with the process that serves them.
func TestRestartClosesClients(t *testing.T) {
	t.Parallel()
	m := booted.Boot(t)
	c := harness.Dial(t, m.WebSocketURL("news"))
	publish(m, "news", "one")
	m.Systemctl("restart", "wscast.service")
	c.ExpectText("one")
	c.ExpectClose(websocket.CloseServiceRestart)
}
