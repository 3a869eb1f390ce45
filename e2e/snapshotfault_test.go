package e2e

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	sharddv1 "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/client"
	"github.com/shardd/shardd/client/admin"
	"github.com/shardd/shardd/e2e/harness"
)

const mib = 1 << 20

// snapshots of one large shard, s2, from a cluster of three to a fourth node behind a link of its own, slow enough that
// something can go wrong in their middle.
type snapshotCluster struct {
	*harness.Cluster
	t      *testing.T
	link   *harness.Proxy
	fourth uint64
}

const bigShard = 2 // the first user shard

func newSnapshotCluster(t *testing.T, rate string) *snapshotCluster {
	t.Helper()
	c := harness.New(t, binaries(t), 4)
	for _, n := range c.Nodes {
		// A short log: a follower that was away needs a snapshot soon.
		n.Args = append(n.Args, "--snapshot-send-limit", rate, "--log-floor", "1MiB", "--log-shard-cap", "2MiB")
	}
	s := &snapshotCluster{Cluster: c, t: t, link: c.PutBehindProxy(3)}
	for i := range 3 {
		c.Start(i)
	}
	c.InitOn(splitsOf(2), 0, 1, 2)
	s.fourth = c.Join(3)
	return s
}

// begin starts a job.
func (s *snapshotCluster) begin(spec *sharddv1.JobSpec) uint64 {
	s.t.Helper()
	id, err := s.Begin(s.t.Context(), spec)
	if err != nil {
		s.t.Fatalf("begin %s: %v", spec.GetKind(), err)
	}
	return id
}

// end waits for the end of a job in a given state.
func (s *snapshotCluster) end(id uint64, state string) {
	s.t.Helper()
	j, err := s.Await(s.t.Context(), id, 2*harness.Patience)
	if err != nil || j.GetState() != state {
		s.t.Fatalf("job j%d should be %s: %v, %s", id, state, err, harness.Steps(j))
	}
}

// midStream waits until a node is streaming the large shard to the fourth one with at least so many bytes done, and
// returns its index.
func (s *snapshotCluster) midStream(bytes uint64) (sender int) {
	s.t.Helper()
	s.Until("snapshot under way", func(ctx context.Context) error {
		for i, n := range s.Nodes {
			if !n.Proc.Running() {
				continue
			}
			list, err := s.Admin.At(n.Addr).ListSnapshots(ctx)
			if err != nil {
				return err
			}
			for _, p := range list {
				if p.GetSending() && p.GetShardId() == bigShard && p.GetToNode() == s.fourth && p.GetPhase() == "streaming" &&
					p.GetBytesDone() >= max(bytes, 1) {
					sender = i
					return nil
				}
			}
		}
		return errors.New("no stream of s2 to the fourth node")
	})
	return sender
}

// leader is the index of the node that leads the large shard.
func (s *snapshotCluster) leader() (at int) {
	s.t.Helper()
	s.Until("leader of s2", func(ctx context.Context) error {
		d, err := s.Admin.DescribeShard(ctx, bigShard)
		if err != nil {
			return err
		}
		for _, r := range d.GetReplicas() {
			if r.GetRaftState() != "leader" {
				continue
			}
			for i, n := range s.Nodes {
				if n.Proc.Running() && s.ID(i) == r.GetNodeId() {
					at = i
					return nil
				}
			}
		}
		return errors.New("none")
	})
	return at
}

// sent is how many bytes of snapshots the running nodes have sent since they started.
func (s *snapshotCluster) sent() (sum float64) {
	s.t.Helper()
	for _, n := range s.Nodes {
		if n.Proc.Running() {
			sum += scrape(s.t, n.HTTP)["shardd_snapshotter_sent_bytes"]
		}
	}
	return sum
}

func TestSnapshotsOutliveWhatHappensToTheirEnds(t *testing.T) {
	size, rate := scale(20, 32, 128)*mib, scale(10, 8, 16)
	c := newSnapshotCluster(t, fmt.Sprintf("%dMiB", rate))
	db := c.DB(client.WithTimeout(20 * time.Second))
	fill(t, db, 0, size)
	l := newLoadOf(t, db, 2, 4)
	stop := l.run(1)
	l.waitWrites("before the first snapshot")
	add, remove := harness.Add(bigShard, c.fourth), harness.Remove(bigShard, c.fourth)

	phase := func(format string, args ...any) {
		t.Logf("%6.1f s: "+format, append([]any{l.now().Seconds()}, args...)...)
	}
	phase("receiver killed in mid-stream")
	job := c.begin(add)
	c.midStream(1)
	c.Kill(3)
	l.waitWrites("while the receiver is down")
	c.Start(3)
	c.end(job, admin.JobDone)
	c.Do(remove)

	phase("sender killed in mid-stream")
	job = c.begin(add)
	sender := c.midStream(1)
	c.Kill(sender)
	l.waitWrites("while the sender is down")
	c.Start(sender)
	c.end(job, admin.JobDone)
	c.Do(remove)
	c.WaitHealthy()

	phase("target removed in mid-stream")
	job = c.begin(add)
	c.midStream(1)
	c.Until("cancel", func(ctx context.Context) error {
		_, err := c.Admin.CancelJob(ctx, job)
		return err
	})
	c.end(job, admin.JobCancelled)
	c.Until("the shard is as before", func(ctx context.Context) error {
		d, err := c.Admin.DescribeShard(ctx, bigShard)
		if err != nil {
			return err
		}
		if n := voters(d.GetShard()); n != 3 || len(d.GetShard().GetReplicas()) != 3 {
			return fmt.Errorf("replicas %v", d.GetShard().GetReplicas())
		}
		return nil
	})

	phase("link cut in mid-stream")
	before := c.sent()
	job = c.begin(add)
	c.midStream(17 * mib) // past the first chunk, which need not be sent again
	c.link.Cut()
	l.waitWrites("while the link is cut")
	c.link.Mend()
	c.end(job, admin.JobDone)
	sent := c.sent() - before
	phase("sent %.1f MiB of a shard of %d MiB over a link that was cut", sent/mib, size/mib)
	if sent > 1.8*float64(size) {
		t.Errorf("sent %.1f MiB of a shard of %d MiB: the stream began anew", sent/mib, size/mib)
	}

	phase("source removed in mid-stream")
	c.Kill(3)
	fill(t, db, 0, 6*mib) // more than the log keeps
	c.Start(3)
	c.midStream(1)
	source := c.leader()
	c.Do(harness.Remove(bigShard, c.ID(source)))
	c.WaitHealthy()
	phase("all judged")
	stop()
	c.Verify()
	l.judge(1)
	c.StopAll()
	if err := c.CheckStores(); err != nil {
		t.Error(err)
	}
}
