// Package bench measures Shardd. It holds the micro-benchmarks of the stages of the hot path, from intake to a client's
// round trip (make bench-micro puts them beside those of the last release), and Matrix, which runs the YCSB core workloads against a running cluster for several
// numbers of clients and keeps what it found as JSON.
//
// Its contract: a figure is never reported without what it was measured with, and a measurement that exists is never
// overwritten. It starts and stops no cluster.
package bench
