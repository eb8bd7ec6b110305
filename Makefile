# Two commands do everything on a fresh Debian 12: `make demo` and `make test`.
.PHONY: setup demo test day soak check bench clean
PY := .venv/bin/python

setup:  ## system packages, .venv with locked packages, the lab's vCenter
	@scripts/setup

demo: setup  ## the main job, end to end, on a simulated vCenter
	@$(PY) -m examples.demo $(ARGS)

JOBS ?= 3
test: setup  ## every test; arguments by ARGS="…"; three processes keep two cores busy, as tests wait: JOBS=8 for more
	@$(PY) -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

SEED ?= 1
VMS ?= 20
day: setup  ## a day on a vCenter, in minutes: moves, faults, kills; SEED=7 VMS=100; the last line is JSON
	@$(PY) -m tests.acceptance.day --seed $(SEED) --vms $(VMS) $(ARGS)

soak: setup  ## an hour of kills, faults, power cuts and days; ARGS="--minutes 10 --days 20" bounds it
	@$(PY) -m tests.crash.soak $(ARGS)

check: setup  ## formatting, lint, types, import contracts
	@.venv/bin/ruff format --check .
	@.venv/bin/ruff check .
	@.venv/bin/mypy
	@.venv/bin/lint-imports --no-cache

bench: setup  ## benchmarks, about an hour; they print ratios, never pass or fail; some by ARGS="peers terabyte"
	@$(PY) -m benchmarks $(ARGS)

clean:  ## forget what was built (the lab, caches), keep .venv
	rm -rf .lab .mypy_cache .ruff_cache .pytest_cache .hypothesis .demo dist
