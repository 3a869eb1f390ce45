package node

import (
	"context"
	"fmt"
	"time"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
)

// indexAsker asks leaders on other nodes for the read indexes of local followers, as operations on the batched stream to
// their node: whatever questions there are for one node share its frames, its queue bounds them, and a node that hangs
// is noticed. It implements shard.IndexAsker.
type indexAsker struct{ m *member }

// AskIndex implements shard.IndexAsker.
func (a indexAsker) AskIndex(
	to base.StoreID, shard base.ShardID, start []byte, timeout time.Duration, done func(wire.Answer, error),
) {
	op := wire.Op{
		Code: wire.OpReadIndex, Shard: shard, Key: start, Timeout: uint32(max(1, timeout/time.Millisecond)),
		Arg: uint64(to), Value: a.m.cluster[:],
	}
	a.m.mux.Send(context.Background(), to, &op, done)
}

// meant says why a question for a read index is not for this node, "" if it is: an address may have gone over to another
// node, even one of another cluster, whose index would prove nothing.
func (m *member) meant(op *wire.Op) string {
	if op.Arg == uint64(m.self) && string(op.Value) == string(m.cluster[:]) {
		return ""
	}
	return fmt.Sprintf("the node here is %s of cluster %s", m.self, m.cluster)
}
