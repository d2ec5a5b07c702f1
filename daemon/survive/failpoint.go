//go:build failpoints

package survive

import (
	"fmt"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// FailpointVariable is the environment variable that names a point and at which pass of it the process is killed: "park.sent 3".
const FailpointVariable = "WSCAST_FAILPOINT"

// With small numbers merging and compacting come often.
const (
	perMessage = 8
	enoughDead = 16
)

var (
	pointName   string
	pointPasses atomic.Int64
)

func init() {
	var n int64
	if _, err := fmt.Sscan(os.Getenv(FailpointVariable), &pointName, &n); err == nil {
		pointPasses.Store(n)
	}
}

// Point kills the process if it is told to.
func Point(name string) {
	if name == pointName && pointPasses.Add(-1) == 0 {
		_ = unix.Kill(os.Getpid(), unix.SIGKILL)
		select {}
	}
}
