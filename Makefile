# make run    start the daemon; on a fresh Debian machine, install what it needs first
# make test   everything: linters, types, all tests; installs what they need first
# make check  linters and types only
# make unit   quick tests only: no real programs, no simulated power cuts
# make long   the long forms of tests: many more seeds
# make bench  benchmarks, one JSON line each
# make clean  remove what the above made, the virtual environment included

VENV := .venv
RUN_READY := $(VENV)/.run-ready
TEST_READY := $(VENV)/.test-ready
# A hang must end before continuous integration gives up without a word.
PYTEST := timeout --foreground --kill-after=30 3000 $(VENV)/bin/python -m pytest
PARALLEL := -q -n 2 --dist worksteal
SHELL := bash

.PHONY: run test check unit long bench clean

run: $(RUN_READY)
	@exec $(VENV)/bin/cenote serve $(ARGS)

# The tests without real programs first: they fail sooner. Those with them share no
# port, socket or folder, and wait now and then: three at a time keep two cores busy.
test: check
	$(PYTEST) $(PARALLEL) -m "not system and not long" $(ARGS)
	$(PYTEST) -q -n 3 --dist worksteal -m "system and not long" $(ARGS) || [ $$? -eq 5 ] # 5: there are none

check: $(TEST_READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# Two thirds of the time of the parallel tests goes into crash and sim.
unit: $(TEST_READY)
	$(PYTEST) $(PARALLEL) -m "not system and not long" \
		--ignore=tests/crash --ignore=tests/sim --ignore=tests/system $(ARGS)

long: $(TEST_READY)
	$(PYTEST) $(PARALLEL) -o faulthandler_timeout=0 -m long $(ARGS)

bench: $(TEST_READY)
	$(VENV)/bin/python -m bench.run $(ARGS)

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps lie in the environment, so a new or broken one is made anew.
$(RUN_READY): pyproject.toml tools/install.sh
	@tools/install.sh run && touch $@

$(TEST_READY): pyproject.toml tools/install.sh
	@tools/install.sh test && touch $@
