# Two commands for a newcomer: `make demo` and `make test`. Both make .venv first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test slow lint bench clean

demo: $(VENV)/ready
	$(BIN)/bnas demo

# Two processes of one thread each: more threads than cores slow torch down many times.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not slow"

slow: $(VENV)/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 -m slow

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/mypy
	PYTHONPATH=tests/typing $(BIN)/lint-imports --no-cache

# The package is installed editable; a change of pyproject or of the pins installs again.
$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("bnas needs Python 3.10 to 3.12, this is " + sys.version.split()[0] + "; choose one with: make PYTHON=python3.11") if not (3, 10) <= sys.version_info[:2] <= (3, 12) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[all,dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
