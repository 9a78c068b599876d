# make demo    the main job on a bare machine: installs, pretrains on faces, transfers to stained tissue, says where the pictures are
# make report  the sweep of the demo, evaluated, as one page: runs/transfer_demo/report.html
# make test    all tests but the slow ones; no network, no GPU. PART=transfer: those of one package
# make docs    docs/strategies.md from the files in conf/transfer, docs/compatibility.md from the results of make contact
# make gpu     the first thing on a machine with a GPU: what works, how fast, what was promised; PYTHON=python3 OUT=gpu MINUTES=9
# make contact the first thing on a machine with a network: what the world has published, fetched, opened, tried; NAMES="cifar10 ..." CONTACT=contact
# make gpu-wheels   what that needs on one without a network, beside torch, triton, numpy and Pillow (14 MB)
PYTHON ?= python3
# the one that is installed, where one is
TORCH ?= $(or $(patsubst .venv/torch-%,%,$(wildcard .venv/torch-*)),2.13)
# of two cores: tests wait for processes that they start, a third of the time with two workers
JOBS ?= 3
PART ?=
PY = .venv/bin/python
OUT ?= gpu
MINUTES ?= 9
GPU_PYTHON ?= 3.12
CONTACT ?= contact
NAMES ?=
.PHONY: demo report test test-slow docs install check gpu gpu-wheels contact clean

demo: .venv/installed
	$(PY) train.py -m +experiment=transfer_demo +sweep=demo transfer=full,scratch
	@echo && echo "The source, faces:" && $(PY) report.py runs/pretrain_demo
	@echo && echo "The target, stained tissue, from the faces (full) and from a random start (scratch), at equal steps:"
	@$(PY) report.py runs/transfer_demo
	@echo && echo "Next: make report compares six strategies, with evaluations and figures (10 to 15 minutes)."

report: .venv/installed
	$(PY) train.py -m +experiment=transfer_demo +sweep=demo
	$(PY) evaluate.py checkpoint=runs/transfer_demo n=500 sampler.steps=20
	$(PY) report.py runs/transfer_demo

test: .venv/installed-dev
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -m "not slow" -n $(JOBS) --dist worksteal tests/$(PART)

test-slow: .venv/installed-dev
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -m slow -n $(JOBS) tests/$(PART)

gpu:  # by the machine's own Python, which has the torch of its driver
	$(PYTHON) -m benchmarks.gpu --out $(OUT) --minutes $(MINUTES)

contact: .venv/installed
	@$(PY) -m pip install -q -r requirements-contact.txt -c constraints/torch-$(TORCH).txt || echo "the rows that are compared with diffusers wait for it"
	$(PY) -m benchmarks.contact --out $(CONTACT) $(NAMES)

gpu-wheels: .venv/installed
	$(PY) -m pip wheel -q --no-deps -w gpu-wheels $$(grep -o '^antlr4[^ ]*' requirements-gpu.txt)
	grep -v '^antlr4' requirements-gpu.txt > gpu-wheels/requirements.txt
	$(PY) -m pip download -q --no-deps --only-binary=:all: --python-version $(GPU_PYTHON) --platform manylinux2014_x86_64 \
	    --platform manylinux_2_28_x86_64 -d gpu-wheels -r gpu-wheels/requirements.txt
	@echo "gpu-wheels: on that machine, pip install --no-index --no-deps --find-links gpu-wheels -r requirements-gpu.txt"

docs: .venv/installed
	$(PY) -m docs.make_strategies
	$(PY) -m docs.make_compatibility

check: .venv/installed-dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

install: .venv/installed

.venv/installed: requirements.txt constraints/torch-$(TORCH).txt .venv/torch-$(TORCH)
	$(PY) -m pip install -q -r requirements.txt -c constraints/torch-$(TORCH).txt
	touch $@

.venv/torch-$(TORCH):  # another TORCH than before is installed over it
	$(PYTHON) -m venv .venv
	rm -f .venv/torch-*
	touch $@

constraints/torch-%.txt:
	$(error TORCH=$* is not supported: $(patsubst constraints/torch-%.txt,%,$(wildcard constraints/torch-*.txt)) are)

.venv/installed-dev: .venv/installed requirements-dev.txt requirements-contact.txt
	$(PY) -m pip install -q -r requirements-dev.txt -c constraints/torch-$(TORCH).txt
	touch $@

clean:
	rm -rf runs cache generated
