package node

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
	"github.com/shardd/shardd/shard"
)

// fill puts n rows of equal size, under keys that the function gives.
func (p *proc) fill(n int, key func(i int) string) {
	p.t.Helper()
	ctx := testContext(p.t)
	for i := range n {
		if _, err := p.kv().Put(ctx, &pb.PutRequest{Key: []byte(key(i)), Value: make([]byte, 500)}); err != nil {
			p.t.Fatal(err)
		}
	}
}

// splitRequest asks p for a split of a shard that it leads.
func (p *proc) splitRequest(id base.ShardID) *pb.SplitShardRequest {
	m := p.member()
	d, ok := m.store.Descriptor(id)
	if !ok {
		p.t.Fatalf("no %s", id)
	}
	return &pb.SplitShardRequest{
		ClusterId: m.cluster[:], ShardId: uint64(id), ConfVer: d.Epoch.ConfVer, Version: d.Epoch.Version,
		NewShardIds: []uint64{201, 202, 203, 204, 205},
	}
}

func (p *proc) internal() pb.InternalServiceClient { return pb.NewInternalServiceClient(p.conn) }

func TestTheLeaderChoosesKeysThatMakePartsOfEqualSize(t *testing.T) {
	p := startProcs(t, 1)[0]
	initAll(t, p, []*proc{p}, 1)
	settled(t, p, 1)
	p.fill(400, func(i int) string { return fmt.Sprintf("user/%02d/%04d", i/10, i) })
	ctx := testContext(t)
	req := p.splitRequest(2)
	req.Parts = 4
	req.GroupPrefix, req.GroupDelimiter, req.GroupCount = []byte("user/"), []byte("/"), 2
	chosen, err := p.member().chooseSplitKeys(ctx, req)
	if err != nil || len(chosen.keys) != 3 || len(chosen.shares) != 4 {
		t.Fatalf("%q, %v", chosen.keys, err)
	}
	sum := uint32(0)
	for _, s := range chosen.shares {
		if sum += s; s < wire.SplitShares/5 || s > wire.SplitShares/3 {
			t.Errorf("shares of %v", chosen.shares)
		}
	}
	if sum != wire.SplitShares {
		t.Errorf("shares add up to %d", sum)
	}
	resp, err := p.internal().SplitShard(ctx, req)
	if err != nil || len(resp.Descriptors) != 4 {
		t.Fatalf("%d parts, %v", len(resp.Descriptors), err)
	}
	for i, b := range resp.Descriptors {
		d, _, err := base.DecodeDescriptor(b)
		if err != nil {
			t.Fatal(err)
		}
		// Whole groups: each part but the last ends where one begins.
		if end := string(d.End[1:]); i < 3 && (!strings.HasPrefix(end, "user/") || len(end) > len("user/00/")) {
			t.Errorf("part %d ends at %q, inside a group", i, end)
		}
		rows, err := p.kv().Scan(ctx, &pb.ScanRequest{Start: userBound(d.Start), End: userBound(d.End), Limit: 1000})
		if err != nil || len(rows.Rows) < 80 || len(rows.Rows) > 120 {
			t.Errorf("part %d has %d rows, %v", i, len(rows.GetRows()), err)
		}
	}
	// Asked again, it finds what it has done.
	again, err := p.internal().SplitShard(ctx, req)
	if err != nil || len(again.Descriptors) != 4 {
		t.Errorf("again: %d parts, %v", len(again.GetDescriptors()), err)
	}
}

// userBound is a bound of a shard as clients give it.
func userBound(key []byte) []byte {
	if string(key) == string(base.UserEnd()) {
		return nil
	}
	return key[1:]
}

func TestASplitThatCannotBeSaysWhy(t *testing.T) {
	p := startProcs(t, 1)[0]
	initAll(t, p, []*proc{p}, 1)
	settled(t, p, 1)
	ctx := testContext(t)
	ask := func(mend func(*pb.SplitShardRequest)) error {
		req := p.splitRequest(2)
		mend(req)
		_, err := p.internal().SplitShard(ctx, req)
		return err
	}
	expect := func(what string, err error, code codes.Code, text string) {
		t.Helper()
		if status.Code(err) != code || !strings.Contains(err.Error(), text) {
			t.Errorf("%s: %v", what, err)
		}
	}
	whole := func(r *pb.SplitShardRequest) { r.GroupDelimiter, r.GroupCount = []byte("/"), 1 }
	expect("empty", ask(func(*pb.SplitShardRequest) {}), codes.FailedPrecondition, "less than two keys")
	p.fill(10, func(i int) string { return fmt.Sprintf("user/%02d", i) })
	expect("one group", ask(whole), codes.FailedPrecondition, "one group")
	expect("too quiet", ask(func(r *pb.SplitShardRequest) { r.By = "load" }), codes.Aborted, "too few requests")
	expect("by name", ask(func(r *pb.SplitShardRequest) { r.By = "name" }), codes.InvalidArgument, "size or load")
	expect("old epoch", ask(func(r *pb.SplitShardRequest) { r.Version++ }), codes.FailedPrecondition, "its epoch is 1.1")
	expect("no ids", ask(func(r *pb.SplitShardRequest) { r.NewShardIds = nil }), codes.InvalidArgument, "no ids")
	expect("no delimiter", ask(func(r *pb.SplitShardRequest) { r.GroupCount = 1 }), codes.InvalidArgument, "delimiter")
	resp, err := p.internal().SplitShard(ctx, &pb.SplitShardRequest{ClusterId: p.splitRequest(2).ClusterId, ShardId: 77})
	if err != nil || !resp.NotLeader {
		t.Errorf("a shard that is not here: %v, %v", resp, err)
	}
}

func TestNodesNameTheBusiestKeysAndThoseThatDivideTheData(t *testing.T) {
	ps := startProcs(t, 3)
	initAll(t, ps[0], ps, 1)
	settled(t, ps[0], 1)
	ps[0].fill(100, func(i int) string { return fmt.Sprintf("k%03d", i) })
	ctx := testContext(t)
	var lead *proc
	eventually(t, "a leader", func(context.Context) error {
		for _, p := range ps {
			if slices.Contains(p.leads(), 2) {
				lead = p
				return nil
			}
		}
		return errPending
	})
	m := lead.member()
	for _, p := range ps { // whoever is asked
		resp, err := p.admin().HotKeys(ctx, &pb.HotKeysRequest{ShardId: 2})
		if err != nil || resp.NodeId == 0 || len(resp.Keys) != 0 && resp.Sampled == 0 {
			t.Errorf("%s: %v, %v", p.name, resp, err)
		}
		if _, err := p.admin().HotKeys(ctx, &pb.HotKeysRequest{ShardId: 99}); status.Code(err) != codes.NotFound {
			t.Errorf("%s: keys of no shard: %v", p.name, err)
		}
	}
	even, err := lead.internal().ShardKeys(ctx, &pb.ShardKeysRequest{ClusterId: m.cluster[:], ShardId: 2, What: "even", Limit: 3})
	if err != nil || len(even.Keys) != 3 {
		t.Fatalf("%v, %v", even, err)
	}
	for i, k := range even.Keys {
		if want := fmt.Sprintf("k%03d", 25*(i+1)); string(k.Key[1:]) < fmt.Sprintf("k%03d", 25*(i+1)-3) || string(k.Key[1:]) > want+"~" {
			t.Errorf("key %d is %q, want about %s", i, k.Key, want)
		}
	}
	for _, p := range ps {
		resp, err := p.internal().ShardKeys(ctx, &pb.ShardKeysRequest{ClusterId: m.cluster[:], ShardId: 2, What: "hot"})
		if err != nil || resp.NotLeader == (p == lead) {
			t.Errorf("%s: %v, %v", p.name, resp, err)
		}
	}
	for what, limit := range map[string]uint32{"even": 0, "odd": 3} {
		_, err := lead.internal().ShardKeys(ctx, &pb.ShardKeysRequest{ClusterId: m.cluster[:], ShardId: 2, What: what, Limit: limit})
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("%d keys, %s: %v", limit, what, err)
		}
	}
}

func TestWhatIsSetForTheClusterDecidesWhenAShardIsFull(t *testing.T) {
	p := newProc(t, "p")
	p.tune = func(c *Config) { c.Settings.SplitBytes = 32 << 10 }
	p.start()
	initAll(t, p, []*proc{p}, 1)
	settled(t, p, 1)
	m := p.member()
	put := func(i int) wire.Code {
		d, _ := m.store.Descriptor(2)
		op := wire.Op{
			Code: wire.OpPut, Shard: 2, Version: d.Epoch.Version, Key: fmt.Appendf(base.UserStart(), "k%04d", i),
			Value: make([]byte, 1000),
		}
		w := make(oneAnswer, 1)
		m.store.Write([]shard.WriteRequest{{Shard: 2, Version: op.Version, Raw: op.Append(nil), Waiter: w}})
		return (<-w).Code
	}
	refused := wire.OK
	for i := 0; i < 200 && refused == wire.OK; i++ {
		refused = put(i)
	}
	if refused != wire.Busy {
		t.Fatalf("200 KB in a shard of at most 64 KiB: %s", refused)
	}
	size, requests := uint64(1<<20), float64(0)
	m.learnSplit(&size, &requests)
	if got := put(1000); got != wire.OK {
		t.Errorf("with the cluster's higher limit: %s", got)
	}
	m.learnSplit(nil, nil) // a meta leader that does not know yet
	if got := put(1001); got != wire.OK {
		t.Errorf("after an answer without limits: %s", got)
	}
	size = 0
	m.learnSplit(&size, &requests)
	if got := put(1002); got != wire.OK {
		t.Errorf("without a limit: %s", got)
	}
	// What goes out is what comes in.
	if size, _ := m.splitNews(); size != nil {
		if *size != 32<<10 {
			t.Errorf("the meta leader tells of %d", *size)
		}
	}
}

type oneAnswer chan wire.Answer

func (o oneAnswer) Complete(_ uint64, a wire.Answer) { o <- a }
