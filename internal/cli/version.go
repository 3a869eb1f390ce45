package cli

import (
	"runtime/debug"
	"strings"
)

// Version describes a build.
type Version struct {
	Version  string `json:"version"`  // module version, or "devel" for a build from a checkout
	Revision string `json:"revision"` // commit, empty if unknown
	Time     string `json:"time"`     // of the commit, RFC 3339
	Modified bool   `json:"modified"` // the checkout had changes
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

// ReadVersion reads it from the build information that the Go tool puts into each binary.
func ReadVersion() Version {
	v := Version{Version: "devel"}
	bi, ok := debug.ReadBuildInfo()
	if !ok {
		return v
	}
	v.Go = bi.GoVersion
	if bi.Main.Version != "" && bi.Main.Version != "(devel)" {
		v.Version = bi.Main.Version
	}
	goos, arch := "", ""
	for _, s := range bi.Settings {
		switch s.Key {
		case "vcs.revision":
			v.Revision = s.Value
		case "vcs.time":
			v.Time = s.Value
		case "vcs.modified":
			v.Modified = s.Value == "true"
		case "GOOS":
			goos = s.Value
		case "GOARCH":
			arch = s.Value
		}
	}
	v.Platform = strings.Trim(goos+"/"+arch, "/")
	return v
}

// String is the one line that `version` prints and nodes report: shardd's version, commit, Go and platform.
func (v Version) String() string {
	out := v.Version
	if rev := v.Revision; rev != "" && !strings.Contains(v.Version, rev[:min(12, len(rev))]) {
		out += " " + rev[:min(12, len(rev))]
		if v.Modified {
			out += "+changes"
		}
	}
	return out + " " + v.Go + " " + v.Platform
}
