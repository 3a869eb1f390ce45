package engine

import (
	"bytes"

	"github.com/shardd/shardd/internal/base"
)

// KeyGroup says which keys stay together: user keys that start with Prefix form groups by what they have up to and
// including the Count-th Delimiter, counted from the start of the key without overlaps. A key with fewer delimiters is a
// group of its own. If Prefix reaches beyond that delimiter, all keys with the prefix are one group.
type KeyGroup struct {
	Prefix    []byte // of user keys, without the key space; empty: all
	Delimiter []byte // not empty
	Count     int    // at least 1
}

// maxSplitKey is the longest key at which shards are divided, in bytes, with the key space: the same limit as
// placement's for user keys, whose descriptor index must hold them.
const maxSplitKey = 1 + base.MaxKeySize - 3

// prefixOf returns what the members of a routing key's group start with, and false if the rule is not for the key.
func (g *KeyGroup) prefixOf(key []byte) ([]byte, bool) {
	user := key[1:]
	if !bytes.HasPrefix(user, g.Prefix) {
		return nil, false
	}
	end := 0
	for range g.Count {
		at := bytes.Index(user[end:], g.Delimiter)
		if at < 0 {
			return nil, false
		}
		end += at + len(g.Delimiter)
	}
	return key[:1+max(end, len(g.Prefix))], true
}

// groupOf returns what all members of the largest group around a routing key start with; nil if the key may stand
// alone. Keys with so long a start in common that none of their differences fits into a split key are a group too.
func groupOf(key []byte, groups []KeyGroup) []byte {
	var out []byte
	for i := range groups {
		if p, ok := groups[i].prefixOf(key); ok && (out == nil || len(p) < len(out)) {
			out = p
		}
	}
	if out == nil && len(key) > maxSplitKey || len(out) > maxSplitKey {
		out = key[:maxSplitKey]
	}
	return out
}

// GroupStart returns the key at or before a routing key at which its shard may be divided without cutting a group: the
// key itself if it stands alone. ok is false for a key that is not of a data family. The result may share memory with
// the key.
func GroupStart(key []byte, groups []KeyGroup) (start []byte, ok bool) {
	if !isDataKey(key) {
		return nil, false
	}
	if p := groupOf(key, groups); p != nil {
		return p, true
	}
	return key, true
}
