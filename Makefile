# One command each. Every target first makes .venv from requirements.lock when it is missing or the lock has changed; with
# it come the oracles of tests/requirements-oracles.txt, without what they declare (see there).
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3.11
CORES ?= 2
VENV := .venv
STAMP := $(VENV)/.installed
ORACLES := tests/requirements-oracles.txt
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
PROFILES := $(filter-out schema,$(basename $(notdir $(wildcard workflow/config/*.yaml))))

export PYTHONNOUSERSITE := 1
unexport PYTHONPATH

.PHONY: help paper smoke test lab banks lock clean

help:  ## list the targets
	@grep -hE '^[a-z]+:.*## ' Makefile | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 10

paper: $(STAMP)  ## rebuild every figure and table of the paper (figures/)
	@echo "paper: running the workflow on $(CORES) cores; a second call does only what changed"
	@$(BIN)/python workflow/scripts/run_workflow.py --cores $(CORES) --config profile=paper

smoke: $(STAMP)  ## every step at toy size (data/smoke/)
	@echo "smoke: running the workflow at toy size on $(CORES) cores"
	@$(BIN)/python workflow/scripts/run_workflow.py --cores $(CORES) --config profile=smoke

test: $(STAMP)  ## run all tests, the end-to-end smoke run included
	@echo "test: running pytest in two processes"
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --no-loadscope-reorder

lab: $(STAMP)  ## open the notebooks in JupyterLab
	@echo "lab: starting JupyterLab; the chapters are in notebooks/"
	@$(BIN)/jupyter lab --notebook-dir=.

banks: $(STAMP)  ## copy the paper profile's retraining banks to data/banks
	@echo "banks: copying the retrained ground truth"
	@$(BIN)/python workflow/scripts/ship_banks.py

lock: $(STAMP)  ## write requirements.lock from requirements.in and what is installed
	@echo "lock: installing requirements.in and writing every pin to requirements.lock"
	@$(PIP) install --quiet -r requirements.in
	@{ sed -n 1p requirements.lock; $(PIP) freeze --exclude-editable $$(sed -n 's/==.*//; /^[A-Za-z]/s/^/--exclude /p' $(ORACLES)) \
	  | sed 's/+cpu$$//' | LC_ALL=C sort -f; } > requirements.lock.new
	@mv requirements.lock.new requirements.lock
	@touch $(STAMP)

clean:  ## remove generated data; keeps figures/, data/sources, data/banks and .venv
	@echo "clean: removing generated data, caches and logs"
	@rm -rf $(addprefix data/,$(PROFILES)) data/scratch .snakemake .pytest_cache .ruff_cache
	@find tda tests workflow -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): requirements.lock pyproject.toml $(ORACLES)
	@command -v "$(PYTHON)" > /dev/null || { echo "Python 3.11 is needed: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11) and "Python 3.11 is needed, this is " + sys.version)'
	@echo "setup: making $(VENV) with $$("$(PYTHON)" --version)"
	@test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	@echo "setup: installing torch"
	@$(PIP) install --quiet "$$(grep '^torch==' requirements.lock)"
	@echo "setup: installing the other packages of requirements.lock (about two minutes)"
	@$(PIP) install --quiet --constraint requirements.lock --requirement requirements.lock
	@echo "setup: installing the oracles of the conformance suite, and nothing that they declare"
	@$(PIP) install --quiet --no-deps --requirement $(ORACLES)
	@echo "setup: installing tda"
	@$(PIP) install --quiet --no-deps --editable .
	@if [ -e .git ] && git rev-parse --git-dir > /dev/null 2>&1; then \
	  echo "setup: notebooks are committed without outputs (git filter nbstripout)"; \
	  git config filter.nbstripout.clean "$(BIN)/python -m nbstripout --keep-id --extra-keys 'metadata.papermill cell.metadata.papermill cell.metadata.execution'"; \
	  git config filter.nbstripout.smudge cat; \
	  git config diff.ipynb.textconv "$(BIN)/python -m nbstripout --textconv --keep-id"; \
	fi || true
	@touch $(STAMP)
