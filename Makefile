# The only list of commands; CI and the README call it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PROFILE ?= smoke
# How a sweep's jobs are started: conf/hydra/launcher/. Two of one thread each are quicker on two cores than one of two.
LAUNCHER ?= $(if $(filter paper,$(PROFILE)),basic,local)
TABLES := table1 table2 table3
FIGURES := fig-validation fig-stability fig-domination fig-conditioning fig-last-layer
.DEFAULT_GOAL := help
.PHONY: help setup run test test-slow test-engines lint typecheck docs dist bench gpu test-gpu bench-gpu $(TABLES) $(FIGURES) vit-conditioning block-structure edge-of-stability paper clean

help: ## this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /\1\t/' | expand -t 18

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "condexp needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

# A stamp per set of packages: pip runs again only when pyproject.toml is newer.
$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[local,slurm,report]'
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@ $(VENV)/.installed $(VENV)/.installed-docs

$(VENV)/.installed-docs: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	@touch $@ $(VENV)/.installed

setup: $(VENV)/.installed-dev ## virtual environment with everything developers need

run: $(VENV)/.installed ## the default experiment: an MLP with BatchNorm on the digits, offline
	@$(BIN)/condexp run

# Two processes of one thread each use two cores better than one process of two. A file's tests stay in one of them, so
# that what they share is made once.
test: $(VENV)/.installed-dev ## the test suite
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile

test-slow: $(VENV)/.installed-dev ## the tests that take minutes
	@$(BIN)/python -m pytest -q -m slow

test-engines: $(VENV)/.installed-dev ## the tests that need an engine: Slurm, on this machine, installed by apt-get as root
	@bash tests/engines/slurm_one_node.sh install
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m engine tests/engines

lint: $(VENV)/.installed-dev ## ruff: style, docstrings, formatting
	@$(BIN)/ruff check --quiet . && $(BIN)/ruff format --quiet --check .

typecheck: $(VENV)/.installed-dev ## mypy --strict
	@$(BIN)/mypy

# Warnings are errors, and so is a reference to nothing. Figures are drawn by the package itself, once for each state of it.
docs: $(VENV)/.installed-docs ## the documentation as a site, offline: docs/_build/html/index.html
	@$(BIN)/python -m sphinx -W -n --keep-going -q docs docs/_build/html

dist: $(VENV)/.installed-dev ## sdist and wheel in dist/, as an index would take them
	@rm -rf dist && $(BIN)/python -m build && $(BIN)/python -m twine check --strict dist/*

# The paper: a target runs its sweeps, skipping what is stored, and then makes its table or figure.
table1: ## test error and κ of the last linear layer on CIFAR-10, by net, LastBN and depth (PROFILE=smoke|cpu|paper)
table2: ## the same on CIFAR-100
table3: ## the same on ImageNet, with dropout
fig-validation: ## claim 1: exact Fisher blocks beside their Kronecker factors
fig-stability: ## claim 2: λ_max of the layers over initial weights and learning rates
fig-domination: ## claim 3: large weights that dominate their gradients
fig-conditioning: ## claim 4: κ by layer with BatchNorm and its halves
fig-last-layer: ## claim 5: the last linear layer over training, of table1's runs

GRIDS = $(subst -,_,$@)
fig-validation: GRIDS = fig_validation fig_validation_cnn fig_validation_exact
fig-conditioning: GRIDS = fig_conditioning fig_conditioning_vgg
fig-last-layer: GRIDS = table1
table1 table2: KEYS = --rows model.depth --cols model.name,model.last_bn
table3: KEYS = --rows model.depth --cols model.last_bn,model.dropout
STORED = $(GRIDS:%=outputs/%) --where profile=$(PROFILE)

# A failed job (1) keeps no table from being made, but fails its target; after bad input or a stop nothing is made.
define run_grids
code=0; for sweep in $(GRIDS); do \
  $(BIN)/condexp run -m hydra/launcher=$(LAUNCHER) experiment=$$sweep/$(PROFILE) || code=$$?; \
  [ $$code -le 1 ] || exit $$code; \
done
endef

$(TABLES): TABLE = $(BIN)/condexp table $(STORED) $(KEYS) --paired model.last_bn
$(TABLES): $(VENV)/.installed
	@$(run_grids); \
	$(TABLE) --value test_error --published --save outputs/$@/test_error && \
	$(TABLE) --value last_linear.input_kappa_0.5 --save outputs/$@/kappa_0.5 && exit $$code

$(FIGURES): $(VENV)/.installed
	@$(run_grids); name=$(subst -,_,$@); \
	$(BIN)/condexp figure $${name#fig_} $(STORED) --output outputs/$$name && exit $$code

block-structure: ## beyond the paper: how far K-FAC, EKFAC and the layers' blocks are from the exact Fisher matrix
block-structure: $(VENV)/.installed
	@$(run_grids); $(BIN)/condexp figure closeness $(STORED) --output outputs/block_structure && exit $$code

vit-conditioning: ## beyond the paper: κ by layer of a vision transformer, LayerNorm, BatchNorm or none
vit-conditioning: $(VENV)/.installed
	@$(run_grids); $(BIN)/condexp figure conditioning $(STORED) --output outputs/vit_conditioning && exit $$code

edge-of-stability: ## beyond the paper: λ_max of the Hessian against 2/lr under full-batch gradient descent
edge-of-stability: GRIDS = edge_of_stability edge_of_stability_vgg
edge-of-stability: $(VENV)/.installed
	@$(run_grids); $(BIN)/condexp figure sharpness $(STORED) --output outputs/edge_of_stability && exit $$code

paper: $(VENV)/.installed ## all of these, and outputs/REPORT.md with a verdict on each claim
	@code=0; for target in $(TABLES) $(FIGURES); do \
	  $(MAKE) --no-print-directory $$target PROFILE=$(PROFILE) LAUNCHER=$(LAUNCHER) || code=$$?; \
	done; $(BIN)/condexp report outputs --where profile=$(PROFILE) --output outputs/REPORT.md && exit $$code

# Whatever Python has torch, torchvision, h5py and hydra: a machine with a GPU has them, and no need of more.
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))
DEVICE ?= cuda

test-gpu: ## numbers, certificates, bits of training and DDP on a GPU, nothing installed (DEVICE=cpu: a dry run)
	@$(GPU_PYTHON) -m tests.gpu --device $(DEVICE)

bench-gpu: ## steps and snapshots of five networks on a GPU, as JSON in benchmarks/ (DEVICE=cpu: a dry run)
	@$(GPU_PYTHON) -m benchmarks.gpu --device $(DEVICE)

gpu: test-gpu bench-gpu ## both: what to run first on a machine with a GPU

bench: $(VENV)/.installed-dev ## the benchmarks: ratios measured in one process
	@$(BIN)/python -m benchmarks --pairs 15

clean: ## caches and build products; runs under outputs/ stay
	rm -rf build dist docs/_build .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
