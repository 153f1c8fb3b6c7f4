# Two commands: `make run` and `make test`. Both make .venv and install what they need first.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: run test check install clean

run: .venv/installed
	$(BIN)/sparring run

# a file shares what it has trained among its tests, so they stay together; long files (laws, parity, trajectory) come first
test: .venv/installed
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_layers.py tests/test_public.py

install: .venv/installed

# torch comes first and by its constraint, so that the CPU build is chosen where one is offered
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(v < (3, 11) and "Sparring needs Python 3.11 or later, this is %d.%d; name another with make PYTHON=..." % v)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch .venv/installed

clean:
	rm -rf .venv runs
