package placement

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shardd/shardd/internal/base"
)

// simShard is a shard whose nodes die and come back, whose leadership moves, and whose changes are lost, delayed and
// repeated. It keeps the rules of shard.ChangeReplicas: ConfVer must match, one joint change at a time, a learner that
// leads or a voter is not removed.
type simShard struct {
	rng      *rand.Rand
	now      time.Duration
	desc     *base.Descriptor
	leader   base.StoreID
	dead     map[base.StoreID]time.Duration // until
	match    map[base.ReplicaID]uint64
	last     uint64
	snapshot map[base.ReplicaID]uint64 // bytes done
	disk     map[base.StoreID]bool     // of replicas that were removed
	flight   []simChange
	log      []string
}

type simChange struct {
	at      time.Duration
	confVer uint64
	changes []Change
}

const simBytes = 1 << 20

func newSimShard(rng *rand.Rand) *simShard {
	s := &simShard{
		rng: rng, now: time.Hour, dead: map[base.StoreID]time.Duration{}, match: map[base.ReplicaID]uint64{}, last: 2000,
		snapshot: map[base.ReplicaID]uint64{}, disk: map[base.StoreID]bool{}, leader: 1,
		desc: &base.Descriptor{
			Shard: 12, Start: []byte("\x02a"), End: []byte("\x02b"), Epoch: base.Epoch{ConfVer: 1, Version: 1},
		},
	}
	s.desc.NextReplicaID = 1
	for i := range 1 + rng.IntN(4) {
		role := base.RoleVoter
		if i > 0 && rng.IntN(4) == 0 {
			role = base.RoleLearner
		}
		s.add(base.StoreID(i+1), role, s.last)
	}
	return s
}

func (s *simShard) logf(format string, args ...any) {
	s.log = append(s.log, fmt.Sprintf("%8s ", s.now)+fmt.Sprintf(format, args...))
}

func (s *simShard) add(store base.StoreID, role base.Role, match uint64) {
	id := s.desc.NextReplicaID
	s.desc.NextReplicaID++
	s.desc.Replicas = append(s.desc.Replicas, base.ReplicaDesc{Replica: id, Store: store, Role: role})
	s.match[id] = match
}

func (s *simShard) alive(id base.StoreID) bool { return s.now >= s.dead[id] }

// live reports whether both configurations have a quorum.
func (s *simShard) live() bool {
	for _, with := range []base.Role{base.RoleIncoming, base.RoleOutgoing} {
		total, up := 0, 0
		for _, r := range s.desc.Replicas {
			if r.Role == base.RoleVoter || r.Role == with {
				total++
				if s.alive(r.Store) {
					up++
				}
			}
		}
		if up <= total/2 {
			return false
		}
	}
	return true
}

func (s *simShard) isVoter(id base.StoreID) bool {
	r, ok := s.desc.ReplicaOn(id)
	return ok && r.Role != base.RoleLearner
}

// shardNow is what the leader says, nil if there is none.
func (s *simShard) shardNow() *ShardNow {
	if !s.live() || !s.alive(s.leader) {
		return nil
	}
	out := &ShardNow{Desc: s.desc.Clone(), Leader: s.leader, Term: 6}
	for _, r := range s.desc.Replicas {
		p := ReplicaNow{
			Replica: r.Replica, Store: r.Store, Role: r.Role, Match: s.match[r.Replica], Last: s.last,
			Active: s.alive(r.Store),
		}
		if p.Match == 0 {
			p.PendingSnapshot = 5
			out.Snapshot = &SnapshotNow{To: r.Replica, Phase: "streaming", Done: s.snapshot[r.Replica], Total: simBytes}
		} else {
			p.Bytes = simBytes
		}
		out.Progress = append(out.Progress, p)
	}
	return out
}

// pass lets time go by.
func (s *simShard) pass(d time.Duration, faults bool) {
	s.now += d
	rng := s.rng
	if faults && rng.IntN(40) == 0 {
		id := base.StoreID(1 + rng.IntN(6))
		s.dead[id] = s.now + time.Duration(rng.Int64N(int64(15*time.Minute)))
		s.logf("%s dies until %s", id, s.dead[id])
	}
	if !s.alive(s.leader) || rng.IntN(30) == 0 || !s.isVoter(s.leader) {
		if to, ok := s.pick(func(r base.ReplicaDesc) bool { return s.isVoter(r.Store) && s.alive(r.Store) }); ok && s.live() {
			s.leader = to.Store
		}
	}
	flight := s.flight
	s.flight = nil
	for _, c := range flight {
		if c.at > s.now {
			s.flight = append(s.flight, c)
		} else if err := s.apply(c); err == "" {
			s.logf("applied %v at %d: %s", c.changes, c.confVer, s.desc)
		}
	}
	if !s.live() || !s.alive(s.leader) {
		return
	}
	s.last += uint64(rng.IntN(300))
	for _, r := range s.desc.Replicas {
		switch {
		case !s.alive(r.Store):
		case s.match[r.Replica] > 0:
			s.match[r.Replica] = s.last - min(s.last-s.match[r.Replica], uint64(rng.IntN(200)))
		case faults && rng.IntN(20) == 0: // the stream starts over
			s.snapshot[r.Replica] = 0
		default:
			s.snapshot[r.Replica] += uint64(rng.IntN(simBytes / 4))
			if s.snapshot[r.Replica] >= simBytes {
				s.match[r.Replica] = s.last / 2
			}
		}
	}
	for id := range s.disk {
		if s.alive(id) && rng.IntN(3) == 0 {
			delete(s.disk, id)
		}
	}
	// A leader that stays leaves Joint by itself; one that does not hands over first.
	if lead, _ := s.desc.ReplicaOn(s.leader); s.joint() && lead.Role != base.RoleOutgoing && rng.IntN(4) == 0 {
		for i, r := range s.desc.Replicas {
			switch r.Role {
			case base.RoleIncoming:
				s.desc.Replicas[i].Role = base.RoleVoter
			case base.RoleOutgoing:
				s.desc.Replicas[i].Role = base.RoleLearner
			}
		}
		s.desc.Epoch.ConfVer++
		s.logf("left joint: %s", s.desc)
	}
}

func (s *simShard) joint() bool { return (&ShardNow{Desc: s.desc}).Joint() }

func (s *simShard) pick(ok func(base.ReplicaDesc) bool) (base.ReplicaDesc, bool) {
	var out []base.ReplicaDesc
	for _, r := range s.desc.Replicas {
		if ok(r) {
			out = append(out, r)
		}
	}
	if len(out) == 0 {
		return base.ReplicaDesc{}, false
	}
	return out[s.rng.IntN(len(out))], true
}

// send puts a change on its way: once, twice or not at all, now or within less than the time that jobs wait for it.
func (s *simShard) send(a Action) {
	for range s.rng.IntN(3) {
		s.flight = append(s.flight, simChange{
			at: s.now + time.Duration(s.rng.Int64N(int64(2*time.Second))), confVer: a.ConfVer, changes: a.Changes,
		})
	}
}

func (s *simShard) apply(c simChange) string {
	switch {
	case !s.live() || !s.alive(s.leader):
		return "no leader"
	case c.confVer != s.desc.Epoch.ConfVer:
		return "other ConfVer"
	case s.joint():
		return "joint"
	}
	next := s.desc.Clone()
	for _, ch := range c.changes {
		i := slices.IndexFunc(next.Replicas, func(r base.ReplicaDesc) bool { return r.Store == ch.Store })
		switch {
		case ch.Op == ChangeAddLearner && i < 0:
			id := next.NextReplicaID
			next.NextReplicaID++
			next.Replicas = append(next.Replicas, base.ReplicaDesc{Replica: id, Store: ch.Store, Role: base.RoleLearner})
			s.match[id] = 0
		case i < 0 || ch.Replica != 0 && next.Replicas[i].Replica != ch.Replica:
			return "no such replica"
		case ch.Op == ChangePromote && next.Replicas[i].Role == base.RoleLearner:
			next.Replicas[i].Role = base.RoleIncoming
		case ch.Op == ChangeDemote && next.Replicas[i].Role == base.RoleVoter:
			next.Replicas[i].Role = base.RoleOutgoing
		case ch.Op == ChangeRemove && next.Replicas[i].Role == base.RoleLearner && s.leader != ch.Store:
			s.disk[ch.Store] = true
			next.Replicas = slices.Delete(next.Replicas, i, i+1)
		default:
			return "not possible"
		}
	}
	next.Epoch.ConfVer++
	s.desc = next
	return ""
}

// simRunner is one runner of the job, with what it remembers.
type simRunner struct {
	j         *Job
	watch     Watch
	refused   string
	refusedAt uint64
}

// step does what node's runner does: look, save if the steps' states change, act. saved is the record.
func (r *simRunner) step(s *simShard, saved *Job) (a Action) {
	w := World{
		Shard: s.shardNow(), Why: "no leader", Watch: r.watch, Now: s.now, Refused: r.refused,
		RefusedAt: r.refusedAt, Limits: Limits{Stall: time.Minute},
	}
	if at, ask := AskDisk(r.j, w); ask {
		w.Disk = DiskGone
		if _, listed := s.desc.ReplicaOn(at); listed || s.disk[at] {
			w.Disk = DiskHolds
		}
		if !s.alive(at) {
			w.Disk = DiskSilent
		}
	}
	a = Next(r.j, w)
	r.watch = r.watch.See(a.At, s.now)
	if w.Shard != nil {
		r.refused = ""
	}
	same := slices.EqualFunc(a.Steps, r.j.Steps, func(a, b Step) bool { return a.Name == b.Name && a.State == b.State })
	r.j.Steps = a.Steps
	if saved != nil {
		saved.Steps = append([]Step(nil), a.Steps...)
	}
	switch {
	case a.Do <= ActTransfer && !same:
		return a // saved first; a runner that is not the owner any more finds that out and stops
	case saved == nil && a.Do > ActTransfer:
		return a
	}
	switch a.Do {
	case ActChange:
		if s.rng.IntN(100) == 0 {
			r.refused, r.refusedAt = "refused for good", a.ConfVer
			break
		}
		s.send(a)
	case ActTransfer:
		if s.rng.IntN(2) == 0 && s.alive(a.To) && s.isVoter(a.To) {
			s.leader = a.To
		}
	case ActUndo:
		r.j.State, r.j.Error = JobCancelling, a.Reason
	case ActEnd:
		r.j.State, r.j.Error = a.State, a.Reason
	}
	if saved != nil {
		saved.State, saved.Error = r.j.State, r.j.Error
	}
	return a
}

func simSpec(s *simShard) *Job {
	rng := s.rng
	from, _ := s.pick(func(base.ReplicaDesc) bool { return true })
	spec := JobSpec{Shard: 12, Kind: JobKind(1 + rng.IntN(4))}
	switch spec.Kind {
	case JobMove:
		spec.From, spec.To = from.Store, 6
	case JobAddReplica:
		spec.To, spec.Learner = 6, rng.IntN(3) == 0
	case JobRemoveReplica:
		spec.From = from.Store
	case JobPromote:
		spec.To = from.Store
	}
	nodes := map[base.StoreID]NodeNow{}
	for id := base.StoreID(1); id <= 6; id++ {
		nodes[id] = NodeNow{ID: id, Heard: true, Alive: true}
	}
	j, err := Plan(spec, s.shardNow(), nodes)
	if err != nil {
		return nil
	}
	j.ID = 7
	return j
}

// TestWhateverHappensAJobEndsWithAWholeConfiguration runs jobs against shards that lose, delay and repeat changes,
// under runners that are replaced and a former runner that acts once more.
func TestWhateverHappensAJobEndsWithAWholeConfiguration(t *testing.T) {
	rng := seeded(t)
	ends := map[string]int{}
	rounds := 1000
	if testing.Short() {
		rounds = 200
	}
	for round := range rounds {
		s := newSimShard(rand.New(rand.NewPCG(rng.Uint64(), 1)))
		j := simSpec(s)
		if j == nil {
			continue
		}
		simulate(t, s, j, ends)
		if t.Failed() {
			t.Logf("round %d\n%s", round, strings.Join(s.log, "\n"))
			return
		}
	}
	for _, want := range []string{"done", "failed", "cancelled"} {
		if ends[want] == 0 {
			t.Errorf("no job ended %s: %v", want, ends)
		}
	}
	t.Log(ends)
}

func simulate(t *testing.T, s *simShard, saved *Job, ends map[string]int) {
	t.Helper()
	rng := s.rng
	start := s.desc.Clone()
	s.logf("%s %+v: %s", saved.Spec.Kind, saved.Spec, s.desc)
	faults := rng.IntN(3) > 0
	cancelAt := -1
	if rng.IntN(3) == 0 {
		cancelAt = rng.IntN(100)
	}
	run := &simRunner{j: saved.Clone()}
	ended := 0
	for step := 0; ; step++ {
		if step > 200_000 {
			t.Errorf("the job never ends: %+v on %s", run.j, s.desc)
			return
		}
		s.pass(200*time.Millisecond+time.Duration(rng.Int64N(int64(time.Second))), faults && step < 50_000)
		if step == cancelAt && saved.State == JobRunning {
			saved.State, run.j.State = JobCancelling, JobCancelling
			s.logf("cancelled")
		}
		if rng.IntN(20) == 0 { // another runner takes over; the old one acts once more on what it knows
			if old := *run; rng.IntN(2) == 0 {
				old.j = old.j.Clone()
				old.step(s, nil)
			}
			run = &simRunner{j: saved.Clone()}
		}
		if a := run.step(s, saved); a.Do == ActEnd {
			s.logf("ended %s: %s", a.State, a.Reason)
			break
		}
	}
	ends[saved.State.String()]++
	// The job promises to leave no Joint shard behind if there is a quorum; what is on its way may still come.
	if s.live() && s.alive(s.leader) && s.joint() {
		t.Errorf("ended %s while Joint: %s", saved.State, s.desc)
	}
	for s.dead = map[base.StoreID]time.Duration{}; len(s.flight) > 0 || s.joint() || ended < 10; ended++ {
		s.pass(time.Second, false)
		if ended > 1000 {
			t.Errorf("Joint for ever: %s", s.desc)
			return
		}
	}
	checkSimEnd(t, s, saved, start)
}

func checkSimEnd(t *testing.T, s *simShard, j *Job, start *base.Descriptor) {
	t.Helper()
	voters := 0
	for _, r := range s.desc.Replicas {
		if r.Role == base.RoleVoter {
			voters++
		}
	}
	if voters == 0 {
		t.Errorf("no voter left: %s", s.desc)
	}
	to, hasTo := s.desc.ReplicaOn(j.Spec.To)
	from, hasFrom := s.desc.ReplicaOn(j.Spec.From)
	want := base.RoleVoter
	if j.Spec.Learner {
		want = base.RoleLearner
	}
	switch j.State {
	case JobDone:
		if j.Spec.Kind != JobRemoveReplica && (!hasTo || to.Role != want) {
			t.Errorf("done, but %s has %v, want a %s: %s", j.Spec.To, to, want, s.desc)
		}
		if j.Spec.From != 0 && hasFrom {
			t.Errorf("done, but %s still has its replica: %s", j.Spec.From, s.desc)
		}
	case JobCancelled, JobFailed:
		// Back to the start, unless the job says what it left.
		left := strings.Contains(j.Error, "remove-replica") || strings.Contains(j.Error, "no leader") ||
			strings.Contains(j.Error, "is Joint") || strings.Contains(j.Error, "still on disk")
		same := len(s.desc.Replicas) == len(start.Replicas)
		for _, r := range start.Replicas {
			now, ok := s.desc.Replica(r.Replica)
			same = same && ok && now.Role == r.Role
		}
		if !same && !left {
			t.Errorf("%s (%q) left %s of %s; from %v", j.State, j.Error, s.desc, start, from)
		}
	}
}
