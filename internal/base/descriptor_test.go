package base

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/shardd/shardd/internal/golden"
)

func sample() *Descriptor {
	return &Descriptor{
		Shard: 12, Start: []byte("\x02apple"), End: []byte("\x02mango"),
		Epoch: Epoch{ConfVer: 3, Version: 7}, NextReplicaID: 5,
		Replicas: []ReplicaDesc{
			{Replica: 1, Store: 1, Role: RoleVoter},
			{Replica: 3, Store: 2, Role: RoleOutgoing},
			{Replica: 4, Store: 9, Role: RoleIncoming},
			{Replica: 2, Store: 4, Role: RoleLearner},
		},
	}
}

func TestDescriptorBytesAreGolden(t *testing.T) {
	var f golden.File
	f.Add("four replicas", sample().Append(nil))
	f.Add("no replicas, whole user space", (&Descriptor{
		Shard: 2, Start: UserStart(), End: UserEnd(), Epoch: Epoch{ConfVer: 1, Version: 1},
	}).Append(nil))
	f.Check(t, "descriptor.golden")
}

// drawDescriptor draws a valid descriptor.
func drawDescriptor(t *rapid.T) *Descriptor {
	key := rapid.SliceOfN(rapid.Byte(), 1, 40)
	lo, hi := key.Draw(t, "lo"), key.Draw(t, "hi")
	switch bytes.Compare(lo, hi) {
	case 0:
		hi = append(bytes.Clone(lo), 0)
	case 1:
		lo, hi = hi, lo
	}
	d := &Descriptor{
		Shard: ShardID(rapid.Uint64Min(1).Draw(t, "shard")), Start: lo, End: hi,
		Epoch: Epoch{ConfVer: rapid.Uint64().Draw(t, "conf"), Version: rapid.Uint64().Draw(t, "version")},
	}
	n := rapid.IntRange(0, maxDescMembers).Draw(t, "replicas")
	for i := range n {
		d.Replicas = append(d.Replicas, ReplicaDesc{
			Replica: ReplicaID(n - i), Store: StoreID(i + 1),
			Role: Role(rapid.IntRange(int(RoleVoter), int(RoleOutgoing)).Draw(t, "role")),
		})
	}
	d.NextReplicaID = ReplicaID(rapid.Uint64Min(uint64(n)+1).Draw(t, "next"))
	return d
}

func TestDescriptorRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := drawDescriptor(t)
		tail := rapid.SliceOf(rapid.Byte()).Draw(t, "tail")
		enc := d.Append(nil)
		got, rest, err := DecodeDescriptor(append(bytes.Clone(enc), tail...))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(rest, tail) {
			t.Fatalf("rest %x, want %x", rest, tail)
		}
		if !bytes.Equal(got.Append(nil), enc) || got.String() != d.String() {
			t.Fatalf("got %s, want %s", got, d)
		}
		cut := rapid.IntRange(0, len(enc)-1).Draw(t, "cut")
		if _, _, err := DecodeDescriptor(enc[:cut]); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("cut at %d: %v, want ErrCorrupt", cut, err)
		}
	})
}

func TestDecodedDescriptorSharesNoMemory(t *testing.T) {
	enc := sample().Append(nil)
	d, _, err := DecodeDescriptor(enc)
	if err != nil {
		t.Fatal(err)
	}
	clear(enc)
	if d.String() != sample().String() {
		t.Fatalf("changed with its source: %s", d)
	}
}

func TestCloneIsDeep(t *testing.T) {
	d := sample()
	c := d.Clone()
	c.Start[1], c.End[1], c.Replicas[0].Store = 'x', 'x', 77
	if d.String() != sample().String() {
		t.Fatalf("the original changed: %s", d)
	}
}

func TestValidateNamesTheField(t *testing.T) {
	cases := []struct {
		name string
		mend func(*Descriptor)
		want string // empty: valid
	}{
		{"valid", func(*Descriptor) {}, ""},
		{"no replicas", func(d *Descriptor) { d.Replicas = nil }, ""},
		{"longest bounds", func(d *Descriptor) {
			d.Start = bytes.Repeat([]byte{2}, MaxKeySize+1)
			d.End = bytes.Repeat([]byte{3}, MaxKeySize+1)
		}, ""},
		{"shard 0", func(d *Descriptor) { d.Shard = 0 }, "shard id 0"},
		{"no start", func(d *Descriptor) { d.Start = nil }, "empty bound"},
		{"no end", func(d *Descriptor) { d.End = nil }, "empty bound"},
		{"long start", func(d *Descriptor) { d.Start = bytes.Repeat([]byte{2}, MaxKeySize+2) }, "bound over"},
		{"long end", func(d *Descriptor) { d.End = bytes.Repeat([]byte{3}, MaxKeySize+2) }, "bound over"},
		{"empty range", func(d *Descriptor) { d.End = d.Start }, "not below end"},
		{"inverted range", func(d *Descriptor) { d.Start, d.End = d.End, d.Start }, "not below end"},
		{"replica 0", func(d *Descriptor) { d.Replicas[0].Replica = 0 }, "replica id 0"},
		{"replica not given out", func(d *Descriptor) { d.NextReplicaID = 4 }, "replica id 4 outside [1, 4)"},
		{"store 0", func(d *Descriptor) { d.Replicas[0].Store = 0 }, "store 0"},
		{"role 0", func(d *Descriptor) { d.Replicas[0].Role = 0 }, "role 0"},
		{"role 5", func(d *Descriptor) { d.Replicas[0].Role = 5 }, "role 5"},
		{"replica twice", func(d *Descriptor) { d.Replicas[1].Replica = 1 }, "listed twice"},
		{"store twice", func(d *Descriptor) { d.Replicas[1].Store = 1 }, "listed twice"},
		{"too many replicas", func(d *Descriptor) {
			d.Replicas = nil
			for i := range ReplicaID(maxDescMembers + 1) {
				d.Replicas = append(d.Replicas, ReplicaDesc{Replica: i + 1, Store: StoreID(i + 1), Role: RoleVoter})
			}
			d.NextReplicaID = maxDescMembers + 2
		}, "65 replicas"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			d := sample()
			c.mend(d)
			err := d.Validate()
			if c.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("got %v, want an error with %q", err, c.want)
			}
			// What may not be stored may not be read either.
			if _, _, err := DecodeDescriptor(d.Append(nil)); !errors.Is(err, ErrCorrupt) {
				t.Fatalf("decoded: %v, want ErrCorrupt", err)
			}
		})
	}
}

func TestNewerDescriptorLayoutIsRefused(t *testing.T) {
	enc := sample().Append(nil)
	enc[0]++
	if _, _, err := DecodeDescriptor(enc); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "version 2") {
		t.Fatal(err)
	}
}

func FuzzDecodeDescriptor(f *testing.F) {
	f.Add([]byte(nil))
	f.Add(sample().Append(nil))
	f.Add(append(sample().Append(nil), 1, 2, 3))
	f.Fuzz(func(t *testing.T, b []byte) {
		d, rest, err := DecodeDescriptor(b)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatalf("%v does not wrap ErrCorrupt", err)
			}
			return
		}
		if err := d.Validate(); err != nil {
			t.Fatal(err)
		}
		// The layout is canonical: one descriptor, one byte string.
		if enc := d.Append(nil); !bytes.Equal(enc, b[:len(b)-len(rest)]) {
			t.Fatalf("encodes as %x, was %x", enc, b)
		}
	})
}

func TestRangePredicates(t *testing.T) {
	d := &Descriptor{Shard: 1, Start: []byte("c"), End: []byte("f")}
	for key, want := range map[string]bool{
		"": false, "b": false, "c": true, "cz": true, "ezz": true, "f": false, "g": false,
	} {
		if d.Contains([]byte(key)) != want {
			t.Errorf("Contains(%q) = %v", key, !want)
		}
	}
	for _, c := range []struct {
		lo, hi string
		want   bool
	}{
		{"a", "c", false}, {"a", "c\x00", true}, {"d", "e", true}, {"a", "z", true}, {"c", "f", true},
		{"ezz", "z", true}, {"f", "g", false},
	} {
		o := &Descriptor{Start: []byte(c.lo), End: []byte(c.hi)}
		if d.Overlaps(o) != c.want || o.Overlaps(d) != c.want {
			t.Errorf("Overlaps([%s,%s)) is not %v both ways", c.lo, c.hi, c.want)
		}
	}
}

func TestReplicaLookup(t *testing.T) {
	d := sample()
	for _, r := range d.Replicas {
		if got, ok := d.Replica(r.Replica); !ok || got != r {
			t.Errorf("Replica(%s) = %v, %v", r.Replica, got, ok)
		}
		if got, ok := d.ReplicaOn(r.Store); !ok || got != r {
			t.Errorf("ReplicaOn(%s) = %v, %v", r.Store, got, ok)
		}
	}
	if _, ok := d.Replica(5); ok {
		t.Error("found a replica that is not there")
	}
	if _, ok := d.ReplicaOn(5); ok {
		t.Error("found a store that is not there")
	}
}

func TestNamesAreShort(t *testing.T) {
	var c ClusterID
	if !c.IsZero() {
		t.Error("the zero cluster id is not zero")
	}
	c[0] = 0xab
	if c.IsZero() {
		t.Error("a set cluster id is zero")
	}
	for _, p := range [][2]string{
		{StoreID(4).String(), "n4"},
		{ShardID(12).String(), "s12"},
		{ReplicaName(12, 3), "s12/3"},
		{Epoch{ConfVer: 3, Version: 7}.String(), "3.7"},
		{c.String(), "ab" + strings.Repeat("0", 30)},
		{RoleVoter.String() + RoleLearner.String() + RoleIncoming.String() + RoleOutgoing.String(),
			"voterlearnerincomingoutgoing"},
		{Role(9).String(), "role(9)"},
		{sample().String(), "s12[026170706c65,026d616e676f) 3.7 (n1/1 n2/3:outgoing n9/4:incoming n4/2:learner)"},
	} {
		if p[0] != p[1] {
			t.Errorf("%q, want %q", p[0], p[1])
		}
	}
}

func TestEpochsAreOrderedByVersionFirst(t *testing.T) {
	order := []Epoch{{1, 1}, {2, 1}, {9, 1}, {1, 2}, {3, 2}, {0, 3}} // oldest first
	for i, a := range order {
		for j, b := range order {
			if a.Newer(b) != (i > j) {
				t.Errorf("%s newer than %s: %v", a, b, a.Newer(b))
			}
		}
	}
}

func ExampleDescriptor_String() {
	d := Descriptor{
		Shard: 12, Start: []byte("\x02a"), End: []byte("\x02z"), Epoch: Epoch{ConfVer: 1, Version: 4},
		Replicas: []ReplicaDesc{{Replica: 1, Store: 1, Role: RoleVoter}, {Replica: 2, Store: 3, Role: RoleLearner}},
	}
	fmt.Println(&d)
	// Output: s12[0261,027a) 1.4 (n1/1 n3/2:learner)
}

func TestDescriptorsAreEqualIfAllOfThemIs(t *testing.T) {
	if !sample().Equal(sample()) {
		t.Error("a descriptor is not equal to one that says the same")
	}
	for name, change := range map[string]func(*Descriptor){
		"shard":           func(d *Descriptor) { d.Shard++ },
		"start":           func(d *Descriptor) { d.Start = []byte("\x02apples") },
		"end":             func(d *Descriptor) { d.End = []byte("\x02m") },
		"members' epoch":  func(d *Descriptor) { d.Epoch.ConfVer++ },
		"range's epoch":   func(d *Descriptor) { d.Epoch.Version++ },
		"next replica id": func(d *Descriptor) { d.NextReplicaID++ },
		"a replica":       func(d *Descriptor) { d.Replicas = d.Replicas[1:] },
		"a role":          func(d *Descriptor) { d.Replicas[0].Role = RoleLearner },
	} {
		d := sample()
		change(d)
		if d.Equal(sample()) || sample().Equal(d) {
			t.Errorf("another %s makes no difference", name)
		}
	}
}
