# What people and CI both call. Everything happens in .venv; nothing else on the machine changes.

PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/installed
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
# Without byte code every start takes twice as long.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help reproduce test docs bench benchshort faults lint ui clean

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile | expand -t 12

reproduce: $(STAMP)  ## install, run the embedded suite, print the table of runs
	snakemake

test: $(STAMP)  ## all tests
	pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: $(STAMP)  ## style and types
	ruff check .
	ruff format --check .
	mypy workflow/prefdag workflow/snakemake_logger_plugin_prefdag benchmarks
	PYTHONPATH=workflow:. lint-imports --no-logo

docs: $(STAMP)  ## the documentation site, in site/
	mkdocs build --strict

bench: $(STAMP)  ## speed and memory against TRL, every cell (hours); writes docs/benchmarks.md's table
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[bench]'
	$(VENV)/bin/python -m benchmarks benchmarks/settings/full.yaml --output results/benchmarks-full

benchshort: $(STAMP)  ## the same on one cell, within ten minutes
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[bench]'
	$(VENV)/bin/python -m benchmarks

faults: $(STAMP)  ## every fault at every stage, three times (half an hour); writes docs/faults.md's table
	python tests/faults/faults.py --times 3

ui: $(STAMP)  ## browse the runs in MLflow
	prefdag ui

clean:  ## remove results (not the environment)
	rm -rf results/* .snakemake

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' || \
	  { echo "prefdag needs Python 3.11 or 3.12, but $(PYTHON) is $$($(PYTHON) --version 2>&1); say make PYTHON=python3.11" >&2; exit 2; }
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile torch==2.13.0
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile --editable '.[dev]'
	-$(VENV)/bin/python -m compileall -q -j 2 $(VENV)/lib workflow > /dev/null 2>&1
	touch $(STAMP)
