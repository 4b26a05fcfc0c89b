# Everything a checkout needs: `make demo` is the main job, `make test` and `make check` are for contributors.
# Variables: PYTHON (3.11 or newer), ARGS (passed to the command behind demo and test), WORKERS (parallel tests),
# PIP_ARGS (more options for pip, for example the index of another torch build).

ifeq ($(origin PYTHON), undefined)
PYTHON := $(shell python3.11 -c '' 2>/dev/null && echo python3.11 || echo python3)
endif
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq install -c constraints.txt $(PIP_ARGS)
RUNTIME := $(VENV)/.runtime-installed
DEV := $(VENV)/.dev-installed
DOCS := $(VENV)/.docs-installed
WORKERS ?= 2
ARGS ?=

.DELETE_ON_ERROR:
.PHONY: help setup dev demo test check docs clean

help:  ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 16

setup: $(RUNTIME)  ## make .venv with what efface needs to run (about 3 minutes, once)

dev: $(DEV)  ## add the test and lint tools to .venv (about half a minute, once)

demo: $(RUNTIME)  ## the whole job on the embedded model, left under runs/demo (ARGS=... go to `efface demo`)
	@echo "demo: detoxify the embedded model and write runs/demo/report.html (it prints its own estimate)"
	@$(BIN)/efface demo -o runs/demo $(if $(filter --overwrite,$(ARGS)),,--resume) $(ARGS)

# One thread a worker: the tests use tiny models, for which more threads only get in each other's way.
test: $(DEV)  ## run the tests (ARGS=... go to pytest, for example ARGS=--full)
	@echo "test: pytest with $(WORKERS) workers (a few minutes)"
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

check: $(DEV)  ## lint, format and types
	@echo "check: ruff, then mypy (about a minute the first time)"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

docs: $(DOCS)  ## the documents and a reference of the docstrings as a static site, site/index.html
	@echo "docs: build site/ (half a minute)"
	@$(BIN)/python scripts/make_docs.py -o site

clean:  ## remove .venv, caches and build products; runs/ is kept
	rm -rf $(VENV) build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "efface needs Python 3.11 or newer and $(PYTHON) is not: make PYTHON=/path/to/python3.11 ..." >&2; exit 2; }
	@echo "setup: create $(VENV) (a few seconds)"
	@$(PYTHON) -m venv $(VENV)

# torch goes first and alone: the rest then takes the build that is there instead of choosing another.
$(RUNTIME): pyproject.toml constraints.txt | $(BIN)/python
	@echo "setup: install torch (one to two minutes)"
	@$(PIP) torch
	@echo "setup: install efface and its other dependencies (about a minute)"
	@$(PIP) -e .
	@touch $@

$(DEV): $(RUNTIME)
	@echo "setup: install the test and lint tools (about half a minute)"
	@$(PIP) -e '.[eval,trl,docs,dev]'
	@touch $@

$(DOCS): $(RUNTIME)
	@echo "setup: install what builds the documentation (a few seconds)"
	@$(PIP) -e '.[docs]'
	@touch $@
