package ipc

import (
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// info is the text of INFO: what the server knows, and between it what the broker does. loading and
// redis_version are there because clients wait for the one (ioredis) and decide by the other.
func (s *Server) info(wanted [][]byte) string {
	st := s.Stats()
	server := Section{"Server", []Field{
		{"redis_version", redisVersion},
		{"redis_mode", "standalone"},
		{"role", "master"},
		{"loading", "0"},
		{"wscast_version", s.Version},
		{"process_id", strconv.Itoa(os.Getpid())},
		{"uptime_in_seconds", strconv.FormatInt(time.Now().Unix()-s.started.Load(), 10)},
	}}
	publishers := Section{"Publishers", []Field{
		{"connected_publishers", strconv.Itoa(st.Publishers)},
		{"local_subscribers", strconv.Itoa(st.Subscribers)},
		{"commands_processed", strconv.FormatUint(st.Commands, 10)},
		{"messages_published", strconv.FormatUint(st.Published, 10)},
		{"messages_published_again", strconv.FormatUint(st.Again, 10)},
		{"error_replies", strconv.FormatUint(st.Errors, 10)},
		{"rejected_connections", strconv.FormatUint(st.Refused, 10)},
		{"slow_connections_closed", strconv.FormatUint(st.Slow, 10)},
		{"refused_by_rules", strconv.FormatUint(st.Denied, 10)},
		{"unfinished_commands_closed", strconv.FormatUint(st.Unfinished, 10)},
		{"held_to_rate", strconv.FormatUint(st.Held, 10)},
		{"unfinished_bytes", strconv.FormatInt(st.Memory, 10)},
		{"refused_for_memory", strconv.FormatUint(st.NoMemory, 10)},
		{"datagrams_received", strconv.FormatUint(st.Datagrams, 10)},
		{"datagrams_dropped", strconv.FormatUint(st.DatagramsDropped, 10)},
		{"max_message_bytes", strconv.Itoa(s.MaxMessage())},
	}}
	sections := []Section{server}
	for _, more := range s.Broker.Info() {
		switch more.Name {
		case server.Name:
			sections[0].Fields = slices.Concat(sections[0].Fields, more.Fields)
		case publishers.Name:
			publishers.Fields = slices.Concat(publishers.Fields, more.Fields)
		default:
			sections = append(sections, more)
		}
	}
	sections = append(sections, publishers)

	var b strings.Builder
	for _, section := range sections {
		if !sectionWanted(wanted, section.Name) {
			continue
		}
		if b.Len() > 0 {
			b.WriteString("\r\n")
		}
		b.WriteString("# " + oneLine(section.Name) + "\r\n")
		for _, f := range section.Fields {
			b.WriteString(oneLine(f.Key) + ":" + oneLine(f.Value) + "\r\n")
		}
	}
	return b.String()
}

func sectionWanted(wanted [][]byte, name string) bool {
	if len(wanted) == 0 {
		return true
	}
	return slices.ContainsFunc(wanted, func(w []byte) bool {
		return strings.EqualFold(string(w), name) || is(w, "ALL") || is(w, "DEFAULT") || is(w, "EVERYTHING")
	})
}
