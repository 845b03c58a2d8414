# Every target sets up what it needs by itself; only Python >= 3.11 (with pip and venv) and make are assumed.
#   make test PYTHON=python3.13 VENV=.venv-newest      another interpreter, in a virtual environment of its own
#   make demo ARGS="--help"                            flags of the program
#   make bench ARGS="--full"                           hours, on an idle machine
PYTHON ?= python3
VENV ?= .venv
ARGS ?=

BIN := $(VENV)/bin
SOURCES := tbptt experiments benchmarks tests notebooks
# Without bytecode every test worker, and every program that a test starts, compiles all modules again.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:  # two pips in one virtual environment would trip over each other

.PHONY: help
help:  ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: $(VENV)/.installed-experiments  ## the window trade-off: what k2 buys and costs; the last line of stdout is its JSON
	@$(BIN)/python -m experiments.window_tradeoff $(ARGS)

.PHONY: setup
setup: $(VENV)/.installed-runs  ## what every program in experiments/ needs; then: . .venv/bin/activate

.PHONY: bench
bench: $(VENV)/.installed-peers  ## all benchmarks in their quick form, and benchmarks/README.md; ARGS=--full for the real ones
	@$(BIN)/python -m benchmarks $(ARGS)

.PHONY: test
test: $(VENV)/.installed-test  ## the essential tests: every function and identity once, minutes
	@$(BIN)/python -c 'import sys, jax; print("testing with Python", sys.version.split()[0], "and jax", jax.__version__)'
	@$(BIN)/python -m pytest -n 2 --dist loadfile -m "not exhaustive" $(ARGS)

.PHONY: test-all
test-all: $(VENV)/.installed-test  ## every test: the essential ones with annotated shapes checked, then all parameters, whole programs, killed runs
	@$(BIN)/python -c 'import sys, jax; print("testing with Python", sys.version.split()[0], "and jax", jax.__version__)'
	@failed=0; \
	$(BIN)/python -m pytest -n 2 --dist loadfile -rs -m "not exhaustive" --jaxtyping-packages=tbptt,beartype.beartype $(ARGS) || failed=1; \
	$(BIN)/python -m pytest -n 2 --dist loadfile -rs -m exhaustive $(ARGS) || [ $$? -eq 5 ] || failed=1; \
	exit $$failed

.PHONY: test-oldest
test-oldest:  ## the essential tests with exactly the oldest versions that pyproject.toml allows
	@$(PYTHON) tests/support/oldest.py > .oldest.txt
	@PIP_CONSTRAINT="$(CURDIR)/.oldest.txt" $(MAKE) --no-print-directory test VENV=.venv-oldest

.PHONY: mutants
mutants: $(VENV)/.installed-test  ## change the mathematics in 120 places, one at a time: which changes do the tests notice? an hour
	@$(BIN)/python -m tests.mutation $(ARGS)

.PHONY: fuzz
fuzz: $(VENV)/.installed-test  ## 10,000 generated calls against a reference in numpy; ten minutes
	@$(BIN)/python -m tests.fuzz --out tests/fuzz/results.json $(ARGS)

.PHONY: check
check: lint types notebooks test  ## all that must pass before a commit: lint, types, notebooks, the essential tests

.PHONY: lint
lint: $(VENV)/.installed-all  ## ruff: formatting and mistakes; import-linter: the layers; changes nothing
	@$(BIN)/ruff format --check $(wildcard $(SOURCES))
	@$(BIN)/ruff check $(wildcard $(SOURCES))
	@$(BIN)/lint-imports

.PHONY: format
format: $(VENV)/.installed-all  ## ruff: format, and fix what can be fixed
	@$(BIN)/ruff format $(wildcard $(SOURCES))
	@$(BIN)/ruff check --fix $(wildcard $(SOURCES))

.PHONY: types
types: $(VENV)/.installed-all  ## basedpyright
	@$(BIN)/basedpyright --pythonpath $(BIN)/python

.PHONY: notebooks
notebooks: $(VENV)/.installed-all  ## run every notebook in a fresh kernel; the files stay as they are
	@$(BIN)/python notebooks/check.py

.PHONY: clean
clean:  ## remove virtual environments, caches and builds (runs/ stays)
	@rm -rf .venv .venv-* .oldest.txt .jax_cache .pytest_cache .ruff_cache dist ./*.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One stamp for each set of dependencies, so that `make demo` downloads no developer's tools; a set brings the smaller ones.
$(VENV)/.installed-experiments: GROUPS := experiments
$(VENV)/.installed-runs: GROUPS := experiments runs
$(VENV)/.installed-runs: INCLUDES := experiments
$(VENV)/.installed-peers: GROUPS := experiments peers
$(VENV)/.installed-peers: INCLUDES := experiments
$(VENV)/.installed-test: GROUPS := experiments test
$(VENV)/.installed-test: INCLUDES := experiments runs
$(VENV)/.installed-all: GROUPS := experiments runs test dev notebooks
$(VENV)/.installed-all: INCLUDES := experiments runs test

$(VENV)/.installed-%: pyproject.toml $(VENV)/.created
	@echo "Installing tbptt and $(GROUPS) into $(VENV) ..." >&2
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check 'pip>=25.1' >&2  # --group is new in it
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable . $(GROUPS:%=--group %) >&2
	@touch $@ $(INCLUDES:%=$(VENV)/.installed-%)

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "error: tbptt needs Python 3.11 or newer; '$(PYTHON)' is: $$($(PYTHON) --version 2>&1 | tail -n 1)" >&2; \
	  echo "Name another interpreter: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) >&2 || { \
	  echo "error: '$(PYTHON) -m venv' failed; Debian and Ubuntu have it in the package python3-venv." >&2; exit 1; }
	@touch $@
