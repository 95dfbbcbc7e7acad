# Everything from a fresh clone, with Python, make and git: `make demo`, `make test`, `make docs`, `make release`.
VENV ?= .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml setup.py
# Test processes, one thread each: one for each core, at most 4.
WORKERS ?= auto

.PHONY: help demo test lint docs release clean
.DELETE_ON_ERROR:

help:
	@echo "make demo   train, evaluate and report on the CPU; ends at outputs/demo/report.html"
	@echo "make test   ruff, mypy and pytest"
	@echo "make lint   ruff and mypy only"
	@echo "make docs   the site of the documentation; ends at outputs/site/index.html"
	@echo "make release  wheel and sdist in dist/, checked, installed anew and tried"
	@echo "make clean  remove caches and build products; keeps $(VENV) and outputs"
	@echo "Variables: VENV=$(VENV) (where to install), PYTHON=... (which Python makes it), WORKERS=$(WORKERS) (test processes)"

# `jepa train experiment=demo`, evaluate and report, in one process: what they import is imported once.
demo: $(VENV)/.installed
	$(BIN)/python -c "from jepa.cli import main; raise SystemExit(main(['train', 'experiment=demo']) \
		or main(['evaluate', 'checkpoint=outputs/demo/checkpoint']) \
		or main(['report', 'evaluation=outputs/demo/evaluation']))"

test: lint
	$(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 4 --dist worksteal

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: $(VENV)/.installed-test
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

release: $(VENV)/.installed-test
	$(BIN)/python -m pip install -e '.[release]'
	rm -rf build dist
	$(BIN)/python -m build
	$(BIN)/python -m twine check --strict dist/*
	$(BIN)/python scripts/try_release.py dist/*.whl

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# The stamps make a second call instant; the test requirements include the others.
$(VENV)/.installed: $(SOURCES) | $(BIN)/python
	$(BIN)/python -m pip install -e '.[pretrained]'
	@touch $@

$(VENV)/.installed-test: $(SOURCES) | $(BIN)/python
	$(BIN)/python -m pip install -e '.[test]'
	@touch $(VENV)/.installed $@

# The first Python that is new enough and can make a virtual environment with pip.
USABLE := import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 14))

$(BIN)/python:
	@for candidate in $(or $(PYTHON),python3 python3.13 python3.12 python3.11 python3.10 python); do \
	    if $$candidate -c '$(USABLE)' >/dev/null 2>&1; then \
	        echo "$(VENV): $$($$candidate --version)"; \
	        $$candidate -m venv $(VENV) && exit 0; \
	        rm -rf $(VENV); exit 1; \
	    fi; \
	done; \
	echo "error: no Python >= 3.10, < 3.14 with venv and ensurepip was found;" \
	     "install one or name it: make PYTHON=/path/to/python3" >&2; \
	exit 1
