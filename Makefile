# make run    an environment in .venv, then SSLPM on scikit-learn's digits
# make test   the same environment, then the tests
# make lint   style and types
# make check  slower checks on real processes: the tests marked slow, the documentation and its links, the report in a
#             browser, a wheel in a fresh environment, every sweep, kills, launchers, one run in several processes, a
#             labeling campaign with files, one in a browser and one in Label Studio
# make docs   the documentation, built into site/
#
# Needs Python 3.11 or later with pip, and make. PYTHON=python3.12 names another interpreter.

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: help install run test lint check docs

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

install: $(STAMP)

# Created once, and again after a change of pyproject.toml.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "sslpl needs Python 3.11 or later: make PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -e '.[dev]'
	@touch $@

run: $(STAMP)
	$(BIN)/python run.py $(ARGS)

test: $(STAMP)
	$(BIN)/python -m pytest -n 3

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: $(STAMP)
	$(BIN)/python -m pytest -n 3 -m slow
	$(BIN)/python tests/check_docs.py
	$(BIN)/python tests/check_report.py
	$(BIN)/python tests/check_wheel.py
	$(BIN)/python tests/check_sweeps.py
	$(BIN)/python tests/chaos.py --kills 20
	$(BIN)/python tests/check_launchers.py
	$(BIN)/python tests/check_campaign.py
	$(BIN)/python tests/check_labeling.py
	$(BIN)/python tests/check_label_studio.py
	$(BIN)/python tests/check_distributed.py

docs: $(STAMP)
	$(BIN)/python -m mkdocs build --strict
