// Peers measures Shardd beside etcd and beside the limits of the machine, in one run: the same YCSB driver, records,
// value size, numbers of clients and machine, three server processes each, durable, in turn A B A B. It is a module of its
// own, so that etcd and the plots stay out of the product.
//
//	peers run --dir DIR            measures what is missing in DIR, then writes table.md, results.json and plot.png there
//	peers shards --dir DIR         updates per second with 16, 128 and 1,024 shards, in turn, then table.md and results.json
//	peers big --dir DIR            YCSB A and C on more data than memory, second by second, then table.md, results.json, plot.png
//	peers etcd --name ... --dir    one etcd member, embedded, at etcd's own defaults (what run starts)
//
// A repeat of a system is one fresh cluster and one load; its cells follow one another. Every cell is a file, so that a
// run that was interrupted goes on after the last whole repeat of a system.
package main
