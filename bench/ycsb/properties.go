package ycsb

import (
	"bufio"
	"embed"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

//go:embed workloads
var workloadFiles embed.FS

// Properties are the settings of a workload under YCSB's names. A key that is missing has its default (see Keys).
// Set and Load refuse keys that do not exist.
type Properties map[string]string

// Key describes one property.
type Key struct {
	// Name as in a property file or after -p.
	Name string
	// Default is what a missing key means; empty if there is none.
	Default string
	// Doc is one line for a help text.
	Doc string
}

// Keys lists every property that exists, grouped by what it is about.
func Keys() []Key {
	return []Key{
		{"workload", "site.ycsb.workloads.CoreWorkload", "only the core workload exists"},
		{"recordcount", "1000", "records in the store once it is loaded"},
		{"operationcount", "0", "operations of a run; 0: bounded by maxexecutiontime alone"},
		{"maxexecutiontime", "0", "longest run, in seconds or as a duration (90s); 0: bounded by operationcount alone"},
		{"warmuptime", "0", "time before the measured part of a run, in seconds or as a duration"},
		{"threadcount", "1", "concurrent workers"},
		{"target", "0", "operations per second of an open loop; 0: closed loop"},
		{"insertstart", "0", "first record number of a load, and of the records that a run picks from"},
		{"insertcount", "", "records of a load from insertstart on; default recordcount - insertstart"},
		{"insertorder", "hashed", "hashed or ordered: whether record numbers are hashed into key names"},
		{"zeropadding", "1", "least number of digits in a key name"},
		{"keyprefix", "user", "what key names begin with"},
		{"table", "", "if set, keys begin with it and a colon"},
		{"fieldcount", "10", "fields of a record"},
		{"fieldlength", "100", "bytes of a field, at most"},
		{"minfieldlength", "1", "bytes of a field, at least, where fieldlengthdistribution is not constant"},
		{"fieldlengthdistribution", "constant", "constant, uniform or zipfian (short fields first)"},
		{"fieldnameprefix", "field", "accepted; fields have positions, not names"},
		{"readallfields", "true", "accepted; a read always fetches the whole record"},
		{"writeallfields", "false", "a read-modify-write replaces all fields, or one; an update always all"},
		{"readproportion", "0.95", "share of reads"},
		{"updateproportion", "0.05", "share of updates"},
		{"insertproportion", "0", "share of inserts"},
		{"scanproportion", "0", "share of scans"},
		{"readmodifywriteproportion", "0", "share of read-modify-writes"},
		{"requestdistribution", "uniform", "uniform, zipfian, latest, hotspot, sequential or exponential"},
		{"hotspotdatafraction", "0.2", "share of the records that are hot"},
		{"hotspotopnfraction", "0.8", "share of the operations on hot records"},
		{"exponential.percentile", "95", "percentage of operations on the newest exponential.frac of the records"},
		{"exponential.frac", "0.8571428571", "see exponential.percentile"},
		{"minscanlength", "1", "records of a scan, at least"},
		{"maxscanlength", "1000", "records of a scan, at most"},
		{"scanlengthdistribution", "uniform", "uniform or zipfian (short scans first)"},
		{"core_workload_insertion_retry_limit", "0", "times that a load repeats an insert that failed"},
		{"core_workload_insertion_retry_interval", "3", "mean wait before such a repeat, in seconds or as a duration"},
		{"dataintegrity", "false", "write records that follow from their key and check every record read"},
		{"seed", "1", "seed of all random choices"},
	}
}

// Workloads names the built-in workloads.
func Workloads() []string { return []string{"a", "b", "c", "d", "e", "f"} }

// Workload returns the properties of a built-in workload: a to f, or workloada to workloadf.
func Workload(name string) (Properties, error) {
	short := strings.TrimPrefix(strings.ToLower(name), "workload")
	if !slices.Contains(Workloads(), short) {
		return nil, fmt.Errorf("no built-in workload %q: there are a, b, c, d, e and f", name)
	}
	f, err := workloadFiles.Open("workloads/workload" + short)
	if err != nil {
		return nil, fmt.Errorf("open built-in workload %s: %w", short, err)
	}
	defer f.Close()
	p := Properties{}
	if err := p.Read(f); err != nil {
		return nil, fmt.Errorf("built-in workload %s: %w", short, err)
	}
	return p, nil
}

// Load adds the properties of a file, over those already there.
func (p Properties) Load(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open property file: %w", err)
	}
	defer f.Close()
	if err := p.Read(f); err != nil {
		return fmt.Errorf("property file %s: %w", path, err)
	}
	return nil
}

// Read adds properties in the format of a property file: key=value or key: value a line, # and ! for comments.
// It reports every bad line, and changes nothing if there is one.
func (p Properties) Read(r io.Reader) error {
	var errs []error
	got := Properties{}
	lines := bufio.NewScanner(r)
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || line[0] == '#' || line[0] == '!' {
			continue
		}
		at := strings.IndexAny(line, "=:")
		if at < 0 {
			errs = append(errs, fmt.Errorf("line %d: %q is not key=value", n, line))
			continue
		}
		if err := got.Set(strings.TrimSpace(line[:at]), strings.TrimSpace(line[at+1:])); err != nil {
			errs = append(errs, fmt.Errorf("line %d: %w", n, err))
		}
	}
	if err := lines.Err(); err != nil {
		errs = append(errs, err)
	}
	if len(errs) > 0 {
		return errors.Join(errs...)
	}
	maps.Copy(p, got)
	return nil
}

// Override sets a property given as key=value, as after -p.
func (p Properties) Override(assignment string) error {
	key, value, ok := strings.Cut(assignment, "=")
	if !ok {
		return fmt.Errorf("property %q is not key=value", assignment)
	}
	return p.Set(strings.TrimSpace(key), strings.TrimSpace(value))
}

// Set sets one property. An unknown key is refused with the nearest known one; a bad value is found by Validate.
func (p Properties) Set(key, value string) error {
	best, distance := "", 4
	for _, k := range Keys() {
		if k.Name == key {
			p[key] = value
			return nil
		}
		if d := editDistance(k.Name, key); d < distance {
			best, distance = k.Name, d
		}
	}
	if best != "" {
		return fmt.Errorf("unknown property %q: did you mean %q?", key, best)
	}
	return fmt.Errorf("unknown property %q", key)
}

// Get returns a property or its default.
func (p Properties) Get(key string) string {
	if v, ok := p[key]; ok {
		return v
	}
	for _, k := range Keys() {
		if k.Name == key {
			return k.Default
		}
	}
	return ""
}

// Bound ends a run after this many operations and this long, whichever comes first; 0 is no bound.
func (p Properties) Bound(operations int64, limit time.Duration) {
	p["operationcount"] = strconv.FormatInt(operations, 10)
	p["maxexecutiontime"] = limit.String()
}

// Clone returns a copy.
func (p Properties) Clone() Properties { return maps.Clone(p) }

// Validate says everything that is wrong with the properties, or nil.
func (p Properties) Validate() error {
	_, err := newSettings(p)
	return err
}

// editDistance is Levenshtein's, for the hint at a misspelt key.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}
