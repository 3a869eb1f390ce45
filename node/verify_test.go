package node

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	pb "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
)

// verified compares the replicas of a shard from p.
func (p *proc) verified(id base.ShardID, rate uint64) []string {
	p.t.Helper()
	findings, err := p.member().verifyShard(testContext(p.t), id, rate, nil)
	if err != nil {
		p.t.Fatalf("verify %s: %v", id, err)
	}
	return findings
}

func TestVerifyFindsTheReplicaThatDiffersAndWhere(t *testing.T) {
	const shards = 1
	ps := startProcs(t, 3)
	initAll(t, ps[0], ps, shards)
	settled(t, ps[0], shards)
	l := newLedger(startSeed(t))
	l.put(t, ps[0], 50, shards)
	for _, id := range allShards(shards) {
		if f := ps[1].verified(id, 0); len(f) > 0 {
			t.Errorf("%s, untouched: %q", id, f)
		}
	}

	// Rows that no command has written, at a follower, enough before them that the second span is the one that differs.
	sick := ps[2]
	gather(t, ps[0], shards)
	fill := func(p *proc, from, n int) {
		b := p.n.eng.NewBatch()
		defer b.Close()
		for i := range n {
			b.Put(base.UserKey(fmt.Appendf(nil, "a%06d", from+i)), engine.ValueHeader{Version: 1}, []byte("x"))
		}
		if err := p.n.eng.Commit(b, false); err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range ps {
		fill(p, 0, spanRows)
	}
	if f := ps[1].verified(2, 0); len(f) > 0 {
		t.Errorf("the same rows everywhere: %q", f)
	}
	fill(sick, 7_000_000, 1)
	var done, total uint64
	findings, err := ps[1].member().verifyShard(testContext(t), 2, 0, func(d, tot uint64) { done, total = d, tot })
	if err != nil || len(findings) != 1 {
		t.Fatalf("with one row more on %s: %v %q", sick.name, err, findings)
	}
	for _, want := range []string{
		"s2 at index ", fmt.Sprintf(" on %s differs from replica ", sick.store()), fmt.Sprintf("%q to ", "a004095"),
		fmt.Sprintf(" on %s", ps[0].store()), fmt.Sprintf(" on %s", ps[1].store()),
	} {
		if !strings.Contains(findings[0], want) {
			t.Errorf("%q does not say %q", findings[0], want)
		}
	}
	if done == 0 || done != total {
		t.Errorf("progress ended at %d of %d bytes", done, total)
	}
}

func TestVerifySaysWhichReplicaCannotAnswer(t *testing.T) {
	const shards = 1
	ps := startProcs(t, 3)
	initAll(t, ps[0], ps, shards)
	settled(t, ps[0], shards)
	if err := ps[2].term(); err != nil {
		t.Fatal(err)
	}
	ps[0].member().verifyPatience = 200 * time.Millisecond
	f := ps[0].verified(2, 0)
	if len(f) != 1 || !strings.Contains(f[0], "on n") || !strings.Contains(f[0], "cannot be compared: no progress for ") {
		t.Errorf("findings %q", f)
	}
}

func TestVerifyReadsNoFasterThanAsked(t *testing.T) {
	for _, c := range []struct {
		read, rate uint64
		took, want time.Duration
	}{
		{1 << 20, 1 << 20, 0, time.Second},
		{1 << 20, 4 << 20, 50 * time.Millisecond, 200 * time.Millisecond},
		{8 << 20, 1 << 20, 9 * time.Second, -time.Second},
	} {
		if got := ahead(c.read, c.rate, c.took); got != c.want {
			t.Errorf("%d bytes at %d/s after %s: wait %s, want %s", c.read, c.rate, c.took, got, c.want)
		}
	}
	// And it is asked: with every row over the mark at which the reader looks up.
	ps := startProcs(t, 1)
	initAll(t, ps[0], ps, 1)
	value := bytes.Repeat([]byte("v"), 300<<10)
	for i := range 4 {
		eventually(t, "put", func(ctx context.Context) error {
			_, err := ps[0].kv().Put(ctx, &pb.PutRequest{Key: fmt.Appendf(nil, "k%d", i), Value: value})
			return err
		})
	}
	m := ps[0].member()
	var seen []uint64 // bytes that were read at different polls
	_, err := m.verifyShard(testContext(t), 2, 1<<20, func(done, _ uint64) {
		if done > 0 && (len(seen) == 0 || seen[len(seen)-1] != done) {
			seen = append(seen, done)
		}
	})
	if err != nil || len(seen) < 2 {
		t.Errorf("progress %v, want it in steps; %v", seen, err)
	}
}
