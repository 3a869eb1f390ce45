package ycsb

import "context"

// DB is what a workload needs of a store. It is called by all workers at once. Keys and values handed in are reused as
// soon as a call returns nil; after an error the driver never touches them again, so that a call cut short by its
// context may leave them behind in a queue.
type DB interface {
	// Read returns the record of a key, which the driver does not change. An absent key is an error.
	Read(ctx context.Context, key []byte) ([]byte, error)
	// Insert stores the record of a new key. It must succeed as well if the key exists.
	Insert(ctx context.Context, key, record []byte) error
	// Update replaces the record of a key.
	Update(ctx context.Context, key, record []byte) error
	// Scan visits up to count records in key order from start on.
	Scan(ctx context.Context, start []byte, count int, visit func(key, record []byte)) error
}
