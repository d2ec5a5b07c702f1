package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"wscast/ipc"
)

// facts are all that the checks know. The zero value is a machine of which nothing is known. Every field says what its
// zero value means where that is not plain.
type facts struct {
	planned int // clients, from --clients; 0: no more is known than who is connected

	caller  caller
	manager manager
	units   map[string]*unit // of unitNames; nil when systemd could not be asked
	socket  socketFile
	answer  answer
	running running // wscastd's
	program program // wscastd's
	config  configuration
	nginx   nginxFacts
	machine machine
}

// caller is the user who runs the tool.
type caller struct {
	name       string
	uid        int
	groups     []int // of this session
	registered []int // of the user database: those of the next session; nil: not known
}

// manager is systemd.
type manager struct {
	runs    bool   // it is PID 1 here
	version string // "252.39-1~deb12u2"
	err     string // why it could not be asked
}

// unit is a unit's properties, as systemctl show prints them, and its files.
type unit struct {
	properties map[string][]string
	files      []unitFile // the unit's own, then the drop-ins, in the order in which they count
}

type unitFile struct{ path, text string }

// get is the last value of a property, "" without one.
func (u *unit) get(property string) string {
	if u == nil {
		return ""
	}
	values := u.properties[property]
	if len(values) == 0 {
		return ""
	}
	return values[len(values)-1]
}

// installed tells whether there is such a unit. A nil unit is none.
func (u *unit) installed() bool {
	return u != nil && u.get("LoadState") != "not-found" && u.get("LoadState") != ""
}

// socketFile is the publish socket.
type socketFile struct {
	path     string
	err      error  // of stat; nil when it is there
	blocked  string // the directory above it that the caller cannot pass, "" none
	mode     fs.FileMode
	owner    string
	group    string
	gid      int
	listens  bool // somebody listens on it
	writable bool // the caller may connect
}

// answer is what wscastd says of itself.
type answer struct {
	asked bool // false: it is not up, and to ask would start it
	err   error
	late  bool // the error is that there was no answer in time
	info  map[string]string
	// The age of the oldest message has stood at 0: the clock is behind the one by which the log's messages were
	// stamped.
	clockBehind bool
}

// number is a field of INFO, 0 without it.
func (a *answer) number(field string) int {
	n, _ := strconv.ParseFloat(a.info[field], 64)
	return int(min(n, math.MaxInt/2))
}

// running is a wscastd that runs.
type running struct {
	pid       int // 0: none is known
	args      []string
	openFiles int // soft limit, 0: not known
}

// program is the wscastd that is installed.
type program struct {
	path    string // "" none
	version string
}

// configuration is the file that wscastd reads.
type configuration struct {
	path     string // "": it reads none
	checked  bool   // wscastd --check has run
	good     bool
	said     string // by wscastd --check
	err      error  // of reading it here
	settings map[string]string
	logFile  logFile
}

// logFile is the file at log.path.
type logFile struct {
	missing int64 // bytes of the file that are not on the disk yet
	free    int64
	err     error
}

// machine is the kernel and the clock.
type machine struct {
	ports        [2]int // net.ipv4.ip_local_port_range; zero: not known
	somaxconn    int    // 0: not known
	processors   int
	unsynced     bool
	clockUnknown bool
	denial       string // the last one of a security module that is about wscast or a connection of nginx
}

// clients is how many clients limits have to be enough for.
func (f *facts) clients() int {
	if f.planned > 0 {
		return f.planned
	}
	return f.answer.number("connected_clients") * 5 / 4
}

const (
	serviceUnit   = "wscast.service"
	clientsSocket = "wscast.socket"
	publishSocket = "wscast-publish.socket"
	nginxUnit     = "nginx.service"
)

var unitNames = []string{clientsSocket, publishSocket, serviceUnit, nginxUnit}

// unitProperties are those that the checks look at.
var unitProperties = []string{
	"Id", "LoadState", "UnitFileState", "ActiveState", "SubState", "Result", "FragmentPath", "DropInPaths",
	"NeedDaemonReload",
	"ExecStart", "ExecMainStatus", "MainPID", "NRestarts", "Restart", "FileDescriptorStoreMax", "NFileDescriptorStore",
	"StartLimitIntervalUSec", "LimitNOFILESoft", "Listen", "Backlog", "SocketMode", "SocketUser", "SocketGroup",
}

// programPatience is for systemctl, wscastd and nginx, which may look up the names of hosts; answerPatience for INFO.
const (
	programPatience = 10 * time.Second
	answerPatience  = 5 * time.Second
)

// gatherFacts is the only place where doctor asks the machine anything.
func gatherFacts(socket string) *facts {
	f := &facts{caller: lookAtCaller()}
	f.manager, f.units = askManager()
	f.socket = lookAtSocket(socket)
	f.answer = ask(f)
	f.running = findDaemon(f)
	f.program = findProgram(f)
	f.config = lookAtConfiguration(f)
	f.nginx = lookAtNginx(f)
	f.machine = lookAtMachine()
	return f
}

// outputOf runs a program. text is what it has printed, also with an error.
func outputOf(program string, args ...string) (stdout, stderr string, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), programPatience)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "SYSTEMD_COLORS=0", "SYSTEMD_PAGER=")
	cmd.WaitDelay = time.Second
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	if ctx.Err() != nil {
		err = fmt.Errorf("no answer in %v", programPatience)
	}
	return out.String(), errs.String(), err
}

// inSbin finds a program in PATH, or where programs of administration are, which not every PATH has.
func inSbin(name string) string {
	if path, err := exec.LookPath(name); err == nil {
		return path
	}
	for _, dir := range []string{"/usr/sbin", "/usr/local/sbin", "/sbin"} {
		path := filepath.Join(dir, name)
		if unix.Access(path, unix.X_OK) == nil {
			return path
		}
	}
	return ""
}

func lookAtCaller() caller {
	c := caller{uid: os.Geteuid()}
	c.name = strconv.Itoa(c.uid)
	if u, err := user.LookupId(c.name); err == nil {
		c.name = u.Username
	}
	c.groups, _ = os.Getgroups()
	c.groups = append(c.groups, os.Getegid())
	// id asks all sources of users that the machine has, where this program would only read /etc/group.
	if out, _, err := outputOf("id", "-G", "--", c.name); err == nil {
		c.registered = numbers(out)
	}
	return c
}

func numbers(text string) (list []int) {
	for _, field := range strings.Fields(text) {
		if n, err := strconv.Atoi(field); err == nil {
			list = append(list, n)
		}
	}
	return list
}

// askManager asks systemd about the units. sd_booted(3) has the directory.
func askManager() (m manager, units map[string]*unit) {
	if _, err := os.Lstat("/run/systemd/system"); err != nil {
		return m, nil
	}
	m.runs = true
	if out, _, err := outputOf("systemctl", "show", "--property=Version"); err == nil {
		m.version = strings.TrimSpace(strings.TrimPrefix(out, "Version="))
	}
	args := append([]string{"show", "--no-pager", "--property=" + strings.Join(unitProperties, ",")}, unitNames...)
	out, said, err := outputOf("systemctl", args...)
	if err != nil {
		m.err = firstLine(said)
		if m.err == "" {
			m.err = lastCause(err).Error()
		}
		return m, nil
	}
	units = make(map[string]*unit)
	for _, properties := range parseProperties(out) {
		u := &unit{properties: properties}
		for _, path := range append(strings.Fields(u.get("FragmentPath")), strings.Fields(u.get("DropInPaths"))...) {
			text, _ := os.ReadFile(path) // one that cannot be read is not quoted
			u.files = append(u.files, unitFile{path, string(text)})
		}
		units[u.get("Id")] = u
	}
	return m, units
}

// parseProperties reads what systemctl show prints of several units: lines of NAME=VALUE, of which some come more than
// once, and an empty line between two units.
func parseProperties(text string) (units []map[string][]string) {
	var u map[string][]string
	for line := range strings.Lines(text) {
		name, value, isProperty := strings.Cut(strings.TrimRight(line, "\r\n"), "=")
		switch {
		case !isProperty:
			if strings.TrimSpace(name) == "" {
				u = nil
			}
			continue
		case u == nil:
			u = make(map[string][]string)
			units = append(units, u)
		}
		u[name] = append(u[name], value)
	}
	return units
}

func lookAtSocket(path string) socketFile {
	s := socketFile{path: path}
	for dir := filepath.Dir(path); ; dir = filepath.Dir(dir) {
		if errors.Is(unix.Access(dir, unix.X_OK), unix.EACCES) {
			s.blocked = dir // the outermost one is the last
		}
		if dir == filepath.Dir(dir) {
			break
		}
	}
	info, err := os.Stat(path)
	if err != nil {
		s.err = lastCause(err)
		return s
	}
	s.mode = info.Mode()
	if stat, isUnix := info.Sys().(*syscall.Stat_t); isUnix {
		s.gid = int(stat.Gid)
		s.owner, s.group = userName(stat.Uid), groupName(s.gid)
	}
	s.writable = unix.Access(path, unix.W_OK) == nil // connect(2) needs that, unix(7)
	sockets, err := os.ReadFile("/proc/net/unix")
	s.listens = err != nil || listensAt(string(sockets), path)
	return s
}

func userName(uid uint32) string {
	id := strconv.FormatUint(uint64(uid), 10)
	if u, err := user.LookupId(id); err == nil {
		return u.Username
	}
	return id
}

func groupName(gid int) string {
	id := strconv.Itoa(gid)
	if g, err := user.LookupGroupId(id); err == nil {
		return g.Name
	}
	return id
}

// listensAt finds a path among the listening sockets of /proc/net/unix (proc_net(5)): number, reference count,
// protocol, flags, type, state, inode, path. The flag is __SO_ACCEPTCON of the kernel's net.h.
func listensAt(sockets, path string) bool {
	for line := range strings.Lines(sockets) {
		f := strings.Fields(line)
		if len(f) < 8 || strings.Join(f[7:], " ") != path {
			continue
		}
		if flags, err := strconv.ParseUint(f[3], 16, 32); err == nil && flags&0x10000 != 0 {
			return true
		}
	}
	return false
}

// ask asks wscastd for INFO. One that systemd has not started is not asked: the connection would start it, or wait
// until it is up.
func ask(f *facts) answer {
	socket := f.socket.path
	state := f.units[serviceUnit].get("ActiveState")
	if f.unitOfSocket() != nil && state != "active" && state != "reloading" {
		return answer{}
	}
	a := answer{asked: true}
	a.info, a.late, a.err = inquire(socket)
	if a.err != nil || a.number("messages_kept") == 0 || a.info["oldest_age_seconds"] != "0.000" {
		return a
	}
	time.Sleep(10 * time.Millisecond) // ten times what the field can show
	again, _, err := inquire(socket)
	a.clockBehind = err == nil && again["epoch"] == a.info["epoch"] && again["oldest_age_seconds"] == "0.000"
	return a
}

func inquire(socket string) (info map[string]string, late bool, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), answerPatience)
	defer cancel()
	client, err := ipc.DialContext(ctx, socket)
	if err != nil {
		return nil, ctx.Err() != nil, err
	}
	defer client.Close()
	defer context.AfterFunc(ctx, func() { client.Close() })()
	sections, err := client.Info()
	if err != nil {
		return nil, ctx.Err() != nil, err
	}
	info = make(map[string]string)
	for _, s := range sections {
		for _, field := range s.Fields {
			info[field.Key] = field.Value
		}
	}
	return info, false, nil
}

// findDaemon finds the process: it has told its id, or systemd knows it. What it tells is an id of its own process
// namespace, so that the process of that id here need not be it.
//
// A command line is what the owner of the process says, and doctor runs the program that is named there. So only those
// of the service, of root, and of the caller are believed.
func findDaemon(f *facts) (p running) {
	ofService := f.units[serviceUnit].get("MainPID")
	for _, id := range []string{f.answer.info["process_id"], ofService} {
		pid, err := strconv.Atoi(id)
		if err != nil || pid == 0 {
			continue
		}
		p, owner := lookAtProcess(pid)
		if p.pid == 0 || len(p.args) == 0 || filepath.Base(p.args[0]) != "wscastd" {
			continue
		}
		if id != ofService && owner != 0 && owner != f.caller.uid {
			p.args = nil
		}
		return p
	}
	return running{}
}

// lookAtProcess is a process with the user id of its owner.
func lookAtProcess(pid int) (p running, owner int) {
	dir := filepath.Join("/proc", strconv.Itoa(pid))
	cmdline, err := os.ReadFile(filepath.Join(dir, "cmdline"))
	status, err2 := os.ReadFile(filepath.Join(dir, "status"))
	ids := statusField(string(status), "Uid")
	if err != nil || err2 != nil || len(ids) == 0 {
		return p, 0
	}
	p.pid = pid
	p.args = strings.Split(strings.TrimRight(string(cmdline), "\x00"), "\x00")
	limits, _ := os.ReadFile(filepath.Join(dir, "limits"))
	p.openFiles = openFilesLimit(string(limits))
	return p, ids[0]
}

// statusField is a line of numbers in a file of proc_pid_status(5).
func statusField(status, name string) []int {
	for line := range strings.Lines(status) {
		if rest, found := strings.CutPrefix(line, name+":"); found {
			return numbers(rest)
		}
	}
	return nil
}

// openFilesLimit reads the soft limit in a file of proc_pid_limits(5); 0: there is none in it.
func openFilesLimit(limits string) int {
	for line := range strings.Lines(limits) {
		rest, found := strings.CutPrefix(line, "Max open files")
		fields := strings.Fields(rest)
		if !found || len(fields) == 0 {
			continue
		}
		n, _ := strconv.Atoi(fields[0])
		return n
	}
	return 0
}

// findProgram finds the wscastd that the next start would run.
func findProgram(f *facts) (p program) {
	argv := commandLine(f.units[serviceUnit].get("ExecStart"))
	switch {
	case len(argv) > 0 && filepath.Base(argv[0]) == "wscastd":
		p.path = argv[0]
	case len(f.running.args) > 0 && filepath.IsAbs(f.running.args[0]):
		p.path = f.running.args[0]
	default:
		p.path = inSbin("wscastd")
	}
	if p.path == "" {
		return p
	}
	out, _, err := outputOf(p.path, "--version")
	if err != nil {
		return program{}
	}
	p.version = strings.TrimSpace(strings.TrimPrefix(out, "wscastd"))
	return p
}

// commandLine is the arguments in a property like
// "{ path=/usr/sbin/wscastd ; argv[]=/usr/sbin/wscastd --config /etc/wscast/wscast.toml ; ignore_errors=no ; … }".
func commandLine(property string) []string {
	_, rest, _ := strings.Cut(property, "argv[]=")
	argv, _, _ := strings.Cut(rest, " ;")
	return strings.Fields(argv)
}

func lookAtConfiguration(f *facts) (c configuration) {
	args := f.running.args
	if f.running.pid == 0 {
		args = commandLine(f.units[serviceUnit].get("ExecStart"))
	}
	c.path = flagOf(args, "config")
	if c.path == "" {
		return c
	}
	text, err := os.ReadFile(c.path)
	c.settings = readSettings(string(text))
	if err != nil {
		c.err = lastCause(err)
	}
	if f.program.path != "" && !errors.Is(err, fs.ErrPermission) {
		_, said, err := outputOf(f.program.path, "--check", "--config", c.path)
		var exit *exec.ExitError
		c.checked = err == nil || errors.As(err, &exit)
		c.good = err == nil
		// The second line is what to do about it.
		c.said = strings.TrimPrefix(strings.ReplaceAll(strings.TrimSpace(said), "\n", "; "), "wscastd: ")
	}
	if path := c.settings["log.path"]; path != "" {
		if !filepath.IsAbs(path) {
			path = filepath.Join(stateDirectory, path)
		}
		c.logFile = lookAtLogFile(path)
	}
	return c
}

// stateDirectory is what StateDirectory=wscast of the unit stands for (systemd.exec(5)); a relative log.path is below it.
const stateDirectory = "/var/lib/wscast"

// flagOf is the last value of a flag, in any of the ways in which package flag takes it.
func flagOf(args []string, name string) (value string) {
	for i, arg := range args {
		dashed, isFlag := strings.CutPrefix(arg, "-")
		if !isFlag {
			continue
		}
		key, after, joined := strings.Cut(strings.TrimPrefix(dashed, "-"), "=")
		switch {
		case key != name:
		case joined:
			value = after
		case i+1 < len(args):
			value = args[i+1]
		}
	}
	return value
}

// readSettings reads the few keys that doctor needs of a configuration file that wscastd has found good: one on a line,
// as "section.key" with the value as it is written, but for the quotes of a text. Whether a file is good is for wscastd
// to say.
func readSettings(text string) map[string]string {
	settings := make(map[string]string)
	section := ""
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "[") {
			name, _, _ := strings.Cut(strings.Trim(line, "["), "]")
			section = strings.TrimSpace(name) + "."
			continue
		}
		key, value, isKey := strings.Cut(line, "=")
		if !isKey || strings.HasPrefix(line, "#") {
			continue
		}
		value = strings.TrimSpace(value)
		if value != "" && (value[0] == '"' || value[0] == '\'') {
			value, _, _ = strings.Cut(value[1:], value[:1])
		} else {
			value, _, _ = strings.Cut(value, "#")
			value = strings.TrimSpace(value)
		}
		settings[strings.TrimPrefix(section, ".")+strings.TrimSpace(key)] = value
	}
	return settings
}

// lookAtLogFile: the log is mapped, so a page for which there is no room on the disk is a SIGBUS and not an error.
func lookAtLogFile(path string) (l logFile) {
	var stat unix.Stat_t
	var disk unix.Statfs_t
	if l.err = unix.Stat(path, &stat); l.err == nil {
		l.missing = max(0, stat.Size-stat.Blocks*512) // stat(2): of 512 bytes
		l.err = unix.Statfs(path, &disk)
	}
	l.free = int64(disk.Bavail) * int64(disk.Bsize)
	return l
}

func lookAtMachine() (m machine) {
	m.processors = runtime.NumCPU()
	if text, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range"); err == nil {
		if n := numbers(string(text)); len(n) == 2 {
			m.ports = [2]int(n)
		}
	}
	if text, err := os.ReadFile("/proc/sys/net/core/somaxconn"); err == nil {
		if n := numbers(string(text)); len(n) == 1 {
			m.somaxconn = n[0]
		}
	}
	var clock unix.Timex
	state, err := unix.Adjtimex(&clock) // modes 0: only asks
	m.clockUnknown = err != nil
	m.unsynced = state == unix.TIME_ERROR || clock.Status&unix.STA_UNSYNC != 0
	m.denial = lastDenial()
	return m
}

// lastDenial looks for a denial of SELinux or AppArmor in the journal of this boot, if either is there.
func lastDenial() string {
	present := slices.ContainsFunc([]string{"/sys/fs/selinux/enforce", "/sys/kernel/security/apparmor",
		"/sys/module/apparmor"}, func(path string) bool {
		_, err := os.Stat(path)
		return err == nil
	})
	if !present {
		return ""
	}
	out, _, _ := outputOf("journalctl", "--quiet", "--no-pager", "--boot", "--lines=1", "--output=cat",
		`--grep=(avc: +denied|apparmor="DENIED").*wscast|avc: +denied.*name_connect.*comm="nginx"`,
		"_TRANSPORT=kernel", "+", "_TRANSPORT=audit")
	return firstLine(out)
}

func firstLine(text string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(text), "\n")
	return line
}
