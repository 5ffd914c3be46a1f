# Everything a developer runs. Needs Python 3.11 or newer; the rest is installed into a virtual environment.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
HOST ?= 127.0.0.1
PORT ?= 8000

.PHONY: help test beside tests-beside lint demo bench pin clean

help:
	@echo "make test    run the tests on every processor, on servers that they start themselves"
	@echo "             (one file: TESTS=tests/memory/test_rows.py; one after the other: TESTS=-n0)"
	@echo "make beside  run the tests beside other packages, which are installed into an environment of their own"
	@echo "make lint    formatting, rules, types, layers"
	@echo "make demo    serve the sample on http://$(HOST):$(PORT)"
	@echo "make bench   measure against other ways to do it (50 minutes; BENCH=--quick: 10)"
	@echo "make pin     renew requirements/*.txt (needs uv)"

$(VENV)/%.installed: requirements/%.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$$($(PYTHON) --version) is too old: run make PYTHON=python3.11, or newer." >&2; exit 1; }
	@echo "Installing requirements/$*.txt into $(VENV): once, in a few minutes."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement $<
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable .
	@touch $@

test: $(VENV)/dev.installed
	$(BIN)/python -m pytest --numprocesses=auto --maxprocesses=8 --dist=worksteal --ignore=tests/beside $(TESTS)

beside:
	@$(MAKE) --no-print-directory VENV=.venv-beside tests-beside

tests-beside: $(VENV)/beside.installed
	$(BIN)/python -m pytest --numprocesses=auto --maxprocesses=8 --dist=worksteal $(or $(TESTS),tests/beside)

lint: $(VENV)/dev.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

demo: $(VENV)/dev.installed
	cd sample && ../$(BIN)/python manage.py migrate --verbosity 0
	cd sample && ../$(BIN)/python manage.py demo
	@echo
	@echo "  http://$(HOST):$(PORT)/          the topics, from memory: a page here, JSON for curl"
	@echo "  http://$(HOST):$(PORT)/board/    the board, served by Django: write something, and / has it too"
	@echo "  http://$(HOST):$(PORT)/refresh/  load again now, whether anything was written or not"
	@echo "  http://$(HOST):$(PORT)/admin/    Django's admin: demo, password demo"
	@echo "  http://$(HOST):$(PORT)/docs      FastAPI's documentation of the API"
	@echo
	cd sample && ../$(BIN)/python -m uvicorn main:app --host $(HOST) --port $(PORT)

bench: $(VENV)/bench.installed
	$(BIN)/python -m benchmarks all $(BENCH)

pin:
	for group in dev beside bench; do \
		uv pip compile --quiet --universal --python-version 3.11 --no-emit-index-url --upgrade \
			--custom-compile-command "make pin" --extra drf --group $$group pyproject.toml \
			--output-file requirements/$$group.txt || exit; \
	done

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
