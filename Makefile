# nap: install, demo, test. `make help` lists what there is.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
.DEFAULT_GOAL := help
export PYTHON FLEET_BIN

help: ## list what there is
	@sed -n 's/^\([a-z-]*\):[^#]*## /\1	/p' Makefile | expand -t 14

install: packages $(VENV)/installed ## install what is missing: Debian packages, and a virtual environment here

demo: install ## bring nap up, push an example app over ssh, fetch its address
	@examples/demo.sh

demo-down: ## stop the demo's nap and all that it started
	@examples/demo.sh down

SHELL_PROGRAMS := $(wildcard unit_templates/*.sh unit_templates/*/*.sh examples/*.sh tests/*.sh hooks/* scripts/*) .ci/run tests/stand_in/fleetctl
LINT = { $(BIN)/ruff check --quiet . && $(BIN)/ruff format --quiet --check . && $(BIN)/mypy && \
	$(BIN)/shellcheck --severity=warning --external-sources --source-path=SCRIPTDIR $(SHELL_PROGRAMS) && \
	{ $(BIN)/lint-imports --no-cache --no-logo >$(VENV)/imports.log || { cat $(VENV)/imports.log >&2; false; }; }; }

# WORKERS at a time, each on a network of its own, so that ports and the engines' firewall rules do not meet. That takes
# root, and the fleet that `make cluster` left running cannot be reached from there. A worker waits for a third of its
# time, so three keep two processors busy. What the tests boot and build from is made beside the checks, the first time
# on a computer.
WORKERS ?= 3

test: TESTS := not long
test: whole-tests ## check style and types, then run the tests, on real programs

test-long: TESTS := long
test-long: whole-tests ## the same with the tests that take longest, which `make test` leaves out

whole-tests: packages-for-tests $(VENV)/installed-for-tests
	@if [ -z "$$FLEET_BIN" ] && tests/apart.sh true 2>/dev/null; then \
	    $(BIN)/python -m tests.real_machine & machine=$$!; \
	    $(BIN)/python -m tests.bases & bases=$$!; \
	    $(LINT); linted=$$?; \
	    wait $$machine && wait $$bases && [ $$linted = 0 ] || exit 1; \
	    set -- --dist loadfile --no-loadscope-reorder --tx '$(WORKERS)*popen//python=tests/apart.sh $(BIN)/python'; \
	else \
	    $(LINT) || exit; \
	fi; $(BIN)/pytest --durations 20 -m '$(TESTS)' "$$@"

test-fast: $(VENV)/installed-for-tests ## run the tests that need none of the programs
	@$(BIN)/pytest -m 'not machine'

lint: $(VENV)/installed-for-tests ## check style and types
	@$(LINT)

bench: packages-for-tests $(VENV)/installed-for-tests ## time a push beside the same steps by hand, and the router
	@$(BIN)/python tests/bench.py
	@$(BIN)/python tests/router_bench.py

cluster: fleet packages-for-tests $(VENV)/installed-for-tests ## boot a fleet cluster of containers: make cluster FLEET_BIN=DIR
	@$(BIN)/python -m tests.fleet_cluster up

cluster-test: fleet packages-for-tests $(VENV)/installed-for-tests ## run the tests that need such a cluster
	@$(BIN)/pytest -m cluster

cluster-bench: fleet packages-for-tests $(VENV)/installed-for-tests ## time a push to such a cluster
	@$(BIN)/python tests/cluster_bench.py

cluster-down: packages-for-tests $(VENV)/installed-for-tests ## remove the cluster and all that belongs to it
	@$(BIN)/python -m tests.fleet_cluster down

docs: $(VENV)/installed ## make docs/settings.md and docs/architecture.md from the code
	@$(BIN)/python -m nap_receiver.core.settings_page >docs/settings.md.draft
	@mv docs/settings.md.draft docs/settings.md
	@$(BIN)/python -m tests.architecture >docs/architecture.md.draft
	@mv docs/architecture.md.draft docs/architecture.md

define FLEET_MISSING
 !     This needs fleet: make FLEET_BIN=DIR …, where DIR has fleetd and fleetctl in it.
       Debian has no package of it. It is built from github.com/coreos/fleet, v1.0.0, as its README says, with Go:
           apt-get install git golang-go
           git clone --branch v1.0.0 https://github.com/coreos/fleet && cd fleet && GO111MODULE=off ./build
       and is in fleet/bin then. It must be a clone, for its version comes from git.
endef
export FLEET_MISSING

fleet:
	@test -x "$$FLEET_BIN/fleetd" -a -x "$$FLEET_BIN/fleetctl" || { echo "$$FLEET_MISSING" >&2; exit 1; }

packages:
	@scripts/install-debian-packages

packages-for-python:
	@scripts/install-debian-packages python

packages-for-tests:
	@scripts/install-debian-packages test

# What is downloaded must have a hash of locks/. So what comes as source is built by the locked build tools, too: pip would
# fetch others, unlocked, for a build in isolation.
LOCKED := install --require-hashes --no-build-isolation --use-pep517 --requirement

$(VENV)/installed: pyproject.toml locks/build.txt locks/nap.txt | packages-for-python
	@echo "-----> Installing nap into $(VENV)"
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	@$(PIP) $(LOCKED) locks/build.txt
	@$(PIP) $(LOCKED) locks/nap.txt
	@$(PIP) install --no-index --no-deps --no-build-isolation --use-pep517 --editable .
	@$(BIN)/python -P -m nap_receiver.routing.caddy_origin
	@touch $@

$(VENV)/installed-for-tests: $(VENV)/installed locks/test.txt
	@echo "-----> Installing what the tests need into $(VENV)"
	@$(PIP) $(LOCKED) locks/test.txt
	@touch $@

COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	--no-annotate --custom-compile-command 'make lock' $(UPGRADE)

lock: packages-for-python ## write locks/ for what pyproject.toml asks for; UPGRADE=--upgrade takes newer versions
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	@$(PIP) install --require-hashes --requirement locks/lock.txt
	@$(COMPILE) --group build --output-file locks/build.txt
	@$(COMPILE) --group lock --output-file locks/lock.txt
	@$(COMPILE) pyproject.toml --output-file locks/nap.txt
	@$(COMPILE) pyproject.toml --extra test --constraint locks/nap.txt --output-file locks/test.txt
	@$(COMPILE) --group fuzz --constraint locks/test.txt --output-file locks/fuzz.txt

$(VENV)/installed-for-fuzz: $(VENV)/installed-for-tests locks/fuzz.txt
	@$(PIP) $(LOCKED) locks/fuzz.txt
	@touch $@

fuzz: $(VENV)/installed-for-fuzz ## run a million inputs through every parser of what strangers write; RUNS=NUMBER for others
	@$(BIN)/python -m tests.fuzz $(RUNS)

.PHONY: help install demo demo-down test test-long whole-tests test-fast fuzz lint bench docs lock packages packages-for-python packages-for-tests \
	cluster cluster-test cluster-bench cluster-down fleet
.NOTPARALLEL:
