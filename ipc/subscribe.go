package ipc

import (
	"errors"
	"maps"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
)

// Limits of one subscriber. A pattern costs every PUBLISH a comparison.
const (
	maxSubscriptions = 10000 // channels
	maxPatterns      = 100
	maxPattern       = 256 // bytes
)

// index knows how many local subscribers a message has. While there are none, it costs PUBLISH one load.
type index struct {
	any      atomic.Int64 // entries in the maps, counted as often as subscribed
	mu       sync.RWMutex
	channels map[string]int // connections, by channel; a shard channel is the channel of its name
	patterns map[string]int
}

func (x *index) add(kind *kind, name string, n int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	m := &x.channels
	if kind.pattern {
		m = &x.patterns
	}
	if *m == nil {
		*m = make(map[string]int)
	}
	if (*m)[name] += n; (*m)[name] == 0 {
		delete(*m, name)
	}
	x.any.Add(int64(n))
}

// receivers counts as Redis does: once for each subscription that matches.
func (x *index) receivers(channel []byte) int {
	if x.any.Load() == 0 {
		return 0
	}
	x.mu.RLock()
	defer x.mu.RUnlock()
	n := x.channels[string(channel)]
	if len(x.patterns) > 0 {
		for p, conns := range x.patterns {
			if Match(p, channel) {
				n += conns
			}
		}
	}
	return n
}

// subscribers is how many subscribe to the channel by its name.
func (x *index) subscribers(channel string) int {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.channels[channel]
}

// names are the channels that are subscribed to by name.
func (x *index) names() []string {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return slices.Collect(maps.Keys(x.channels))
}

func (x *index) patternCount() int {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return len(x.patterns)
}

// kind is a way to subscribe.
type kind struct {
	subscribe, unsubscribe, message string
	pattern                         bool
}

var (
	byName    = &kind{"subscribe", "unsubscribe", "message", false}
	byPattern = &kind{"psubscribe", "punsubscribe", "pmessage", true}
	byShard   = &kind{"ssubscribe", "sunsubscribe", "smessage", false}
)

// subscriptions are those of one connection. Only its serve goroutine changes them, with both conn.mu and mu held, so
// that it may read them without a lock, and follow with one of the two.
type subscriptions struct {
	mu sync.Mutex
	// The value is the newest message at the time of the confirmation: those after it count.
	channels, patterns, shards map[string]uint64
}

func (s *subscriptions) of(k *kind) *map[string]uint64 {
	switch k {
	case byName:
		return &s.channels
	case byPattern:
		return &s.patterns
	}
	return &s.shards
}

func (s *subscriptions) total() int { return len(s.channels) + len(s.patterns) + len(s.shards) }

func (s *subscriptions) counts() (channels, patterns, shards int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.channels), len(s.patterns), len(s.shards)
}

// count is the number that confirmations carry: shard channels are counted apart.
func (s *subscriptions) count(k *kind) int {
	if k == byShard {
		return len(s.shards)
	}
	return len(s.channels) + len(s.patterns)
}

// want reports whether a message on the channel goes to the subscriber.
func (s *subscriptions) want(channel string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.channels[channel]; ok {
		return true
	}
	if _, ok := s.shards[channel]; ok {
		return true
	}
	for p := range s.patterns {
		if Match(p, channel) {
			return true
		}
	}
	return false
}

func (c *conn) subscribed() bool {
	channels, patterns, shards := c.subs.counts()
	return channels+patterns+shards > 0
}

// subscribe carries out SUBSCRIBE, PSUBSCRIBE and SSUBSCRIBE: all names, or none and an error. The caller holds mu,
// until the confirmations are on their way.
func (c *conn) subscribe(k *kind, names [][]byte) {
	set := c.subs.of(k)
	limit := maxSubscriptions
	if k.pattern {
		limit = maxPatterns
	}
	if len(*set)+len(names) > limit {
		c.fail("ERR too many subscriptions on one connection: at most " + strconv.Itoa(maxSubscriptions) + " channels and " + strconv.Itoa(maxPatterns) + " patterns")
		return
	}
	for _, name := range names {
		if !k.pattern && !ValidSubscription(string(name)) {
			c.failChannel(name)
			return
		}
		if k.pattern && len(name) > maxPattern {
			c.fail("ERR pattern too long: at most " + strconv.Itoa(maxPattern) + " bytes")
			return
		}
		if err := c.maySubscribe(k, string(name)); err != nil {
			c.deny(err)
			c.fail(err.Error())
			return
		}
	}
	c.say = true
	if c.tail == nil {
		c.startFollow(c.server.Broker.Tail())
	}
	since := c.server.Broker.Head()
	for _, name := range names {
		name := string(name)
		if _, ok := (*set)[name]; !ok {
			c.subs.mu.Lock()
			if *set == nil {
				*set = make(map[string]uint64)
			}
			(*set)[name] = since
			c.subs.mu.Unlock()
			c.server.subscribers.add(k, name, 1)
		}
		c.out.push(3)
		c.out.bulk(k.subscribe)
		c.out.bulk(name)
		c.out.int(c.subs.count(k))
		c.enough()
	}
}

// unsubscribe carries out UNSUBSCRIBE and its kin; no names are all names. The caller holds mu.
func (c *conn) unsubscribe(k *kind, names [][]byte) {
	c.say = true
	set := c.subs.of(k)
	if len(names) == 0 {
		for name := range *set {
			names = append(names, []byte(name))
		}
		if len(names) == 0 {
			c.out.push(3)
			c.out.bulk(k.unsubscribe)
			c.out.null()
			c.out.int(c.subs.count(k))
		}
	}
	for _, name := range names {
		c.remove(k, string(name))
		c.out.push(3)
		c.out.bulk(k.unsubscribe)
		c.out.bytes(name)
		c.out.int(c.subs.count(k))
		c.enough()
	}
	if c.subs.total() == 0 {
		c.unfollow()
	}
}

func (c *conn) remove(k *kind, name string) {
	set := *c.subs.of(k)
	if _, ok := set[name]; !ok {
		return
	}
	c.subs.mu.Lock()
	delete(set, name)
	c.subs.mu.Unlock()
	c.server.subscribers.add(k, name, -1)
}

// forgetSubscriptions drops them all without a word. The caller holds mu.
func (c *conn) forgetSubscriptions() {
	for _, k := range []*kind{byName, byPattern, byShard} {
		for name := range *c.subs.of(k) {
			c.remove(k, name)
		}
	}
}

// startFollow starts the second goroutine. The caller is serve, and holds mu.
func (c *conn) startFollow(t Tail) {
	c.tail = t
	c.server.running.Add(1) // serve counts as well: stop is still waiting
	go c.follow(t)
}

// unfollow makes follow end. The caller holds mu.
func (c *conn) unfollow() {
	if c.tail != nil {
		c.tail.Close()
		c.tail = nil
	}
}

// follow writes the messages of the log that the connection subscribes to. A subscriber that does not read keeps
// only this goroutine waiting, for as long as it likes: what it loses is its place in the log.
func (c *conn) follow(t Tail) {
	defer c.server.running.Done()
	more, _ := t.(interface {
		TryNext(want func(string) bool) (Message, bool, error)
	})
	var failed error
	for failed == nil {
		m, err := t.Next(c.subs.want)
		c.mu.Lock()
		if c.tail == t && len(c.unsent) > 0 { // nothing can be written behind it: the message is left to the next server
			c.comeToRest()
		}
		if c.tail != t { // unsubscribed, closed, suspended, or unsubscribed and subscribed again
			if c.resting == t {
				if c.at = t.Seen(); err == nil {
					c.at = m.Seq - 1
				}
			}
			c.mu.Unlock()
			return
		}
		buf := getBuffer(smallBuffer)
		out := answers{b: buf.b[:0], resp3: c.out.resp3}
		for ok := true; ok && err == nil; {
			if err = c.mayGoOn(); err != nil {
				break
			}
			c.deliver(&out, m)
			if ok = more != nil && len(out.b) < flushAt; ok {
				m, ok, err = more.TryNext(c.subs.want)
			}
		}
		if err != nil {
			failed = err
			text := "ERR " + err.Error()
			if errors.Is(err, ErrBehind) {
				c.server.count.slow.Add(1)
				c.server.log().Warn("subscriber closed: the log has moved on past it", "pid", c.peer.PID, "uid", c.peer.UID, "name", c.name())
			}
			if _, ok := err.(*deniedError); ok {
				c.deny(err)
				text = err.Error()
			}
			out.error(text)
			c.unfollow()
			c.ending = true
		}
		if len(out.b) > 0 {
			c.write(out.b, false)
		}
		buf.b = out.b
		putBuffer(buf)
		if failed == nil {
			failed = c.broken
		}
		c.mu.Unlock()
	}
	c.sock.SetReadDeadline(longAgo) // serve closes the connection
}

// deliver appends a message once for each subscription that it matches, as Redis does.
func (c *conn) deliver(out *answers, m Message) {
	if since, ok := c.subs.channels[m.Channel]; ok && m.Seq > since {
		c.deliverAs(out, byName, "", m)
	}
	if since, ok := c.subs.shards[m.Channel]; ok && m.Seq > since {
		c.deliverAs(out, byShard, "", m)
	}
	for pattern, since := range c.subs.patterns {
		if m.Seq > since && Match(pattern, m.Channel) {
			c.deliverAs(out, byPattern, pattern, m)
		}
	}
}

func (c *conn) deliverAs(out *answers, k *kind, pattern string, m Message) {
	if k.pattern {
		out.push(4)
		out.bulk(k.message)
		out.bulk(pattern)
	} else {
		out.push(3)
		out.bulk(k.message)
	}
	out.bulk(m.Channel)
	out.bytes(m.Data)
}
