package daemon

import (
	"encoding/base64"
	"fmt"
	"time"

	"wscast/daemon/encode"
	"wscast/daemon/frame"
	"wscast/daemon/loop"
	"wscast/ipc"
)

// What clients publish, where [[channel]] has upstream, goes to the clients of the channel as anything else that is published there, or to local
// processes in a channel of their own, where they are told whom it is from; or both.

// The values of [[channel]] upstream.
const (
	upstreamOff     = "off"
	upstreamLocal   = "local"
	upstreamClients = "clients"
	upstreamBoth    = "both"
)

// MayPublish implements loop.Handshaker.
func (h *handshaker) MayPublish(g loop.Grant, channel string) loop.Refusal {
	s := h.settings.Load()
	switch {
	case !ipc.ValidChannel(channel):
		return badChannel
	case s.upstream(channel) == upstreamOff:
		return loop.Refusal{Code: "not_allowed", Sentence: "clients may not publish to " + channel + ": upstream of [[channel]] is off"}
	}
	return s.auth.may(g, mayPublish, channel)
}

// Publish implements loop.Handshaker.
func (h *handshaker) Publish(u *loop.Upstream) (int, loop.Refusal) { return h.append(u) }

// upstream appends what a client sends.
func (d *Daemon) upstream(u *loop.Upstream) (clients int, refusal loop.Refusal) {
	c := d.config.Load()
	to := c.upstream(u.Channel)
	if to == upstreamOff { // since a reload
		return 0, loop.Refusal{Code: "not_allowed", Sentence: "clients may not publish to " + u.Channel}
	}
	op := frame.Binary
	if u.Text {
		op = frame.Text
	}
	switch frames := c.frames(u.Channel); {
	case frames == framesBinary:
		op = frame.Binary
	case frames == framesText && !u.Text:
		return 0, loop.Refusal{Code: "not_text", Sentence: "the channel is one of text messages"}
	}
	defer d.store.Flush()
	if to != upstreamClients {
		name := ipc.UpstreamPrefix + u.Channel
		if _, _, err := d.store.Put([]byte(name), upstreamEnvelope(u), u.Once, frame.Text); err != nil {
			return 0, unavailable(err)
		}
	}
	if to != upstreamLocal {
		var err error
		if clients, _, err = d.store.Put([]byte(u.Channel), u.Data, u.Once, op); err != nil {
			return 0, unavailable(err)
		}
	}
	return clients, loop.Refusal{}
}

func unavailable(err error) loop.Refusal {
	return loop.Refusal{Code: "unavailable", Sentence: err.Error()}
}

// upstreamEnvelope is what local processes get: whom it is from, when, and what.
func upstreamEnvelope(u *loop.Upstream) []byte {
	b := fmt.Appendf(nil, `{"channel":"%s","identity":`, u.Channel)
	if u.Grant == nil || u.Grant.Identity() == "" {
		b = append(b, "null"...)
	} else {
		b = encode.AppendString(b, []byte(u.Grant.Identity()))
	}
	b = fmt.Appendf(b, `,"time":%d`, time.Now().UnixMilli())
	if u.Text {
		b = encode.AppendString(append(b, `,"data":`...), u.Data)
	} else {
		b = append(base64.StdEncoding.AppendEncode(append(b, `,"base64":"`...), u.Data), '"')
	}
	return append(b, '}')
}

// upstream is where what clients publish to a channel goes: the first section that matches it says so.
func (c *Config) upstream(channel string) string {
	for _, section := range c.Channel {
		if ipc.Match(section.Match, channel) {
			if section.Upstream != "" {
				return section.Upstream
			}
			break
		}
	}
	return upstreamOff
}

// ForDemo lets visitors of the demo page talk to each other, in one channel; a section that matches it and was there before goes first.
func (c *Config) ForDemo() {
	c.Channel = append(c.Channel, ChannelConfig{Match: "demo/chat", Upstream: upstreamBoth})
}

func (c *Config) anyUpstream() bool {
	for _, section := range c.Channel {
		if section.Upstream != "" && section.Upstream != upstreamOff {
			return true
		}
	}
	return false
}
