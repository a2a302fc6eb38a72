# Two commands for a newcomer: `make demo` and `make test`. Both make .venv first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test slow lint native aarch64 sanitize neon-report clean

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

# The C++ alone: native for this machine, aarch64 cross-built (g++-aarch64-linux-gnu) for the tests under qemu-user and
# for devices, sanitize with AddressSanitizer and UBSan.
native aarch64 sanitize: $(VENV)/ready
	PATH="$(abspath $(BIN)):$$PATH" cmake -S runtime_bench/native -B build/$@ $(CMAKE_FLAGS_$@) --log-level=NOTICE
	PATH="$(abspath $(BIN)):$$PATH" cmake --build build/$@ -j 2

CMAKE_FLAGS_aarch64 := -DCMAKE_TOOLCHAIN_FILE=aarch64.cmake
CMAKE_FLAGS_sanitize := -DBNAS_SANITIZE=ON

# What the NEON kernel should cost, from its machine code (needs g++-aarch64-linux-gnu and llvm-mca); not a measurement.
neon-report: $(VENV)/ready
	$(BIN)/python benchmarks/neon_report.py

# The package is installed editable; a change of pyproject, of the pins or of the C++ installs again.
$(VENV)/ready: pyproject.toml constraints.txt $(wildcard runtime_bench/native/*.cpp runtime_bench/native/*.h) runtime_bench/native/CMakeLists.txt
	$(PYTHON) -c 'import sys; sys.exit("bnas needs Python 3.10 to 3.12, this is " + sys.version.split()[0] + "; choose one with: make PYTHON=python3.11") if not (3, 10) <= sys.version_info[:2] <= (3, 12) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[all,dev]'
	@$(BIN)/python -c 'import bnas; bnas.ops_library_path()' 2>/dev/null || echo 'note: no native kernels; see why with: $(BIN)/pip install -v --no-deps -e .'
	touch $@

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
