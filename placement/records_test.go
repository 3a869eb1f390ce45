package placement

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/shardd/shardd/internal/base"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func sampleCluster() Cluster {
	return Cluster{ID: base.ClusterID{0xde, 0xad, 14: 1, 15: 2}, CreatedMS: 1700000000123}
}

func sampleNodes() []Node {
	return []Node{
		{
			Address: "10.0.0.1:7001", HTTP: "10.0.0.1:7080", Version: "v0.1.0",
			Labels: map[string]string{"zone": "b", "rack": "4"},
		},
		{Address: "10.0.0.2:7001"},
		{Address: "10.0.0.3:7001", Version: "v0.1.0"},
		{Address: "10.0.0.4:7001"},
	}
}

func sampleFounding(t testing.TB) *Founding {
	t.Helper()
	f, err := NewFounding(sampleCluster(), sampleNodes(), [][]byte{[]byte("t"), []byte("g"), []byte("t")})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestFirstContentsOfTheMetaShardMatchTheGoldenFile(t *testing.T) {
	var b strings.Builder
	for _, p := range sampleFounding(t).Contents() {
		fmt.Fprintf(&b, "%x\n    %x\n", p.Key, p.Value)
	}
	checkGolden(t, "contents.golden", b.String())
}

func TestRecordsMatchTheGoldenFile(t *testing.T) {
	n := sampleNodes()[0]
	n.ID, n.Incarnation = 7, 9
	meta, _ := sampleFounding(t).Descriptors()
	c := sampleCluster()
	var b strings.Builder
	fmt.Fprintf(&b, "cluster %x\n", c.Append(nil))
	fmt.Fprintf(&b, "node %x\n", n.Append(nil))
	fmt.Fprintf(&b, "shard %x\n", (&Shard{Desc: meta}).Append(nil))
	fmt.Fprintf(&b, "shard creating %x\n", (&Shard{Desc: meta, Creating: true}).Append(nil))
	fmt.Fprintf(&b, "number %x\n", appendNumber(nil, 258))
	fmt.Fprintf(&b, "nonce key %x\n", nonceKey([]byte("12345678")))
	checkGolden(t, "records.golden", b.String())
}

func checkGolden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s: the stored format changed\n got:\n%s\nwant:\n%s", path, got, want)
	}
}

func TestRecordsOfAnotherLayoutVersionOrLengthAreRefused(t *testing.T) {
	f := sampleFounding(t)
	meta, _ := f.Descriptors()
	for name, c := range map[string]struct {
		enc    []byte
		decode func([]byte) error
	}{
		"cluster":  {f.Cluster.Append(nil), func(b []byte) error { _, err := DecodeCluster(b); return err }},
		"node":     {f.Nodes[0].Append(nil), func(b []byte) error { _, err := DecodeNode(b); return err }},
		"shard":    {(&Shard{Desc: meta}).Append(nil), func(b []byte) error { _, err := DecodeShard(b); return err }},
		"founding": {f.Append(nil), func(b []byte) error { _, err := DecodeFounding(b); return err }},
		"number":   {appendNumber(nil, 3), func(b []byte) error { _, err := decodeNumber("number", b); return err }},
	} {
		if err := c.decode(c.enc); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		newer := bytes.Clone(c.enc)
		newer[0]++
		if err := c.decode(newer); !errors.Is(err, base.ErrCorrupt) {
			t.Errorf("%s of a newer layout: %v", name, err)
		}
		for i := range c.enc {
			if err := c.decode(c.enc[:i]); !errors.Is(err, base.ErrCorrupt) {
				t.Fatalf("%s cut to %d bytes: %v", name, i, err)
			}
		}
		if err := c.decode(append(bytes.Clone(c.enc), 0)); !errors.Is(err, base.ErrCorrupt) {
			t.Errorf("%s with a byte more: %v", name, err)
		}
	}
}

func FuzzRecordsDecodeToWhatEncodesTheSame(f *testing.F) {
	fo := sampleFounding(f)
	meta, _ := fo.Descriptors()
	f.Add(fo.Cluster.Append(nil))
	f.Add(fo.Nodes[0].Append(nil))
	f.Add(fo.Append(nil))
	f.Add((&Shard{Desc: meta, Creating: true}).Append(nil))
	f.Add(appendNumber(nil, 7))
	f.Fuzz(func(t *testing.T, b []byte) {
		if c, err := DecodeCluster(b); err == nil && !bytes.Equal(c.Append(nil), b) {
			t.Errorf("cluster %s", hex.EncodeToString(b))
		}
		if n, err := DecodeNode(b); err == nil && !bytes.Equal(n.Append(nil), b) {
			t.Errorf("node %s", hex.EncodeToString(b))
		}
		if s, err := DecodeShard(b); err == nil && !bytes.Equal(s.Append(nil), b) {
			t.Errorf("shard %s", hex.EncodeToString(b))
		}
		if fo, err := DecodeFounding(b); err == nil && !bytes.Equal(fo.Append(nil), b) {
			t.Errorf("founding %s", hex.EncodeToString(b))
		}
	})
}

func TestFoundingSurvivesItsEncoding(t *testing.T) {
	f := sampleFounding(t)
	got, err := DecodeFounding(f.Append(nil))
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, f) {
		t.Errorf("got %+v\nwant %+v", got, f)
	}
	if !reflect.DeepEqual(got.Contents(), f.Contents()) {
		t.Error("contents differ after a round trip")
	}
}
