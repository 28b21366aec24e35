# One venv, made on demand. `make quickstart` and `make test` are all a newcomer needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: install quickstart test check format clean

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 14) else f"Python 3.11 to 3.13 is needed, found {sys.version.split()[0]}: make PYTHON=python3.12 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

quickstart: install
	$(BIN)/robustsweep run configs/quickstart.yaml

# Two processes, a file of tests in one of them: half of the time on two cores.
test: install
	$(BIN)/python -m pytest -n 2 --dist loadfile

# Every fault that is injected, and all other tests that take long: more than an hour; ten minutes of it wait for MLflow.
.PHONY: faults
faults: install
	$(BIN)/python -m pytest tests/faults -m "long or not long"
	$(BIN)/python -m pytest --ignore tests/faults -m long

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The site, into build/docs/site. A dead link or a reference that cannot be resolved fails it.
.PHONY: docs
docs: install
	$(BIN)/python -m docs.site

# A sample of the long ones: a node lost, a disk full in Ray, the driver killed and stopped, a study that grows and fails,
# damaged files of trials, a terminal that knows ASCII only.
.PHONY: faults-sample
faults-sample: install
	$(BIN)/python -m pytest tests/faults tests/e2e tests/cli/test_main.py -m long \
	  -k "lost_node or (while_trials_train and Ray) or interrupted_and_killed or (hurry and signals0) or grows_fails \
	  or (damaged_trials and cut) or (every_character and ascii)"

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

# Minutes of work: ratios against peers measured in the same run, beside the committed ones.
.PHONY: bench
bench: install
	$(BIN)/python benchmarks/table.py

# Everything that has to be seen on a GPU, in eight minutes at most; JSON into build/gpu-check.json.
.PHONY: gpu-check gpu-wheelhouse
gpu-check: install
	$(BIN)/python benchmarks/gpu_check.py

# For a machine with PyTorch and no package index: a few MiB that its Python 3.12 lacks, to be carried there.
gpu-wheelhouse: install
	$(BIN)/python -m pip download --quiet -c constraints.txt --only-binary :all: --python-version 3.12 \
	  --dest build/wheelhouse --no-deps \
	  pydantic pydantic-core annotated-types typing-inspection typing-extensions safetensors filelock fsspec \
	  pytest pluggy iniconfig packaging pygments
