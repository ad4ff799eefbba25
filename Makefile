# The doors of the house: `make` lists them.

BUILD_DIR := $(or $(CARGO_TARGET_DIR),target)
# A toolchain that was just installed is often not in PATH before the next login.
export PATH := $(PATH):$(or $(CARGO_HOME),$(HOME)/.cargo)/bin

.DEFAULT_GOAL := help
.PHONY: help demo test chaos compose-test compose-smoke deploy-check soak fuzz build lint fmt model mutants bench bench-placement prepare prepare-test prepare-compose prepare-stand-ins clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-15s %s\n", $$1, $$2 }' Makefile

demo: build ## install what is missing, build, and run etcd, 2 masters and 3 workers on examples/classic.yaml
	$(BUILD_DIR)/debug/evenkeel dev --resources examples/classic.yaml

test: lint ## every check that a change must pass
	@if cargo nextest --version >/dev/null 2>&1; then \
	    echo "cargo nextest run, then the tests in the docs"; \
	    cargo nextest run --workspace --locked && cargo test --workspace --locked --doc; \
	else \
	    echo "cargo test"; \
	    cargo test --workspace --locked; \
	fi

chaos: prepare ## attacks on real processes, all of them, and a table of what came of it; a part of the names in ARGS="..."
	cargo test --locked --package evenkeel --test chaos -- --include-ignored $(ARGS)
	# The same names may be meant here: what is asked for by a name is run where it is.
	cargo build --locked --package evenkeel-worker --examples
	cargo test --locked --package evenkeel-worker --test hostile -- --include-ignored $(ARGS)

compose-test: prepare-compose ## docker-compose.yml as it is, on images that are made here where none can be pulled, and broken on purpose
	scripts/compose-images --run cargo test --locked --package evenkeel --test compose -- --include-ignored $(ARGS)

compose-smoke: prepare-stand-ins ## the images, made with the binary for development, and two short scenarios of compose-test
	# As `make test` builds them: with the features of the whole workspace, nothing is built twice.
	cargo build --locked --workspace --bin evenkeel
	scripts/compose-images --binary $(BUILD_DIR)/debug/evenkeel --run \
	cargo test --locked --workspace --test compose -- --include-ignored --exact the_classic_run,worker_killed

deploy-check: ## what can be checked of deploy/ without running it: units, manifests, scrape configuration, alerts, dashboard
	deploy/systemd/check
	deploy/kubernetes/check
	deploy/prometheus/check

soak: ## simulated fleets for as long as you like, 1000 cluster-hours by default; others in ARGS="--hours 5000 --jobs 4 --first 100000"
	cargo run --locked --release --package evenkeel-sim --bin fleet -- $(or $(ARGS),--hours 1000 --jobs 2)

fuzz: prepare ## fuzz what comes from outside, all of it for a minute each; one of it for longer in ARGS="selector --seconds 600"
	scripts/fuzz $(ARGS)

build: prepare ## the binary, for development: target/debug/evenkeel
	cargo build --locked --package evenkeel

lint: prepare-test ## the house lint and its self-test, the protos, formatting, clippy
	scripts/lint --self-test
	scripts/lint
	scripts/mutants --match
	@if [ "$$EVENKEEL_SKIP_BUF" = 1 ]; then \
	    echo "buf lint: left out, because EVENKEEL_SKIP_BUF=1"; \
	else \
	    buf=target/tools/bin/buf; [ -x $$buf ] || buf=buf; \
	    echo "$$buf lint"; $$buf lint; \
	fi
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings

fmt: ## format the Rust code
	cargo fmt --all

model: ## the model of the ownership protocol: all instances to their end, also those that take minutes, and its mutants
	cargo run --locked --package evenkeel-sim --bin protocol-model

mutants: ## weaken the real code at each place of scripts/mutants.toml, in a copy, and see that a check fails; ARGS="--only ID"
	scripts/mutants $(ARGS)

bench: prepare ## evenkeel bench on a release build; its arguments in ARGS="..."
	cargo build --locked --release --package evenkeel
	$(BUILD_DIR)/release/evenkeel bench $(ARGS)

bench-placement: prepare ## what placement costs, without etcd; its arguments in ARGS="-- --workers 1000 --resources 100000"
	cargo bench --locked --package evenkeel-planner --bench placement $(ARGS)

prepare: ## install what building and the demo need, as far as it is missing
	@scripts/prepare

prepare-test: ## the same, and what the checks need
	@scripts/prepare --test

prepare-compose: ## the same, and what the compose tests need
	@scripts/prepare --test --compose

prepare-stand-ins: ## the same, for compose-smoke, which pulls nothing
	@scripts/prepare --test --stand-ins

clean: ## remove everything that was built
	cargo clean
