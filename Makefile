# make demo: install, then accuracy and time of the unpruned model and of Tango on the shipped benchmark, in lmms-eval and
# in VLMEvalKit (CPU, minutes).
# make test: install, then ruff, mypy and pytest. make format: what ruff can put right by itself.
# make test-oldest: the models' and methods' tests with the oldest transformers that pyproject.toml allows.
# make test-transformers: transformers' own modelling tests with pruners attached, from the source distribution of the
# version that is installed; OLDER=yes takes the oldest.
# make fuzz: ten minutes of made-up videos, texts, settings and files against what reads them, seeded; make test has
# a few seconds of it. TANGO_FUZZ_SECONDS sets another time.
# make vllm: an environment of its own for serving with vLLM on a CPU, in build/vllm. make test-vllm: the plugin's tests in it,
# against transformers (minutes). make serve: a server with tango-tiny, and a request to try; docs/serving.md.
# WORKERS: how many processes run them (2).
# make coverage: which lines of tango/ the tests run, into docs/coverage.md; TESTS=tests/pruners measures a part.
# make mutate: 200 small changes to tango/, each against the tests that run it (hours, resumable); docs/mutation.md.
# make docs: the site of docs/ with the page of our own results, into build/site. make docs-version: the same as a version of the
# site on the local branch gh-pages, with a menu of all versions. make package: sdists and wheels, each tried in a fresh environment.

PYTHON ?= python3
BIN := .venv/bin
TOOLS := build/tools
OLDEST := build/oldest
VLLM := build/vllm

TESTS ?= tests
WORKERS ?= 2

.PHONY: demo benchmark test fuzz test-oldest test-transformers vllm test-vllm serve format coverage mutate docs docs-version package setup data clean

demo: setup
	$(BIN)/python scripts/demo.py

# All methods at five ratios, and the ablations of Tango; hours on a CPU, resumable.
benchmark: setup
	$(BIN)/python scripts/demo.py --frameworks lmms-eval --methods all --ratios 0.05 0.1 0.15 0.2 0.3 --ablations configs/ablations \
	  --work build/sweeps/motionqa_all --output results/motionqa_all --title "MotionQA, all methods" --no-samples

test: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -n $(WORKERS)

fuzz: setup
	TANGO_FUZZ_SECONDS=$${TANGO_FUZZ_SECONDS:-600} $(BIN)/python -m pytest tests/fuzz

test-oldest: $(OLDEST)/installed
	$(OLDEST)/bin/python -m pytest -n $(WORKERS) tests/models tests/pruners

UPSTREAM := build/transformers
TESTER = $(if $(OLDER),$(OLDEST),.venv)

test-transformers: setup $(if $(OLDER),$(OLDEST)/installed)
	$(TESTER)/bin/pip install --quiet --disable-pip-version-check parameterized
	$(TESTER)/bin/python tests/transformers/fetch.py $(UPSTREAM)
	TRANSFORMERS_TESTS=$(UPSTREAM) $(TESTER)/bin/python -m pytest tests/transformers

vllm: $(VLLM)/installed

test-vllm: $(VLLM)/installed
	OMP_NUM_THREADS=1 $(VLLM)/bin/python -m pytest tests/serving

serve: $(VLLM)/installed
	PYTHON=$(VLLM)/bin/python bash vllm-plugin/serve.sh

format: setup
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

coverage: setup
	rm -rf build/coverage
	$(BIN)/python -m pytest -n $(WORKERS) --cov --cov-report= $(TESTS)
	$(BIN)/coverage json --quiet -o build/coverage/coverage.json
	$(BIN)/python scripts/coverage_page.py build/coverage/coverage.json "make coverage TESTS=$(TESTS)" >docs/coverage.md

mutate: setup
	OMP_NUM_THREADS=1 $(BIN)/python scripts/mutate.py collect --workers $(WORKERS)
	OMP_NUM_THREADS=1 $(BIN)/python scripts/mutate.py run --workers $(WORKERS)
	OMP_NUM_THREADS=1 $(BIN)/python scripts/mutate.py check --workers $(WORKERS)
	$(BIN)/python scripts/mutate.py table

docs: setup $(TOOLS)/installed
	$(BIN)/tango results results/motionqa --site docs/results/motionqa --videos data/motionqa
	$(TOOLS)/bin/mkdocs build --strict

# On gh-pages, beside the versions that are there; nothing is pushed. mike starts the mkdocs of the PATH.
docs-version: docs
	export DOCS_VERSIONS=mike PATH="$(CURDIR)/$(TOOLS)/bin:$$PATH" && \
	  mike deploy --update-aliases "$$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)" latest && mike set-default latest

package: setup $(TOOLS)/installed
	bash scripts/smoke_package.sh

setup: .venv/installed

.venv/installed: requirements.txt requirements-vlmeval.txt pyproject.toml lmms-eval/pyproject.toml VLMEvalKit/pyproject.toml
	PYTHON=$(PYTHON) bash scripts/install.sh .venv
	touch $@

# Only transformers is installed here; all else comes from .venv.
$(OLDEST)/installed: .venv/installed
	$(PYTHON) -m venv $(OLDEST)
	$(BIN)/python -c "import sysconfig; print('import site; site.addsitedir(%r)' % sysconfig.get_path('purelib'))" \
	  > "$$($(OLDEST)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/setup.pth"
	$(OLDEST)/bin/pip install --disable-pip-version-check --no-deps transformers==5.17.0
	touch $@

$(VLLM)/installed: vllm-plugin/install.sh vllm-plugin/requirements.txt vllm-plugin/pyproject.toml vllm-plugin/torchvision_operators.py
	PYTHON=$(PYTHON) bash vllm-plugin/install.sh $(VLLM)
	touch $@

$(TOOLS)/installed: requirements-tools.txt
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/pip install --disable-pip-version-check -r requirements-tools.txt
	touch $@

# The shipped videos and questions, written anew from their seeds.
data: setup
	$(BIN)/python scripts/make_motionqa.py

clean:
	rm -rf .venv build
