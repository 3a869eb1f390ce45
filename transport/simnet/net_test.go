package simnet_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/etcd/raft/v3/raftpb"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
	"github.com/shardd/shardd/transport"
	"github.com/shardd/shardd/transport/simnet"
)

type sink struct {
	got  []wire.RaftMessage
	lost []string
	live []string
	step func([]wire.RaftMessage)
}

func (s *sink) Step(msgs []wire.RaftMessage) {
	s.got = append(s.got, msgs...)
	if s.step != nil {
		s.step(msgs)
	}
}

func (s *sink) Unreachable(shard base.ShardID, from, to base.ReplicaID) {
	s.lost = append(s.lost, fmt.Sprintf("%s->%s", base.ReplicaName(shard, from), to))
}

func (s *sink) Liveness(from base.StoreID, incarnation uint64, payload []byte) {
	s.live = append(s.live, fmt.Sprintf("%s.%d %s", from, incarnation, payload))
}

func (s *sink) indexes() []uint64 {
	var out []uint64
	for _, m := range s.got {
		out = append(out, m.Msg.Index)
	}
	return out
}

func app(shard base.ShardID, index uint64, data ...byte) wire.RaftMessage {
	return wire.RaftMessage{Shard: shard, From: 1, To: 2, Msg: raftpb.Message{
		Type: raftpb.MsgApp, From: 1, To: 2, Term: 3, Index: index,
		Entries: []raftpb.Entry{{Term: 3, Index: index + 1, Data: data}},
	}}
}

func TestMessagesAreCopiedAndAddressed(t *testing.T) {
	net := simnet.New(1)
	var a, b sink
	na := net.Node(1, &a)
	net.Node(2, &b)
	data := []byte("abc")
	na.Send(2, []wire.RaftMessage{app(7, 1, data...), app(8, 2, data...)})
	data[0] = 'x'
	if !net.Step() || net.Step() {
		t.Fatal("want one delivery for messages of one instant")
	}
	if len(b.got) != 2 || string(b.got[0].Msg.Entries[0].Data) != "abc" {
		t.Fatalf("got %+v", b.got)
	}
	want := app(7, 1, []byte("abc")...)
	want.FromStore, want.ToStore = 1, 2
	if !reflect.DeepEqual(b.got[0], want) {
		t.Errorf("got %+v, want %+v", b.got[0], want)
	}
}

// play runs a fixed conversation under heavy faults and returns its trace.
func play(seed int64) []string {
	net := simnet.New(seed)
	var trace []string
	net.SetTrace(func(e simnet.Event) { trace = append(trace, e.String()) })
	net.SetFaults(simnet.Faults{
		Drop: 0.2, Duplicate: 0.2, Reorder: 0.3, MinDelay: time.Millisecond, MaxDelay: 20 * time.Millisecond,
	})
	nodes := make([]*simnet.Node, 4)
	for id := 1; id <= 3; id++ {
		s := &sink{}
		s.step = func(msgs []wire.RaftMessage) {
			for _, m := range msgs {
				if m.Msg.Type == raftpb.MsgApp {
					r := wire.RaftMessage{Shard: m.Shard, From: m.To, To: m.From}
					r.Msg = raftpb.Message{Type: raftpb.MsgAppResp, From: uint64(m.To), To: uint64(m.From), Index: m.Msg.Index}
					nodes[id].Send(m.FromStore, []wire.RaftMessage{r})
				}
			}
		}
		nodes[id] = net.Node(base.StoreID(id), s)
	}
	for i := range uint64(200) {
		from := 1 + i%3
		nodes[from].Send(base.StoreID(1+(from+i/3)%3), []wire.RaftMessage{app(base.ShardID(1+i%5), i, byte(i))})
		switch i {
		case 50:
			net.Cut(1, 2)
		case 100:
			net.HealAll()
		case 150:
			net.Crash(3)
		}
		net.Advance(3 * time.Millisecond)
	}
	for net.Step() {
	}
	return trace
}

func TestSameSeedGivesSameTrace(t *testing.T) {
	seed := rand.Int64()
	t.Logf("seed %d", seed)
	first := play(seed)
	if !slices.Equal(first, play(seed)) {
		t.Error("two runs of one seed differ")
	}
	if slices.Equal(first, play(seed+1)) {
		t.Error("two seeds give the same trace")
	}
	seen := map[string]bool{}
	for _, l := range first {
		var at, k string
		fmt.Sscan(l, &at, &k)
		seen[k] = true
	}
	for _, k := range []string{"deliver", "drop", "duplicate", "cut", "unreachable"} {
		if !seen[k] {
			t.Errorf("no %q in the trace", k)
		}
	}
}

func TestLinkKeepsOrderUnlessReordering(t *testing.T) {
	for _, reorder := range []float64{0, 0.5} {
		net := simnet.New(42)
		net.SetFaults(simnet.Faults{Reorder: reorder, MinDelay: 1, MaxDelay: time.Second})
		var a, b sink
		na := net.Node(1, &a)
		net.Node(2, &b)
		for i := range uint64(100) {
			na.Send(2, []wire.RaftMessage{app(1, i)})
			net.Advance(time.Millisecond)
		}
		for net.Step() {
		}
		if sorted := slices.IsSorted(b.indexes()); len(b.got) != 100 || sorted != (reorder == 0) {
			t.Errorf("reorder %v: %d messages, sorted %v", reorder, len(b.got), sorted)
		}
	}
}

func TestCutIsOneWayAndReportedOncePerLoss(t *testing.T) {
	net := simnet.New(1)
	var a, b sink
	na, nb := net.Node(1, &a), net.Node(2, &b)
	net.Cut(1, 2)
	na.Send(2, []wire.RaftMessage{app(5, 1), app(5, 2), app(6, 1)})
	nb.Send(1, []wire.RaftMessage{app(5, 9)})
	net.Advance(0)
	if len(b.got) != 0 || len(a.got) != 1 || !slices.Equal(a.lost, []string{"s5/1->2", "s6/1->2"}) {
		t.Fatalf("got %d and %d messages, lost %v", len(b.got), len(a.got), a.lost)
	}
	net.Heal(1, 2)
	na.Send(2, []wire.RaftMessage{app(5, 3)})
	net.Cut(1, 2) // takes what is on its way
	na.Send(2, []wire.RaftMessage{app(5, 4)})
	net.Advance(0)
	if len(b.got) != 0 || len(a.lost) != 3 {
		t.Errorf("got %d messages, lost %v", len(b.got), a.lost)
	}
}

func TestCrashedNodeIsSilentUntilItsRestart(t *testing.T) {
	net := simnet.New(1)
	net.SetFaults(simnet.Faults{MinDelay: time.Second, MaxDelay: time.Second})
	var a, b, b2 sink
	na, nb := net.Node(1, &a), net.Node(2, &b)
	na.Send(2, []wire.RaftMessage{app(1, 1)})
	nb2 := net.Node(2, &b2)
	nb.Send(1, []wire.RaftMessage{app(1, 2)}) // from its previous life
	nb2.Send(1, []wire.RaftMessage{app(1, 3)})
	net.Advance(time.Minute)
	if len(b.got)+len(b2.got) != 0 || !slices.Equal(a.indexes(), []uint64{3}) {
		t.Errorf("got %v %v %v", b.indexes(), b2.indexes(), a.indexes())
	}
}

func TestRefusedTypesDoNotTravel(t *testing.T) {
	net := simnet.New(1)
	var a, b sink
	na := net.Node(1, &a)
	net.Node(2, &b)
	m := app(1, 1)
	for typ := range raftpb.MessageType_name {
		m.Msg.Type = raftpb.MessageType(typ)
		na.Send(2, []wire.RaftMessage{m})
	}
	net.Advance(0)
	for _, m := range b.got {
		if m.Msg.Type == raftpb.MsgSnap || m.Msg.Type == raftpb.MsgProp || m.Msg.Type == raftpb.MsgHup {
			t.Errorf("%s travelled", m.Msg.Type)
		}
	}
	if len(b.got) != 9 {
		t.Errorf("%d types travelled, want 9", len(b.got))
	}
}

func TestRunDeliversInTimeOfTheBubble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := simnet.New(1)
		net.SetFaults(simnet.Faults{MinDelay: time.Second, MaxDelay: time.Second})
		var a, b sink
		na := net.Node(1, &a)
		arrived := make(chan time.Time, 1)
		b.step = func([]wire.RaftMessage) { arrived <- time.Now() }
		net.Node(2, &b)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- net.Run(ctx) }()
		synctest.Wait()
		start := time.Now()
		na.Send(2, []wire.RaftMessage{app(1, 1)})
		if d := (<-arrived).Sub(start); d != time.Second {
			t.Errorf("arrived after %v, want 1s of the bubble", d)
		}
		cancel()
		if err := <-done; err != context.Canceled {
			t.Error(err)
		}
	})
}

// TestLivenessBodiesTravelLikeMessages: copied, cut, lost, delayed and lost with a crash; nobody is told of a loss.
func TestLivenessBodiesTravelLikeMessages(t *testing.T) {
	net := simnet.New(1)
	var trace []string
	net.SetTrace(func(e simnet.Event) { trace = append(trace, e.String()) })
	var a, b sink
	na := net.Node(1, &a)
	net.Node(2, &b)
	na.SetIncarnation(4)
	word := []byte("abc")
	na.SendLiveness(2, word)
	na.Send(2, []wire.RaftMessage{app(7, 1)})
	na.SendLiveness(2, nil)
	word[0] = 'x'
	for net.Step() {
	}
	if want := []string{"n1.4 abc", "n1.4 "}; !slices.Equal(b.live, want) || len(b.got) != 1 {
		t.Fatalf("got %q and %d messages", b.live, len(b.got))
	}
	net.Cut(1, 2)
	na.SendLiveness(2, word)
	net.HealAll()
	net.SetFaults(simnet.Faults{Drop: 1})
	na.SendLiveness(2, word)
	net.SetFaults(simnet.Faults{Duplicate: 1, MinDelay: time.Second, MaxDelay: time.Second})
	na.SendLiveness(2, word)
	na.SendLiveness(2, make([]byte, transport.MaxLiveness+1))
	if n := net.Advance(time.Second - 1); n != 0 || net.Pending() != 2 {
		t.Errorf("%d early, %d under way", n, net.Pending())
	}
	if net.Advance(1); len(b.live) != 4 {
		t.Errorf("got %q", b.live)
	}
	na.SendLiveness(2, word)
	net.Crash(1)
	na.SendLiveness(2, word)
	net.Advance(time.Minute)
	if len(b.live) != 4 || len(a.lost) != 0 {
		t.Errorf("got %q, lost %q", b.live, a.lost)
	}
	if want := "0s cut n1->n2 liveness bytes=3"; !slices.Contains(trace, want) {
		t.Errorf("trace %q lacks %q", trace, want)
	}
}
