package node

import (
	"context"
	"sync"
	"time"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/wire"
	"github.com/shardd/shardd/shard"
)

// Send implements shard.Sender.
func (l *lateSender) Send(to base.StoreID, msgs []wire.RaftMessage) { l.to.Send(to, msgs) }

// localSender is the router's Sender: operations for this node go straight to the store, the others onto the batched
// stream to their node.
type localSender struct {
	m  *member
	wg sync.WaitGroup // reads on their own goroutine
}

// Send implements router.Sender.
func (l *localSender) Send(ctx context.Context, to base.StoreID, op *wire.Op, done func(wire.Answer, error)) {
	if to != l.m.self {
		l.m.mux.Send(ctx, to, op, done)
		return
	}
	timeout := time.Duration(op.Timeout) * time.Millisecond
	if timeout == 0 {
		timeout = defaultOpTimeout
	}
	deadline := l.m.clock.Boot() + timeout
	raw := op.Append(make([]byte, 0, op.Size()))
	if op.Code.IsWrite() {
		l.m.store.Write([]shard.WriteRequest{{
			Shard: op.Shard, Version: op.Version, Raw: raw, Deadline: deadline, Waiter: localWrite(done),
		}})
		return
	}
	r := &localRead{l: l, done: done}
	if _, _, err := wire.DecodeOp(raw, &r.op); err != nil {
		done(wire.Answer{Code: wire.Invalid, Payload: []byte(err.Error())}, nil)
		return
	}
	l.m.store.ReadIndex([]shard.ReadRequest{readRequest(&r.op, 0, deadline, r)})
}

// SendMany implements router.ManySender.
func (l *localSender) SendMany(ctx context.Context, to base.StoreID, ops []*wire.Op, dones []func(wire.Answer, error)) {
	if to != l.m.self {
		l.m.mux.SendMany(ctx, to, ops, dones)
		return
	}
	for i, op := range ops {
		l.Send(ctx, to, op, dones[i])
	}
}

// Cancel implements router.Canceler: a local operation has always been handed over.
func (l *localSender) Cancel(to base.StoreID, req uint64) bool {
	return to != l.m.self && l.m.mux.Cancel(to, req)
}

type localWrite func(wire.Answer, error)

// Complete implements shard.Waiter.
func (w localWrite) Complete(_ uint64, a wire.Answer) { w(a, nil) }

// localRead is a read that waits for its confirmation; the engine is then read on a goroutine of its own, since
// Complete must not block the store's worker.
type localRead struct {
	l    *localSender
	op   wire.Op
	done func(wire.Answer, error)
}

// Complete implements shard.Waiter.
func (r *localRead) Complete(_ uint64, a wire.Answer) {
	if a.Code != wire.OK {
		r.done(a, nil)
		return
	}
	r.l.wg.Go(func() {
		var out wire.Answer
		if _, err := wire.DecodeAnswer(r.l.m.store.Read(&r.op, nil), &out); err != nil {
			out = wire.Answer{Code: wire.Failed, Payload: []byte(err.Error())}
		}
		r.done(out, nil)
	})
}
