//go:build !failpoints

package survive

const (
	// perMessage is how many descriptors one message carries at most (SCM_MAX_FD in net/scm.h).
	perMessage = 253
	// enoughDead is how many of a segment have to have left before its living are parked anew.
	enoughDead = 1024
)
