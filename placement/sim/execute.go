package sim

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/placement/plan"
)

// Operators are carried out as the jobs of the meta shard do it: one step each tick, decided from what the shard is then.
// A step that cannot be made waits, until the operator's deadline; past the joint change it only goes forward.

// running is an operator in flight.
type running struct {
	op     plan.Operator
	stream *stream
	frozen bool // merge: the right shard is
}

// stream is a snapshot on its way.
type stream struct {
	from, to *store
	replica  base.ReplicaID
	starts   time.Duration
	left     float64 // bytes
}

// begin takes on an operator that the planner proposed.
func (c *Cluster) begin(op plan.Operator) {
	c.nextOp++
	op.ID = c.nextOp
	for _, r := range c.running {
		if op.Shard == r.op.Shard || op.Shard == r.op.Other || op.Other != 0 && (op.Other == r.op.Shard || op.Other == r.op.Other) {
			c.fault("%s beside %s", op.String(), r.op.String())
		}
	}
	c.stats.Proposed[op.Kind]++
	c.logf("op%d: %s", op.ID, op.String())
	r := &running{op: op}
	c.running = append(c.running, r)
	c.planner.Started(&r.op)
}

// checkLimits compares what runs with the settings.
func (c *Cluster) checkLimits() {
	if n := len(c.running); n > c.cfg.Operators {
		c.fault("%d operators, at most %d", n, c.cfg.Operators)
	}
	in, transfers, boundaries := map[base.StoreID]int{}, map[base.StoreID]int{}, 0
	for _, r := range c.running {
		switch r.op.Kind {
		case plan.OpTransfer:
			if sh := c.view.Shard(r.op.Shard); sh == nil || sh.Leader == r.op.To {
				continue // done, as far as the planner has heard
			}
			for _, id := range [...]base.StoreID{r.op.From, r.op.To} {
				if transfers[id]++; transfers[id] > c.cfg.StoreTransfers {
					c.fault("%d transfers to and from %s, at most %d", transfers[id], id, c.cfg.StoreTransfers)
				}
			}
		case plan.OpMove, plan.OpAdd:
			if in[r.op.To]++; in[r.op.To] > c.cfg.StoreSnapshots {
				c.fault("%d snapshots to %s, at most %d", in[r.op.To], r.op.To, c.cfg.StoreSnapshots)
			}
		case plan.OpSplit, plan.OpMerge:
			if boundaries++; boundaries > c.cfg.Boundaries {
				c.fault("%d splits and merges, at most %d", boundaries, c.cfg.Boundaries)
			}
		}
	}
}

// execute takes one step of each operator.
func (c *Cluster) execute() {
	still := c.running[:0]
	for _, r := range c.running {
		done, failed := c.advance(r)
		if !done && failed == "" && c.opt.FailOneIn > 0 && c.rng.IntN(c.opt.FailOneIn) == 0 {
			failed = "chance"
		} else if failed != "" {
			c.undo(r)
		}
		if !done && failed == "" {
			still = append(still, r)
			continue
		}
		c.endStream(r)
		c.fill(r)
		if r.frozen {
			if sh := c.shards[r.op.Other]; sh != nil {
				sh.into = 0
				c.tell(sh)
			}
		}
		if failed != "" {
			c.stats.Failed[r.op.Kind]++
			c.logf("op%d failed: %s", r.op.ID, failed)
		} else {
			c.stats.Done[r.op.Kind]++
		}
		c.planner.Ended(&r.op, failed, c.now, c.cfg)
	}
	clear(c.running[len(still):])
	c.running = still
	c.leaveOrphans()
	c.fills = slices.DeleteFunc(c.fills, func(r *running) bool {
		sh := c.shards[r.op.Shard]
		if sh == nil || sh.on(r.op.To) == nil || !sh.empty[sh.on(r.op.To).Replica] {
			c.endStream(r)
			return true
		}
		return c.learner(sh, r)
	})
}

// fill has the leader go on feeding a replica that an operator left behind without its data, as raft does by itself.
func (c *Cluster) fill(r *running) {
	sh := c.shards[r.op.Shard]
	if sh == nil {
		return
	}
	if to := sh.on(r.op.To); to != nil && sh.empty[to.Replica] {
		c.fills = append(c.fills, &running{op: plan.Operator{Shard: sh.id(), To: r.op.To}})
	}
}

// leaveOrphans has leaders leave joint configurations that no operator is about, as every leader does by itself.
func (c *Cluster) leaveOrphans() {
	for _, id := range slices.Sorted(maps.Keys(c.joint)) {
		sh, since := c.shards[id], c.joint[id]
		if sh == nil || !joint(sh) {
			delete(c.joint, id)
		} else if c.now >= since+c.opt.Election && !c.busy(id) {
			c.leaveJoint(sh)
		}
	}
}

func (c *Cluster) busy(id base.ShardID) bool {
	for _, r := range c.running {
		if r.op.Shard == id && r.op.Kind != plan.OpTransfer {
			return true
		}
	}
	return false
}

// advance takes a step of an operator: done, failed with the reason, or neither.
func (c *Cluster) advance(r *running) (done bool, failed string) {
	sh := c.shards[r.op.Shard]
	if sh == nil {
		return false, "the shard is gone"
	}
	if c.now > r.op.Deadline && !joint(sh) {
		return false, "it took too long"
	}
	switch r.op.Kind {
	case plan.OpTransfer:
		return c.transfer(sh, r.op.To)
	case plan.OpSplit:
		return c.split(sh, &r.op)
	case plan.OpMerge:
		return c.merge(sh, r)
	}
	if joint(sh) {
		c.leaveJoint(sh)
		return false, ""
	}
	switch r.op.Kind {
	case plan.OpAdd, plan.OpPromote:
		return c.add(sh, r)
	case plan.OpMove:
		return c.move(sh, r)
	case plan.OpRemove:
		return c.remove(sh, &r.op)
	}
	return false, fmt.Sprintf("unknown kind %s", r.op.Kind)
}

func joint(sh *shard) bool {
	for _, r := range sh.desc.Replicas {
		if r.Role == base.RoleIncoming || r.Role == base.RoleOutgoing {
			return true
		}
	}
	return false
}

func (c *Cluster) leaveJoint(sh *shard) {
	if lead := sh.on(sh.leader); lead != nil && lead.Role == base.RoleOutgoing {
		c.hand(sh)
		return
	}
	c.conf(sh, "leaves joint", func(d *base.Descriptor) {
		for i := range d.Replicas {
			switch r := &d.Replicas[i]; r.Role {
			case base.RoleIncoming:
				r.Role = base.RoleVoter
			case base.RoleOutgoing:
				r.Role = base.RoleLearner
			}
		}
	})
}

// hand gives the leadership to any voter that stays.
func (c *Cluster) hand(sh *shard) {
	for i := range sh.desc.Replicas {
		r := &sh.desc.Replicas[i]
		if r.Store != sh.leader && (r.Role == base.RoleVoter || r.Role == base.RoleIncoming) && c.healthy(sh, r) {
			c.lead(sh, r.Store)
			return
		}
	}
}

func (c *Cluster) transfer(sh *shard, to base.StoreID) (bool, string) {
	if sh.leader == to {
		return true, ""
	}
	r := sh.on(to)
	switch {
	case r == nil || r.Role != base.RoleVoter:
		return false, "the target is no voter"
	case sh.leader == 0 || !c.healthy(sh, r) || !c.quorum(sh):
		return false, "the target does not answer"
	}
	c.lead(sh, to)
	c.logf("%s leads %s", to, sh.id())
	return false, ""
}

// learner makes the replica on a store a learner with the data; true if it is one, or more.
func (c *Cluster) learner(sh *shard, r *running) bool {
	to := sh.on(r.op.To)
	if to == nil {
		c.conf(sh, "add learner on "+r.op.To.String(), func(d *base.Descriptor) {
			id := d.NextReplicaID
			d.NextReplicaID++
			d.Replicas = append(d.Replicas, base.ReplicaDesc{Replica: id, Store: r.op.To, Role: base.RoleLearner})
			if sh.empty == nil {
				sh.empty = map[base.ReplicaID]bool{}
			}
			sh.empty[id] = true
		})
		return false
	}
	if !sh.empty[to.Replica] {
		c.endStream(r)
		return true
	}
	src, dst := c.stores[sh.leader], c.stores[r.op.To]
	if src == nil || !src.up || !dst.up || r.stream != nil && (r.stream.from != src || r.stream.replica != to.Replica) {
		c.endStream(r) // begins again once both are there
		return false
	}
	if r.stream == nil {
		r.stream = &stream{src, dst, to.Replica, c.now + c.opt.SnapshotDelay, float64(sh.size)}
		src.out++
		dst.in++
		return false
	}
	if c.now < r.stream.starts {
		return false
	}
	share := float64(c.opt.Bandwidth) / float64(max(src.out, dst.in))
	r.stream.left -= share * c.opt.Tick.Seconds()
	if r.stream.left > 0 {
		return false
	}
	c.stats.Bytes += sh.size
	delete(sh.empty, to.Replica)
	dst.bytes += sh.size
	c.endStream(r)
	c.tell(sh)
	return true
}

func (c *Cluster) endStream(r *running) {
	if r.stream != nil {
		r.stream.from.out--
		r.stream.to.in--
		r.stream = nil
	}
}

func (c *Cluster) add(sh *shard, r *running) (bool, string) {
	if r.op.Kind == plan.OpPromote && sh.on(r.op.To) == nil {
		return false, "the learner is gone"
	}
	if !c.learner(sh, r) {
		return false, ""
	}
	to := sh.on(r.op.To)
	if r.op.Learner || to.Role == base.RoleVoter {
		return true, ""
	}
	ok := c.conf(sh, "promote "+r.op.To.String(), func(d *base.Descriptor) { role(d, r.op.To, base.RoleVoter) })
	return ok, ""
}

func role(d *base.Descriptor, on base.StoreID, to base.Role) {
	for i := range d.Replicas {
		if d.Replicas[i].Store == on {
			d.Replicas[i].Role = to
		}
	}
}

func (c *Cluster) move(sh *shard, r *running) (bool, string) {
	from := sh.on(r.op.From)
	if from != nil && from.Replica != r.op.Replica {
		from = nil
	}
	to := sh.on(r.op.To)
	switch {
	case to != nil && to.Role == base.RoleVoter && !r.op.Learner || to != nil && r.op.Learner && !sh.empty[to.Replica]:
		// Only the old one is left to go.
	case from == nil:
		return false, "the replica to move is gone"
	case !c.learner(sh, r):
		return false, ""
	case !r.op.Learner:
		c.conf(sh, fmt.Sprintf("swap %s for %s", r.op.From, r.op.To), func(d *base.Descriptor) {
			role(d, r.op.To, base.RoleIncoming)
			if from.Role == base.RoleVoter {
				role(d, r.op.From, base.RoleOutgoing)
			}
		})
		return false, ""
	}
	if from == nil {
		return true, ""
	}
	return c.removeLearner(sh, r.op.From), ""
}

func (c *Cluster) removeLearner(sh *shard, on base.StoreID) bool {
	return c.conf(sh, "remove "+on.String(), func(d *base.Descriptor) {
		for i := range d.Replicas {
			if d.Replicas[i].Store == on {
				d.Replicas = append(d.Replicas[:i], d.Replicas[i+1:]...)
				return
			}
		}
	})
}

func (c *Cluster) remove(sh *shard, op *plan.Operator) (bool, string) {
	from := sh.on(op.From)
	switch {
	case from == nil || from.Replica != op.Replica:
		return true, ""
	case sh.leader == op.From:
		c.hand(sh)
		return false, ""
	case from.Role == base.RoleVoter:
		// Of the others one may have died since this was planned.
		if _, n := c.voters(sh); c.healthy(sh, from) && n-1 < c.wanted(sh) {
			return false, "too few of the others live"
		}
		c.conf(sh, "demote "+op.From.String(), func(d *base.Descriptor) { role(d, op.From, base.RoleOutgoing) })
		return false, ""
	}
	return c.removeLearner(sh, op.From), ""
}

// undo takes back a learner that an operator made and did not promote.
func (c *Cluster) undo(r *running) {
	sh := c.shards[r.op.Shard]
	if sh == nil || r.op.Kind != plan.OpMove && r.op.Kind != plan.OpAdd {
		return
	}
	if to := sh.on(r.op.To); to != nil && to.Role == base.RoleLearner && !joint(sh) {
		c.endStream(r)
		c.removeLearner(sh, r.op.To)
	}
}

func (c *Cluster) split(sh *shard, op *plan.Operator) (bool, string) {
	switch {
	case sh.desc.Epoch.Version != op.Epoch.Version:
		return false, "its range has changed"
	case sh.leader == 0 || joint(sh) || !c.quorum(sh):
		return false, ""
	}
	var keys [][]byte
	switch {
	case len(op.Keys) > 0:
		for _, k := range op.Keys {
			keys = append(keys, []byte(k))
		}
	case op.By == "load":
		if sh.spot == "" {
			return false, "no key divides the load"
		}
		keys = append(keys, []byte(sh.spot))
	default:
		lo, step := sh.lo(), width(sh.lo(), sh.hi())*(1<<64)/float64(max(op.Parts, 2))
		if step < 1 {
			return false, "all is one key"
		}
		for i := 1; i < max(op.Parts, 2); i++ {
			keys = append(keys, keyAt(lo+uint64(math.Min(step*float64(i), math.MaxUint64))))
		}
	}
	c.splitAt(sh, keys)
	return true, ""
}

// splitAt splits a shard at keys, the size of each part by the width of its range.
func (c *Cluster) splitAt(sh *shard, keys [][]byte) {
	was, size := sh.desc, sh.size
	whole := width(sh.lo(), sh.hi())
	part := func(lo, hi []byte) uint64 {
		return uint64(float64(size) * width(position(lo), position(hi)) / whole)
	}
	left := was.Clone()
	left.End = keys[0]
	left.Epoch.Version++
	sh.desc = left
	c.resize(sh, part(left.Start, left.End))
	c.loadOf(sh)
	for i, k := range keys {
		end := was.End
		if i+1 < len(keys) {
			end = keys[i+1]
		}
		d := &base.Descriptor{
			Shard: c.next, Start: k, End: end, Epoch: base.Epoch{ConfVer: 1, Version: left.Epoch.Version},
			NextReplicaID: base.ReplicaID(len(was.Replicas) + 1),
		}
		right := &shard{desc: d, leader: sh.leader, term: sh.term, size: part(k, end)}
		for j, r := range was.Replicas {
			id := base.ReplicaID(j + 1)
			d.Replicas = append(d.Replicas, base.ReplicaDesc{Replica: id, Store: r.Store, Role: r.Role})
			if sh.empty[r.Replica] {
				if right.empty == nil {
					right.empty = map[base.ReplicaID]bool{}
				}
				right.empty[id] = true
			}
		}
		c.adopt(right)
		c.logf("split: %s off %s", d, sh.id())
	}
	c.tell(sh)
}

func (c *Cluster) merge(l *shard, r *running) (bool, string) {
	right := c.shards[r.op.Other]
	switch {
	case right == nil || string(right.desc.Start) != string(l.desc.End):
		return false, "they are no neighbours"
	case !r.frozen && l.desc.Epoch.Version != r.op.Epoch.Version:
		return false, "the range has changed"
	case len(l.desc.Replicas) != len(right.desc.Replicas):
		return false, "they are on different nodes"
	}
	for i := range l.desc.Replicas {
		o := right.on(l.desc.Replicas[i].Store)
		switch {
		case o == nil:
			return false, "they are on different nodes"
		case o.Role != base.RoleVoter || l.desc.Replicas[i].Role != base.RoleVoter:
			return false, "not all replicas are voters"
		case !c.healthy(l, &l.desc.Replicas[i]) || !c.healthy(right, o):
			return false, ""
		}
	}
	if l.leader == 0 || right.leader == 0 {
		return false, ""
	}
	if !r.frozen {
		r.frozen, right.into = true, l.id()
		c.tell(right)
		return false, ""
	}
	r.frozen = false
	d := l.desc.Clone()
	d.End = right.desc.End
	d.Epoch.Version = max(d.Epoch.Version, right.desc.Epoch.Version) + 1
	for _, o := range right.desc.Replicas {
		c.drop(c.stores[o.Store], right)
	}
	c.byKey.Delete(right)
	delete(c.shards, right.id())
	l.desc = d
	c.resize(l, l.size+right.size)
	c.loadOf(l)
	c.tell(l)
	c.logf("merge: %s took in %s", d, right.id())
	return true, ""
}
