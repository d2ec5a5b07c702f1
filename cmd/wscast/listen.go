package main

import (
	"context"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/gorilla/websocket"
)

const (
	handshakeTimeout = 10 * time.Second // from the first SYN to the 101
	closeTimeout     = 2 * time.Second  // for the server's answer to our close frame
)

var listenCommand = command{
	name:    "listen",
	args:    "URL",
	summary: "print what a WebSocket client receives",
	help: `
URL is what a browser would be given, or a Unix socket and the path of the request:

    wscast listen ws://127.0.0.1:7311/websocket
    wscast listen wss://example.org/websocket/news
    wscast listen ws+unix:/run/wscast/websocket.sock:/websocket/news

Each message is printed on a line of its own, as by wscast subscribe. Ctrl-C closes
the connection with code 1000.

When the server closes it, the code and the reason go to standard error; the exit
code is 0 after 1000 (normal) and 1001 (going away), otherwise 1. A certificate that
the system does not trust is given in the environment: SSL_CERT_FILE=ca.pem. A proxy
is taken from HTTP_PROXY, HTTPS_PROXY and NO_PROXY.
`,
	setup: func(flags *flag.FlagSet) func(streams, []string) error {
		origin := flags.String("origin", "", "send this `ORIGIN`, as a browser does for a page: https://example.org")
		return func(std streams, args []string) error {
			if len(args) != 1 {
				return &usageError{text: "listen: one URL is needed", hint: "as in: wscast listen ws://127.0.0.1:7311/websocket"}
			}
			target, err := parseTarget(args[0])
			if err != nil {
				return err
			}
			return listen(target, *origin, std)
		}
	},
}

// target is where a WebSocket server is.
type target struct {
	spelled string // as the user wrote it
	url     string // for the request
	socket  string // Unix socket to dial instead of the host of url; "" for TCP
}

// parseTarget takes ws, wss and ws+unix URLs. The last has the form that the npm package ws gave it:
// ws+unix:SOCKET:PATH, both absolute.
func parseTarget(spelled string) (target, error) {
	t := target{spelled: spelled, url: spelled}
	if rest, ok := strings.CutPrefix(spelled, "ws+unix:"); ok {
		var path string
		rest = "/" + strings.TrimLeft(rest, "/") // ws+unix:///run/… is meant as well
		t.socket, path, ok = strings.Cut(rest, ":")
		if !ok || !strings.HasPrefix(path, "/") {
			return t, &usageError{
				text: "listen: no request path in " + spelled,
				hint: "as in: ws+unix:" + t.socket + ":/websocket/default",
			}
		}
		t.url = "ws://localhost" + path
	}
	u, err := url.Parse(t.url)
	var broken *url.Error
	switch {
	case errors.As(err, &broken):
		return t, &usageError{text: fmt.Sprintf("listen: %q is not a URL: %v", spelled, broken.Err)}
	case u.Scheme == "http" || u.Scheme == "https":
		return t, &usageError{
			text: "listen: " + spelled + " is not a WebSocket URL",
			hint: "try ws" + strings.TrimPrefix(spelled, "http"),
		}
	case u.Scheme != "ws" && u.Scheme != "wss" || u.Host == "":
		return t, &usageError{
			text: fmt.Sprintf("listen: %q is not a WebSocket URL", spelled),
			hint: "it begins with ws://HOST, wss://HOST or ws+unix:/SOCKET",
		}
	case u.User != nil:
		return t, &usageError{text: "listen: a WebSocket URL has no user name or password: " + u.Redacted()}
	}
	return t, nil
}

func listen(t target, origin string, std streams) error {
	interrupted, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	conn, err := dialWebSocket(interrupted, t, origin)
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetReadLimit(messageLimit)

	// The closing handshake of RFC 6455 section 7.1.2, started by us: the loop below ends at the server's
	// close frame or at the deadline. A second signal finds the default action and ends the process.
	defer context.AfterFunc(interrupted, func() {
		stop()
		conn.SetReadDeadline(time.Now().Add(closeTimeout))
		frame := websocket.FormatCloseMessage(websocket.CloseNormalClosure, "")
		conn.WriteControl(websocket.CloseMessage, frame, time.Now().Add(closeTimeout))
	})()

	lines := newLinePrinter(std.out)
	for {
		_, message, err := conn.ReadMessage()
		switch {
		case err != nil && interrupted.Err() != nil:
			return nil
		case err != nil:
			return closed(std.err, err)
		}
		if err := lines.print("", message); err != nil {
			return err
		}
	}
}

// closed judges how the connection ended without our doing.
func closed(w io.Writer, err error) error {
	var c *websocket.CloseError
	switch {
	case errors.Is(err, websocket.ErrReadLimit):
		return fmt.Errorf("a message is longer than %d MiB: connection closed", messageLimit>>20)
	case !errors.As(err, &c):
		return fmt.Errorf("connection lost: %w", lastCause(err))
	case c.Code == websocket.CloseAbnormalClosure: // never sent: gorilla's word for an end of file
		return &failure{
			text: "connection lost: the server sent no close frame",
			hint: "behind nginx this is also what proxy_read_timeout looks like when nothing keeps the connection busy",
		}
	case c.Code == websocket.CloseNoStatusReceived:
		return errors.New("closed by the server without a code")
	}
	text := fmt.Sprintf("closed by the server: %d", c.Code)
	if meaning := closeCodes[c.Code]; meaning != "" {
		text += " (" + meaning + ")"
	}
	if c.Text != "" && c.Text != closeCodes[c.Code] {
		text += ": " + c.Text
	}
	if c.Code == websocket.CloseNormalClosure || c.Code == websocket.CloseGoingAway {
		fmt.Fprintln(w, "wscast: "+oneLine(text))
		return nil
	}
	return errors.New(text)
}

// closeCodes are the names in IANA's registry of WebSocket close codes.
var closeCodes = map[int]string{
	websocket.CloseNormalClosure:           "normal closure",
	websocket.CloseGoingAway:               "going away",
	websocket.CloseProtocolError:           "protocol error",
	websocket.CloseUnsupportedData:         "unsupported data",
	websocket.CloseInvalidFramePayloadData: "invalid frame payload data",
	websocket.ClosePolicyViolation:         "policy violation",
	websocket.CloseMessageTooBig:           "message too big",
	websocket.CloseMandatoryExtension:      "mandatory extension",
	websocket.CloseInternalServerErr:       "internal error",
	websocket.CloseServiceRestart:          "service restart",
	websocket.CloseTryAgainLater:           "try again later",
}

// dialWebSocket connects and does the opening handshake. ctx ends both, and nothing after them.
func dialWebSocket(ctx context.Context, t target, origin string) (*websocket.Conn, error) {
	// gorilla looks at ctx while it dials, but not while it waits for the answer to its request: so the
	// connection is closed under it. (The context that it hands to NetDialContext ends with the handshake.)
	var release func() bool
	dialer := websocket.Dialer{
		Proxy:            http.ProxyFromEnvironment,
		HandshakeTimeout: handshakeTimeout,
		NetDialContext: func(handshake context.Context, network, addr string) (net.Conn, error) {
			if t.socket != "" {
				network, addr = "unix", t.socket
			}
			conn, err := new(net.Dialer).DialContext(handshake, network, addr)
			if err == nil {
				release = context.AfterFunc(ctx, func() { conn.Close() })
			}
			return conn, err
		},
	}
	if t.socket != "" {
		dialer.Proxy = nil
	}
	header := http.Header{"User-Agent": {"wscast/" + version}}
	if origin != "" {
		header.Set("Origin", origin)
	}
	conn, answer, err := dialer.DialContext(ctx, t.url, header)
	if release != nil {
		release()
	}
	switch {
	case err == nil:
		return conn, nil
	case ctx.Err() != nil:
		return nil, errors.New("interrupted before the opening handshake was done")
	case answer != nil:
		return nil, refusedHandshake(t, origin, answer)
	}
	failed := &failure{text: fmt.Sprintf("cannot reach %s: %v", t.spelled, lastCause(err))}
	var untrusted x509.UnknownAuthorityError
	switch {
	case errors.As(err, &untrusted):
		failed.hint = "SSL_CERT_FILE=FILE in the environment names the certificates to trust"
	case errors.Is(err, syscall.ECONNREFUSED):
		failed.hint = "nothing listens there: is wscastd, or the web server before it, running?"
	}
	return nil, failed
}

// refusedHandshake explains an answer that is not a 101. wscastd explains each in a line of plain text; then
// there is nothing to add, but for what this tool can do about a 403.
func refusedHandshake(t target, origin string, answer *http.Response) error {
	if answer.StatusCode == http.StatusSwitchingProtocols {
		return fmt.Errorf("%s: the answer to the opening handshake is not for our request", t.spelled)
	}
	failed := &failure{text: fmt.Sprintf("%s: %d %s", t.spelled, answer.StatusCode, http.StatusText(answer.StatusCode))}
	explained := false
	if strings.HasPrefix(answer.Header.Get("Content-Type"), "text/plain") {
		body, _ := io.ReadAll(answer.Body) // gorilla has read 1 KiB of it at most
		if line, _, _ := strings.Cut(strings.TrimSpace(string(body)), "\n"); line != "" {
			failed.text += ": " + line
			explained = true
		}
	}
	if answer.StatusCode == http.StatusForbidden && origin == "" {
		failed.hint = "the server may want the origin of a page that it knows: --origin https://example.org"
	}
	if explained {
		return failed
	}
	switch answer.StatusCode {
	case http.StatusNotFound:
		failed.hint = "wscastd answers at /websocket and /websocket/CHANNEL, unless it is configured otherwise"
	case http.StatusBadRequest, http.StatusUpgradeRequired:
		failed.hint = "a proxy in between has to pass on the headers Upgrade and Connection"
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		failed.hint = "the web server is there, but does not reach wscastd behind it"
	case http.StatusMovedPermanently, http.StatusFound, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		failed.hint = "it redirects to " + answer.Header.Get("Location")
	}
	return failed
}
