package ycsb

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
)

// Machine describes where figures come from: without it they mean little.
type Machine struct {
	CPU    string `json:"cpu,omitempty"` // model name, empty if unknown
	Cores  int    `json:"cores"`         // that this process may use
	Memory uint64 `json:"memory_bytes,omitempty"`
	OS     string `json:"os"`
	GOOS   string `json:"goos"`
	GOARCH string `json:"goarch"`
	Go     string `json:"go"`
}

// DescribeMachine describes this machine as well as the system tells.
func DescribeMachine() Machine {
	m := Machine{Cores: runtime.NumCPU(), OS: runtime.GOOS, GOOS: runtime.GOOS, GOARCH: runtime.GOARCH,
		Go: runtime.Version()}
	m.CPU = lookup("/proc/cpuinfo", ":", "model name")
	memory := strings.TrimSuffix(lookup("/proc/meminfo", ":", "MemTotal"), " kB")
	if kb, err := strconv.ParseUint(memory, 10, 64); err == nil {
		m.Memory = kb << 10
	}
	if name := strings.Trim(lookup("/etc/os-release", "=", "PRETTY_NAME"), `"`); name != "" {
		m.OS = name
	}
	if release, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		m.OS += ", kernel " + strings.TrimSpace(string(release))
	}
	return m
}

// String is one line, for a README.
func (m Machine) String() string {
	parts := []string{fmt.Sprintf("%d cores", m.Cores)}
	if m.CPU != "" {
		parts = []string{fmt.Sprintf("%d cores of %s", m.Cores, m.CPU)}
	}
	if m.Memory > 0 {
		parts = append(parts, fmt.Sprintf("%.1f GiB", float64(m.Memory)/(1<<30)))
	}
	return strings.Join(append(parts, m.OS, m.Go), ", ")
}

// lookup returns the first value of a key in a file of lines "key sep value", or nothing.
func lookup(path, sep, key string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(text)) {
		if k, v, ok := strings.Cut(line, sep); ok && strings.TrimSpace(k) == key {
			return strings.TrimSpace(v)
		}
	}
	return ""
}
