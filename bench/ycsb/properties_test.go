package ycsb

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func mustWorkload(t testing.TB, name string, overrides ...string) Properties {
	t.Helper()
	p, err := Workload(name)
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range overrides {
		if err := p.Override(o); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

func TestBuiltInWorkloadsHaveThePublishedMix(t *testing.T) {
	want := map[string]struct {
		shares  [numOperations]float64 // read, update, insert, scan, read-modify-write
		request string
	}{
		"a": {[...]float64{0.5, 0.5, 0, 0, 0}, "zipfian"},
		"b": {[...]float64{0.95, 0.05, 0, 0, 0}, "zipfian"},
		"c": {[...]float64{1, 0, 0, 0, 0}, "zipfian"},
		"d": {[...]float64{0.95, 0, 0.05, 0, 0}, "latest"},
		"e": {[...]float64{0, 0, 0.05, 0.95, 0}, "zipfian"},
		"f": {[...]float64{0.5, 0, 0, 0, 0.5}, "zipfian"},
	}
	for _, name := range Workloads() {
		p := mustWorkload(t, "workload"+name)
		set, err := newSettings(p)
		if err != nil {
			t.Fatalf("workload %s: %v", name, err)
		}
		if set.shares != want[name].shares || set.request != want[name].request {
			t.Errorf("workload %s: %v %s, want %v", name, set.shares, set.request, want[name])
		}
		if set.fieldCount != 10 || set.fieldLength != 100 || set.records != 1000 || set.ordered {
			t.Errorf("workload %s: %+v", name, set)
		}

		const draws = 100_000
		w := newWorkload(set, nil)
		r := rand.New(rand.NewPCG(1, 2))
		counts := [numOperations]int{}
		for range draws {
			counts[w.chooseOperation(r)]++
		}
		for op, share := range want[name].shares {
			near(t, "workload "+name+" "+operation(op).String(), counts[op], draws, share)
		}
	}
	e := mustWorkload(t, "e")
	if e.Get("minscanlength") != "1" || e.Get("maxscanlength") != "100" || e.Get("scanlengthdistribution") != "uniform" {
		t.Errorf("workload e scans %v", e)
	}
	if _, err := Workload("g"); err == nil {
		t.Error("workload g exists")
	}
}

func TestPropertyFileIsReadUnderOverrides(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mine")
	text := "# comment\n! comment\n\nrecordcount = 42\nthreadcount: 7\n  requestdistribution=hotspot  \ntable=t\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	p := mustWorkload(t, "a")
	if err := p.Load(path); err != nil {
		t.Fatal(err)
	}
	for _, o := range []string{"threadcount=9", "maxexecutiontime=1.5", "insertstart=2"} {
		if err := p.Override(o); err != nil {
			t.Fatal(err)
		}
	}
	set, err := newSettings(p)
	if err != nil {
		t.Fatal(err)
	}
	if set.records != 42 || set.threads != 9 || set.request != "hotspot" || set.limit != 1500*time.Millisecond ||
		set.insertCount != 40 || set.keyPrefix != "t:user" || set.shares[opRead] != 0.5 {
		t.Fatalf("%+v", set)
	}
	if p.Load(filepath.Join(t.TempDir(), "none")) == nil {
		t.Error("a missing file is no error")
	}
}

func TestUnknownPropertiesAreRefusedWithAHint(t *testing.T) {
	p := Properties{}
	for in, want := range map[string]string{
		"recordcnt=5":       `unknown property "recordcnt": did you mean "recordcount"?`,
		"completelyother=1": `unknown property "completelyother"`,
		"recordcount":       `property "recordcount" is not key=value`,
	} {
		if err := p.Override(in); err == nil || err.Error() != want {
			t.Errorf("%s: %v, want %s", in, err, want)
		}
	}
	err := p.Read(strings.NewReader("threadcount=3\nnonsense\nfieldcout=1\n"))
	if err == nil || !strings.Contains(err.Error(), "line 2") || !strings.Contains(err.Error(), "line 3") {
		t.Errorf("bad file: %v", err)
	}
	if len(p) != 0 {
		t.Errorf("a bad file changed %v", p)
	}
	if err := (Properties{"recrdcount": "1"}).Validate(); err == nil {
		t.Error("an unknown key put in directly is valid")
	}
}

func TestBadValuesAreNamed(t *testing.T) {
	for _, bad := range []string{
		"recordcount=0", "recordcount=many", "threadcount=0", "threadcount=-1", "target=-5", "target=NaN",
		"readproportion=1.5", "requestdistribution=gaussian", "scanlengthdistribution=histogram", "dataintegrity=maybe",
		"maxexecutiontime=-1", "maxexecutiontime=soon", "insertstart=2000", "insertcount=2000", "insertorder=random",
		"workload=site.ycsb.workloads.ConstantOccupancyWorkload", "fieldlength=0", "hotspotdatafraction=0",
		"maxscanlength=0",
	} {
		key, _, _ := strings.Cut(bad, "=")
		p := mustWorkload(t, "a", bad)
		if key == "hotspotdatafraction" {
			p["requestdistribution"] = "hotspot"
		}
		err := p.Validate()
		if err == nil || !strings.Contains(err.Error(), strings.Replace(key, "insertcount", "insert", 1)) {
			t.Errorf("%s: %v", bad, err)
		}
	}
	p := mustWorkload(t, "c", "readproportion=0")
	if p.Validate() == nil {
		t.Error("a workload without operations is valid")
	}
	p = mustWorkload(t, "a", "dataintegrity=true", "fieldlengthdistribution=uniform")
	if p.Validate() == nil {
		t.Error("dataintegrity with fields of any length is valid")
	}
}
