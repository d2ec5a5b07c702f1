package main

import (
	"encoding/json"
	"strings"
	"testing"

	"wscast/ipc"
)

var sections = []ipc.Section{
	{Name: "Clients", Fields: []ipc.Field{{Key: "redis_field_of_some_length", Value: "7.2"}, {Key: "role", Value: "master"}, {Key: "connected", Value: "1234"}, {Key: "channels", Value: "2"}}},
	{Name: "Log", Fields: []ipc.Field{
		{Key: "log_size_bytes", Value: "67108864"},
		{Key: "log_oldest_in_seconds", Value: "273780"},
		{Key: "log_epoch", Value: "1234567890123456"},
		{Key: "log_path", Value: `a "quoted" path:1`},
		{Key: "log_none", Value: ""},
	}},
}

func TestStatusText(t *testing.T) {
	got := string(statusText(sections))
	want := `Clients
  connected              1234
  channels               2

Log
  log_size_bytes         67108864 (64.0 MiB)
  log_oldest_in_seconds  273780 (3d4h3m0s)
  log_epoch              1234567890123456
  log_path               a "quoted" path:1
  log_none
`
	if got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

func TestStatusJSON(t *testing.T) {
	got := string(statusJSON(sections))
	want := `{
  "Clients": {
    "redis_field_of_some_length": 7.2,
    "role": "master",
    "connected": 1234,
    "channels": 2
  },
  "Log": {
    "log_size_bytes": 67108864,
    "log_oldest_in_seconds": 273780,
    "log_epoch": "1234567890123456",
    "log_path": "a \"quoted\" path:1",
    "log_none": ""
  }
}
`
	if got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
	if got := string(statusJSON(nil)); got != "{}\n" {
		t.Errorf("nothing is %q", got)
	}
}

func TestLargeUnits(t *testing.T) {
	for _, c := range [][3]string{
		{"uptime_in_seconds", "59", ""},
		{"uptime_in_seconds", "60", "1m0s"},
		{"uptime_in_seconds", "86399", "23h59m59s"},
		{"uptime_in_seconds", "86400", "1d0s"},
		{"uptime_in_seconds", "18446744073709551615", "213503982334601d7h0m15s"},
		{"oldest_age_seconds", "59.999", ""},
		{"oldest_age_seconds", "61.500", "1m1s"},
		{"messages_per_second", "100.0", ""},
		{"sent_bytes", "1023", ""},
		{"sent_bytes", "1536", "1.5 KiB"},
		{"sent_bytes", "18446744073709551615", "16.0 EiB"},
		{"sent_bytes", "-2048", ""},
		{"sent_bytes", "many", ""},
		{"clients", "100000", ""},
	} {
		if got := inLargeUnits(c[0], c[1]); got != c[2] {
			t.Errorf("%s:%s is %q, want %q", c[0], c[1], got, c[2])
		}
	}
}

func TestNumbers(t *testing.T) {
	for _, c := range []struct {
		key, value string
		number     bool
	}{
		{"clients", "0", true},
		{"clients", "-1", true},
		{"rate", "12.50", true},
		{"rate", "12.", false},
		{"rate", ".5", false},
		{"rate", "007", false},
		{"rate", "1e5", false},
		{"rate", "NaN", false},
		{"rate", "", false},
		{"rate", "1,5", false},
		{"version", "1.0", false},
		{"redis_version", "7.2", false},
		{"run_id", "12345", false},
		{"log_epoch", "12345", false},
	} {
		if got := isNumber(c.key, c.value); got != c.number {
			t.Errorf("%s:%s is a number: %v, want %v", c.key, c.value, got, c.number)
		}
	}
}

func TestStatus(t *testing.T) {
	d := startDaemon(t)
	d.mu.Lock()
	d.info = sections
	d.mu.Unlock()
	t.Setenv("WSCAST_SOCKET", d.socket)

	r := wscast(t, "", "status")
	if r.code != 0 || r.stderr != "" {
		t.Fatalf("%+v", r)
	}
	for _, want := range []string{"Server\n", "  connected ", "1.2.3", "67108864 (64.0 MiB)\n"} {
		if !strings.Contains(r.stdout, want) {
			t.Errorf("lacks %q", want)
		}
	}

	r = wscast(t, "", "status", "--json")
	var status map[string]map[string]any
	if err := json.Unmarshal([]byte(r.stdout), &status); err != nil || r.code != 0 || r.stderr != "" {
		t.Fatalf("%v: %+v", err, r)
	}
	if status["Clients"]["connected"] != 1234.0 || status["Log"]["log_epoch"] != "1234567890123456" {
		t.Errorf("got %v", status)
	}
	if uptime, ok := status["Server"]["uptime_in_seconds"].(float64); !ok || uptime < 0 {
		t.Errorf("Server is %v", status["Server"])
	}
}
