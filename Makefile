# What can be done here. Every target builds the environment first (scripts/bootstrap.sh: quick when nothing is to do).

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help env testenv demo test lint format types unit kernel api e2e bench image docs lock clean

BIN := .venv/bin
REPORTS := build/reports
PYTEST := $(BIN)/python -m pytest

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

env: ## the virtual environment in .venv, and the system packages (as root)
	@scripts/bootstrap.sh

testenv:
	@scripts/bootstrap.sh --tests

demo: env ## a cluster of three nodes in network namespaces on this machine (root): picture, routes, pings (LAB="--nodes 5 --keep")
	@$(BIN)/pynet lab $(LAB)

test: testenv lint types unit kernel api ## everything that decides whether a change is right: lint, types, unit, kernel, api
	@echo "make test: all passed"

lint: env ## ruff (rules and format), import layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

format: env ## let ruff format the code and mend what it can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

types: env ## mypy --strict
	$(BIN)/mypy --strict

unit kernel api: testenv
	@mkdir -p $(REPORTS)
	$(PYTEST) tests/$@ --junit-xml=$(REPORTS)/$@.xml $(ARGS)

unit: ## tests without a kernel or an API server (Go; the first run builds helm; ARGS="-k name")
kernel: ## tests against the real kernel, in network namespaces (root)
api: ## tests against a real kube-apiserver and etcd (root, Go; the first run builds them)

e2e: testenv ## real clusters (kind) with pynet as their network (root, Go; ARGS="--flavours ipv4")
	tests/e2e/run $(ARGS)

bench: testenv ## the figures of docs/adr and benchmarks/, measured on this machine (root)
	$(BIN)/python -m benchmarks $(ARGS)

image: ## the container image (docker)
	deploy/image.sh

docs: env ## check the documentation: links, files and commands it names
	$(BIN)/python scripts/check_docs.py

lock: ## requirements/*.txt again from *.in, with hashes (needs uv)
	cd requirements && for name in agent full image dev; do \
	  uv pip compile --quiet --generate-hashes --universal --allow-unsafe --python-version 3.11 \
	    --no-emit-index-url --custom-compile-command "make lock" $$name.in -o $$name.txt || exit 1; done

clean: ## what builds and tests leave (.venv stays)
	rm -rf build dist agent/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
