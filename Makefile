# One door to everything. `make` alone lists what can be done. Nothing here names a package index: pip uses yours.

VENV   := .venv
BIN    := $(VENV)/bin
PY     := $(BIN)/python
READY  := $(VENV)/.installed
UV     ?= uv
ARGS   ?=
SEED    ?= 1
SECONDS ?= 60
FAULTS  ?= all
NAME    ?= gateways
WORKERS ?= $(shell cores=$$(nproc 2>/dev/null || echo 2); echo $$((cores < 2 ? 2 : cores > 8 ? 8 : cores)))

# Compiled modules are kept, also where the machine asks for the opposite: each process that a test, a bench or a demo
# starts would compile all it imports again.
export PYTHONDONTWRITEBYTECODE :=

SHELL       := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo up test test-browser test-asyncapi check contracts compiled bench chaos chaos-long drill lock clean

# $(call step,title,command): one line with its time; what the command said only when it failed.
define step
@printf '%-42s' '$(1)'; began=$$(date +%s); said=$$(mktemp); \
if { $(2); } >"$$said" 2>&1; then printf 'ok  %3ds\n' $$(($$(date +%s) - began)); rm -f "$$said"; \
else printf 'FAILED\n'; cat "$$said"; rm -f "$$said"; exit 1; fi
endef

help: ## list what can be done
	@printf 'llama-orch: make TARGET [ARGS="…"]\n\n'
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r name what; do printf '  %-14s%s\n' "$$name" "$$what"; done

demo: $(READY) ## the whole system on this machine: real engine, real model, three tasks, then stop
	@$(BIN)/orchctl demo $(ARGS)

up: $(READY) ## start everything in the foreground; Ctrl-C stops it (needs a GPU)
	@$(BIN)/orchctl up $(ARGS)

test: $(READY) ## all tests that need no Docker, no GPU and no network beyond the package index
	@$(PY) -m pytest -n $(WORKERS) $(ARGS)

test-browser: $(READY) ## a real browser's EventSource reads a stream and comes back by itself (needs chromium on PATH)
	@$(PY) -m pytest -n 0 tests/browser/event_source.py $(ARGS)

test-asyncapi: ## the parser that AsyncAPI publishes reads contracts/asyncapi.yaml (needs npm on PATH)
	@if ! command -v npm >/dev/null; then echo '1 skipped: contracts/asyncapi.yaml was not parsed, npm is not on PATH'; exit 0; fi; \
	npm ci --prefix tests/contract/asyncapi_parser --ignore-scripts --no-audit --no-fund --loglevel=error \
	  || { echo '1 skipped: contracts/asyncapi.yaml was not parsed, npm could not fetch the parser'; exit 0; }; \
	node tests/contract/asyncapi_parser/check.mjs contracts/asyncapi.yaml

check: $(READY) ## ruff, mypy --strict, import rules, contracts equal to the code
	$(call step,ruff check,$(BIN)/ruff check --quiet --output-format concise .)
	$(call step,ruff format,$(BIN)/ruff format --quiet --check .)
	$(call step,mypy --strict,$(BIN)/mypy --strict)
	$(call step,import rules,$(BIN)/lint-imports --no-cache)
	$(call step,contracts equal the code,$(PY) -m llorch_shared.contracts --check)

contracts: $(READY) ## write contracts/ from the wire types
	$(call step,contracts,$(PY) -m llorch_shared.contracts)

compiled: $(READY) ## a wheel in dist/ with the scheduler's core compiled (needs gcc), and the scheduler's tests against it
	@rm -rf dist build/compiled
	$(call step,wheel with a compiled core,HATCH_BUILD_HOOK_ENABLE_CUSTOM=true $(PY) -m pip --disable-pip-version-check wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .)
	$(call step,unpacked in build/compiled,$(PY) -m zipfile -e dist/*.whl build/compiled)
	@$(PY) -m pytest -n $(WORKERS) -o pythonpath="build/compiled tests" $(ARGS) tests/scheduler

bench: $(READY) ## measure admission and relay with the mock engine; JSON and a table
	@PYTHONPATH=tests $(PY) -m bench $(ARGS)

chaos: $(READY) ## break a real system on purpose and judge what its clients saw: SEED= SECONDS= FAULTS=kill,cut,…
	@PYTHONPATH=tests $(PY) -m chaos --seed $(SEED) --seconds $(SECONDS) --faults $(FAULTS) $(ARGS)

chaos-long: $(READY) ## the same for 20 minutes
	@PYTHONPATH=tests $(PY) -m chaos --seed $(SEED) --seconds 1200 --faults $(FAULTS) $(ARGS)

drill: $(READY) ## one promise measured at full size: NAME=gateways|ids|schedulers|cluster|real SEED=, figures beside what is promised
	@PYTHONPATH=tests $(PY) -m chaos.drill $(NAME) --seed $(SEED) $(ARGS)

lock: ## pin every dependency by hash in requirements.lock (needs uv)
	@command -v $(UV) >/dev/null || { echo 'make lock needs uv: pip install uv, or make lock UV=/path/to/uv' >&2; exit 1; }
	$(call step,requirements.lock,$(UV) pip compile --quiet --universal --python-version 3.11 --all-extras \
	  --generate-hashes --no-emit-index-url --no-annotate --no-header $(ARGS) \
	  pyproject.toml requirements/build.in --output-file requirements.lock)

clean: ## remove the environment, caches and the demo's state
	@rm -rf $(VENV) .llorch .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis build dist tests/contract/asyncapi_parser/node_modules
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The environment is made from the lock alone and made again when the lock changes.
$(PY):
	@found=''; for python in $(PYTHON) python3 python3.13 python3.12 python3.11 python; do \
	  if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found=$$python; break; fi; done; \
	if [ -z "$$found" ]; then \
	  echo 'llama-orch needs Python 3.11 or newer and found none (looked for python3, python3.11 … python3.13).' >&2; \
	  echo 'Install one (Debian, Ubuntu: apt install python3 python3-venv), or: make PYTHON=/path/to/python3' >&2; exit 1; fi; \
	printf '%-42s' "environment $(VENV) ($$("$$found" -V))"; began=$$(date +%s); rm -rf $(VENV); \
	if ! said=$$("$$found" -m venv $(VENV) 2>&1); then rm -rf $(VENV); printf 'FAILED\n%s\n' "$$said" >&2; \
	  echo "Debian, Ubuntu: apt install python3-venv" >&2; exit 1; fi; \
	printf 'ok  %3ds\n' $$(($$(date +%s) - began))

$(READY): requirements.lock pyproject.toml | $(PY)
	$(call step,dependencies (pinned by hash),$(PY) -m pip --disable-pip-version-check install --quiet --require-hashes -r requirements.lock)
	$(call step,llama-orch itself,$(PY) -m pip --disable-pip-version-check install --quiet --no-deps --no-build-isolation --editable .)
	@touch $@
