package crowd

import (
	"bytes"
	"compress/flate"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
)

// What clients hear is taken apart here, by code that has nothing in common with wscastd's own.

// heard is a message as a client understands it.
type heard struct {
	id
	name string // the id of the log; "" where the client is not told
}

// said is an object of wscast.v1.json: an envelope, an answer or an error.
type said struct {
	Reply, Error, Message string
	Ref                   uint64
	Greeting              string
	Ping                  int
	MaxSubscriptions      int `json:"max_subscriptions"`
	Channel, ID           string
	Complete              *bool
	Clients               int
	Time                  int64
	Data, Base64          *string
}

func parseSaid(payload []byte) (s said, err error) {
	d := json.NewDecoder(bytes.NewReader(payload))
	d.DisallowUnknownFields()
	if err = d.Decode(&s); err == nil {
		if _, end := d.Token(); end != io.EOF {
			err = errors.New("something is behind it")
		}
	}
	if err != nil {
		return s, fmt.Errorf("%.200q is no object of wscast.v1.json: %w", payload, err)
	}
	return s, nil
}

// envelope is the message of an envelope. channelOf tells where it belongs.
func (s *said) envelope(channelOf func(id) int) (h heard, err error) {
	switch {
	case s.Data != nil && s.Base64 == nil:
		h.id, err = parse([]byte(*s.Data))
	case s.Base64 != nil && s.Data == nil:
		var b []byte
		if b, err = base64.StdEncoding.DecodeString(*s.Base64); err == nil {
			h.id, err = parse(b)
		}
	default:
		err = errors.New("an envelope has one of data and base64")
	}
	switch {
	case err != nil:
	case h.text() != (s.Data != nil):
		err = fmt.Errorf("%v came as the other of text and binary", h.id)
	case s.Channel != channelName(channelOf(h.id)):
		err = fmt.Errorf("%v came on channel %q", h.id, s.Channel)
	case s.ID == "" || s.Time < 1e12 || s.Time > 1e14:
		err = fmt.Errorf("%v came with id %q and time %d", h.id, s.ID, s.Time)
	}
	h.name = s.ID
	return h, err
}

// rawMessage is the message of a frame.
func rawMessage(opcode byte, payload []byte) (h heard, err error) {
	if h.id, err = parse(payload); err == nil && h.text() != (opcode == textFrame) {
		err = fmt.Errorf("%v came as the other of text and binary", h.id)
	}
	return h, err
}

// inflate is the payload of a compressed message (RFC 7692, section 7.2.2): what was left off at its end, and an end.
func inflate(payload []byte) ([]byte, error) {
	r := flate.NewReader(io.MultiReader(bytes.NewReader(payload), strings.NewReader("\x00\x00\xff\xff\x01\x00\x00\xff\xff")))
	b, err := io.ReadAll(io.LimitReader(r, maxEncoded+1))
	if err == nil && len(b) > maxEncoded {
		err = errors.New("it is longer than anything that is published")
	}
	if err != nil {
		return nil, fmt.Errorf("a compressed frame: %w", err)
	}
	return b, nil
}

// event is a server-sent event.
type event struct {
	name, kind string // its id, its type
	data       []byte
	lines      int // of data
}

// splitEvent takes one event off the front of b, up to its empty line; n is its length, 0 when the end has not come.
func splitEvent(b []byte) (block []byte, n int, err error) {
	end := bytes.Index(b, []byte("\n\n"))
	switch {
	case end < 0 && len(b) > maxEncoded:
		return nil, 0, fmt.Errorf("an event of more than %d bytes", len(b))
	case end < 0:
		return nil, 0, nil
	}
	return b[:end+2], end + 2, nil
}

// parseEvent reads the fields of an event.
func parseEvent(block []byte) (e event, err error) {
	for line := range bytes.Lines(block) {
		line = line[:len(line)-1]
		field, value, _ := bytes.Cut(line, []byte(":"))
		value = bytes.TrimPrefix(value, []byte(" "))
		switch string(field) {
		case "id":
			e.name = string(value)
		case "event":
			e.kind = string(value)
		case "data":
			if e.lines++; e.lines > 1 {
				e.data = append(e.data, '\n')
			}
			e.data = append(e.data, value...)
		case "", "retry": // an empty line or a comment; how long to wait
		default:
			return e, fmt.Errorf("an event with the line %.100q", line)
		}
		if bytes.IndexByte(line, '\r') >= 0 {
			return e, fmt.Errorf("an event with a carriage return, which would end a line: %.100q", line)
		}
	}
	return e, nil
}

// message is the message of an event.
func (e *event) message(kind Kind, channelOf func(id) int) (h heard, err error) {
	if kind == ManyEvents {
		s, err := parseSaid(e.data)
		if err == nil {
			h, err = s.envelope(channelOf)
		}
		if err == nil && (h.name != e.name || e.kind != "" || e.lines != 1) {
			err = fmt.Errorf("%v came in an event with the id %s, of type %q, with %d lines", h.id, e.name, e.kind, e.lines)
		}
		return h, err
	}
	h.name = e.name
	b := e.data
	if e.kind == "base64" {
		if b, err = base64.StdEncoding.DecodeString(string(e.data)); err != nil {
			return h, err
		}
	} else if e.kind != "" {
		return h, fmt.Errorf("an event of type %q: %.100q", e.kind, e.data)
	}
	if h.id, err = parse(b); err == nil && (e.kind == "") != (h.text() && bytes.IndexByte(b, '\r') < 0) {
		err = fmt.Errorf("%v came as an event of type %q", h.id, e.kind)
	}
	return h, err
}
