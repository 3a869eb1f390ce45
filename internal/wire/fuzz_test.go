package wire

import (
	"bytes"
	"errors"
	"testing"

	"github.com/shardd/shardd/internal/base"
)

func FuzzDecodeOp(f *testing.F) {
	for _, o := range samples() {
		b := o.Append(nil)
		f.Add(b)
		f.Add(b[:len(b)-1])
		f.Add(append(b, b...))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var o Op
		raw, rest, err := DecodeOp(b, &o)
		if err != nil {
			if !errors.Is(err, ErrTruncated) && !errors.Is(err, ErrInvalid) {
				t.Fatalf("%v wraps neither sentinel", err)
			}
			return
		}
		if len(raw) != o.Size() || len(raw)+len(rest) != len(b) {
			t.Fatalf("%d raw and %d rest of %d bytes, size %d", len(raw), len(rest), len(b), o.Size())
		}
		if !bytes.Equal(o.Append(nil), raw) {
			t.Fatalf("encodes differently: %x", raw)
		}
		if err := o.Validate(); err != nil {
			if !errors.Is(err, ErrInvalid) {
				t.Fatalf("%v does not wrap ErrInvalid", err)
			}
			return
		}
		if o.Code != OpBatch {
			return
		}
		for b := o.Value; len(b) > 0; {
			var s Sub
			if b, err = DecodeSub(b, &s); err != nil {
				t.Fatalf("valid batch does not decode: %v", err)
			}
		}
	})
}

func FuzzDecodeSub(f *testing.F) {
	for _, s := range steps() {
		f.Add(s.Append(nil))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var s Sub
		rest, err := DecodeSub(b, &s)
		if err != nil {
			if !errors.Is(err, ErrInvalid) {
				t.Fatalf("%v does not wrap ErrInvalid", err)
			}
			return
		}
		if enc := s.Append(nil); !bytes.Equal(enc, b[:len(b)-len(rest)]) {
			t.Fatalf("encodes as %x", enc)
		}
		if err := s.Validate(); err != nil && !errors.Is(err, ErrInvalid) {
			t.Fatalf("%v does not wrap ErrInvalid", err)
		}
	})
}

func FuzzDecodeAnswer(f *testing.F) {
	for _, a := range answers() {
		f.Add(a.Append(nil))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var a Answer
		rest, err := DecodeAnswer(b, &a)
		if err != nil {
			if !errors.Is(err, ErrTruncated) && !errors.Is(err, ErrInvalid) {
				t.Fatalf("%v wraps neither sentinel", err)
			}
			return
		}
		if a.Size()+len(rest) != len(b) {
			t.Fatalf("size %d and %d rest of %d bytes", a.Size(), len(rest), len(b))
		}
		var again Answer
		if _, err := DecodeAnswer(a.Append(nil), &again); err != nil || !bytes.Equal(again.Payload, a.Payload) {
			t.Fatalf("does not round trip: %v", err)
		}
		_ = a.Code.String()
		// The payload is whatever the code says; a decoder of the wrong kind must hold as well.
		_, _ = DecodeDescriptors(a.Payload)
		for p := a.Payload; len(p) > 0; {
			var r Row
			if p, err = DecodeRow(p, &r); err != nil {
				break
			}
		}
	})
}

func FuzzDecodeRow(f *testing.F) {
	f.Add((&Row{Key: []byte("\x02k"), Value: []byte("v"), Version: 1}).Append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		var r Row
		rest, err := DecodeRow(b, &r)
		if err != nil {
			if !errors.Is(err, ErrTruncated) {
				t.Fatalf("%v does not wrap ErrTruncated", err)
			}
			return
		}
		if r.Size()+len(rest) != len(b) {
			t.Fatalf("size %d and %d rest of %d bytes", r.Size(), len(rest), len(b))
		}
	})
}

func FuzzDecodeEntry(f *testing.F) {
	h := EntryHeader{Kind: EntryData, Count: 1, Proposal: 2, Stamp: 3}
	put := samples()[2]
	f.Add(put.Append(h.Append(nil)))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, ops, err := DecodeEntry(b)
		if err != nil {
			if !errors.Is(err, base.ErrCorrupt) {
				t.Fatalf("%v does not wrap ErrCorrupt", err)
			}
			return
		}
		if enc := append(h.Append(nil), ops...); !bytes.Equal(enc, b) {
			t.Fatalf("encodes as %x", enc)
		}
	})
}

func FuzzDecodeDescriptors(f *testing.F) {
	d := &base.Descriptor{Shard: 7, Start: []byte("\x02a"), End: []byte("\x02z")}
	f.Add(AppendDescriptors(nil, d, d))
	f.Fuzz(func(t *testing.T, b []byte) {
		ds, err := DecodeDescriptors(b)
		if err == nil && !bytes.Equal(AppendDescriptors(nil, ds...), b) {
			t.Fatal("does not round trip")
		}
	})
}
