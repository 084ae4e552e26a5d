# `make` alone lists the targets. Needs git, make and either uv or a Python 3.12; nothing else.
# Plain POSIX recipes: GNU make 3.81 (macOS) runs them too.

VENV := .venv
PY := $(VENV)/bin/python
PROJECTS := $(wildcard */pyproject.toml)
MEMBERS := $(PROJECTS:/pyproject.toml=)
# Compiled once here, modules start each later process about twice as fast; many containers write no bytecode themselves.
INSTALL = $(UV) pip install --compile-bytecode --python $(PY) -c constraints.txt -b constraints.txt
# Three test processes, because some tests wait for real time; each, and what it starts, computes on one thread.
PYTEST := OMP_NUM_THREADS=1 $(PY) -m pytest -n 3 --dist worksteal

# uv where there is one that runs (a shim may exist and refuse), otherwise a private copy.
UV := $(shell uv --version >/dev/null 2>&1 && echo uv || echo .uv/bin/uv)
# The wheels of torch are large; uv's default gives up after 30 quiet seconds.
UV_HTTP_TIMEOUT ?= 180
export UV_HTTP_TIMEOUT

# Prints the first Python 3.12, or failing that any Python that can run uv. A shim that refuses counts as absent.
FIND_PYTHON = for want in '[:2] == (3, 12)' ' >= (3, 9)'; do for p in python3.12 python3 python; do \
	$$p -c "import sys; sys.exit(not sys.version_info$$want)" >/dev/null 2>&1 && echo $$p && exit 0; done; done

.PHONY: help setup test test-all lint docs fix demo bench wheels run-docs constraints clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

setup: $(VENV)/.ready ## install everything into .venv (test, lint, demo and bench do it when needed)

test: setup ## run the tests but the slow ones (under 5 minutes); ARGS="-k guard" narrows them
	$(PYTEST) -m "not slow" tests $(ARGS)

test-all: setup ## run every test (under 12 minutes)
	$(PYTEST) tests $(ARGS)

lint: setup docs ## ruff check, ruff format --check, mypy, and the docs site
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# Not --quiet, which hides warnings from --strict. The variable hides the theme's notice of its end of life.
docs: setup ## build the docs site into outputs/site; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict

fix: setup ## let ruff repair and format what it can
	-$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

demo: setup ## demonstrate, train and evaluate on the simulated arm (under 10 minutes)
	$(PY) -m examples.demo $(ARGS)

bench: $(VENV)/.ready-bench ## measure the simulator's speed beside other simulators
	$(PY) -m benchmarks.speed.sim $(ARGS)

wheels: setup ## build wheels and sdists into dist/; ARGS="--url=<repository> --tag=<tag>"
	$(PY) -m release.build $(ARGS)

run-docs: setup ## run the commands of the docs at reduced size; ARGS="docs/imf.md" narrows them
	$(PY) -m release.run_docs $(ARGS)

constraints: $(filter .uv/%,$(UV)) ## pin again what the pyproject files ask for; ARGS=--upgrade takes the newest
	$(UV) pip compile --quiet --universal --python-version 3.12 --no-annotate $(ARGS) \
		--custom-compile-command "make constraints" \
		$(foreach p,$(MEMBERS),--no-emit-package $(shell sed -n 's/^name = "\(.*\)"/\1/p' $(p)/pyproject.toml)) \
		pyproject.toml --group dev --group bench --group tools -o constraints.txt

clean: ## remove .venv, .uv, caches and build leftovers; outputs/ stays
	rm -rf $(VENV) .uv dist .pytest_cache .mypy_cache .ruff_cache
	rm -rf $(MEMBERS:=/build) $(MEMBERS:=/src/*.egg-info)
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.ready: constraints.txt pyproject.toml $(PROJECTS) | $(filter .uv/%,$(UV))
	@$(PY) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 12))' >/dev/null 2>&1 \
		|| { rm -rf $(VENV) && $(UV) venv --quiet --python 3.12 $(VENV); } \
		|| { echo "make: no Python 3.12 here. Install one (python3.12 on PATH is enough) and run make again." >&2; exit 1; }
	$(INSTALL) $(MEMBERS:%=-e %) --group dev
	@touch $@

$(VENV)/.ready-bench: $(VENV)/.ready
	$(INSTALL) --group bench
	@touch $@

.uv/bin/uv:
	@python=$$($(FIND_PYTHON)); \
	test -n "$$python" \
		|| { echo "make: found neither uv nor a Python. Install uv, or Python 3.12, and run make again." >&2; exit 1; }; \
	echo "make: no uv on PATH; putting one into .uv with $$python"; \
	rm -rf .uv && $$python -m venv .uv && .uv/bin/python -m pip install --quiet -c constraints.txt uv \
		|| { rm -rf .uv; echo "make: could not install uv with $$python (is its venv module there?)." >&2; exit 1; }
