# make demo: install, then accuracy and time of the unpruned model and of Tango on the shipped benchmark, in lmms-eval and
# in VLMEvalKit (CPU, minutes).
# make test: install, then ruff, mypy and pytest.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo benchmark test setup data clean

demo: setup
	$(BIN)/python scripts/demo.py

# All methods at five ratios, and the ablations of Tango; hours on a CPU, resumable.
benchmark: setup
	$(BIN)/python scripts/demo.py --frameworks lmms-eval --methods all --ratios 0.05 0.1 0.15 0.2 0.3 --ablations configs/ablations \
	  --work build/sweeps/motionqa_all --output results/motionqa_all --title "MotionQA, all methods"

test: setup
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

setup: .venv/installed

.venv/installed: requirements.txt requirements-vlmeval.txt pyproject.toml lmms-eval/pyproject.toml VLMEvalKit/pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check -r requirements.txt
	$(BIN)/pip install --disable-pip-version-check --no-deps -r requirements-vlmeval.txt
	$(BIN)/pip install --disable-pip-version-check --no-deps -e . -e ./lmms-eval -e ./VLMEvalKit
	touch $@

# The shipped videos and questions, written anew from their seeds.
data: setup
	$(BIN)/python scripts/make_motionqa.py

clean:
	rm -rf .venv build
