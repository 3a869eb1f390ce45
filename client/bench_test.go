package client_test

import (
	"context"
	"testing"
)

// BenchmarkGet reads one key of 1 KiB over a loopback connection from a node in memory: the client's whole path.
func BenchmarkGet(b *testing.B) {
	db := openFake(b, startFake(b))
	ctx, key := context.Background(), []byte("key")
	if _, err := db.All().Put(ctx, key, make([]byte, 1<<10)); err != nil {
		b.Fatal(err)
	}
	for name, clients := range map[string]int{"clients=1": 1, "clients=128": 128} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetParallelism(clients)
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if _, err := db.All().Get(ctx, key); err != nil {
						b.Error(err)
					}
				}
			})
		})
	}
}
