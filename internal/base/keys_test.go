package base

import (
	"bytes"
	"testing"

	"pgregory.net/rapid"
)

func TestPrefixEndTable(t *testing.T) {
	for _, c := range []struct{ prefix, want string }{
		{"a", "b"}, {"ab", "ac"}, {"a\xff", "b"}, {"a\xff\xff", "b"}, {"\x00", "\x01"}, {"\xfe\xff", "\xff"},
	} {
		if got := PrefixEnd([]byte(c.prefix)); string(got) != c.want {
			t.Errorf("PrefixEnd(%q) = %q, want %q", c.prefix, got, c.want)
		}
	}
	for _, p := range []string{"", "\xff", "\xff\xff\xff"} {
		if got := PrefixEnd([]byte(p)); got != nil {
			t.Errorf("PrefixEnd(%q) = %q, want nil", p, got)
		}
	}
}

func TestPrefixEndBoundsExactlyThePrefix(t *testing.T) {
	// Few distinct bytes make prefixes and carries likely.
	key := rapid.SliceOfN(rapid.SampledFrom([]byte{0, 1, 0x7f, 0xfe, 0xff}), 0, 5)
	rapid.Check(t, func(t *rapid.T) {
		p, k := key.Draw(t, "prefix"), key.Draw(t, "key")
		before := bytes.Clone(p)
		end := PrefixEnd(p)
		in := bytes.Compare(k, p) >= 0 && (end == nil || bytes.Compare(k, end) < 0)
		if in != bytes.HasPrefix(k, p) {
			t.Fatalf("key %x in [%x, %x): %v", k, p, end, in)
		}
		if !bytes.Equal(p, before) {
			t.Fatal("the argument was changed")
		}
	})
}

func TestUserKeysStayInTheirSpaceAndOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := rapid.SliceOf(rapid.Byte()).Draw(t, "a"), rapid.SliceOf(rapid.Byte()).Draw(t, "b")
		ka, kb := UserKey(a), UserKey(b)
		if bytes.Compare(a, b) != bytes.Compare(ka, kb) {
			t.Fatalf("order of %x and %x changed", a, b)
		}
		if bytes.Compare(ka, UserStart()) < 0 || bytes.Compare(ka, UserEnd()) >= 0 || !bytes.Equal(ka[1:], a) {
			t.Fatalf("%x is not %x in the user space", ka, a)
		}
	})
	if bytes.Compare(UserEnd(), SystemStart()) > 0 || bytes.Compare(SystemStart(), SystemEnd()) >= 0 {
		t.Fatal("the spaces overlap")
	}
}
