//go:build failpoints

package failpoint

import (
	"fmt"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Variable is the environment variable that names a point and its pass.
const Variable = "WSCAST_FAILPOINT"

var (
	point  string
	passes atomic.Int64 // left
)

func init() {
	var n int64
	if _, err := fmt.Sscan(os.Getenv(Variable), &point, &n); err == nil {
		passes.Store(n)
	}
}

// Pass kills the process if it is told to.
func Pass(name string) {
	if name == point && passes.Add(-1) == 0 {
		_ = unix.Kill(os.Getpid(), unix.SIGKILL)
		select {}
	}
}
