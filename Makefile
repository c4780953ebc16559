# Everything here sets itself up: on a machine with Python 3.11 or newer, `make demo` or `make test` is enough.
# The virtual environments are made anew whenever pyproject.toml or the pins change.

PYTHON ?= python3
VENV := .venv
LOWEST := .venv-lowest
BIN := $(VENV)/bin
PINS := requirements/constraints.txt
LOWEST_PINS := requirements/lowest.txt
PYTEST_ARGS ?=
BENCH_ARGS ?=
UPSTREAM_ARGS ?=

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test soak test-faults test-upstream test-lowest lint format lock clean bench-dispatch bench-simulate bench-scale bench-data bench-faults

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.ready ## Run a cross-validated search on a cluster of this machine, and beside it sequentially
	$(BIN)/jobfleet demo

test: $(VENV)/.ready ## Run the tests; PYTEST_ARGS="-k word" chooses some
	$(BIN)/python -m pytest $(PYTEST_ARGS)

soak: $(VENV)/.ready ## Run a search for SOAK_MINUTES (15) while faults strike its cluster at random
	$(BIN)/python -m tests.faults.soak

test-faults: $(VENV)/.ready ## Have everything that may happen to a worker happen at every point of a call (10 minutes)
	$(BIN)/python -m pytest tests/faults/suite_every.py $(PYTEST_ARGS)

test-upstream: $(VENV)/.ready ## Run joblib's and scikit-learn's own tests on jobfleet; UPSTREAM_ARGS="--patience 5" if the machine is busy
	$(BIN)/python -m tests.upstream $(UPSTREAM_ARGS)

test-lowest: $(LOWEST)/.ready ## Run the tests with the oldest supported versions of the dependencies
	$(LOWEST)/bin/python -m pytest -W ignore::DeprecationWarning $(PYTEST_ARGS)  # old releases warn of each other

lint: $(VENV)/.ready ## Check style, types and layers
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	@! grep -rnE '^\s*(import|from) jobfleet\b' src || \
	  { echo "imports inside the package are relative: on a worker it runs under a private name" >&2; exit 1; }

bench-dispatch: $(VENV)/.bench ## Measure jobfleet beside joblib's other backends (45 minutes); BENCH_ARGS="--rows tiny" chooses
	$(BIN)/python -m benchmarks.dispatch --picture benchmarks/results/dispatch.svg $(BENCH_ARGS)

bench-simulate: $(VENV)/.ready ## Simulate how calls are cut into chunks, for up to 10,000 slots
	$(BIN)/python -m benchmarks.simulate $(BENCH_ARGS)

bench-scale: $(VENV)/.ready ## Measure what a task costs in clusters of up to 64 workers in one process
	$(BIN)/python -m benchmarks.scale $(BENCH_ARGS)

bench-data: $(VENV)/.ready ## Measure what large arguments cost beside joblib's other backends (15 minutes); BENCH_ARGS="--rows list" chooses
	$(BIN)/python -m benchmarks.data $(BENCH_ARGS)

bench-faults: $(VENV)/.ready ## Break clusters under jobfleet and under joblib's own Dask backend, and tell what comes of it (15 minutes)
	$(BIN)/python -m benchmarks.faults --page $(BENCH_ARGS)

format: $(VENV)/.ready ## Put the style right where a machine can
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

lock: ## Pin the newest versions of everything in requirements/constraints.txt
	rm -rf .venv-lock
	$(call make-venv,.venv-lock)
	.venv-lock/bin/python -m pip install -qq --upgrade pip
	.venv-lock/bin/python -m pip install -qq --editable '.[demo]' --group dev --group bench hatchling editables
	( echo "# What .venv is made of: written by \`make lock\`, the newest versions that go together."; \
	  .venv-lock/bin/python -m pip freeze --all --exclude-editable --exclude setuptools ) > $(PINS)
	rm -rf .venv-lock

clean: ## Remove the virtual environments and all that tools leave behind
	rm -rf $(VENV) $(LOWEST) .venv-lock build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find src tests examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# $(call make-venv,directory): a fresh virtual environment, or a word on why there is none
define make-venv
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is not Python 3.11 or newer; name one that is: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
	@rm -rf $(1)
	@$(PYTHON) -m venv $(1) || \
	  { echo "$(PYTHON) cannot make a virtual environment; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
endef

# $(call install,directory,pins,group): pip itself first, since --group came with 25.1
define install
	@echo "Installing into $(1): about a minute, this once"
	@$(1)/bin/python -m pip install -qq --constraint $(2) 'pip>=25.1' hatchling editables
	@$(1)/bin/python -m pip install -qq --constraint $(2) --no-build-isolation --editable '.[demo]' --group $(3)
	@touch $(1)/.ready
endef

$(VENV)/.ready: pyproject.toml $(PINS)
	$(call make-venv,$(VENV))
	$(call install,$(VENV),$(PINS),dev)

$(VENV)/.bench: $(VENV)/.ready
	$(BIN)/python -m pip install -qq --constraint $(PINS) --group bench
	@touch $@

$(LOWEST)/.ready: pyproject.toml $(LOWEST_PINS)
	$(call make-venv,$(LOWEST))
	$(call install,$(LOWEST),$(LOWEST_PINS),test)
