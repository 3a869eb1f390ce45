package plan

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/shardd/shardd/internal/base"
)

// Report takes a report in. wantFull: the view lacks what the report builds on (it ignored the replicas then), or its
// digest is another, so something was lost on the way. ErrStale: a later incarnation has reported, or this
// one has with a higher number.
func (v *View) Report(r *StoreReport) (wantFull bool, err error) {
	s := v.store(r.Store)
	if r.Incarnation < s.Incarnation {
		return false, fmt.Errorf("report of %s incarnation %d, seen %d: %w", r.Store, r.Incarnation, s.Incarnation, ErrStale)
	}
	if r.Incarnation == s.Incarnation && r.Number < s.Number {
		return false, fmt.Errorf("report %d of %s, seen %d: %w", r.Number, r.Store, s.Number, ErrStale)
	}
	s.Number = r.Number
	v.advance(r.At)
	if r.Incarnation != s.Incarnation {
		// What it held counts until it has told all; it leads nothing, though.
		s.Incarnation, s.Full = r.Incarnation, false
		for _, sh := range s.shards {
			if sh.Leader == s.ID {
				v.setLeader(sh, 0, sh.Term)
			}
		}
	}
	changed := !s.Known || s.Disk != r.Disk || (s.Unhealthy == "") != (r.Unhealthy == "") || (s.Slow == "") != (r.Slow == "")
	s.Seen, s.Known = max(s.Seen, r.At), true
	s.DiskBytes, s.DiskFree, s.DiskCapacity, s.Disk = r.DiskBytes, r.DiskFree, r.DiskCapacity, r.Disk
	s.Unhealthy, s.Slow, s.CPUMillis = r.Unhealthy, r.Slow, r.CPUMillis
	if s.Unhealthy != "" || s.Slow != "" {
		s.SlowSeen, s.SlowEver = v.now, true
	}
	if changed {
		v.structure++
	}
	if !r.Full && !s.Full {
		return true, nil
	}
	s.Full = true
	// Shards that are new to the view first: where they were split from still shows then.
	for i := range r.Replicas {
		if v.shards[r.Replicas[i].Shard] == nil {
			v.takeIn(s, &r.Replicas[i])
		}
	}
	for i := range r.Replicas {
		v.takeIn(s, &r.Replicas[i])
	}
	if r.Full {
		told := make(map[base.ShardID]bool, len(r.Replicas))
		for i := range r.Replicas {
			told[r.Replicas[i].Shard] = true
		}
		var gone []*Shard
		for _, sh := range s.shards {
			if p := sh.On(s.ID); p.Reported() && !told[sh.ID] {
				gone = append(gone, sh)
			}
		}
		for _, sh := range gone {
			v.unreport(s, sh)
		}
	}
	for _, id := range r.Removed {
		if sh := v.shards[id]; sh != nil {
			v.unreport(s, sh)
		}
	}
	if r.Digest != 0 && r.Digest != digestSum(s.digest) {
		if !r.Full {
			return true, nil
		}
		v.Mismatches++
	}
	return false, nil
}

// takeIn takes one replica in; repeating it changes nothing.
func (v *View) takeIn(s *Store, r *ReplicaReport) {
	sh := v.shards[r.Shard]
	if sh == nil {
		sh = &Shard{ID: r.Shard, Changed: v.now, ConfChanged: v.now, Cold: v.now}
		v.shards[r.Shard] = sh
		v.touch(sh)
	}
	if r.Desc != nil && (sh.End == "" || r.Desc.Epoch.Newer(sh.Epoch)) {
		v.setDesc(sh, r.Desc)
	}
	p := sh.On(s.ID)
	if p == nil {
		sh.Peers = append(sh.Peers, Peer{Store: s.ID, Replica: r.Replica, pos: v.attach(s, sh)})
		p = &sh.Peers[len(sh.Peers)-1]
		v.touch(sh)
	}
	if h := r.hash(); h != p.hash {
		s.digest += h - p.hash
		p.hash = h
	}
	if p.Role == 0 {
		p.Replica = r.Replica
	}
	// A store that still tells of an older replica says nothing of the one that the descriptor lists.
	if p.Replica == r.Replica {
		own := PeerFlags(bit(r.Faulted != "", uint8(PeerFaulted)) | bit(r.Uninitialised, uint8(PeerUninitialised)) |
			bit(r.MergeID != 0, uint8(PeerFrozen)))
		v.setFlags(sh, p, p.Flags&(PeerSilent|PeerBehind)|own)
		v.setFault(sh, s.ID, r.Faulted)
	}
	switch {
	case r.Leads && r.Term >= sh.Term:
		v.setLeader(sh, s.ID, r.Term)
		v.hear(sh, r)
	case !r.Leads && sh.Leader == s.ID && r.Term >= sh.Term:
		v.setLeader(sh, 0, r.Term)
	case sh.Leader == 0:
		v.setNumbers(sh, max(sh.Size, r.Size), max(sh.Put, r.Put), sh.Load)
	}
}

// hear takes in what only a leader says.
func (v *View) hear(sh *Shard, r *ReplicaReport) {
	v.setNumbers(sh, r.Size, r.Put, r.Load)
	if sh.rare != nil || len(r.HotKey) > 0 || len(r.SplitKey) > 0 || r.MergeID != 0 {
		x := sh.mend()
		if x.hotKey != string(r.HotKey) {
			x.hotKey = string(r.HotKey)
		}
		if x.splitKey != string(r.SplitKey) {
			x.splitKey = string(r.SplitKey)
		}
		x.mergingInto, x.mergeID = r.MergingInto, r.MergeID
	}
	for i := range sh.Peers {
		p := &sh.Peers[i]
		if p.Role == 0 {
			continue
		}
		f := p.Flags &^ (PeerSilent | PeerBehind)
		if slices.Contains(r.Silent, p.Replica) {
			f |= PeerSilent
		}
		if slices.Contains(r.Behind, p.Replica) {
			f |= PeerBehind
		}
		v.setFlags(sh, p, f)
	}
	v.classify(sh)
}

func (v *View) setFlags(sh *Shard, p *Peer, f PeerFlags) {
	if p.Flags != f {
		p.Flags = f
		v.touch(sh)
	}
}

func (v *View) setFault(sh *Shard, on base.StoreID, why string) {
	if sh.Fault(on) == why {
		return
	}
	x := sh.mend()
	if why == "" {
		delete(x.faults, on)
		return
	}
	if x.faults == nil {
		x.faults = make(map[base.StoreID]string)
	}
	x.faults[on] = why
}

func (v *View) setLeader(sh *Shard, to base.StoreID, term uint64) {
	if sh.Leader == to {
		sh.Term = term
		return
	}
	v.count(sh, -1)
	was := sh.Leader
	sh.Leader, sh.Term, sh.Led = to, term, v.now
	v.count(sh, 1)
	v.structure++
	v.touch(sh)
	if to != 0 {
		v.event(Event{Kind: EventLeader, Shard: sh.ID, Store: to, From: was, Term: term})
	}
}

func (v *View) setNumbers(sh *Shard, size, put uint64, load Load) {
	sh.Put = put
	if sh.Size == size && sh.Load == load {
		return
	}
	v.count(sh, -1)
	sh.Size, sh.Load = size, load
	v.count(sh, 1)
	v.classify(sh)
}

// count adds a shard to the numbers of its stores, or with -1 takes it out.
func (v *View) count(sh *Shard, sign int) {
	if sh.covered || sh.End == "" {
		return
	}
	for _, p := range sh.Listed() {
		s := v.stores[p.Store]
		s.Replicas += sign
		s.Bytes += uint64(sign) * sh.Size // wraps to a subtraction
	}
	if sh.Leader != 0 {
		s := v.store(sh.Leader)
		s.Leaders += sign
		s.Load.add(sh.Load, int64(sign))
	}
}

func (v *View) attach(s *Store, sh *Shard) int32 {
	s.shards = append(s.shards, sh)
	return int32(len(s.shards) - 1)
}

// detach takes a shard out of a store's list; the last one moves to its place.
func (v *View) detach(s *Store, pos int32) {
	last := len(s.shards) - 1
	moved := s.shards[last]
	s.shards[pos] = moved
	s.shards[last] = nil
	s.shards = s.shards[:last]
	if int(pos) < last {
		for i := range moved.Peers {
			if p := &moved.Peers[i]; p.Store == s.ID && int(p.pos) == last {
				p.pos = pos
			}
		}
	}
}

// setDesc makes a newer descriptor that of the shard.
func (v *View) setDesc(sh *Shard, d *base.Descriptor) {
	v.count(sh, -1)
	first, old := sh.End == "", *sh
	old.Peers = slices.Clone(sh.Peers)
	if sh.End != "" && sh.Start != string(d.Start) {
		v.byKey.Delete(sh)
		sh.End = ""
	}
	sh.Epoch, sh.Next = d.Epoch, d.NextReplicaID
	fresh := sh.End == ""
	if sh.Start != string(d.Start) {
		sh.Start = string(d.Start)
	}
	if sh.End != string(d.End) {
		sh.End = string(d.End)
		sh.Changed = v.now
	}
	v.setPeers(sh, d)
	if old.Start != sh.Start || old.End != sh.End {
		v.setRule(sh)
	}
	if fresh {
		v.byKey.ReplaceOrInsert(sh)
	}
	v.shareKeys(sh)
	v.count(sh, 1)
	v.structure++
	v.touch(sh)
	if first {
		v.born(sh)
	} else {
		v.replicaEvents(sh, old.Listed())
	}
	v.cover(sh)
	v.classify(sh)
	for _, n := range [...]*Shard{v.Left(sh), v.Right(sh)} {
		if n != nil && old.End != sh.End {
			v.touch(n) // its neighbour is another now
		}
	}
}

// setPeers makes the peers those of a descriptor; stores that hold a replica which is not listed any more become strays.
func (v *View) setPeers(sh *Shard, d *base.Descriptor) {
	old := sh.Peers
	peers := make([]Peer, 0, max(len(d.Replicas), len(old)))
	for _, r := range d.Replicas {
		p := Peer{Store: r.Store, Replica: r.Replica, Role: r.Role}
		if o := sh.On(r.Store); o != nil {
			p.hash, p.pos = o.hash, o.pos
			if o.Replica == r.Replica {
				p.Flags = o.Flags
			}
		} else {
			p.pos = v.attach(v.store(r.Store), sh)
		}
		peers = append(peers, p)
	}
	if !slices.EqualFunc(old, peers, func(a, b Peer) bool { return a.Replica == b.Replica && a.Role == b.Role }) {
		sh.ConfChanged = v.now
	}
	var gone []Peer
	for _, o := range old {
		if _, listed := d.ReplicaOn(o.Store); listed {
			continue
		}
		if o.Reported() {
			o.Role = 0
			peers = append(peers, o)
		} else {
			gone = append(gone, o)
		}
	}
	sh.Peers = slices.Clip(peers)
	for _, g := range gone {
		v.detach(v.stores[g.Store], g.pos)
		v.setFault(sh, g.Store, "")
	}
}

// shareKeys has neighbours share the bytes of the key between them.
func (v *View) shareKeys(sh *Shard) {
	if l := v.Left(sh); l != nil {
		sh.Start = l.End
	}
	if r := v.Right(sh); r != nil {
		sh.End = r.Start
	}
}

// cover finds out which shards a range has swallowed, or by which it was. A shard keeps its start through splits and
// merges, so one whose start lies in another's newer range is merged away.
func (v *View) cover(sh *Shard) {
	var inside []*Shard
	v.byKey.AscendGreaterOrEqual(&Shard{Start: sh.Start}, func(o *Shard) bool {
		if o.Start >= sh.End {
			return false
		}
		if o != sh && o.Epoch.Version < sh.Epoch.Version {
			inside = append(inside, o)
		}
		return true
	})
	for _, o := range inside {
		if !o.covered {
			v.event(Event{Kind: EventMerged, Shard: sh.ID, Other: o.ID})
			v.event(Event{Kind: EventMergedInto, Shard: o.ID, Other: sh.ID})
			v.count(o, -1)
			o.covered = true
			v.touch(o)
		}
		v.dropIfGone(o)
	}
	v.byKey.DescendLessOrEqual(&Shard{Start: sh.Start, ID: ^base.ShardID(0)}, func(o *Shard) bool {
		if o == sh {
			return true
		}
		if o.End > sh.Start && o.Epoch.Version > sh.Epoch.Version && !sh.covered {
			v.count(sh, -1)
			sh.covered = true
		}
		return false
	})
}

// unreport takes out that a store holds a replica.
func (v *View) unreport(s *Store, sh *Shard) {
	p := sh.On(s.ID)
	if p == nil || !p.Reported() && p.Role != 0 {
		return
	}
	s.digest -= p.hash
	p.hash = 0
	if sh.Leader == s.ID {
		v.setLeader(sh, 0, sh.Term)
	}
	v.setFault(sh, s.ID, "")
	v.touch(sh)
	if p.Role != 0 {
		v.setFlags(sh, p, p.Flags&(PeerSilent|PeerBehind))
	} else {
		pos := p.pos
		sh.Peers = slices.DeleteFunc(sh.Peers, func(o Peer) bool { return o.Store == s.ID })
		v.detach(s, pos)
	}
	v.dropIfGone(sh)
}

// dropIfGone forgets a shard that no store holds and that is merged away, or whose range was never known.
func (v *View) dropIfGone(sh *Shard) {
	if !sh.covered && sh.End != "" {
		return
	}
	if slices.ContainsFunc(sh.Peers, func(p Peer) bool { return p.Reported() }) {
		return
	}
	v.count(sh, -1)
	for _, p := range sh.Peers {
		v.detach(v.stores[p.Store], p.pos)
	}
	sh.Peers = nil
	v.setNeed(sh, 0)
	if sh.End != "" {
		v.byKey.Delete(sh)
	}
	delete(v.shards, sh.ID)
	v.structure++
}

// Lost returns shards that no store holds a replica of, as far as the reports say; ascending.
func (v *View) Lost() []base.ShardID {
	var out []base.ShardID
	for _, sh := range v.shards {
		if !slices.ContainsFunc(sh.Peers, func(p Peer) bool { return p.Reported() }) {
			out = append(out, sh.ID)
		}
	}
	slices.SortFunc(out, func(a, b base.ShardID) int { return cmp.Compare(a, b) })
	return out
}
