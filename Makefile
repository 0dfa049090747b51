# Every target sets itself up: it needs Python >= 3.10 and git, nothing else.
#
#   make figures   run the notebooks offline, refresh figures/, print a table      (about 13 minutes after the install)
#   make test      style, types, tests, doctests, notebooks against their expected values
#   make bench     benchmarks, as a table          make lint   style, types, imports, links
#   make coverage  which lines of the package the quick tests run; at least 95 % of them
#   make tidy      puts right what lint can put right
#   make lab       JupyterLab in notebooks/        make site   book, guide, API reference, search in site/
#   make clean     remove what the targets made, the environment included
#
# The same without make, in the repository's root (on Windows write .venv\Scripts\ for .venv/bin/):
#
#   figures: python3 -m venv .venv && .venv/bin/pip install -q -c constraints.txt -e ".[dev]" && .venv/bin/snows reproduce
#   test:    python3 -m venv .venv && .venv/bin/pip install -q -c constraints.txt -e ".[dev]" && .venv/bin/ruff check . && .venv/bin/pytest -q -n auto
#
# PYTHON=python3.12 chooses the interpreter, ARGS="..." is handed to the tool that a target runs.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
export MPLBACKEND ?= Agg
export OMP_WAIT_POLICY ?= PASSIVE
# Tests in processes side by side, one thread each.
SIDE_BY_SIDE := -n auto --maxprocesses 4 --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help figures test coverage bench lint tidy lab site clean

help:
	@sed -n 's/^#   //p' Makefile

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "error: $(PYTHON) is missing or older than Python 3.10; name another one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "error: $(PYTHON) cannot make a virtual environment; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@echo "installing into $(VENV) (PyTorch is large: several minutes the first time)"
	@$(BIN)/python -m pip install -q -c constraints.txt -e ".[dev]" || { \
	  echo "error: the installation failed; the first line that pip marks as an error says why" >&2; exit 1; }
	@touch $@

figures: $(READY)
	$(BIN)/snows reproduce $(ARGS)

# Types, imports and what `make lint` has beside style are tests, too: they run side by side with the others.
test: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q $(SIDE_BY_SIDE) $(ARGS)

coverage: $(READY)
	$(BIN)/coverage erase
	OMP_NUM_THREADS=1 COVERAGE_FILE=$(CURDIR)/.coverage $(BIN)/coverage run -m pytest -q $(SIDE_BY_SIDE) $(ARGS)
	$(BIN)/coverage combine -q
	$(BIN)/coverage report

bench: $(READY)
	$(BIN)/python -m pytest -q -s tests/benchmarks --benchmark-only -m "" $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/strip_notebooks.py --check
	$(BIN)/python tools/links.py --check

tidy: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/python tools/strip_notebooks.py
	$(BIN)/python tools/links.py

lab: $(READY)
	env -u MPLBACKEND $(BIN)/jupyter lab --notebook-dir=notebooks $(ARGS)

site: $(READY)
	$(BIN)/python tools/build_site.py

clean:
	rm -rf $(VENV) runs site build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
