# Two commands: `make quickstart` and `make test`. Both make the environment first.
PYTHON ?= $(shell for v in 3.12 3.13 3.11; do p=$$(command -v python$$v) && $$p -c "" 2>/dev/null && { echo $$p; break; }; done || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
ADDONS_PYTHON ?= python3.11
ADDONS_VENV := .venv-addons
JAX_VENV := .venv-jax

.PHONY: quickstart test test-all lint test-addons test-jax clean

quickstart: $(VENV)/installed
	$(BIN)/python -m experiments.quickstart --output_dir quickstart --overwrite

# Long files first: see tests/conftest.py.
PYTEST := $(BIN)/python -m pytest --numprocesses=auto --dist=loadfile --no-loadscope-reorder

test: $(VENV)/installed
	$(PYTEST)

# Also what is marked (see pyproject.toml), and JAX, from an environment of its own.
test-all: $(VENV)/installed $(JAX_VENV)/installed
	R2C_GAN_JAX_PYTHON=$(CURDIR)/$(JAX_VENV)/bin/python $(PYTEST) -m ""

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

# Our normalisation against TensorFlow Addons, in an environment of its own: the two cannot live in one.
test-addons: $(VENV)/installed $(ADDONS_VENV)/installed
	$(BIN)/python tests/addons/write_reference.py $(ADDONS_VENV)/normalisation.npz
	$(ADDONS_VENV)/bin/python tests/addons/check_against_addons.py $(ADDONS_VENV)/normalisation.npz

# The package on JAX in an environment without TensorFlow, held against TensorFlow in the other one.
test-jax: $(VENV)/installed $(JAX_VENV)/installed
	R2C_GAN_JAX_PYTHON=$(CURDIR)/$(JAX_VENV)/bin/python $(PYTEST) -m "" tests/test_jax*.py

$(VENV)/installed: setup.py requirements.txt
	@test -n "$(PYTHON)" || { echo "error: Python 3.11, 3.12 or 3.13 is needed; name it with make PYTHON=/path/to/python" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
		{ echo "error: $(PYTHON) is not Python 3.11 to 3.13; name one with make PYTHON=/path/to/python" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,notebooks,dicom,serve,onnx,view]'
	touch $@

$(ADDONS_VENV)/installed: requirements-addons.txt
	$(ADDONS_PYTHON) -m venv --clear $(ADDONS_VENV)
	$(ADDONS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-addons.txt
	touch $@

$(JAX_VENV)/installed: $(VENV)/installed requirements-jax.txt
	$(BIN)/python -m venv --clear $(JAX_VENV)
	$(JAX_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-jax.txt
	touch $@

clean:
	rm -rf $(VENV) $(ADDONS_VENV) $(JAX_VENV) quickstart build *.egg-info
