.DEFAULT_GOAL := help
SHELL := /bin/bash

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: help
help: ## Show what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

$(READY): pyproject.toml
	@echo "Setting up $(VENV) (PyTorch is large: some minutes the first time) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11) and "bloomseal needs Python 3.11 or newer; try: make PYTHON=python3.11")'
	@$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@$(BIN)/python -c 'from privacy.inference.ckks import warm_up; warm_up()'
	@touch $@

.PHONY: setup
setup: $(READY) ## Make .venv with everything in it

.PHONY: run
run: $(READY) ## Train a private model in simulation and ask it encrypted questions (ARGS="model=cnn")
	$(BIN)/python -m flower_app run $(ARGS)

.PHONY: deploy-demo
deploy-demo: $(READY) ## Run a SuperLink with TLS and three SuperNodes here, train, and clean up
	$(BIN)/python -m flower_app deploy-demo $(ARGS)

.PHONY: bench
bench: $(READY) ## Run benchmarks beside their peers (ARGS="all --quick", ARGS="aggregation"; --list)
	$(BIN)/python -m benchmarks $(if $(ARGS),$(ARGS),--list)

.PHONY: test
test: $(READY) ## Run the tests, in three processes
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist loadscope --no-loadscope-reorder

.PHONY: release
release: $(READY) ## Build the wheels and the folder for Flower Hub into dist
	$(BIN)/python -m tools.release dist

.PHONY: release-check
release-check: $(READY) ## Install every extra into an empty environment, run the examples there (gigabytes)
	$(BIN)/python -m tools.environments $(ARGS)
	$(BIN)/python -m pytest tests/integration/test_examples_installed.py --empty-environment

.PHONY: compatibility
compatibility: $(READY) ## Test with the oldest and newest versions of what we stand on (ARGS="oldest"; needs uv)
	$(BIN)/python -m tools.compatibility $(ARGS)

.PHONY: fuzz
fuzz: $(READY) ## Fuzz every parser of a stranger's bytes (ARGS="plan ledger --seconds 600")
	@$(BIN)/python -c 'import atheris' 2>/dev/null || $(BIN)/python -m pip install --quiet 'atheris>=3'
	$(BIN)/python -m fuzz $(ARGS)

AUDIT := build/audit

$(AUDIT)/.ready:
	@$(PYTHON) -m venv $(AUDIT)
	@$(AUDIT)/bin/python -m pip install --quiet 'cyclonedx-bom>=7' 'pip-audit>=2.10'
	@touch $@

.PHONY: sbom
sbom: $(READY) $(AUDIT)/.ready ## List what is installed in .venv, with licences that metadata name, in dist/sbom.json (CycloneDX)
	@mkdir -p dist
	$(AUDIT)/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible -o dist/sbom.json $(BIN)/python

.PHONY: advisories
advisories: $(READY) $(AUDIT)/.ready ## Ask PyPI for known vulnerabilities of the installed packages (needs the web)
	$(AUDIT)/bin/pip-audit --strict --skip-editable --path $$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')

.PHONY: check
check: $(READY) ## Lint, format check and strict types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.PHONY: format
format: $(READY) ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: house
house: $(READY) ## Draw the pictures of docs/explanation/house.md from the imports
	$(BIN)/python tools/house.py

.PHONY: pages
pages: $(READY) ## Write what pages of docs/ take from the source (ARGS=--notebooks: run those too)
	$(BIN)/python -m tools.pages $(ARGS)

.PHONY: docs
docs: $(READY) ## Build docs/ as a site in build/site, without the web
	$(BIN)/python -m tools.site

.PHONY: clean
clean: ## Remove the environment, caches and results
	rm -rf $(VENV) build results .pytest_cache .mypy_cache .ruff_cache .hypothesis
