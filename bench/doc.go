// Package bench measures Shardd. It holds the micro-benchmarks of the raft pass, the log store, apply and the transport
// (run them with go test -bench), and Matrix, which runs the YCSB core workloads against a running cluster for several
// numbers of clients and keeps what it found as JSON.
//
// Its contract: a figure is never reported without what it was measured with, and a measurement that exists is never
// overwritten. It starts and stops no cluster.
package bench
