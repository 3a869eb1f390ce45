// Package history records what clients did and saw, and judges it: a ledger of acknowledged writes that must never be
// lost, and for each key the history of a register that must be linearizable (Herlihy and Wing, 1990), checked with
// porcupine. It lives in the test process, outside the cluster that it judges, and never talks to it.
package history

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"sort"
	"sync"
	"time"

	"github.com/anishathalye/porcupine"
)

// Kind is what an operation on a register does.
type Kind uint8

// Kinds.
const (
	Get Kind = iota
	Put
	Swap   // write New if the value is Old
	Delete // the value becomes absent
)

// Op is one operation and what is known of its outcome. Every value written is unique, and "" stands for absent.
type Op struct {
	Client int
	Key    string
	Kind   Kind
	Old    string // Swap: the value it expects
	New    string // Put, Swap: the value it writes
	Call   time.Duration
	Return time.Duration

	// Result. Unknown: the write may have happened at any time since Call, or may happen later. Conflict: a Swap that
	// found another value. Saw: the value that a Get returned.
	Unknown  bool
	Conflict bool
	Saw      string
}

// Recorder gathers operations from many clients. The zero value is ready for use.
type Recorder struct {
	mu  sync.Mutex
	ops []Op
}

// Add records an operation that has ended. An operation that certainly did nothing is left out by the caller.
func (r *Recorder) Add(op Op) {
	r.mu.Lock()
	r.ops = append(r.ops, op)
	r.mu.Unlock()
}

// Take returns what was recorded so far and forgets it.
func (r *Recorder) Take() []Op {
	r.mu.Lock()
	defer r.mu.Unlock()
	ops := r.ops
	r.ops = nil
	return ops
}

// ErrUndecided is returned by Check if the time did not suffice; a test treats it as a failure.
var ErrUndecided = errors.New("linearizability could not be decided in time")

// Check judges the operations key by key: each key starts absent. It returns nil if all are linearizable, an error that
// shows the history of a key that is not, or ErrUndecided.
func Check(ops []Op, limit time.Duration) error {
	byKey := map[string][]porcupine.Operation{}
	for _, o := range ops {
		p := porcupine.Operation{ClientId: o.Client, Input: o, Output: o, Call: int64(o.Call), Return: int64(o.Return)}
		if o.Unknown {
			if o.Kind == Get {
				continue // says nothing
			}
			p.Return = math.MaxInt64
		}
		byKey[o.Key] = append(byKey[o.Key], p)
	}
	keys := make([]string, 0, len(byKey))
	for k := range byKey {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	deadline := time.Now().Add(limit)
	for _, k := range keys {
		left := time.Until(deadline)
		if left <= 0 {
			return fmt.Errorf("%w: %s for %d operations on %d keys", ErrUndecided, limit, len(ops), len(keys))
		}
		switch porcupine.CheckOperationsTimeout(model(), byKey[k], left) {
		case porcupine.Illegal:
			return fmt.Errorf("key %q is not linearizable:\n%s", k, explain(byKey[k]))
		case porcupine.Unknown:
			return fmt.Errorf("%w: key %q, %d operations", ErrUndecided, k, len(byKey[k]))
		}
	}
	return nil
}

// model returns one key: its state is its value.
func model() porcupine.Model {
	return porcupine.Model{
		Init:              func() any { return "" },
		Equal:             func(a, b any) bool { return a == b },
		DescribeOperation: func(in, _ any) string { return in.(Op).String() },
		Step: func(state, in, _ any) (bool, any) {
			value, o := state.(string), in.(Op)
			switch o.Kind {
			case Get:
				return value == o.Saw, value
			case Put:
				return true, o.New
			case Delete:
				return true, ""
			default: // Swap
				switch {
				case o.Conflict:
					return value != o.Old, value
				case value == o.Old:
					return true, o.New
				}
				// A write of unknown outcome may as well have found another value; one that succeeded may not.
				return o.Unknown, value
			}
		},
	}
}

// String is the operation and its outcome on one line.
func (o Op) String() string {
	end := fmt.Sprint(o.Return)
	if o.Unknown {
		end = "unknown"
	}
	what := ""
	switch o.Kind {
	case Get:
		what = fmt.Sprintf("get -> %q", o.Saw)
	case Put:
		what = fmt.Sprintf("put %q", o.New)
	case Delete:
		what = "delete"
	case Swap:
		what = fmt.Sprintf("swap %q -> %q", o.Old, o.New)
		if o.Conflict {
			what += " (conflict)"
		}
	}
	return fmt.Sprintf("client %d [%s, %s] %s", o.Client, o.Call, end, what)
}

// explain lists a key's history in the order of calls, cut to what a person reads.
func explain(ops []porcupine.Operation) string {
	sort.Slice(ops, func(i, j int) bool { return ops[i].Call < ops[j].Call })
	var b bytes.Buffer
	const most = 400
	for i, p := range ops {
		if i == most {
			fmt.Fprintf(&b, "... and %d more\n", len(ops)-most)
			break
		}
		fmt.Fprintln(&b, p.Input.(Op))
	}
	return b.String()
}
