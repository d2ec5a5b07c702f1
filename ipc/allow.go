package ipc

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
)

// Rule lets some peers publish on some channels, and subscribe to some. What the section [[publish.allow]] of
// wscast.toml(5) is to people, it is to the Server, with numbers for names.
type Rule struct {
	Everyone bool     // whoever can connect; otherwise
	UIDs     []uint32 // these users,
	GIDs     []uint32 // and the members of these groups

	Publish, Subscribe []string // patterns of channels (Match)
}

// SetRules puts rules into force. What none of them allows is refused with -NOPERM, at once and on every connection: one
// that subscribes to what it may not any more is sent the error in place of the next message, and closed. Root is a
// user like any other. Without rules, as at the beginning, everybody may do everything. The Server keeps the slice.
//
// The rules are about messages: whoever can connect may use all other commands.
func (s *Server) SetRules(rules []Rule) {
	if len(rules) == 0 {
		s.rules.Store(nil)
		return
	}
	s.rules.Store(&rules)
}

// isFor reports whether the rule is for a peer with these groups.
func (r *Rule) isFor(uid uint32, gids []uint32) bool {
	return r.Everyone || slices.Contains(r.UIDs, uid) ||
		slices.ContainsFunc(r.GIDs, func(gid uint32) bool { return slices.Contains(gids, gid) })
}

// rulesFor picks the rules for a peer. groups is asked only when there is a rule that it could change something about.
func rulesFor(rules []Rule, uid uint32, groups func() []uint32) (mine []*Rule) {
	var gids []uint32
	for i := range rules {
		r := &rules[i]
		if len(r.GIDs) > 0 && gids == nil {
			gids = groups()
		}
		if r.isFor(uid, gids) {
			mine = append(mine, r)
		}
	}
	return mine
}

func publishAllowed(mine []*Rule, channel []byte) bool {
	for _, r := range mine {
		for _, pattern := range r.Publish {
			if Match(pattern, channel) {
				return true
			}
		}
	}
	return false
}

// deniedError is what no rule allows. Its text is an answer, with its code.
type deniedError struct {
	uid  uint32
	verb string // with its preposition
	name string // of a channel, or a pattern
}

func (e *deniedError) Error() string {
	return fmt.Sprintf("NOPERM user %d may not %s %s: no rule of [[publish.allow]] allows it", e.uid, e.verb, quoteArgument([]byte(e.name)))
}

// rights are what the rules give to one connection. Guarded by conn.mu.
type rights struct {
	rules *[]Rule // from which the rest was found; nil: nothing was yet
	mine  []*Rule

	published  []byte  // the channel last published on, which is allowed
	subscribed *[]Rule // the rules that allow every subscription there is

	told []string // refusals that were logged
}

// use brings the rights up to date with the rules. The groups are those that the peer had when it connected, which
// the kernel has kept, so that they need not be.
func (c *conn) use(rules *[]Rule) *rights {
	r := &c.rights
	if r.rules != rules {
		r.rules, r.published = rules, r.published[:0]
		r.mine = rulesFor(*rules, c.peer.UID, func() []uint32 {
			gids, err := groupsOf(c.raw)
			if err != nil {
				c.server.log().Warn("the groups of a publisher cannot be read: only its first one counts", "cause", err.Error(), "pid", c.peer.PID, "uid", c.peer.UID)
			}
			return append(gids, c.peer.GID)
		})
	}
	return r
}

// mayPublish costs a load where there are no rules, and a comparison for the channel of the message before.
func (c *conn) mayPublish(channel []byte) error {
	rules := c.server.rules.Load()
	if rules == nil || c.rights.rules == rules && bytes.Equal(channel, c.rights.published) {
		return nil
	}
	r := c.use(rules)
	if !publishAllowed(r.mine, channel) {
		return &deniedError{c.peer.UID, "publish on", string(channel)}
	}
	r.published = append(r.published[:0], channel...)
	return nil
}

// maySubscribe is asked before a subscription is made.
func (c *conn) maySubscribe(k *kind, name string) error {
	rules := c.server.rules.Load()
	if rules == nil {
		return nil
	}
	for _, r := range c.use(rules).mine {
		for _, pattern := range r.Subscribe {
			if k.pattern && covers(pattern, name) || !k.pattern && Match(pattern, name) {
				return nil
			}
		}
	}
	return &deniedError{c.peer.UID, "subscribe to", name}
}

// mayGoOn is asked before a message is delivered: the rules may be others than those under which the connection has subscribed.
func (c *conn) mayGoOn() error {
	rules := c.server.rules.Load()
	if rules == nil || rules == c.rights.subscribed {
		return nil
	}
	for _, k := range []*kind{byName, byPattern, byShard} {
		for name := range *c.subs.of(k) {
			if err := c.maySubscribe(k, name); err != nil {
				return err
			}
		}
	}
	c.rights.subscribed = rules
	return nil
}

// covers reports whether every name that pattern matches is matched by allowed as well, as far as that can be seen: they
// are the same, or allowed is a plain beginning and a *, and pattern has the same beginning.
func covers(allowed, pattern string) bool {
	if allowed == pattern {
		return true
	}
	beginning, ok := strings.CutSuffix(allowed, "*")
	return ok && !strings.ContainsAny(beginning, `*?[\`) && strings.HasPrefix(pattern, beginning)
}

// deny tells the journal of a refusal, once for each connection and channel. The answer is the caller's.
func (c *conn) deny(denied error) {
	c.server.count.denied.Add(1)
	text := denied.Error()
	if slices.Contains(c.rights.told, text) {
		return
	}
	tell := len(c.rights.told) < maxTold
	if tell {
		c.rights.told = append(c.rights.told, text)
	}
	c.server.refusals.log(c.server, c.peer, c.name(), text, tell)
}

// Of refusals, at most so many are logged
const (
	maxTold     = 16 // of one connection
	userEvery   = 10 // of one user in each logEvery
	serverEvery = 60 // of all of them in the same time
)

// refusals bounds what is logged of them: a user who connects again for each of them fills the journal otherwise.
type refusals struct {
	mu     sync.Mutex
	since  time.Time
	logged int
	users  map[uint32]int // of logged, by user
	silent int            // not logged
}

// log logs a refusal, unless there are too many, or it is not to be told.
func (r *refusals) log(s *Server, peer Peer, name, text string, tell bool) {
	r.mu.Lock()
	silent := 0
	if now := time.Now(); now.Sub(r.since) >= logEvery {
		silent = r.silent
		r.since, r.logged, r.users, r.silent = now, 0, make(map[uint32]int), 0
	}
	tell = tell && r.logged < serverEvery && r.users[peer.UID] < userEvery
	if tell {
		r.logged++
		r.users[peer.UID]++
	} else {
		r.silent++
	}
	r.mu.Unlock()
	tellSilent(s, silent)
	if tell {
		s.log().Warn("a publisher was refused what it asked for", "cause", strings.TrimPrefix(text, "NOPERM "), "pid", peer.PID, "uid", peer.UID, "gid", peer.GID, "name", name)
	}
}

// end logs how many were not.
func (r *refusals) end(s *Server) {
	r.mu.Lock()
	silent := r.silent
	r.silent = 0
	r.mu.Unlock()
	tellSilent(s, silent)
}

func tellSilent(s *Server, n int) {
	if n > 0 {
		s.log().Warn("publishers were refused what they asked for, more often than is logged", "count", n)
	}
}
