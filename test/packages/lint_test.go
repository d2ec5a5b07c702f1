package packages

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"wscast/test/harness"
)

func TestLintianIsContent(t *testing.T) {
	harness.Find(t, "lintian", "lintian")
	cmd := exec.Command("lintian", "--allow-root", "--display-info", "--fail-on=error,warning", build(t, "deb", first))
	out, err := cmd.CombinedOutput()
	// An override that is not needed any more is information to lintian.
	if err != nil || strings.Contains(string(out), "-override ") {
		t.Errorf("lintian: %v\n%s", err, out)
	}
}

func TestRpmlintIsContent(t *testing.T) {
	harness.Find(t, "rpmlint", "rpmlint")
	packaging := filepath.Join(harness.Repository(t), "packaging/rpm")
	cmd := exec.Command("rpmlint", "--strict", "--rpmlintrc="+packaging+"/wscast.rpmlintrc", build(t, "rpm", first), packaging+"/wscast.spec")
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), " 0 errors, 0 warnings") {
		t.Errorf("rpmlint: %v\n%s", err, out)
	}
}

// Programs are loaded to random addresses, and what is written once at the start is read-only afterwards.
func TestProgramsAreHardened(t *testing.T) {
	harness.Find(t, "readelf", "binutils")
	for kind, unpack := range map[string]string{"deb": `dpkg-deb -x "$1" "$2"`, "rpm": `cd "$2" && rpm2cpio "$1" | cpio -idm --quiet`} {
		dir := t.TempDir()
		run(t, nil, "sh", "-c", unpack, "unpack", build(t, kind, first), dir)
		for _, program := range []string{"usr/bin/wscast", "usr/sbin/wscastd"} {
			headers := run(t, nil, "readelf", "--wide", "--file-header", "--program-headers", "--dynamic", filepath.Join(dir, program))
			for _, want := range []string{"DYN (Position-Independent Executable file)", "GNU_RELRO", "Flags: PIE"} {
				if !strings.Contains(headers, want) {
					t.Errorf("%s of the %s has no %s:\n%s", program, kind, want, headers)
				}
			}
			if strings.Contains(headers, "(NEEDED)") || strings.Contains(headers, "RWE") {
				t.Errorf("%s of the %s needs a library, or has memory that is written and executed:\n%s", program, kind, headers)
			}
		}
	}
}

// Where Fedora's macros are there, they are used: the sockets are never restarted.
func TestSpecUsesFedorasMacros(t *testing.T) {
	harness.Find(t, "rpmspec", "rpm")
	args := []string{"rpmspec", "--parse"}
	for _, macro := range []string{"systemd_post", "systemd_preun", "systemd_postun", "systemd_postun_with_restart"} {
		args = append(args, "--define", macro+"() "+macro+" %{*}")
	}
	spec := run(t, nil, append(args, filepath.Join(harness.Repository(t), "packaging/rpm/wscast.spec"))...)
	_, scriptlets, _ := strings.Cut(spec, "\n%post\n")
	scriptlets, _, _ = strings.Cut(scriptlets, "\n%files\n")
	var got []string
	for line := range strings.Lines(scriptlets) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			got = append(got, line)
		}
	}
	want := []string{
		"systemd-sysusers /usr/lib/sysusers.d/wscast.conf || :",
		"systemd_post wscast.socket wscast-publish.socket wscast.service",
		"%preun",
		"systemd_preun wscast.service wscast.socket wscast-publish.socket",
		"%postun",
		"systemd_postun wscast.socket wscast-publish.socket",
		"systemd_postun_with_restart wscast.service",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("the scriptlets are\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
