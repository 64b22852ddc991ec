# Every command below makes its own environment in $(VENV) on its first run; nothing has to be installed by hand.
VENV ?= .venv
PYTHON ?= python3
WORKERS ?= 2

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
BENCH_STAMP := $(VENV)/.installed-bench
MIN_PYTHON := $(shell sed -n 's/^min_python *= *//p' settings.ini)
export PATH := $(abspath $(BIN)):$(PATH)
# fastai still calls torch.jit.script on import; the warning is not about this package, and its path would end up in saved outputs
export PYTHONWARNINGS ?= ignore::FutureWarning:torch.jit._script

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help install demo test test-browser need-browser bench check pages alone prepare release readme docs need-quarto clean

help: ## list these commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-12s %s\n", $$1, $$2}'

# the stamp is newer than what it depends on as long as nothing that decides about the installation has changed
$(STAMP): pyproject.toml settings.ini setup.py constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) was not found: install Python $(MIN_PYTHON) or newer, or name one, as in make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; wanted = tuple(map(int, "$(MIN_PYTHON)".split("."))); sys.version_info >= wanted or sys.exit("fer_perturb needs Python $(MIN_PYTHON) or newer, and $(PYTHON) is %d.%d: name a newer one, as in make PYTHON=python3.12" % sys.version_info[:2])'
	@echo "Installing into $(VENV): a few minutes, and on Linux up to 7 GB of disk, most of it torch and the CUDA libraries it brings"
	@$(PYTHON) -m venv $(VENV) || { echo "$(PYTHON) could not make a virtual environment: on Debian and Ubuntu, apt install python3-venv" >&2; exit 1; }
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

install: $(STAMP) ## make the environment and nothing else

DEMO_OPTIONS = $(if $(DATA),--data "$(DATA)") $(if $(EPOCHS),--epochs "$(EPOCHS)") $(if $(ARCH),--arch "$(ARCH)") \
	$(if $(SEED),--seed "$(SEED)") $(if $(LANDMARKS),--landmarks "$(LANDMARKS)") $(if $(OUT),--out "$(OUT)")

demo: $(STAMP) ## the whole scheme on a small scale; options: DATA= EPOCHS= ARCH= SEED= LANDMARKS= OUT=
	$(BIN)/fer-perturb demo $(strip $(DEMO_OPTIONS))

TESTS = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --durations=10

# one thread for each notebook: two notebooks whose torch takes every core for itself slow each other down
test: $(STAMP) ## run every notebook, then the tests in tests/, WORKERS= at a time
	OMP_NUM_THREADS=1 $(BIN)/nbdev-test --n-workers $(WORKERS) --timing
	$(TESTS)

test-browser: $(STAMP) need-browser ## try the explorer in a real browser; says how to get one where there is none
	$(BIN)/python -m pytest tests/test_browser.py

need-browser:
	@[ -n "$$FER_PERTURB_BROWSER" ] || command -v chromium || command -v chromium-browser || command -v google-chrome || command -v google-chrome-stable || { \
		echo "make test-browser needs Chromium: on Debian, apt install chromium; elsewhere name a Chrome, as in FER_PERTURB_BROWSER=/path/to/chrome make test-browser" >&2; exit 1; }

# its own stamp, since the libraries it compares with are of no other use
$(BENCH_STAMP): $(STAMP)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[bench]'
	@touch $@

BENCH_OPTIONS = $(if $(ONLY),--only $(ONLY)) $(if $(QUICK),--quick) $(if $(DATA),--data "$(DATA)") $(if $(OUT),--out "$(OUT)") $(if $(PROFILE),--profile)

bench: $(BENCH_STAMP) ## compare with what others use, about 10 minutes; options: ONLY= QUICK=1 DATA= OUT= PROFILE=1
	$(BIN)/python -m benchmarks.run $(strip $(BENCH_OPTIONS))

check: $(STAMP) ## compare modules and README with the notebooks, follow the pages' links, look for docments, imports that run upwards, unfit files
	@failed=0; $(BIN)/python .ci/pages.py --check || failed=1; $(BIN)/python .ci/llms.py --check || failed=1; VENV=$(VENV) .ci/check_sync || failed=1; \
	for name in files docments floors docs; do $(BIN)/python .ci/check_$$name.py || failed=1; done; exit $$failed

pages: $(STAMP) ## write each notebook's badges, install cell, last cell and link to the next page; llms.txt
	@$(BIN)/python .ci/pages.py
	@$(BIN)/python .ci/llms.py

alone: $(STAMP) ## run every notebook alone in an empty folder, as if nbdev were missing
	OMP_NUM_THREADS=1 $(BIN)/python .ci/alone.py --workers $(WORKERS)

readme: $(STAMP) ## write README.md from nbs/index.ipynb
	@$(BIN)/python .ci/readme.py

prepare: $(STAMP) ## before a commit: export, run and save notebooks, clean them, write README.md, test, check
	@$(BIN)/python .ci/pages.py
	@$(BIN)/python .ci/llms.py
	$(BIN)/nbdev-export
	OMP_NUM_THREADS=1 $(BIN)/nbdev-test --n-workers $(WORKERS) --save
	$(BIN)/nbdev-clean
	@$(BIN)/python .ci/readme.py
	$(TESTS)
	@$(MAKE) --no-print-directory check

release: $(STAMP) ## all that a release needs, up to the tag and the upload; says what stands in the way
	$(BIN)/python .ci/release.py

docs: need-quarto $(STAMP) ## build the website in _docs (needs Quarto)
	$(BIN)/nbdev-docs

need-quarto:
	@command -v quarto >/dev/null || { echo "make docs needs Quarto, and there is none on your PATH: get it from https://quarto.org/docs/get-started and run make docs again" >&2; exit 1; }

clean: ## remove what builds and tests leave behind (the environment stays)
	rm -rf build dist *.egg-info _proc _docs nbs/nbdev.yml .pytest_cache .venv-ci
	find fer_perturb nbs tests benchmarks .ci -name __pycache__ -prune -exec rm -rf {} +
