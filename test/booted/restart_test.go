package booted_test

import (
	"fmt"
	"io"
	"sync"
	"testing"

	"github.com/gorilla/websocket"

	"wscast/ipc"
	"wscast/test/booted"
	"wscast/test/harness"
)

const (
	hammerers = 3 // of each kind
	restarts  = 3
)

// Connections that come while the service restarts wait in the sockets, which systemd holds, and those that the old process had accepted are
// handed to the new one: none is refused, none reset, none answered with an error.
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
			_, err = c.Publish("news", []byte("one"))
			return err
		})
	}
	for range restarts {
		load.await(t, 30, "a client", "a publisher")
		m.Systemctl("restart", "wscast.service")
	}
	load.await(t, 30, "a client", "a publisher")
	for _, err := range stop() {
		t.Error(err)
	}
	expectValue(t, m, "wscast.service", "ActiveState", "active")
	expectValue(t, m, "wscast.service", "NRestarts", "0") // none but ours
}

// The connections of clients do not end with the process that serves them.
func TestRestartKeepsClients(t *testing.T) {
	t.Parallel()
	m := booted.Boot(t)
	c := harness.Dial(t, m.WebSocketURL("news"))
	publish(m, "news", "one")
	m.Systemctl("restart", "wscast.service")
	publish(m, "news", "two")
	c.ExpectText("one")
	c.ExpectText("two")
}
