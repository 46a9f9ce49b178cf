# Gatehouse. `make help` lists the targets; ARGS hands words on: make test ARGS="-k ring -q".

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
ARGS ?=
BENCHES := $(patsubst tests/bench/%.py,%,$(filter-out tests/bench/table.py,$(wildcard tests/bench/[a-z]*.py)))

.PHONY: help run stop test check bench package qemu qemu-core install install-bench shell-client clean $(addprefix bench-,$(BENCHES))

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

run: install ## bring up the venue lab, send real traffic, show what was recorded (ARGS=--once: and take it down)
	@$(PY) -m tests.lab.run $(ARGS)

stop: ## take the venue lab down
	@$(PY) -m tests.lab.stop

shell-client: ## a shell on a pupil's computer in the running lab (ARGS=teacher: on the teacher's)
	@$(PY) -m tests.lab.shell $(ARGS)

test: install check ## every test there is but `make qemu`, two files at a time: most of them wait for something
	$(PY) -m pytest -n 2 --dist loadfile $(ARGS)

check: install ## ruff, mypy --strict, import contracts, shellcheck
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	MYPYPATH=packaging/build $(VENV)/bin/mypy packaging/build
	$(VENV)/bin/lint-imports --no-cache
	tests/shellcheck.sh

bench: install-bench ## every bench; tables here, rows in build/bench/NAME.json
	@for name in $(BENCHES); do $(PY) -m tests.bench.$$name || exit 1; done

$(addprefix bench-,$(BENCHES)): bench-%: install-bench
	@$(PY) -m tests.bench.$* $(ARGS)

package: install ## OpenWrt packages without an SDK, in build/package (ARGS="--key SECRET": signed with that key)
	@$(PY) -I packaging/build $(ARGS)

qemu: build/installed-qemu package ## the built package in an emulated router, with power cuts (ARGS="-k traffic --cuts 5")
	$(PY) -m pytest tests/qemu -n 2 --dist worksteal --durations 20 $(ARGS)

qemu-core: build/installed-qemu package ## the same without what takes long: sixty days, flash, arm64, fifty cuts
	$(PY) -m pytest tests/qemu -n 2 --dist worksteal -m "not slow" --cuts 5 --durations 10 $(ARGS)

build/installed-qemu: build/installed tests/qemu/apt.txt
	@PYTHON="$(PYTHON)" tests/install.sh tests/qemu/apt.txt
	@touch $@

install: build/installed ## what `make run` and `make test` need: Debian packages and a virtual environment

build/installed: tests/install.sh tests/apt.txt pyproject.toml
	@mkdir -p build
	@PYTHON="$(PYTHON)" tests/install.sh tests/apt.txt $(VENV)
	@touch $@

install-bench: build/installed-bench ## what the benches need besides: the peers they measure against

build/installed-bench: build/installed tests/bench/apt.txt
	@PYTHON="$(PYTHON)" tests/install.sh tests/bench/apt.txt
	@touch $@

clean: ## forget what was built and installed here
	rm -rf build $(VENV)
