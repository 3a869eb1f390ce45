package recovery

import (
	"fmt"
	"strings"
	"time"

	"github.com/shardd/shardd/internal/base"
)

// loss states what may be lost of a shard, no more and no less than what can be known. Acknowledged means that a quorum of
// voters had it: if every quorum must have had one of the survivors, the furthest log has all of it.
func (it *item) loss() string {
	c := it.chosen
	var parts []string
	voters, survive, joint := 0, 0, false
	for _, d := range it.top.Replicas {
		joint = joint || d.Role == base.RoleIncoming || d.Role == base.RoleOutgoing
		if d.Role != base.RoleVoter {
			continue
		}
		voters++
		if it.lives(d) {
			survive++
		}
	}
	switch member := it.votes(c); {
	case !joint && !c.Changes && member && survive+voters/2+1 > voters:
		parts = append(parts, "nothing that was acknowledged: every quorum had one of the replicas that are left")
	default:
		text := fmt.Sprintf("writes that were acknowledged after index %d, which only the lost replicas had; how many is not known",
			c.LastIndex)
		if c.Silent > 0 {
			text += fmt.Sprintf(" (%s last heard from a leader, or led, %s ago)", c.Store, c.Silent.Round(time.Second))
		}
		parts = append(parts, text)
		if !member {
			parts = append(parts, "the replica that is left was no voter any more, or not yet: it may be far behind")
		}
	}
	if n := c.LastIndex - min(c.Commit, c.LastIndex); n > 0 {
		parts = append(parts, fmt.Sprintf("%d entries that may or may not have been acknowledged are kept", n))
	}
	if it.cutBy != 0 {
		parts = append(parts, fmt.Sprintf("it ends where %s begins, which is newer", it.cutBy))
	}
	return strings.Join(parts, "; ")
}
