# make test is what CI runs: on a clean checkout it needs python3 (3.10 or newer) with venv and pip.

PYTHON ?= python3
# More skipped tests than this is a failure: a test that never runs protects nothing.
MAX_SKIPPED ?= 9
MAX_SKIPPED_OPTIMUM ?= 3
# network namespaces need root
MAX_SKIPPED_RAY ?= 1

PIP_INSTALL = -m pip install --quiet --disable-pip-version-check -c
PYTEST = -m pytest -p tests.skip_bound --cov --cov-report= --cov-fail-under=0
RAY_TESTS = $(shell grep -ls 'mark\.ray' tests/test_*.py)
TRL_TESTS = $(shell grep -ls 'mark\.trl' tests/test_*.py)
BROWSER_TESTS = $(shell grep -ls 'mark\.browser' tests/test_*.py)
EXPORT_TESTS = $(sort $(wildcard tests/test_export*.py) $(shell grep -ls 'mark\.optimum' tests/test_*.py))

# The order matters: the cheap checks first, coverage last.
.NOTPARALLEL:
.PHONY: test test-optimum test-ray test-trl test-chips test-gpu-wheel test-browser tutor check coverage lint types format demo clean

test: lint types check test-optimum coverage

# --- environments: made once, and again when what they are made from changes
# Two for the tests: optimum-onnx pins an old transformers, and the exporter must work with both.

.venv/.made: pyproject.toml constraints.txt Makefile
	$(PYTHON) -m venv --clear .venv
	.venv/bin/python $(PIP_INSTALL) constraints.txt -e '.[cpu,export,eval,parquet,serve,zstd,dev]'
	touch $@

.venv-optimum/.made: pyproject.toml constraints.txt Makefile
	$(PYTHON) -m venv --clear .venv-optimum
	sed '/^transformers==/d' constraints.txt > .venv-optimum/constraints.txt
	.venv-optimum/bin/python $(PIP_INSTALL) .venv-optimum/constraints.txt -e '.[cpu,optimum,export,dev]'
	touch $@

.venv-trl/.made: pyproject.toml constraints.txt Makefile
	$(PYTHON) -m venv --clear .venv-trl
	.venv-trl/bin/python $(PIP_INSTALL) constraints.txt -e '.[cpu,export,its-hub,trl,dev]'
	touch $@

.venv-browser/.made: pyproject.toml constraints.txt Makefile
	$(PYTHON) -m venv --clear .venv-browser
	.venv-browser/bin/python $(PIP_INSTALL) constraints.txt -e '.[cpu,export,serve,browser,dev]'
	touch $@

.venv-tutor/.made: pyproject.toml constraints.txt Makefile
	$(PYTHON) -m venv --clear .venv-tutor
	.venv-tutor/bin/python $(PIP_INSTALL) constraints.txt -e '.[cpu,serve]'
	touch $@

# onnxruntime-web and a tokenizer for examples/browser; axe-core, which its tests use
examples/browser/node_modules/.made: examples/browser/package.json examples/browser/package-lock.json
	npm ci --prefix examples/browser --ignore-scripts --no-audit --no-fund
	touch $@

.venv-ray/.made: pyproject.toml constraints.txt Makefile
	$(PYTHON) -m venv --clear .venv-ray
	.venv-ray/bin/python $(PIP_INSTALL) constraints.txt -e '.[cpu,ray,serve,dev]' 'ray[serve]'
	touch $@

.venv-demo/.made: pyproject.toml constraints.txt Makefile
	$(PYTHON) -m venv --clear .venv-demo
	.venv-demo/bin/python $(PIP_INSTALL) constraints.txt -e '.[cpu]'
	touch $@

# --- checks

lint: .venv/.made
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

# mypy can be green because it looked at nothing: every file of the three packages must be counted
types: .venv/.made
	@files=$$(find runtime/prm_edge_runtime export/prm_edge_export prm_edge -name '*.py' | wc -l); \
	said=$$(.venv/bin/mypy) && ok=yes || ok=no; \
	echo "$$said"; \
	case "$$ok:$$said" in \
	yes:*"no issues found in $$((files)) source files"*) ;; \
	*) echo "mypy must pass, and check all $$((files)) files" >&2; exit 1 ;; \
	esac

check: .venv/.made
	COVERAGE_FILE=.coverage.check .venv/bin/python $(PYTEST) --max-skipped=$(MAX_SKIPPED) \
		-m 'not (optimum or ray or trl or real_tokenizers or real_weights or chips or gpu_wheel or browser)'

test-optimum: .venv-optimum/.made
	COVERAGE_FILE=.coverage.optimum .venv-optimum/bin/python $(PYTEST) --max-skipped=$(MAX_SKIPPED_OPTIMUM) \
		-m 'not (wheel or ray or trl or real_tokenizers or real_weights or chips or gpu_wheel or browser)' $(EXPORT_TESTS)

# Of both runs together: each environment can run what the other cannot.
coverage: .venv/.made
	.venv/bin/coverage combine --quiet --keep .coverage.check .coverage.optimum
	.venv/bin/coverage report

# Trains tiny models with the real PRMTrainer; not part of make test.
test-trl: .venv-trl/.made
	COVERAGE_FILE=.coverage.trl .venv-trl/bin/python $(PYTEST) --max-skipped=0 -m trl $(TRL_TESTS)

# Starts clusters of several nodes on this machine; not part of make test.
test-ray: .venv-ray/.made
	COVERAGE_FILE=.coverage.ray .venv-ray/bin/python $(PYTEST) --max-skipped=$(MAX_SKIPPED_RAY) -m ray $(RAY_TESTS)

.venv-arm64/.made: tests/make_arm64.sh .venv/.made
	sh tests/make_arm64.sh .venv-arm64 $$PWD/.venv/bin/python
	touch $@

.venv-gpu-wheel/.made: Makefile .venv/.made
	rm -rf .venv-gpu-wheel
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
		--target .venv-gpu-wheel/site onnxruntime-gpu
	touch $@

# Whether the newest onnxruntime-gpu has a CUDA kernel for every node; downloads it, needs no GPU.
test-gpu-wheel: .venv/.made .venv-gpu-wheel/.made
	.venv/bin/python -m pytest -m gpu_wheel

# Every precision on an emulated x86 without VNNI and on emulated 64-bit Arm; needs Debian's
# qemu-user and apt-get. Four minutes.
test-chips: .venv/.made .venv-arm64/.made
	.venv/bin/python -m pytest -m chips

# The pages in a real Chromium (PRM_EDGE_CHROMIUM, or one on the PATH); needs npm.
test-browser: .venv-browser/.made examples/browser/node_modules/.made
	.venv-browser/bin/python -m pytest -p tests.skip_bound --max-skipped=0 -m browser $(BROWSER_TESTS)

format: .venv/.made
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

# --- the rest

demo: .venv-demo/.made
	.venv-demo/bin/prm-edge demo

tutor: .venv-tutor/.made
	.venv-tutor/bin/python examples/tutor

clean:
	rm -rf .venv .venv-optimum .venv-ray .venv-trl .venv-demo .venv-arm64 .venv-browser .venv-gpu-wheel .venv-tutor \
		examples/browser/node_modules build dist *.egg-info \
		.mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage .coverage.*
