# Short names for the longer commands of this repository. Everything here also runs without make.

.PHONY: test ci bench bench-peers

test: ## all tests
	go test ./...

ci: ## what has to pass before a change lands
	bash .ci/run

bench: ## micro-benchmarks of each stage, with allocations
	go test -run NONE -bench . -benchmem ./bench ./engine ./shard/apply

bench-peers: ## Shardd beside etcd and the limits of the machine, resumable; about 45 minutes
	cd bench/peers && go run . run --dir ../../docs/benchmarks/peers
