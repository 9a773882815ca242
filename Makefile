# The two commands of the README, `make demo` and `make test`, and what stands beside them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Where it is set, each process of a test compiles all its modules anew: a third of the time of a run.
unexport PYTHONDONTWRITEBYTECODE
# Each nats-server of a test waits for its disk again and again; where 4 GB of memory can be had as a folder, for nothing.
ON_TMPFS := $(shell [ -w /dev/shm ] && [ "$$(df -Pk /dev/shm | awk 'NR == 2 { print $$4 }')" -gt 4000000 ] && echo TMPDIR=/dev/shm)

.DEFAULT_GOAL := help
.PHONY: help setup demo test proofs check lock format clean kube-test kube-up kube-down hostile attack fuzz mutants bench-proxy

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: $(STAMP) ## make the environment in .venv

$(STAMP): pyproject.toml locks/dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make: Python 3.11 or later is needed; set PYTHON=/path/to/python3"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r locks/dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: setup ## run the guide's example on an embedded cluster, step by step
	@$(BIN)/tether demo

test: setup ## run the test suite
	$(ON_TMPFS) $(BIN)/pytest -n 4 --dist loadgroup -m "not slow" tests

proofs: setup ## run the tests that take long: whole clusters, migration, sweeps, rotations, killed roles, hostile requests
	$(ON_TMPFS) $(BIN)/pytest -n 3 --dist loadgroup -m slow tests

kube-test: setup ## run the behaviour and contract suites on a real kube-apiserver with Capsule and Flux
	@PYTHONPATH=tests $(BIN)/python -m controlplane build
	$(ON_TMPFS) $(BIN)/pytest --cluster real tests/kube tests/behaviour tests/contract

kube-up: setup ## keep such a control plane running; the last line is its kubeconfig
	@PYTHONPATH=tests $(BIN)/python -m controlplane up

kube-down: setup ## end it
	@PYTHONPATH=tests $(BIN)/python -m controlplane down

hostile: setup ## send hostile requests to a running proxy; the last line is JSON
	@$(BIN)/python -m tests.hostile.run

attack: setup ## attack a whole Tether (ATTACK=quick: half of it; CLUSTER=real) beside a victim; the last line is JSON
	@if [ "$(CLUSTER)" = real ]; then PYTHONPATH=tests $(BIN)/python -m controlplane build; fi
	@PYTHONPATH=tests $(BIN)/python -m tests.attack.run $(if $(filter quick,$(ATTACK)),--quick) --cluster $(or $(CLUSTER),embedded)

fuzz: setup ## feed the proxy's parsers, guided by coverage, FUZZ_SECONDS (20) each; the last line is JSON
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r locks/fuzz.txt
	@$(BIN)/python -m tests.fuzz.run

mutants: setup ## change the modules that decide, one by one (MODULE=, MUTANTS=quick), and see that a test fails; the last line is JSON
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r locks/mutants.txt
	@$(BIN)/python -m tests.mutants.run

bench-proxy: setup ## measure the proxy with wrk, also before a real kube-apiserver; the last line is JSON
	@PYTHONPATH=tests $(BIN)/python -m controlplane build
	@$(BIN)/python -m bench.proxy --cluster

check: setup ## format, lint, types, import rules, known vulnerabilities of what is locked
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@$(BIN)/python -m tests.supply.audit

LOCK := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
	--custom-compile-command 'make lock' $(if $(UPGRADE),--upgrade)

lock: setup ## write the locks anew after a change of pyproject.toml; UPGRADE=1: with the newest versions
	$(LOCK) pyproject.toml --extra dev -o locks/dev.txt
	$(LOCK) pyproject.toml -c locks/dev.txt -o locks/run.txt
	$(LOCK) pyproject.toml --extra fuzz -c locks/dev.txt -o locks/fuzz.txt
	$(LOCK) pyproject.toml --extra mutants -c locks/dev.txt -o locks/mutants.txt
	$(LOCK) locks/build.in -c locks/dev.txt -o locks/build.txt

format: setup ## format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## remove the environment and the caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
