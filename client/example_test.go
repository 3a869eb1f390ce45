package client_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"strconv"
	"time"

	"github.com/shardd/shardd/client"
)

// exampleDB opens a client on a cluster of one node in this process. A program of yours calls client.Open with the
// addresses of its nodes.
func exampleDB(ctx context.Context, splits ...string) (*client.DB, func()) {
	c, err := startCluster(ctx, 1, splits...)
	if err != nil {
		log.Fatal(err)
	}
	db, err := client.Open(ctx, c.endpoints)
	if err != nil {
		log.Fatal(err)
	}
	return db, func() {
		if err := errors.Join(db.Close(), c.stop()); err != nil {
			log.Fatal(err)
		}
	}
}

func exampleContext() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), 30*time.Second)
}

func Example() {
	ctx, cancel := exampleContext()
	defer cancel()
	db, stop := exampleDB(ctx) // db, err := client.Open(ctx, []string{"10.0.0.1:7001", "10.0.0.2:7001"})
	defer stop()

	users := db.Prefix([]byte("users/"))
	if _, err := users.Put(ctx, []byte("users/ada"), []byte("Lovelace")); err != nil {
		log.Fatal(err)
	}
	v, err := users.Get(ctx, []byte("users/ada"))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s\n", v.Bytes)

	_, err = users.Get(ctx, []byte("users/bob"))
	fmt.Println(errors.Is(err, client.ErrNotFound))
	_, err = users.Get(ctx, []byte("orders/1"))
	fmt.Println(errors.Is(err, client.ErrOutOfRange))
	// Output:
	// Lovelace
	// true
	// true
}

func ExampleRange_CompareAndSwap() {
	ctx, cancel := exampleContext()
	defer cancel()
	db, stop := exampleDB(ctx)
	defer stop()

	key, counters := []byte("counters/visits"), db.Prefix([]byte("counters/"))
	increment := func() error {
		for {
			v, err := counters.Get(ctx, key)
			if err != nil && !errors.Is(err, client.ErrNotFound) {
				return err
			}
			n, _ := strconv.Atoi(string(v.Bytes)) // an absent key has version 0 and counts as 0
			_, err = counters.CompareAndSwap(ctx, key, v.Version, []byte(strconv.Itoa(n+1)))
			if !errors.Is(err, client.ErrConflict) {
				return err
			}
		}
	}
	for range 3 {
		if err := increment(); err != nil {
			log.Fatal(err)
		}
	}
	v, err := counters.Get(ctx, key)
	fmt.Printf("%s %v\n", v.Bytes, err)
	// Output: 3 <nil>
}

func ExampleRange_Batch() {
	ctx, cancel := exampleContext()
	defer cancel()
	db, stop := exampleDB(ctx)
	defer stop()

	accounts := db.Prefix([]byte("acct/"))
	open := client.NewBatch().
		IfAbsent([]byte("acct/1/name")).
		Put([]byte("acct/1/name"), []byte("Ada")).
		Put([]byte("acct/1/balance"), []byte("100"))
	_, err := accounts.Batch(ctx, open)
	fmt.Println("first:", err)

	_, err = accounts.Batch(ctx, open)
	var conflict *client.ConflictError
	fmt.Println("second:", errors.Is(err, client.ErrConflict), errors.As(err, &conflict) && conflict.Step == 0)
	// Output:
	// first: <nil>
	// second: true true
}

func ExampleRange_Scan() {
	ctx, cancel := exampleContext()
	defer cancel()
	db, stop := exampleDB(ctx, "fruit/c", "fruit/m") // three shards
	defer stop()

	fruit := db.Prefix([]byte("fruit/"))
	for i, name := range []string{"apple", "banana", "cherry", "fig", "mango", "pear"} {
		if _, err := fruit.Put(ctx, []byte("fruit/"+name), []byte(strconv.Itoa(i))); err != nil {
			log.Fatal(err)
		}
	}
	for row, err := range fruit.Scan(ctx, client.Reverse(), client.Limit(4)) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%s = %s\n", row.Key, row.Value)
	}
	// Output:
	// fruit/pear = 5
	// fruit/mango = 4
	// fruit/fig = 3
	// fruit/cherry = 2
}

func ExampleOpError() {
	ctx, cancel := exampleContext()
	defer cancel()
	db, stop := exampleDB(ctx, "m")
	defer stop()

	_, err := db.All().Batch(ctx, client.NewBatch().Put([]byte("a"), nil).Put([]byte("z"), nil))
	var op *client.OpError
	if errors.As(err, &op) {
		fmt.Println(op.Op, string(op.Key), errors.Is(err, client.ErrCrossShard))
	}
	if !errors.Is(err, client.ErrAmbiguous) {
		fmt.Println("nothing was written")
	}
	// Output:
	// batch a true
	// nothing was written
}
