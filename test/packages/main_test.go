package packages

import (
	"os"
	"testing"

	"wscast/test/booted"
	"wscast/test/harness"
)

func TestMain(m *testing.M) {
	code := harness.Main(m)
	booted.RemoveLayers()
	built.remove()
	os.Exit(code)
}
