# One command each on a fresh machine; `make setup` is implied.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
THREADS := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1
STAMP := $(VENV)/.installed
# Modules are compiled once, as an installed package's are, and not by each of the thousands of processes started here.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup test lint types unit coverage wheel demo fuzz studies bench figures clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	# torch by itself first: its pinned build must be chosen before other packages ask for any torch.
	$(BIN)/pip install -q -c constraints.txt "torch==$$(sed -n 's/^torch==//p' constraints.txt)"
	$(BIN)/pip install -q -c constraints.txt -e ".[all]"
	# Left by the build; a later `python -m pytest` here would take its entry points for the installed ones.
	rm -rf *.egg-info
	touch $@

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

unit: setup
	# Tests that kill processes depend on the scheduler: what fails among two busy processes must pass alone.
	$(THREADS) $(BIN)/pytest -q -n 2 --dist loadfile \
		|| $(THREADS) $(BIN)/pytest -q --last-failed

coverage: setup
	$(THREADS) $(BIN)/pytest -q -n 2 --dist loadfile --cov --cov-report=term:skip-covered

# The tests against the built wheel, in an environment where the checkout is not importable.
wheel: setup
	sh tests/wheel.sh $(VENV) .venv-wheel

test: lint types unit wheel

# Ten minutes of damaged files through every reader; `make unit` takes seconds of it.
fuzz: setup
	$(THREADS) CKPT_FUZZ_SECONDS=600 $(BIN)/pytest -q --no-cov tests/fuzz

demo: setup
	$(THREADS) sh samples/demo.sh $(BIN)/ckpt

# Every paper's claims at miniature size, and their table in docs/studies.md; goes on where it stopped. Seeds 0 to 2, but
# 0 to 9 where claims are about the mean of what differs by .15 from seed to seed.
# Texts for a study: make studies DATA_focus_dilution="--data tinystories=FILE --data wikitext=FILE"
STUDIES := $(basename $(notdir $(wildcard samples/studies/*.py)))
SEEDS_composite_reasoning := 10
SEEDS_mamba_asymmetry := 10

studies: $(addprefix study-,$(STUDIES))
	$(BIN)/python -m ckpt_tools.study.table studies-out docs/studies

study-%: setup
	$(THREADS) $(BIN)/ckpt study samples/studies/$*.py --seeds $(or $(SEEDS_$*),3) --out studies-out/$* \
		$(DATA_$*)

.venv-bench/.installed: benchmarks/requirements.txt $(STAMP)
	sh benchmarks/environment.sh $(VENV) .venv-bench
	touch $@

# Side by side with what people use, on an otherwise idle machine; the table goes to docs/performance.md.
NO_BENCH := harness hessian_peers kills table
bench: setup .venv-bench/.installed
	mkdir -p benchmarks/results
	set -e; for name in $(filter-out $(NO_BENCH),$(basename $(notdir $(wildcard benchmarks/*.py)))); do \
		echo "== $$name"; \
		$(THREADS) .venv-bench/bin/python benchmarks/$$name.py --json benchmarks/results/$$name.json; \
	done
	$(BIN)/python benchmarks/table.py benchmarks/results docs/performance.md

# The pictures of docs/analyzers.md, from runs made for them.
figures: setup
	$(THREADS) sh docs/figures.sh $(BIN)/ckpt

clean:
	rm -rf .venv .venv-wheel .venv-bench build dist *.egg-info demo studies-out
