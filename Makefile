# Short names for the longer commands of this repository. Everything here also runs without make.

.PHONY: test ci bench bench-micro bench-micro-baseline bench-peers bench-shards bench-big

test: ## all tests
	go test ./...

ci: ## what has to pass before a change lands
	bash .ci/run

bench: ## micro-benchmarks of each stage, with allocations
	go test -run NONE -bench . -benchmem ./bench ./engine ./shard/apply

# One stage after the other: intake, store (propose, pass, log, apply), pass of three stores, log, frames, apply, read, client.
MICRO = go test -run NONE -benchmem -benchtime 300ms -count 6 -timeout 60m ./bench -bench \
	'Intake|Store|Pass/shards=16|LogAppend/groups=16/sync=false|TransportFrame|Apply/writes=16|Read$$|RoundTrip'

bench-micro: ## the stages of the hot path beside the figures of the last release; about five minutes
	$(MICRO) | tee micro.txt
	go tool -modfile=tools/go.mod benchstat docs/benchmarks/micro/release.txt micro.txt

bench-micro-baseline: ## keep the figures of this version for those to come
	mkdir -p docs/benchmarks/micro
	$(MICRO) > docs/benchmarks/micro/release.txt

bench-peers: ## Shardd beside etcd and the limits of the machine, resumable; about 50 minutes
	cd bench/peers && go run . run --dir ../../docs/benchmarks/peers

bench-shards: ## updates per second with 16, 128 and 1,024 shards, resumable; about 12 minutes
	cd bench/peers && go run . shards --dir ../../docs/results/shards

bench-big: ## YCSB A and C on 10 GiB for 10 minutes each, resumable; about an hour and 50 GiB of disk
	cd bench/peers && go run . big --dir ../../docs/results/big
