package base

import "bytes"

// A routing key is a key-space byte followed by the caller's key. Shard ranges, requests and stored state all use
// routing keys, so the bytes a client sends are the bytes the engine stores. A shard never spans two spaces.
const (
	// SpaceUser is the first byte of all user data.
	SpaceUser byte = 0x02
	// SpaceSystem is the first byte of the meta shard's data.
	SpaceSystem byte = 0x03
)

// Limits of one operation, in bytes. They hold at the client, at the node and again at apply.
const (
	MaxKeySize   = 4 << 10 // user key, without the space byte
	MaxValueSize = 1 << 20
	MaxBatchSize = 4 << 20 // sum of keys, values and headers of one Batch
)

// UserStart and UserEnd bound the user space: [UserStart, UserEnd).
func UserStart() []byte { return []byte{SpaceUser} }

// UserEnd is the exclusive end of the user space.
func UserEnd() []byte { return []byte{SpaceUser + 1} }

// SystemStart and SystemEnd bound the system space.
func SystemStart() []byte { return []byte{SpaceSystem} }

// SystemEnd is the exclusive end of the system space.
func SystemEnd() []byte { return []byte{SpaceSystem + 1} }

// UserKey returns the routing key of a user's key.
func UserKey(k []byte) []byte {
	out := make([]byte, 0, len(k)+1)
	out = append(out, SpaceUser)
	return append(out, k...)
}

// PrefixEnd returns the smallest key above every key that starts with p, or nil if there is none (p empty or all 0xff).
func PrefixEnd(p []byte) []byte {
	end := bytes.Clone(p)
	for i := len(end) - 1; i >= 0; i-- {
		if end[i] != 0xff {
			end[i]++
			return end[:i+1]
		}
	}
	return nil
}
