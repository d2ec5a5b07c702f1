package booted

import (
	"bufio"
	"encoding/json"
	"os/exec"
	"syscall"
	"time"

	"wscast/test/harness"
)

// Entry is an entry of the journal: its fields (systemd.journal-fields(7)), but for those that are binary or there more than once.
type Entry map[string]string

// Journal is what the journal has of a unit, for people to read.
func (m *Machine) Journal(unit string) string {
	m.t.Helper()
	m.Run("journalctl", "--sync")
	return m.Run("journalctl", "--no-pager", "--output=short-precise", "--unit="+unit)
}

// AwaitJournal returns the next entry of a unit for which match is true; what says what is awaited. Every call goes on behind the entry that the last one
// for that unit returned, the first at the boot.
func (m *Machine) AwaitJournal(unit, what string, match func(Entry) bool) Entry {
	m.t.Helper()
	args := []string{"journalctl", "--follow", "--lines=all", "--output=json", "--unit=" + unit}
	if cursor := m.heard[unit]; cursor != "" {
		args = append(args, "--after-cursor="+cursor)
	}
	cmd := exec.Command("nsenter", m.inside(args)...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		m.t.Fatal(err)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // nsenter is the parent of journalctl, which has to end with it
	if err := cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	kill := func() { syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	expire := time.AfterFunc(harness.Patience, kill)
	defer func() {
		expire.Stop()
		kill()
		cmd.Wait()
	}()
	lines := bufio.NewReader(out)
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			m.t.Fatalf("the journal of %s does not show %s in %v", unit, what, harness.Patience)
		}
		var fields map[string]any
		if err := json.Unmarshal(line, &fields); err != nil {
			m.t.Fatalf("journalctl: %v: %q", err, line)
		}
		entry := Entry{}
		for name, value := range fields {
			if text, ok := value.(string); ok {
				entry[name] = text
			}
		}
		if match(entry) {
			m.heard[unit] = entry["__CURSOR"]
			return entry
		}
	}
}
