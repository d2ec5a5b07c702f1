package main

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// nginx: is there room for the clients, and does what leads to wscastd let WebSockets through.

// nginxFacts is the nginx that runs, or would.
type nginxFacts struct {
	path     string // of the program, "" none was found
	version  string // "1.22.1"
	running  bool
	workers  int         // that take connections
	limits   []int       // of open files, of each worker, as far as they can be seen
	groups   []int       // of a worker
	uid      int         // of a worker
	command  string      // what it is called with: "nginx", or with the options that it was started with
	reload   string      // the command, or the one that starts it
	config   []directive // nil: not seen
	refused  string      // why nginx -T gives none
	forbids  bool        // it is because the caller is not root
	unixMode map[string]pathMode
}

// pathMode is a Unix socket that wscast.socket listens on.
type pathMode struct {
	mode     os.FileMode
	uid, gid int
}

func lookAtNginx(f *facts) (n nginxFacts) {
	title := findWorkers(&n, f.caller.uid)
	args := strings.Fields(title)
	n.path, n.command = inSbin("nginx"), "nginx"
	if len(args) > 0 && filepath.IsAbs(args[0]) && args[0] != n.path {
		n.path, n.command = args[0], quoted(args[0])
	}
	if n.path == "" {
		return n
	}
	// An nginx that was started with another file or directory is asked about that one.
	var same []string
	for i := 1; i+1 < len(args); i++ {
		if args[i] == "-c" || args[i] == "-p" {
			same = append(same, args[i], args[i+1])
			n.command += " " + args[i] + " " + quoted(args[i+1])
		}
	}
	_, said, err := outputOf(n.path, "-v")
	if err == nil {
		n.version = said[strings.LastIndexByte(strings.TrimSpace(said), '/')+1:]
		n.version = strings.TrimSpace(n.version)
	}
	switch service := f.units[nginxUnit]; {
	case service.get("ActiveState") == "active":
		n.reload = "systemctl reload " + nginxUnit
	case n.running:
		n.reload = n.command + " -s reload"
	case service.installed():
		n.reload = "systemctl start " + nginxUnit
	default:
		n.reload = n.command
	}
	dump, said, err := outputOf(n.path, append(same, "-T")...)
	if err != nil {
		for line := range strings.Lines(said) {
			if strings.Contains(line, "[emerg]") {
				_, n.refused, _ = strings.Cut(strings.TrimSpace(line), "[emerg] ")
			}
		}
		n.refused = cmp.Or(n.refused, firstLine(said), lastCause(err).Error())
		n.forbids = f.caller.uid != 0 && strings.Contains(said, "Permission denied")
		return n
	}
	n.config = parseNginx(dump)
	n.unixMode = make(map[string]pathMode)
	for _, address := range f.listens(clientsSocket) {
		if info, err := os.Stat(address); strings.HasPrefix(address, "/") && err == nil {
			if stat, isUnix := info.Sys().(*syscall.Stat_t); isUnix {
				n.unixMode[address] = pathMode{info.Mode().Perm(), int(stat.Uid), int(stat.Gid)}
			}
		}
	}
	return n
}

// findWorkers looks for the processes of nginx, which name what they are (setproctitle), and returns the command line
// of the master. Those of another process namespace, as in a container, are none of ours. Only a master of root or of
// the caller is believed, since it names a program that is run then.
func findWorkers(n *nginxFacts, caller int) (master string) {
	names, _ := filepath.Glob("/proc/[0-9]*/comm")
	for _, name := range names {
		comm, err := os.ReadFile(name)
		if err != nil || strings.TrimSpace(string(comm)) != "nginx" {
			continue
		}
		dir := filepath.Dir(name)
		status, _ := os.ReadFile(filepath.Join(dir, "status"))
		if len(statusField(string(status), "NSpid")) > 1 {
			continue
		}
		cmdline, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		title := strings.TrimSpace(strings.ReplaceAll(string(cmdline), "\x00", " "))
		ids := statusField(string(status), "Uid")
		if len(ids) < 2 || ids[0] != ids[1] {
			continue // real and effective: it is gone, or about to become somebody else
		}
		rest, isMaster := strings.CutPrefix(title, "nginx: master process ")
		if isMaster && (ids[0] == 0 || ids[0] == caller) {
			n.running, master = true, rest
		}
		if title != "nginx: worker process" { // and not one that "is shutting down"
			continue
		}
		n.running = true
		n.workers++
		limits, _ := os.ReadFile(filepath.Join(dir, "limits"))
		if limit := openFilesLimit(string(limits)); limit > 0 {
			n.limits = append(n.limits, limit)
		}
		n.uid = ids[0]
		n.groups = append(statusField(string(status), "Groups"), statusField(string(status), "Gid")...)
	}
	return master
}

func checkNginx(f *facts) []finding {
	n := &f.nginx
	switch {
	case n.path == "":
		return []finding{note("", "there is no nginx here; what stands before wscastd was not looked at")}
	case n.forbids:
		return []finding{note("as root: wscast doctor", "%s may not see the configuration of nginx", f.caller.name)}
	case n.config == nil && n.refused != "":
		return []finding{wrong(n.command+" -t", "nginx cannot use its configuration: %s", n.refused)}
	case !n.running && f.units[nginxUnit].installed():
		return []finding{wrong("systemctl start "+nginxUnit, "nginx does not run")}
	case !n.running:
		return []finding{note(n.path, "nginx does not run")}
	}
	return []finding{ok("nginx %s runs with %s", n.version, counted(max(1, n.workers), "worker"))}
}

// value is the first argument of the last directive of a name, which is nil without one.
func value(list []directive, name string) (d *directive, text string) {
	for _, found := range find(list, name) {
		d = found
	}
	return d, d.arg(0)
}

// checkWorkers: a client takes two connections of a worker, and each a descriptor. Connections go to any worker, so the
// room of all is that of one times their number.
func checkWorkers(f *facts) []finding {
	n := &f.nginx
	if n.config == nil {
		return nil
	}
	connections := 512 // ngx_event_core_module, worker_connections
	var events, where *directive
	for _, events = range find(n.config, "events") {
		if d, text := value(events.block, "worker_connections"); d != nil {
			where = d
			connections, _ = strconv.Atoi(text)
		}
	}
	workers := n.workers
	if workers == 0 {
		workers = 1
		if _, text := value(n.config, "worker_processes"); text == "auto" {
			workers = max(1, f.machine.processors)
		} else if count, err := strconv.Atoi(text); err == nil {
			workers = max(1, count)
		}
	}
	limitAt, text := value(n.config, "worker_rlimit_nofile")
	files, _ := strconv.Atoi(text)
	if len(n.limits) > 0 {
		files = slices.Min(n.limits)
	}
	need := f.clients()
	// Of a worker, at both; a listening socket and a log are descriptors as well.
	each := roundUp(max(1024, (2*need+workers-1)/workers+reserve))
	room := workers * connections / 2
	roomOfFiles := workers * max(0, files-reserve) / 2
	switch {
	case room < need && where != nil:
		return []finding{warn(n.change(where, fmt.Sprintf("worker_connections %d", each)),
			"nginx has room for %d clients, and %d are needed: worker_connections %d", room, need, connections)}
	case room < need:
		mend := fmt.Sprintf("worker_connections %d; in events { }", each)
		return []finding{warn(mend, "nginx has room for %d clients, and %d are needed: worker_connections is %d", room,
			need, connections)}
	case files > 0 && roomOfFiles < need && limitAt != nil:
		return []finding{warn(n.change(limitAt, fmt.Sprintf("worker_rlimit_nofile %d", each)),
			"nginx has room for %d clients, and %d are needed: a worker may open %d files", roomOfFiles, need, files)}
	case files > 0 && roomOfFiles < need:
		return []finding{warn(n.before(events, fmt.Sprintf("worker_rlimit_nofile %d;", each)),
			"nginx has room for %d clients, and %d are needed: a worker may open %d files", roomOfFiles, need, files)}
	case files > 0 && roomOfFiles < room:
		return []finding{ok("nginx has room for %d clients: a worker may open %d files", roomOfFiles, files)}
	}
	return []finding{ok("nginx has room for %d clients: %s with worker_connections %d",
		room, counted(workers, "worker"), connections)}
}

// checkWorkerGroup: a worker has to be able to open the Unix sockets that clients are to come through.
func checkWorkerGroup(f *facts) (findings []finding) {
	n := &f.nginx
	if n.workers == 0 || n.uid == 0 {
		return nil
	}
	for _, address := range f.listens(clientsSocket) {
		s, isUnix := n.unixMode[address]
		if !isUnix {
			continue
		}
		mayWrite := s.mode&0o002 != 0
		switch {
		case s.uid == n.uid:
			mayWrite = s.mode&0o200 != 0
		case slices.Contains(n.groups, s.gid):
			mayWrite = s.mode&0o020 != 0
		}
		if !mayWrite {
			mend := fmt.Sprintf("systemctl edit %s: [Socket], SocketGroup=%s, SocketMode=0660; then: systemctl restart %s %s",
				clientsSocket, groupName(lastOf(n.groups)), clientsSocket, serviceUnit)
			findings = append(findings,
				wrong(mend,
					"nginx may not open %s: its mode is %#o and its group %s", address, s.mode, groupName(s.gid)))
		}
	}
	return findings
}

func lastOf(list []int) int {
	if len(list) == 0 {
		return 0
	}
	return list[len(list)-1]
}

// change is the command that gives a directive another value, and before one that puts another one before it.
func (n *nginxFacts) change(d *directive, text string) string {
	old := d.name
	if d.name == "proxy_set_header" { // of which a line may have several
		old += `[[:space:]"]*` + d.arg(0)
	}
	return n.edit(d, fmt.Sprintf(`s/%s[^;]*/%s/`, old, forSed(text)))
}

func (n *nginxFacts) before(d *directive, text string) string {
	if d == nil {
		return text
	}
	return n.edit(d, fmt.Sprintf(`s/%s/%s &/`, d.name, forSed(text)))
}

func (n *nginxFacts) edit(d *directive, script string) string {
	return fmt.Sprintf("sed -i --follow-symlinks %s %s && %s -t && %s",
		quoted(strconv.Itoa(d.line)+script), quoted(d.file), n.command, n.reload)
}

// forSed is text for the right side of a sed command with slashes.
func forSed(text string) string {
	return strings.NewReplacer(`\`, `\\`, `/`, `\/`, `&`, `\&`).Replace(text)
}

// route is a proxy_pass with the blocks around it, the outermost first.
type route struct {
	pass   *directive
	levels []nesting
}

// nesting is a block that directives are inherited through.
type nesting struct {
	directive *directive // of the block
	list      []directive
}

// routes are all proxy_pass of http, in servers, locations and what lies in them.
func routes(config []directive) (found []route) {
	var walk func(levels []nesting)
	walk = func(levels []nesting) {
		list := levels[len(levels)-1].list
		for i := range list {
			d := &list[i]
			switch {
			case d.name == "proxy_pass":
				found = append(found, route{d, slices.Clone(levels)})
			case len(d.block) > 0:
				walk(append(levels, nesting{d, d.block}))
			}
		}
	}
	for _, http := range find(config, "http") {
		walk([]nesting{{http, http.block}})
	}
	return found
}

// effective is the directive that holds at a route: the one of the innermost block that has it. nil: the default does.
func (r *route) effective(name string) (d *directive) {
	for _, level := range r.levels {
		if set, _ := value(level.list, name); set != nil {
			d = set
		}
	}
	return d
}

// headers are the proxy_set_header that hold at a route: those of the innermost block with any. They are not added up
// (ngx_http_proxy_module).
func (r *route) headers() (list []*directive) {
	for _, level := range r.levels {
		if set := find(level.list, "proxy_set_header"); len(set) > 0 {
			list = set
		}
	}
	return list
}

// location is the location of a route as it is written, "" without one.
func (r *route) location() (pattern string) {
	for _, level := range r.levels {
		if level.directive.name == "location" {
			pattern = strings.Join(level.directive.args, " ")
		}
	}
	return pattern
}

// place is how a route is called.
func (r *route) place() string {
	at := fmt.Sprintf("%s:%d", r.pass.file, r.pass.line)
	if location := r.location(); location != "" {
		return "location " + location + " (" + at + ")"
	}
	return at
}

// upstreams are the addresses of each upstream. An address is "host:port" or the path of a Unix socket.
func upstreams(config []directive) map[string][]string {
	all := make(map[string][]string)
	for _, http := range find(config, "http") {
		for _, upstream := range find(http.block, "upstream") {
			for _, server := range find(upstream.block, "server") {
				all[upstream.arg(0)] = append(all[upstream.arg(0)], nginxAddress(server.arg(0)))
			}
		}
	}
	return all
}

// target is where a proxy_pass leads: the name in it, and the addresses behind that.
func (r *route) target(upstreams map[string][]string) (name string, addresses []string) {
	_, rest, isURL := strings.Cut(r.pass.arg(0), "://")
	if !isURL {
		return "", nil
	}
	if socket, isUnix := strings.CutPrefix(rest, "unix:"); isUnix {
		socket, _, _ = strings.Cut(socket, ":")
		return socket, []string{socket}
	}
	name, _, _ = strings.Cut(rest, "/")
	if addresses, known := upstreams[name]; known {
		return name, addresses
	}
	return name, []string{nginxAddress(name)}
}

// nginxAddress adds the port that nginx adds.
func nginxAddress(address string) string {
	if socket, isUnix := strings.CutPrefix(address, "unix:"); isUnix {
		return socket
	}
	if _, _, err := net.SplitHostPort(address); err != nil {
		return net.JoinHostPort(strings.Trim(address, "[]"), "80")
	}
	return address
}

// clientAddresses is where wscastd listens for clients, as far as can be seen.
func (f *facts) clientAddresses() (addresses []string) {
	if addresses := f.listens(clientsSocket); len(addresses) > 0 && !f.byHand() {
		return addresses
	}
	args := f.running.args
	for i := range args {
		if address := flagOf(args[i:min(i+2, len(args))], "websocket"); address != "" {
			addresses = append(addresses, address)
		}
	}
	if len(addresses) > 0 {
		return addresses
	}
	if list, set := f.config.settings["websocket.listen"]; set {
		return strings.FieldsFunc(list, func(r rune) bool { return strings.ContainsRune(`[]", '`, r) })
	}
	return []string{defaultListen}
}

// Defaults of wscast.toml(5), which a test holds against the daemon's.
const (
	defaultListen = "127.0.0.1:7311"
	defaultPath   = "/websocket"
	defaultPing   = "25s"
)

// reaches tells whether a connection to an address comes to a socket that listens on another one.
func reaches(address, listens string) bool {
	if strings.HasPrefix(address, "/") || strings.HasPrefix(listens, "/") {
		return path.Clean(address) == path.Clean(listens)
	}
	host, port, err := net.SplitHostPort(address)
	at, atPort, err2 := net.SplitHostPort(listens)
	if err != nil || err2 != nil || port != atPort {
		return false
	}
	there, here := net.ParseIP(at), net.ParseIP(host)
	switch {
	case at == "" || there.IsUnspecified():
		return true
	case host == "localhost":
		return there.IsLoopback()
	}
	return host == at || here != nil && here.Equal(there)
}

// checkRoutes judges all that leads to wscastd.
func checkRoutes(f *facts) (findings []finding) {
	n := &f.nginx
	if n.config == nil {
		return nil
	}
	listens := f.clientAddresses()
	prefix := cmp.Or(f.config.settings["websocket.path"], defaultPath)
	upstreams := upstreams(n.config)
	var ours, suspects []route
	for _, r := range routes(n.config) {
		name, addresses := r.target(upstreams)
		leads := slices.ContainsFunc(addresses, func(a string) bool {
			return slices.ContainsFunc(listens, func(l string) bool { return reaches(a, l) })
		})
		switch {
		case leads:
			ours = append(ours, r)
		case name == "wscast" || strings.Contains(r.location(), prefix):
			suspects = append(suspects, r)
		}
	}
	switch {
	case len(ours) == 0 && len(suspects) == 0:
		return []finding{warn("include snippets/wscast.conf; in server { } of the site, then: "+n.command+" -t && "+n.reload,
			"no site of nginx leads to wscastd at %s", strings.Join(listens, " "))}
	case len(ours) == 0:
		for _, r := range suspects {
			_, addresses := r.target(upstreams)
			findings = append(findings, wrong("give the upstream: server "+upstreamAddress(listens[0])+" max_fails=0;",
				"%s leads to %s, and wscastd listens on %s",
				r.place(), strings.Join(addresses, " "), strings.Join(listens, " ")))
		}
		return findings
	}
	for _, r := range ours {
		judged := slices.Concat(judgeAddresses(&r, upstreams, listens), f.judgeVersion(&r), f.judgeUpgrade(&r),
			f.judgeHost(&r), f.judgeTimeout(&r))
		if len(judged) == 0 {
			judged = append(judged, ok("%s lets WebSockets through", r.place()))
		}
		if d := r.effective("proxy_buffering"); d.arg(0) != "off" {
			judged = append(judged, note("proxy_buffering off; beside proxy_pass",
				"%s has proxy_buffering on, which does not matter to WebSockets", r.place()))
		}
		findings = append(findings, judged...)
	}
	return findings
}

// upstreamAddress is an address as server in upstream { } has it.
func upstreamAddress(address string) string {
	if strings.HasPrefix(address, "/") {
		return "unix:" + address
	}
	return address
}

// judgeAddresses: every server of the upstream has to be a socket of ours.
func judgeAddresses(r *route, upstreams map[string][]string, listens []string) (findings []finding) {
	name, addresses := r.target(upstreams)
	for _, a := range addresses {
		if !slices.ContainsFunc(listens, func(l string) bool { return reaches(a, l) }) {
			findings = append(findings,
				wrong("remove the server from upstream "+name+", or add ListenStream="+a+" to "+clientsSocket,
					"%s leads to %s as well, and wscastd does not listen there", r.place(), a))
		}
	}
	return findings
}

// judgeVersion: an upgrade is of HTTP/1.1 (RFC 9110, section 7.8).
func (f *facts) judgeVersion(r *route) []finding {
	d := r.effective("proxy_http_version")
	switch {
	case d.arg(0) == "1.1", d == nil && versionAtLeast(f.nginx.version, 1, 29, 7): // where the default became 1.1
		return nil
	case d == nil:
		return []finding{wrong(f.nginx.before(r.pass, "proxy_http_version 1.1;"),
			"%s speaks HTTP/1.0, in which there are no WebSockets", r.place())}
	}
	return []finding{wrong(f.nginx.change(d, "proxy_http_version 1.1"), "%s speaks HTTP/%s: WebSockets need 1.1",
		r.place(), d.arg(0))}
}

// versionAtLeast compares versions by their numbers. One that is not known is old.
func versionAtLeast(version string, least ...int) bool {
	for i, part := range strings.SplitN(version, ".", 3) {
		n, err := strconv.Atoi(strings.TrimRight(part, "abcdefghijklmnopqrstuvwxyz-+ "))
		switch {
		case err != nil || n < least[i]:
			return false
		case n > least[i]:
			return true
		}
	}
	return version != "" && strings.Count(version, ".") >= len(least)-1
}

// header is the last value of a header in the list, which is nil without it.
func header(list []*directive, name string) (d *directive) {
	for _, set := range list {
		if strings.EqualFold(set.arg(0), name) {
			d = set
		}
	}
	return d
}

// add is the command that sends more headers along, where those that hold now are set, since they would not be
// inherited any more.
func (f *facts) add(r *route, headers string) string {
	if list := r.headers(); len(list) > 0 {
		return f.nginx.before(list[0], headers)
	}
	return f.nginx.before(r.pass, headers)
}

// judgeUpgrade: both headers are of the connection, so that a proxy does not pass them on by itself (RFC 9110, section
// 7.6.1).
func (f *facts) judgeUpgrade(r *route) (findings []finding) {
	list := r.headers()
	var missing []string
	if d := header(list, "Upgrade"); d == nil {
		missing = append(missing, "proxy_set_header Upgrade $http_upgrade;")
	} else if v := d.arg(1); v != "$http_upgrade" && !strings.EqualFold(v, "websocket") {
		findings = append(findings, wrong(f.nginx.change(d, "proxy_set_header Upgrade $http_upgrade"),
			"%s sends Upgrade: %s", r.place(), v))
	}
	good := "upgrade"
	if f.givesUpgrade("$wscast_connection") {
		good = "$wscast_connection"
	}
	switch d := header(list, "Connection"); {
	case d == nil:
		missing = append(missing, "proxy_set_header Connection "+good+";")
	case !f.givesUpgrade(d.arg(1)):
		findings = append(findings, wrong(f.nginx.change(d, "proxy_set_header Connection "+good),
			"%s sends Connection: %s, which does not ask for an upgrade", r.place(), d.arg(1)))
	}
	if len(missing) > 0 {
		findings = append(findings, wrong(f.add(r, strings.Join(missing, " ")),
			"%s does not pass on the headers of an upgrade: clients get 426", r.place()))
	}
	return findings
}

// givesUpgrade tells whether a value of Connection asks for an upgrade when the client does. Of a variable that no map
// makes nothing is known but that nginx knows it, so it is trusted.
func (f *facts) givesUpgrade(value string) bool {
	if !strings.HasPrefix(value, "$") {
		return slices.ContainsFunc(strings.Split(value, ","), func(token string) bool {
			return strings.EqualFold(strings.TrimSpace(token), "upgrade")
		})
	}
	for _, http := range find(f.nginx.config, "http") {
		for _, m := range find(http.block, "map") {
			if m.arg(1) != value {
				continue
			}
			if m.arg(0) != "$http_upgrade" {
				return true
			}
			result := ""
			for i := range m.block { // a line is a directive here: "websocket upgrade;"
				switch entry := &m.block[i]; {
				case strings.EqualFold(entry.name, "websocket"):
					return f.givesUpgrade(entry.arg(0))
				case entry.name == "default":
					result = entry.arg(0)
				}
			}
			return f.givesUpgrade(result)
		}
	}
	return value != "$wscast_connection"
}

// judgeHost: wscastd compares the Origin of a page with the host that the browser has asked for, with its port.
func (f *facts) judgeHost(r *route) (findings []finding) {
	list := r.headers()
	if d := header(list, "Origin"); d != nil {
		findings = append(findings, warn(f.nginx.edit(d, "s/proxy_set_header *Origin[^;]*;//I"),
			"%s changes the header Origin, by which pages of other sites are refused", r.place()))
	}
	if origins := f.config.settings["websocket.origins"]; origins != "" && origins != "[]" {
		return findings // pages are known by name
	}
	switch d := header(list, "Host"); {
	case d == nil:
		findings = append(findings, wrong(f.add(r, "proxy_set_header Host $http_host;"),
			"%s does not pass on the header Host: pages are refused with 403", r.place()))
	case d.arg(1) == "$proxy_host":
		findings = append(findings, wrong(f.nginx.change(d, "proxy_set_header Host $http_host"),
			"%s sends Host: $proxy_host: pages are refused with 403", r.place()))
	case d.arg(1) == "$host" || d.arg(1) == "$server_name":
		if port := r.unusualPort(); port != "" {
			findings = append(findings, wrong(f.nginx.change(d, "proxy_set_header Host $http_host"),
				"%s sends Host: %s without the port %s: pages are refused with 403", r.place(), d.arg(1), port))
		}
	}
	return findings
}

// unusualPort is a port of the server that a browser names in Host.
func (r *route) unusualPort() string {
	for _, level := range r.levels {
		if level.directive.name != "server" {
			continue
		}
		for _, listen := range find(level.list, "listen") {
			address := listen.arg(0)
			if strings.HasPrefix(address, "unix:") {
				continue
			}
			_, port, err := net.SplitHostPort(address)
			if err != nil {
				port = address // the port alone, or a host alone
			}
			if _, err := strconv.Atoi(port); err == nil && port != "80" && port != "443" {
				return port
			}
		}
	}
	return ""
}

// judgeTimeout: nginx closes a connection on which wscastd has sent nothing for so long, and wscastd pings clients to
// which nothing is sent.
func (f *facts) judgeTimeout(r *route) []finding {
	ping, err := time.ParseDuration(cmp.Or(f.config.settings["websocket.ping"], defaultPing))
	timeout := 60 * time.Second
	d := r.effective("proxy_read_timeout")
	if d != nil {
		t, err := nginxTime(strings.Join(d.args, " "))
		if err != nil {
			return []finding{note("", "%s has a proxy_read_timeout that is not understood: %s", r.place(),
				strings.Join(d.args, " "))}
		}
		timeout = t
	}
	if err != nil || ping > 0 && timeout >= 2*ping {
		return nil
	}
	if ping == 0 {
		return []finding{warn(`websocket.ping = "25s" in `+cmp.Or(f.config.path, "the configuration"),
			"clients are not pinged, and nginx closes those that were sent nothing for %v", timeout)}
	}
	better := max(60*time.Second, (2*ping).Round(time.Second)+time.Second)
	text := fmt.Sprintf("proxy_read_timeout %ds", int(better.Seconds()))
	mend := f.nginx.before(r.pass, text+";")
	if d != nil {
		mend = f.nginx.change(d, text)
	}
	if timeout <= ping {
		return []finding{wrong(mend, "%s closes clients that were sent nothing for %v, and they are pinged every %v",
			r.place(), timeout, ping)}
	}
	return []finding{warn(mend,
		"%s has proxy_read_timeout %v, less than twice the %v of websocket.ping: a late ping ends a connection",
		r.place(), timeout, ping)}
}

// nginxTime reads a time of nginx: "60s", "1m 30s", "500ms", "1h", or seconds alone.
func nginxTime(text string) (time.Duration, error) {
	units := []struct {
		name   string
		length time.Duration
	}{
		{"ms", time.Millisecond}, {"s", time.Second}, {"m", time.Minute}, {"h", time.Hour},
		{"d", 24 * time.Hour}, {"w", 7 * 24 * time.Hour}, {"M", 30 * 24 * time.Hour}, {"y", 365 * 24 * time.Hour},
		{"", time.Second},
	}
	total, rest := time.Duration(0), strings.ReplaceAll(text, " ", "")
	for rest != "" {
		digits := len(rest) - len(strings.TrimLeft(rest, "0123456789"))
		n, err := strconv.ParseInt(rest[:digits], 10, 32)
		if err != nil {
			return 0, errors.New("not a time")
		}
		rest = rest[digits:]
		for _, u := range units {
			if after, found := strings.CutPrefix(rest, u.name); found {
				if u.name == "" && rest != "" {
					return 0, errors.New("not a unit of time")
				}
				total, rest = total+time.Duration(n)*u.length, after
				break
			}
		}
	}
	if text == "" || total < 0 {
		return 0, errors.New("not a time")
	}
	return total, nil
}
