package hostile

import (
	"os"
	"testing"

	"wscast/test/harness"
)

func TestMain(m *testing.M) { os.Exit(harness.Main(m)) }
