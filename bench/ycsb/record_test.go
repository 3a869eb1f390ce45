package ycsb

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"
)

func testWorkload(t testing.TB, overrides ...string) *workload {
	t.Helper()
	set, err := newSettings(mustWorkload(t, "a", overrides...))
	if err != nil {
		t.Fatal(err)
	}
	return newWorkload(set, nil)
}

func TestKeyNamesAreYCSBs(t *testing.T) {
	for _, c := range []struct {
		number int64
		set    []string
		want   string
	}{
		{0, nil, "user6284781860667377211"},
		{5, []string{"insertorder=ordered"}, "user5"},
		{5, []string{"insertorder=ordered", "zeropadding=8"}, "user00000005"},
		{5, []string{"insertorder=ordered", "keyprefix=u", "table=x"}, "x:u5"},
	} {
		if got := testWorkload(t, c.set...).set.appendKey(nil, c.number); string(got) != c.want {
			t.Errorf("key of %d with %v is %s, want %s", c.number, c.set, got, c.want)
		}
	}
}

func TestRecordHasTheStatedLayout(t *testing.T) {
	w := testWorkload(t, "fieldcount=3", "fieldlength=5")
	record := w.appendInserted(nil, []byte("user1"))
	if len(record) != 3*6 {
		t.Fatalf("%d bytes: %q", len(record), record)
	}
	for i, b := range record {
		if i%6 == 0 && b != 5 || i%6 != 0 && (b < 0x20 || b > 0x5f) {
			t.Fatalf("byte %d of %q", i, record)
		}
	}
	if w = testWorkload(t); len(w.appendInserted(nil, []byte("k"))) != 1010 {
		t.Fatal("a record of 10 fields of 100 bytes is not 1010 bytes long")
	}
}

func TestInsertedRecordsFollowFromTheirKeyAndAreVerified(t *testing.T) {
	w := testWorkload(t, "fieldlength=13")
	r := rand.New(rand.NewPCG(3, 3))
	a, b := w.appendInserted(nil, []byte("a")), w.appendInserted(nil, []byte("b"))
	if !bytes.Equal(a, w.appendInserted(nil, []byte("a"))) || bytes.Equal(a, b) {
		t.Fatal("records do not follow from keys")
	}
	if err := w.verify([]byte("a"), a); err != nil {
		t.Fatal(err)
	}
	for what, record := range map[string][]byte{
		"another key's": b, "cut": a[:len(a)-1], "longer": append(bytes.Clone(a), 0), "empty": nil,
		"random": w.appendRandom(nil, r), "modified": w.appendModified(nil, a, r),
	} {
		if err := w.verify([]byte("a"), record); !errors.Is(err, ErrIntegrity) {
			t.Errorf("%s record: %v", what, err)
		}
	}
	for i := range a {
		bad := bytes.Clone(a)
		bad[i] ^= 1
		if w.verify([]byte("a"), bad) == nil {
			t.Fatalf("flipped bit in byte %d goes unseen", i)
		}
	}
}

func TestModifyReplacesOneFieldOrAForeignValue(t *testing.T) {
	w := testWorkload(t)
	r := rand.New(rand.NewPCG(4, 4))
	old := w.appendRandom(nil, r)
	for range 100 {
		changed := w.appendModified(nil, old, r)
		fields := 0
		for a, b := old, changed; len(a) > 0; {
			va, ra, _ := cutField(a)
			vb, rb, ok := cutField(b)
			if !ok || len(va) != len(vb) {
				t.Fatal("modified record has another shape")
			}
			if !bytes.Equal(va, vb) {
				fields++
			}
			a, b = ra, rb
		}
		if fields != 1 {
			t.Fatalf("%d fields changed", fields)
		}
	}
	for _, foreign := range []string{"", "x", "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"} {
		if got := w.appendModified(nil, []byte(foreign), r); len(got) != len(old) {
			t.Errorf("%q became %d bytes", foreign, len(got))
		}
	}
}

func TestFieldLengthsFollowTheirDistribution(t *testing.T) {
	for _, distribution := range []string{"uniform", "zipfian"} {
		w := testWorkload(t, "fieldlengthdistribution="+distribution, "minfieldlength=3", "fieldlength=300")
		key := []byte("k")
		record := w.appendInserted(nil, key)
		if !bytes.Equal(record, w.appendInserted(nil, key)) {
			t.Errorf("%s: the record does not follow from its key", distribution)
		}
		for rest := record; len(rest) > 0; {
			value, after, ok := cutField(rest)
			if !ok || len(value) < 3 || len(value) > 300 {
				t.Fatalf("%s: field of %d bytes", distribution, len(value))
			}
			rest = after
		}
	}
}

func FuzzCutField(f *testing.F) {
	f.Add([]byte{3, 'a', 'b', 'c', 1})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		value, rest, ok := cutField(b)
		if ok && len(value)+len(rest) >= len(b) {
			t.Fatalf("%d bytes cut into %d and %d", len(b), len(value), len(rest))
		}
	})
}
