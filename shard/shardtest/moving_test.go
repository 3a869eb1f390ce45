package shardtest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/clock"
	"github.com/shardd/shardd/internal/wire"
	"github.com/shardd/shardd/shard"
	"github.com/shardd/shardd/transport/simnet"
)

// moving is what a live cluster has besides when its replicas move: its logs are short, so that followers need
// snapshots; each store sends those itself; old messages are kept, and delivered again at any later time.
type moving struct {
	c          *live
	compaction shard.Compaction
	nextShard  base.ShardID

	mu struct {
		sync.Mutex
		rng      *rand.Rand
		old      []wire.RaftMessage
		stagings uint64
		counts   map[string]int
	}
}

func (m *moving) count(what string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mu.counts[what]++
}

// sent checks what holds for members that come and go: one vote per replica and term, one leader per term.
func (m *moving) sent(msg *wire.RaftMessage) {
	o := m.c.obs
	o.mu.Lock()
	g := o.groupLocked(msg.Shard)
	switch msg.Msg.Type {
	case raftpb.MsgApp, raftpb.MsgHeartbeat:
		o.leadsLocked(g, msg.Shard, msg.FromStore, msg.Msg.Term)
	case raftpb.MsgVote:
		o.voteLocked(g, msg.Shard, ballot{msg.Msg.Term, msg.From}, msg.From)
	case raftpb.MsgVoteResp:
		if !msg.Msg.Reject {
			o.voteLocked(g, msg.Shard, ballot{msg.Msg.Term, msg.From}, msg.To)
		}
	}
	o.mu.Unlock()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.mu.rng.IntN(20) > 0 {
		return
	}
	if len(m.mu.old) < 1000 {
		m.mu.old = append(m.mu.old, *msg)
	} else {
		m.mu.old[m.mu.rng.IntN(len(m.mu.old))] = *msg
	}
}

// again delivers some old messages.
func (m *moving) again() {
	m.mu.Lock()
	var msgs []wire.RaftMessage
	for range min(len(m.mu.old), 50) {
		msgs = append(msgs, m.mu.old[m.mu.rng.IntN(len(m.mu.old))])
	}
	m.mu.Unlock()
	for _, msg := range msgs {
		if n := m.c.nodes[msg.ToStore-1]; n.up() {
			n.mu.store.Step([]wire.RaftMessage{msg})
		}
	}
}

// carrier is a store's shard.Snapshots.
type carrier struct{ from *liveNode }

func (s carrier) Send(req shard.SnapshotRequest) { go func() { req.Done(s.from.carry(req)) }() }

var errDown = errors.New("the store is down")

// use returns a store for as long as a stream lasts.
func (n *liveNode) use() (*shard.Store, *engine.Engine, bool) {
	n.mu.RLock()
	defer n.mu.RUnlock()
	if n.mu.dead || n.mu.store == nil {
		return nil, nil, false
	}
	n.using.Add(1)
	return n.mu.store, n.mu.eng, true
}

// carry sends one snapshot, with a delay before each chunk.
func (n *liveNode) carry(req shard.SnapshotRequest) error {
	m := n.c.moving
	to := n.c.nodes[req.ToStore-1]
	_, from, ok := n.use()
	if !ok {
		return errDown
	}
	defer n.using.Done()
	store, eng, ok := to.use()
	if !ok {
		return errDown
	}
	defer to.using.Done()
	v, err := from.OpenView(req.Shard)
	if err != nil {
		return err
	}
	defer func() {
		if err := v.Close(); err != nil {
			n.c.t.Error(err)
		}
	}()
	meta := &engine.SnapshotMeta{
		Shard: req.Shard, From: req.From, To: req.To, FromStore: n.id, ToStore: req.ToStore, RaftTerm: req.Term,
		Desc: v.Desc(), Applied: v.Applied(), ApproxBytes: v.ApproxBytes(),
	}
	if meta.Applied.Index < req.Index {
		n.c.t.Errorf("view of %s at %d, raft was told %d (seed %d)", req.Shard, meta.Applied.Index, req.Index, n.c.seed)
	}
	if err := store.AcceptSnapshot(meta); err != nil {
		m.count("declined")
		return err
	}
	m.mu.Lock()
	m.mu.stagings++
	var id [16]byte
	binary.BigEndian.PutUint64(id[:], m.mu.stagings)
	wait := time.Duration(m.mu.rng.IntN(400)) * time.Millisecond
	m.mu.Unlock()
	st, err := eng.NewStaging(meta, id)
	if err != nil {
		return err
	}
	for key, seq := []byte(nil), uint32(0); ; seq++ {
		time.Sleep(wait)
		c, next, err := v.Chunk(seq, key, 1<<10)
		if err == nil && c != nil {
			err = st.Add(c)
		}
		if err != nil {
			return errors.Join(err, st.Remove())
		}
		if key = next; key == nil {
			break
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := store.InstallSnapshot(ctx, meta, st); err != nil {
		m.count("not installed")
		return err
	}
	to.mu.RLock()
	defer to.mu.RUnlock()
	if to.mu.dead {
		return errDown
	}
	m.count("installed")
	return nil
}

// leads returns the store that leads a shard, and its descriptor.
func (c *live) leads(sh base.ShardID) (*liveNode, *base.Descriptor) {
	for _, n := range c.nodes {
		if n.up() {
			if st, ok := n.mu.store.Status(sh); ok && st.Leads && st.Desc != nil {
				return n, st.Desc
			}
		}
	}
	return nil, nil
}

// move takes one random step of a membership change.
func (m *moving) move(rng *rand.Rand) {
	c := m.c
	sh := c.shards[rng.IntN(len(c.shards))]
	lead, d := c.leads(sh)
	if lead == nil {
		return
	}
	var learners, voters []base.StoreID
	for _, r := range d.Replicas {
		switch r.Role {
		case base.RoleLearner:
			learners = append(learners, r.Store)
		case base.RoleVoter:
			voters = append(voters, r.Store)
		default:
			return // joint: the leader is on its way out
		}
	}
	var changes []shard.ReplicaChange
	switch {
	case len(learners) == 0:
		on := base.StoreID(1 + rng.IntN(len(c.nodes)))
		if _, ok := d.ReplicaOn(on); ok {
			return
		}
		changes = append(changes, shard.ReplicaChange{Op: shard.AddLearner, Store: on})
	case rng.IntN(3) == 0 || len(voters) < 3:
		changes = append(changes, shard.ReplicaChange{Op: shard.Remove, Store: learners[rng.IntN(len(learners))]})
	default:
		changes = append(changes, shard.ReplicaChange{Op: shard.Promote, Store: learners[rng.IntN(len(learners))]},
			shard.ReplicaChange{Op: shard.Demote, Store: voters[rng.IntN(len(voters))]})
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	if _, err := lead.mu.store.ChangeReplicas(ctx, sh, d.Epoch.ConfVer, changes); err == nil {
		m.count(changes[0].Op.String())
	}
}

// reconcile asks, for every orphan, the shard's leader for proof, as a node does.
func (m *moving) reconcile() {
	c := m.c
	for _, n := range c.nodes {
		if !n.up() {
			continue
		}
		for _, o := range n.mu.store.Orphans() {
			lead, d := c.leads(o.Shard)
			if lead == nil || lead == n {
				continue
			}
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			err := n.mu.store.RemoveReplica(ctx, o.Shard, o.Replica, d)
			cancel()
			var not *shard.ProofError
			switch {
			case err == nil:
				m.count("removed on proof")
			case !errors.As(err, &not) && !errors.Is(err, context.DeadlineExceeded):
				c.t.Errorf("remove %s on %s: %v (seed %d)", base.ReplicaName(o.Shard, o.Replica), n.id, err, c.seed)
			}
		}
	}
}

// settled reports whether every shard has exactly the replicas that its leader's descriptor lists, all with everything.
func (m *moving) settled() (string, bool) {
	c := m.c
	synctest.Wait()
	for _, sh := range c.shards {
		lead, d := c.leads(sh)
		if lead == nil {
			return sh.String() + " has no leader", false
		}
		want, _ := lead.mu.store.Status(sh)
		for _, n := range c.nodes {
			st, here := n.mu.store.Status(sh)
			rep, listed := d.ReplicaOn(n.id)
			switch {
			case here != listed:
				return fmt.Sprintf("%s on %s: here %t, listed %t", sh, n.id, here, listed), false
			case here && (st.Replica != rep.Replica || st.Applied != want.Applied || st.LastIndex != want.Applied):
				return fmt.Sprintf("%s on %s: %d applied, want %d", sh, n.id, st.Applied, want.Applied), false
			case rep.Role == base.RoleIncoming || rep.Role == base.RoleOutgoing:
				return sh.String() + " is joint", false
			case here && st.Freeze != nil:
				return sh.String() + " is frozen", false
			}
		}
	}
	return "", true
}

// course is what happens to a few shards in the course of a test, besides.
type course struct {
	stores int // 3: all replicas stay where they are and change their roles
	splits bool
	merges bool
	lasts  time.Duration
}

// describe lists all replicas.
func (m *moving) describe() (out string) {
	for _, sh := range m.c.shards {
		for _, n := range m.c.nodes {
			if st, ok := n.mu.store.Status(sh); ok {
				out += fmt.Sprintf("%s on %s: leads %t, lease %t, asleep %t, leader %s, term %d, applied %d, commit %d, last %d, %+v, %s\n",
					sh, n.id, st.Leads, st.Lease, st.Asleep, st.Leader, st.Term, st.Applied, st.Commit, st.LastIndex, st.Freeze, st.Desc)
			}
		}
	}
	return out
}

// runMoving moves replicas of a few shards among stores under clients, faults and crashes, with old messages coming back
// all the time.
func runMoving(t *testing.T, seed int64, how course) *live {
	c := &live{t: t, seed: seed, size: how.stores, net: simnet.New(seed), clock: clock.Process(), obs: newObserver(t)}
	m := &moving{c: c, nextShard: 100, compaction: shard.Compaction{FloorBytes: 2 << 10, ShardCapBytes: 4 << 10, Factor: 1}}
	m.mu.rng, m.mu.counts = rand.New(rand.NewPCG(uint64(seed), 4)), map[string]int{}
	c.moving, c.stop = m, make(chan struct{})
	seedRaft(seed)
	rng := rand.New(rand.NewPCG(uint64(seed), 3))
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	c.wg.Go(func() { _ = c.net.Run(ctx) })
	for i := range how.stores {
		n := &liveNode{c: c, id: base.StoreID(i + 1), fs: engine.NewMemFS()}
		c.nodes = append(c.nodes, n)
		n.start()
	}
	defer func() {
		for _, n := range c.nodes {
			if n.up() {
				n.crash(100)
			}
		}
		cancel()
		c.wg.Wait()
	}()
	for i := range 3 {
		id := base.ShardID(10 + i)
		c.shards = append(c.shards, id)
		on := func(k int) base.StoreID { return base.StoreID(1 + (i+k)%how.stores) }
		d := desc(id, id.String()+"/", id.String()+"0", on(0), on(1), on(2))
		for _, r := range d.Replicas {
			if err := c.nodes[r.Store-1].mu.store.Create(d, nil, true); err != nil {
				t.Fatal(err)
			}
		}
	}
	c.net.SetFaults(simnet.Faults{MinDelay: time.Millisecond, MaxDelay: 5 * time.Millisecond, Duplicate: 0.05})
	var clients sync.WaitGroup
	for i := range 8 {
		clients.Go(func() {
			if how.splits {
				c.keyClient(i)
			} else {
				c.client(i)
			}
		})
	}
	if how.merges {
		clients.Go(m.mergeAll)
	}
	for end := c.clock.Boot() + how.lasts; c.clock.Boot() < end && !t.Failed(); {
		time.Sleep(time.Duration(rng.IntN(400)) * time.Millisecond)
		if how.splits && rng.IntN(6) == 0 {
			m.split(rng)
		}
		if how.merges && rng.IntN(6) == 0 {
			m.handOver(rng)
		}
		if rng.IntN(12) == 0 {
			c.pauseOne(rng, c.leader(rng))
		}
		switch rng.IntN(8) {
		case 0:
			c.torment(rng)
		case 1:
			m.reconcile()
		case 2, 3:
			m.again()
		case 4:
			c.net.HealAll()
		default:
			if how.stores == 3 {
				m.changeRole(rng)
			} else {
				m.move(rng)
			}
		}
	}
	c.net.HealAll()
	c.net.SetFaults(simnet.Faults{MinDelay: time.Millisecond, MaxDelay: 2 * time.Millisecond})
	for _, n := range c.nodes {
		if !n.up() {
			n.start()
		}
	}
	time.Sleep(5 * time.Second)
	close(c.stop)
	clients.Wait()
	end := c.clock.Boot() + time.Minute
	for {
		if how.splits {
			m.forgetShards()
		}
		why, ok := m.settled()
		if ok {
			break
		}
		if c.clock.Boot() > end {
			t.Fatalf("a minute after the last fault: %s (seed %d)\n%s", why, seed, m.describe())
		}
		time.Sleep(time.Second)
		m.reconcile()
	}
	m.compare()
	if how.splits {
		m.tiles()
	}
	return c
}

// compare checks that all replicas of a shard hold the same rows, and that nothing else is on any disk.
func (m *moving) compare() {
	c := m.c
	for _, sh := range c.shards {
		var want []byte
		for _, n := range c.nodes {
			st, ok := n.mu.store.Status(sh)
			if !ok {
				continue
			}
			got := rows(c.t, n.mu.eng, st.Desc)
			if want == nil {
				want = got
			}
			if !bytes.Equal(got, want) {
				c.t.Errorf("%s holds other rows of %s (seed %d)", n.id, sh, c.seed)
			}
		}
	}
	for _, n := range c.nodes {
		states, err := n.mu.eng.LoadReplicas()
		if err != nil {
			c.t.Fatalf("%s (seed %d): %v", n.id, c.seed, err)
		}
		var disk, run []base.ShardID
		for _, st := range states {
			disk = append(disk, st.Shard)
		}
		for _, s := range n.mu.store.Summaries() {
			run = append(run, s.Shard)
			if s.Faulted != "" {
				c.t.Errorf("%s: %s (seed %d)", n.id, s.Faulted, c.seed)
			}
		}
		if !slices.Equal(disk, run) {
			c.t.Errorf("%s runs %v and has %v on disk (seed %d)", n.id, run, disk, c.seed)
		}
		if used := n.mu.eng.StagedBytes(); used > 0 {
			c.t.Errorf("%s keeps %d bytes of stagings (seed %d)", n.id, used, c.seed)
		}
	}
}

// TestReplicasMoveUnderFaultsAndNothingIsLost: whatever is delayed, doubled, delivered to replicas long gone or to their
// successors, cut off or crashed, reads and writes stay linearizable, no replica votes twice, and at the end every store
// has the replicas that the descriptors list, and no others.
func TestReplicasMoveUnderFaultsAndNothingIsLost(t *testing.T) {
	eachSeed(t, 6, func(t *testing.T, seed int64) {
		var c *live
		synctest.Test(t, func(t *testing.T) { c = runMoving(t, seed, course{stores: 5, lasts: time.Minute}) })
		if t.Failed() {
			return
		}
		counts := c.moving.mu.counts
		t.Logf("%d operations, %v", len(c.hist.mu.ops), counts)
		if len(c.hist.mu.ops) < 200 || counts["installed"] == 0 || counts["add learner"] == 0 || counts["promote"] == 0 {
			t.Errorf("too little happened to prove anything")
		}
		c.checkLeases(t)
		c.hist.check(t)
	})
}
