PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ROOM ?=
WORKERS ?= 2
# Two workers of one thread each: more threads than cores would wait for each other.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal tests/$(ROOM)

.PHONY: demo test slow lint clean

demo: $(VENV)/ready  ## The main job, end to end, on the packaged weights.
	$(BIN)/python examples/demo.py
	$(BIN)/python examples/photographs.py

test: $(VENV)/ready  ## The test suite; ROOM=models runs one room's tests.
	$(PYTEST) -m "not slow"

slow: $(VENV)/ready  ## Its slow part: every entry of the zoo and every recipe.
	$(PYTEST) -m slow

lint: $(VENV)/ready  ## Formatting, lint, dependencies, types, and which room may import which.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/deptry zoo export
	rm -rf build/types
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --target build/types .
	cd build/types && $(abspath $(BIN))/mypy --config-file ../../pyproject.toml --package zoo
	cd build/types && $(abspath $(BIN))/lint-imports --no-cache ../../pyproject.toml

$(VENV)/ready: pyproject.toml setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=…"; exit 1; }
	@echo "Installing into $(VENV): torch and what it needs, a few minutes the first time"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip setuptools
	$(BIN)/python -m pip install --quiet --editable .[test]
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info demo-output
