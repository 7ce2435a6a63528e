# Two commands and nothing before them: `make demo` and `make test`. Both install what is missing first.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

# rustup installs here, and a shell that was open before does not know it yet.
CARGO_BIN := $(or $(CARGO_HOME),$(HOME)/.cargo)/bin
export PATH := $(CARGO_BIN):$(PATH)

CARGO_FLAGS := --locked
TOOLS = $(shell deploy/bootstrap --print-tools)
DEMO_ARGS ?=

.PHONY: help demo test lint fuzz bench install uninstall

help: ## lists these targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

demo: ## installs what is missing, builds, and backs up and restores a sample database
	@deploy/bootstrap
	cargo build $(CARGO_FLAGS) --release --bins
	@STRONGROOM_TOOLS='$(TOOLS)' exec target/release/strongroom demo $(DEMO_ARGS)

test: ## builds everything and runs every test
	@deploy/bootstrap --tests
	cargo build $(CARGO_FLAGS) --workspace --bins
	@STRONGROOM_TOOLS='$(TOOLS)' deploy/run-tests $(CARGO_FLAGS)

lint: ## formatting and clippy, warnings are errors
	cargo fmt --all --check
	cargo clippy $(CARGO_FLAGS) --workspace --all-targets -- -D warnings

fuzz: ## fuzzes every decoder of the vault for FUZZ_SECONDS (20) each
	@deploy/bootstrap
	crates/vault/fuzz/run

bench: ## runs every benchmark, each beside the peer it is compared with
	@deploy/bootstrap --tests
	cargo build $(CARGO_FLAGS) --release --bins
	@shopt -s nullglob; \
	for script in bench/*.sh; do \
		echo "== $$script"; STRONGROOM_TOOLS='$(TOOLS)' bash "$$script"; \
	done

install: ## installs the release build into ~/.local/bin, or PREFIX/bin
	@[ -x target/release/strongroom ] || { deploy/bootstrap; cargo build $(CARGO_FLAGS) --release --bins; }
	@cli/install.sh

uninstall: ## removes what `make install` installed
	@cli/install.sh --uninstall
