package main

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// cpuTime returns the CPU time that processes have used: user and system, all threads, those
// that have ended included. It reads each process's CPU clock, which is exact, where
// /proc/PID/stat counts ticks of 10 ms. The number of that clock is what
// clock_getcpuclockid(3) makes of a pid: its complement, shifted, and CPUCLOCK_SCHED
// (linux/posix-timers.h).
func cpuTime(pids ...int) (sum time.Duration, err error) {
	const sched = 2
	for _, pid := range pids {
		var t unix.Timespec
		if err := unix.ClockGettime(int32(^pid<<3|sched), &t); err != nil {
			return 0, fmt.Errorf("CPU clock of process %d: %w", pid, err)
		}
		sum += time.Duration(t.Nano())
	}
	return sum, nil
}

// memory returns the sum of processes' proportional and resident set sizes in KiB (proc(5),
// smaps_rollup).
func memory(pids ...int) (pss, rss float64, err error) {
	for _, pid := range pids {
		name := fmt.Sprintf("/proc/%d/smaps_rollup", pid)
		b, err := os.ReadFile(name)
		if err != nil {
			return 0, 0, err
		}
		found := 0
		for line := range bytes.Lines(b) {
			var kib float64
			if _, err := fmt.Sscanf(string(line), "Pss: %f kB", &kib); err == nil {
				pss += kib
				found++
			} else if _, err := fmt.Sscanf(string(line), "Rss: %f kB", &kib); err == nil {
				rss += kib
				found++
			}
		}
		if found != 2 {
			return 0, 0, fmt.Errorf("%s has not one Pss and one Rss line", name)
		}
	}
	return pss, rss, nil
}

// family returns a process and its children, in the order of their start.
func family(pid int) ([]int, error) {
	// proc_pid_task(5): the children that this thread has; neither server here forks from another one.
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return nil, err
	}
	pids := []int{pid}
	for _, field := range bytes.Fields(b) {
		child, err := strconv.Atoi(string(field))
		if err != nil {
			return nil, err
		}
		pids = append(pids, child)
	}
	return pids, nil
}

// A machineTime is how the machine has spent its cores' time since it was started, and how
// much of that this process and its children have used, as far as they have ended.
type machineTime struct {
	total, busy, stolen, ours time.Duration
}

func readMachineTime() (machineTime, error) {
	const name = "/proc/stat"
	b, err := os.ReadFile(name)
	if err != nil {
		return machineTime{}, err
	}
	// proc_stat(5); in ticks of 10 ms on every architecture that Go runs on.
	var user, nice, system, idle, wait, irq, softirq, steal time.Duration
	if _, err := fmt.Sscanf(string(b), "cpu %d %d %d %d %d %d %d %d", &user, &nice, &system, &idle, &wait, &irq, &softirq, &steal); err != nil {
		return machineTime{}, fmt.Errorf("%s: %w", name, err)
	}
	const tick = 10 * time.Millisecond
	busy := user + nice + system + irq + softirq
	t := machineTime{total: (busy + idle + wait + steal) * tick, busy: busy * tick, stolen: steal * tick}
	for _, who := range []int{unix.RUSAGE_SELF, unix.RUSAGE_CHILDREN} {
		var r unix.Rusage
		if err := unix.Getrusage(who, &r); err != nil {
			return machineTime{}, os.NewSyscallError("getrusage", err)
		}
		t.ours += time.Duration(r.Utime.Nano() + r.Stime.Nano())
	}
	return t, nil
}

// since returns the shares, in per cent of all cores, that other processes and the hypervisor
// took from an earlier reading to this one.
func (t machineTime) since(from machineTime) (others, stolen float64) {
	total := float64(max(1, t.total-from.total))
	others = max(0, float64(t.busy-from.busy)-float64(t.ours-from.ours))
	return 100 * others / total, 100 * float64(t.stolen-from.stolen) / total
}

// resent returns how many TCP segments this machine has sent again since it was started
// (RetransSegs, RFC 4022). On loopback nothing is lost on the way: it happens when the
// kernel's own work waits for a core for longer than TCP does.
func resent() (float64, error) {
	const name = "/proc/net/snmp"
	b, err := os.ReadFile(name)
	if err != nil {
		return 0, err
	}
	var names []string
	for line := range bytes.Lines(b) {
		fields := strings.Fields(string(line))
		if len(fields) == 0 || fields[0] != "Tcp:" {
			continue
		}
		if names == nil {
			names = fields
		} else if i := slices.Index(names, "RetransSegs"); i > 0 && i < len(fields) {
			return strconv.ParseFloat(fields[i], 64)
		}
	}
	return 0, fmt.Errorf("%s has no RetransSegs", name)
}
