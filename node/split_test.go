package node

import (
	"context"
	"encoding/hex"
	"fmt"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/internal/base"
)

// splitAt splits the shard that holds the first key, at its leader, wherever that is.
func splitAt(t *testing.T, ps []*proc, ids []uint64, keys ...string) *pb.SplitShardResponse {
	t.Helper()
	req := &pb.SplitShardRequest{NewShardIds: ids}
	for _, k := range keys {
		req.Keys = append(req.Keys, base.UserKey([]byte(k)))
	}
	var out *pb.SplitShardResponse
	eventually(t, "split", func(ctx context.Context) error {
		st, err := ps[0].admin().NodeStatus(ctx, &pb.NodeStatusRequest{})
		if err != nil {
			return err
		}
		if req.ClusterId, err = hex.DecodeString(st.ClusterId); err != nil {
			return err
		}
		list, err := ps[0].admin().ListShards(ctx, &pb.ListShardsRequest{})
		if err != nil {
			return err
		}
		for _, s := range list.Shards {
			if string(s.Start) < string(req.Keys[0]) && string(req.Keys[0]) < string(s.End) {
				req.ShardId, req.ConfVer, req.Version = s.ShardId, s.ConfVer, s.Version
			}
		}
		for _, p := range ps {
			resp, err := pb.NewInternalServiceClient(p.conn).SplitShard(ctx, req)
			switch {
			case status.Code(err) == codes.Aborted:
				continue // its term has just begun
			case err != nil:
				return err
			case !resp.NotLeader:
				out = resp
				return nil
			}
		}
		return errPending
	})
	return out
}

// Clients with old routes go on without an error: the answers to them name both sides.
func TestClientsDoNotNoticeASplit(t *testing.T) {
	ps := startProcs(t, 3)
	initAll(t, ps[0], ps, 2)
	settled(t, ps[0], 2)
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
				if _, err := p.kv().Scan(ctx, &pb.ScanRequest{Start: []byte("k"), Limit: 3}); err != nil && ctx.Err() == nil {
					t.Errorf("scan: %v", err)
				}
			}
		})
	}
	got := splitAt(t, ps, []uint64{101, 102}, "k001-1", "k001-2")
	if len(got.Descriptors) != 3 {
		t.Errorf("%d descriptors", len(got.Descriptors))
	}
	again := splitAt(t, ps, []uint64{103}, "k000-2")
	if len(again.Descriptors) != 2 {
		t.Errorf("%d descriptors", len(again.Descriptors))
	}
	settled(t, ps[1], 5)
	cancel()
	wg.Wait()
	for i, l := range ledgers {
		if len(l.rows) == 0 {
			t.Error("nothing was written")
		}
		l.check(t, ps[(i+1)%3])
	}
}

// The index follows a split without waiting for the next regular report.
func TestTheIndexHearsOfASplitAtOnce(t *testing.T) {
	var ps []*proc
	for i := range 3 {
		p := newProc(t, fmt.Sprintf("p%d", i))
		p.tune = func(c *Config) { c.Settings.ReportInterval = time.Hour }
		ps = append(ps, p.start())
	}
	initAll(t, ps[0], ps, 1)
	splitAt(t, ps, []uint64{101}, "m")
	eventually(t, "the index has both sides", func(ctx context.Context) error {
		list, err := ps[0].admin().ListShards(ctx, &pb.ListShardsRequest{})
		if err != nil {
			return err
		}
		for _, s := range list.Shards {
			if s.ShardId == 101 && string(s.Start) == string(base.UserKey([]byte("m"))) {
				return nil
			}
		}
		return fmt.Errorf("shards %v", list.Shards)
	})
}
