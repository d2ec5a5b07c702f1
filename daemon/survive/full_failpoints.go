//go:build failpoints

package survive

// With small numbers merging and compacting come often.
const (
	perMessage = 8
	enoughDead = 16
)
