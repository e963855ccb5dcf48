# Everything a fresh machine needs: Python 3.11 or newer, and git. `make help` lists the targets.

PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	command -v $$p >/dev/null && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help setup demo serve test test-fast e2e faults kills property-long faults-store faults-network chaos fuzz simulate security mutants check format docs guide bench bench-load bench-engine bench-gpu clean browser

help: ## list the targets
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: $(VENV)/server.stamp ## make .venv with the server and the clients in it

demo: setup ## start a server, ask, cut the line, kill the server, and show that nothing is lost
	@$(BIN)/python tools/demo.py

serve: setup ## run the server in the foreground
	@$(BIN)/llmws serve

test: $(VENV)/dev.stamp browser ## run every test of the short profile
	@$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

test-fast: $(VENV)/dev.stamp ## run the pure tests only
	@$(BIN)/python -m pytest tests/unit tests/property

e2e: $(VENV)/dev.stamp browser ## run the tests that drive real processes, terminals and a browser
	@$(BIN)/python -m pytest tests/e2e

faults: kills faults-store faults-network simulate ## run every long profile of what goes wrong (an hour)

kills: $(VENV)/dev.stamp ## kill a server 300 times, flip every bit of a session, fail its disk, jump its clock (minutes)
	@$(BIN)/python -m pytest tests/faults -m "not network and not simulation" --kills 300 --every-bit --show-capture=no -s

property-long: $(VENV)/dev.stamp ## walk the hub's state machine for 300,000 steps and more (minutes)
	@$(BIN)/python -m pytest tests/property --hypothesis-profile=long

faults-store: $(VENV)/dev.stamp ## inject 50,000 faults of a simulated disk into the session store (minutes)
	@$(BIN)/python -m pytest tests/unit/store/test_crash_simulation.py --store-faults 50000 --show-capture=no -s

faults-network: $(VENV)/dev.stamp ## 1,000 users behind bad networks, and clients killed with -9 (minutes)
	@$(BIN)/python -m pytest tests/faults -m network \
		--network-runs 1000 --client-kills 40 --show-capture=no -s

chaos: $(VENV)/dev.stamp ## 50 clients, a bad network, kill -9 of everybody for ten minutes (CHAOS="--minutes 60 --seed 2 --guide")
	@$(BIN)/python -m tests.faults.chaos $(CHAOS)

fuzz: $(VENV)/fuzz.stamp ## storm a server, then run every reader on a million hostile inputs, and no fewer (minutes)
	@$(BIN)/python -m pytest tests/fuzz/test_storm.py --storm-seconds 30 -s -q
	@$(BIN)/python -m tests.fuzz

security: $(VENV)/dev.stamp ## run the incident checks: one for each way in which servers like this were broken into
	@$(BIN)/python -m pytest tests/security

simulate: $(VENV)/dev.stamp ## live through 300 histories of the whole system under a virtual clock (minutes)
	@$(BIN)/python -m pytest tests/faults/simulation --simulation-seeds 300 --show-capture=no -s

mutants: $(VENV)/dev.stamp ## plant faults in copies of the product and see that the tests notice (half an hour)
	@cd tools && ../$(BIN)/python -m mutants --write

check: $(VENV)/dev.stamp ## lint, types, import contracts, generated documents
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/python tools/generate_docs.py --check

format: $(VENV)/dev.stamp ## format the code
	@$(BIN)/ruff check --fix --quiet
	@$(BIN)/ruff format --quiet

docs: $(VENV)/dev.stamp ## write the generated parts of the documents again
	@$(BIN)/python tools/generate_docs.py

guide: $(VENV)/dev.stamp ## train the built-in model again
	@$(BIN)/python tools/train_guide.py

bench: setup ## measure, and write the figures to bench/results
	@$(BIN)/python -m bench

bench-load: setup ## measure with a thousand connections, slow clients, floods, and many that come and go (minutes)
	@$(BIN)/python -m bench.load

bench-engine: $(VENV)/bench.stamp ## measure the engine beside others that serve the same model (LLAMA_PYTHON=… for llama.cpp)
	@$(BIN)/python -m bench.engines $(if $(LLAMA_PYTHON),--llama-python $(LLAMA_PYTHON))

bench-gpu: setup ## measure the engine on a GPU, against its memory's bandwidth and transformers
	@$(BIN)/python -m bench.gpu

clean: ## remove what was made, but neither state nor models
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache

$(VENV)/base.stamp: constraints.txt
	@test -n "$(PYTHON)" || { echo "llmws needs Python 3.11 or newer; none was found"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { echo "$(PYTHON) lacks venv; on Debian: apt-get install python3-venv"; exit 1; }
	@echo "Setting up $(VENV) …"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) --upgrade pip
	@touch $@

$(VENV)/server.stamp: $(VENV)/base.stamp pyproject.toml
	@echo "Installing the server; torch makes this take a while …"
	@$(PIP) --editable '.[server]'
	@touch $@

$(VENV)/dev.stamp: $(VENV)/server.stamp
	@echo "Installing the tools of the tests …"
	@$(PIP) --group dev
	@touch $@

# Where there is no browser, root gets Debian's; anybody else is told by the tests that need one.
browser: $(VENV)/dev.stamp
	@$(BIN)/python -m tests.support.browser 2>/dev/null && exit; \
	if test "$$(id -u)" = 0 && command -v apt-get >/dev/null; then \
		echo "Installing a browser for the tests …"; \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends chromium-headless-shell; \
	else false; fi || echo "tests/e2e/test_browser.py needs a browser; on Debian: apt-get install chromium-headless-shell"

$(VENV)/fuzz.stamp: $(VENV)/dev.stamp
	@$(PIP) --group fuzz
	@touch $@

$(VENV)/bench.stamp: $(VENV)/server.stamp
	@$(PIP) --group bench
	@touch $@
