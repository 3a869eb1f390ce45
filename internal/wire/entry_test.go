package wire

import (
	"bytes"
	"errors"
	"testing"

	"pgregory.net/rapid"

	"github.com/shardd/shardd/internal/base"
)

func TestEntryRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := EntryHeader{
			Kind: EntryData, Count: rapid.Uint32().Draw(t, "count"),
			Proposal: rapid.Uint64().Draw(t, "proposal"), Stamp: rapid.Uint64().Draw(t, "stamp"),
		}
		ops := shortBytes.Draw(t, "ops")
		enc := h.Append(nil)
		if len(enc) != EntryHeaderSize {
			t.Fatalf("header of %d bytes", len(enc))
		}
		got, rest, err := DecodeEntry(append(enc, ops...))
		if err != nil || got != h || !bytes.Equal(rest, ops) {
			t.Fatalf("got %+v, %x, %v, want %+v, %x", got, rest, err, h, ops)
		}
	})
}

func TestEntryThatIsNotKnownIsRefused(t *testing.T) {
	h := EntryHeader{Kind: EntryData, Count: 1, Stamp: 1}
	good := h.Append(nil)
	for cut := range good {
		if _, _, err := DecodeEntry(good[:cut]); !errors.Is(err, base.ErrCorrupt) {
			t.Errorf("cut at %d: %v", cut, err)
		}
	}
	for at := range 4 { // layout, kind, both reserved bytes
		for _, add := range []byte{byte(lastKind), 0xff} {
			b := bytes.Clone(good)
			b[at] += add
			if _, _, err := DecodeEntry(b); !errors.Is(err, base.ErrCorrupt) {
				t.Errorf("byte %d is %d: %v", at, b[at], err)
			}
		}
	}
}

func TestVerifyRoundTripAndRefusals(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := Verify{ID: rapid.Uint64().Draw(t, "id"), BytesPerSecond: rapid.Uint64().Draw(t, "rate")}
		h := EntryHeader{Kind: EntryVerify, Proposal: 7}
		got, body, err := DecodeEntry(v.Append(h.Append(nil)))
		if err != nil || got != h {
			t.Fatalf("header %+v, %v", got, err)
		}
		if back, err := DecodeVerify(body); err != nil || back != v {
			t.Fatalf("got %+v, %v, want %+v", back, err, v)
		}
		n := rapid.IntRange(0, 2*VerifySize).Filter(func(n int) bool { return n != VerifySize }).Draw(t, "length")
		if _, err := DecodeVerify(make([]byte, n)); !errors.Is(err, base.ErrCorrupt) {
			t.Fatalf("body of %d bytes: %v", n, err)
		}
	})
}

func TestOnlyEntriesThatReadNothingAreBlind(t *testing.T) {
	entry := func(ops ...Op) []byte {
		h := EntryHeader{Kind: EntryData, Count: uint32(len(ops)), Proposal: 1, Stamp: 1}
		b := h.Append(nil)
		for i := range ops {
			b = ops[i].Append(b)
		}
		return b
	}
	put := Op{Code: OpPut, Key: []byte{2, 'k'}, Value: []byte("v")}
	del := Op{Code: OpDelete, Key: []byte{2, 'k'}}
	cas := Op{Code: OpPut, Flags: FlagIfVersion, Key: []byte{2, 'k'}}
	verify := EntryHeader{Kind: EntryVerify}
	for name, c := range map[string]struct {
		data []byte
		want bool
	}{
		"empty": {nil, true}, "put and delete": {entry(put, del), true}, "no operations": {entry(), true},
		"conditional": {entry(put, cas), false}, "batch": {entry(put, Op{Code: OpBatch, Key: []byte{2, 'k'}}), false},
		"range":  {entry(Op{Code: OpDeleteRange, Key: []byte{2, 'k'}, Value: []byte{2, 'l'}}), false},
		"verify": {verify.Append(nil), false}, "cut": {entry(put)[:EntryHeaderSize+HeaderSize], false},
		"stub": {entry(put)[:EntryHeaderSize+3], false}, "other layout": {append([]byte{9}, entry(put)[1:]...), false},
	} {
		if got := Blind(c.data); got != c.want {
			t.Errorf("%s: %t", name, got)
		}
	}
}
