package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	pb "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/cli"
)

// hazardCluster is three nodes, each with HTTP, whose store failures end them as they would end a process.
func hazardCluster(t *testing.T, shards int, tune func(*Config)) []*proc {
	var ps []*proc
	for i := range 3 {
		p := newProc(t, fmt.Sprintf("p%d", i))
		p.http = "127.0.0.1:0"
		p.tune = tune
		ps = append(ps, p.start())
	}
	initAll(t, ps[0], ps, shards)
	settled(t, ps[0], shards)
	return ps
}

func (p *proc) check(path string) (code int, body string) {
	p.t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get("http://" + p.n.HTTPAddr() + path)
	if err != nil {
		p.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		p.t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// leads returns the shards that a node leads.
func (p *proc) leads() (ids []base.ShardID) {
	for _, s := range p.n.member.Load().store.Summaries() {
		if s.Leads {
			ids = append(ids, s.Desc.Shard)
		}
	}
	return ids
}

// gather brings all leaderships to p.
func gather(t *testing.T, p *proc, shards int) {
	t.Helper()
	eventually(t, "one node leads everything", func(ctx context.Context) error {
		for s := uint64(1); s <= uint64(shards)+1; s++ {
			_, err := p.admin().TransferLeader(ctx, &pb.TransferLeaderRequest{ShardId: s, ToNode: uint64(p.n.self())})
			if err != nil {
				return err
			}
		}
		if got := len(p.leads()); got != shards+1 {
			return fmt.Errorf("leads %d of %d shards", got, shards+1)
		}
		return nil
	})
}

// cockroach#41691, hashicorp/raft#503: a node whose disk stood still kept its leaderships, and with them the cluster,
// for minutes. It must say what is wrong, by name, and lose them, also those of shards that nobody writes to.
func TestANodeWithAStalledDiskSaysSoAndLeadsNothing(t *testing.T) {
	const shards = 4
	ps := hazardCluster(t, shards, nil)
	sick := ps[1]
	gather(t, sick, shards)
	release := sync.OnceFunc(sick.fs.HoldSyncs())
	t.Cleanup(release)

	// Nothing is written by the test: the store's own probe finds out.
	eventually(t, "the node says that its disk is stalled", func(context.Context) error {
		for _, path := range []string{"/readyz", "/livez"} {
			if code, body := sick.check(path); code != http.StatusServiceUnavailable || !strings.Contains(body, "[-] engine: ") {
				return fmt.Errorf("%s: %d %s", path, code, body)
			}
		}
		if _, body := sick.check("/readyz"); !strings.Contains(body, "[-] store: ") {
			return fmt.Errorf("the store is not named: %s", body)
		}
		return nil
	})
	eventually(t, "the others lead everything", func(context.Context) error {
		if n := len(ps[0].leads()) + len(ps[2].leads()); n != shards+1 {
			return fmt.Errorf("the others lead %d shards", n)
		}
		return nil
	})
	l := newLedger(startSeed(t))
	l.put(t, ps[0], 4*shards, shards)
	l.put(t, sick, 4*shards, shards) // also what comes to it: it does not hold on to operations for shards that have left
	l.check(t, ps[2])

	release()
	eventually(t, "the node is ready again", func(context.Context) error {
		if code, body := sick.check("/readyz"); code != http.StatusOK {
			return fmt.Errorf("%d %s", code, body)
		}
		return nil
	})
	l.check(t, sick)
}

// tikv#5420, #10562: a full disk made a node that cannot restart, and took its peers along. It must end, be refused with
// its own exit code while there is no space, and catch up once there is; nobody else notices more than a lost node.
func TestAFullDiskEndsItsNodeAndNobodyElse(t *testing.T) {
	const shards = 4
	ended := make(chan error, 1)
	ps := hazardCluster(t, shards, nil)
	sick := ps[2]
	if err := sick.term(); err != nil {
		t.Fatal(err)
	}
	sick.tune = func(c *Config) {
		c.Fatal = func(err error) { ended <- err }
	}
	sick.start()
	settled(t, ps[0], shards)
	gather(t, sick, shards)
	l := newLedger(startSeed(t))
	l.put(t, ps[0], 4*shards, shards)

	sick.fs.FailWrites(syscall.ENOSPC)
	select {
	case err := <-ended: // its own reports, probes and logs are writes enough
		if !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("ended by %v", err)
		}
	case <-testContext(t).Done():
		t.Fatal("the node goes on with a full disk")
	}
	sick.halt()
	l.put(t, ps[1], 4*shards, shards)

	if _, err := New(sick.config()); engine.ExitCode(err) != engine.ExitNoSpace || !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("start on a full disk: %v", err)
	}
	sick.fs.FailWrites(nil)
	sick.start()
	l.check(t, sick)
	gather(t, sick, shards) // it has what it needs to lead again
}

// etcd#22214: a blocked log line froze the store. The log of every node here is a pipe that nobody reads.
func TestNodesServeWhileNobodyReadsTheirLogs(t *testing.T) {
	const shards = 4
	gate := make(chan struct{})
	var writes atomic.Int64
	sink := writerFunc(func(b []byte) (int, error) {
		writes.Add(1)
		<-gate
		return len(b), nil
	})
	var flushes []func()
	ps := hazardCluster(t, shards, func(c *Config) {
		log, flush := cli.Logger(sink, "text", "debug")
		flushes = append(flushes, flush)
		c.Logger = log
	})
	l := newLedger(startSeed(t))
	l.put(t, ps[0], 4*shards, shards)
	gather(t, ps[1], shards)
	ps[1].kill(100, 1) // elections are what a node logs most about
	l.put(t, ps[2], 4*shards, shards)
	ps[1].start()
	l.check(t, ps[1])
	if writes.Load() == 0 {
		t.Error("nothing was logged: the log blocked nobody")
	}
	for _, p := range ps {
		if err := p.term(); err != nil {
			t.Error(err)
		}
	}
	close(gate)
	for _, flush := range flushes {
		flush()
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

// pd#9138, cockroach#15898: ids repeated, or shrank, when the leadership of the control plane changed. Nodes join here
// through all members at once while the meta shard's leadership moves, and once its leader is killed.
func TestNodeIDsNeverRepeatAcrossMetaLeaders(t *testing.T) {
	ps := hazardCluster(t, 1, nil)
	ctx, cancel := context.WithCancel(testContext(t))
	defer cancel()
	var mu sync.Mutex
	given := map[uint64]string{1: "founder", 2: "founder", 3: "founder"}
	joined, round := 0, 0
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	for w := range 3 {
		wg.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				nonce := fmt.Sprintf("nonce-%d-%d", w, i)
				// As a node does: ask members in turn until one answers, always with the same nonce.
				for try := w; ctx.Err() == nil; try++ {
					resp, err := pb.NewInternalServiceClient(ps[try%2].conn).Join(ctx, &pb.JoinRequest{
						Address: fmt.Sprintf("127.0.0.1:%d", 1+w*10000+i), Nonce: []byte(nonce),
					})
					if err != nil {
						continue
					}
					mu.Lock()
					if owner, dup := given[resp.NodeId]; dup {
						t.Errorf("id %d was given to %s and to %s", resp.NodeId, owner, nonce)
					}
					given[resp.NodeId] = nonce
					joined++
					mu.Unlock()
					break
				}
			}
		})
	}
	// Joins go on between any two changes.
	progress := func(what string) {
		mu.Lock()
		want := joined + 6
		mu.Unlock()
		eventually(t, what, func(context.Context) error {
			mu.Lock()
			defer mu.Unlock()
			if joined < want {
				return fmt.Errorf("%d of %d joins", joined, want)
			}
			return nil
		})
	}
	var before uint64
	for ; round < 6; round++ {
		progress("joins")
		to := ps[round%3]
		eventually(t, "transfer of the meta shard", func(ctx context.Context) error {
			resp, err := ps[0].admin().TransferLeader(ctx, &pb.TransferLeaderRequest{
				ShardId: uint64(base.MetaShard), ToNode: uint64(to.n.self()),
			})
			if err == nil {
				before = max(before, resp.Term)
			}
			return err
		})
	}
	if lead := ps[2].leads(); len(lead) == 0 || lead[0] != base.MetaShard {
		eventually(t, "the last node leads the meta shard", func(ctx context.Context) error {
			_, err := ps[0].admin().TransferLeader(ctx, &pb.TransferLeaderRequest{
				ShardId: uint64(base.MetaShard), ToNode: uint64(ps[2].n.self()),
			})
			return err
		})
	}
	progress("joins before the leader dies")
	ps[2].kill(0, startSeed(t))
	progress("joins after the leader died")
	ps[2].start()
	progress("joins with a third member again")
	cancel()
	wg.Wait()
	st, ok := ps[0].n.member.Load().store.Status(base.MetaShard)
	if !ok || st.Term <= before {
		t.Errorf("the meta shard is in term %d, was led in %d: its leader never changed by force", st.Term, before)
	}
	t.Logf("%d joins, meta shard in term %d", joined, st.Term)
}
