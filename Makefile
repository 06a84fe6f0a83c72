# make demo: install, then accuracy and time of the unpruned model and of Tango on the shipped benchmark (CPU, minutes).
# make test: install, then ruff, mypy and pytest.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test setup data clean

demo: setup
	$(BIN)/python scripts/demo.py

test: setup
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

setup: .venv/installed

.venv/installed: requirements.txt pyproject.toml lmms-eval/pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check -r requirements.txt
	$(BIN)/pip install --disable-pip-version-check --no-deps -e . -e ./lmms-eval
	touch $@

# The shipped videos and questions, written anew from their seeds.
data: setup
	$(BIN)/python scripts/make_motionqa.py

clean:
	rm -rf .venv build
