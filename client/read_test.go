package client_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/shardd/shardd/client"
)

// fromClients returns how many operations of clients a node has taken.
func fromClients(t *testing.T, g prometheus.Gatherer) (n float64) {
	t.Helper()
	all, err := g.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range all {
		if f.GetName() != "shardd_node_operations_total" {
			continue
		}
		for _, m := range f.GetMetric() {
			if m.GetLabel()[0].GetValue() == "client" {
				n += m.GetCounter().GetValue()
			}
		}
	}
	return n
}

// TestReadsGoToTheNodeOfTheClientsZone checks values against real nodes, and by the nodes' metrics who was asked.
func TestReadsGoToTheNodeOfTheClientsZone(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	c, err := startCluster(ctx, 3, "d", "h", "m", "q")
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := c.stop(); err != nil {
			t.Error(err)
		}
	}()
	for zone := range 3 {
		name := string(rune('a' + zone))
		db, err := client.Open(ctx, c.endpoints, client.WithLabels(map[string]string{"zone": name, "kind": "test"}))
		if err != nil {
			t.Fatal(err)
		}
		all := db.All()
		var keys [][]byte
		for i := range 26 {
			k := fmt.Appendf(nil, "%c", 'a'+i)
			if _, err := all.Put(ctx, k, fmt.Appendf(nil, "%s%d", name, i)); err != nil {
				t.Fatal(err)
			}
			keys = append(keys, k)
		}
		before := [3]float64{}
		for i, n := range c.nodes {
			before[i] = fromClients(t, n.Metrics())
		}
		values, err := all.MultiGet(ctx, keys, client.AtFollower())
		if err != nil {
			t.Fatal(err)
		}
		for i, v := range values {
			if string(v.Bytes) != fmt.Sprintf("%s%d", name, i) {
				t.Errorf("zone %s: key %s is %q", name, keys[i], v.Bytes)
			}
		}
		rows := 0
		for row, err := range all.Scan(ctx, client.AtFollower(), client.Parallel(4)) {
			if err != nil || !strings.HasPrefix(string(row.Value), name) {
				t.Fatalf("zone %s: scan: %q is %q, %v", name, row.Key, row.Value, err)
			}
			rows++
		}
		if v, err := all.Get(ctx, keys[3], client.Stale(time.Minute)); err != nil || !v.Exists() {
			t.Errorf("zone %s: stale read: %v", name, err)
		}
		if _, err := all.Get(ctx, []byte("none"), client.Stale(time.Minute)); !errors.Is(err, client.ErrNotFound) {
			t.Errorf("zone %s: absent key: %v", name, err)
		}
		if rows != 26 {
			t.Errorf("zone %s: %d rows", name, rows)
		}
		var got [3]float64
		for i, n := range c.nodes {
			got[i] = fromClients(t, n.Metrics()) - before[i]
		}
		// A follower that is behind, or does not know its leader yet, may have been passed over.
		if near := got[zone]; near < got[(zone+1)%3] || near < got[(zone+2)%3] {
			t.Errorf("zone %s: the nodes of zones a, b and c got %v operations", name, got)
		}
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestStaleReadsWithoutABoundAndImpossibleScansAreRefused(t *testing.T) {
	n := startFake(t)
	db := openFake(t, n)
	ctx := context.Background()
	ops := n.ops.Load()
	for _, d := range []time.Duration{0, -time.Second, time.Microsecond} {
		if _, err := db.All().Get(ctx, []byte("k"), client.Stale(d)); !errors.Is(err, client.ErrInvalid) {
			t.Errorf("bound of %s: %v", d, err)
		}
		if _, err := db.All().MultiGet(ctx, [][]byte{[]byte("k")}, client.Stale(d)); !errors.Is(err, client.ErrInvalid) {
			t.Errorf("bound of %s: %v", d, err)
		}
	}
	for _, o := range []client.ScanOption{client.Stale(0), client.Parallel(-1), client.Parallel(100_000), client.Budget(-1)} {
		for _, err := range db.All().Scan(ctx, o) {
			if !errors.Is(err, client.ErrInvalid) {
				t.Errorf("scan: %v", err)
			}
		}
	}
	if n.ops.Load() != ops {
		t.Error("something was sent")
	}
}
