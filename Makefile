# Targets for people and CI. Everything is installed into .venv; nothing else on the machine changes.

PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/installed
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
# Without byte code, every start takes twice as long.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help reproduce test docs bench benchshort faults mutants lint ui clean

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile | expand -t 12

reproduce: $(STAMP)  ## install, run the embedded suite, print the table of runs
	snakemake

test: $(STAMP)  ## run all tests
	pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: $(STAMP)  ## check style, types and the layers of imports
	ruff check .
	ruff format --check .
	mypy workflow/prefdag workflow/snakemake_logger_plugin_prefdag benchmarks
	PYTHONPATH=workflow:. lint-imports --no-logo

docs: $(STAMP)  ## build the documentation site in site/
	mkdocs build --strict

bench: $(STAMP)  ## measure speed and memory against TRL, every cell (hours)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[bench]'
	$(VENV)/bin/python -m benchmarks benchmarks/settings/full.yaml --output results/benchmarks-full

benchshort: $(STAMP)  ## measure one cell, within ten minutes
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[bench]'
	$(VENV)/bin/python -m benchmarks

faults: $(STAMP)  ## try every fault at every stage, three times (half an hour)
	python tests/faults/faults.py --times 3

mutants: $(STAMP)  ## change the code in many places; every change must fail a test
	python tests/mutations/mutants.py --markdown docs/mutants.md

ui: $(STAMP)  ## browse the runs in MLflow
	prefdag ui

clean:  ## remove results (not the environment)
	rm -rf results/* .snakemake

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' || \
	  { echo "prefdag needs Python 3.11 or 3.12, but $(PYTHON) is $$($(PYTHON) --version 2>&1); run make PYTHON=python3.11" >&2; exit 2; }
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile torch==2.13.0
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile --editable '.[dev]'
	-$(VENV)/bin/python -m compileall -q -j 2 $(VENV)/lib workflow > /dev/null 2>&1
	touch $(STAMP)
