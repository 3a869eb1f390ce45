package shardtest

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
)

// history is what clients did and saw. Values are unique and never empty; "" stands for no value.
type history struct {
	mu struct {
		sync.Mutex
		ops []operation
	}
}

type operation struct {
	client     int
	key        string
	read       bool
	value      string // written, or read
	version    uint64 // of the value, 0 if not known
	call, back time.Duration
	open       bool          // a write whose outcome nobody knows
	stale      time.Duration // of a read: how old its state may be; 0: it is linearizable
}

func (h *history) add(o operation) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.mu.ops = append(h.mu.ops, o)
}

// kvInput is an operation as the model sees it.
type kvInput struct {
	read  bool
	value string
}

// register is one key: a read returns the last value written.
var register = porcupine.Model{
	Init: func() any { return "" },
	Step: func(state, input, output any) (bool, any) {
		in := input.(kvInput)
		if in.read {
			return output.(string) == state.(string), state
		}
		return true, in.value
	},
	DescribeOperation: func(input, output any) string {
		if in := input.(kvInput); !in.read {
			return "put " + in.value
		}
		return fmt.Sprintf("get %q", output)
	},
}

// check fails the test unless every key behaved like a register. It must be called outside of a bubble: the checker's
// time-out, which is a failure too, is in real time.
func (h *history) check(t *testing.T) {
	t.Helper()
	keys := map[string][]operation{}
	for _, o := range h.mu.ops {
		keys[o.key] = append(keys[o.key], o)
	}
	names := make([]string, 0, len(keys))
	for k := range keys {
		names = append(names, k)
	}
	slices.Sort(names)
	for _, k := range names {
		ops := settleOpen(keys[k])
		checkVersions(t, k, ops)
		for _, why := range tooOld(ops) {
			t.Errorf("key %s: %s", k, why)
		}
		ops = slices.DeleteFunc(ops, func(o operation) bool { return o.stale > 0 })
		var in []porcupine.Operation
		for _, o := range ops {
			in = append(in, porcupine.Operation{
				ClientId: o.client, Input: kvInput{o.read, o.value}, Call: int64(o.call), Output: o.value, Return: int64(o.back),
			})
		}
		switch porcupine.CheckOperationsTimeout(register, in, 30*time.Second) {
		case porcupine.Illegal:
			t.Errorf("key %s: %d operations are not linearizable:\n%s", k, len(in), tail(ops))
		case porcupine.Unknown:
			t.Errorf("key %s: the checker did not finish with %d operations", k, len(in))
		}
	}
}

// settleOpen bounds the writes whose outcome is not known. One that nobody has read may as well never have happened;
// one that was read has happened before that read returned.
func settleOpen(ops []operation) []operation {
	seen := map[string]time.Duration{}
	for _, o := range ops {
		if o.read && o.value != "" {
			if at, ok := seen[o.value]; !ok || o.back < at {
				seen[o.value] = o.back
			}
		}
	}
	return slices.DeleteFunc(ops, func(o operation) bool {
		_, read := seen[o.value]
		return o.open && !read
	})
}

// checkVersions checks that a version names one value, and that of two acknowledged writes the later has the higher.
func checkVersions(t *testing.T, key string, ops []operation) {
	t.Helper()
	values := map[uint64]string{}
	var writes []operation
	for _, o := range ops {
		if o.version == 0 {
			continue
		}
		if was, ok := values[o.version]; ok && was != o.value {
			t.Errorf("key %s: %q and %q both have version %d", key, was, o.value, o.version)
		}
		values[o.version] = o.value
		if !o.read {
			writes = append(writes, o)
		}
	}
	slices.SortFunc(writes, func(a, b operation) int { return cmp.Compare(a.back, b.back) })
	for i := 1; i < len(writes); i++ {
		if a, b := writes[i-1], writes[i]; b.call > a.back && b.version <= a.version {
			t.Errorf("key %s: %q with version %d was written after %q with version %d",
				key, b.value, b.version, a.value, a.version)
		}
	}
}

// tooOld names the stale reads of one key that missed something which was there before their bound: a write that was
// acknowledged by then, or one that a linearizable read had returned.
func tooOld(ops []operation) (out []string) {
	for _, r := range ops {
		if r.stale == 0 {
			continue
		}
		for _, o := range ops {
			if o.stale == 0 && !o.open && o.version > r.version && o.back <= r.call-r.stale {
				out = append(out, fmt.Sprintf("client %d read %q v%d at %s with a bound of %s, and %q v%d was there at %s",
					r.client, r.value, r.version, r.call, r.stale, o.value, o.version, o.back))
				break
			}
		}
	}
	return out
}

func tail(ops []operation) string {
	slices.SortFunc(ops, func(a, b operation) int { return cmp.Compare(a.call, b.call) })
	out := ""
	for _, o := range ops[max(0, len(ops)-200):] {
		what := "put"
		if o.read {
			what = "get"
		}
		back := o.back.String()
		if o.back == math.MaxInt64 {
			back = "never"
		}
		out += fmt.Sprintf("  client %d %s %q v%d from %s to %s\n", o.client, what, o.value, o.version, o.call, back)
	}
	return out
}

func TestTheLinearizabilityCheckFindsStaleReadsAndTakesLostAnswers(t *testing.T) {
	put := func(v string, call, back time.Duration, open bool) operation {
		return operation{key: "k", value: v, call: call, back: back, open: open}
	}
	get := func(v string, call, back time.Duration) operation {
		return operation{key: "k", read: true, value: v, call: call, back: back}
	}
	for _, c := range []struct {
		name string
		ops  []operation
		want porcupine.CheckResult
	}{
		{"fresh", []operation{put("a", 1, 2, false), get("a", 3, 4), put("b", 5, 6, false), get("b", 7, 8)}, porcupine.Ok},
		{"stale", []operation{put("a", 1, 2, false), put("b", 3, 4, false), get("a", 5, 6)}, porcupine.Illegal},
		{"late", []operation{put("a", 1, 2, false), put("b", 3, math.MaxInt64, true), get("a", 5, 6), get("b", 7, 8)},
			porcupine.Ok},
		{"back again", []operation{put("a", 1, math.MaxInt64, true), get("a", 5, 6), get("", 7, 8)}, porcupine.Illegal},
		{"never", []operation{put("a", 1, math.MaxInt64, true), get("", 7, 8)}, porcupine.Ok},
	} {
		var in []porcupine.Operation
		for _, o := range settleOpen(c.ops) {
			in = append(in, porcupine.Operation{
				Input: kvInput{o.read, o.value}, Call: int64(o.call), Output: o.value, Return: int64(o.back),
			})
		}
		if got := porcupine.CheckOperationsTimeout(register, in, time.Minute); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}
