package daemon

import (
	"bufio"
	"bytes"
	"net"
	"net/http"
	"strings"
	"time"
)

// upgrade lets gorilla's Upgrader answer a request without a connection: it is the http.ResponseWriter that is hijacked and
// the net.Conn that comes of it, and collects what is written.
type upgrade struct {
	net.Conn // nil: none of its other methods is called
	head     bytes.Reader
	request  *bufio.Reader
	buffers  *bufio.ReadWriter // what the Upgrader makes its Conn of, which nobody uses
	header   http.Header
	answer   []byte
	status   int
}

func newUpgrade() *upgrade {
	u := &upgrade{header: make(http.Header)}
	u.request = bufio.NewReaderSize(&u.head, 4096)
	// Of a size that the Upgrader takes instead of making its own.
	u.buffers = bufio.NewReadWriter(bufio.NewReaderSize(strings.NewReader(""), 512), bufio.NewWriterSize(u, 512))
	return u
}

func (u *upgrade) reset(head []byte) {
	u.head.Reset(head)
	u.request.Reset(&u.head)
	u.answer, u.status = u.answer[:0], 0
}

func (u *upgrade) Header() http.Header { return u.header }
func (u *upgrade) WriteHeader(int)     {}
func (u *upgrade) Write(b []byte) (int, error) {
	u.answer = append(u.answer, b...)
	return len(b), nil
}
func (u *upgrade) Hijack() (net.Conn, *bufio.ReadWriter, error) { return u, u.buffers, nil }
func (u *upgrade) Close() error                                 { return nil }
func (u *upgrade) SetDeadline(time.Time) error                  { return nil }

// fail is the Upgrader's way to refuse.
func (u *upgrade) fail(_ http.ResponseWriter, _ *http.Request, status int, _ error) {
	u.status = status
}

func (u *upgrade) refused(err error) []byte {
	return refusal(max(u.status, http.StatusBadRequest), strings.TrimPrefix(err.Error(), "websocket: "))
}
