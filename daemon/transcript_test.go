package daemon

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

// TestTranscriptsOfClients runs every transcript of clients in the protocol document, each with a daemon of its own.
func TestTranscriptsOfClients(t *testing.T) {
	document, err := os.ReadFile("../doc/protocol.txt")
	if err != nil {
		t.Fatal(err)
	}
	var block []string
	blocks, first := 0, 0
	for n, line := range append(strings.Split(string(document), "\n"), "") {
		text, indented := strings.CutPrefix(line, "    ")
		who, _, ok := strings.Cut(text, ":")
		switch {
		case indented && ok && (who == "B" || who == "W" || who == "P"):
			if block == nil {
				first = n + 1
			}
			block = append(block, text)
		case block != nil && strings.HasPrefix(line, "        "):
			block[len(block)-1] += strings.TrimSpace(line)
		case block != nil:
			blocks++
			lines := block
			t.Run(fmt.Sprintf("line %d", first), func(t *testing.T) { runTranscript(t, lines) })
			block = nil
		}
	}
	if blocks < 4 {
		t.Errorf("the document has %d transcripts of clients; it had more", blocks)
	}
}

// In the document these stand for what is another one each time.
var (
	epochs = regexp.MustCompile(`[0-9a-f]{16}-`)
	times  = regexp.MustCompile(`"time":\d{13}`)
	retry  = regexp.MustCompile(`^retry: \d{4}$`)
)

const theEpoch, theTime = "0123456789abcdef-", `"time":1764000000123`

// visitor is a client of either kind.
type visitor struct {
	t     *testing.T
	conn  *websocket.Conn
	body  *bufio.Reader
	close func()
}

func runTranscript(t *testing.T, lines []string) {
	r := start(t)
	p := r.publisher()
	var v *visitor
	for i := 0; i < len(lines); i++ {
		who, text, _ := strings.Cut(lines[i], ":")
		text = strings.TrimPrefix(text, " ")
		switch {
		case who == "P":
			words := strings.SplitN(text, " ", 3)
			message := strings.ReplaceAll(strings.Trim(words[2], `"`), `\n`, "\n")
			if _, err := p.Publish(words[1], []byte(message)); err != nil {
				t.Fatal(err)
			}
		case who == "B" && v == nil:
			var headers []string
			for i+1 < len(lines) && strings.HasPrefix(lines[i+1], "B: ") && lines[i+1][3] != '{' {
				i++
				headers = append(headers, lines[i][3:])
			}
			v = visit(t, r, strings.TrimPrefix(text, "GET "), headers)
			defer v.close()
		case who == "B":
			epoch := fmt.Sprintf("%016x-", r.d.store.Epoch())
			if err := v.conn.WriteMessage(websocket.TextMessage, []byte(strings.ReplaceAll(text, theEpoch, epoch))); err != nil {
				t.Fatal(err)
			}
		default:
			got := retry.ReplaceAllString(times.ReplaceAllString(epochs.ReplaceAllString(v.line(), theEpoch), theTime), "retry: 1500")
			if begins, more := strings.CutSuffix(text, "..."); got != text && !(more && strings.HasPrefix(got, begins)) {
				t.Fatalf("got  %q\nwant %q", got, text)
			}
		}
	}
}

// visit opens a connection: an event stream with headers, else a WebSocket.
func visit(t *testing.T, r *running, path string, headers []string) *visitor {
	t.Helper()
	v := &visitor{t: t}
	if len(headers) == 0 {
		dialer := websocket.Dialer{Subprotocols: []string{Subprotocol}, NetDial: net.Dial}
		conn, _, err := dialer.Dial("ws://"+r.address+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.SetReadDeadline(time.Now().Add(patience))
		v.conn, v.close = conn, func() { conn.Close() }
		return v
	}
	conn, err := net.Dial("tcp", r.address)
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.SetReadDeadline(time.Now().Add(patience))
	_, _ = fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\n%s\r\n\r\n", path, r.address, strings.Join(headers, "\r\n"))
	v.body, v.close = bufio.NewReader(conn), func() { conn.Close() }
	answer, err := http.ReadResponse(v.body, nil)
	if err != nil || answer.StatusCode != http.StatusOK || answer.Header.Get("Content-Type") != "text/event-stream" {
		t.Fatal(answer, err)
	}
	return v
}

func (v *visitor) line() string {
	v.t.Helper()
	if v.conn != nil {
		_, b, err := v.conn.ReadMessage()
		if err != nil {
			v.t.Fatal(err)
		}
		return string(b)
	}
	line, err := v.body.ReadString('\n')
	if err != nil {
		v.t.Fatal(err)
	}
	return strings.TrimSuffix(line, "\n")
}
