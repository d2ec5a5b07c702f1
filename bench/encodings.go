package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
)

// A reading is how clients of wscastd are sent messages (doc/protocol.txt, section 6).
type reading uint8

const (
	rawFrames     reading = iota // frames with the messages
	jsonEnvelopes                // wscast.v1.json
	eventStream                  // server-sent events
	manyEvents                   // server-sent events with envelopes, as of several channels
)

func (r reading) String() string {
	return [...]string{"raw", "json", "events", "events of several"}[r]
}

func (r reading) events() bool { return r >= eventStream }

// request is the head of a client's request but for its first line and Host.
func (r reading) request() string {
	if r.events() {
		return "Accept: text/event-stream\r\n\r\n"
	}
	head := "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + handshakeKey + "\r\n"
	if r == jsonEnvelopes {
		head += "Sec-WebSocket-Protocol: wscast.v1.json\r\n"
	}
	return head + "\r\n"
}

// target is the path of a client's request with its query. One that can have several channels has none where its query names none.
func (r reading) target(path string) string {
	switch r {
	case jsonEnvelopes:
		if path == clientPath(0) {
			return path + "?channel=default"
		}
	case manyEvents:
		return path + "?envelope"
	}
	return path
}

var errStream = errors.New("the stream is not as it has to be")

// dataOf finds the message in an envelope. What is published has nothing that JSON would escape.
func dataOf(envelope []byte) ([]byte, error) {
	_, data, ok := bytes.Cut(envelope, []byte(`,"data":"`))
	data, closed := bytes.CutSuffix(data, []byte(`"}`))
	if !ok || !closed || !bytes.HasPrefix(envelope, []byte(`{"channel":"`)) {
		return nil, fmt.Errorf("%w: %q", errStream, envelope)
	}
	return data, nil
}

// text takes what came in a text frame: a message, or an answer to the request.
func (r reading) text(payload []byte) (message []byte, err error) {
	if r != jsonEnvelopes {
		return payload, nil
	}
	if bytes.HasPrefix(payload, []byte(`{"reply":"`)) {
		return nil, nil
	}
	return dataOf(payload)
}

// splitEvent takes one event off the front of b, and returns its length, 0 when its end has not come, and the message in it, if there is one.
func (r reading) splitEvent(b []byte) (message []byte, n int, err error) {
	end := bytes.Index(b, []byte("\n\n"))
	if end < 0 {
		if len(b) > maxFrame {
			err = fmt.Errorf("%w: an event of more than %d bytes", errStream, maxFrame)
		}
		return nil, 0, err
	}
	n = end + 2
	head, data, ok := bytes.Cut(b[:end], []byte("\ndata: "))
	switch {
	case !ok: // where the stream begins, how long to wait, a comment
	case !bytes.HasPrefix(head, []byte("id: ")) || bytes.IndexByte(data, '\n') >= 0:
		err = fmt.Errorf("%w: %q", errStream, b[:end])
	case r == manyEvents:
		message, err = dataOf(data)
	default:
		message = data
	}
	return message, n, err
}

// encodingsSection measures the subject with clients that read in each way, in turn within a round.
func (m *measurement) encodingsSection(ctx context.Context) (*section, error) {
	at := slices.IndexFunc(m.chosen, func(s server) bool { return s.name == subject })
	if at < 0 {
		fmt.Fprintf(m.progress, "bench: no rows of encodings: they are about %s\n", subject)
		return nil, nil
	}
	readings := []reading{rawFrames, jsonEnvelopes, eventStream, manyEvents}
	s := new(section)
	var sheets []*sheet
	for _, n := range m.clients {
		p := m.clientPlan(n, "delivery", "idle", "handshake")
		t := &sheet{title: fmt.Sprintf("%d clients", n), rows: clientRows(windows), results: make(results), bases: []string{rawFrames.String()}}
		for round := range m.rounds {
			for i := range readings {
				p.Reading = readings[(round+i)%len(readings)]
				f, err := m.quietest(ctx, m.chosen[at], p, fmt.Sprintf("round %d of %d, %d clients, %s", round+1, m.rounds, n, p.Reading))
				if err != nil {
					return nil, err
				}
				t.results[p.Reading.String()] = append(t.results[p.Reading.String()], f)
			}
		}
		for _, r := range readings {
			t.columns = append(t.columns, r.String())
		}
		sheets = append(sheets, t)
	}
	return s, s.print(sheets...)
}
