// Package ycsb runs the YCSB core workloads A to F (Cooper et al., "Benchmarking Cloud Serving Systems with YCSB",
// SoCC 2010) against a key-value store and reports throughput and latency. It drives whatever implements DB; NewClient
// adapts Shardd's public client.
//
// Its contract: the operation mix, the request distributions, the key names and the record sizes are those of YCSB's
// CoreWorkload, so figures compare with other stores' figures. Properties have YCSB's names and defaults. It never
// retries a failed operation of a run and never hides one: an operation that fails is counted under its error class
// and left out of the latencies of those that did not.
//
// # How a record becomes one value
//
// The store keeps opaque values, so a record is one value: each field in order, as its length (unsigned varint) and its
// bytes. Ten fields of 100 bytes make 1,010 bytes. What follows from that, and differs from a store with columns:
//
//   - READ always fetches the whole record, whatever readallfields says.
//   - UPDATE writes a whole new record without reading the old one, whatever writeallfields says. That is the store's
//     plain write and what a raw key-value store is measured by.
//   - READ_MODIFY_WRITE reads the record, replaces one field of it (all fields if writeallfields is true) and writes
//     it back. There is no condition on the write, as in YCSB.
//   - INSERT, in the load and in a run, writes a record that depends on nothing but its key and the field sizes. A load
//     may therefore be repeated or resumed anywhere, and dataintegrity can check what was inserted.
//
// # How time is counted
//
// A closed loop (target 0) lets each of threadcount workers start its next operation when the last one ended. An open
// loop (target > 0) fixes when operation k should start, k/target seconds into the run, and hands it to the next free
// worker; its latency counts from that intended start, so that a stalled store is charged for the operations that it
// kept waiting (coordinated omission). The time from the actual start is reported besides, as the service time.
//
// READ_MODIFY_WRITE is one operation of TOTAL and of operationcount; its two parts show up in READ and UPDATE as well,
// as in YCSB.
package ycsb
