package snapshotter

import (
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/shardd/shardd/internal/base"
)

// sums adds up each metric over its labels that hold the given words.
func sums(t *testing.T, reg *prometheus.Registry, words ...string) map[string]float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]float64{}
	for _, f := range families {
	metric:
		for _, m := range f.GetMetric() {
			for _, w := range words {
				if !strings.Contains(m.String(), `"`+w+`"`) {
					continue metric
				}
			}
			n := m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
			out[strings.TrimPrefix(f.GetName(), "shardd_snapshotter_")] += n
		}
	}
	return out
}

func TestMetricsCountBothSides(t *testing.T) {
	regs := map[base.StoreID]*prometheus.Registry{source: prometheus.NewRegistry(), sink: prometheus.NewRegistry()}
	p := newPair(t, options{config: func(c *Config) { c.Registerer = regs[c.Store] }})
	d := p.testShard(10, 2000, 500)
	p.mustSend(d)
	if n := sums(t, regs[source], "send", "sent")["ended_total"]; n != 1 {
		t.Errorf("%v sent", n)
	}
	waitFor(t, "received", func() bool { return sums(t, regs[sink], "receive", "received")["ended_total"] == 1 })
	sent, received := sums(t, regs[source])["sent_bytes"], sums(t, regs[sink])["received_bytes"]
	if size := float64(p.stateBytes(d)); sent != size || received != size {
		t.Errorf("%v bytes sent, %v received, want %v", sent, received, size)
	}
	for _, phase := range []string{"reserve", "stream", "verify", "install"} {
		if n := sums(t, regs[source], "send", phase)["phase_seconds"]; n != 1 {
			t.Errorf("sender: %v observations of %s", n, phase)
		}
		if n := sums(t, regs[sink], "receive", phase)["phase_seconds"]; n != 1 {
			t.Errorf("receiver: %v observations of %s", n, phase)
		}
	}
	if _, err := New(p.from.service.cfg); err == nil {
		t.Error("two services share one registerer")
	}
	p.from.halt()
	if families, err := regs[source].Gather(); err != nil || len(families) != 0 {
		t.Errorf("%d metrics are left after Run, %v", len(families), err)
	}
}
