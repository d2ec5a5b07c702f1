package ipc

import (
	"bytes"
	"slices"
	"strconv"
	"strings"
)

// command is one command of the publish socket. Its handler answers, once.
type command struct {
	name    string
	arity   int // as COMMAND says it: with the name; negative: at least so many
	group   string
	since   string // the Redis version that brought it
	summary string
	always  bool // a RESP2 subscriber may use it as well
	run     func(c *conn, args [][]byte)
}

// redisVersion is the version whose commands these are; clients decide by it what they may use.
const redisVersion = "7.2.0"

// commands are in the order of COMMAND. (Filled by init: COMMAND's handler reads it.)
var commands []*command

var commandsByName = make(map[string]*command)

func init() {
	commands = []*command{
		{"publish", -3, "pubsub", "2.0.0", "Publishes a message and answers the number of its receivers.", false, runPublish},
		{"spublish", -3, "pubsub", "7.0.0", "The same as PUBLISH: a shard channel is the channel of its name.", false, runPublish},
		{"subscribe", -2, "pubsub", "2.0.0", "Receives what is published on channels.", true, func(c *conn, args [][]byte) { c.subscribe(byName, args[1:]) }},
		{"psubscribe", -2, "pubsub", "2.0.0", "Receives what is published on channels that match patterns.", true, func(c *conn, args [][]byte) { c.subscribe(byPattern, args[1:]) }},
		{"ssubscribe", -2, "pubsub", "7.0.0", "Receives what is published on shard channels.", true, func(c *conn, args [][]byte) { c.subscribe(byShard, args[1:]) }},
		{"unsubscribe", -1, "pubsub", "2.0.0", "Ends subscriptions to channels, or all.", true, func(c *conn, args [][]byte) { c.unsubscribe(byName, args[1:]) }},
		{"punsubscribe", -1, "pubsub", "2.0.0", "Ends subscriptions to patterns, or all.", true, func(c *conn, args [][]byte) { c.unsubscribe(byPattern, args[1:]) }},
		{"sunsubscribe", -1, "pubsub", "7.0.0", "Ends subscriptions to shard channels, or all.", true, func(c *conn, args [][]byte) { c.unsubscribe(byShard, args[1:]) }},
		{"pubsub", -2, "pubsub", "2.8.0", "Tells of channels, their subscribers and patterns.", false, runPubsub},
		{"ping", -1, "connection", "1.0.0", "Answers PONG, or its argument.", true, runPing},
		{"echo", 2, "connection", "1.0.0", "Answers its argument.", false, func(c *conn, args [][]byte) { c.out.bytes(args[1]) }},
		{"hello", -1, "connection", "6.0.0", "Chooses RESP2 or RESP3 and tells of the server.", false, runHello},
		{"auth", -2, "connection", "1.0.0", "Accepted and without effect: the socket's permissions decide who may publish.", false, runAuth},
		{"select", 2, "connection", "1.0.0", "Accepts database 0.", false, runSelect},
		{"client", -2, "connection", "2.4.0", "Tells of connections, and names this one.", false, runClient},
		{"reset", 1, "connection", "6.2.0", "Makes the connection as it was at the beginning.", true, runReset},
		{"quit", -1, "connection", "1.0.0", "Closes the connection.", true, func(c *conn, _ [][]byte) { c.out.ok(); c.ending = true }},
		{"command", -1, "server", "2.8.13", "Tells of the commands.", false, runCommand},
		{"config", -2, "server", "2.0.0", "GET answers the little that clients ask for: wscastd is configured by its file.", false, runConfig},
		{"info", -1, "server", "1.0.0", "Tells of the server, its clients and its log.", false, func(c *conn, args [][]byte) { c.out.verbatim(c.server.info(args[1:])) }},
	}
	for _, cmd := range commands {
		commandsByName[cmd.name] = cmd
	}
}

// lookup finds a command by its name in any case, without allocating.
func lookup(name []byte) *command {
	var lower [16]byte
	if len(name) > len(lower) {
		return nil
	}
	return commandsByName[string(toLower(lower[:0], name))]
}

func toLower(to, s []byte) []byte {
	for _, c := range s {
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		to = append(to, c)
	}
	return to
}

// execute answers one command. The caller holds mu.
func (c *conn) execute(args [][]byte) {
	c.counted.commands++
	c.begin()
	mark := len(c.out.b)
	cmd := lookup(args[0])
	switch {
	case cmd == nil:
		c.failUnknown(args)
	case len(args) != cmd.arity && (cmd.arity >= 0 || len(args) < -cmd.arity):
		c.failArity(cmd.name, false)
	case !cmd.always && !c.out.resp3 && c.subs.total() > 0:
		c.fail("ERR Can't execute '" + cmd.name + "': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / RESET are allowed in this context")
	default:
		if c.last.Load() != cmd {
			c.tell() // another command may take its time
			c.last.Store(cmd)
		}
		cmd.run(c, args)
	}
	c.finish(mark)
}

func (c *conn) failUnknown(args [][]byte) {
	name := string(args[0])
	if n := strings.ToLower(name); n == "post" || n == "host:" {
		// Somebody's browser or proxy has been pointed at this socket: the body could hold commands.
		c.fail("ERR Protocol error: this is HTTP: WebSocket clients connect elsewhere")
		c.ending = true
		return
	}
	c.fail("ERR unknown command " + quoteArgument(args[0]) + ": wscast publishes; COMMAND LIST tells what there is")
}

func (c *conn) failArity(name string, words bool) {
	text := "ERR wrong number of arguments for '" + name + "' command"
	if words {
		text += ": quote a message that has spaces"
	}
	c.fail(text)
}

func (c *conn) failSubcommand(args [][]byte) {
	c.fail("ERR unknown subcommand " + quoteArgument(args[1]) + " of " + strings.ToUpper(string(args[0])))
}

func (c *conn) failChannel(name []byte) {
	c.fail("ERR bad channel " + quoteArgument(name) + ": a channel is 1 to 128 letters, digits and . _ - : /")
}

const syntaxError = "ERR syntax error"

// is reports whether an argument is the word, which is in upper case.
func is(arg []byte, word string) bool {
	return len(arg) == len(word) && strings.EqualFold(string(arg), word)
}

func runPublish(c *conn, args [][]byte) {
	channel, message := args[1], args[2]
	c.hold()
	var id []byte
	if len(args) > 3 {
		if len(args) != 5 || !is(args[3], "ID") {
			c.failArity(c.last.Load().name, true)
			return
		}
		if id = args[4]; len(id) == 0 || len(id) > MaxID {
			c.fail("ERR bad id " + quoteArgument(id) + ": an id is 1 to " + strconv.Itoa(MaxID) + " bytes")
			return
		}
	}
	if !ValidChannel(channel) {
		c.failChannel(channel)
		return
	}
	if limit := c.server.MaxMessage(); len(message) > limit {
		c.fail((&skippedError{size: len(message), limit: limit, argument: true}).Error())
		return
	}
	if err := c.mayPublish(channel); err != nil {
		c.deny(err)
		c.fail(err.Error())
		return
	}
	clients, again, err := c.server.Broker.Publish(channel, message, id)
	if err != nil {
		c.fail("ERR " + err.Error())
		return
	}
	if again {
		c.counted.again++
	} else {
		c.counted.published++
		c.gather(len(message))
	}
	c.out.int(clients + c.server.subscribers.receivers(channel))
}

func runPubsub(c *conn, args [][]byte) {
	sub := strings.ToUpper(string(args[1]))
	switch {
	case (sub == "CHANNELS" || sub == "SHARDCHANNELS") && len(args) <= 3:
		names := c.server.channels()
		if len(args) == 3 {
			pattern := string(args[2])
			names = slices.DeleteFunc(names, func(name string) bool { return !Match(pattern, name) })
		}
		c.out.array(len(names))
		for _, name := range names {
			c.out.bulk(name)
			c.enough()
		}
	case sub == "NUMSUB" || sub == "SHARDNUMSUB":
		c.out.array(2 * (len(args) - 2))
		for _, arg := range args[2:] {
			name := string(arg)
			c.out.bulk(name)
			c.out.int(c.server.Broker.Clients(name) + c.server.subscribers.subscribers(name))
			c.enough()
		}
	case sub == "NUMPAT" && len(args) == 2:
		c.out.int(c.server.subscribers.patternCount())
	case sub == "NUMPAT" || sub == "CHANNELS" || sub == "SHARDCHANNELS":
		c.failArity("pubsub|"+strings.ToLower(sub), false)
	default:
		c.failSubcommand(args)
	}
}

// channels are those with a WebSocket client or a local subscriber, sorted.
func (s *Server) channels() []string {
	names := s.Broker.Channels()
	names = append(names[:len(names):len(names)], s.subscribers.names()...)
	slices.Sort(names)
	return slices.Compact(names)
}

func runPing(c *conn, args [][]byte) {
	switch {
	case len(args) > 2:
		c.failArity("ping", false)
	case !c.out.resp3 && c.subs.total() > 0:
		c.out.array(2)
		c.out.bulk("pong")
		if len(args) == 2 {
			c.out.bytes(args[1])
		} else {
			c.out.bulk("")
		}
	case len(args) == 2:
		c.out.bytes(args[1])
	default:
		c.out.simple("PONG")
	}
}

func runHello(c *conn, args [][]byte) {
	resp3 := c.out.resp3
	if len(args) > 1 {
		version, err := strconv.Atoi(string(args[1]))
		if err != nil {
			c.fail("ERR Protocol version is not an integer or out of range")
			return
		}
		if version != 2 && version != 3 {
			c.fail("NOPROTO unsupported protocol version")
			return
		}
		resp3 = version == 3
	}
	name, named := "", false
	for i := 2; i < len(args); {
		switch left := len(args) - i - 1; {
		case is(args[i], "AUTH") && left >= 2:
			i += 3
		case is(args[i], "SETNAME") && left >= 1:
			name, named = string(args[i+1]), true
			i += 2
		default:
			c.fail("ERR Syntax error in HELLO option " + quoteArgument(args[i]))
			return
		}
	}
	if named && !c.rename(name) {
		return
	}
	c.out.resp3 = resp3
	c.out.mapping(7)
	c.out.pair("server", "wscast")
	c.out.pair("version", redisVersion)
	c.out.bulk("proto")
	if resp3 {
		c.out.int(3)
	} else {
		c.out.int(2)
	}
	c.out.bulk("id")
	c.out.int(int(c.id))
	c.out.pair("mode", "standalone")
	c.out.pair("role", "master")
	c.out.bulk("modules")
	c.out.array(0)
}

func runAuth(c *conn, args [][]byte) {
	if len(args) > 3 {
		c.fail(syntaxError)
		return
	}
	c.out.ok()
}

func runSelect(c *conn, args [][]byte) {
	switch n, err := strconv.Atoi(string(args[1])); {
	case err != nil:
		c.fail("ERR value is not an integer or out of range")
	case n != 0:
		c.fail("ERR DB index is out of range: there is only database 0")
	default:
		c.out.ok()
	}
}

func runReset(c *conn, _ [][]byte) {
	c.forgetSubscriptions()
	c.unfollow()
	c.out.resp3, c.quiet, c.skip, c.track = false, false, 0, ""
	c.about.mu.Lock()
	c.about.name = ""
	c.about.mu.Unlock()
	c.out.simple("RESET")
}

// configGet is what redis-benchmark asks for before it begins.
var configGet = []Field{{"appendonly", "no"}, {"databases", "1"}, {"save", ""}}

func runConfig(c *conn, args [][]byte) {
	switch {
	case is(args[1], "GET") && len(args) > 2:
		var found []Field
		for _, f := range configGet {
			if slices.ContainsFunc(args[2:], func(p []byte) bool { return Match(strings.ToLower(string(p)), f.Key) }) {
				found = append(found, f)
			}
		}
		c.out.mapping(len(found))
		for _, f := range found {
			c.out.pair(f.Key, f.Value)
		}
	case is(args[1], "GET"):
		c.failArity("config|get", false)
	default:
		c.fail("ERR CONFIG " + quoteArgument(args[1]) + " is not there: wscastd is configured by its file, and reloads it on SIGHUP")
	}
}

func runCommand(c *conn, args [][]byte) {
	if len(args) == 1 {
		c.out.array(len(commands))
		for _, cmd := range commands {
			c.out.command(cmd)
		}
		return
	}
	names := args[2:]
	switch {
	case is(args[1], "COUNT") && len(names) == 0:
		c.out.int(len(commands))
	case is(args[1], "LIST") && len(names) == 0:
		c.out.array(len(commands))
		for _, cmd := range commands {
			c.out.bulk(cmd.name)
		}
	case is(args[1], "INFO"):
		if len(names) == 0 {
			runCommand(c, args[:1])
			return
		}
		c.out.array(len(names))
		for _, name := range names {
			if cmd := lookup(name); cmd != nil {
				c.out.command(cmd)
			} else {
				c.out.nullArray()
			}
			c.enough()
		}
	case is(args[1], "DOCS"):
		docs := commands
		if len(names) > 0 {
			docs = nil
			for _, name := range names {
				if cmd := lookup(name); cmd != nil && !slices.Contains(docs, cmd) {
					docs = append(docs, cmd)
				}
			}
		}
		c.out.mapping(len(docs))
		for _, cmd := range docs {
			c.out.bulk(cmd.name)
			c.out.mapping(3)
			c.out.pair("summary", cmd.summary)
			c.out.pair("since", cmd.since)
			c.out.pair("group", cmd.group)
		}
	case is(args[1], "GETKEYS") || is(args[1], "GETKEYSANDFLAGS"):
		c.fail("ERR The command has no key arguments")
	case is(args[1], "COUNT") || is(args[1], "LIST"):
		c.failArity("command|"+strings.ToLower(string(args[1])), false)
	default:
		c.failSubcommand(args)
	}
}

// command writes an entry of COMMAND: name, arity, flags, first, last and step of the keys (none), ACL
// categories, tips, key specifications, subcommands.
func (a *answers) command(cmd *command) {
	a.array(10)
	a.bulk(cmd.name)
	a.int(cmd.arity)
	flags := []string{"loading", "stale", "fast"}
	category := "@" + cmd.group
	if cmd.group == "pubsub" {
		flags[0] = "pubsub"
	} else if cmd.group == "server" {
		category = "@slow"
	}
	a.set(len(flags))
	for _, f := range flags {
		a.simple(f)
	}
	a.int(0)
	a.int(0)
	a.int(0)
	a.set(1)
	a.simple(category)
	a.array(0)
	a.array(0)
	a.array(0)
}

// maxName is the longest name or library name of a connection, in bytes.
const maxName = 256

// rename sets the connection's name, or answers with an error.
func (c *conn) rename(name string) bool {
	if !plain(name) {
		c.fail("ERR Client names cannot contain spaces, newlines or special characters, nor more than " + strconv.Itoa(maxName) + " bytes.")
		return false
	}
	c.about.mu.Lock()
	c.about.name = name
	c.about.mu.Unlock()
	return true
}

// plain reports whether a name can stand in CLIENT LIST.
func plain(name string) bool {
	return len(name) <= maxName && !strings.ContainsFunc(name, func(r rune) bool { return r < '!' || r > '~' })
}

// clientSubcommands have their number of arguments after CLIENT and their own name, as arity does.
var clientSubcommands = map[string]struct {
	arity int
	run   func(c *conn, args [][]byte)
}{
	"ID":           {0, func(c *conn, _ [][]byte) { c.out.int(int(c.id)) }},
	"GETNAME":      {0, runClientGetName},
	"SETNAME":      {1, runClientSetName},
	"SETINFO":      {2, runClientSetInfo},
	"INFO":         {0, runClientInfo},
	"LIST":         {-1, runClientList},
	"REPLY":        {1, runClientReply},
	"TRACKING":     {-2, runClientTracking},
	"TRACKINGINFO": {0, runClientTrackingInfo},
	"CACHING":      {1, runClientCaching},
	"GETREDIR":     {0, runClientGetRedir},
	"NO-EVICT":     {1, runClientOnOff},
	"NO-TOUCH":     {1, runClientOnOff},
}

func runClient(c *conn, args [][]byte) {
	name := strings.ToUpper(string(args[1]))
	sub, ok := clientSubcommands[name]
	args, given := args[2:], len(args)-2
	switch {
	case !ok:
		c.fail("ERR unknown subcommand " + quoteArgument([]byte(name)) + " of CLIENT")
	case given != sub.arity && (sub.arity >= 0 || given < -sub.arity-1):
		c.failArity("client|"+strings.ToLower(name), false)
	default:
		sub.run(c, args)
	}
}

func runClientGetName(c *conn, _ [][]byte) {
	if name := c.name(); name != "" {
		c.out.bulk(name)
	} else {
		c.out.null()
	}
}

func runClientSetName(c *conn, args [][]byte) {
	if c.rename(string(args[0])) {
		c.out.ok()
	}
}

func runClientSetInfo(c *conn, args [][]byte) {
	field := &c.about.libName
	switch {
	case is(args[0], "LIB-VER"):
		field = &c.about.libVer
	case !is(args[0], "LIB-NAME"):
		c.fail("ERR Unrecognized option " + quoteArgument(args[0]))
		return
	}
	value := string(args[1])
	if !plain(value) {
		c.fail("ERR " + strings.ToLower(string(args[0])) + " cannot contain spaces, newlines or special characters, nor more than " + strconv.Itoa(maxName) + " bytes.")
		return
	}
	c.about.mu.Lock()
	*field = value
	c.about.mu.Unlock()
	c.out.ok()
}

func runClientInfo(c *conn, _ [][]byte) {
	var b strings.Builder
	c.describe(&b)
	c.out.verbatim(b.String())
}

// runClientList answers CLIENT LIST [TYPE type | ID id …].
func runClientList(c *conn, args [][]byte) {
	wanted := func(*conn) bool { return true }
	switch {
	case len(args) == 0:
	case is(args[0], "TYPE") && len(args) == 2:
		kind := strings.ToLower(string(args[1]))
		if !slices.Contains([]string{"normal", "pubsub", "master", "replica", "slave"}, kind) {
			c.fail("ERR Unknown client type " + quoteArgument(args[1]))
			return
		}
		wanted = func(other *conn) bool {
			return kind == "pubsub" && other.subscribed() || kind == "normal" && !other.subscribed()
		}
	case is(args[0], "ID") && len(args) >= 2:
		ids := make(map[int64]bool)
		for _, arg := range args[1:] {
			id, err := strconv.ParseInt(string(arg), 10, 64)
			if err != nil {
				c.fail("ERR Invalid client ID")
				return
			}
			ids[id] = true
		}
		wanted = func(other *conn) bool { return ids[other.id] }
	default:
		c.fail(syntaxError)
		return
	}
	var b strings.Builder
	for _, other := range c.server.connections() {
		if wanted(other) {
			other.describe(&b)
		}
	}
	c.out.verbatim(b.String())
}

// connections are those of now, the oldest first.
func (s *Server) connections() []*conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]*conn, 0, len(s.conns))
	for _, c := range s.conns {
		all = append(all, c)
	}
	slices.SortFunc(all, func(a, b *conn) int { return int(a.id - b.id) })
	return all
}

func runClientReply(c *conn, args [][]byte) {
	switch {
	case is(args[0], "ON"):
		c.quiet, c.skip = false, 0
		c.out.ok()
	case is(args[0], "OFF"):
		c.quiet = true
	case is(args[0], "SKIP"):
		if !c.quiet {
			c.skip = 2
		}
	default:
		c.fail(syntaxError)
	}
}

func runClientOnOff(c *conn, args [][]byte) {
	if !is(args[0], "ON") && !is(args[0], "OFF") {
		c.fail(syntaxError)
		return
	}
	c.out.ok()
}

// runClientTracking accepts what clients with a cache of their own ask for. There are no keys, so nothing
// is ever to be invalidated.
func runClientTracking(c *conn, args [][]byte) {
	mode := "on"
	for i := 1; i < len(args); i++ {
		switch {
		case is(args[i], "OPTIN") || is(args[i], "OPTOUT") || is(args[i], "BCAST"):
			mode = strings.ToLower(string(args[i]))
		case is(args[i], "NOLOOP"):
		case (is(args[i], "REDIRECT") || is(args[i], "PREFIX")) && i+1 < len(args):
			i++
		default:
			c.fail(syntaxError)
			return
		}
	}
	switch {
	case is(args[0], "ON"):
		c.track = mode
	case is(args[0], "OFF"):
		c.track = ""
	default:
		c.fail(syntaxError)
		return
	}
	c.out.ok()
}

func runClientTrackingInfo(c *conn, _ [][]byte) {
	flags := []string{"off"}
	switch c.track {
	case "":
	case "on":
		flags = []string{"on"}
	default:
		flags = []string{"on", c.track}
	}
	c.out.mapping(3)
	c.out.bulk("flags")
	c.out.set(len(flags))
	for _, f := range flags {
		c.out.bulk(f)
	}
	c.out.bulk("redirect")
	c.redirect()
	c.out.bulk("prefixes")
	c.out.array(0)
}

func runClientGetRedir(c *conn, _ [][]byte) { c.redirect() }

// redirect answers where invalidations go: -1 nowhere, 0 to the connection itself.
func (c *conn) redirect() {
	if c.track == "" {
		c.out.int(-1)
	} else {
		c.out.int(0)
	}
}

func runClientCaching(c *conn, args [][]byte) {
	switch {
	case !bytes.EqualFold(args[0], []byte("yes")) && !bytes.EqualFold(args[0], []byte("no")):
		c.fail(syntaxError)
	case c.track != "optin" && c.track != "optout":
		c.fail("ERR CLIENT CACHING can be called only when the client is in tracking mode with OPTIN or OPTOUT mode enabled")
	default:
		c.out.ok()
	}
}
