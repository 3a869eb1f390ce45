// Package client is the Go API of Shardd: a key-value store whose handle is a range of keys.
//
//	db, err := client.Open(ctx, []string{"127.0.0.1:7001"})
//	users := db.Prefix([]byte("users/"))
//	version, err := users.Put(ctx, []byte("users/ada"), []byte("lovelace"))
//	v, err := users.Get(ctx, []byte("users/ada"))
//
// A Range works on the keys within its bounds and refuses every other key before any I/O. Single-key operations and
// Batch are atomic and linearizable; Scan and MultiGet are linearizable row by row, not one snapshot; DeleteAll is
// atomic shard by shard. The options AtFollower and Stale let any replica serve a read, the nearest one first.
//
// Errors are *OpError and match one of the sentinels of this package with errors.Is. ErrAmbiguous is the only one after
// which a write may have happened; every other error of a write is definite. The client itself repeats whatever is safe
// to repeat until the context's deadline (or the default of WithTimeout), so callers need no retry loop of their own
// for anything but ErrAmbiguous.
//
// The package never caches values, never sends a write twice, and keeps no state on disk.
package client
