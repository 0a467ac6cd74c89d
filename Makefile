# make <target>; `make` alone lists them. ARGS="--section.field value" goes to the command behind it.
SHELL := bash
PYTHON ?=
BIN := .venv/bin
# Two at a time: one process that waits, for Ray above all, leaves a third of two cores idle.
PYTEST := $(BIN)/python -m pytest --numprocesses 2 --dist loadgroup --no-loadscope-reorder
ARGS ?=
SUBMIT ?=
JOB ?= jobs/ppo.py
RUNS ?= $(CURDIR)/runs
COMMIT = $(shell git describe --always --abbrev=40 --dirty=+changes --exclude='*' 2>/dev/null)
RAY_DASHBOARD ?= http://127.0.0.1:8265
export PYTHON
export NO_MKDOCS_2_WARNING := 1

.DEFAULT_GOAL := help
.PHONY: help install ppo sft rm check types lint layers spelling pages test test-all bench docs lock cluster cluster-down submit

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 22

install: ## .venv from the lock (skipped when it is up to date)
	@requirements/install.sh

ppo: install ## the demonstration: SFT, reward model, PPO, report
	@$(BIN)/python jobs/ppo.py $(ARGS)

sft: install ## SFT alone: ARGS="--data.texts FILE"; without it the demonstration's texts
	@$(BIN)/python jobs/sft.py $(ARGS)

rm: install ## the reward model alone, grown from what `make sft` trained
	@$(BIN)/python jobs/rm.py $(ARGS)

check: install ## lint, types, layers, spelling, docs
	@$(MAKE) --no-print-directory --jobs 2 --output-sync=target types lint layers spelling pages

types:
	$(BIN)/mypy

lint:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

layers:
	$(BIN)/lint-imports

spelling:
	$(BIN)/codespell

pages:
	$(BIN)/mkdocs build --strict --quiet --site-dir site

test: check ## check, then the tests (12 minutes on 2 cores at most)
	$(PYTEST) $(ARGS)

test-all: check ## the long form: slow tests too (an hour on 2 fast cores, longer on slow ones)
	$(PYTEST) -m "not short" --durations=30 $(ARGS)

bench: install ## speed of the full loop on random prompts: ARGS="--model runs/demo/sft"
	@$(BIN)/python jobs/bench_ppo.py $(ARGS)

docs: install ## the documentation as a site in site/
	$(BIN)/mkdocs build --strict --site-dir site

lock: install ## resolve both locks anew from pyproject.toml
	requirements/lock.sh

# The job's `python` is looked up in the PATH that Ray was started with.
cluster: install ## Ray on this machine, with token authentication
	@PATH="$(CURDIR)/$(BIN):$$PATH" ray get-auth-token --generate > /dev/null
	@PATH="$(CURDIR)/$(BIN):$$PATH" RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 \
		ray start --head --dashboard-host 127.0.0.1 --disable-usage-stats $(ARGS)
	@echo "dashboard: http://127.0.0.1:8265, which asks for the token: cat ~/.ray/auth_token"

cluster-down: ## stop every Ray process of this user on this machine
	@$(BIN)/ray stop

submit: install ## the same as a Ray job (JOB=jobs/sft.py: another; SUBMIT="--no-wait": of ray job submit)
	@RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 RAY_OVERRIDE_RUNTIME_ENV_DEFAULT_EXCLUDES= \
		$(BIN)/ray job submit --address $(RAY_DASHBOARD) --working-dir . $(SUBMIT) \
		--metadata-json '{"job": "$(JOB)", "commit": "$(COMMIT)", "runs": "$(abspath $(RUNS))"}' \
		--runtime-env-json '{"env_vars": {"RLHF_RAY_COMMIT": "$(COMMIT)"}}' -- \
		python $(JOB) --run.root $(abspath $(RUNS)) $(ARGS)
