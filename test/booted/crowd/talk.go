package crowd

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"

	"golang.org/x/sys/unix"
)

// talk is what a client has said.
type talk struct {
	half            []byte // the rest of a frame of which a piece is sent
	pinged, ponged  uint64 // pings of RFC 6455
	asked, answered uint64 // commands of wscast.v1.json; each has its number as ref

	speaker  id     // what it publishes next; number 0: it publishes nothing
	speaking bool   // it is under way
	ref      uint64 // of the command with it
}

// done tells whether all was answered.
func (t *talk) done() bool { return t.ponged == t.pinged && t.answered == t.asked }

// send sends a frame, behind the rest of one that is still to be sent.
func (cl *client) send(frame []byte) error {
	frame = append(cl.talk.half, frame...)
	cl.talk.half = nil
	return send(cl.fd, frame)
}

// begin sends a piece of a frame, the rest of which goes with the next one, or with finish.
func (cl *client) begin(frame []byte) error {
	cut := 1 + rand.IntN(len(frame)-1)
	err := send(cl.fd, frame[:cut])
	cl.talk.half = frame[cut:]
	return cl.unread(err)
}

func (cl *client) finish() error { return cl.unread(cl.send(nil)) }

// unread leaves out an error that is found, and judged, when the connection is read.
func (cl *client) unread(err error) error {
	if err == nil || err == unix.EAGAIN {
		return err
	}
	cl.talk.half = nil
	return nil
}

// ping is the next frame that asks for a sign of life: a ping of RFC 6455, or, every other time where there are commands, a command.
func (cl *client) ping() []byte {
	if t := &cl.talk; cl.kind.json() && rand.IntN(2) == 0 {
		t.asked++
		return clientFrame(textFrame, fmt.Appendf(nil, `{"command":"ping","ref":%d}`, t.asked))
	}
	cl.talk.pinged++
	return clientFrame(pingFrame, binary.BigEndian.AppendUint64(nil, cl.talk.pinged))
}

func (t *talk) pong(payload []byte) error {
	if len(payload) != 8 {
		return fmt.Errorf("a pong of %d bytes", len(payload))
	}
	// RFC 6455, section 5.5.3: a server may answer only the newest ping. A process that was killed between its answer and its note of that leaves
	// the ping to the next one, which answers it again; nobody minds a pong too many.
	n := binary.BigEndian.Uint64(payload)
	if n == 0 || n > t.pinged {
		return fmt.Errorf("pong %d came, and %d pings were sent", n, t.pinged)
	}
	t.ponged = max(t.ponged, n)
	return nil
}

// reply is an answer of wscast.v1.json. Each command has one, in the order of commands.
func (c *Crowd) reply(cl *client, s *said) error {
	t := &cl.talk
	switch {
	case s.Error != "":
		return fmt.Errorf("command %d: %s: %s", s.Ref, s.Error, s.Message)
	case s.Reply == "welcome":
		if cl.stage != joining || cl.joined > 0 {
			return errors.New("it is welcomed again")
		}
		if cl.subscribes() {
			for _, channel := range cl.audience.channels {
				t.asked++
				command := fmt.Appendf(nil, `{"command":"subscribe","channel":%q,"ref":%d}`, channelName(channel), t.asked)
				if err := cl.send(clientFrame(textFrame, command)); err != nil {
					return cl.unread(err)
				}
			}
		}
		return nil
	case s.Ref != 0 || cl.stage == open:
		if t.answered++; s.Ref != t.answered {
			return fmt.Errorf("%s to command %d came where that to command %d was due", s.Reply, s.Ref, t.answered)
		}
	}
	switch s.Reply {
	case "subscribed":
		return c.subscribed(cl, s)
	case "published":
		if !t.speaking || s.Ref != t.ref {
			return fmt.Errorf("an answer to a message that was not published: %d", s.Ref)
		}
		c.spoken(cl)
	case "pong":
	default:
		return fmt.Errorf("reply %q", s.Reply)
	}
	return nil
}

func (c *Crowd) subscribed(cl *client, s *said) error {
	switch {
	case s.Complete == nil || !*s.Complete:
		return fmt.Errorf("it is told that messages of %q are gone", s.Channel)
	case cl.stage != joining || s.Channel != channelName(cl.audience.channels[cl.joined]):
		return fmt.Errorf("it is subscribed to %q again", s.Channel)
	case cl.since != "" && s.ID != cl.since && ascending(s.ID, cl.since) != nil: // the last message of that channel may be an earlier one
		return fmt.Errorf("its subscription to %q begins at %s, and it came back with %s", s.Channel, s.ID, cl.since)
	case cl.since == "" && cl.first == "":
		cl.first = s.ID
	}
	if cl.joined++; cl.joined == len(cl.audience.channels) {
		c.opened(cl)
	}
	return nil
}

// chat lets a few stayers send something, and those of the last time the rest of it. wscastd leaves a frame that is not whole in the socket for a second;
// later on it takes the beginning into its memory, and closes the client when it is killed then.
func (c *Crowd) chat() {
	for _, cl := range c.talkers {
		if cl.talk.half != nil && cl.stage == open {
			c.trouble(cl, cl.finish())
		}
	}
	c.talkers = c.talkers[:0]
	if c.quiet {
		return
	}
	for _, cl := range c.speakers {
		if t := &cl.talk; cl.stage == open && t.half == nil && !t.speaking && c.room() {
			c.trouble(cl, cl.begin(cl.speak(c.flow.Size)))
			c.talkers = append(c.talkers, cl)
		}
	}
	for range min(4, len(c.stayers)) {
		if cl := c.stayers[rand.IntN(len(c.stayers))]; cl.stage == open && cl.talk.half == nil && cl.kind.webSocket() {
			c.trouble(cl, cl.begin(cl.ping()))
			c.talkers = append(c.talkers, cl)
		}
	}
}

// trouble is an error of sending.
func (c *Crowd) trouble(cl *client, err error) {
	if err != nil {
		c.fail(fmt.Errorf("client %d (%s) sends: %w", cl.number, cl.kind, err))
	}
}

// Speak lets the first clients of these kinds that stay publish, one of each, as long as publishers publish. The configuration has to let them.
func (c *Crowd) Speak(kinds ...Kind) {
	c.t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, kind := range kinds {
		i := slices.IndexFunc(c.stayers, func(cl *client) bool { return cl.kind == kind })
		if i < 0 {
			c.t.Fatalf("no client of kind %s stays", kind)
		}
		cl := c.stayers[i]
		// A number of a publisher that is on the client's channel.
		publisher := firstSpeaker + len(c.speakers)*c.channels
		for c.channelOf(id{publisher: uint8(publisher)}) != cl.audience.channels[0] {
			publisher++
		}
		cl.talk.speaker = id{publisher: uint8(publisher), number: 1, try: 1}
		c.speakers = append(c.speakers, cl)
	}
}

// firstSpeaker is the number from which on publishers are clients.
const firstSpeaker = 128

// mostSpoken keeps what clients publish below websocket.max_message, in base64 as well.
const mostSpoken = 2000

// speak is the frame that publishes a client's next message.
func (cl *client) speak(size int) []byte {
	t := &cl.talk
	t.speaking = true
	message := t.speaker.appendTo(nil, min(size, mostSpoken))
	switch {
	case cl.kind.json():
		t.asked++
		t.ref = t.asked
		command := map[string]any{"command": "publish", "channel": channelName(cl.audience.channels[0]), "ref": t.ref}
		if t.speaker.text() {
			command["data"] = string(message)
		} else {
			command["base64"] = base64.StdEncoding.EncodeToString(message)
		}
		b, _ := json.Marshal(command) // strings and numbers
		return clientFrame(textFrame, b)
	case t.speaker.text():
		return clientFrame(textFrame, message)
	}
	return clientFrame(binaryFrame, message)
}

// heardItself tells a client that gets no answer that what it has published is in the log.
func (c *Crowd) heardItself(cl *client, m id) {
	if t := &cl.talk; t.speaking && !cl.kind.json() && m.publisher == t.speaker.publisher && m.number == t.speaker.number {
		c.spoken(cl)
	}
}

// spoken is what there is to do when a client knows that its message is in the log.
func (c *Crowd) spoken(cl *client) {
	t := &cl.talk
	c.acknowledged(t.speaker)
	t.speaking = false
	t.speaker.number++
}
