package node

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/clock"
	"github.com/shardd/shardd/internal/wire"
	"github.com/shardd/shardd/placement"
)

// rowsKV is a meta shard in memory.
type rowsKV struct {
	mu      sync.Mutex
	rows    map[string]placement.Row
	version uint64
}

func (kv *rowsKV) Get(_ context.Context, key []byte) ([]byte, uint64, error) {
	kv.mu.Lock()
	defer kv.mu.Unlock()
	r := kv.rows[string(key)]
	return bytes.Clone(r.Value), r.Version, nil
}

func (kv *rowsKV) Scan(_ context.Context, lo, hi []byte, limit int, reverse bool) ([]placement.Row, error) {
	kv.mu.Lock()
	defer kv.mu.Unlock()
	var out []placement.Row
	for _, r := range kv.rows {
		if bytes.Compare(r.Key, lo) >= 0 && bytes.Compare(r.Key, hi) < 0 {
			out = append(out, r)
		}
	}
	slices.SortFunc(out, func(a, b placement.Row) int { return bytes.Compare(a.Key, b.Key) })
	if reverse {
		slices.Reverse(out)
	}
	if limit > 0 && len(out) > limit {
		out = out[:limit]
	}
	return out, nil
}

func (kv *rowsKV) Apply(_ context.Context, steps []wire.Sub) error {
	kv.mu.Lock()
	defer kv.mu.Unlock()
	for _, s := range steps {
		r, ok := kv.rows[string(s.Key)]
		if s.Code == wire.OpCheckAbsent && ok || s.Code == wire.OpCheckVersion && r.Version != s.Arg {
			return placement.ErrConflict
		}
	}
	for _, s := range steps {
		kv.version++
		switch s.Code {
		case wire.OpPut:
			kv.rows[string(s.Key)] = placement.Row{Key: s.Key, Value: bytes.Clone(s.Value), Version: kv.version}
		case wire.OpDelete:
			delete(kv.rows, string(s.Key))
		}
	}
	return nil
}

// fakeCluster is shards and nodes for jobs: changes apply at once, a joint shard leaves at the next look.
type fakeCluster struct {
	dir *placement.Directory
	mu  struct {
		sync.Mutex
		shards  map[base.ShardID]*placement.ShardNow
		nodes   map[base.StoreID]placement.NodeNow
		hold    map[string]chan struct{} // a change of this name waits
		refuse  map[string]error
		changes []string
		next    base.ShardID // the last id of a split
		lost    error        // what splits that are done are answered with
		verify  func(ctx context.Context, id base.ShardID, report func(done, total uint64)) ([]string, error)
	}
}

// fakeWorld is the view that one node has of the cluster.
type fakeWorld struct {
	*fakeCluster
	mu   sync.Mutex
	term uint64 // 0: it does not lead the meta shard
}

func (w *fakeWorld) lead(term uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.term = term
}

func (w *fakeWorld) leads() (uint64, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.term, w.term != 0
}

func (c *fakeCluster) now(_ context.Context, id base.ShardID) (*placement.ShardNow, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s, ok := c.mu.shards[id]
	if !ok {
		return nil, status.Errorf(codes.NotFound, "no shard %s", id)
	}
	out := *s
	out.Desc = s.Desc.Clone()
	out.Progress = nil
	for _, r := range s.Desc.Replicas {
		out.Progress = append(out.Progress, placement.ReplicaNow{
			Replica: r.Replica, Store: r.Store, Role: r.Role, Match: 10, Last: 10, Active: true, Bytes: 1000,
		})
	}
	joint := false
	for i, r := range s.Desc.Replicas {
		switch r.Role {
		case base.RoleIncoming:
			s.Desc.Replicas[i].Role, joint = base.RoleVoter, true
		case base.RoleOutgoing:
			s.Desc.Replicas[i].Role, joint = base.RoleLearner, true
		}
	}
	if joint {
		s.Desc.Epoch.ConfVer++
		if lead, _ := s.Desc.ReplicaOn(s.Leader); lead.Role == base.RoleLearner {
			for _, r := range s.Desc.Replicas {
				if r.Role == base.RoleVoter {
					s.Leader = r.Store
				}
			}
		}
	}
	return &out, nil
}

func (c *fakeCluster) change(ctx context.Context, id base.ShardID, confVer uint64, changes []placement.Change) error {
	name := id.String()
	for _, ch := range changes {
		name += " " + ch.Op.String() + " " + ch.Store.String()
	}
	c.mu.Lock()
	hold := c.mu.hold[name]
	c.mu.Unlock()
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.mu.refuse[name]; err != nil {
		return err
	}
	d := c.mu.shards[id].Desc
	if d.Epoch.ConfVer != confVer {
		return status.Errorf(codes.Aborted, "conf is %d, not %d", d.Epoch.ConfVer, confVer)
	}
	c.mu.changes = append(c.mu.changes, name)
	for _, ch := range changes {
		i := slices.IndexFunc(d.Replicas, func(r base.ReplicaDesc) bool { return r.Store == ch.Store })
		switch ch.Op {
		case placement.ChangeAddLearner:
			d.Replicas = append(d.Replicas, base.ReplicaDesc{Replica: d.NextReplicaID, Store: ch.Store, Role: base.RoleLearner})
			d.NextReplicaID++
		case placement.ChangePromote:
			d.Replicas[i].Role = base.RoleIncoming
		case placement.ChangeDemote:
			d.Replicas[i].Role = base.RoleOutgoing
		case placement.ChangeRemove:
			d.Replicas = slices.Delete(d.Replicas, i, i+1)
		}
	}
	d.Epoch.ConfVer++
	return c.dir.PutDescriptor(ctx, d.Clone())
}

func (c *fakeCluster) transfer(_ context.Context, id base.ShardID, to base.StoreID) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mu.shards[id].Leader = to
	return nil
}

func (c *fakeCluster) disk(_ context.Context, at base.StoreID, id base.ShardID) placement.DiskState {
	return placement.DiskGone
}

func (c *fakeCluster) verify(ctx context.Context, id base.ShardID, _ uint64, report func(done, total uint64)) (
	[]string, error) {
	c.mu.Lock()
	f := c.mu.verify
	c.mu.Unlock()
	return f(ctx, id, report)
}

func (c *fakeCluster) nodes(ctx context.Context) (map[base.StoreID]placement.NodeNow, error) {
	marks, err := readMarks(ctx, c.dir)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make(map[base.StoreID]placement.NodeNow)
	for id, n := range c.mu.nodes {
		n.ID, n.Heard, n.Draining, n.Replicas = id, true, marks.mode(id), 0
		for _, s := range c.mu.shards {
			if _, ok := s.Desc.ReplicaOn(id); ok {
				n.Replicas++
			}
		}
		out[id] = n
	}
	return out, nil
}

// jobBench is a fake cluster of five nodes, three of which hold the shards, and runners of jobs on it.
type jobBench struct {
	*fakeCluster
	t  *testing.T
	kv *rowsKV
}

func newJobBench(t *testing.T) *jobBench {
	t.Helper()
	nodes := make([]placement.Node, 5)
	for i := range nodes {
		nodes[i].Address = "x:1"
	}
	f, err := placement.NewFounding(placement.Cluster{}, nodes, [][]byte{[]byte("g"), []byte("p")})
	if err != nil {
		t.Fatal(err)
	}
	b := &jobBench{t: t, kv: &rowsKV{rows: make(map[string]placement.Row)}, fakeCluster: &fakeCluster{}}
	for _, p := range f.Contents() {
		b.kv.rows[string(p.Key)] = placement.Row{Key: p.Key, Value: p.Value, Version: 1}
	}
	b.dir = placement.NewDirectory(b.kv)
	mu := &b.fakeCluster.mu
	mu.shards = make(map[base.ShardID]*placement.ShardNow)
	mu.nodes = make(map[base.StoreID]placement.NodeNow)
	mu.next = 100
	mu.hold, mu.refuse = make(map[string]chan struct{}), make(map[string]error)
	for id := base.StoreID(1); id <= 5; id++ {
		mu.nodes[id] = placement.NodeNow{Alive: true, Level: placement.LevelOK}
	}
	meta, shards := f.Descriptors()
	for _, d := range append(shards, meta) {
		// Everything on nodes 1, 2, 3.
		for i := range d.Replicas {
			d.Replicas[i].Store = base.StoreID(i + 1)
		}
		d.Epoch.ConfVer++
		if err := b.dir.PutDescriptor(context.Background(), d); err != nil {
			t.Fatal(err)
		}
		mu.shards[d.Shard] = &placement.ShardNow{Desc: d.Clone(), Leader: 1, Term: 6}
	}
	return b
}

// runner starts a runner as a node has one; it leads the meta shard at the term, if that is not 0.
func (b *jobBench) runner(term uint64) (*jobRunner, *fakeWorld) {
	b.t.Helper()
	var out io.Writer = io.Discard
	if os.Getenv("SHARDD_TEST_LOG") != "" {
		out = os.Stderr
	}
	w := &fakeWorld{fakeCluster: b.fakeCluster, term: term}
	log := slog.New(slog.NewTextHandler(out, nil)).With("term", term)
	r := newJobRunner(w, placement.NewDirectory(b.kv), clock.Process(), log, newJobMetrics(prometheus.NewRegistry()))
	r.poll, r.watch = time.Millisecond, time.Millisecond
	r.limits = placement.Limits{Settle: 10 * time.Millisecond}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.run(ctx)
	}()
	b.t.Cleanup(func() {
		cancel()
		<-done
	})
	return r, w
}

func (b *jobBench) start(r *jobRunner, spec *pb.JobSpec) *placement.Job {
	b.t.Helper()
	j, err := r.start(testContext(b.t), spec, false)
	if err != nil {
		b.t.Fatal(err)
	}
	return j
}

// await waits until the record of a job is in a state.
func (b *jobBench) await(id placement.JobID, want placement.JobState) *placement.Job {
	b.t.Helper()
	var out *placement.Job
	eventually(b.t, "job "+want.String(), func(ctx context.Context) (err error) {
		if out, err = b.dir.Job(ctx, id); err != nil {
			return err
		}
		if out.State != want {
			if out.State.Ended() {
				b.t.Fatalf("job ended %s (%s), want %s", out.State, out.Error, want)
			}
			return errPending
		}
		return nil
	})
	return out
}

// awaitChange waits until a change was made.
func (b *jobBench) awaitChange(name string) {
	b.t.Helper()
	eventually(b.t, name, func(context.Context) error {
		b.fakeCluster.mu.Lock()
		defer b.fakeCluster.mu.Unlock()
		if !slices.Contains(b.fakeCluster.mu.changes, name) {
			return errPending
		}
		return nil
	})
}

func (b *jobBench) hold(name string) (release func()) {
	b.fakeCluster.mu.Lock()
	defer b.fakeCluster.mu.Unlock()
	ch := make(chan struct{})
	b.fakeCluster.mu.hold[name] = ch
	return sync.OnceFunc(func() { close(ch) })
}

func (b *jobBench) desc(id base.ShardID) string {
	b.fakeCluster.mu.Lock()
	defer b.fakeCluster.mu.Unlock()
	s := b.fakeCluster.mu.shards[id].Desc.String()
	return s[bytes.IndexByte([]byte(s), '('):]
}

func (c *fakeCluster) find(_ context.Context, key []byte) (*base.Descriptor, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.mu.shards {
		if s.Desc.Contains(key) {
			return s.Desc.Clone(), nil
		}
	}
	return nil, status.Errorf(codes.Unavailable, "no shard for %x", key)
}

// split divides a shard as a leader would: at the keys, else into parts at keys that it makes up.
func (c *fakeCluster) split(ctx context.Context, ask splitAsk) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.mu.shards[ask.desc.Shard]
	if s.Desc.Epoch != ask.desc.Epoch {
		return status.Errorf(codes.FailedPrecondition, "the epoch is %s, not %s", s.Desc.Epoch, ask.desc.Epoch)
	}
	if err := c.mu.refuse["split "+ask.desc.Shard.String()]; err != nil {
		return err
	}
	keys := ask.keys
	for i := uint32(1); len(ask.keys) == 0 && i < max(ask.parts, 2); i++ {
		keys = append(keys, append(bytes.Clone(s.Desc.Start), byte(i)))
	}
	left := s.Desc
	end := left.End
	left.Epoch.Version++
	for i, k := range keys {
		c.mu.next++
		right := left.Clone()
		right.Shard, right.Start, right.End = c.mu.next, k, end
		if i+1 < len(keys) {
			right.End = keys[i+1]
		}
		c.mu.shards[right.Shard] = &placement.ShardNow{Desc: right, Leader: s.Leader, Term: 1}
		if err := c.dir.PutDescriptor(ctx, right.Clone()); err != nil {
			return err
		}
	}
	left.End = keys[0]
	if err := c.dir.PutDescriptor(ctx, left.Clone()); err != nil {
		return err
	}
	return c.mu.lost // the answer
}

func (c *fakeCluster) picker(base.StoreID) func(*base.Descriptor, map[base.StoreID]placement.NodeNow) (
	base.StoreID, string) {
	return nil
}

func (c *fakeCluster) listing(base.StoreID) []*base.Descriptor { return nil }

func (c *fakeCluster) fits() func(*base.Descriptor, base.StoreID, base.StoreID) bool {
	return func(*base.Descriptor, base.StoreID, base.StoreID) bool { return true }
}

func (c *fakeCluster) leader(d *base.Descriptor) base.StoreID {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.mu.shards[d.Shard].Leader
}

func (c *fakeCluster) merge(ctx context.Context, left, right base.ShardID, note func(string)) error {
	note("freeze")
	c.mu.Lock()
	defer c.mu.Unlock()
	if hold := c.mu.hold["merge "+left.String()]; hold != nil {
		c.mu.changes = append(c.mu.changes, "merge "+left.String())
		c.mu.Unlock()
		select {
		case <-hold:
		case <-ctx.Done():
		}
		c.mu.Lock()
	}
	if ctx.Err() != nil {
		return status.Error(codes.Aborted, "aborted")
	}
	if err := c.mu.refuse["merge "+left.String()]; err != nil {
		return err
	}
	l, r := c.mu.shards[left].Desc, c.mu.shards[right].Desc
	if _, _, apart := misaligned(l, r); apart > 0 {
		return status.Error(codes.FailedPrecondition, "they are not on the same nodes")
	}
	l.End, l.Epoch.Version = r.End, max(l.Epoch.Version, r.Epoch.Version)+1
	delete(c.mu.shards, right)
	if err := c.dir.PutDescriptor(ctx, l.Clone()); err != nil {
		return err
	}
	return c.mu.lost // the answer
}
