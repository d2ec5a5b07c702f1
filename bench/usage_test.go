package main

import (
	"os"
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

func TestMachineTimeSince(t *testing.T) {
	from := machineTime{total: 100 * time.Second, busy: 50 * time.Second, stolen: time.Second, ours: 10 * time.Second}
	to := machineTime{total: 200 * time.Second, busy: 110 * time.Second, stolen: 3 * time.Second, ours: 40 * time.Second}
	if others, stolen := to.since(from); others != 30 || stolen != 2 {
		t.Fatalf("others took %v%% and the hypervisor %v%%, want 30 and 2", others, stolen)
	}
}

func TestResent(t *testing.T) {
	if n, err := resent(); err != nil || n < 0 {
		t.Fatalf("got %v, %v", n, err)
	}
}
