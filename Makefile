# Two commands: `make serve` and `make test`. ARGS are passed on, e.g. make serve ARGS="--port 8123".
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

.PHONY: serve demo test test-all check compiled test-compiled clean

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

# The same product with its hot path compiled, in an environment of its own. Needs a C compiler.
compiled: .venv-compiled/.installed

test-compiled: .venv-compiled/.installed
	@.venv-compiled/bin/python -m pytest -q -n 2 --dist loadgroup \
	  -m "not heavy and not peers and not interpreted" tests/core tests/server tests/monitoring tests/twin

clean:
	rm -rf $(VENV) .venv-compiled build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

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

.venv-compiled/.installed: pyproject.toml hatch_build.py $(shell find src -name '*.py')
	[ -x .venv-compiled/bin/python ] || $(PYTHON) -m venv .venv-compiled
	HEADRACE_COMPILE=1 .venv-compiled/bin/python -m pip install --disable-pip-version-check \
	  $$([ -t 1 ] || echo --quiet) '.[dev]'
	@touch $@
