# Each of these works as the first command in a fresh clone: .venv is made and filled on demand.
#   make demo    train two small models, make them forget a class, print one table
#   make test    everything that is checked: lint, types, docs, tests, code blocks, examples
#   make fast    only the tests that take a few seconds
#   make check   lint, types, docs with warnings as errors
#   make docs    build the documentation into docs/_build/html
#   make format  let ruff rewrite what it can

VENV ?= .venv
BIN := $(VENV)/bin
CODE := forgetkit adapters/forgetkit_adapters tests examples docs
PYTEST_FLAGS ?=

# One thread a process: the tests run in several processes, and the demo's models are so small that
# threads wait for each other longer than they compute.
export OMP_NUM_THREADS ?= 1
# Compiled code is kept: many tests start processes, and each would compile all that it imports.
unexport PYTHONDONTWRITEBYTECODE
WORKERS ?= 2

.PHONY: demo test fast check lint types docs format clean
.DEFAULT_GOAL := test

demo: $(VENV)/.installed
	@$(BIN)/forgetkit demo --out demo-output

test: check
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(PYTEST_FLAGS)

fast: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not slow" $(PYTEST_FLAGS)

check: lint types docs

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy $(CODE)

docs: $(VENV)/.installed-dev
	$(BIN)/python -m sphinx -W --keep-going -n -q -b html docs docs/_build/html

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) docs/_build demo-output build dist .mypy_cache .pytest_cache .ruff_cache

$(VENV)/.installed: pyproject.toml .ci/install
	@.ci/install $(VENV)
	@touch $@

$(VENV)/.installed-dev: pyproject.toml .ci/install
	@.ci/install $(VENV) dev
	@touch $@ $(VENV)/.installed
