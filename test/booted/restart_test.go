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

// Connections that come while the service restarts wait in the sockets, which systemd holds.
func TestRestartRefusesNoConnection(t *testing.T) {
	t.Parallel()
	m := booted.Boot(t, booted.Race())
	url, path := m.WebSocketURL("news"), m.PublishSocket()
	load := newHammer()
	stop := sync.OnceValue(load.stop)
	defer stop()
	for range 3 {
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
	for range 3 {
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
