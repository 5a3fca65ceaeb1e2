# Every target works from a fresh clone. `make` alone lists them.
# PYTHON=/path/to/python3 chooses the interpreter; without it the first of these that is 3.11 or newer is taken.

FIND_PYTHON = for python in $$PYTHON python3 python3.14 python3.13 python3.12 python3.11 none; do \
	    [ "$$python" != none ] || { echo 'chasqui needs Python 3.11 or newer: install it, or say make PYTHON=/path/to/python3' >&2; exit 1; }; \
	    "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break; \
	  done
CHASQUI = PYTHONPATH=client:agent "$$python" -m chasqui_client

.PHONY: help demo test test-long check agent deploy bench bench-transfer cluster-up cluster-down clean

help:
	@echo 'make demo              24 small jobs through the relay on this machine; needs Python 3.11 alone'
	@echo 'make test              everything a change must pass; as root on Debian it installs the tools it lacks'
	@echo 'make test-long         the same at the long size'
	@echo 'make check             ruff, mypy, shellcheck, line budgets'
	@echo 'make agent             build/chasqui-agent.pyz, the one file that runs on the cluster'
	@echo 'make deploy HOST=...   puts the agent on a remote of your configuration'
	@echo 'make bench             what a sync costs, beside the bare ssh and tar that it cannot beat'
	@echo 'make bench-transfer    moving files, beside tar, rsync and dpdispatcher; writes a table and a chart in tests/bench'
	@echo 'make cluster-up        a PBS cluster of three containers to try it on, with one-time codes; says how'
	@echo 'make cluster-down      removes it again'
	@echo 'make clean             removes everything that make made'

demo:
	@$(FIND_PYTHON); $(CHASQUI).demo

test:
	@sh tests/setup/tools.sh; $(FIND_PYTHON); exec "$$python" tests/setup/run.py --size short

test-long:
	@sh tests/setup/tools.sh; $(FIND_PYTHON); exec "$$python" tests/setup/run.py --size long

check:
	@$(FIND_PYTHON); exec "$$python" tests/setup/check.py

agent:
	@mkdir -p build; $(FIND_PYTHON); $(CHASQUI).build build/chasqui-agent.pyz

deploy:
	@[ -n "$(HOST)" ] || { echo 'usage: make deploy HOST=NAME, a remote of your config.toml' >&2; exit 2; }
	@$(FIND_PYTHON); $(CHASQUI) agent deploy --remote "$(HOST)"

bench:
	@$(FIND_PYTHON); PYTHONPATH=client:agent:tests "$$python" tests/bench/run.py

bench-transfer:
	@sh tests/setup/tools.sh; $(FIND_PYTHON); PYTHONPATH=client:agent:tests "$$python" tests/bench/transfer.py $(ASK)

cluster-up:
	@$(FIND_PYTHON); exec "$$python" docker/cluster.py up

cluster-down:
	@$(FIND_PYTHON); exec "$$python" docker/cluster.py down

clean:
	@[ ! -d build/cluster ] || $(MAKE) cluster-down
	rm -rf build dist .hypothesis .mypy_cache .ruff_cache .pytest_cache
	find agent client tests -name __pycache__ -type d -prune -exec rm -rf {} +
	find . -maxdepth 2 -name '*.egg-info' -type d -prune -exec rm -rf {} +
