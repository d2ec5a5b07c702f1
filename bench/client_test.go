package main

import (
	"bytes"
	"slices"
	"strings"
	"testing"
)

const goodAnswer = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: " + handshakeAccept + "\r\n\r\n"

// textFrame is a short unmasked text frame.
func textFrame(payload string) string {
	return "\x81" + string(rune(len(payload))) + payload
}

// takeAll gives a new client data in pieces of the given size.
func takeAll(data []byte, size int) (messages []string, c *client, err error) {
	c = &client{stage: asked}
	for piece := range slices.Chunk(data, size) {
		// A copy that is wiped afterwards: the client may not keep what it was given.
		piece = bytes.Clone(piece)
		err = c.take(piece, func(_ *client, payload []byte) error {
			messages = append(messages, string(payload))
			return nil
		})
		clear(piece)
		if err != nil {
			return messages, c, err
		}
	}
	return messages, c, nil
}

func TestClientTakesAnswerAndFramesInPiecesOfAnySize(t *testing.T) {
	long := strings.Repeat("x", 200)
	data := []byte(goodAnswer + textFrame("one") + "\x8A\x00" + textFrame("") + "\x81\x7e\x00\xc8" + long + textFrame("end"))
	want := []string{"one", "", long, "end"}
	for size := 1; size <= len(data); size++ {
		messages, c, err := takeAll(data, size)
		if err != nil || !slices.Equal(messages, want) || c.stage != open || len(c.rest) > 0 {
			t.Fatalf("pieces of %d: messages %q, stage %d, rest %q, error %v", size, messages, c.stage, c.rest, err)
		}
	}
}

func TestClientRefuses(t *testing.T) {
	for _, test := range []struct{ name, data, want string }{
		{"not 101", "HTTP/1.1 404 Not Found\r\n\r\n", "404 Not Found"},
		{"wrong accept", strings.Replace(goodAnswer, handshakeAccept, "AAAA", 1), "Sec-WebSocket-Accept"},
		{"endless answer", "HTTP/1.1 101 " + strings.Repeat("x", 5000), "longer than"},
		{"binary", goodAnswer + "\x82\x01x", "binary"},
		{"masked", goodAnswer + "\x81\x81\x00\x00\x00\x00x", "masked"},
		{"fragment", goodAnswer + "\x01\x01x", "fragment"},
		{"continuation", goodAnswer + "\x80\x01x", "fragment"},
		{"reserved bit", goodAnswer + "\xC1\x01x", "reserved"},
		{"opcode", goodAnswer + "\x83\x01x", "opcode"},
		{"long control frame", goodAnswer + "\x89\x7e\x00\x7e", "control frame"},
		{"too long", goodAnswer + "\x81\x7f\xff\xff\xff\xff\xff\xff\xff\xff", "at most"},
		{"close", goodAnswer + "\x88\x06\x03\xf5slow", `1013 "slow"`},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, _, err := takeAll([]byte(test.data), len(test.data))
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("error is %v, want one with %q", err, test.want)
			}
		})
	}
}

const goodStream = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nX-Accel-Buffering: no\r\n\r\nretry: 1500\n\nid: 0-0\n\n"

// envelope is a message as wscast.v1.json has it.
func envelope(data string) string {
	return `{"channel":"c","id":"0-1","time":1,"data":"` + data + `"}`
}

// What clients read, in pieces of any size, are the same messages whatever is around them; and nothing else is taken for one.
func TestClientReads(t *testing.T) {
	frame := func(payload string) string {
		return "\x81\x7e" + string([]byte{byte(len(payload) >> 8), byte(len(payload))}) + payload
	}
	for _, test := range []struct {
		reading
		data  string
		wrong string // behind it
	}{
		{jsonEnvelopes, goodAnswer + frame(`{"reply":"welcome"}`) + frame(envelope("one")) + frame(envelope("two")), frame(`{"error":"x"}`)},
		{eventStream, goodStream + "id: 0-1\ndata: one\n\n:\n\nid: 0-2\ndata: two\n\n", "event: incomplete\ndata: c\n\n"},
		{manyEvents, goodStream + "id: 0-1\ndata: " + envelope("one") + "\n\nid: 0-2\ndata: " + envelope("two") + "\n\n", "id: 0-3\ndata: three\n\n"},
	} {
		for size := 1; size <= len(test.data); size++ {
			c := &client{stage: asked, reading: test.reading}
			var messages []string
			note := func(_ *client, payload []byte) error {
				messages = append(messages, string(payload))
				return nil
			}
			for piece := range slices.Chunk([]byte(test.data), size) {
				if err := c.take(piece, note); err != nil {
					t.Fatalf("%s, in pieces of %d: %v", test.reading, size, err)
				}
			}
			if !slices.Equal(messages, []string{"one", "two"}) || len(c.rest) > 0 {
				t.Fatalf("%s, in pieces of %d: messages %q, rest %q", test.reading, size, messages, c.rest)
			}
			if err := c.take([]byte(test.wrong), note); err == nil {
				t.Fatalf("%s: took %q", test.reading, test.wrong)
			}
		}
		c := &client{stage: asked, reading: test.reading}
		other := goodStream
		if test.reading.events() {
			other = goodAnswer
		}
		if err := c.take([]byte(other), nil); err == nil {
			t.Errorf("%s: took the answer for another kind", test.reading)
		}
	}
}

func TestSourceAddress(t *testing.T) {
	for i, want := range map[int][4]byte{0: {127, 0, 0, 1}, sourceAddresses - 1: {127, 0, 0, 16}, sourceAddresses: {127, 0, 0, 1}} {
		if got := sourceAddress(i); got != want {
			t.Errorf("client %d comes from %v, want %v", i, got, want)
		}
	}
}

// What a client makes of a stream does not depend on how it is cut, and nothing that a
// server can send makes it panic.
func FuzzClient(f *testing.F) {
	f.Add([]byte(goodAnswer+textFrame("one")+textFrame("two")), 5)
	f.Add([]byte(goodAnswer+"\x81\x7e\x00\x03abc\x88\x02\x03\xe8"), 1)
	f.Add([]byte(goodAnswer+"\x81\x7f\x00\x00\x00\x00\x00\x00\x00\x01a\x8A\x00\x01"), 3)
	f.Add([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"), 2)
	f.Fuzz(func(t *testing.T, data []byte, size int) {
		// A ping would be answered, and there is no socket.
		if len(data) == 0 || len(data) > 4096 || bytes.ContainsAny(data, "\x89\x99\xa9\xb9\xc9\xd9\xe9\xf9") {
			return
		}
		size = max(1, min(size, len(data)))
		whole, _, wholeErr := takeAll(data, len(data))
		pieces, _, piecesErr := takeAll(data, size)
		if !slices.Equal(whole, pieces) || (wholeErr == nil) != (piecesErr == nil) {
			t.Fatalf("whole: %q, %v; in pieces of %d: %q, %v", whole, wholeErr, size, pieces, piecesErr)
		}
	})
}

func FuzzSplitAnswer(f *testing.F) {
	for _, seed := range []string{":0\r\n", ":1000\r\n:1", "-ERR no\r\n", ":\r\n", ":x\r\n", "\n", ""} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		value, n, err := splitAnswer(b)
		if n < 0 || n > len(b) || err != nil && n != 0 {
			t.Fatalf("splitAnswer(%q) = %d, %d, %v", b, value, n, err)
		}
		if n > 0 && (b[0] != ':' || b[n-1] != '\n') {
			t.Fatalf("splitAnswer(%q) took %q for an integer", b, b[:n])
		}
	})
}

const posted = "HTTP/1.1 201 Created\r\nServer: nginx\r\nContent-Type: text/plain\r\nContent-Length: 93\r\n\r\n" +
	"queued messages: 10\r\nlast requested: 0 sec. ago\r\nactive subscribers: 12\r\nlast message id: 1:0"

func TestSplitPosted(t *testing.T) {
	text := []byte(posted + posted[:20])
	for n := range posted {
		if clients, took, err := splitPosted(text[:n]); clients != 0 || took != 0 || err != nil {
			t.Fatalf("of %d bytes: %d clients, %d taken, %v", n, clients, took, err)
		}
	}
	if clients, took, err := splitPosted(text); clients != 12 || took != len(posted) || err != nil {
		t.Fatalf("%d clients, %d taken of %d, %v", clients, took, len(posted), err)
	}
	for _, wrong := range []string{
		strings.Replace(posted, "201 Created", "403 Forbidden", 1),
		strings.Replace(posted, "Content-Length: 93", "Content-Length: -1", 1),
		strings.Replace(posted, "Content-Length: 93", "Content-Length: 99999", 1),
		strings.Replace(posted, "active", "action", 1),
		strings.Repeat("x", 5000),
	} {
		if _, _, err := splitPosted([]byte(wrong)); err == nil {
			t.Errorf("%q was taken", wrong)
		}
	}
}

func FuzzSplitPosted(f *testing.F) {
	f.Add([]byte(posted))
	f.Add([]byte(posted[:60]))
	f.Add([]byte("HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		clients, n, err := splitPosted(b)
		if n < 0 || n > len(b) || clients < 0 || err != nil && n != 0 {
			t.Fatalf("splitPosted(%q) = %d, %d, %v", b, clients, n, err)
		}
	})
}

// A subscriber of Redis checks as every client does, however the stream is cut.
func TestListenerTakesPushesInPiecesOfAnySize(t *testing.T) {
	data := slices.Clone(subscribed)
	for sequence := range uint64(3) {
		data = append(data, pushHead...)
		data = message{source: 1, sequence: sequence + 1}.appendTo(data)
		data = append(data, pushTail...)
	}
	for size := 1; size <= len(data); size += 7 {
		li := &listener{redis: true, client: client{stage: asked, order: newOrder(0, 2, 1)}}
		for piece := range slices.Chunk(data, size) {
			if err := li.takePushes(bytes.Clone(piece)); err != nil {
				t.Fatalf("pieces of %d: %v", size, err)
			}
		}
		if li.got != 3 || li.stage != open || len(li.rest) != 0 {
			t.Fatalf("pieces of %d: %d messages, stage %d, %d bytes left", size, li.got, li.stage, len(li.rest))
		}
	}
	for at := range data {
		wrong := slices.Clone(data)
		wrong[at] ^= 0x80
		li := &listener{redis: true, client: client{stage: asked, order: newOrder(0, 2, 1)}}
		if err := li.takePushes(wrong); err == nil {
			t.Errorf("byte %d was changed, and nothing is found", at)
		}
	}
}

func TestListenerFindsEveryFault(t *testing.T) {
	for name, sequences := range map[string][]uint64{"lost": {1, 3}, "repeated": {1, 1}} {
		li := &listener{redis: true, client: client{stage: open, order: newOrder(0, 1, 1)}}
		var data []byte
		for _, sequence := range sequences {
			data = append(message{sequence: sequence}.appendTo(append(data, pushHead...)), pushTail...)
		}
		if err := li.takePushes(data); err == nil {
			t.Errorf("%s: nothing is found", name)
		}
	}
}
