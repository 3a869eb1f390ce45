package node

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/shardd/shardd/api/shardd/v1"
	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/placement"
	"github.com/shardd/shardd/placement/recovery"
)

// Recovery of lost quorums, carried out by the node that was asked for it, the coordinator. Fence: every survivor has the
// failed stores fenced, and the recovery on record, on its disk. Meta: the logs of the chosen replicas are applied to
// their ends, before anything is dropped, since a merge in one of them needs what a later choice would give up; what they
// bring, a split say, is planned in the next round. Then the meta shard is made new, if it is lost too: the rest needs ids
// and an index. Shards: the others. Done: the failed nodes are struck out in the meta shard, and every survivor's record
// says so.
//
// Each round asks all survivors again and plans anew; nothing is remembered but the record: what was done is seen to be
// done. The choice between two survivors must never be made twice differently. So there is one coordinator: a recovery
// has an id, every survivor takes only steps of the highest one that it has on record, and a coordinator begins only once
// all survivors have its id. One that starts again, or takes over, takes a new id first, so that nothing that an earlier
// life has sent can still happen. A crash anywhere leaves a record that is not ended; its coordinator goes on with it at
// its next start, or another node does when it is asked to.

const (
	// recoverRound is the pause between rounds that had something to wait for.
	recoverRound = 200 * time.Millisecond
	// recoverAtOnce is how many steps are asked for at the same time; each node takes one at a time.
	recoverAtOnce = 16
	// Ids that a meta shard which is made new may have forgotten to have given out.
	marginShards, marginNodes, marginJobs = recovery.Jump, 100, recovery.Jump
)

// recoverer is both ends of recovery on a node.
type recoverer struct {
	m    *member
	here sync.Mutex    // held by a step on this node, and by what must not come between
	wake chan struct{} // capacity 1

	mu struct {
		sync.Mutex
		rec      *engine.Recovery   // this node is its coordinator; nil: there is none
		shards   []*pb.RecoverShard // of the rounds so far, by start
		problems []string           // of the last round
		cancel   bool
		lives    map[base.ShardID][]placement.LifeEvent // not written yet
	}
}

func newRecoverer(m *member) *recoverer { return &recoverer{m: m, wake: make(chan struct{}, 1)} }

// run carries out what this node coordinates.
func (r *recoverer) run(ctx context.Context) {
	r.resume()
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.wake:
		}
		for ctx.Err() == nil {
			rec := r.current()
			if rec == nil {
				break
			}
			if err := r.round(ctx, rec); err != nil {
				r.report([]string{status.Convert(err).Message()})
				if status.Code(err) == codes.Aborted { // another node has taken over
					r.m.log.Warn("recovery taken over", "recovery", rec.ID, "err", err)
					r.set(nil)
					break
				}
			}
			pause(ctx, recoverRound)
		}
	}
}

// resume goes on with what an earlier life of this node has begun, under a new id.
func (r *recoverer) resume() {
	id, _ := r.m.n.eng.Ident()
	old := id.Recovery
	if old == nil || old.Coordinator != r.m.self || old.Stage.Ended() && old.Stage != engine.RecoveryCancelled {
		return
	}
	next := *old
	if old.Stage == engine.RecoveryCancelled {
		if !slices.ContainsFunc(old.Failed, r.m.book.isFenced) {
			return
		}
	} else {
		next.ID = nextRecovery(old.ID, r.m.self)
	}
	r.m.log.Warn("going on with a recovery of lost quorums", "recovery", next.ID, "stage", next.Stage.String())
	r.begin(&next, nil)
}

// nextRecovery returns an id above another one, that no other node takes.
func nextRecovery(above uint64, self base.StoreID) uint64 {
	return (above>>16+1)<<16 | uint64(self)&0xffff
}

func (r *recoverer) current() *engine.Recovery {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.mu.rec
}

func (r *recoverer) set(rec *engine.Recovery) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mu.rec = rec
}

func (r *recoverer) report(problems []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mu.problems = problems
}

// begin makes this node the coordinator of a recovery.
func (r *recoverer) begin(rec *engine.Recovery, shards []*pb.RecoverShard) {
	r.mu.Lock()
	r.mu.rec, r.mu.shards, r.mu.problems, r.mu.cancel = rec, shards, nil, false
	r.mu.lives = make(map[base.ShardID][]placement.LifeEvent)
	r.mu.Unlock()
	poke(r.wake)
}

// advance moves the recovery to a stage, on every survivor, unless it is to be cancelled. It may be repeated.
func (r *recoverer) advance(ctx context.Context, rec *engine.Recovery, stage engine.RecoveryStage) (*engine.Recovery, error) {
	next := *rec
	r.mu.Lock()
	if r.mu.rec == nil || r.mu.rec.ID != rec.ID {
		r.mu.Unlock()
		return nil, status.Error(codes.Unavailable, "the recovery has changed")
	}
	if r.mu.cancel && rec.Stage == engine.RecoveryFence {
		stage = engine.RecoveryCancelled
	} else if r.mu.cancel {
		stage = engine.RecoveryStopped
	}
	next.Stage = max(rec.Stage, stage)
	r.mu.rec = &next
	r.mu.Unlock()
	switch next.Stage {
	case engine.RecoveryCancelled:
		return nil, r.callOff(ctx, &next)
	case engine.RecoveryStopped:
		if err := r.tell(ctx, &next); err != nil {
			return nil, err
		}
		r.m.log.Warn("recovery stopped", "recovery", next.ID)
		r.set(nil)
		return nil, nil
	}
	return &next, r.tell(ctx, &next)
}

// tell has every survivor put the recovery on record and fence the failed stores, this node first: what it has begun it
// goes on with.
func (r *recoverer) tell(ctx context.Context, rec *engine.Recovery) error {
	add := make([]engine.Fence, len(rec.Failed))
	for i, s := range rec.Failed {
		add[i] = engine.Fence{Store: s, Recovery: rec.ID}
	}
	if err := r.m.takeFences(engine.FenceChange{Add: add, Recovery: rec}); err != nil {
		return err
	}
	if err := r.m.n.point("recovery on record"); err != nil {
		return err
	}
	return r.tellOthers(ctx, rec)
}

func (r *recoverer) tellOthers(ctx context.Context, rec *engine.Recovery) error {
	m := r.m
	req := &pb.FenceStoresRequest{
		ClusterId: m.cluster[:], Nodes: numbers(rec.Failed), RecoveryId: rec.ID, Coordinator: uint64(rec.Coordinator),
		Stage: rec.Stage.String(), PlanToken: rec.Token[:], Survivors: numbers(rec.Survivors),
		MetaDescriptor: m.metaDesc().Append(nil),
	}
	return m.eachOf(rec.Survivors, func(s base.StoreID) error {
		if s == m.self {
			return nil
		}
		c, err := m.internal(s)
		if err != nil {
			return status.Errorf(codes.Unavailable, "%s: %v", s, err)
		}
		ask, cancel := context.WithTimeout(ctx, callTimeout)
		defer cancel()
		if _, err = c.FenceStores(ask, req); err != nil {
			return status.Errorf(status.Code(err), "%s: %s", s, status.Convert(err).Message())
		}
		return nil
	})
}

// eachOf calls f for the stores, some at the same time, and returns an error that says that another coordinator has taken
// over, if there is one, else the first.
func (m *member) eachOf(stores []base.StoreID, f func(base.StoreID) error) error {
	return atOnce(len(stores), func(i int) error { return f(stores[i]) })
}

func atOnce(n int, f func(i int) error) (first error) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	slots := make(chan struct{}, recoverAtOnce)
	for i := range n {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			if err := f(i); err != nil {
				mu.Lock()
				defer mu.Unlock()
				if first == nil || status.Code(err) == codes.Aborted {
					first = err
				}
			}
		})
	}
	wg.Wait()
	return first
}

// callOff lifts the fences everywhere, at last here: this node remembers until then that there is something to lift.
func (r *recoverer) callOff(ctx context.Context, rec *engine.Recovery) error {
	if err := r.m.takeFences(engine.FenceChange{Recovery: rec}); err != nil {
		return err
	}
	if err := r.tellOthers(ctx, rec); err != nil {
		return err
	}
	if err := r.m.takeFences(engine.FenceChange{Lift: rec.Failed, Recovery: rec}); err != nil {
		return err
	}
	r.m.log.Warn("recovery called off", "recovery", rec.ID)
	r.set(nil)
	return nil
}

// round takes the recovery as far as it can be taken now.
func (r *recoverer) round(ctx context.Context, rec *engine.Recovery) error {
	if rec.Stage == engine.RecoveryCancelled {
		return r.callOff(ctx, rec)
	}
	r.writeLives(ctx)
	rec, err := r.advance(ctx, rec, rec.Stage) // all have it, and its fences
	if err != nil || rec == nil {
		return err
	}
	g := r.m.gather(ctx, rec.Failed, rec.Survivors, rec.ID)
	if len(g.problems) > 0 {
		r.report(g.problems)
		return nil
	}
	plan := recovery.Make(g.in)
	r.show(plan)
	r.report(plan.Problems)
	if len(plan.Problems) > 0 {
		return nil
	}
	meta := plan.Meta()
	if rec, err = r.advance(ctx, rec, engine.RecoveryMeta); err != nil || rec == nil {
		return err
	}
	if logs := plan.Unsettled(); len(logs) > 0 {
		return atOnce(len(logs), func(i int) error { return r.settle(ctx, rec, logs[i]) })
	}
	if meta != nil {
		return r.makeNew(ctx, rec, g, plan, meta)
	}
	if rec.Stage < engine.RecoveryShards {
		if err := r.m.skipIDs(ctx, g); err != nil {
			return err
		}
		// Before their shards can do again what they ask for.
		if err := r.m.cancelJobsFor(ctx, rec.Failed); err != nil {
			return err
		}
		if rec, err = r.advance(ctx, rec, engine.RecoveryShards); err != nil || rec == nil {
			return err
		}
	}
	if !plan.Empty() {
		return r.shards(ctx, rec, g, plan)
	}
	return r.finish(ctx, rec)
}

// shards makes those of a plan new: first goes what is in the way, then come those that have a replica; what is made anew,
// empty, waits until nothing else is left to do.
func (r *recoverer) shards(ctx context.Context, rec *engine.Recovery, g *gathered, plan *recovery.Plan) error {
	err := atOnce(len(plan.GiveUp), func(i int) error {
		return r.m.askRecover(ctx, plan.GiveUp[i].Store, dropRequest(rec.ID, plan.GiveUp[i], nil))
	})
	if err != nil {
		return err
	}
	var left, anew []*recovery.Shard
	for i := range plan.Shards {
		if s := &plan.Shards[i]; s.Survivor != 0 {
			left = append(left, s)
		} else {
			anew = append(anew, s)
		}
	}
	if len(left) > 0 {
		return atOnce(len(left), func(i int) error { return r.makeNew(ctx, rec, g, plan, left[i]) })
	}
	return atOnce(len(anew), func(i int) error { return r.makeNew(ctx, rec, g, plan, anew[i]) })
}

// settle has a chosen replica apply its log to the end.
func (r *recoverer) settle(ctx context.Context, rec *engine.Recovery, s *recovery.Shard) error {
	err := r.m.askRecover(ctx, s.Survivor, &pb.RecoverReplicaRequest{
		ShardId: uint64(s.Shard), ReplicaId: uint64(s.Replica), RecoveryId: rec.ID, FailedNodes: numbers(rec.Failed),
		Action: recoverSettle,
	})
	if status.Code(err) == codes.FailedPrecondition {
		r.mark(s, err)
		return nil // the next round looks again
	}
	return err
}

// makeNew carries out the plan for one shard.
func (r *recoverer) makeNew(ctx context.Context, rec *engine.Recovery, g *gathered, plan *recovery.Plan,
	s *recovery.Shard) error {
	err := r.renew(ctx, rec, g, plan, s)
	r.mark(s, err)
	if status.Code(err) == codes.FailedPrecondition {
		return nil // shown with the shard; the next round plans it anew
	}
	return err
}

func (r *recoverer) renew(ctx context.Context, rec *engine.Recovery, g *gathered, plan *recovery.Plan,
	s *recovery.Shard) error {
	m := r.m
	req := &pb.RecoverReplicaRequest{
		ShardId: uint64(s.Shard), ReplicaId: uint64(s.Replica), RecoveryId: rec.ID, FailedNodes: numbers(rec.Failed),
		Term: s.Term, Version: s.Version,
	}
	d, at := s.Desc.Clone(), s.Survivor
	if s.Survivor == 0 {
		req.Action, at = recoverCreate, s.On
		if s.Shard == base.MetaShard {
			for _, drop := range plan.GiveUp { // of it, under its own proof: it comes back under its name
				if drop.Shard == base.MetaShard {
					if err := m.askRecover(ctx, drop.Store, dropRequest(rec.ID, drop, d)); err != nil {
						return err
					}
				}
			}
			var err error
			if req.MetaData, err = m.remadeMeta(g, plan); err != nil {
				return err
			}
		} else {
			id, err := m.dir.AllocIDs(ctx, placement.ShardIDs, 1)
			if err != nil {
				return directoryStatus(err)
			}
			d.Shard = base.ShardID(id)
		}
		req.ShardId = uint64(d.Shard)
	}
	req.Descriptor_ = d.Append(nil)
	if err := m.askRecover(ctx, at, req); err != nil {
		return err
	}
	if d.Shard == base.MetaShard {
		m.learnMeta(d)
	}
	m.log.Warn("shard recovered", "recovery", rec.ID, "node", at.String(), "shard", d.String(), "loss", s.Loss)
	r.note(d.Shard, at, s)
	for _, drop := range s.Dropped {
		if err := m.askRecover(ctx, drop.Store, dropRequest(rec.ID, drop, d)); err != nil {
			// It asks about itself, as every replica does that has no leader.
			m.log.Info("replica that was given up is still there", "replica", base.ReplicaName(drop.Shard, drop.Replica),
				"node", drop.Store.String(), "err", err)
		}
	}
	return nil
}

// note keeps a line for the life of a shard, until the meta shard takes it.
func (r *recoverer) note(id base.ShardID, at base.StoreID, s *recovery.Shard) {
	e := placement.LifeEvent{
		UnixMS: uint64(r.m.clock.Wall().UnixMilli()), Kind: placement.LifeRecovered, Detail: fmt.Sprintf("at %s: %s", at, s.Loss),
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mu.lives[id] = append(r.mu.lives[id], e)
}

// writeLives writes the lines that wait, if the meta shard is there; they are for people, so nothing waits for them.
func (r *recoverer) writeLives(ctx context.Context) {
	r.mu.Lock()
	lives := r.mu.lives
	r.mu.Unlock()
	if len(lives) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, forwardTimeout)
	defer cancel()
	if err := r.m.dir.AddRecovered(ctx, lives); err != nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mu.lives = make(map[base.ShardID][]placement.LifeEvent)
}

// remadeMeta returns contents for a meta shard that nobody has any more.
func (m *member) remadeMeta(g *gathered, plan *recovery.Plan) ([]*pb.KeyValue, error) {
	var nodes []placement.Node
	shard, store := base.MetaShard, m.self
	for id, addr := range g.addrs {
		n := placement.Node{ID: id, Address: addr}
		if inv := g.nodes[id]; inv != nil {
			n.HTTP, n.Version, n.Labels, n.Incarnation = inv.HttpAddress, inv.Version, inv.Labels, inv.Incarnation
		}
		nodes, store = append(nodes, n), max(store, id)
	}
	slices.SortFunc(nodes, func(a, b placement.Node) int { return int(a.ID) - int(b.ID) })
	for _, r := range g.in.Replicas {
		shard = max(shard, r.Shard)
	}
	descs := slices.Clone(plan.Known)
	for i := range plan.Shards {
		if s := &plan.Shards[i]; s.Shard == base.MetaShard && s.Survivor == 0 {
			descs = append(descs, s.Desc)
		}
	}
	cluster := placement.Cluster{ID: m.cluster, CreatedMS: uint64(m.clock.Wall().UnixMilli())}
	pairs, err := placement.Remade(cluster, nodes, descs, shard+1+marginShards, store+1+marginNodes, 1+marginJobs)
	if err != nil {
		return nil, status.Errorf(codes.FailedPrecondition, "records of the cluster: %v", err)
	}
	out := make([]*pb.KeyValue, len(pairs))
	for i, p := range pairs {
		out[i] = &pb.KeyValue{Key: p.Key, Value: p.Value}
	}
	return out, nil
}

// skipIDs sees to it that a meta shard that was made new gives out no id again. One that never was is left alone.
func (m *member) skipIDs(ctx context.Context, g *gathered) error {
	if m.metaDesc().Epoch.ConfVer < recovery.Jump {
		return nil
	}
	var shard base.ShardID
	store := m.self
	for _, r := range g.in.Replicas {
		shard = max(shard, r.Shard)
	}
	for id := range g.addrs {
		store = max(store, id)
	}
	for _, c := range []struct {
		kind         placement.IDKind
		seen, margin uint64
	}{
		{placement.ShardIDs, uint64(shard), marginShards}, {placement.NodeIDs, uint64(store), marginNodes},
		{placement.JobIDs, 0, marginJobs},
	} {
		if err := m.dir.SkipIDs(ctx, c.kind, c.seen, c.margin); err != nil {
			return directoryStatus(err)
		}
	}
	return nil
}

// finish strikes the failed nodes out and ends the recovery.
func (r *recoverer) finish(ctx context.Context, rec *engine.Recovery) error {
	m := r.m
	for _, s := range rec.Failed {
		err := m.dir.SetCommission(ctx, s, placement.Removed)
		if err := directoryStatusOf(err); err != nil {
			return err
		}
	}
	m.jobs.marks.forget()
	r.writeLives(ctx)
	rec, err := r.advance(ctx, rec, engine.RecoveryDone)
	if err != nil || rec == nil {
		return err
	}
	m.log.Warn("recovery is done", "recovery", rec.ID)
	r.report(nil)
	r.set(nil)
	return nil
}

// directoryStatusOf is directoryStatus for records that need not exist.
func directoryStatusOf(err error) error {
	if err == nil || status.Code(directoryStatus(err)) == codes.NotFound {
		return nil
	}
	return directoryStatus(err)
}

// show adds the shards of a plan to what is shown.
func (r *recoverer) show(plan *recovery.Plan) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range plan.Shards {
		s := planShard(&plan.Shards[i])
		at := slices.IndexFunc(r.mu.shards, func(o *pb.RecoverShard) bool { return string(o.Start) == string(s.Start) })
		switch {
		case at < 0:
			r.mu.shards = append(r.mu.shards, s)
		case r.mu.shards[at].State != shardDone:
			s.Error = r.mu.shards[at].Error
			r.mu.shards[at] = s
		}
	}
	slices.SortFunc(r.mu.shards, func(a, b *pb.RecoverShard) int { return slices.Compare(a.Start, b.Start) })
}

// States of a shard in a recovery.
const (
	shardWaiting = "waiting"
	shardDone    = "done"
)

func (r *recoverer) mark(s *recovery.Shard, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, o := range r.mu.shards {
		if string(o.Start) != string(s.Start) {
			continue
		}
		// Never changed, only replaced: answers hold it.
		next := planShard(s)
		if next.Error = ""; err == nil {
			next.State = shardDone
		} else {
			next.Error = status.Convert(err).Message()
		}
		r.mu.shards[i] = next
	}
}

func planShard(s *recovery.Shard) *pb.RecoverShard {
	out := &pb.RecoverShard{
		ShardId: uint64(s.Shard), Start: s.Start, End: s.End, Survivor: uint64(s.Survivor), Applied: s.Applied,
		LastIndex: s.LastIndex, Commit: s.Commit, Loss: s.Loss, State: shardWaiting,
	}
	for _, d := range s.Dropped {
		out.Dropped = append(out.Dropped, uint64(d.Store))
	}
	return out
}

// recoveryText names a recovery for people.
func recoveryText(failed []base.StoreID) string {
	return fmt.Sprintf("recovery from the loss of %v", failed)
}
