# `make` lists the targets. Everything happens inside $(VENV); nothing is installed elsewhere.

PYTHON ?= python3
VENV   ?= .venv
PEERS  ?= .venv-peers
ARGS   ?=
# a file of config/, without its ending; the default one, config.yaml, if empty
PANEL  ?=
# tests side by side; one of them waits for Slurm most of the time
JOBS   ?= 3

BIN        := $(VENV)/bin
READY      := $(VENV)/.ready
PEERSREADY := $(PEERS)/.ready

# The rules call `leaveout`, which is to be this environment's.
export PATH := $(abspath $(BIN)):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help setup peers results test check docs speed clean

help:
	@echo 'make results   the tables, the figures and results/report.html: MNIST + logistic regression'
	@echo '               (PANEL=all, mnist_mlp, digits, ...: another file of config/; to results/PANEL)'
	@echo 'make test      the tests                      (ARGS="-k lds" and the like go to pytest)'
	@echo 'make check     what CI runs: format, lint, types, workflow, locked code, documentation, tests'
	@echo 'make docs      the documentation as a site: build/site/index.html'
	@echo 'make speed     time it against other libraries ($(PEERS)); docs/speed.md'
	@echo 'make peers     their environment in $(PEERS), without which some tests are skipped'
	@echo 'make setup     the environment in $(VENV), from constraints.txt'
	@echo 'make clean     remove environments and caches; data/ and results/ stay'
	@echo
	@echo 'Each sets up what it needs. If python3 is older than 3.11: make PYTHON=python3.11 ...'

setup: $(READY)

# Made from nothing whenever the pins change: an upgrade in place would leave strays behind.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "leaveout needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1)." \
	    "Name another one: make PYTHON=python3.11" >&2; exit 1; }
	@echo 'Setting up $(VENV) (once; some minutes)'
	@$(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

results: $(READY)
	@$(BIN)/snakemake results $(if $(PANEL),--configfile config/$(PANEL).yaml) \
	  --report results/report$(addprefix _,$(PANEL)).html --report-after-run $(ARGS)

# The tests against other libraries run where their environment is there, as `make check` sees to.
test: $(READY)
	@LEAVEOUT_PEERS_PYTHON=$(abspath $(PEERS))/bin/python $(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile $(ARGS)

check: $(READY) $(PEERSREADY)
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/snakefmt --check workflow
	@$(BIN)/snakemake --lint
	@$(BIN)/leaveout confirm --check
	@$(MAKE) --no-print-directory docs
	@$(MAKE) --no-print-directory test

# All pages every time (-E), or what is wrong with a page would be said once only; a warning is an error.
docs: $(READY)
	@$(BIN)/sphinx-build -E -W --keep-going --quiet -d build/doctrees docs build/site

speed: $(READY) $(PEERSREADY)
	@$(BIN)/python benchmarks/speed.py --peers-python $(PEERS)/bin/python $(ARGS)

peers: $(PEERSREADY)

# Beside $(VENV), whose torch it sees: made anew with it.
$(PEERSREADY): $(READY) benchmarks/peers/requirements.txt benchmarks/peers/install
	@benchmarks/peers/install $(PEERS) $(BIN)/python
	@touch $@

clean:
	@rm -rf $(VENV) $(PEERS) build src/*.egg-info .mypy_cache .pytest_cache .ruff_cache
	@find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
