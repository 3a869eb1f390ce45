package engine

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/shardd/shardd/internal/base"
)

func TestAGroupIsWhatKeysShareUpToTheirCountedDelimiter(t *testing.T) {
	slash := func(prefix string, count int) KeyGroup {
		return KeyGroup{Prefix: []byte(prefix), Delimiter: []byte("/"), Count: count}
	}
	for _, c := range []struct {
		key    string
		groups []KeyGroup
		want   string
	}{
		{"user/7/name", nil, "user/7/name"},
		{"user/7/name", []KeyGroup{slash("", 1)}, "user/"},
		{"user/7/name", []KeyGroup{slash("", 2)}, "user/7/"},
		{"user/7/", []KeyGroup{slash("", 2)}, "user/7/"},
		{"user/7", []KeyGroup{slash("", 2)}, "user/7"}, // alone
		{"user/7/name", []KeyGroup{slash("order/", 2)}, "user/7/name"},
		{"user/7/name", []KeyGroup{slash("user/", 2)}, "user/7/"},
		{"user/7/name", []KeyGroup{slash("user/7/na", 1)}, "user/7/na"}, // the prefix reaches further
		{"user/7/name", []KeyGroup{slash("", 2), slash("user/", 1)}, "user/"},
		{"a::::b", []KeyGroup{{Delimiter: []byte("::"), Count: 2}}, "a::::"},
		{"a:::b", []KeyGroup{{Delimiter: []byte("::"), Count: 2}}, "a:::b"},
		{strings.Repeat("k", base.MaxKeySize), nil, strings.Repeat("k", maxSplitKey-1)},
	} {
		got, ok := GroupStart(base.UserKey([]byte(c.key)), c.groups)
		if !ok || string(got[1:]) != c.want {
			t.Errorf("%.40q under %v: %q, want %.40q", c.key, c.groups, got, c.want)
		}
	}
	if _, ok := GroupStart([]byte{spaceLocal, 'x'}, nil); ok {
		t.Error("a key of the engine's own has a group")
	}
}

func TestARangeThatCannotBeDividedSaysWhy(t *testing.T) {
	e := newEngine(t)
	ctx := context.Background()
	lo, hi := base.UserStart(), base.UserEnd()
	put := func(keys ...string) {
		commit(t, e, false, func(b *Batch) {
			b.DeleteRange(lo, hi)
			for _, k := range keys {
				b.Put(base.UserKey([]byte(k)), ValueHeader{Version: 1}, []byte("v"))
			}
		})
	}
	group := []KeyGroup{{Prefix: []byte("user/"), Delimiter: []byte("/"), Count: 2}}
	long := strings.Repeat("k", base.MaxKeySize-1)
	for _, c := range []struct {
		what   string
		keys   []string
		groups []KeyGroup
		want   error
	}{
		{"no key", nil, nil, ErrTooFewKeys},
		{"one key", []string{"a"}, nil, ErrTooFewKeys},
		{"one group", []string{"user/1/a", "user/1/b", "user/1/c"}, group, ErrOneGroup},
		{"a group and a key before it", []string{"a", "user/1/a", "user/1/b"}, group, nil},
		{"keys that differ too late", []string{long + "a", long + "b"}, nil, ErrOneGroup},
		{"a delimiter without bytes", []string{"a", "b"}, []KeyGroup{{Count: 1}}, errAny},
	} {
		put(c.keys...)
		d, err := e.SplitKeys(ctx, lo, hi, SplitOptions{Parts: 2, Groups: c.groups})
		if c.want == errAny && err != nil {
			continue
		}
		if !errors.Is(err, c.want) || (err == nil) != (len(d.Keys) == 1) {
			t.Errorf("%s: %v, %d keys", c.what, err, len(d.Keys))
		}
	}
	for _, b := range [][2][]byte{{lo, lo}, {hi, lo}, {lo, base.SystemEnd()}, {{spaceLocal, 'm'}, {spaceLocal, 'n'}}, {nil, hi}} {
		if _, err := e.SplitKeys(ctx, b[0], b[1], SplitOptions{}); !errors.Is(err, ErrInvalidKey) {
			t.Errorf("bounds [%x, %x): %v", b[0], b[1], err)
		}
	}
	put("a", "b", "c")
	ended, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := e.SplitKeys(ended, lo, hi, SplitOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("a call that has ended: %v", err)
	}
}

var errAny = errors.New("any error")

func TestABorderIsAsShortAsTheKeysAroundItAllow(t *testing.T) {
	e := newEngine(t)
	commit(t, e, false, func(b *Batch) {
		for _, k := range []string{"account-0017", "account-0018", "batch-3311", "batch-3312"} {
			b.Put(base.UserKey([]byte(k)), ValueHeader{Version: 1}, []byte("v"))
		}
	})
	d, err := e.SplitKeys(context.Background(), base.UserStart(), base.UserEnd(), SplitOptions{})
	if err != nil || len(d.Keys) != 1 || string(d.Keys[0][1:]) != "b" {
		t.Errorf("%q, %v", d.Keys, err)
	}
}

func TestTheTableOfAScanIsBoundedAndTellsWhatLiesBelow(t *testing.T) {
	var tab keyTable
	const n, size = 300_000, 100
	for i := range n {
		tab.add(userKey(i), size)
		if len(tab.marks) > scanTableKeys {
			t.Fatalf("%d marks", len(tab.marks))
		}
	}
	if len(tab.marks) < scanTableKeys/4 || tab.total != n*size || tab.keys != n {
		t.Fatalf("%d marks, %d bytes, %d keys", len(tab.marks), tab.total, tab.keys)
	}
	for _, i := range []int{1000, n / 3, n / 2, n - 5000} {
		if off := distance(tab.before(userKey(i)), uint64(i*size)); off > n*size/200 {
			t.Errorf("below key %d: off by %d of %d", i, off, n*size)
		}
		if key := tab.at(uint64(i * size)); distance(tab.before(key), uint64(i*size)) > n*size/200 {
			t.Errorf("the key at %d is %q", i*size, key)
		}
	}
	tab = keyTable{}
	for i := range 5000 { // keys of 4 KiB
		tab.add(append(bytes.Repeat([]byte{base.SpaceUser}, 4080), userKey(i)...), 1)
	}
	if tab.bytes > scanTableBytes+base.MaxKeySize || len(tab.marks) < 256 {
		t.Errorf("%d marks of %d bytes", len(tab.marks), tab.bytes)
	}
}
