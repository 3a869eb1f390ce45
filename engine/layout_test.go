package engine

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/shardd/shardd/internal/base"
	"go.etcd.io/etcd/raft/v3/raftpb"
)

func enc(n int, put func([]byte)) []byte {
	b := make([]byte, n)
	put(b)
	return b
}

var goldenConf = raftpb.ConfState{
	Voters: []uint64{1, 2, 7}, Learners: []uint64{4}, VotersOutgoing: []uint64{1, 2, 3}, LearnersNext: []uint64{3},
	AutoLeave: true,
}

// truncatedV1 is the first layout of a TruncatedState, which is only read any more.
func truncatedV1(t TruncatedState) []byte {
	b := binary.BigEndian.AppendUint64([]byte{layoutV1}, t.Index)
	return binary.BigEndian.AppendUint64(b, t.Term)
}

// appliedV1 is the first layout of an AppliedState, which is only read any more.
func appliedV1(a AppliedState) []byte {
	b := []byte{layoutV1}
	for _, v := range [...]uint64{a.Index, a.Term, a.Stamp, a.Stats.PutBytes, a.Stats.PutOps, a.Stats.DeleteOps} {
		b = binary.BigEndian.AppendUint64(b, v)
	}
	return append(b, enc(confLen(&a.Conf), func(d []byte) { putConf(d, &a.Conf) })...)
}

// golden holds one value of every stored layout: its bytes, and the value that must come back from them.
func golden() map[string]struct {
	bytes  []byte
	value  any
	decode func(b []byte) (any, error)
} {
	type row = struct {
		bytes  []byte
		value  any
		decode func(b []byte) (any, error)
	}
	ident := testIdent()
	ident.Format, ident.FormatMajor = 1, uint32(FormatMajor)
	fixed := ident
	fixed.Peers, fixed.Meta = nil, nil
	peer := PeerRecord{Store: 2, Addr: "node2.example:7400", Incarnation: 9}
	mark := ReplicaMark{ReplicaID: 3, NextReplicaID: 9}
	hard := raftpb.HardState{Term: 7, Vote: 3, Commit: 0x0102030405060708}
	trunc, truncV1 := TruncatedState{Index: 11, Term: 6, Conf: goldenConf}, TruncatedState{Index: 11, Term: 6}
	applied := AppliedState{
		Index: 0x1112131415161718, Term: 7, Stamp: 0x2122232425262728, Conf: goldenConf,
		Stats: Stats{PutBytes: 1 << 40, PutOps: 77, DeleteOps: 5},
	}
	merging := applied
	merging.Freeze = &Freeze{ID: 0x51, Into: 6, IntoEpoch: base.Epoch{ConfVer: 2, Version: 9}, Index: 0x52}
	merging.Merges = []MergeRecord{
		{ID: 0x61, Shard: 8, Version: 7, Committed: true}, {ID: 0x62, Shard: 9, Version: 8},
	}
	merging.MergesForgotten = 5
	sess := Session{ID: 9, Sequence: 0x71, Data: []byte("data")}
	entry := raftpb.Entry{Type: raftpb.EntryConfChangeV2, Term: 0x0a0b, Index: 12, Data: []byte("data")}
	type value struct {
		H ValueHeader
		V string
	}
	decValue := func(b []byte) (any, error) {
		h, v, err := decodeValue(b)
		return value{h, string(v)}, err
	}
	plain := ValueHeader{Flags: 0x05, Version: 0x3132333435363738}
	expiring := plain
	expiring.Expiry = 0x4142434445464748
	return map[string]row{
		"mark": {enc(markLen, func(b []byte) { putMark(b, mark) }), mark,
			func(b []byte) (any, error) { return decodeMark(b) }},
		"hard": {enc(hardLen, func(b []byte) { putHard(b, hard) }), hard,
			func(b []byte) (any, error) { return decodeHard(b) }},
		"truncated_v2": {enc(truncLen(&trunc), func(b []byte) { putTruncated(b, &trunc) }), trunc,
			func(b []byte) (any, error) { return decodeTruncated(b) }},
		"truncated": {truncatedV1(truncV1), truncV1, func(b []byte) (any, error) { return decodeTruncated(b) }},
		"applied":   {appliedV1(applied), applied, func(b []byte) (any, error) { return decodeApplied(b) }},
		"applied_v2": {enc(appliedLen(&applied), func(b []byte) { putApplied(b, &applied) }), applied,
			func(b []byte) (any, error) { return decodeApplied(b) }},
		"applied_v2_merge": {enc(appliedLen(&merging), func(b []byte) { putApplied(b, &merging) }), merging,
			func(b []byte) (any, error) { return decodeApplied(b) }},
		"session": {enc(sessionFixedLen+4, func(b []byte) { putSession(b, sess) }), sess,
			func(b []byte) (any, error) { return decodeSession(sessionKey(7, int(sess.ID)), b) }},
		"entry": {enc(entryHeaderLen+4, func(b []byte) {
			putEntryHeader(b, entry.Type, entry.Term)
			copy(b[entryHeaderLen:], entry.Data)
		}), entry, func(b []byte) (any, error) { return decodeEntry(12, b) }},
		"value": {enc(valueLen(plain, 3), func(b []byte) { putValue(b, plain, []byte("abc")) }),
			value{plain, "abc"}, decValue},
		"value_expiry": {enc(valueLen(expiring, 3), func(b []byte) { putValue(b, expiring, []byte("abc")) }),
			value{expiring, "abc"}, decValue},
		"ident": {appendIdent(nil, &ident), fixed, func(b []byte) (any, error) { return decodeIdent(b) }},
		"peer":  {appendPeer(nil, &peer), peer, func(b []byte) (any, error) { return decodePeer(2, b) }},
		"fence": {appendFence(nil, Fence{Store: 9, Recovery: 0x0102}), Fence{Store: 9, Recovery: 0x0102},
			func(b []byte) (any, error) { return decodeFence(9, b) }},
		"recovery": {appendRecovery(nil, testRecovery()), testRecovery(),
			func(b []byte) (any, error) { return decodeRecovery(b) }},
		"meta": {appendMeta(nil, ident.Meta), ident.Meta, func(b []byte) (any, error) { return decodeMeta(b) }},
		"marker": {appendMarker(nil, 1, markerReady), markerReady, func(b []byte) (any, error) {
			_, s, err := decodeMarker(b)
			return s, err
		}},
	}
}

func checkGolden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name+".hex")
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		var text strings.Builder
		for b := got; len(b) > 0; b = b[min(32, len(b)):] {
			text.WriteString(hex.EncodeToString(b[:min(32, len(b))]) + "\n")
		}
		if err := os.WriteFile(path, []byte(text.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	want, err := hex.DecodeString(strings.ReplaceAll(string(text), "\n", ""))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("stored bytes of %s have changed:\n got %x\nwant %x\n"+
			"Written stores have the old ones: add a layout version, do not change this one.", name, got, want)
	}
}

func TestStoredLayoutsMatchTheGoldenFiles(t *testing.T) {
	for name, g := range golden() {
		t.Run(name, func(t *testing.T) {
			checkGolden(t, name, g.bytes)
			got, err := g.decode(g.bytes)
			if err != nil || !reflect.DeepEqual(got, g.value) {
				t.Fatalf("decoded %+v, %v, want %+v", got, err, g.value)
			}
			for n := range g.bytes { // no prefix passes for the whole, unless the rest is the user's
				if name == "value" || name == "value_expiry" || name == "entry" || name == "session" {
					n = min(n, sessionFixedLen-1) // the shortest header
				}
				if v, err := g.decode(g.bytes[:n:n]); err == nil {
					t.Fatalf("%d of %d bytes decode to %+v", n, len(g.bytes), v)
				}
			}
			other := bytes.Clone(g.bytes)
			at := 0
			if name == "marker" {
				at = len(markerMagic)
			}
			other[at]++
			if v, err := g.decode(other); err == nil {
				t.Fatalf("another layout version decodes to %+v", v)
			}
		})
	}
}

func TestKeysMatchTheGoldenFile(t *testing.T) {
	const shard = base.ShardID(0x0102030405060708)
	var all []byte
	for _, k := range [][]byte{
		identKey(), metaKey(), peerKey(9), shardKey(spanMark, shard), shardKey(spanDesc, shard),
		shardKey(spanApplied, shard), shardKey(spanSession, shard), stateKey(shard, raftHard),
		stateKey(shard, raftTruncated), logKey(shard, 0x1112), fenceKey(9), recoveryKey(),
	} {
		all = append(append(all, byte(len(k))), k...)
	}
	checkGolden(t, "keys", all)
}

func TestLogKeysSortByShardThenIndexBetweenTheStates(t *testing.T) {
	order := [][]byte{
		stateKey(1, raftHard), logKey(1, 0), logKey(1, 255), logKey(1, 256), logKey(1, 1<<40),
		stateKey(1, raftTruncated), stateKey(2, raftHard), logKey(2, 1), stateKey(1<<33, raftHard),
	}
	for i := 1; i < len(order); i++ {
		if bytes.Compare(order[i-1], order[i]) >= 0 {
			t.Errorf("key %x is not below %x", order[i-1], order[i])
		}
	}
}

// fuzzDecoder checks that a decoder takes any bytes without a panic, and that what it accepts encodes back to the same
// bytes: one value has one encoding.
func fuzzDecoder(f *testing.F, name string, again func(b []byte) ([]byte, error)) {
	for n, g := range golden() {
		if strings.HasPrefix(n, name) {
			f.Add(g.bytes)
		}
	}
	f.Add([]byte{})
	f.Add([]byte{layoutV1})
	f.Add(bytes.Repeat([]byte{0xff}, 80))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := again(b)
		if err == nil && !bytes.Equal(got, b) {
			t.Fatalf("%x decodes, but encodes to %x", b, got)
		}
	})
}

func FuzzMark(f *testing.F) {
	fuzzDecoder(f, "mark", func(b []byte) ([]byte, error) {
		m, err := decodeMark(b)
		return enc(markLen, func(d []byte) { putMark(d, m) }), err
	})
}

func FuzzHardState(f *testing.F) {
	fuzzDecoder(f, "hard", func(b []byte) ([]byte, error) {
		h, err := decodeHard(b)
		return enc(hardLen, func(d []byte) { putHard(d, h) }), err
	})
}

func FuzzTruncatedState(f *testing.F) {
	fuzzDecoder(f, "truncated", func(b []byte) ([]byte, error) {
		v, err := decodeTruncated(b)
		if err == nil && b[0] == layoutV1 {
			return truncatedV1(v), nil
		}
		return enc(truncLen(&v), func(d []byte) { putTruncated(d, &v) }), err
	})
}

func FuzzAppliedState(f *testing.F) {
	fuzzDecoder(f, "applied", func(b []byte) ([]byte, error) {
		a, err := decodeApplied(b)
		if err == nil && b[0] == layoutV1 {
			return appliedV1(a), nil
		}
		return enc(appliedLen(&a), func(d []byte) { putApplied(d, &a) }), err
	})
}

func FuzzEntry(f *testing.F) {
	fuzzDecoder(f, "entry", func(b []byte) ([]byte, error) {
		e, err := decodeEntry(3, b)
		return enc(entryHeaderLen+len(e.Data), func(d []byte) {
			putEntryHeader(d, e.Type, e.Term)
			copy(d[entryHeaderLen:], e.Data)
		}), err
	})
}

func FuzzValue(f *testing.F) {
	fuzzDecoder(f, "value", func(b []byte) ([]byte, error) {
		h, v, err := decodeValue(b)
		return enc(valueLen(h, len(v)), func(d []byte) { putValue(d, h, v) }), err
	})
}

// The next six carry a checksum, which a fuzzer does not guess: it is put right before decoding.
func resealed(b []byte) []byte { return sealCRC(bytes.Clone(b[:max(0, len(b)-crcLen)])) }

func FuzzIdent(f *testing.F) {
	fuzzDecoder(f, "ident", func(b []byte) ([]byte, error) {
		if id, err := decodeIdent(resealed(b)); err == nil && !bytes.Equal(appendIdent(nil, &id), resealed(b)) {
			return nil, nil
		}
		id, err := decodeIdent(b)
		return appendIdent(nil, &id), err
	})
}

func FuzzPeer(f *testing.F) {
	fuzzDecoder(f, "peer", func(b []byte) ([]byte, error) {
		if p, err := decodePeer(2, resealed(b)); err == nil && !bytes.Equal(appendPeer(nil, &p), resealed(b)) {
			return nil, nil
		}
		p, err := decodePeer(2, b)
		return appendPeer(nil, &p), err
	})
}

func FuzzMeta(f *testing.F) {
	fuzzDecoder(f, "meta", func(b []byte) ([]byte, error) {
		if d, err := decodeMeta(resealed(b)); err == nil && !bytes.Equal(appendMeta(nil, d), resealed(b)) {
			return nil, nil
		}
		d, err := decodeMeta(b)
		if err != nil {
			return nil, err
		}
		return appendMeta(nil, d), nil
	})
}

func FuzzFence(f *testing.F) {
	fuzzDecoder(f, "fence", func(b []byte) ([]byte, error) {
		if v, err := decodeFence(9, resealed(b)); err == nil && !bytes.Equal(appendFence(nil, v), resealed(b)) {
			return nil, nil
		}
		v, err := decodeFence(9, b)
		return appendFence(nil, v), err
	})
}

func FuzzRecovery(f *testing.F) {
	fuzzDecoder(f, "recovery", func(b []byte) ([]byte, error) {
		if r, err := decodeRecovery(resealed(b)); err == nil && !bytes.Equal(appendRecovery(nil, r), resealed(b)) {
			return nil, nil
		}
		r, err := decodeRecovery(b)
		if err != nil {
			return nil, err
		}
		return appendRecovery(nil, r), nil
	})
}

func FuzzMarker(f *testing.F) {
	fuzzDecoder(f, "marker", func(b []byte) ([]byte, error) {
		if v, s, err := decodeMarker(resealed(b)); err == nil && !bytes.Equal(appendMarker(nil, v, s), resealed(b)) {
			return nil, nil
		}
		v, s, err := decodeMarker(b)
		return appendMarker(nil, v, s), err
	})
}

func FuzzRecordChecksNeverPanic(f *testing.F) {
	f.Add([]byte{1, 2, 3, 4, 0, 0, 1})
	f.Add(make([]byte, chunkBlock+30))
	f.Fuzz(func(t *testing.T, b []byte) {
		_ = checkRecords(b)
		_ = checkLog(b, 7)
	})
}

func TestIdentSurvivesReopenAndKeepsTheHighestIncarnations(t *testing.T) {
	fs := NewMemFS()
	e := mustOpen(t, testOptions(t, fs))
	if _, ok := e.Ident(); ok {
		t.Fatal("a new store has an ident")
	}
	if err := e.RecordPeer(PeerRecord{Store: 2}); err == nil {
		t.Fatal("a peer was recorded before the ident")
	}
	if err := e.WriteIdent(testIdent()); err != nil {
		t.Fatal(err)
	}
	for _, p := range []PeerRecord{
		{Store: 9, Addr: "i:1", Incarnation: 1}, {Store: 2, Addr: "old:1", Incarnation: 8},
		{Store: 3, Addr: "moved:1", Incarnation: 2}, {Store: 3, Addr: "moved:1", Incarnation: 2},
	} {
		if err := e.RecordPeer(p); err != nil {
			t.Fatal(err)
		}
	}
	newer := testDesc(1, "a", "b")
	newer.Epoch.ConfVer = 3
	for _, d := range []*base.Descriptor{newer, testDesc(1, "a", "b")} {
		if err := e.RecordMeta(d); err != nil {
			t.Fatal(err)
		}
	}
	if inc, err := e.RaiseIncarnation(); err != nil || inc != 6 {
		t.Fatal(inc, err)
	}
	want := testIdent()
	want.Format, want.FormatMajor, want.Incarnation, want.Meta = FormatVersion, uint32(FormatMajor), 6, newer
	want.Peers = []PeerRecord{
		{Store: 2, Addr: "b:1", Incarnation: 9}, {Store: 3, Addr: "moved:1", Incarnation: 2},
		{Store: 9, Addr: "i:1", Incarnation: 1},
	}
	check := func(e *Engine) {
		t.Helper()
		if got, ok := e.Ident(); !ok || !reflect.DeepEqual(got, want) {
			t.Fatalf("ident %+v, want %+v", got, want)
		}
	}
	check(e)
	crashed := fs.CrashClone(0, 1) // everything of it was synced
	mustClose(t, e)
	for _, f := range []*FS{fs, crashed} {
		e := mustOpen(t, testOptions(t, f))
		check(e)
		small := Ident{Cluster: want.Cluster, Store: 4, LongestPromise: time.Second}
		if err := e.WriteIdent(small); err != nil {
			t.Fatal(err)
		}
		mustClose(t, e)
		e = mustOpen(t, testOptions(t, f))
		if got, _ := e.Ident(); len(got.Peers) != 0 || got.Meta != nil || got.LongestPromise != time.Second {
			t.Fatalf("a replaced ident kept parts of the old: %+v", got)
		}
		mustClose(t, e)
	}
}
