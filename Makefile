# `make demo` and `make test` set up everything they need: Python 3.11 or newer and make are enough.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := runs/demo

# Workers and the commands that the tests start then compile each module of Python once among them.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test slow mutants campaigns check lint types docs tables notebooks setup requirements clean

demo: $(VENV)/installed  ## train an IWAE on the bundled digits, measure it, draw it
	rm -rf $(DEMO)
	@echo "Training on the digits, then measuring the model and drawing its samples:"
	$(BIN)/iwae train --preset digits/iwae-k20 --out $(DEMO)
	$(BIN)/iwae evaluate $(DEMO) --weights best --k 1 50 5000
	$(BIN)/iwae figures $(DEMO) --weights best

# Where the quick tests check shapes and types when they run; the long ones do everywhere.
CHECKED := --jaxtyping-packages=iwae.models,iwae.inference,iwae.objectives,iwae.evaluation,iwae.training,beartype.beartype

test: setup  ## the tests, but for the long ones
	$(BIN)/python -m pytest -q -n auto --dist worksteal --durations 10 -m "not slow" $(CHECKED)

slow: setup  ## the long ones
	$(BIN)/python -m pytest -q -n auto --dist worksteal -m slow

mutants: setup  ## plant faults, and see that the tests notice each
	$(BIN)/python tests/mutants.py

campaigns: setup  ## kills, faults, exhausted memory and damaged files, in great numbers (hours)
	$(BIN)/python tests/campaigns/inputs.py --count 100000
	$(BIN)/python tests/campaigns/faults.py
	$(BIN)/python tests/campaigns/memory.py
	$(BIN)/python tests/campaigns/kills.py --count 1000

check: setup lint types docs test  ## what CI runs

lint: setup
	$(BIN)/ruff check src tests benchmarks experiments docs
	$(BIN)/ruff format --check src tests benchmarks experiments docs

types: setup
	$(BIN)/mypy

docs: setup  ## the documentation site, into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

tables: setup  ## fill in the tables of all pages and redraw their figures from the records in results/
	$(BIN)/python docs/tools/pack.py
	$(BIN)/python docs/tools/tables.py
	$(BIN)/python docs/tools/figures.py
	$(BIN)/python benchmarks/time_to_nll.py --json results/benchmarks/time_to_nll.json --figure docs/images/time-to-nll.png

notebooks: setup  ## run the notebooks of the documentation, and store what they show
	$(BIN)/python docs/tools/notebooks.py docs/notebooks/*.ipynb

setup: $(VENV)/installed-dev

# The demo needs what a user installs; tests, types and docs need more, of the same versions.
$(VENV)/installed: requirements.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "iwae needs Python 3.11 or newer; name one: make PYTHON=python3.12")'
	@echo "Installing the packages of requirements.txt into $(VENV), which takes about half a minute:"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

$(VENV)/installed-dev: requirements-dev.txt $(VENV)/installed
	@echo "Installing the packages for tests and documentation, of requirements-dev.txt:"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.txt
	touch $@

PIN := uv pip compile --universal --fork-strategy fewest --generate-hashes --no-emit-index-url \
  --no-header --no-annotate --python-version 3.11 pyproject.toml

requirements:  ## pin the dependencies anew (needs uv)
	$(PIN) --extra dev --upgrade -o requirements-dev.txt
	cp requirements-dev.txt requirements.txt  # so that both hold the same versions
	echo 'setuptools>=77' | $(PIN) - -o requirements.txt

clean:
	rm -rf $(VENV) build dist site src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .jax_cache
