# nap: install, demo, test. `make help` lists what there is.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
.DEFAULT_GOAL := help
export PYTHON

help: ## list what there is
	@sed -n 's/^\([a-z-]*\):[^#]*## /\1	/p' Makefile | expand -t 14

install: packages $(VENV)/installed ## install what is missing: Debian packages, and a virtual environment here

demo: install ## bring nap up, push an example app over ssh, fetch its address
	@examples/demo.sh

demo-down: ## stop the demo's nap and all that it started
	@examples/demo.sh down

test: packages-for-tests lint ## check style and types, then run all tests, on real programs
	@$(BIN)/pytest

test-fast: $(VENV)/installed-for-tests ## run the tests that need none of the programs
	@$(BIN)/pytest -m 'not machine'

lint: $(VENV)/installed-for-tests ## check style and types
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .
	@$(BIN)/mypy

bench: packages-for-tests $(VENV)/installed-for-tests ## time a push beside the same steps by hand
	@$(BIN)/python tests/bench.py

docs: $(VENV)/installed ## make docs/settings.md from the code that checks the settings
	@$(BIN)/python -m nap_receiver.settings_page >docs/settings.md.draft
	@mv docs/settings.md.draft docs/settings.md

packages:
	@.ci/packages

packages-for-python:
	@.ci/packages python

packages-for-tests:
	@.ci/packages test

$(VENV)/installed: pyproject.toml constraints.txt | packages-for-python
	@echo "-----> Installing nap into $(VENV)"
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	@$(PIP) install --use-pep517 --constraint constraints.txt --editable .
	@touch $@

$(VENV)/installed-for-tests: $(VENV)/installed
	@echo "-----> Installing what the tests need into $(VENV)"
	@$(PIP) install --use-pep517 --constraint constraints.txt --editable '.[test]'
	@touch $@

.PHONY: help install demo demo-down test test-fast lint bench docs packages packages-for-python packages-for-tests
.NOTPARALLEL:
