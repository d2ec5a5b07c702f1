package loop

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"wscast/daemon/encode"
	"wscast/daemon/frame"
	"wscast/daemon/msglog"
)

// Commands come from clients that speak wscast.v1.json: one JSON object in each text message, doc/protocol.txt section 6.10. A command
// is in the socket until an heir would find in the record what it is answered with: it is carried out once and answered once, whenever the
// process is killed. What carrying out changes before that, it changes to the same when it is done once more.

// commandsAtOnce is how many commands of a client are carried out before others get their turn.
const commandsAtOnce = 16

// MostSubscriptions is the largest Config.MaxSubscriptions: each of them is looked at for each message that the client is sent.
const MostSubscriptions = 1000

// command is what a client asks for. Fields that a command has no use for have to be absent.
type command struct {
	Command     string          `json:"command"`
	Ref         json.RawMessage `json:"ref"` // comes back with the answer: a number or a string
	Channel     string          `json:"channel"`
	LastEventID string          `json:"last_event_id"`
	Since       string          `json:"since"`
	Last        int             `json:"last"`
	Data        *string         `json:"data"`
	Base64      []byte          `json:"base64"`
}

// maxRef is the longest Ref, in bytes.
const maxRef = 64

// commands reads what a client sends that does more than to listen. Nothing is read before it has got all that is pending for it: who does
// not read its answers waits, and what it has sent waits in the socket.
func (l *loop) commands(c *client) {
	s := c.session
	c.heard = l.tick
	c.flags &^= pinged
	if s.unread = c.block != 0; s.unread || s.waiting {
		return
	}
	gen := c.gen
	n, errno := l.look(c)
	switch {
	case errno == unix.EAGAIN:
		return
	case errno != 0:
		l.failed(c, "recv", errno)
		return
	case n == 0:
		l.drop(c, "closed without a close frame")
		return
	}
	var replies []byte
	var message *post
	class, bye := 0, (*frame.Error)(nil)
	parser, used, parsed, whole := c.in, 0, 0, 0
	l.message = l.message[:0]
	for parsed < n && bye == nil && message == nil && whole < commandsAtOnce {
		next := parser.Next
		if c.encoding().Deflates() {
			next = parser.NextDeflate
		}
		f, size, err := next(l.scratch[parsed:n], l.config.MaxMessage)
		if err != nil {
			class, bye = closeFailed, err
			break
		}
		if size == 0 {
			break
		}
		switch {
		case f.Op == frame.Ping:
			if len(replies) < mostPongs {
				replies = frame.AppendPong(replies, f.Payload)
			}
		case f.Op == frame.Close:
			code, _, _ := frame.ParseClose(f.Payload)
			class, bye = closeNormal, &frame.Error{Code: code}
			size = 0 // it stays in the socket until we have answered it: so an heir will
		case f.Message == frame.Binary && c.commanding():
			class, bye = closeFailed, &frame.Error{Code: frame.CloseUnsupported, Reason: "commands are text messages"}
		case f.Message != 0 && !f.Fin:
			l.message = append(l.message, f.Payload...)
		case f.Message != 0:
			what := f.Payload
			if len(l.message) > 0 {
				l.message = append(l.message, f.Payload...)
				what = l.message
			}
			whole++
			if f.Deflated {
				if what, bye = l.inflate(what, f.Message); bye != nil {
					class = closeFailed
					break
				}
			}
			if !c.commanding() {
				message, bye = l.spoken(c, what, f.Message)
				class = closeFailed
			} else {
				replies, message = l.carryOut(c, what, replies)
			}
			if message != nil {
				if used > 0 { // what was before it comes first
					s.tokens++
					message, size, whole = nil, 0, commandsAtOnce
					break
				}
				message.size, message.replies = parsed+size, replies
				break
			}
			l.count.Received++
			l.message = l.message[:0]
		}
		parsed += size
		if parser.State == 0 && size > 0 {
			used = parsed // a message of several frames is done with as a whole
		}
	}
	if message != nil {
		l.post(c, message)
		return
	}
	more := whole == commandsAtOnce || n == len(l.scratch)
	if replies != nil {
		l.queue(c, replies, false)
		l.fill(c)
	}
	l.leaveRest(c, used, n)
	switch {
	case bye != nil:
		l.close(c, class, bye.Code, bye.Reason)
		return
	case replies != nil || c.fed() && l.behind(c):
		if l.flush(c); c.gen != gen {
			return
		}
	}
	if more {
		l.later(c)
	}
}

// inflate is a message of a client as it was.
func (l *loop) inflate(what []byte, op frame.Opcode) ([]byte, *frame.Error) {
	b, err := encode.Inflate(l.inflated[:0], what, l.config.MaxMessage)
	switch {
	case errors.Is(err, encode.ErrInflateBig):
		return nil, &frame.Error{Code: frame.CloseTooBig, Reason: "message is larger than " + strconv.Itoa(l.config.MaxMessage) + " bytes: send smaller ones"}
	case err != nil || op == frame.Text && !utf8.Valid(b):
		return nil, &frame.Error{Code: frame.CloseInvalidData, Reason: "message cannot be uncompressed, or is no text then"}
	}
	l.inflated = b
	return b, nil
}

// spoken is a message of a client of raw frames. Where nobody wants it it is dropped.
func (l *loop) spoken(c *client, what []byte, op frame.Opcode) (*post, *frame.Error) {
	s := c.session
	if l.host.MayPublish(s.grant, c.channel()) != (Refusal{}) {
		return nil, nil
	}
	if !s.mayPost(l.config.UpstreamRate, time.Now()) {
		return nil, errTooFast
	}
	return &post{Upstream: Upstream{Channel: c.channel(), Data: bytes.Clone(what), Text: op == frame.Text}}, nil
}

// behind tells whether there is something to send of a subscription.
func (sub *subscription) behind(l *loop) bool {
	seq, ok := l.reader.Next(sub.subs.ch, l.cursorOf(sub.c, sub))
	return !ok || seq != 0
}

// behind tells whether there is something to send to a client that was not told of it by a channel's news.
func (l *loop) behind(c *client) bool {
	for _, sub := range c.session.subs {
		if sub.behind(l) {
			return true
		}
	}
	return false
}

// ignore throws away what the reader of an event stream sends after its request: there is nothing that it could mean.
func (l *loop) ignore(c *client) {
	for range patience {
		n, errno := l.look(c)
		switch {
		case errno == unix.EAGAIN:
			return
		case errno != 0:
			l.failed(c, "recv", errno)
			return
		case n == 0:
			l.drop(c, "closed")
			return
		}
		c.heard = l.tick
		l.leaveRest(c, n, n)
	}
	l.later(c)
}

// carryOut does what a command asks for, and appends the answer as a frame; or returns a message that is to be published first.
func (l *loop) carryOut(c *client, what, to []byte) ([]byte, *post) {
	m, refusal := parseCommand(what)
	if refusal != (Refusal{}) {
		return appendRefusal(to, m.Ref, refusal), nil
	}
	switch m.Command {
	case "ping":
		b := append(appendRef([]byte(`{"reply":"pong"`), m.Ref), '}')
		return append(frame.AppendHeader(to, frame.Text, len(b)), b...), nil
	case "publish":
		p, refusal := l.commandPublish(c, &m)
		if p == nil {
			to = appendRefusal(to, m.Ref, refusal)
		}
		return to, p
	}
	if refusal := l.host.May(c.session.grant, m.Channel); refusal != (Refusal{}) {
		return appendRefusal(to, m.Ref, refusal), nil
	}
	switch m.Command {
	case "subscribe":
		to = l.commandSubscribe(c, &m, to)
	case "history":
		to = l.commandHistory(c, &m, to)
	case "presence":
		to = appendReply(to, "presence", m.Ref, m.Channel, l.group.present(m.Channel, l.store.Clients(m.Channel)))
	case "unsubscribe":
		for _, sub := range c.session.subs {
			if sub.until == 0 && sub.subs.ch.Name() == m.Channel {
				l.unsubscribe(c, sub)
				break
			}
		}
		to = appendReply(to, "unsubscribed", m.Ref, m.Channel, "")
	}
	return to, nil
}

// parseCommand reads a command. What is refused has a Ref where one could be read.
func parseCommand(what []byte) (m command, refusal Refusal) {
	d := json.NewDecoder(bytes.NewReader(what))
	d.DisallowUnknownFields()
	if err := d.Decode(&m); err != nil {
		return command{}, Refusal{"bad_command", "not a command: " + errorText(err)}
	}
	if _, err := d.Token(); err != io.EOF {
		return command{}, Refusal{"bad_command", "not a command: there is something behind the object"}
	}
	if len(m.Ref) > maxRef || len(m.Ref) > 0 && m.Ref[0] != '"' && m.Ref[0] != '-' && (m.Ref[0] < '0' || m.Ref[0] > '9') {
		return command{}, Refusal{"bad_command", "ref is a number or a string of at most " + strconv.Itoa(maxRef) + " bytes"}
	}
	publish, subscribe, history := m.Command == "publish", m.Command == "subscribe", m.Command == "history"
	switch {
	case !publish && !subscribe && !history && m.Command != "unsubscribe" && m.Command != "presence" && m.Command != "ping":
		return m, Refusal{"unknown_command", "there are subscribe, unsubscribe, history, presence, publish and ping"}
	case !subscribe && (m.LastEventID != "" || m.Since != ""):
		return m, Refusal{"bad_command", "last_event_id and since are for subscribe"}
	case history != (m.Last > 0):
		return m, Refusal{"bad_command", "last, 1 or more, is how many messages history is to bring"}
	case publish != (m.Data != nil || m.Base64 != nil) || m.Data != nil && m.Base64 != nil:
		return m, Refusal{"bad_command", "publish has data, text, or base64"}
	}
	return m, Refusal{}
}

func (l *loop) commandPublish(c *client, m *command) (*post, Refusal) {
	if refusal := l.host.MayPublish(c.session.grant, m.Channel); refusal != (Refusal{}) {
		return nil, refusal
	}
	if !c.session.mayPost(l.config.UpstreamRate, time.Now()) {
		return nil, Refusal{"too_fast", fmt.Sprintf("a client may publish %d messages a second", l.config.UpstreamRate)}
	}
	p := &post{Upstream: Upstream{Channel: m.Channel, Data: m.Base64}, ref: m.Ref}
	if m.Data != nil {
		p.Data, p.Text = []byte(*m.Data), true
	}
	return p, Refusal{}
}

func (l *loop) commandSubscribe(c *client, m *command, to []byte) []byte {
	start, err := StartAt(m.Channel, m.LastEventID, m.Since)
	if err != nil {
		return appendRefusal(to, m.Ref, Refusal{"bad_command", err.Error()})
	}
	if len(c.session.subs) >= l.config.MaxSubscriptions && !l.subscribedTo(c, m.Channel) {
		return appendRefusal(to, m.Ref, Refusal{"too_many_subscriptions",
			fmt.Sprintf("a connection can have %d subscriptions: unsubscribe from others first", l.config.MaxSubscriptions)})
	}
	head := l.store.Head() // before: the client is told of all that comes after it
	sub, complete, err := l.subscribe(c, &start, true)
	if err != nil {
		return appendRefusal(to, m.Ref, Refusal{"unavailable", err.Error()})
	}
	return l.subscribed(to, &start, head, sub, complete, m.Ref)
}

func (l *loop) subscribedTo(c *client, channel string) bool {
	for _, sub := range c.session.subs {
		if sub.until == 0 && sub.subs.ch.Name() == channel {
			return true
		}
	}
	return false
}

// subscribed appends the answer to subscribe. The id is where the subscription begins, which is after the message head if it begins now: who
// comes back with it misses nothing.
func (l *loop) subscribed(to []byte, start *Start, head uint64, sub *subscription, complete bool, ref json.RawMessage) []byte {
	id := encode.ID{Epoch: l.store.Epoch(), Seq: head}
	if start.From.How != msglog.Now || sub.behind(l) {
		id.Seq = l.cursorOf(sub.c, sub) // it has not been sent all that there is
	}
	return appendReply(to, "subscribed", ref, start.Channel, fmt.Sprintf(`,"id":"%s","complete":%t`, id, complete))
}

func (l *loop) commandHistory(c *client, m *command, to []byte) []byte {
	if len(c.session.subs) >= l.config.MaxSubscriptions {
		return appendRefusal(to, m.Ref, Refusal{"too_many_subscriptions", "unsubscribe from others first"})
	}
	ch, now, err := l.reader.Join([]byte(m.Channel))
	if err != nil {
		return appendRefusal(to, m.Ref, Refusal{"unavailable", err.Error()})
	}
	defer l.left(l.subscribersOf(ch))
	cursor, complete := l.reader.Seek(ch, msglog.From{How: msglog.Last, Last: m.Last})
	count, until := 0, cursor
	for until < now {
		seq, ok := l.reader.Next(ch, until)
		if !ok || seq == 0 {
			break
		}
		count++
		until = seq
	}
	if count > 0 {
		if err := l.replay(c, ch, cursor, until); err != nil {
			return appendRefusal(to, m.Ref, Refusal{"unavailable", err.Error()})
		}
	}
	return appendReply(to, "history", m.Ref, m.Channel, fmt.Sprintf(`,"messages":%d,"complete":%t`, count, complete))
}

// StartAt is where a client begins that asks for what is after an id, or since a time ("30s"), or from the last message on ("last"); with neither
// it begins now.
func StartAt(channel, lastEventID, since string) (Start, error) {
	start := Start{Channel: channel}
	switch {
	case lastEventID != "" && since != "":
		return start, errors.New("last_event_id and since: only one of them can say where to begin")
	case lastEventID != "":
		id, err := encode.ParseID(lastEventID)
		if err != nil {
			return start, fmt.Errorf("last_event_id: %w", err)
		}
		start.Epoch, start.From = id.Epoch, msglog.From{How: msglog.After, Seq: id.Seq}
	case since == "last":
		start.From = msglog.From{How: msglog.Last, Last: 1}
	case since != "":
		age, err := time.ParseDuration(since)
		if err != nil || age < 0 {
			return start, errors.New(`since: an age such as 30s or 10m, or "last"`)
		}
		start.From = msglog.From{How: msglog.Since, Age: age}
	}
	return start, nil
}

// appendReply appends a frame with an answer. rest are more members of the object.
func appendReply(to []byte, reply string, ref json.RawMessage, channel, rest string) []byte {
	b := append(make([]byte, 0, 256), `{"reply":"`+reply+`"`...)
	b = appendRef(b, ref)
	b = append(b, `,"channel":"`+channel+`"`+rest+`}`...)
	return append(frame.AppendHeader(to, frame.Text, len(b)), b...)
}

func appendRefusal(to []byte, ref json.RawMessage, r Refusal) []byte {
	b := append(make([]byte, 0, 256), `{"error":"`+r.Code+`"`...)
	b = appendRef(b, ref)
	b = append(b, `,"message":`...)
	b = append(encode.AppendString(b, []byte(r.Sentence)), '}')
	return append(frame.AppendHeader(to, frame.Text, len(b)), b...)
}

func appendRef(b []byte, ref json.RawMessage) []byte {
	if len(ref) == 0 {
		return b
	}
	return append(append(b, `,"ref":`...), ref...)
}

func errorText(err error) string {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return "it is no whole JSON object"
	}
	return err.Error()
}
