package liveness

import (
	"bytes"
	"errors"
	"reflect"
	"testing"

	"pgregory.net/rapid"

	"github.com/shardd/shardd/internal/base"
	"github.com/shardd/shardd/internal/golden"
)

func goldenBodies() map[string]body {
	return map[string]body{
		"first words": {asks: true, margin: 50_000, from: 3, seq: 1, promise: 800 * ms, firstRelease: 1, firstQuestion: 1},
		"everything": {
			asks: true, margin: 50_000, from: 3, to: 7, seq: 12, heard: 11, promise: 800 * ms,
			granted: 10, epoch: 3<<32 | 2, grantedFor: 700 * ms, releasesTaken: 5, questionsTaken: 6,
			firstRelease: 8, firstQuestion: 9,
			releases: []Group{{Shard: 12, Term: 4}, {Shard: 13, Term: 1<<40 + 1, Follower: 6}}, queries: []Group{{Shard: 1, Term: 2}},
		},
	}
}

func TestBodiesAreGolden(t *testing.T) {
	var f golden.File
	for _, name := range []string{"first words", "everything"} {
		m := goldenBodies()[name]
		f.Add(name, m.append(nil))
	}
	f.Check(t, "body.golden")
}

func drawBody(t *rapid.T) body {
	u64 := rapid.Uint64()
	d := rapid.Int64Range(1, int64(maxDuration))
	m := body{
		margin: rapid.Uint32Max(million-1).Draw(t, "margin"), from: rapid.Uint64Min(1).Draw(t, "from"),
		to: u64.Draw(t, "to"), seq: rapid.Uint64Min(1).Draw(t, "seq"), heard: u64.Draw(t, "heard"),
		releasesTaken: u64.Draw(t, "releases taken"), questionsTaken: u64.Draw(t, "questions taken"),
		firstRelease: u64.Draw(t, "first release"), firstQuestion: u64.Draw(t, "first question"),
	}
	if m.asks = rapid.Bool().Draw(t, "asks"); m.asks {
		m.promise = dur(d.Draw(t, "promise"))
	}
	if rapid.Bool().Draw(t, "grants") {
		m.granted, m.epoch = rapid.Uint64Min(1).Draw(t, "granted"), rapid.Uint64Min(1).Draw(t, "epoch")
		m.grantedFor = dur(d.Draw(t, "granted for"))
	}
	groups := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) Group {
		return Group{base.ShardID(u64.Draw(t, "shard")), u64.Draw(t, "term"), base.ReplicaID(u64.Draw(t, "follower"))}
	}), 0, 5)
	if m.releases = groups.Draw(t, "releases"); len(m.releases) == 0 {
		m.releases = nil
	}
	if m.queries = groups.Draw(t, "questions"); len(m.queries) == 0 {
		m.queries = nil
	}
	return m
}

func TestBodyRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := drawBody(t)
		b := m.append(nil)
		got, err := parseBody(b)
		if err != nil || !reflect.DeepEqual(got, m) {
			t.Fatalf("got  %+v, %v\nwant %+v", got, err, m)
		}
		cut := rapid.IntRange(0, len(b)-1).Draw(t, "cut")
		if _, err := parseBody(b[:cut]); !errors.Is(err, ErrBody) {
			t.Fatalf("cut at %d of %d: %v", cut, len(b), err)
		}
		if _, err := parseBody(append(b, 0)); !errors.Is(err, ErrBody) {
			t.Fatalf("a byte more: %v", err)
		}
	})
}

func TestALaterLayoutIsRefused(t *testing.T) {
	m := goldenBodies()["everything"]
	b := m.append(nil)
	b[0]++
	if _, err := parseBody(b); !errors.Is(err, ErrBody) {
		t.Fatal(err)
	}
}

func TestTheLongestBodyHasTheStatedLength(t *testing.T) {
	m := goldenBodies()["everything"]
	m.releases, m.queries = make([]Group, maxItems), make([]Group, maxItems)
	b := m.append(nil)
	if len(b) != MaxBody {
		t.Fatalf("%d bytes, want %d", len(b), MaxBody)
	}
	if _, err := parseBody(b); err != nil {
		t.Fatal(err)
	}
	m.releases = append(m.releases, Group{})
	if _, err := parseBody(m.append(nil)); !errors.Is(err, ErrBody) {
		t.Fatalf("one more: %v", err)
	}
}

func FuzzParseBody(f *testing.F) {
	for _, m := range goldenBodies() {
		f.Add(m.append(nil))
	}
	f.Add([]byte(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parseBody(b)
		if err != nil {
			if !errors.Is(err, ErrBody) {
				t.Fatalf("%v does not wrap ErrBody", err)
			}
			return
		}
		if again := m.append(nil); !bytes.Equal(again, b) {
			t.Fatalf("encodes as %x, was %x", again, b)
		}
	})
}

// FuzzReceive: no bytes break a Monitor, or the promises of its peers.
func FuzzReceive(f *testing.F) {
	for _, m := range goldenBodies() {
		f.Add(uint64(3), m.append(nil))
	}
	f.Fuzz(func(t *testing.T, incarnation uint64, b []byte) {
		w := newWorld(t, 1, 2, nil)
		w.run(50 * ms)
		w.store(1).mon.Receive(2, incarnation, b)
		w.run(20 * ms)
	})
}
