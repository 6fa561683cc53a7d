# The checks that CI runs. Run `make install` once, or give PYTHON=... to use another environment.
PYTHON ?= .venv/bin/python
OUT ?= out/smoke

.PHONY: all install lint format test docs smoke clean

all: lint test docs smoke

install:
	python3 -m venv .venv
	.venv/bin/pip install -e '.[dev]'

lint:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	PATH="$(dir $(PYTHON)):$$PATH" lint-imports --no-logo

format:
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

test:
	$(PYTHON) -m pytest -n 2

docs:
	$(PYTHON) -m sphinx -W --keep-going -q -b html docs docs/_build/html
	$(PYTHON) -m sphinx -W --keep-going -q -b doctest docs docs/_build/doctest

smoke:
	$(PYTHON) examples/toy.py --smoke-test --data moons --prior flow --guide exact --out $(OUT)/moons
	$(PYTHON) examples/toy.py --smoke-test --data circles --prior gmm --guide em --terms classification:weight=20 agreement:weight=5,start=0 --out $(OUT)/circles
	$(PYTHON) examples/toy.py --smoke-test --data pinwheel --prior student-t --guide em-sample --out $(OUT)/pinwheel
	$(PYTHON) examples/toy.py --smoke-test --data eight_gaussians --prior flowgmm --guide em-ema --out $(OUT)/eight_gaussians
	$(PYTHON) examples/toy.py --smoke-test --data circles --flow ffjord --prior ffjord --terms energy:weight=0.01 --out $(OUT)/ffjord
	$(PYTHON) examples/digits.py --smoke-test --out $(OUT)/digits
	$(PYTHON) examples/mnist.py --smoke-test --preset cpu --precision bf16-mixed --out $(OUT)/mnist
	$(PYTHON) examples/mnist.py --smoke-test --preset fast --out $(OUT)/mnist_fast
	$(PYTHON) examples/tabular.py --smoke-test --comparators quantiles --out $(OUT)/tabular
	$(PYTHON) examples/text.py --smoke-test --comparators spreading --out $(OUT)/text
	$(PYTHON) examples/transfer.py --smoke-test --comparators logistic --out $(OUT)/transfer
	$(PYTHON) -m benchmarks.all --device cpu --dry-run

clean:
	rm -rf build dist docs/_build $(OUT) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
