package conformance

import (
	"bufio"
	"bytes"
	"compress/flate"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// Frames are made and read here, with nothing of the daemon's: who shares a mistake does not find it.

// patience is below the harness's, as a case that fails waits for it.
const patience = 20 * time.Second

const (
	fin  = 0x80
	rsv1 = 0x40
	rsv2 = 0x20
	rsv3 = 0x10

	opContinuation = 0
	opText         = 1
	opBinary       = 2
	opClose        = 8
	opPing         = 9
	opPong         = 10
)

// lengthForm is how the length of a payload is written: the shortest form, or in 16 or 64 bits.
type lengthForm int

const (
	shortest lengthForm = 0
	in16     lengthForm = 126
	in64     lengthForm = 127
)

// header is that of a masked frame. The key is one of a few, as it has to make no difference.
func header(first byte, size uint64, form lengthForm, key [4]byte) string {
	b := []byte{first}
	switch {
	case form == in64 || form == shortest && size > 0xffff:
		b = binary.BigEndian.AppendUint64(append(b, 0x80|127), size)
	case form == in16 || form == shortest && size > 125:
		b = binary.BigEndian.AppendUint16(append(b, 0x80|126), uint16(size))
	default:
		b = append(b, 0x80|byte(size))
	}
	return string(append(b, key[:]...))
}

// keys of frames: chosen by the size, so that a case is the same at each run.
var keys = [][4]byte{{0x37, 0xfa, 0x21, 0x3d}, {0, 0, 0, 0}, {0xff, 0xff, 0xff, 0xff}, {0x80, 1, 0, 0xc3}}

func framed(first byte, payload string) string { return formed(first, payload, shortest) }

func formed(first byte, payload string, form lengthForm) string {
	key := keys[len(payload)%len(keys)]
	b := []byte(payload)
	for i := range b {
		b[i] ^= key[i%4]
	}
	return header(first, uint64(len(payload)), form, key) + string(b)
}

func unmasked(first byte, payload string) string {
	return string([]byte{first, byte(len(payload))}) + payload
}

func closing(code uint16, reason string) string {
	return framed(fin|opClose, string(binary.BigEndian.AppendUint16(nil, code))+reason)
}

// deflated is a payload as RFC 7692 section 7.2.1 has it.
func deflated(payload string) string { return deflatedAfter("", payload) }

// deflatedAfter compresses a payload with another one in the window.
func deflatedAfter(before, payload string) string {
	var b bytes.Buffer
	w, err := flate.NewWriterDict(&b, flate.BestCompression, []byte(before))
	if err == nil {
		_, err = io.WriteString(w, payload)
	}
	if err == nil {
		err = w.Flush()
	}
	if err != nil {
		panic(err) // a bytes.Buffer takes everything
	}
	return strings.TrimSuffix(b.String(), "\x00\x00\xff\xff")
}

func inflated(payload []byte) ([]byte, error) {
	r := flate.NewReader(io.MultiReader(bytes.NewReader(payload), strings.NewReader("\x00\x00\xff\xff\x01\x00\x00\xff\xff")))
	return io.ReadAll(r)
}

// event is something that a client is told.
type event struct {
	what    string // "text", "binary", "pong", "close" (payload is the code, "" for none), "end"
	payload string
}

func (e event) String() string {
	if len(e.payload) > 60 {
		return fmt.Sprintf("%s of %d bytes (%.20q…)", e.what, len(e.payload), e.payload)
	}
	return fmt.Sprintf("%s %q", e.what, e.payload)
}

func (e event) isData() bool { return e.what == "text" || e.what == "binary" }

// wire is a connection, of which the opening handshake is done.
type wire struct {
	net.Conn
	in   *bufio.Reader
	mode *mode
}

// dial opens the connection of a mode. channel is one that nobody else has.
func dial(m *mode, address, channel string) (*wire, error) {
	conn, err := net.Dial(m.network, address)
	if err != nil {
		return nil, err
	}
	w := &wire{conn, bufio.NewReader(conn), m}
	_ = conn.SetDeadline(time.Now().Add(patience))
	err = w.open(m.request(channel))
	if err != nil {
		conn.Close()
		return nil, err
	}
	return w, nil
}

func (w *wire) open(request string) error {
	if _, err := io.WriteString(w, request); err != nil {
		return err
	}
	answer, err := http.ReadResponse(w.in, nil)
	if err != nil {
		return err
	}
	if answer.StatusCode != http.StatusSwitchingProtocols {
		body, _ := io.ReadAll(answer.Body)
		return fmt.Errorf("%s: %s", answer.Status, body)
	}
	if w.mode.deflates != strings.Contains(answer.Header.Get("Sec-WebSocket-Extensions"), "permessage-deflate") {
		return fmt.Errorf("extensions %q", answer.Header["Sec-Websocket-Extensions"])
	}
	if w.mode.commands {
		welcome, err := w.read()
		if err == nil && welcome.what != "text" {
			err = fmt.Errorf("%v instead of the welcome", welcome)
		}
		return err
	}
	return nil
}

// read returns the next event. An error is something that a server must not send.
func (w *wire) read() (event, error) {
	var head [2]byte
	if _, err := io.ReadFull(w.in, head[:]); err != nil {
		if errors.Is(err, io.EOF) {
			return event{"end", ""}, nil
		}
		return event{}, err
	}
	size := uint64(head[1] & 0x7f)
	switch {
	case head[1]&0x80 != 0:
		return event{}, errors.New("the server masks")
	case head[0]&fin == 0:
		return event{}, errors.New("the server sends a fragment")
	case size == 126:
		var b [2]byte
		if _, err := io.ReadFull(w.in, b[:]); err != nil {
			return event{}, err
		}
		if size = uint64(binary.BigEndian.Uint16(b[:])); size < 126 {
			return event{}, errors.New("the server does not use the shortest length")
		}
	case size == 127:
		var b [8]byte
		if _, err := io.ReadFull(w.in, b[:]); err != nil {
			return event{}, err
		}
		if size = binary.BigEndian.Uint64(b[:]); size <= 0xffff || size > 1<<24 {
			return event{}, fmt.Errorf("the server sends a length of %d in 64 bits", size)
		}
	}
	payload := make([]byte, size)
	if _, err := io.ReadFull(w.in, payload); err != nil {
		return event{}, err
	}
	if head[0]&rsv1 != 0 {
		if !w.mode.deflates {
			return event{}, errors.New("the server sets RSV1")
		}
		var err error
		if payload, err = inflated(payload); err != nil {
			return event{}, fmt.Errorf("the server compresses wrongly: %w", err)
		}
	}
	switch head[0] &^ rsv1 {
	case fin | opText:
		if !utf8.Valid(payload) {
			return event{}, errors.New("the server sends text that is not UTF-8")
		}
		return event{"text", string(payload)}, nil
	case fin | opBinary:
		return event{"binary", string(payload)}, nil
	case fin | opPong:
		return event{"pong", string(payload)}, nil
	case fin | opClose:
		if len(payload) == 0 {
			return event{"close", ""}, nil
		}
		if len(payload) < 2 || !utf8.Valid(payload[2:]) {
			return event{}, fmt.Errorf("the server sends a close frame with %q", payload)
		}
		return event{"close", fmt.Sprint(binary.BigEndian.Uint16(payload))}, nil
	}
	return event{}, fmt.Errorf("the server sends a frame that begins with %#x", head[0])
}

// mode is a kind of client.
type mode struct {
	name     string
	network  string
	echoes   bool // messages of raw frames come back
	commands bool // wscast.v1.json
	deflates bool
	deaf     bool // connects to a daemon whose clients cannot publish at all: its loops drop messages frame by frame
}

var modes = []*mode{
	{name: "raw", network: "tcp", deaf: true},
	{name: "raw unix", network: "unix", deaf: true},
	{name: "raw beside echo", network: "tcp"},
	{name: "raw beside echo, unix", network: "unix"},
	{name: "echo", network: "tcp", echoes: true},
	{name: "echo unix", network: "unix", echoes: true},
	{name: "json", network: "tcp", commands: true},
	{name: "json unix", network: "unix", commands: true},
	{name: "raw deflate", network: "tcp", deflates: true},
	{name: "echo deflate", network: "tcp", echoes: true, deflates: true},
	{name: "json deflate", network: "tcp", commands: true, deflates: true},
}

func (m *mode) request(channel string) string {
	lines := []string{"GET /websocket/" + channel + " HTTP/1.1", "Host: localhost", "Upgrade: websocket", "Connection: Upgrade",
		"Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="}
	if m.commands {
		lines[0] = "GET /websocket HTTP/1.1"
		lines = append(lines, "Sec-WebSocket-Protocol: wscast.v1.json")
	}
	if m.deflates {
		lines = append(lines, "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits")
	}
	return strings.Join(lines, "\r\n") + "\r\n\r\n"
}

// channel is where its messages come back, or are dropped.
func (m *mode) channel() string {
	name := fmt.Sprintf("%016x", rand.Uint64())
	if m.echoes {
		return "echo/" + name
	}
	return "quiet/" + name
}

// told is what a client of this mode is told where one with an echo would be told those events.
func (m *mode) told(events []event) (told []event) {
	for _, e := range events {
		switch {
		case !e.isData() || m.echoes:
			told = append(told, e)
		case m.commands && e.what == "binary":
			return append(told, event{"close", "1003"})
		case m.commands:
			told = append(told, event{"text", answered(e.payload)})
		}
	}
	return told
}

// answered is what a text is answered that is to be a command, without what is for people.
func answered(text string) string {
	var c struct {
		Command string
		Ref     any
	}
	if json.Unmarshal([]byte(text), &c) == nil && c.Command == "ping" {
		return fmt.Sprint("pong ", c.Ref)
	}
	return "bad_command"
}

// hears reads what the client is told up to the end of the connection. When it has been told as much as it is to be, and is not
// closed, it says good-bye: after all that it sends, between the pieces of which a close frame would be something else.
func (w *wire) hears(want []event, sent <-chan struct{}) (got []event, err error) {
	said := slices.ContainsFunc(want, func(e event) bool { return e.what == "close" || e.what == "end" })
	for {
		if !said && len(got) >= len(want) {
			said = true
			<-sent
			_, _ = io.WriteString(w, closing(1000, "")) // one that is closed has been told why
		}
		e, err := w.read()
		if err != nil {
			return got, err
		}
		if w.mode.commands && e.what == "text" {
			var r struct {
				Reply, Error string
				Ref          any
			}
			if err := json.Unmarshal([]byte(e.payload), &r); err != nil {
				return got, fmt.Errorf("%v is not JSON: %w", e, err)
			}
			if e.payload = r.Error; r.Reply != "" {
				e.payload = fmt.Sprint(r.Reply, " ", r.Ref)
			}
		}
		got = append(got, e)
		if e.what == "end" {
			return got, nil
		}
	}
}
