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
	"wscast/daemon/survive"
)

// Commands come from clients that speak wscast.v1.json: one JSON object in each text message, doc/protocol.txt section 6.9. A command
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

// mostHistory is how many messages a command brings at most: others wait while they are counted.
const mostHistory = 10_000

// maxRef is the longest Ref, in bytes.
const maxRef = 64

// mostReplies is the size of answers, in bytes, from which on no further command is carried out before they are sent. The largest one is that to
// presence: with mostIdentityBytes that JSON escapes, each in six bytes, there is room for it in what is kept for an heir (mostOverflow).
const mostReplies = 8 << 10

// commands reads what a client sends that does more than to listen. Nothing is read before it has got all that is pending for it: who does
// not read its answers waits, and what it has sent waits in the socket.
func (l *loop) commands(c *client) {
	s := c.session
	s.unread = c.block != 0 || s.piece != nil
	switch {
	case s.unread, s.waiting && s.result == nil:
		c.heard = l.tick
		c.flags &^= pinged
		return
	case l.group.adopting.Load():
		// A channel that is made now could take the number of one whose clients are still to be taken over.
		l.deferred = append(l.deferred, waiter{c.slot, c.gen})
		return
	case s.result != nil:
		l.answer(c, s.result)
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
	c.heard = l.tick
	c.flags &^= pinged
	var replies, pongs []byte
	var late *frame.Frame // a ping behind so many others that only the last one is answered
	var message *post
	class, bye := 0, (*frame.Error)(nil)
	parser, used, parsed, whole, frames := c.in, 0, 0, 0, 0
	l.message = l.message[:0]
	for parsed < n && bye == nil && message == nil && whole < commandsAtOnce && len(replies) < mostReplies {
		f, size, err := l.parse(c, &parser, l.scratch[parsed:n])
		if err != nil {
			class, bye = closeFailed, err
			break
		}
		if size == 0 {
			break
		}
		if end := c.received + uint64(parsed+size); end > s.framed {
			s.framed = end
			frames++
		}
		switch {
		case f.Op == frame.Ping:
			if end := c.received + uint64(parsed+size); end > s.ponged {
				s.ponged = end
				if len(pongs) < mostPongs {
					pongs = frame.AppendPong(pongs, f.Payload)
				} else {
					late = &f
				}
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
				class = closeTooFast
			} else {
				replies, message = l.carryOut(c, what, replies)
			}
			if message != nil {
				if used > 0 { // what was before it comes first
					s.tokens++
					message, size, whole = nil, 0, commandsAtOnce
					break
				}
				message.size = parsed + size
				break
			}
			if s.piece != nil {
				whole = commandsAtOnce // it comes right behind the answer
			}
			l.count.Received++
			l.message = l.message[:0]
		}
		parsed += size
		if parser.State == 0 && size > 0 {
			used = parsed // a message of several frames is done with as a whole
		}
	}
	if class != closeFailed && l.crowded(c, frames) {
		class, bye, message = closeTooFast, errTooManyFrames, nil
	}
	if late != nil {
		pongs = frame.AppendPong(pongs, late.Payload)
	}
	if message != nil {
		message.replies = pongs // there are no others: it is the first one
		l.post(c, message)
		return
	}
	if n == len(l.scratch) && used == 0 && bye == nil {
		class, bye = closeFailed, &frame.Error{Code: frame.CloseTooBig, Reason: "message has too many frames"}
	}
	more := whole >= commandsAtOnce || len(replies) >= mostReplies || n == len(l.scratch)
	replies = append(replies, pongs...)
	if replies != nil && !l.prepare(c, replies) {
		return
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

// prepare puts answers where an heir finds them. A client for whose answers there is no room is closed; that its commands are carried out is not in
// its record then.
func (l *loop) prepare(c *client, replies []byte) bool {
	l.queue(c, replies, false)
	if l.fill(c) {
		return true
	}
	c.pending = nil
	l.close(c, closeStopped, frame.CloseTryAgainLater, survive.ErrFull.Error())
	return false
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
		return l.refuseCommand(to, m.Ref, refusal), nil
	}
	switch m.Command {
	case "ping":
		b := append(appendRef([]byte(`{"reply":"pong"`), m.Ref), '}')
		return append(frame.AppendHeader(to, frame.Text, len(b)), b...), nil
	case "publish":
		p, refusal := l.commandPublish(c, &m)
		if p == nil {
			to = l.refuseCommand(to, m.Ref, refusal)
		}
		return to, p
	}
	if refusal := l.host.May(c.session.grant, m.Channel); refusal != (Refusal{}) && !(m.Command == "unsubscribe" && l.subscribedTo(c, m.Channel)) {
		return l.refuseCommand(to, m.Ref, refusal), nil
	}
	switch m.Command {
	case "subscribe":
		to = l.commandSubscribe(c, &m, to)
	case "history":
		to = l.commandHistory(c, &m, to)
	case "presence":
		to = appendReply(to, "presence", m.Ref, m.Channel, l.group.presence.present(m.Channel, l.store.Clients(m.Channel)))
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
		return l.refuseCommand(to, m.Ref, Refusal{"bad_command", err.Error()})
	}
	if len(c.session.subs) >= l.config.MaxSubscriptions && !l.subscribedTo(c, m.Channel) {
		return l.refuseCommand(to, m.Ref, Refusal{"too_many_subscriptions",
			fmt.Sprintf("a connection can have %d subscriptions: unsubscribe from others first", l.config.MaxSubscriptions)})
	}
	head := l.store.Linked() // before: the client is told of all that comes after it
	sub, complete, err := l.subscribe(c, &start, true, head)
	if err != nil {
		return l.refuseCommand(to, m.Ref, Refusal{"unavailable", err.Error()})
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
		id.Seq = l.reader.Seen(sub.subs.ch, l.cursorOf(sub.c, sub)) // it has not been sent all that there is
	}
	return appendReply(to, "subscribed", ref, start.Channel, fmt.Sprintf(`,"id":"%s","complete":%t`, id, complete))
}

func (l *loop) commandHistory(c *client, m *command, to []byte) []byte {
	if len(c.session.subs) >= l.config.MaxSubscriptions {
		return l.refuseCommand(to, m.Ref, Refusal{"too_many_subscriptions", "unsubscribe from others first"})
	}
	ch, _, err := l.reader.Join([]byte(m.Channel))
	if err != nil {
		return l.refuseCommand(to, m.Ref, Refusal{"unavailable", err.Error()})
	}
	defer l.left(l.subscribersOf(ch))
	last := min(m.Last, mostHistory)
	cursor, complete := l.reader.Seek(ch, msglog.From{How: msglog.Last, Last: last})
	count, until := 0, cursor
	for count < last {
		seq, ok := l.reader.Next(ch, until)
		if !ok || seq == 0 {
			break
		}
		count++
		until = seq
	}
	complete = complete && (m.Last == last || count < last)
	if count > 0 {
		if err := l.replay(c, ch, cursor, until); err != nil {
			return l.refuseCommand(to, m.Ref, Refusal{"unavailable", err.Error()})
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

// mostSentence is how many bytes of what is wrong are said: it can have a piece of the command in it.
const mostSentence = 300

// refuseCommand appends the answer to a command that is not carried out.
func (l *loop) refuseCommand(to []byte, ref json.RawMessage, r Refusal) []byte {
	l.count.Rejected++
	return appendRefusal(to, ref, r)
}

func appendRefusal(to []byte, ref json.RawMessage, r Refusal) []byte {
	b := append(make([]byte, 0, 256), `{"error":"`+r.Code+`"`...)
	b = appendRef(b, ref)
	b = append(b, `,"message":`...)
	sentence := r.Sentence
	if len(sentence) > mostSentence {
		sentence = sentence[:mostSentence] + "..."
	}
	b = append(encode.AppendString(b, []byte(sentence)), '}')
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
