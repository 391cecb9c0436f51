# The commands that people and CI call. Each makes the environment first when it is missing.
PY := .venv/bin/python
BIN := .venv/bin

.PHONY: demo test unit lint bench clean

.venv/installed: pyproject.toml
	test -x $(PY) || python3 -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --editable '.[dev]'
	touch $@

demo: .venv/installed  ## extract, train, eval, name and report on the embedded data; remove a concept
	$(BIN)/vision-sae demo
	$(BIN)/vision-sae unlearn demo

# a file is run by one process, a core each; `pytest` alone runs them one after the other
TOGETHER := OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist loadfile

test: .venv/installed
	$(TOGETHER)

unit: .venv/installed  ## without the slow ones
	$(TOGETHER) -m "not slow"

# mypy cannot follow an editable install with mapped folders: it reads a tree of links
lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build && mkdir -p build/types/vision_sae
	ln -s $(CURDIR)/vision_sae/* $(CURDIR)/adapters $(CURDIR)/recipes $(CURDIR)/assets build/types/vision_sae/
	$(BIN)/mypy

bench: .venv/installed  ## other libraries join where they are installed: pip install '.[bench]'
	$(PY) benchmarks/extract.py
	$(PY) benchmarks/train_step.py
	$(PY) benchmarks/train_step.py --family batchtopk
	$(PY) benchmarks/time_to_fvu.py
	$(PY) benchmarks/synthetic.py --quick

clean:
	rm -rf build .venv demo
