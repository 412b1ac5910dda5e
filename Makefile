# `make` without a target lists all targets. Targets create the virtual environment if they need it.
# ARGS passes options on: make train ARGS="model=lstm seed=1". PYTHON chooses the interpreter.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo train test test-oldest lint format types docs leaderboard bench faults dist lock clean

PYTHON ?=
ARGS ?=

PY := .venv/bin/python
INSTALLED := .venv/.installed
# This file exists while an installation runs. After an interruption, the next one starts afresh. It
# lies beside .venv, so that it also survives an interrupted removal of .venv.
UNFINISHED := .venv-unfinished
# Run uv instead of only looking for it: a version manager's shim can be on the PATH and not work.
HAVE_UV := uv --version >/dev/null 2>&1
TYPES = $(PY) -m mypy captioning examples $(wildcard *.py) && $(PY) -m mypy -p hydra_plugins.captioning_sweeps
PYTEST = PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(PY) -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' Makefile

setup: $(INSTALLED)  ## create .venv with exactly the packages of requirements.lock

# Every demo has its own folder, so that its leaderboard shows only its own runs. The photograph is
# one that matplotlib brings along. It comes first, since the training takes minutes.
demo: $(INSTALLED)  ## caption a photograph; train with and without attention on drawn scenes; compare
	@set -e; runs=runs/demo/$$(date +%Y-%m-%d_%H-%M-%S); \
	photo=$$($(PY) -c 'import matplotlib; print(matplotlib.get_data_path())')/sample_data/grace_hopper.jpg; \
	set -x; \
	$(PY) caption.py images="$$photo" figures=$$runs/photograph; \
	$(PY) train.py experiment=scenes model=attn_lstm model.attention_dim=128 model.word_query=true hydra.run.dir=$$runs/attn_lstm $(ARGS); \
	$(PY) train.py experiment=scenes model=lstm hydra.run.dir=$$runs/lstm $(ARGS); \
	$(PY) -m captioning leaderboard $$runs; { set +x; } 2>/dev/null; \
	echo "Open $$runs/leaderboard.html in a browser, and see $$runs/photograph."

train: $(INSTALLED)  ## train and score a model; options in ARGS="model=lstm seed=1"
	$(PY) train.py $(ARGS)

# The test processes use all cores; with several threads each, they would wait for each other. They
# keep what they compile of Python, or each would compile all modules with their checks of types. The
# files are begun in the order of tests/conftest.py. mypy, which uses one core, runs beside them,
# and what it says is printed after them.
test: lint  ## run everything that CI runs: lint, types and the test suite
	@said=$$(mktemp); ($(TYPES)) > "$$said" 2>&1 & types=$$!; \
	trap 'kill $$types 2>/dev/null; rm -f "$$said"' EXIT; trap 'exit 130' INT; trap 'exit 143' TERM; \
	status=0; set -x; $(PYTEST) --durations 15 --durations-min 3 $(ARGS) || status=$$?; \
	{ set +x; } 2>/dev/null; wait $$types || status=1; cat "$$said"; exit $$status

# In an environment of its own, .venv-oldest, which takes gigabytes and can be deleted afterwards. Old
# versions of some libraries warn about newer ones of others, so that warnings are no errors here.
test-oldest:  ## run the tests with the lowest versions that pyproject.toml allows (needs uv)
	@$(HAVE_UV) || { echo 'make test-oldest needs uv on the PATH.' >&2; exit 1; }
	uv venv --quiet --clear --python 3.11 .venv-oldest
	uv pip install --quiet --python .venv-oldest/bin/python --resolution lowest-direct -e '.[dev]'
	$(subst $(PY),.venv-oldest/bin/python,$(PYTEST)) -W default $(ARGS)

lint: $(INSTALLED)  ## check style and formatting
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

format: $(INSTALLED)  ## apply the linter's fixes, and format
	$(PY) -m ruff check --fix-only .
	$(PY) -m ruff format .

types: $(INSTALLED)  ## check types
	$(TYPES)

docs: $(INSTALLED)  ## make a site of the documentation, which needs no network to be read
	$(PY) docs/site/build.py

leaderboard: $(INSTALLED)  ## rank the runs below runs/, and write Markdown and CSV beside them
	$(PY) -m captioning leaderboard runs/ $(ARGS)

bench: $(INSTALLED)  ## compare speed with references and hardware limits; parts in ARGS="training beam"
	$(PY) -m benchmarks $(ARGS)

faults: $(INSTALLED)  ## break files, processes and disks on purpose, and count what is lost; parts in ARGS="images"
	$(PY) -m faults $(ARGS)

dist: $(INSTALLED)  ## build the wheel and the source distribution in dist/, and check them for PyPI
	rm -rf dist build
	$(PY) -m build --no-isolation
	$(PY) -m twine check --strict dist/*

lock:  ## resolve pyproject.toml into a new requirements.lock (needs uv)
	@$(HAVE_UV) || { echo 'make lock needs uv on the PATH.' >&2; exit 1; }
	uv pip compile --generate-hashes --universal --python-version 3.11 --extra dev --no-emit-index-url --no-emit-find-links pyproject.toml -o requirements.lock

clean:  ## remove caches and build products; data, runs/ and .venv stay
	rm -rf .mypy_cache .pytest_cache .ruff_cache .venv-oldest build dist captioning.egg-info
	find . \( -path ./.venv -o -path ./runs -o -path ./data \) -prune -o \
	    -type d -name __pycache__ -prune -exec rm -rf {} +

# This puts the clone on Python's path. Otherwise, a clone in a folder called captioning would hide
# the package from scripts beside that folder.
EDITABLE := editable_mode=compat

# The package is built with the locked setuptools, so that nothing is fetched without a hash. The
# interpreter's real path is used, because the one of an activated .venv is about to be removed.
$(INSTALLED): requirements.lock
	@set -e; \
	suits() { "$$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }; \
	if [ -e $(UNFINISHED) ] || ! suits $(PY); then \
	    python=''; \
	    for candidate in $(if $(PYTHON),"$(PYTHON)",python3.11 python3.14 python3.13 python3.12 python3); do \
	        suits "$$candidate" || continue; \
	        python=$$("$$candidate" -c 'import os, sys; print(os.path.realpath(sys.executable))'); break; \
	    done; \
	    if [ -z "$$python" ]; then \
	        echo '$(if $(PYTHON),$(PYTHON) is not a Python of 3.11 or newer,There is no Python of 3.11 or newer on the PATH): install one, or name it with make PYTHON=/path/to/python3.' >&2; \
	        exit 1; \
	    fi; \
	    touch $(UNFINISHED); rm -rf .venv; \
	    if $(HAVE_UV); then uv venv --quiet --python "$$python" .venv; \
	    else "$$python" -m venv .venv; fi; \
	fi; \
	touch $(UNFINISHED); \
	if $(HAVE_UV); then \
	    uv pip install --python $(PY) --require-hashes -r requirements.lock; \
	    uv pip install --python $(PY) --no-deps --no-build-isolation --config-setting $(EDITABLE) -e .; \
	else \
	    $(PY) -m pip --version >/dev/null 2>&1 || $(PY) -m ensurepip; \
	    $(PY) -m pip install --require-hashes -r requirements.lock; \
	    $(PY) -m pip install --no-deps --no-build-isolation --config-settings $(EDITABLE) -e .; \
	fi; \
	touch $@; rm $(UNFINISHED)
