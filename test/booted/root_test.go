package booted

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// builder makes a root that has one file, and counts.
func builder(built *int) func(string) error {
	return func(dir string) error {
		*built++
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(dir, "complete"), nil, 0o644)
	}
}

func get(t *testing.T, c rootCache, key string) string {
	t.Helper()
	root, err := c.get(key)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(root, "complete")); err != nil {
		t.Fatalf("the root is not complete: %v", err)
	}
	return root
}

func TestRootIsBuiltOnce(t *testing.T) {
	built := 0
	c := rootCache{filepath.Join(t.TempDir(), "cache"), builder(&built)}
	first := get(t, c, "packages")
	if second := get(t, c, "packages"); second != first || built != 1 {
		t.Errorf("built %d times, at %s and %s", built, first, second)
	}
}

func TestRootOfOtherPackagesIsAnother(t *testing.T) {
	built := 0
	c := rootCache{t.TempDir(), builder(&built)}
	first := get(t, c, "packages")
	if second := get(t, c, "packages and one more"); second == first || built != 2 {
		t.Errorf("built %d times, at %s and %s", built, first, second)
	}
}

func TestFailedRootIsNotUsed(t *testing.T) {
	built, broken := 0, errors.New("no network")
	c := rootCache{t.TempDir(), func(dir string) error { os.Mkdir(dir, 0o755); return broken }}
	if root, err := c.get("packages"); !errors.Is(err, broken) {
		t.Fatalf("got %q %v, expected the builder's error", root, err)
	}
	c.build = builder(&built)
	get(t, c, "packages")
}

func TestInterruptedRootIsNotUsed(t *testing.T) {
	built := 0
	c := rootCache{t.TempDir(), builder(&built)}
	root := get(t, c, "packages")
	// What a builder leaves that is killed.
	if err := os.RemoveAll(root); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(root+partial, "usr"), 0o755); err != nil {
		t.Fatal(err)
	}
	get(t, c, "packages")
	if built != 2 {
		t.Errorf("built %d times, expected 2", built)
	}
}
