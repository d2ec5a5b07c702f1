package main

import (
	"os"
	"strings"
	"testing"
	"time"
)

func TestCPUTimeSeesWorkOfEveryThread(t *testing.T) {
	before, err := cpuTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		// Until this process has used more, by the kernel's other count of it.
		for from := usedByGetrusage(t); usedByGetrusage(t)-from < 20*time.Millisecond; {
		}
	}()
	<-done
	after, err := cpuTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if after-before < 20*time.Millisecond {
		t.Fatalf("the clock shows %s for work of more than 20 ms", after-before)
	}
}

func usedByGetrusage(t *testing.T) time.Duration {
	m, err := readMachineTime()
	if err != nil {
		t.Error(err)
		return time.Hour
	}
	return m.ours
}

// Process ids end below 1<<22 (PID_MAX_LIMIT, proc_sys_kernel(5)).
func TestCPUTimeOfNoProcess(t *testing.T) {
	if _, err := cpuTime(1 << 22); err == nil {
		t.Fatal("there is a CPU clock for a process that cannot be")
	}
}

func TestMemory(t *testing.T) {
	pss, rss, err := memory(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if pss <= 0 || rss < pss {
		t.Fatalf("PSS %v KiB and RSS %v KiB", pss, rss)
	}
}

func TestOthers(t *testing.T) {
	from := machineTime{total: 100 * time.Second, busy: 50 * time.Second, stolen: time.Second, ours: 10 * time.Second}
	to := machineTime{total: 200 * time.Second, busy: 110 * time.Second, stolen: 3 * time.Second, ours: 40 * time.Second}
	if got := others(from, to); !strings.Contains(got, "others used 30%") || !strings.Contains(got, "took 2%") {
		t.Fatalf("got %q", got)
	}
}
