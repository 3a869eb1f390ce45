package engine

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	goldenfile "github.com/shardd/shardd/internal/golden"
	"go.etcd.io/etcd/raft/v3/raftpb"
)

func testMeta() *SnapshotMeta {
	return &SnapshotMeta{
		Shard: 7, From: 1, To: 3, FromStore: 1, ToStore: 3, RaftTerm: 9, Desc: testDesc(7, "a", "b"), ApproxBytes: 1 << 33,
		Applied: AppliedState{Index: 50, Term: 8, Stamp: 99, Stats: Stats{PutBytes: 1, PutOps: 2, DeleteOps: 3},
			Conf: raftpb.ConfState{Voters: []uint64{1, 2}, Learners: []uint64{3}}},
	}
}

func testChunk() *Chunk {
	return &Chunk{Seq: 5, Span: SpanData, First: []byte("\x02aa"), Last: []byte("\x02az"), Rows: 6, RawBytes: 1 << 34,
		Size: 7 << 20, CRC: 0xdeadbeef}
}

func TestSnapshotBytesAreGolden(t *testing.T) {
	var f goldenfile.File
	f.Add("meta", testMeta().Append(nil))
	f.Add("chunk header of data", testChunk().AppendHeader(nil))
	c := testChunk()
	c.Span, c.First, c.Last = SpanSession, sessionKey(7, 1), sessionKey(7, 9)
	f.Add("chunk header of sessions", c.AppendHeader(nil))
	f.Check(t, "snapshot.golden")
}

func TestDecodedSnapshotBytesAreWhatWasEncodedAndShareNoMemory(t *testing.T) {
	enc := append([]byte("x"), testMeta().Append(nil)...)
	m, err := DecodeSnapshotMeta(enc[1:])
	if err != nil {
		t.Fatal(err)
	}
	clear(enc)
	if got, want := fmt.Sprintf("%+v", *m), fmt.Sprintf("%+v", *testMeta()); got != want {
		t.Fatalf("%s, want %s", got, want)
	}
	header := testChunk().AppendHeader(nil)
	c, err := DecodeChunkHeader(header)
	if err != nil {
		t.Fatal(err)
	}
	clear(header)
	if got, want := fmt.Sprintf("%+v", *c), fmt.Sprintf("%+v", *testChunk()); got != want {
		t.Fatalf("%s, want %s", got, want)
	}
}

func TestTornOrForeignSnapshotBytesAreRefused(t *testing.T) {
	meta, header := testMeta().Append(nil), testChunk().AppendHeader(nil)
	for cut := range meta {
		if _, err := DecodeSnapshotMeta(meta[:cut]); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("meta cut at %d: %v", cut, err)
		}
	}
	for cut := range header {
		if _, err := DecodeChunkHeader(header[:cut]); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("header cut at %d: %v", cut, err)
		}
	}
	for _, f := range []func(b []byte) error{
		func(b []byte) error { _, err := DecodeSnapshotMeta(b); return err },
		func(b []byte) error { _, err := DecodeChunkHeader(b); return err },
	} {
		for _, b := range [][]byte{append(bytes.Clone(meta), 0), append(bytes.Clone(header), 0), {2}, nil} {
			if err := f(b); !errors.Is(err, ErrCorrupt) {
				t.Fatalf("%x: %v", b, err)
			}
		}
	}
}

func TestChunkHeadersThatNoSenderWritesAreRefused(t *testing.T) {
	for name, mend := range map[string]func(c *Chunk){
		"span":           func(c *Chunk) { c.Span = 'r' },
		"no rows":        func(c *Chunk) { c.Rows = 0 },
		"no bytes":       func(c *Chunk) { c.RawBytes = 5 },
		"no table":       func(c *Chunk) { c.Size = 0 },
		"enormous table": func(c *Chunk) { c.Size = maxChunkSize + 1 },
		"no key":         func(c *Chunk) { c.First = nil },
		"long key":       func(c *Chunk) { c.Last = bytes.Repeat([]byte{3}, maxChunkKey+1) },
		"keys inverted":  func(c *Chunk) { c.First, c.Last = c.Last, c.First },
	} {
		c := testChunk()
		mend(c)
		if _, err := DecodeChunkHeader(c.AppendHeader(nil)); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzDecodeSnapshotMeta(f *testing.F) {
	f.Add(testMeta().Append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := DecodeSnapshotMeta(b)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatal(err)
			}
			return
		}
		if enc := m.Append(nil); !bytes.Equal(enc, b) {
			t.Fatalf("encodes as %x, was %x", enc, b)
		}
	})
}

func FuzzDecodeChunkHeader(f *testing.F) {
	f.Add(testChunk().AppendHeader(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := DecodeChunkHeader(b)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatal(err)
			}
			return
		}
		if enc := c.AppendHeader(nil); !bytes.Equal(enc, b) {
			t.Fatalf("encodes as %x, was %x", enc, b)
		}
	})
}
