# Two commands: `make serve` and `make test`. ARGS are passed on, e.g. make serve ARGS="--port 8123".
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

.PHONY: serve demo test test-all check bench clean

serve: $(VENV)/.installed-serve
	@exec $(BIN)/headrace serve $(ARGS)

demo: $(VENV)/.installed-serve
	@$(BIN)/python benchmarks/demo/demo.py $(ARGS)

test: $(VENV)/.installed-dev
	@scripts/check
	@scripts/test $(ARGS)

test-all: $(VENV)/.installed-dev
	@scripts/test-all

check: $(VENV)/.installed-dev
	@scripts/check

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "headrace needs Python 3.11 or newer; this is $$($(PYTHON) --version). Name another: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed-serve: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check $$([ -t 1 ] || echo --quiet) -e '.[engine,fast]'
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check $$([ -t 1 ] || echo --quiet) -e '.[dev]'
	@touch $@ $(VENV)/.installed-serve
