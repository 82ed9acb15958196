# Everything runs in a virtual environment of its own; VENV=... names another one (it is made if it is missing).
VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin

.PHONY: install quickstart test test-all lint notebook clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[test,dev]'
	touch $@

quickstart: install
	$(BIN)/dux run quickstart

test: install lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not ray" --numprocesses auto --dist loadfile
	$(BIN)/python -m pytest -m "ray and not slow" --numprocesses 2 --dist loadfile

test-all: test
	$(BIN)/python -m pytest -m slow --numprocesses 2 --dist loadfile

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
