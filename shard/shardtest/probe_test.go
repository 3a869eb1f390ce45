package shardtest

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shardd/shardd/engine"
	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/clock"
	"github.com/shardd/shardd/internal/wire"
	"github.com/shardd/shardd/shard"
	"github.com/shardd/shardd/transport/simnet"
)

type late struct{ to shard.Sender }

func (l *late) Send(to base.StoreID, m []wire.RaftMessage) { l.to.Send(to, m) }

type single chan wire.Answer

func (s single) Complete(_ uint64, a wire.Answer) { s <- a }

func TestProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		t0 := time.Now()
		ctx, cancel := context.WithCancel(context.Background())
		net := simnet.New(1)
		var wg sync.WaitGroup
		wg.Go(func() { net.Run(ctx) })
		var stores []*shard.Store
		var engs []*engine.Engine
		for i := range 3 {
			e, err := engine.Open(engine.Options{Dir: "data", FS: engine.NewMemFS()})
			if err != nil {
				t.Fatal(err)
			}
			engs = append(engs, e)
			l := &late{}
			s, err := shard.New(shard.Config{Store: base.StoreID(i + 1), Incarnation: 1, Engine: e, Sender: l, Clock: clock.Process()})
			if err != nil {
				t.Fatal(err)
			}
			l.to = net.Node(base.StoreID(i+1), s)
			stores = append(stores, s)
			wg.Go(func() { s.Run(ctx) })
		}
		d := &base.Descriptor{Shard: 7, Start: base.UserStart(), End: base.UserEnd(), Epoch: base.Epoch{ConfVer: 1, Version: 1}, NextReplicaID: 4}
		for i := range 3 {
			d.Replicas = append(d.Replicas, base.ReplicaDesc{Replica: base.ReplicaID(i + 1), Store: base.StoreID(i + 1), Role: base.RoleVoter})
		}
		for i, s := range stores {
			if err := s.Create(d, nil, i == 0); err != nil {
				t.Fatal(err)
			}
		}
		n := 0
		for i := 0; i < 300; i++ {
			time.Sleep(100 * time.Millisecond)
			ch := make(single, 1)
			o := wire.Op{Code: wire.OpPut, Shard: 7, Version: 1, Key: base.UserKey([]byte("a")), Value: []byte("v")}
			stores[0].Write([]shard.WriteRequest{{Shard: 7, Version: 1, Req: 1, Raw: o.Append(nil), Waiter: ch}})
			a := <-ch
			if a.Code == wire.OK {
				n++
			}
		}
		cancel()
		wg.Wait()
		for _, e := range engs {
			if err := e.Close(); err != nil {
				t.Error(err)
			}
		}
		t.Log(n, time.Since(t0))
	})
}
