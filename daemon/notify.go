package daemon

import (
	"log/slog"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

// notifier talks to the service manager (sd_notify(3)). Without one, all of it does nothing.
type notifier struct{ log *slog.Logger }

func (n notifier) send(state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		n.log.Warn("cannot notify the service manager", "state", state, "error", err)
	}
}

func (n notifier) ready(status string) { n.send(daemon.SdNotifyReady + "\nSTATUS=" + status) }
func (n notifier) status(text string)  { n.send("STATUS=" + text) }
func (n notifier) stopping()           { n.send(daemon.SdNotifyStopping) }
func (n notifier) alive()              { n.send(daemon.SdNotifyWatchdog) }

// reloading needs the time as well, for Type=notify-reload.
func (n notifier) reloading() {
	n.send(daemon.SdNotifyReloading + "\n" + daemon.SdNotifyMonotonicUsec())
}

// watchdog returns how often to say that the daemon is alive, 0 if WatchdogSec= is not set: four times in that interval, not
// twice as sd_watchdog_enabled(3) recommends, so that one turn that comes late does not end the process.
func (n notifier) watchdog() time.Duration {
	interval, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		n.log.Warn("cannot use the watchdog", "error", err)
	}
	return interval / 4
}
