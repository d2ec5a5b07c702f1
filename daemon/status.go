package daemon

import (
	"fmt"
	"strconv"
	"time"

	"wscast/daemon/loop"
	"wscast/daemon/msglog"
	"wscast/ipc"
)

// rates are what was counted by a moment, and how fast it grew before.
type rates struct {
	at                   time.Time
	messages, deliveries uint64
	perSecond            struct{ messages, deliveries float64 }
}

// measure brings the rates up to date if they are old enough.
func (d *Daemon) measure(messages, deliveries uint64) *rates {
	old := d.rates.Load()
	now := time.Now()
	elapsed := now.Sub(old.at)
	if elapsed < statusEvery/2 {
		return old
	}
	r := &rates{at: now, messages: messages, deliveries: deliveries}
	r.perSecond.messages = float64(messages-old.messages) / elapsed.Seconds()
	r.perSecond.deliveries = float64(deliveries-old.deliveries) / elapsed.Seconds()
	if !d.rates.CompareAndSwap(old, r) {
		return d.rates.Load() // somebody else has just done it
	}
	return r
}

// status is the line that systemctl status shows.
func (d *Daemon) status() string {
	all, s := d.store.Usage(), d.loops.Stats()
	r := d.measure(all[0].Published, s.Deliveries)
	channels := 0
	for _, u := range all {
		channels += u.Channels
	}
	return fmt.Sprintf("%d clients, %d channels, %.0f messages/s in, %.0f messages/s out",
		s.Clients-s.Opening-s.Closing, channels, r.perSecond.messages, r.perSecond.deliveries) + d.survival.status()
}

// Info implements ipc.Broker: what INFO and wscast status say.
func (d *Daemon) Info() []ipc.Section {
	all, s := d.store.Usage(), d.loops.Stats()
	u := &all[0]
	r := d.measure(u.Published, s.Deliveries)
	stats := ipc.Section{Name: "Stats", Fields: []ipc.Field{
		{Key: "messages_per_second", Value: rate(r.perSecond.messages)},
		{Key: "deliveries_per_second", Value: rate(r.perSecond.deliveries)},
		{Key: "messages", Value: count(u.Published)},
		{Key: "message_bytes", Value: count(u.PublishedBytes)},
		{Key: "deliveries", Value: count(s.Deliveries)},
		{Key: "sent_bytes", Value: count(s.Sent)},
		{Key: "frames_received", Value: count(s.Received)},
		{Key: "commands_refused", Value: count(s.Rejected)},
		{Key: "messages_from_clients", Value: count(s.Published)},
		{Key: "pings", Value: count(s.Pings)},
		{Key: "handshakes", Value: count(s.Handshakes)},
		{Key: "requests_refused", Value: count(s.Refused)},
		{Key: "requests_over_limit", Value: count(s.Turned)},
		{Key: "timed_out", Value: count(s.TimedOut)},
		{Key: "slow", Value: count(s.Slow)},
	}}
	for i, n := range s.Closed {
		stats.Fields = append(stats.Fields, ipc.Field{Key: "closed_" + loop.CloseClasses[i], Value: count(n)})
	}
	log := ipc.Section{Name: "Log", Fields: []ipc.Field{
		{Key: "log_path", Value: place(u.Path)},
		{Key: "epoch", Value: fmt.Sprintf("%016x", u.Epoch)},
		{Key: "head", Value: count(u.Head)},
		{Key: "messages_kept", Value: count(u.Messages)},
		{Key: "messages_limit", Value: count(u.Entries)},
		{Key: "bytes_kept", Value: count(u.Bytes)},
		{Key: "bytes_limit", Value: count(u.Size)},
		{Key: "oldest_age_seconds", Value: oldest(u)},
		{Key: "channels", Value: strconv.Itoa(u.Channels)},
		{Key: "channels_limit", Value: strconv.Itoa(u.Places)},
	}}
	for i := range all[1:] {
		log.Fields = append(log.Fields, ipc.Field{Key: fmt.Sprint("log_own_", i), Value: ownLog(&all[i+1])})
	}
	return []ipc.Section{
		d.survival.info(&s),
		{Name: "Clients", Fields: []ipc.Field{
			{Key: "connected_clients", Value: count(s.Clients - s.Opening - s.Closing)},
			{Key: "opening", Value: count(s.Opening)},
			{Key: "closing", Value: count(s.Closing)},
			{Key: "blocked", Value: count(s.Blocked)},
			{Key: "loops", Value: strconv.Itoa(d.loops.Len())},
		}},
		stats,
		log,
	}
}

// oldest is the age of a log's oldest message in seconds.
func oldest(u *msglog.Usage) string {
	age := time.Duration(0)
	if !u.Oldest.IsZero() {
		age = max(0, time.Since(u.Oldest))
	}
	return strconv.FormatFloat(age.Seconds(), 'f', 3, 64)
}

// ownLog is the line of a log of some channels. The pattern comes last, since it can have a comma in it.
func ownLog(u *msglog.Usage) string {
	return fmt.Sprintf("messages_kept=%d,messages_limit=%d,bytes_kept=%d,bytes_limit=%d,oldest_age_seconds=%s,channels=%d,channels_limit=%d,log_path=%s,match=%s",
		u.Messages, u.Entries, u.Bytes, u.Size, oldest(u), u.Channels, u.Places, place(u.Path), u.Match)
}

func count(n uint64) string { return strconv.FormatUint(n, 10) }
func rate(r float64) string { return strconv.FormatFloat(r, 'f', 1, 64) }
