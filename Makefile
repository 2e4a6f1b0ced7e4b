# `make` alone lists the targets. The virtual environment is made once, and installed again when pyproject.toml or
# constraints.txt change.
VENV ?= .venv
LAKE ?= demo-lake
PORT ?= 5000
OLDEST_SPARK := 4.0.1
BIN := $(VENV)/bin
READY := $(VENV)/.installed
AZURITE := $(VENV)/azurite/.installed
# A file's tests share servers and sessions, so that files, not tests, are handed out.
SIDE_BY_SIDE := -n 2 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast test-all test-oldest check bench ui clean

help:           ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

demo: $(READY)  ## the whole product once on real data: train, read, register, score (under 3 minutes; again adds to it)
	@$(BIN)/spark-tracking demo --lake $(LAKE)

ui: $(READY)    ## MLflow's web UI on the demo's lake, at http://127.0.0.1:5000
	@test -d $(LAKE) || { echo "There is no lake at $(LAKE) yet: run 'make demo' first." >&2; exit 1; }
	@$(BIN)/spark-tracking ui $(LAKE) --port $(PORT)

test: $(READY) $(AZURITE) ## the tests, without the slow ones (minutes)
	@$(BIN)/python -m pytest $(SIDE_BY_SIDE)

# No Java is found there, so that a test that starts a Spark and does not say so fails.
test-fast: $(READY) $(AZURITE) ## the tests that need no Spark and no JDK (3 minutes)
	@JAVA_HOME=/nonexistent $(BIN)/python -m pytest $(SIDE_BY_SIDE) -m "not slow and not spark"

test-all: $(READY) $(AZURITE) ## all tests, with the slow ones, and the sources on the oldest Spark
	@$(BIN)/python -m pytest $(SIDE_BY_SIDE) -m "slow or not slow"
	@$(MAKE) test-oldest

test-oldest: $(READY) ## the sources on the oldest Spark, classic and Connect (2 minutes; all versions: tests/sources/matrix.sh)
	@PYTHON=$(abspath $(BIN))/python MODES="classic connect" sh tests/sources/matrix.sh $(abspath $(VENV))/matrix $(OLDEST_SPARK)

check: $(READY) ## what needs no test run: ruff, mypy --strict, layers and circles (import-linter), sizes, shellcheck
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/house.py
	$(BIN)/shellcheck scripts/preflight .ci/run $(wildcard init_scripts/*.sh tests/*/*.sh)

bench: $(READY) ## each speed claim against its peer, in the same run (long)
	@for file in benchmarks/[a-z]*.py; do echo "== $$file"; $(BIN)/python "$$file" || exit 1; done

clean:          ## remove the virtual environment, caches and build leftovers; the demo's lake stays
	rm -rf $(VENV) .ci-venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +

$(READY): pyproject.toml constraints.txt
	@python=$$(sh scripts/preflight) && \
	{ test -x $(BIN)/python || { echo "Making $(VENV) with $$python ..."; "$$python" -m venv $(VENV); }; } && \
	echo "Installing (a few minutes on the first time) ..." && \
	$(BIN)/python -m pip install --quiet --use-pep517 --disable-pip-version-check --constraint constraints.txt --editable '.[dev]' && \
	touch $@

# Azurite, which the tests of lakes on Azure start. Without npm they are left out, except in CI.
$(AZURITE): $(READY)
	@if command -v npm >/dev/null 2>&1; then \
	  npm install --silent --no-save --no-audit --no-fund --prefix $(VENV)/azurite azurite@3.35.0 >/dev/null; \
	else mkdir -p $(@D); fi
	@touch $@
