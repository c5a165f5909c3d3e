# make train: install, train the main job, say where its picture, metrics and checkpoint are.
# make test:  install, run the test suite.    make lint: install, check style and types.
# make wheel: build the sdist and the wheel into dist/, and run the wheel outside this folder.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: train test lint wheel clean

train: .venv/installed
	$(BIN)/python train.py --dataset auto --estimator enumerate

test: .venv/installed-dev
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: .venv/installed-dev
	$(BIN)/python -m flake8
	$(BIN)/python -m isort --check-only --diff .
	$(BIN)/python -m mypy

wheel: .venv/installed-dev
	rm -rf dist build
	$(BIN)/python -m build --outdir dist .
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target build/wheel dist/*.whl
	cd build/wheel && PYTHONPATH=. ../../$(BIN)/python -m air.predict --help > /dev/null
	test -x build/wheel/bin/air-predict

.venv/bin/python:
	$(PYTHON) -m venv .venv

# Both of the pair in one command, with no pin on either: pip then takes builds that match.
.venv/installed: setup.cfg pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $@

clean:
	rm -rf .venv build dist *.egg-info
