package ycsb

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// settings are Properties with their types and with every check made.
type settings struct {
	keyPrefix   string // table included
	zeroPadding int
	ordered     bool

	fieldCount, fieldLength, minFieldLength int
	fieldLengths                            string
	writeAll                                bool

	shares  [numOperations]float64 // by kind, READ to READ_MODIFY_WRITE
	request string

	hotData, hotOperations float64
	expPercentile, expFrac float64

	minScan, maxScan int
	scanLengths      string

	records, insertStart, insertCount, operations int64

	retries       int
	retryInterval time.Duration
	integrity     bool

	threads       int
	target        float64
	limit, warmup time.Duration
	seed          uint64
}

// newSettings parses and checks p. The error names every property that is wrong.
func newSettings(p Properties) (*settings, error) {
	r := reader{p: p}
	for key := range p {
		if err := (Properties{}).Set(key, ""); err != nil {
			r.errs = append(r.errs, err)
		}
	}
	s := &settings{
		keyPrefix:      p.Get("keyprefix"),
		zeroPadding:    int(r.integer("zeropadding", 0, 64)),
		ordered:        r.choice("insertorder", "hashed", "ordered") == "ordered",
		fieldCount:     int(r.integer("fieldcount", 1, 1<<16)),
		fieldLength:    int(r.integer("fieldlength", 1, 1<<20)),
		minFieldLength: int(r.integer("minfieldlength", 1, 1<<20)),
		fieldLengths:   r.choice("fieldlengthdistribution", "constant", "uniform", "zipfian"),
		writeAll:       r.boolean("writeallfields"),
		request: r.choice("requestdistribution",
			"uniform", "zipfian", "latest", "hotspot", "sequential", "exponential"),
		hotData:       r.number("hotspotdatafraction", 0, 1),
		hotOperations: r.number("hotspotopnfraction", 0, 1),
		expPercentile: r.number("exponential.percentile", 0, 100),
		expFrac:       r.number("exponential.frac", 0, 1),
		minScan:       int(r.integer("minscanlength", 1, math.MaxInt32)),
		maxScan:       int(r.integer("maxscanlength", 1, math.MaxInt32)),
		scanLengths:   r.choice("scanlengthdistribution", "uniform", "zipfian"),
		records:       r.integer("recordcount", 1, math.MaxInt64/4),
		insertStart:   r.integer("insertstart", 0, math.MaxInt64/4),
		operations:    r.integer("operationcount", 0, math.MaxInt64/4),
		retries:       int(r.integer("core_workload_insertion_retry_limit", 0, math.MaxInt32)),
		retryInterval: r.duration("core_workload_insertion_retry_interval"),
		integrity:     r.boolean("dataintegrity"),
		threads:       int(r.integer("threadcount", 1, 1<<16)),
		target:        r.number("target", 0, 1e9),
		limit:         r.duration("maxexecutiontime"),
		warmup:        r.duration("warmuptime"),
		seed:          uint64(r.integer("seed", 0, math.MaxInt64)),
	}
	r.boolean("readallfields")
	if t := p.Get("table"); t != "" {
		s.keyPrefix = t + ":" + s.keyPrefix
	}
	if w := p.Get("workload"); w != "core" && !strings.HasSuffix(w, ".CoreWorkload") {
		r.bad("workload", "there is only the core workload")
	}
	sum := 0.0
	for kind, key := range shareKeys() {
		s.shares[kind] = r.number(key, 0, 1)
		sum += s.shares[kind]
	}
	if sum == 0 {
		r.errs = append(r.errs, errors.New("all proportions are 0: a run would have no operation to do"))
	}
	s.insertCount = s.records - s.insertStart
	if p.Get("insertcount") != "" {
		s.insertCount = r.integer("insertcount", 1, math.MaxInt64/4)
	}
	r.consistent(s)
	if len(r.errs) > 0 {
		return nil, errors.Join(r.errs...)
	}
	return s, nil
}

// consistent checks properties against each other.
func (r *reader) consistent(s *settings) {
	if len(r.errs) > 0 {
		return // values that did not parse would make nonsense of these
	}
	if s.insertCount < 1 || s.insertStart+s.insertCount > s.records {
		r.bad("insertstart", fmt.Sprintf("insertstart %d + insertcount %d must lie within recordcount %d",
			s.insertStart, s.insertCount, s.records))
	}
	if s.maxScan < s.minScan {
		r.bad("maxscanlength", fmt.Sprintf("less than minscanlength %d", s.minScan))
	}
	if s.fieldLengths == "constant" {
		s.minFieldLength = s.fieldLength
	}
	if s.fieldLength < s.minFieldLength {
		r.bad("fieldlength", fmt.Sprintf("less than minfieldlength %d", s.minFieldLength))
	}
	if s.integrity && s.fieldLengths != "constant" {
		r.bad("dataintegrity", "needs fieldlengthdistribution=constant")
	}
	if hot := int64(float64(s.insertCount) * s.hotData); s.request == "hotspot" && (hot < 1 || hot >= s.insertCount) {
		r.bad("hotspotdatafraction", fmt.Sprintf("makes %d of %d records hot: both sets need records", hot, s.insertCount))
	}
	if s.request == "exponential" && (s.expPercentile <= 0 || s.expPercentile >= 100 || s.expFrac <= 0) {
		r.bad("exponential.percentile", "must lie between 0 and 100, and exponential.frac above 0")
	}
}

// reader collects what is wrong.
type reader struct {
	p    Properties
	errs []error
}

func (r *reader) bad(key, why string) {
	r.errs = append(r.errs, fmt.Errorf("property %s=%s: %s", key, r.p.Get(key), why))
}

func (r *reader) integer(key string, lo, hi int64) int64 {
	n, err := strconv.ParseInt(r.p.Get(key), 10, 64)
	if err != nil || n < lo || n > hi {
		r.bad(key, fmt.Sprintf("must be a whole number from %d to %d", lo, hi))
	}
	return n
}

func (r *reader) number(key string, lo, hi float64) float64 {
	f, err := strconv.ParseFloat(r.p.Get(key), 64)
	if err != nil || math.IsNaN(f) || f < lo || f > hi {
		r.bad(key, fmt.Sprintf("must be a number from %g to %g", lo, hi))
	}
	return f
}

func (r *reader) boolean(key string) bool {
	return r.choice(key, "true", "false") == "true"
}

func (r *reader) choice(key string, of ...string) string {
	v := strings.ToLower(r.p.Get(key))
	if !slices.Contains(of, v) {
		r.bad(key, "must be one of "+strings.Join(of, ", "))
	}
	return v
}

func (r *reader) duration(key string) time.Duration {
	v := r.p.Get(key)
	if secs, err := strconv.ParseFloat(v, 64); err == nil && secs >= 0 && secs < 1e9 {
		return time.Duration(secs * float64(time.Second))
	}
	d, err := time.ParseDuration(v)
	if err != nil || d < 0 {
		r.bad(key, "must be seconds, or a duration as 90s or 5m")
	}
	return d
}
