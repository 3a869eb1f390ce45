package sim

import (
	"encoding/binary"
	"fmt"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/placement/plan"
)

// shard is one shard as it is. Its descriptor is replaced, never changed: reports may still hold the old one.
type shard struct {
	desc   *base.Descriptor
	leader base.StoreID // 0: none
	term   uint64
	// empty are replicas that wait for their snapshot.
	empty map[base.ReplicaID]bool
	size  uint64
	load  plan.Load
	hot   string // key that carries most of the load
	spot  string // key that divides it
	into  base.ShardID
}

func (s *shard) id() base.ShardID { return s.desc.Shard }
func (s *shard) start() string    { return string(s.desc.Start) }

// lo and hi are the range as positions; hi 0 stands for the end of all keys.
func (s *shard) lo() uint64 { return position(s.desc.Start) }
func (s *shard) hi() uint64 { return position(s.desc.End) }

// position places a routing key of the user space on a line of 2^64.
func position(key []byte) uint64 {
	if key[0] != base.SpaceUser {
		return 0
	}
	var b [8]byte
	copy(b[:], key[1:])
	return binary.BigEndian.Uint64(b[:])
}

// keyAt is the key at a position.
func keyAt(pos uint64) []byte { return binary.BigEndian.AppendUint64(base.UserStart(), pos) }

// on returns the replica on a store, nil if there is none.
func (s *shard) on(id base.StoreID) *base.ReplicaDesc {
	for i := range s.desc.Replicas {
		if s.desc.Replicas[i].Store == id {
			return &s.desc.Replicas[i]
		}
	}
	return nil
}

// healthy reports whether a replica counts: its store is up, and it has the data.
func (c *Cluster) healthy(sh *shard, r *base.ReplicaDesc) bool {
	s := c.stores[r.Store]
	return s != nil && s.up && !sh.empty[r.Replica]
}

// quorum reports whether both configurations have one.
func (c *Cluster) quorum(sh *shard) bool {
	for _, with := range [...]base.Role{base.RoleIncoming, base.RoleOutgoing} {
		total, up := 0, 0
		for i := range sh.desc.Replicas {
			if r := &sh.desc.Replicas[i]; r.Role == base.RoleVoter || r.Role == with {
				total++
				if c.healthy(sh, r) {
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

// voters counts the voters that a shard has once it is not Joint, and those of them that are healthy.
func (c *Cluster) voters(sh *shard) (all, healthy int) {
	for i := range sh.desc.Replicas {
		r := &sh.desc.Replicas[i]
		if r.Role == base.RoleVoter || r.Role == base.RoleIncoming {
			all++
			if c.healthy(sh, r) {
				healthy++
			}
		}
	}
	return all, healthy
}

// conf makes one conf change, if a leader and a quorum are there to make it.
func (c *Cluster) conf(sh *shard, what string, edit func(d *base.Descriptor)) bool {
	if sh.leader == 0 || !c.stores[sh.leader].up || !c.quorum(sh) {
		return false
	}
	_, before := c.voters(sh)
	was, want := sh.desc, c.wanted(sh)
	d := sh.desc.Clone()
	edit(d)
	d.Epoch.ConfVer++
	sh.desc = d
	seen := map[base.StoreID]bool{}
	for _, r := range d.Replicas {
		if seen[r.Store] {
			c.fault("%s: two replicas on %s after %s", d, r.Store, what)
		}
		seen[r.Store] = true
	}
	// Fewer healthy voters are right only where there are more than the rule wants.
	if _, after := c.voters(sh); after < before && after < want {
		c.fault("%s leaves %d healthy voters of %d: %s became %s", what, after, before, was, d)
	}
	if !c.quorum(sh) {
		c.fault("%s leaves no quorum: %s became %s", what, was, d)
	}
	c.logf("%s: %s", what, d)
	for _, r := range was.Replicas {
		if _, still := d.Replica(r.Replica); !still {
			if sh.empty[r.Replica] {
				c.stores[r.Store].bytes += sh.size // which it never had
			}
			delete(sh.empty, r.Replica)
			if s := c.stores[r.Store]; s.up {
				c.drop(s, sh)
			}
		}
	}
	for _, r := range d.Replicas {
		if s := c.stores[r.Store]; s.shards[d.Shard] == nil {
			s.shards[d.Shard] = sh
			if !sh.empty[r.Replica] {
				s.bytes += sh.size
			}
			delete(s.removed, d.Shard)
		}
	}
	if joint(sh) {
		c.joint[sh.id()] = c.now
	}
	c.tell(sh)
	return true
}

// wanted is how many voters the rule of a shard asks for.
func (c *Cluster) wanted(sh *shard) int {
	return c.rule(sh).Fit(nil).Voters
}

func (c *Cluster) rule(sh *shard) plan.Rule {
	return c.cfg.Rules.For(string(sh.desc.Start), string(sh.desc.End))
}

// drop deletes a replica from a store's disk.
func (c *Cluster) drop(s *store, sh *shard) {
	if s.shards[sh.id()] == nil {
		return
	}
	delete(s.shards, sh.id())
	s.bytes -= min(sh.size, s.bytes)
	delete(s.dirty, sh.id())
	s.removed[sh.id()] = true
}

// tell has all stores of a shard report it again.
func (c *Cluster) tell(sh *shard) {
	for _, r := range sh.desc.Replicas {
		c.stores[r.Store].dirty[sh.id()] = true
	}
}

// resize sets the size of a shard.
func (c *Cluster) resize(sh *shard, size uint64) {
	for _, r := range sh.desc.Replicas {
		if s := c.stores[r.Store]; s.shards[sh.id()] != nil && !sh.empty[r.Replica] {
			s.bytes += size - sh.size
		}
	}
	sh.size = size
	if s := c.stores[sh.leader]; s != nil {
		s.dirty[sh.id()] = true
	}
}

// AddShard makes a shard with its replicas, all voters; the first store leads. Start and end are routing keys.
func (c *Cluster) AddShard(id base.ShardID, start, end []byte, size uint64, on ...base.StoreID) {
	d := &base.Descriptor{
		Shard: id, Start: start, End: end, Epoch: base.Epoch{ConfVer: 1, Version: 1},
		NextReplicaID: base.ReplicaID(len(on) + 1),
	}
	for i, s := range on {
		d.Replicas = append(d.Replicas, base.ReplicaDesc{Replica: base.ReplicaID(i + 1), Store: s, Role: base.RoleVoter})
	}
	c.adopt(&shard{desc: d, leader: on[0], term: 1, size: size})
}

func (c *Cluster) adopt(sh *shard) {
	c.shards[sh.id()] = sh
	c.byKey.ReplaceOrInsert(sh)
	c.next = max(c.next, sh.id()+1)
	for _, r := range sh.desc.Replicas {
		s := c.stores[r.Store]
		s.shards[sh.id()] = sh
		delete(s.removed, sh.id())
		if !sh.empty[r.Replica] {
			s.bytes += sh.size
		}
	}
	c.loadOf(sh)
	c.tell(sh)
}

// AddShards makes n shards of a size that divide the user space evenly, and the meta shard, each with the replicas on
// stores that place chooses.
func (c *Cluster) AddShards(n int, size uint64, place func(i int) []base.StoreID) {
	step := ^uint64(0)/uint64(n) + 1
	c.AddShard(base.MetaShard, base.SystemStart(), base.SystemEnd(), 1<<20, place(0)...)
	for i := range n {
		start, end := keyAt(uint64(i)*step), keyAt(uint64(i+1)*step)
		if i == 0 {
			start = base.UserStart()
		}
		if i == n-1 {
			end = base.UserEnd()
		}
		c.AddShard(c.next, start, end, size, place(i)...)
	}
}

// Tiles checks that the shards cover the key space once.
func (c *Cluster) Tiles() error {
	want := string(base.UserStart())
	var err error
	c.byKey.Ascend(func(sh *shard) bool {
		if sh.desc.Start[0] == base.SpaceSystem {
			return true
		}
		if sh.start() != want {
			err = fmt.Errorf("%s begins where the one before does not end (%x)", sh.desc, want)
		}
		want = string(sh.desc.End)
		return err == nil
	})
	if err == nil && want != string(base.UserEnd()) {
		err = fmt.Errorf("the last shard ends at %x", want)
	}
	return err
}
