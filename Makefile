# Two commands: `make demo` and `make test`. Each sets up what it needs in .venv and does nothing twice.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check clean

demo: .venv/.ready
	$(BIN)/probcrowd demo

test: .venv/.ready check
	$(BIN)/python -m pytest -m "not slow" --numprocesses 2 --dist loadfile --durations=8

check: .venv/.ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright

# The stamp is written last, so an installation that was interrupted is done again.
.venv/.ready: pyproject.toml requirements-dev.txt constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

clean:
	rm -rf .venv
