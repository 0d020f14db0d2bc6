# nap: install, demo, test. `make help` lists what there is.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
.DEFAULT_GOAL := help

help: ## list what there is
	@sed -n 's/^\([a-z-]*\):[^#]*## /\1	/p' $(MAKEFILE_LIST) | expand -t 14

install: system $(VENV)/installed ## install what is missing: Debian packages, and a virtual environment here

demo: install ## bring nap up, push an example app over ssh, fetch its address
	@examples/demo.sh

demo-down: ## stop the demo's nap and all that it started
	@examples/demo.sh down

test: install lint ## run all tests, on real programs
	@$(BIN)/pytest

test-fast: $(VENV)/installed ## run the tests that need no programs
	@$(BIN)/pytest -m 'not machine'

lint: $(VENV)/installed ## check style and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

bench: install ## time a push beside the same steps by hand
	@$(BIN)/python tests/bench.py

docs: $(VENV)/installed ## make docs/settings.md from the code that checks the settings
	@$(BIN)/python -m nap_receiver.settings_page >docs/settings.md

system:
	@sh examples/../.ci/packages

$(VENV)/installed: pyproject.toml constraints.txt
	@echo "-----> Installing nap into $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	@touch $@

.PHONY: help install demo demo-down test test-fast lint bench docs system
