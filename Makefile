# make test is what CI runs: on a clean checkout it needs python3 (3.10 or newer) with venv and pip.

PYTHON ?= python3
# More skipped tests than this is a failure: a test that never runs protects nothing.
MAX_SKIPPED ?= 6
MAX_SKIPPED_OPTIMUM ?= 3

PIP_INSTALL = -m pip install --quiet --disable-pip-version-check -c
PYTEST = -m pytest -p tests.skip_bound --cov --cov-report= --cov-fail-under=0
TRL_TESTS = $(shell grep -ls 'mark\.trl' tests/test_*.py)
BROWSER_TESTS = $(shell grep -ls 'mark\.browser' tests/test_*.py)
EXPORT_TESTS = $(sort $(wildcard tests/test_export*.py) $(shell grep -ls 'mark\.optimum' tests/test_*.py))

# The order matters: the cheap checks first, coverage last.
.NOTPARALLEL:
.PHONY: test test-optimum test-trl test-chips test-browser tutor check coverage lint types format demo clean

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
		-m 'not (optimum or trl or real_tokenizers or real_weights or chips or browser)'

test-optimum: .venv-optimum/.made
	COVERAGE_FILE=.coverage.optimum .venv-optimum/bin/python $(PYTEST) --max-skipped=$(MAX_SKIPPED_OPTIMUM) \
		-m 'not (wheel or trl or real_tokenizers or real_weights or chips or browser)' $(EXPORT_TESTS)

# Of both runs together: each environment can run what the other cannot.
coverage: .venv/.made
	.venv/bin/coverage combine --quiet --keep .coverage.check .coverage.optimum
	.venv/bin/coverage report

# Trains tiny models with the real PRMTrainer; not part of make test.
test-trl: .venv-trl/.made
	COVERAGE_FILE=.coverage.trl .venv-trl/bin/python $(PYTEST) --max-skipped=0 -m trl $(TRL_TESTS)

# The self-test of every package here on an emulated x86 without VNNI; needs Debian's qemu-user.
test-chips: .venv/.made
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
	rm -rf .venv .venv-optimum .venv-trl .venv-demo .venv-browser .venv-tutor \
		examples/browser/node_modules build dist *.egg-info \
		.mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage .coverage.*
