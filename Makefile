# `make help` tells what there is. PYTHON=... chooses an interpreter, VENV=... another place for the environment.

PYTHON ?=
VENV ?= .venv

.PHONY: help demo test test-system soak lint
.DEFAULT_GOAL := help

help:
	@echo 'make demo   run agentd on a demo card, with real tmux, and say how to watch'
	@echo 'make test   set everything up and run the whole suite'
	@echo 'make test-system   the services under a real systemd, in a machine made for it (as root)'
	@echo 'make soak   minutes of misbehaving agents, agentd killed every few seconds (MINUTES=5 SEED=... AGENT_USER=...)'
	@echo 'make lint   check style and types'

demo: $(VENV)/run.stamp
	@VENV='$(VENV)' scripts/demo

test: $(VENV)/dev.stamp
	@$(VENV)/bin/python scripts/run_tests.py

test-system: $(VENV)/dev.stamp
	@$(VENV)/bin/python tests/system/machine.py python -m pytest -q -p no:cacheprovider -p no:xdist tests/system

soak: $(VENV)/dev.stamp
	@$(VENV)/bin/python scripts/soak.py --minutes '$(or $(MINUTES),5)' $(if $(SEED),--seed '$(SEED)') \
		$(if $(AGENT_USER),--agent-user '$(AGENT_USER)') $(if $(WRITE),--write '$(WRITE)')

lint: $(VENV)/dev.stamp
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

$(VENV)/run.stamp $(VENV)/dev.stamp: pyproject.toml constraints-3.11.txt constraints-3.13.txt scripts/setup
	@PYTHON='$(PYTHON)' VENV='$(VENV)' scripts/setup $(basename $(@F))
