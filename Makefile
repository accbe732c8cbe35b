# The only list of commands; CI and the README call it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PROFILE ?= smoke
.DEFAULT_GOAL := help
.PHONY: help setup run test lint typecheck table1 bench clean

help: ## this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /\1\t/' | expand -t 14

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "condexp needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

# A stamp per set of packages: pip runs again only when pyproject.toml is newer.
$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@ $(VENV)/.installed

setup: $(VENV)/.installed-dev ## virtual environment with everything developers need

run: $(VENV)/.installed ## the default experiment: an MLP with BatchNorm on the digits, offline
	@$(BIN)/condexp run

# Two processes of one thread each use two cores better than one process of two.
test: $(VENV)/.installed-dev ## the test suite
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2

test-slow: $(VENV)/.installed-dev ## the tests that take minutes
	@$(BIN)/python -m pytest -q -m slow

lint: $(VENV)/.installed-dev ## ruff: style, docstrings, formatting
	@$(BIN)/ruff check --quiet . && $(BIN)/ruff format --quiet --check .

typecheck: $(VENV)/.installed-dev ## mypy --strict
	@$(BIN)/mypy

table1: $(VENV)/.installed ## the paper's table 1: depth x LastBN, mean and deviation over seeds (PROFILE=smoke)
	@$(BIN)/condexp run -m experiment=table1 profile=$(PROFILE)
	@$(BIN)/condexp table outputs/table1 --rows model.depth --cols model.last_bn --value test_error --save outputs/table1/table

bench: $(VENV)/.installed-dev ## the benchmarks: ratios measured in one process
	@$(BIN)/python -m benchmarks --pairs 15

clean: ## caches and build products; runs under outputs/ stay
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
