# From a fresh clone, `make demo` and `make test` do everything: create .venv, install, compile llama.cpp, run.
# Needed: Python 3.11 or newer with venv, a C++ compiler, CMake. Kept to what GNU make 3.81 (macOS) understands.

# The Python that .venv is made with; empty: the newest that fits.
PYTHON ?=
# make demo MODEL=path-or-name, make test ARGS="-k session", make bench FILES="a.gguf b.gguf"
MODEL ?=
ARGS ?=
FILES ?=
LEVELS ?=

VENV := .venv
ARM64_DIST := dist/arm64
BIN := $(VENV)/bin
STAMP := $(VENV)/.qwen-edge-setup

.PHONY: help setup demo test arm64 test-arm64 check bench verify-real clean
.DEFAULT_GOAL := help

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' Makefile

setup: $(STAMP) ## Create .venv, install qwen-edge, compile llama.cpp for this CPU
	@echo "ready: $(BIN)/qwen-edge --help"

demo: $(STAMP) ## Convert, quantize, chat and measure, end to end (MODEL=path-or-name)
	@$(BIN)/qwen-edge demo $(if $(MODEL),--model $(MODEL))

test: $(STAMP) ## Run the tests, one process a core (ARGS="-k session" is passed to pytest, -n 0 takes one)
	@$(BIN)/python -m pytest -n auto --dist worksteal $(ARGS)

arm64: $(STAMP) ## Compile llama.cpp for any 64-bit ARM machine with Linux: a wheel in dist/arm64
	@$(BIN)/qwen-edge setup --for aarch64 --output $(ARM64_DIST)
	@$(BIN)/python -m tests.arm64.instructions $(ARM64_DIST)

test-arm64: $(STAMP) ## Test the wheel of `make arm64` on emulated ARM processors, as root (LEVELS=cortex-a53,max)
	@wheel=$$(ls -t $(ARM64_DIST)/*.whl 2>/dev/null | head -n 1); \
	test -n "$$wheel" || { echo "no wheel in $(ARM64_DIST): make arm64" >&2; exit 2; }; \
	$(BIN)/python -m tests.arm64 --wheel "$$wheel" $(if $(LEVELS),--levels $(LEVELS)) $(ARGS)

check: $(STAMP) ## Lint, check the formatting, check the types
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy -p qwen_edge

bench: $(STAMP) ## Measure speed and memory of model files (FILES="a.gguf b.gguf")
	@test -n "$(FILES)" || { echo 'usage: make bench FILES="a.gguf b.gguf"' >&2; exit 2; }
	@$(BIN)/qwen-edge bench $(FILES)

verify-real: $(STAMP) ## Pull a published model, convert it, prove the result (needs the hub; MODEL=name)
	@$(BIN)/python -m tests.verify_real $(if $(MODEL),--model $(MODEL)) $(ARGS)

clean: ## Remove .venv and what tools left here; what setup compiled stays in ~/.cache/qwen-edge/native
	@rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A venv without its activate script was interrupted while it was made (the script is written last).
$(STAMP): pyproject.toml qwen_edge/native/build_plan.py qwen_edge/native/toolchain.py
	@python=$$(sh qwen_edge/native/preflight.sh "$(PYTHON)") || exit 1; \
	if test -f $(BIN)/activate && $(BIN)/python -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; \
	then echo "using $(VENV) as it is" >&2; \
	else echo "creating $(VENV) with $$python" >&2; rm -rf $(VENV); "$$python" -m venv $(VENV); fi
	@echo "installing the Python packages" >&2
	@$(BIN)/python -m pip --disable-pip-version-check --no-input install -qq -e '.[dev]'
	@$(BIN)/qwen-edge setup
	@touch $@
