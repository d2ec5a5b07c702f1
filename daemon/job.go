package daemon

import (
	"context"
	"os"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"
)

// jobPatience is how long systemd may take to answer at a stop.
const jobPatience = 2 * time.Second

// forGood tells a stop from a restart, in both of which systemd sends SIGTERM: it asks over D-Bus for the job that the
// service has at this moment. Without an answer, or without a job, it is a restart: to take a stop for a restart
// costs clients their close frame, to take a restart for a stop would cost them their connection.
func forGood() (bool, error) {
	ctx, cancel := context.WithTimeout(context.Background(), jobPatience)
	defer cancel()
	bus, err := dbus.NewSystemConnectionContext(ctx)
	if err != nil {
		return false, err
	}
	defer bus.Close()
	unit, err := bus.GetUnitNameByPID(ctx, uint32(os.Getpid()))
	if err != nil {
		return false, err
	}
	jobs, err := bus.ListJobsContext(ctx)
	if err != nil {
		return false, err
	}
	for _, job := range jobs {
		if job.Unit == unit {
			return job.JobType == "stop", nil
		}
	}
	return false, nil
}
