package ipc

// Match reports whether a channel's name matches a Redis glob, as PSUBSCRIBE understands it.
func Match(pattern, name string) bool { return matchGlob(pattern, name) }
