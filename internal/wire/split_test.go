package wire

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/shardd/shardd/internal/base"
)

func splitLeft() *base.Descriptor {
	return &base.Descriptor{
		Shard: 7, Start: []byte("\x02a"), End: []byte("\x02z"), Epoch: base.Epoch{ConfVer: 4, Version: 9}, NextReplicaID: 6,
		Replicas: []base.ReplicaDesc{
			{Replica: 2, Store: 1, Role: base.RoleVoter}, {Replica: 5, Store: 3, Role: base.RoleLearner},
		},
	}
}

// split divides splitLeft at g and p.
func split() *Split {
	right := func(id base.ShardID, start, end string) *base.Descriptor {
		return &base.Descriptor{
			Shard: id, Start: []byte(start), End: []byte(end), Epoch: base.Epoch{ConfVer: 1, Version: 10}, NextReplicaID: 3,
			Replicas: []base.ReplicaDesc{
				{Replica: 1, Store: 1, Role: base.RoleVoter}, {Replica: 2, Store: 3, Role: base.RoleLearner},
			},
		}
	}
	return &Split{
		Epoch: base.Epoch{ConfVer: 4, Version: 9}, LeftEnd: []byte("\x02g"),
		Rights: []SplitRight{
			{Share: 250_000, Desc: right(11, "\x02g", "\x02p")}, {Share: 500_000, Desc: right(12, "\x02p", "\x02z")},
		},
	}
}

func TestASplitSurvivesItsEncoding(t *testing.T) {
	s := split()
	got, err := DecodeSplit(s.Append(nil))
	if err != nil {
		t.Fatal(err)
	}
	if err := got.Validate(splitLeft()); err != nil {
		t.Fatal(err)
	}
	if a, b := fmt.Sprint(*got, got.Rights[1].Desc), fmt.Sprint(*s, s.Rights[1].Desc); !bytes.Equal(got.Append(nil), s.Append(nil)) {
		t.Fatalf("%s became %s", b, a)
	}
	if d := got.Left(splitLeft()); string(d.End) != "\x02g" || d.Epoch != (base.Epoch{ConfVer: 4, Version: 10}) {
		t.Fatalf("left is %s", d)
	}
}

func TestASplitThatDoesNotFitItsShardIsRefused(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*Split, *base.Descriptor)
		want   string
	}{
		"conf version":     {func(s *Split, d *base.Descriptor) { d.Epoch.ConfVer++ }, "epoch"},
		"version":          {func(s *Split, d *base.Descriptor) { d.Epoch.Version++ }, "epoch"},
		"key at the start": {func(s *Split, d *base.Descriptor) { d.Start = []byte("\x02g") }, "not inside"},
		"key at the end":   {func(s *Split, d *base.Descriptor) { d.End = []byte("\x02g") }, "not inside"},
		"a gap":            {func(s *Split, d *base.Descriptor) { s.Rights[1].Desc.Start = []byte("\x02q") }, "its range should be"},
		"short of the end": {func(s *Split, d *base.Descriptor) { d.End = []byte("\x02zz") }, "its range should be"},
		"left end":         {func(s *Split, d *base.Descriptor) { s.LeftEnd = []byte("\x02f") }, "its range should be"},
		"own id":           {func(s *Split, d *base.Descriptor) { s.Rights[1].Desc.Shard = 7 }, "named twice"},
		"id twice":         {func(s *Split, d *base.Descriptor) { s.Rights[1].Desc.Shard = 11 }, "named twice"},
		"right epoch":      {func(s *Split, d *base.Descriptor) { s.Rights[1].Desc.Epoch.Version = 9 }, "its epoch should be 1.10"},
		"joint": {func(s *Split, d *base.Descriptor) {
			d.Replicas[1].Role, s.Rights[0].Desc.Replicas[1].Role = base.RoleIncoming, base.RoleIncoming
		}, "joint"},
		"role":            {func(s *Split, d *base.Descriptor) { s.Rights[0].Desc.Replicas[1].Role = base.RoleVoter }, "its replica on n3"},
		"store":           {func(s *Split, d *base.Descriptor) { s.Rights[0].Desc.Replicas[1].Store = 4 }, "its replica on n3"},
		"missing replica": {func(s *Split, d *base.Descriptor) { s.Rights[0].Desc.Replicas = s.Rights[0].Desc.Replicas[:1] }, "its replicas"},
		"next replica":    {func(s *Split, d *base.Descriptor) { s.Rights[0].Desc.NextReplicaID = 9 }, "its replicas"},
		"shares":          {func(s *Split, d *base.Descriptor) { s.Rights[0].Share = 500_001 }, "add up"},
		"none":            {func(s *Split, d *base.Descriptor) { s.Rights = nil }, "0 right-hand shards"},
		"long key": {func(s *Split, d *base.Descriptor) {
			long := append([]byte("\x02g"), bytes.Repeat([]byte{'x'}, MaxSplitBound-1)...)
			s.LeftEnd, s.Rights[0].Desc.Start = long, long
		}, "at most"},
	} {
		s, d := split(), splitLeft()
		c.change(s, d)
		if err := s.Validate(d); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

func FuzzDecodeSplit(f *testing.F) {
	b := split().Append(nil)
	f.Add(b)
	f.Add(b[:len(b)-1])
	f.Add(append(b, 0))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := DecodeSplit(b)
		if err != nil {
			if !errors.Is(err, base.ErrCorrupt) {
				t.Fatalf("%v does not wrap ErrCorrupt", err)
			}
			return
		}
		if enc := s.Append(nil); !bytes.Equal(enc, b) {
			t.Fatalf("encodes as %x", enc)
		}
		_ = s.Validate(splitLeft())
	})
}
