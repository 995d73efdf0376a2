# make demo: a real cine registered, then phantoms, training by surgery, held-out figures and a picture. make test: the test suite. Both are safe to run twice.
PYTHON ?= python3
PYTHON_VERSION = $(shell $(PYTHON) -c "import sys; print('%d.%d' % sys.version_info[:2])" 2>/dev/null)
PY := .venv/bin/python
BUNDLE := $(PY) -m monai.bundle run
NAME := gsmorph_cardiac_registration
VERSION = $(shell $(PY) -c "import json; print(json.load(open('configs/metadata.json'))['version'])")

.PHONY: help demo table test test-browser check lint zip export clean

help:
	@echo "make demo   a real cine registered (demo/sample), then training by surgery on phantoms, demo/registration.png (about 3 minutes)"
	@echo "make table DATASET_DIR=DIR [SUBSET=N] [EPOCHS=N] [TEST_DATASET_DIR=DIR]   the published comparison, in output/table/"
	@echo "make test   lint and the whole test suite"
	@echo "make test-browser   the report in headless chromium, which it installs where it can"
	@echo "make zip    the bundle as dist/$(NAME)_v<version>.zip"
	@echo "make export the shipped network of slices as dist/model.ts (TorchScript) and dist/model.onnx, the registration of stacks as dist/stack.ts, each compared with its network"
	@echo "make clean  remove what the others made, and .venv"

# An error of make's own is one line; a recipe that fails would add another.
.venv/.python:
	$(if $(filter 3.10 3.11 3.12 3.13,$(PYTHON_VERSION)),,$(error Python 3.10 to 3.13 is needed, $(PYTHON) is \
	    $(or $(PYTHON_VERSION),not there): make PYTHON=/path/to/python3.12 ...))
	$(PYTHON) -m venv .venv
	@touch $@

.venv/.runtime: requirements.txt .venv/.python
	$(PY) -m pip install --disable-pip-version-check -q -r requirements.txt
	@touch $@

# The package index drops old releases of ANTs, so that the tests do without it where they must.
.venv/.dev: requirements-dev.txt requirements.txt .venv/.python
	$(PY) -m pip install --disable-pip-version-check -q -r requirements-dev.txt
	$(PY) -m pip install --disable-pip-version-check -q antspyx==0.6.3 || echo "ANTs could not be installed: its tests skip"
	@touch $@ .venv/.runtime

# One thread: several wait for each other where a core is busy (docs/performance.md).
demo: export OMP_NUM_THREADS = 1
demo: .venv/.runtime
	$(PY) -m scripts register sample/SC-HF-I-2/SC-HF-I-2_4d.nii.gz --output_dir demo/sample
	$(PY) -m scripts.cardiac.phantom --root demo/phantoms
	$(BUNDLE) --config_file "['configs/train.yaml','configs/demo.yaml']"
	$(BUNDLE) --config_file "['configs/train.yaml','configs/evaluate.yaml','configs/demo.yaml']"
	@echo "look at demo/sample/SC-HF-I-2/report.html, the real cine, and demo/registration.png, a phantom; all figures are in demo/summary.json and demo/metrics.csv"

# Goes on where it was interrupted. SUBSET (subjects of each split) and EPOCHS make a short trial of it.
table: .venv/.dev
	$(if $(DATASET_DIR),,$(error make table DATASET_DIR=... needs a data set in the layout of ACDC or M&Ms))
	$(PY) -m benchmarks.table --dataset_dir "$(DATASET_DIR)" $(if $(SUBSET),--subset $(SUBSET)) $(if $(EPOCHS),--epochs $(EPOCHS)) \
	    $(if $(TEST_DATASET_DIR),--test_dataset_dir "$(TEST_DATASET_DIR)")

test: check
	OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --maxprocesses 4 --dist worksteal

# Without chromium the tests skip and say so.
test-browser: .venv/.dev
	$(PY) -m pip install --disable-pip-version-check -q playwright==1.65.2 pypdf==7.1.1
	$(PY) -m playwright install chromium || echo "playwright could not install chromium: the system's is taken where there is one"
	BROWSER_TESTS=1 $(PY) -m pytest tests/browser -rs

# The model zoo's formatters and hooks with its settings (pyproject.toml, .flake8), then ruff for what these do not know.
check: .venv/.dev
	.venv/bin/isort --quiet --check .
	.venv/bin/black --quiet --check .
	.venv/bin/flake8
	.venv/bin/ruff check .
	find scripts benchmarks tests ci -name '*.py' | xargs .venv/bin/check-docstring-first
	.venv/bin/pretty-format-json --no-sort-keys --indent=4 configs/*.json

lint: .venv/.dev
	.venv/bin/ruff check --fix .
	.venv/bin/isort --quiet .
	.venv/bin/black --quiet .
	.venv/bin/pretty-format-json --autofix --no-sort-keys --indent=4 configs/*.json

zip: .venv/.runtime
	$(PY) -m scripts.package dist/$(NAME)_v$(VERSION).zip --name $(NAME)

export: .venv/.dev
	OMP_NUM_THREADS=1 $(PY) -m scripts.workflow.exports --output_dir dist

clean:
	rm -rf .venv demo dist output/table eval cache
