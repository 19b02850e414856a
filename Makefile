# Two commands set everything up on a fresh machine:
#   make train   creates .venv, installs, and fine-tunes on the embedded data set
#   make test    creates .venv, installs, and runs lint, types and tests

PYTHON ?= python3
BIN := .venv/bin

.PHONY: venv train test

venv: .venv/installed

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

train: venv
	$(BIN)/python tools/train.py --freeze box_classifier

test: venv
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2 --dist loadfile
