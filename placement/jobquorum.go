package placement

import (
	"fmt"
	"strings"

	"github.com/shardd/shardd/internal/base"
)

// quorums reports whether enough voters answer, of both configurations while the shard is Joint.
func (r *replicas) quorums() bool {
	return r.quorum(base.RoleOutgoing) && r.quorum(base.RoleIncoming)
}

// quorum counts the voters and those of one more role.
func (r *replicas) quorum(with base.Role) bool {
	total, live := 0, 0
	for _, d := range r.now.Desc.Replicas {
		if d.Role != base.RoleVoter && d.Role != with {
			continue
		}
		total++
		if p, _ := r.now.On(d.Store); p.Active || d.Store == r.now.Leader {
			live++
		}
	}
	return live > total/2
}

// unsafe says why the shard must not take a change of voters now, empty if it may.
func (r *replicas) unsafe(changes []Change) string {
	return unsafeVoters(r.now, changes, func(p ReplicaNow) bool { return p.Active || p.Store == r.now.Leader })
}

// unsafeVoters checks the voters that a change would leave: there are some, and a quorum of them lives.
func unsafeVoters(now *ShardNow, changes []Change, alive func(ReplicaNow) bool) string {
	total, live := 0, 0
	var dead []string
	for _, d := range now.Desc.Replicas {
		voter := d.Role == base.RoleVoter || d.Role == base.RoleIncoming
		for _, c := range changes {
			if c.Store == d.Store {
				voter = c.Op == ChangePromote
			}
		}
		if !voter {
			continue
		}
		total++
		if p, _ := now.On(d.Store); alive(p) {
			live++
		} else {
			dead = append(dead, d.Store.String())
		}
	}
	switch {
	case total == 0:
		return fmt.Sprintf("%s would have no voter left: add a replica elsewhere first", now.Desc.Shard)
	case live <= total/2:
		return fmt.Sprintf("only %d of the %d voters that %s would have are alive (%s not): start those nodes, or replace "+
			"their replicas first", live, total, now.Desc.Shard, strings.Join(dead, ", "))
	}
	return ""
}
