package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/shard"
	"github.com/shardd/shardd/shard/apply"
)

// userShards lists the shards of user data by their start.
func userShards(ctx context.Context, p *proc) ([]*pb.ShardInfo, error) {
	list, err := p.admin().ListShards(ctx, &pb.ListShardsRequest{})
	if err != nil {
		return nil, err
	}
	var out []*pb.ShardInfo
	for _, s := range list.Shards {
		if base.ShardID(s.ShardId) != base.MetaShard {
			out = append(out, s)
		}
	}
	slices.SortFunc(out, func(a, b *pb.ShardInfo) int { return bytes.Compare(a.Start, b.Start) })
	return out, nil
}

// mergeFirst merges the second user shard into the first, from a node, trying again while that may help. It returns
// what one good attempt took from its freeze on.
func mergeFirst(t *testing.T, p *proc) (d *base.Descriptor, took time.Duration) {
	t.Helper()
	eventually(t, "merge", func(ctx context.Context) error {
		shards, err := userShards(ctx, p)
		if err != nil {
			return err
		}
		if len(shards) < 2 {
			return fmt.Errorf("%d shards", len(shards))
		}
		m, err := p.n.needMember()
		if err != nil {
			return err
		}
		var start time.Time
		d, err = m.mergeShards(ctx, base.ShardID(shards[0].ShardId), base.ShardID(shards[1].ShardId), m.newMergeID(),
			func(phase string) {
				if phase == mergeFreeze {
					start = time.Now()
				}
			})
		took = time.Since(start)
		return err
	})
	return d, took
}

// Clients with old routes go on without an error: what they ask for at the shard that is gone they are sent to find.
func TestClientsDoNotNoticeAMerge(t *testing.T) {
	ps := startProcs(t, 3)
	initAll(t, ps[0], ps, 4)
	settled(t, ps[0], 4)
	seed := startSeed(t)
	ctx, cancel := context.WithCancel(testContext(t))
	var wg sync.WaitGroup
	ledgers := make([]*ledger, len(ps))
	for i, p := range ps {
		ledgers[i] = newLedger(seed + int64(i))
		wg.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				key := fmt.Sprintf("k%03d-%d-%d", n%4, i, n)
				// One try each: the router repairs its route by itself.
				if _, err := p.kv().Put(ctx, &pb.PutRequest{Key: []byte(key), Value: []byte(key)}); err == nil {
					ledgers[i].rows[key] = key
				} else if ctx.Err() == nil {
					t.Errorf("put %s: %v", key, err)
				}
				if _, err := p.kv().Get(ctx, &pb.GetRequest{Key: []byte(key)}); err != nil && ctx.Err() == nil {
					t.Errorf("get %s: %v", key, err)
				}
				if _, err := p.kv().Scan(ctx, &pb.ScanRequest{Start: []byte("k"), Limit: 3}); err != nil && ctx.Err() == nil {
					t.Errorf("scan: %v", err)
				}
			}
		})
	}
	var last *base.Descriptor
	for n := range 3 {
		before, err := userShards(ctx, ps[0])
		if err != nil {
			t.Fatal(err)
		}
		d, took := mergeFirst(t, ps[n])
		t.Logf("merged to %s in %s", d, took)
		last = d
		eventually(t, "the index follows", func(ctx context.Context) error {
			now, err := userShards(ctx, ps[0])
			if err == nil && len(now) >= len(before) {
				err = fmt.Errorf("%d shards, before %d", len(now), len(before))
			}
			return err
		})
	}
	cancel()
	wg.Wait()
	for i, l := range ledgers {
		if len(l.rows) == 0 {
			t.Error("nothing was written")
		}
		l.check(t, ps[(i+1)%3])
	}
	eventually(t, "every store has come to it", func(context.Context) error {
		for _, p := range ps {
			m := p.n.member.Load()
			if d, ok := m.store.Descriptor(last.Shard); !ok || d.Epoch != last.Epoch {
				return fmt.Errorf("%s has %v", p.name, d)
			}
		}
		return nil
	})
}

// The index follows a merge without waiting for the next regular report.
func TestTheIndexHearsOfAMergeAtOnce(t *testing.T) {
	var ps []*proc
	for i := range 3 {
		p := newProc(t, fmt.Sprintf("p%d", i))
		p.tune = func(c *Config) { c.Settings.ReportInterval = time.Hour }
		ps = append(ps, p.start())
	}
	initAll(t, ps[0], ps, 1)
	splitAt(t, ps, []uint64{101}, "m")
	eventually(t, "the index has both sides", func(ctx context.Context) error {
		shards, err := userShards(ctx, ps[0])
		if err == nil && len(shards) != 2 {
			err = fmt.Errorf("%d shards", len(shards))
		}
		return err
	})
	d, _ := mergeFirst(t, ps[2])
	eventually(t, "the index has the merged shard alone", func(ctx context.Context) error {
		shards, err := userShards(ctx, ps[0])
		if err != nil {
			return err
		}
		if len(shards) != 1 || shards[0].ShardId != uint64(d.Shard) || shards[0].Version != d.Epoch.Version ||
			string(shards[0].End) != string(d.End) {
			return fmt.Errorf("%v, want %s", shards, d)
		}
		return nil
	})
}

// freezeFirst freezes the second user shard for a merge into the first and leaves it so, as a driver does that dies.
func freezeFirst(t *testing.T, p *proc) (q shard.MergeQuestion, frozen *base.Descriptor, index uint64) {
	t.Helper()
	eventually(t, "freeze", func(ctx context.Context) error {
		shards, err := userShards(ctx, p)
		if err != nil {
			return err
		}
		if len(shards) < 2 {
			return fmt.Errorf("%d shards", len(shards))
		}
		m, err := p.n.needMember()
		if err != nil {
			return err
		}
		l, r, err := m.mergePair(ctx, base.ShardID(shards[0].ShardId), base.ShardID(shards[1].ShardId))
		if err != nil {
			return err
		}
		q = shard.MergeQuestion{ID: m.newMergeID(), Left: l.Shard, Epoch: l.Epoch, Right: r.Shard}
		a := &mergeAttempt{m: m, q: q, note: func(string) {}}
		index, frozen, err = a.freeze(ctx, r)
		return err
	})
	return q, frozen, index
}

func TestAShardWhoseMergeNobodyGoesOnWithThawsByItself(t *testing.T) {
	ps := startProcs(t, 3)
	initAll(t, ps[0], ps, 1)
	splitAt(t, ps, []uint64{101}, "m")
	ctx := testContext(t)
	if _, err := ps[0].kv().Put(ctx, &pb.PutRequest{Key: []byte("x"), Value: []byte("1")}); err != nil {
		t.Fatal(err)
	}
	q, _, _ := freezeFirst(t, ps[1])
	// A client that waits meanwhile gets through.
	eventually(t, "write after the thaw", func(ctx context.Context) error {
		_, err := ps[2].kv().Put(ctx, &pb.PutRequest{Key: []byte("x"), Value: []byte("2")})
		return err
	})
	m := ps[0].n.member.Load()
	if out, err := m.mergeDecision(ctx, q); out != apply.MergeAborted || err != nil {
		t.Fatalf("the merge is %s, %v", out, err)
	}
	// Now it cannot be committed any more, by whoever comes late.
	late := &mergeAttempt{m: m, q: q, note: func(string) {}}
	r, _ := m.store.Descriptor(q.Right)
	if _, err := late.commit(ctx, r, 99); status.Code(err) != codes.FailedPrecondition {
		t.Fatalf("late commit: %v", err)
	}
	mergeFirst(t, ps[0])
	if got, err := ps[1].kv().Get(ctx, &pb.GetRequest{Key: []byte("x")}); err != nil || string(got.Value) != "2" {
		t.Fatal(got, err)
	}
}

func TestAMergeThatAReplicaDoesNotConfirmIsAborted(t *testing.T) {
	ps := startProcs(t, 3)
	initAll(t, ps[0], ps, 1)
	splitAt(t, ps, []uint64{101}, "m")
	settled(t, ps[0], 2)
	q, frozen, index := freezeFirst(t, ps[0])
	m := ps[0].n.member.Load()
	ps[2].kill(0, 1)
	a := &mergeAttempt{m: m, q: q, note: func(string) {}}
	if err := a.confirm(testContext(t), frozen, index); err == nil {
		t.Fatal("a node that is down has confirmed")
	}
	var aborted *errMergeAborted
	eventually(t, "aborted", func(ctx context.Context) error {
		err := a.abort(ctx, errors.New("a node is down"), nil)
		if !errors.As(err, &aborted) {
			return fmt.Errorf("%v", err)
		}
		return nil
	})
	eventually(t, "the shard takes writes", func(ctx context.Context) error {
		_, err := ps[1].kv().Put(ctx, &pb.PutRequest{Key: []byte("x"), Value: []byte("1")})
		return err
	})
	ps[2].start()
	mergeFirst(t, ps[1])
}

// A store that was cut off while a shard was merged, moved away and forgotten removes what it still has of it.
func TestAStaleReplicaOfAMergedShardGoes(t *testing.T) {
	ps := startProcs(t, 3)
	initAll(t, ps[0], ps, 1)
	splitAt(t, ps, []uint64{101}, "m")
	settled(t, ps[0], 2)
	mergeFirst(t, ps[0])
	m := ps[2].n.member.Load()
	eventually(t, "merged everywhere", func(context.Context) error {
		for _, p := range ps {
			if _, ok := p.n.member.Load().store.Descriptor(101); ok {
				return errPending
			}
		}
		return nil
	})
	// A node that never had it, asked by a message of somebody who has not heard: it waits for a snapshot in vain.
	o := shard.Orphan{Shard: 101, Replica: 9}
	if p := m.proofOfRemoval(testContext(t), o); !p.merged || p.from == 0 {
		t.Fatalf("proof %+v", p)
	}
	if err := m.store.RemoveMerged(testContext(t), 101, 9); err != nil {
		t.Fatal(err)
	}
}
